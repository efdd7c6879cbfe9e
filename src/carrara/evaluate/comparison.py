"""Several models under one yardstick: a row each, charts of quality against cost, and their pictures side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from carrara.evaluate.measure import Measured
from carrara.evaluate.measure_page import what_was_measured
from carrara.evaluate.plot import Axis, Scatter
from carrara.evaluate.report import Report
from carrara.evaluate.words import ordered, reference_words, value_words, word

__all__ = ["comparison_facts", "comparison_page", "comparison_table"]

_SIDE_BY_SIDE = 16
_COLUMNS = (
    "kid", "fd", "prompt_fidelity_top1", "coverage", "diversity", "memorised_share", "bits_per_dim",
    "seconds_per_picture", "parameters", "training_seconds",
)  # fmt: skip
_COSTS = (
    ("seconds_per_picture", "seconds a picture"),
    ("parameters", "parameters"),
    ("training_seconds", "seconds of training, all parts"),
)


def comparison_facts(found: Sequence[Measured]) -> dict[str, Any]:
    """What holds for all, and a row for each: its name, its figures, their intervals and marks, what is missing."""
    first = found[0].facts
    return {
        "format_version": 1,
        "samples": {k: v for k, v in first["samples"].items() if k != "settings"},
        "reference": {k: v for k, v in first["reference"].items() if k != "trained_on"},
        "extractor": first["extractor"],
        "judge": first["judge"],
        "clip": first["clip"],
        "rows": [
            {
                "name": one.facts["name"],
                "model": one.facts["model"],
                **one.facts["figures"],
                "intervals": one.facts["intervals"],
                "marks": one.facts["marks"],
                "missing": one.facts["missing"],
                "settings": one.facts["samples"]["settings"],
                "parts": {"parameters": one.facts["parameters"], "training_seconds": one.facts["training_seconds"]},
            }
            for one in found
        ],
    }


def comparison_table(found: Sequence[Measured]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the main figures: a model a row, as text; what was not measured is a dash."""
    names = _main(found)
    extractor = found[0].facts["extractor"]["name"]
    header = ["model", *(word(name, extractor).label for name in names)]
    rows = [[one.facts["name"], *(_value(name, one) for name in names)] for one in found]
    return header, rows


def _main(found: Sequence[Measured]) -> list[str]:
    """The main figures that at least one model has."""
    known = {name for one in found for name in one.facts["figures"]}
    slug = next(name.removeprefix("kid_") for name in known if name.startswith("kid_"))
    names = [root if root in known else f"{root}_{slug}" for root in _COLUMNS]
    return [name for name in names if name in known]


def _value(name: str, one: Measured) -> str:
    return value_words(name, one.facts) if name in one.facts["figures"] else "\N{EN DASH}"


def comparison_page(found: Sequence[Measured], warnings: Sequence[str] = ()) -> Report:
    """The page."""
    facts = found[0].facts
    report = Report(
        "Side by side", f"{len(found)} models, one measure: {reference_words(facts)}, {facts['extractor']['name']}"
    )
    report.prose(what_was_measured(facts))
    for warning in warnings:
        report.note(warning)
    report.table(*comparison_table(found))
    for name, mark in {name: mark for one in found for name, mark in one.facts["marks"].items()}.items():
        report.note(f"{word(name, facts['extractor']['name']).label}: {mark}")
    _charts(report, found)
    _pictures(report, found)
    _everything(report, found)
    return report


def _charts(report: Report, found: Sequence[Measured]) -> None:
    names = _main(found)
    qualities = [name for name in names if name == "prompt_fidelity_top1" or name.startswith("kid_")]
    report.heading("Quality against cost", "What a picture, a parameter and an hour of training buy.")
    for quality in qualities:
        about = word(quality, _network(found))
        report.plot(
            *(
                Scatter(
                    f"{about.label} against {label}",
                    [one.facts["name"] for one in found],
                    [_number(cost, one) for one in found],
                    [_number(quality, one) * about.times for one in found],
                    Axis(label, log=True),
                    Axis(f"{about.label} {about.unit}".strip()),
                    note="lower is better" if about.better < 0 else "higher is better",
                )
                for cost, label in _COSTS
                if any(cost in one.facts["figures"] for one in found)
            )
        )


def _network(found: Sequence[Measured]) -> str:
    """The network that most figures are by."""
    name: str = found[0].facts["extractor"]["name"]
    return name


def _number(name: str, one: Measured) -> float:
    return float(one.facts["figures"].get(name, float("nan")))


def _pictures(report: Report, found: Sequence[Measured]) -> None:
    count = min(_SIDE_BY_SIDE, *(len(one.samples) for one in found))
    if not count:
        return
    report.heading("The same prompts and seeds", "A column is a prompt with its seed, a row a model.")
    report.compare({one.facts["name"]: one.samples[:count] for one in found}, found[0].prompts[:count], cell=96)


def _everything(report: Report, found: Sequence[Measured]) -> None:
    known = ordered(list({name for one in found for name in one.facts["figures"]}))
    report.heading("All figures")
    report.table(
        ["figure", *(one.facts["name"] for one in found)],
        [[word(name, _network(found)).label, *(_value(name, one) for one in found)] for name in known],
    )
    missing = [
        [one.facts["name"], word(name, _network(found)).label, why]
        for one in found
        for name, why in sorted(one.facts["missing"].items())
    ]
    if missing:
        report.table(["model", "not measured", "why"], missing)
