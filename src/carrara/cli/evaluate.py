"""`carrara evaluate`: how good a model's pictures are, by one measure for every family."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

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
)
from carrara.cli.reconstruct import Bench, evaluate_decoder, find_decoder
from carrara.cli.voice import Voice, duration, table
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
    steps: Annotated[int | None, typer.Option(metavar="N", min=1, help="Strides from noise to picture.")] = None,
    sampler: Annotated[str | None, typer.Option(metavar="NAME", help="ancestral, ddim, dpmpp-2m, heun, ...")] = None,
    guidance: Annotated[float | None, typer.Option(metavar="X", help="How much the prompt counts; 1 is off.")] = None,
    temperature: Annotated[
        float | None, typer.Option(metavar="X", min=0, help="Of VAEs and tokens: below 1 likelier, less varied.")
    ] = None,
    truncation: Annotated[
        float | None, typer.Option(metavar="X", min=0, max=1, help="Of GANs: below 1 likelier, less varied.")
    ] = None,
    candidates: Annotated[
        int, typer.Option(metavar="N", min=1, help="Draws of each picture; the one that fits its prompt best is kept.")
    ] = 1,
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
    from carrara.cli.sampling import sampling_settings
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
    from carrara.evaluate.measure_page import measured_page
    from carrara.store.atomic import write_json

    began = time.monotonic()
    found = measure(model, yard, out, making=making, say=counted(voice))
    facts = {**found.facts, "seconds": time.monotonic() - began}
    if card:
        try:
            facts["card"] = str(write_into_card(model, found.facts))
        except StorageError as error:
            voice.warn(f"the model's card is as it was: {error}")
    facts["warnings"] = voice.warnings
    facts["report"] = str(out / "report.html")
    write_json(out / "report.json", facts)
    measured_page(found).write(out / "report.html")
    if as_json:
        voice.json(facts)
        return
    _tell(facts, voice)


def _tell(facts: Mapping[str, Any], voice: Voice) -> None:
    from carrara.evaluate.measure_page import what_was_measured
    from carrara.evaluate.words import ordered, value_words, word

    extractor = facts["extractor"]["name"]
    names = ordered(list(facts["figures"]))
    voice.say(f"{facts['name']}: {what_was_measured(facts)}")
    voice.say(table([(word(name, extractor).label, value_words(name, facts)) for name in names]))
    for name, mark in facts["marks"].items():
        voice.say(f"{word(name, extractor).label}: {mark}.")
    for name, why in facts["missing"].items():
        voice.say(f"Not measured: {word(name, extractor).label} ({why}).")
    voice.say(f"{duration(facts['seconds'])}; the report is {facts['report']}")
