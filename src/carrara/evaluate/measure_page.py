"""A model's figures as a page, and as a section of its card."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from carrara.evaluate.measure import Measured
from carrara.evaluate.plot import Axis, Histogram, Sample
from carrara.evaluate.report import KeyFigure, Report
from carrara.evaluate.words import ordered, reference_words, value_words, word

__all__ = ["measured_page", "what_was_measured"]

_KEYS = ("kid", "fd", "prompt_fidelity_top1", "memorised_share", "bits_per_dim", "seconds_per_picture")


def what_was_measured(facts: Mapping[str, Any]) -> str:
    """One paragraph that every figure needs beside it: how many, of what, against what, seen by whom."""
    samples, extractor = facts["samples"], facts["extractor"]
    sets = f"{samples['repeats']} sets of {samples['count']:,}" if samples["repeats"] > 1 else f"{samples['count']:,}"
    height, width = samples["size"]
    scaled = " x ".join(map(str, extractor.get("size", ())))
    seen = f", scaled to {scaled} with antialiasing," if scaled else ""
    drawn = f" (the best of {samples['candidates']} draws each)" if samples["candidates"] > 1 else ""
    interval = (
        "Intervals are of 95 %, by Student's t over the sets, shares' by Wilson's score over all samples"
        if samples["repeats"] > 1
        else "Intervals are of 95 %: KID's by the jackknife over subsets, shares' by Wilson's score"
    )
    what = f"{sets} samples of {height} x {width} pixels from seed {samples['seed']}{drawn}"
    who = f"{extractor['name']} ({extractor['dimensions']} numbers, {extractor['key']})"
    return f"{what}, against {reference_words(facts)}; both{seen} seen by {who}. {interval}."


def measured_page(found: Measured) -> Report:
    """The page."""
    facts = found.facts
    report = Report(facts["name"], f"Measured against {reference_words(facts)}")
    report.figures(*_keys(facts))
    report.prose(what_was_measured(facts))
    for name, mark in facts["marks"].items():
        report.note(f"{word(name, facts['extractor']['name']).label}: {mark}")
    if not facts["reference"]["trained_on"]:
        report.note(
            "As far as is known, the model was not trained on this folder: what is called training pictures are the "
            "folder's own."
        )
    _samples(report, found)
    report.heading("Figures", "Arrows say what is better.")
    rows = [_row(name, facts) for name in ordered(list(facts["figures"]))]
    report.table(["figure", "value", "", "what it says"], rows)
    if facts["missing"]:
        why = sorted((word(name, facts["extractor"]["name"]).label, said) for name, said in facts["missing"].items())
        report.table(["not measured", "why"], [list(row) for row in why])
    _copies(report, found)
    return report


def _keys(facts: Mapping[str, Any]) -> list[KeyFigure]:
    cards = []
    for root in _KEYS:
        name = root if root in facts["figures"] else f"{root}_{_slug(facts)}"
        if name not in facts["figures"]:
            continue
        about = word(name, facts["extractor"]["name"])
        said = value_words(name, facts)
        note = said[said.index("(") + 1 : -1] if "(" in said else about.about
        cards.append(KeyFigure(about.label, float(facts["figures"][name]) * about.times, about.unit, note))
    return cards


def _slug(facts: Mapping[str, Any]) -> str:
    return next(name.removeprefix("kid_") for name in facts["figures"] if name.startswith("kid_"))


def _row(name: str, facts: Mapping[str, Any]) -> list[str]:
    about = word(name, facts["extractor"]["name"])
    arrow = {1: "\N{UPWARDS ARROW}", -1: "\N{DOWNWARDS ARROW}", 0: ""}[about.better]
    return [about.label, value_words(name, facts), arrow, about.about]


def _samples(report: Report, found: Measured) -> None:
    if not len(found.samples):
        return
    starred = found.right is not None
    told = " A star: the nearest reference picture is not of the prompt." if starred else ""
    report.heading("Samples", f"The first of the prompts and seeds that every model is asked for.{told}")
    right = found.right or [True] * len(found.prompts)
    report.grid(
        found.samples, [prompt if ok else f"{prompt} *" for prompt, ok in zip(found.prompts, right, strict=True)]
    )
    if len(found.varied):
        report.heading("The same prompt again", "Pictures of one prompt from several seeds.")
        report.grid(found.varied, found.varied_prompts, cell=96)


def _copies(report: Report, found: Measured) -> None:
    if not found.pairs:
        return
    report.heading(
        "Copies?",
        "The samples that come nearest to a training picture, above it, with their distance: root mean square over "
        "pixels at 32 x 32, where black and white are 2 apart.",
    )
    samples = torch.stack([pair.sample for pair in found.pairs])
    training = torch.stack([pair.training for pair in found.pairs])
    captions = [f"{pair.name}: {pair.distance:.3g}" for pair in found.pairs]
    report.compare({"sample": samples, "nearest training picture": training}, captions, cell=96)
    made, heldout = found.distances
    report.plot(
        Histogram(
            "Distance to the nearest training picture",
            (Sample("samples", made), Sample("held-out pictures", heldout)),
            Axis("root mean square over pixels"),
            note="samples that pile up left of all held-out pictures are copies",
        )
    )
