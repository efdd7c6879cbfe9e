"""The likelihood's figures as JSON and as a page: totals, where a bound is spent, rate against distortion."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from carrara.evaluate.likelihood import Figure, Measure, Row, Subject
from carrara.evaluate.likelihood_diffusion import BoundMeasure, OdeMeasure, profile, variance_words
from carrara.evaluate.likelihood_vae import VaeMeasure, vae_facts
from carrara.evaluate.plot import Axis, Bars, Lines, Series
from carrara.evaluate.report import KeyFigure, Report

__all__ = ["bound_facts", "measure_facts", "ode_facts", "page"]

_SHOWN = 8  # pictures of each kind


def measure_facts(measure: Measure, rows: Sequence[Row], subject: Subject) -> dict[str, Any]:
    """What rows of a measure come to: "bits_per_dim", "std_error", "pictures", and whatever is the measure's own."""
    if isinstance(measure, VaeMeasure):
        return vae_facts(measure, rows, subject)
    if isinstance(measure, OdeMeasure):
        return ode_facts(measure, rows, subject)
    if isinstance(measure, BoundMeasure):
        return bound_facts(measure, rows, subject)
    raise ValueError(f"{type(measure).__name__} is no measure that this page knows")


def bound_facts(measure: BoundMeasure, rows: Sequence[Row], subject: Subject) -> dict[str, Any]:
    """Mean and standard error in bits a dimension, the bound's parts, and its profile."""
    nats = math.log(2) * math.prod(subject.generator.space.shape)
    total = Figure.of([row["bits_per_dim"] for row in rows])
    parts = {
        name: math.fsum(math.fsum(v) if isinstance(v := row[name], list) else v for row in rows) / len(rows) / nats
        for name in ("prior", "steps", "reconstruction")
    }
    discrete = measure.times is not None
    return {
        "bits_per_dim": total.mean,
        "std_error": total.std_error,
        "pictures": len(rows),
        "kind": "discrete" if discrete else "continuous",
        "strides": measure.strides,
        "terms": len(rows[0]["steps"]) + discrete,
        "variance": variance_words(measure.variance) if discrete else None,
        "clip": measure.clip,
        "precision": subject.precision,
        "parts": parts,
        "profile": profile(measure, rows, subject)._asdict(),
    }


def ode_facts(measure: OdeMeasure, rows: Sequence[Row], subject: Subject) -> dict[str, Any]:
    """Mean and standard error in bits a dimension, and what the exact likelihood leaves open."""
    nats = math.log(2) * math.prod(subject.generator.space.shape)
    total = Figure.of([row["bits_per_dim"] for row in rows])
    schedule = subject.generator.denoiser.process.schedule
    end = measure.dequantisation.end(schedule, subject.levels)
    alpha, sigma = schedule(end)
    return {
        "bits_per_dim": total.mean,
        "std_error": total.std_error,
        "pictures": len(rows),
        "prior_kl": math.fsum(row["prior_kl"] for row in rows) / len(rows) / nats,
        "evaluations": math.fsum(row["evaluations"] for row in rows) / len(rows),
        "probes": measure.probes,
        "tolerance": measure.tolerance,
        "dequantisation": measure.dequantisation.words,
        "end": end,
        "end_noise": sigma / alpha * (subject.levels - 1) / 2,
        "precision": "float32",
    }


def page(facts: Mapping[str, Any], subject: Subject, rows: Mapping[str, Sequence[Row]]) -> Report:
    """The page of `facts`, as the verb writes them, with the rows of each measure."""
    report = Report("Likelihood", f"{facts['model']} on {facts['pictures']} pictures of {facts['data']}")
    report.figures(*(_card(name, facts[name]) for name in ("bound", "ode") if facts.get(name)))
    report.prose(_what(facts))
    for warning in facts["warnings"]:
        report.note(warning)
    if bound := facts.get("bound"):
        (_vae if bound["kind"] == "vae" else _bound)(report, bound)
    if ode := facts.get("ode"):
        _ode(report, ode)
    _extremes(report, subject, next(iter(rows.values())))
    return report


def _card(name: str, facts: Mapping[str, Any]) -> KeyFigure:
    error = f"+- {facts['std_error']:.2g}, " if facts["std_error"] is not None else ""
    label = {"bound": "Variational bound", "ode": "By the flow"}[name]
    return KeyFigure(label, round(facts["bits_per_dim"], 4), "bits/dim", f"{error}{facts['pictures']} pictures")


def _what(facts: Mapping[str, Any]) -> str:
    told = {"caption": "its caption", "class": "its class", "nothing": "nothing"}[facts["condition"]]
    return (
        f"The negative log-likelihood of a picture in bits, divided by its channels times its pixels; lower is better, "
        f"and uniform noise has {math.log2(facts['levels']):.0f}. The model is told {told}, and is not guided. Seed "
        f"{facts['seed']}; the standard error is that of the mean over pictures."
    )


def _bound(report: Report, facts: Mapping[str, Any]) -> None:
    discrete = facts["kind"] == "discrete"
    over = f"over {facts['strides']} strides" if discrete else "in continuous time"
    report.heading("The bound", f"What the model needs at the most to send a picture, {over}.")
    if discrete:
        report.prose(f"The variance of the reverse steps is {facts['variance']}.")
    if facts["clip"] is not None:
        report.prose(f"Estimates of the picture are clipped to [-{facts['clip']:g}, {facts['clip']:g}].")
    names = {
        "prior": "prior: how much of the picture is left in the last noise",
        "steps": "steps: from the noise to the last stride",
        "reconstruction": "reconstruction: the grey levels, given the last stride",
    }
    table = [[about, facts["parts"][name]] for name, about in names.items()]
    report.table(["part", "bits/dim"], [*table, ["total", facts["bits_per_dim"]]])
    report.prose(f"The network ran in {facts['precision']}.")
    p = facts["profile"]
    report.plot(
        Lines(
            "Where it is spent",
            [Series("bits/dim a term", p["times"], p["steps"])],
            x=Axis("t, 0 is data and 1 is noise", log=True),
            y=Axis("bits/dim"),
            note="each term's share of the bound",
        ),
        Lines(
            "Rate and distortion",
            [Series("error of the estimate", p["rate"], p["distortion"])],
            x=Axis("bits/dim sent so far"),
            y=Axis("root mean square error, grey levels", log=True),
            note="how far off the estimate of the picture still is",
        ),
    )


def _vae(report: Report, facts: Mapping[str, Any]) -> None:
    terms = facts["terms"]
    report.heading("The bound", "What the model needs at the most to send a picture: z, level by level, then the rest.")
    parts = {name: value for name, value in facts["parts"].items() if name != "reconstruction"}
    held = facts["bits_of_levels"]
    table: list[list[Any]] = [
        [f"{name} of z", value, bits] for (name, value), bits in zip(parts.items(), held, strict=True)
    ]
    table.append(["reconstruction: the grey levels, given z", facts["parts"]["reconstruction"], None])
    report.table(["part", "bits/dim", "bits a picture"], [*table, ["total, the ELBO", facts["elbo"], None]])
    if terms > 1:
        report.prose(
            f"Weighted by importance, {terms} draws of z a picture bound it by {facts['bits_per_dim']:.4f} bits/dim, "
            "which more draws can only lower on average. The parts are means over the draws."
        )
    report.plot(
        Bars(
            "What z holds",
            [f"level {level}" for level in range(1, len(held) + 1)],
            held,
            unit="bits a picture",
            note="the KL of each level, coarsest first",
        )
    )


def _ode(report: Report, facts: Mapping[str, Any]) -> None:
    report.heading("The flow", "The exact likelihood of the deterministic sampler, of pictures made continuous.")
    report.table(
        ["what", "value"],
        [
            ["bits/dim", facts["bits_per_dim"]],
            ["standard error", facts["std_error"]],
            ["network calls a picture", facts["evaluations"]],
            ["probes of the divergence", facts["probes"]],
            ["tolerance of a step", facts["tolerance"]],
            ["what the prior leaves out, on average and at the most, bits/dim", facts["prior_kl"]],
        ],
    )
    report.prose(
        f"Noise makes grey levels continuous ({facts['dequantisation']}), which can only add bits: the figure is a "
        f"bound of the grey levels' own. The flow is followed from t = {facts['end']:.3g}, where the diffusion's noise "
        f"has a standard deviation of {facts['end_noise']:.2g} grey levels. Its estimates are not clipped: a "
        "density needs a smooth map."
    )


def _extremes(report: Report, subject: Subject, rows: Sequence[Row]) -> None:
    places = {name: i for i, name in enumerate(subject.pictures.names)}
    ordered = sorted(rows, key=lambda row: row["bits_per_dim"])
    if len(ordered) < 2 * _SHOWN or subject.pictures.channels not in (1, 3):
        return
    report.heading("Pictures", "The likeliest and the least likely, with their bits a dimension.")
    for some in (ordered[:_SHOWN], ordered[-_SHOWN:]):
        images = subject.pictures.tensor([places[row["picture"]] for row in some])
        report.grid(images, [f"{row['bits_per_dim']:.3f}" for row in some])
