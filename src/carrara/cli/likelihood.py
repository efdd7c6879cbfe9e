"""`carrara likelihood`: bits a dimension of pictures under a model, by the variational bound or exactly by its flow."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from carrara.cli.folders import require_writable
from carrara.cli.measuring import opened
from carrara.cli.voice import Counter, Voice, duration
from carrara.errors import DataError, RecipeError

if TYPE_CHECKING:
    from carrara.data import DataSettings, Pictures
    from carrara.evaluate.likelihood import Measure, Row, Subject
    from carrara.evaluate.likelihood_diffusion import BoundMeasure, OdeMeasure
    from carrara.system import System

__all__ = ["likelihood"]

_BOUND, _ODE = 256, 32  # pictures, unless told otherwise


def likelihood(
    context: typer.Context,
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A model folder.", show_default=False)],
    data: Annotated[Path, typer.Option(metavar="FOLDER", help="The pictures.", show_default=False)],
    bound: Annotated[bool, typer.Option("--bound", help="The variational bound; so without --ode.")] = False,
    ode: Annotated[bool, typer.Option("--ode", help="The exact likelihood of the probability flow.")] = False,
    n: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Pictures, drawn by the seed.  [default: 256; --ode: 32]")
    ] = None,
    split: Annotated[
        Literal["train", "heldout", "all"] | None,
        typer.Option(help="Which of them.  [default: heldout of the data it was trained on, else all]"),
    ] = None,
    terms: Annotated[
        int | None,
        typer.Option(
            metavar="K",
            min=1,
            help="Strides that a picture is measured at; enough: all. Of a VAE: draws of z.  [default: 32; a VAE's: 1]",
        ),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(metavar="N", min=2, help="Strides of its grid.  [default: the table's, else continuous time]"),
    ] = None,
    variance: Annotated[
        Literal["posterior", "transition", "learned"] | None,
        typer.Option(help="Of the bound's strides.  [default: learned, else the sampler's, else posterior]"),
    ] = None,
    clip: Annotated[
        bool | None,
        typer.Option("--clip/--no-clip", help="Of the bound's estimates to [-1, 1].  [default: as the model samples]"),
    ] = None,
    probes: Annotated[int, typer.Option(metavar="N", min=1, help="Of the flow's divergence, for --ode.")] = 1,
    dequantise: Annotated[
        Literal["normal", "uniform"], typer.Option(help="The noise that fills grey levels for --ode.")
    ] = "normal",
    tolerance: Annotated[
        float, typer.Option(metavar="X", min=1e-9, max=0.1, help="Of a step of --ode, in values and nats a dimension.")
    ] = 1e-4,
    unconditional: Annotated[
        bool, typer.Option("--unconditional", help="Do not tell the model captions or classes.")
    ] = False,
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Of the pictures, times and noise.")] = 0,
    out: Annotated[Path, typer.Option(metavar="DIR", help="For rows and report.")] = Path("likelihood"),
    batch: Annotated[int, typer.Option(metavar="N", min=1, help="Pictures at a time.")] = 32,
    device: Annotated[str, typer.Option(metavar="NAME", help="auto, cpu or cuda.")] = "auto",
    cache: Annotated[
        Path | None, typer.Option(metavar="DIR", help="For the prepared pictures.  [default: ~/.cache/carrara]")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Say the figures as JSON.")] = False,
) -> None:
    """Measure how likely a model finds pictures: bits a dimension, with report.html and report.json.

    Finished pictures are kept: the same command goes on after a stop, and with a larger --n. For models that make
    pixels themselves.
    """
    from carrara.evaluate.likelihood import Ledger, Subject, check_model
    from carrara.evaluate.likelihood_page import measure_facts, page
    from carrara.store import load
    from carrara.store.atomic import write_json
    from carrara.train.recipe import choose_device

    voice = Voice(silent=as_json)
    require_writable(out)
    where = choose_device(device)
    system = load(model)
    check_model(system)
    for part in (system.text, system.generator, system.decoder):
        part.to(where)  # type: ignore[union-attr]
    known = _facts(model)
    bounded = _bound_measure(system, terms, steps, variance, clip) if bound or not ode else None
    followed = _ode_measure(system, dequantise, tolerance, probes) if ode else None
    _say_unused(context, bounded, followed, voice)
    pictures = opened(_prepared(system, known, data), cache, voice)
    rows = _rows(pictures, known, split, voice)
    subject = Subject(system, pictures, told=not unconditional, precision=_precision(known))
    _say_condition(subject, unconditional, voice)
    channels, height, width = system.decoder.pictures.shape
    voice.say(
        f"Measured as the model sees them: {height} x {width} pixels, {channels} channels, {pictures.depth} bits."
    )
    if n is not None and n > len(rows):
        voice.warn(f"--n is {n}, and there are {len(rows)} pictures")

    began = time.monotonic()
    facts: dict[str, Any] = {
        "model": str(model),
        "data": str(data),
        "device": str(where),
        "seed": seed,
        "condition": subject.condition,
        "levels": subject.levels,
    }
    found: dict[str, Sequence[Row]] = {}
    measures: dict[str, tuple[Measure, int]] = {"bound": (bounded, n or _BOUND)} if bounded else {}
    measures |= {"ode": (followed, n or _ODE)} if followed else {}
    for name, (measure, count) in measures.items():
        header = {**subject.identity, **measure.settings, "seed": seed}
        ledger = Ledger(out / f"{name}.jsonl", header)
        chosen = subject.chosen(rows, count, seed)
        with Counter(len(chosen), "pictures", silent=as_json) as counter:
            found[name] = list(subject.measure(measure, chosen, ledger, seed=seed, batch=batch, tick=counter.at))
    for name, (measure, _) in measures.items():
        facts[name] = measure_facts(measure, found[name], subject)
        voice.say(_sentence(facts[name]))
    _warn_of_collapse(facts, voice)
    facts |= {
        "pictures": max(map(len, found.values())),
        "seconds": time.monotonic() - began,
        "warnings": voice.warnings,
    }
    write_json(out / "report.json", facts)
    facts["report"] = page(facts, subject, found).write(out / "report.html")
    if as_json:
        voice.json(facts)
    voice.say(f"{duration(facts['seconds'])}; the report is {facts['report']}")


def _facts(model: Path) -> Mapping[str, Any]:
    """What was noted of the generator when it was trained."""
    from carrara.store import read_component
    from carrara.store.atomic import read_json

    folder = read_json(model / "model.json")["generator"]
    return read_component(model / folder).facts


def _prepared(system: System, facts: Mapping[str, Any], data: Path) -> DataSettings:
    """The data's settings as in training, as far as that is noted; size, channels and depth are the model's."""
    from carrara.config import build
    from carrara.data import DataSettings
    from carrara.store import kinds

    channels, height, width = system.decoder.pictures.shape
    noted = facts.get("data", {})
    known = dict(noted.get("settings") or {}) if isinstance(noted, Mapping) else {}
    known |= {"folder": str(data), "size": [height, width], "channels": channels, "depth": system.decoder.depth}
    known |= {"allow_uncaptioned": True}
    settings: DataSettings = build(DataSettings, known, kinds())
    return settings


def _precision(facts: Mapping[str, Any]) -> str:
    training = facts.get("training")
    noted = training.get("precision") if isinstance(training, Mapping) else None
    return "bfloat16" if noted == "bfloat16" else "float32"


def _rows(pictures: Pictures, facts: Mapping[str, Any], split: str | None, voice: Voice) -> list[int]:
    """The pictures to measure, out of the folder's."""
    noted = facts.get("data")
    trained_on = isinstance(noted, Mapping) and noted.get("fingerprint") == pictures.fingerprint
    chosen = split or ("heldout" if trained_on and len(pictures.heldout) else "all")
    splits = {"heldout": pictures.heldout.tolist(), "train": pictures.train.tolist(), "all": [*range(len(pictures))]}
    rows: list[int] = splits[chosen]
    if not rows:
        raise DataError(f"--split {chosen}: no picture of {pictures.settings.folder} is in it; give another split")
    if trained_on and chosen != "heldout":
        voice.warn("the model was trained on these pictures, so that it finds them likelier than others")
    elif trained_on:
        voice.say(f"The model was trained on this folder; measured on the {len(rows)} pictures that were held out.")
    return rows


def _say_unused(context: typer.Context, bounded: object, followed: object, voice: Voice) -> None:
    """Warns of options that were given for a measure that is not taken."""
    for measure, option, names in (
        (bounded, "--bound", ("terms", "steps", "variance", "clip")),
        (followed, "--ode", ("probes", "dequantise", "tolerance")),
    ):
        sources = {name: context.get_parameter_source(name) for name in names}
        given = [f"--{name}" for name, source in sources.items() if source and source.name == "COMMANDLINE"]
        if measure is None and given:
            voice.warn(f"{', '.join(given)} without {option}: no effect")


def _bound_measure(
    system: System, terms: int | None, steps: int | None, variance: str | None, clip: bool | None
) -> Measure:
    from carrara.evaluate.likelihood_vae import VaeMeasure
    from carrara.vae import VaeGenerator

    if not isinstance(system.generator, VaeGenerator):
        return _diffusion_bound(system, 32 if terms is None else terms, steps, variance, clip)
    for name, value in (("--steps", steps), ("--variance", variance), ("--clip", clip)):
        if value is not None:
            raise RecipeError(
                f"{name} is for diffusion models, and this one is a VAE, which has no strides; leave it out"
            )
    return VaeMeasure(terms or 1)


def _diffusion_bound(
    system: System, terms: int, steps: int | None, variance: str | None, clip: bool | None
) -> BoundMeasure:
    from carrara.diffusion.process import Learned
    from carrara.diffusion.schedule import Tabulated
    from carrara.evaluate.likelihood_diffusion import BoundMeasure
    from carrara.store import kinds

    generator: Any = system.generator
    chosen = kinds().resolve("variance", variance)() if variance else None
    if isinstance(chosen, Learned) and not generator.denoiser.learned_variance:
        raise RecipeError("--variance learned: this model has no learned variance; choose posterior or transition")
    if terms % 2 or terms < 2:
        raise RecipeError(f"--terms is {terms}; give an even number, such as {terms + 1}")
    measure = BoundMeasure.usual(generator, terms, chosen)
    if clip is not None:
        measure = dataclasses.replace(measure, clip=1.0 if clip else None)
    schedule = generator.denoiser.process.schedule
    if steps is None:
        if variance and measure.times is None:
            raise RecipeError("--variance is for strides, and in continuous time there is none; add --steps 1000, say")
        return measure
    if isinstance(schedule, Tabulated) and steps > schedule.steps:
        raise RecipeError(f"--steps is {steps} and the model's table has {schedule.steps}; give at most as many")
    return dataclasses.replace(measure, times=_grid(generator, steps))


def _ode_measure(system: System, dequantisation: str, tolerance: float, probes: int) -> OdeMeasure:
    from carrara.diffusion.dequantise import NormalNoise, UniformNoise
    from carrara.diffusion.generator import DiffusionGenerator
    from carrara.evaluate.likelihood_diffusion import OdeMeasure

    if not isinstance(system.generator, DiffusionGenerator):
        raise RecipeError(
            "--ode follows the flow of a diffusion model, and this one is none; measure its --bound, which more "
            "--terms make tighter"
        )
    noise = NormalNoise() if dequantisation == "normal" else UniformNoise()
    return OdeMeasure(probes=probes, tolerance=tolerance, dequantisation=noise)


def _grid(generator: Any, steps: int) -> tuple[float, ...]:
    """`steps` strides: of a table's entries, else as the generator is sampled."""
    from carrara.cli.sampling import with_steps
    from carrara.diffusion.schedule import Tabulated
    from carrara.diffusion.times import uniform

    schedule, grid = generator.denoiser.process.schedule, with_steps(generator.settings.times, steps)
    if isinstance(schedule, Tabulated) or grid is None:
        return tuple(uniform(schedule, steps=steps))
    return tuple(grid(schedule))


def _say_condition(subject: Subject, unconditional: bool, voice: Voice) -> None:
    from carrara.text import Unconditional

    told = not isinstance(subject.system.text, Unconditional)
    if unconditional and not told:
        voice.warn("--unconditional has no effect: this model is told nothing anyway")
    elif told and not unconditional and subject.said is None:
        voice.warn("these pictures have no captions or classes, so that the model is told nothing")
    elif subject.said is not None and (missing := sum(not said for said in subject.said)):
        voice.warn(f"{missing} of {len(subject.said)} pictures have no words that the model knows; it is told nothing")


def _warn_of_collapse(facts: Mapping[str, Any], voice: Voice) -> None:
    from carrara.vae import collapse

    levels = facts.get("bound", {}).get("bits_of_levels")
    if levels and (said := collapse(levels)):
        voice.warn(said)


def _sentence(facts: Mapping[str, Any]) -> str:
    error = f" +- {facts['std_error']:.2g}" if facts["std_error"] is not None else ""
    first = f"{facts['bits_per_dim']:.4f}{error} bits/dim over {facts['pictures']} pictures"
    if "parts" not in facts:
        return f"Flow: {first}, {facts['evaluations']:.0f} network calls a picture."
    parts = ", ".join(f"{name} {value:.4f}" for name, value in facts["parts"].items())
    if facts["kind"] == "vae":
        if (terms := facts["terms"]) == 1:
            return f"Bound: {first} ({parts}); one draw of z a picture."
        alone = f"of one draw it is {facts['elbo']:.4f} ({parts})"
        return f"Bound: {first}, importance-weighted over {terms} draws of z a picture; {alone}."
    how = f"{facts['strides']} strides, variance {facts['variance']}" if facts["variance"] else "in continuous time"
    clipped = "" if facts["clip"] is None else f"; estimates clipped to [-{facts['clip']:g}, {facts['clip']:g}]"
    return f"Bound: {first} ({parts}); {how}; {facts['terms']} terms a picture{clipped}."
