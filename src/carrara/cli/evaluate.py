"""`carrara evaluate`: how good a model's pictures are, by one measure for every family."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from carrara.cli.folders import require_writable
from carrara.cli.measuring import (
    Batch,
    Bits,
    Cache,
    Clip,
    Count,
    Data,
    Device,
    ExtractorName,
    Json,
    Judge,
    PerPrompt,
    Repeats,
    Ruler,
    Seed,
    Share,
    counted,
    share_of,
    write_report,
)
from carrara.cli.reconstruct import Bench, evaluate_decoder, find_decoder
from carrara.cli.sampling import (
    Candidates,
    Guidance,
    SamplerName,
    Steps,
    Temperature,
    TopK,
    TopP,
    Truncation,
    sampling_settings,
)
from carrara.cli.voice import Voice, duration
from carrara.errors import StorageError

if TYPE_CHECKING:
    from carrara.evaluate.model import Model
    from carrara.evaluate.samples import Making
    from carrara.evaluate.yardstick import Yardstick

__all__ = ["evaluate"]


def evaluate(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A model folder, or a decoder's.", show_default=False)],
    data: Data,
    n: Count = 1000,
    repeats: Repeats = 1,
    seed: Seed = 0,
    reference: Annotated[
        Literal["train", "heldout", "all"] | None,
        typer.Option(
            help="Which of the pictures are compared with; prompts are their captions.  [default: train; of a decoder "
            "heldout]"
        ),
    ] = None,
    extractor: ExtractorName = "efficientnet-lite0",
    judge: Judge = None,
    clip: Clip = None,
    per_prompt: PerPrompt = 4,
    bits: Bits = 256,
    steps: Steps = None,
    sampler: SamplerName = None,
    guidance: Guidance = None,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    truncation: Truncation = None,
    candidates: Candidates = 1,
    shard: Share = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="For samples and report.")] = Path("evaluation"),
    batch: Batch = 32,
    device: Device = "auto",
    cache: Cache = None,
    card: Annotated[
        bool, typer.Option("--card/--no-card", help="Write the figures into the model's README.md.")
    ] = True,
    as_json: Json = False,
) -> None:
    """Measure a model's pictures against real ones, with report.html and report.json.

    Samples are kept: the same command goes on after a stop, and with a larger --n. Figures are comparable where data,
    reference, extractor and the number of samples are the same; `carrara compare` sees to that.

    A decoder by itself is measured by what becomes of pictures that it encodes and decodes.
    """
    from carrara.evaluate.model import open_model
    from carrara.evaluate.samples import Making
    from carrara.train.recipe import choose_device

    voice = Voice(silent=as_json)
    share = share_of(shard)
    require_writable(out)
    where = choose_device(device)
    asked = {
        "steps": steps,
        "sampler": sampler,
        "guidance": guidance,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "truncation": truncation,
    }
    if (model / "component.json").is_file():
        others: dict[str, tuple[object, object]] = {name: (value, None) for name, value in asked.items()}
        others |= {"repeats": (repeats, 1), "judge": (judge, None), "clip": (clip, None), "per_prompt": (per_prompt, 4)}
        others |= {"bits": (bits, 256), "candidates": (candidates, 1), "shard": (shard, None)}
        decoder = find_decoder(model, others)
        bench = Bench(data, n, seed, reference or "heldout", extractor, batch, cache)
        evaluate_decoder(bench.trial(decoder, where, voice), out, voice, as_json=as_json, card=card)
        return
    subject = open_model(model)
    subject.to(where)
    making = Making(sampling_settings(subject.system, asked, None, voice), candidates, batch)
    ruler = Ruler(data, n, repeats, seed, reference or "train", extractor, judge, clip, per_prompt, bits, batch, cache)
    yard = ruler.yardstick([subject], where, voice)
    if share is not None:
        _make(subject, yard, making, share, out, voice, as_json)
        return
    _measure(subject, yard, making, out, voice, as_json, card)


def _make(
    model: Model, yard: Yardstick, making: Making, share: tuple[int, int], out: Path, voice: Voice, as_json: bool
) -> None:
    """Makes a share of the samples, and says how many there are."""
    began, say = time.monotonic(), counted(voice)
    samples = yard.samples(model, out, making)
    there = total = 0
    for series in yard.series(model):
        there += samples.make(series, share=share, tick=say("samples", len(series.asked)))
        total += len(series.asked)
    facts = {"model": model.path, "samples": there, "of": total, "shard": list(share), "folder": samples.folder}
    if as_json:
        voice.json({**facts, "seconds": time.monotonic() - began})
    voice.say(
        f"{there:,} of {total:,} samples are in {samples.folder}, after {duration(time.monotonic() - began)}; "
        "when all are, the same command without --shard measures them."
    )


def _measure(model: Model, yard: Yardstick, making: Making, out: Path, voice: Voice, as_json: bool, card: bool) -> None:
    from carrara.evaluate.card_section import write_into_card
    from carrara.evaluate.measure import measure
    from carrara.evaluate.measure_page import measured_page, what_was_measured

    began = time.monotonic()
    found = measure(model, yard, out, making=making, say=counted(voice))
    facts = {**found.facts, "seconds": time.monotonic() - began}
    if card:
        try:
            facts["card"] = str(write_into_card(model, found.facts))
        except StorageError as error:
            voice.warn(f"the model's card is as it was: {error}")
    write_report(facts, measured_page(found), out, what_was_measured(facts), voice, as_json=as_json)
