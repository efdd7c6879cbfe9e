r"""How likely a model finds pictures, in bits a dimension: the variational bound, and the exact likelihood of its flow.

    -log2 P(picture) / dimensions,     a dimension being one channel of one pixel

Lower is better; uniform noise of 8 bits has 8. It is a statement about discrete pictures, so a model whose generator
makes latents has none. Every picture is a row of its own in a file that only grows, keyed by what the picture shows:
measuring goes on after a stop, and with more pictures. A row depends on its picture and the seed alone.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from carrara.data import Pictures
from carrara.diffusion.denoiser import Denoiser
from carrara.diffusion.dequantise import Dequantisation, NormalNoise
from carrara.diffusion.generator import DiffusionGenerator
from carrara.diffusion.guidance import Guidance
from carrara.diffusion.likelihood import Bound, continuous_bound, resolving_time, vlb_estimate, vlb_terms
from carrara.diffusion.limits import Clip
from carrara.diffusion.ode_likelihood import Rademacher, ode_log_prob
from carrara.diffusion.process import Learned, Posterior, Process, Transition, Variance
from carrara.diffusion.schedule import Schedule, Tabulated
from carrara.diffusion.times import Times, full
from carrara.errors import NonFiniteError, RecipeError, StorageError
from carrara.fingerprint import fingerprint
from carrara.rng import Rng, permutation
from carrara.run import finish
from carrara.store.atomic import storage_errors
from carrara.system import System
from carrara.text import Labels, Unconditional
from carrara.types import Condition, Estimate

__all__ = [
    "BoundMeasure",
    "Figure",
    "Ledger",
    "Measure",
    "OdeMeasure",
    "Profile",
    "Row",
    "Subject",
    "check_model",
    "default_variance",
    "own_clip",
    "profile",
    "variance_words",
]

_NORMAL = NormalNoise()

Row = dict[str, Any]
Tick = Callable[[float], None]
"""Called with how many pictures are done, fractions included."""


class Figure(NamedTuple):
    """A mean over pictures with its standard error, which one picture alone has not."""

    mean: float
    std_error: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> Figure:
        """Of one value a picture."""
        n = len(values)
        mean = math.fsum(values) / n
        return cls(mean, math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1) / n) if n > 1 else None)


def default_variance(generator: DiffusionGenerator) -> Variance:
    """The variance that a bound takes unless told otherwise: learned, else its sampler's own, else the posterior's."""
    if generator.denoiser.learned_variance:
        return Learned()
    keywords = getattr(generator.settings.sampler, "keywords", {})
    return keywords.get("variance", Posterior())


def own_clip(generator: DiffusionGenerator) -> float | None:
    """Where the model clips its estimates when it samples, so that the distribution it samples from does."""
    guidance: Guidance | None = generator.settings.guidance
    while guidance is not None and not isinstance(guidance, Clip):
        guidance = getattr(guidance, "inner", None)
    return None if guidance is None else guidance.limit


def variance_words(variance: Variance) -> str:
    """What a variance is, for people."""
    known = {
        Posterior: "the posterior's (fixed, small)",
        Transition: "the transition's (fixed, large)",
        Learned: "learned",
    }
    return known.get(type(variance), repr(variance))


@dataclass(frozen=True)
class BoundMeasure:
    """The variational bound over `times`, or with None in continuous time; `terms` strides a picture.

    Estimates are clamped to [-clip, clip], None leaves them as they are: what is measured is the distribution of the
    sampler that does the same.
    """

    times: Times | None
    terms: int
    variance: Variance
    clip: float | None = None

    @classmethod
    def usual(cls, generator: DiffusionGenerator, terms: int = 32, variance: Variance | None = None) -> BoundMeasure:
        """All entries of a table, else continuous time; clipped as the model samples."""
        schedule = generator.denoiser.process.schedule
        times = full(schedule) if isinstance(schedule, Tabulated) else None
        return cls(times, terms, variance or default_variance(generator), own_clip(generator))

    @property
    def strides(self) -> int | None:
        """Of the grid, the last included; None in continuous time."""
        return None if self.times is None else len(self.times) - 1

    @property
    def all_of_them(self) -> bool:
        """Whether every stride is measured, rather than a sample of them."""
        return self.times is not None and self.terms >= len(self.times) - 2

    @property
    def settings(self) -> dict[str, Any]:
        """What decides a row, for the ledger."""
        grid = None if self.times is None else hashlib.sha256(repr(self.times).encode()).hexdigest()[:16]
        terms = "all" if self.all_of_them else self.terms
        return {
            "measure": "bound",
            "strides": self.strides,
            "times": grid,
            "terms": terms,
            "variance": repr(self.variance),
            "clip": self.clip,
        }

    @property
    def calls(self) -> int:
        """Network calls a picture."""
        return len(self.times) - 1 if self.times and self.all_of_them else self.terms + (self.times is not None)

    def rows(self, denoiser: _Counted, x: Tensor, condition: Condition, rng: Rng, levels: int) -> list[Row]:
        """One row a picture of x, in nats."""
        if self.times is None:
            found = continuous_bound(denoiser, x, rng=rng, terms=self.terms, condition=condition, levels=levels)
        elif self.all_of_them:
            found = vlb_terms(
                denoiser, x, self.times, rng=rng, condition=condition, variance=self.variance, levels=levels
            )
        else:
            found = vlb_estimate(
                denoiser,
                x,
                self.times,
                rng=rng,
                terms=self.terms,
                condition=condition,
                variance=self.variance,
                levels=levels,
            )
        return _bound_rows(found)

    def span(self, schedule: Schedule, levels: int, count: int) -> list[float]:
        """The time in the middle of each of `count` strata."""
        middles = [(i + 0.5) / count for i in range(count)]
        if self.times is None:
            low, high = (schedule.logsnr(t) for t in (schedule.t_max, resolving_time(schedule, levels)))
            return [schedule.time(low + (high - low) * middle) for middle in middles]
        return [self.times[int(middle * (len(self.times) - 2))] for middle in middles]


def _bound_rows(found: Bound) -> list[Row]:
    parts = [part.double().tolist() for part in (found.prior, found.steps, found.reconstruction, found.errors)]
    bits = found.bits_per_dim.double().tolist()
    return [
        {"bits_per_dim": b, "prior": p, "steps": s, "reconstruction": r, "errors": e}
        for b, p, s, r, e in zip(bits, *parts, strict=True)
    ]


@dataclass(frozen=True)
class OdeMeasure:
    """The exact likelihood of the probability flow, of pictures that are made continuous."""

    clip: ClassVar[float | None] = None  # a density needs a smooth map
    probes: int = 1
    tolerance: float = 1e-4  # a smooth small model's mean is then 3e-4 bits from that of 1e-6
    dequantisation: Dequantisation = _NORMAL

    @property
    def settings(self) -> dict[str, Any]:
        """What decides a row, for the ledger."""
        how = {"probes": self.probes, "tolerance": self.tolerance, "dequantisation": repr(self.dequantisation)}
        return {"measure": "ode", **how}

    @property
    def calls(self) -> None:
        """Not known before: every picture has steps of its own."""
        return None

    def rows(self, denoiser: _Counted, x: Tensor, condition: Condition, rng: Rng, levels: int) -> list[Row]:
        """One row a picture of x, in nats; always in float32 or better, which the step control needs."""
        data = self.dequantisation(denoiser.process, x, rng.fork("dequantise"), levels)
        found = ode_log_prob(
            denoiser,
            data.x,
            rng=rng,
            probes=Rademacher(self.probes),
            tolerance=self.tolerance,
            end=data.end,
            condition=condition,
        )
        columns = found.bits_per_dim(data.cost), found.log_prob, found.prior_kl, found.evaluations
        names = "bits_per_dim", "log_prob", "prior_kl", "evaluations"
        return [dict(zip(names, row, strict=True)) for row in zip(*(c.tolist() for c in columns), strict=True)]


Measure = BoundMeasure | OdeMeasure


class _Counted:
    """The denoiser with its estimates clamped to [-clip, clip], counting its calls."""

    def __init__(self, denoiser: Denoiser, tick: Callable[[], None], clip: float | None) -> None:
        self.denoiser, self.tick, self.clip = denoiser, tick, clip
        self.process: Process = denoiser.process

    def __call__(self, x_t: Tensor, t: Tensor | float, condition: Condition = Condition(), /) -> Estimate:  # noqa: B008
        mean, mix = self.denoiser(x_t, t, condition)
        self.tick()
        return Estimate(mean if self.clip is None else mean.clamp(-self.clip, self.clip), mix)


class Subject:
    """A model and the pictures that it is measured on.

    `told` says whether pictures come with their caption or class; without, the condition is the null one.
    Raises RecipeError for a model that has no likelihood of pictures, or pictures that it is not for.
    """

    def __init__(self, system: System, pictures: Pictures, *, told: bool = True, precision: str = "float32") -> None:
        check_model(system)
        generator: Any = system.generator
        self.system, self.pictures = system, pictures
        self.generator: DiffusionGenerator = generator
        self.levels = 2**system.decoder.depth
        self.precision = precision
        self.said = _said(system, pictures) if told else None
        self.device = next(generator.parameters()).device
        shape = (pictures.channels, *pictures.size)
        if shape != tuple(generator.space.shape) or 2**pictures.depth != self.levels:
            raise RecipeError(
                f"the pictures are {shape} with {pictures.depth} bits and the model makes {generator.space.shape} "
                f"with {system.decoder.depth}; prepare them alike"
            )

    @property
    def condition(self) -> str:
        """What the model is told: "caption", "class" or "nothing"."""
        if self.said is None:
            return "nothing"
        return "class" if isinstance(self.system.text, Labels) else "caption"

    @property
    def identity(self) -> dict[str, Any]:
        """What decides every row, whatever is measured."""
        weights = dict(self.generator.state_dict())
        if self.said is not None and isinstance(self.system.text, torch.nn.Module):
            weights |= {f"text.{name}": value for name, value in self.system.text.state_dict().items()}
        return {
            "format_version": 1,
            "model": fingerprint(weights),
            "condition": self.condition,
            "levels": self.levels,
            "precision": self.precision,
        }

    def key(self, index: int) -> str:
        """The name of a picture's row: what it shows and what is said of it."""
        said = self.said[index] if self.said is not None else ""
        return hashlib.sha256(f"{self.pictures.content[index]}\x1f{said}".encode(errors="replace")).hexdigest()[:24]

    def chosen(self, rows: Sequence[int], count: int | None, seed: int) -> list[int]:
        """`count` of the rows, drawn by the seed; a larger count begins with the same ones."""
        order = permutation(len(rows), seed, "likelihood")[:count]
        return [int(rows[i]) for i in order]

    def measure(
        self, measure: Measure, rows: Sequence[int], ledger: Ledger, *, seed: int, batch: int, tick: Tick
    ) -> Iterator[Row]:
        """Measures what the ledger lacks, and yields the rows of all, in order, as they are known."""
        missing = [i for i in rows if self.key(i) not in ledger.rows]
        done = len(rows) - len(missing)
        tick(done)
        for first in range(0, len(missing), batch):
            some = missing[first : first + batch]
            ledger.add(zip(map(self.key, some), self._batch(measure, some, seed, done + first, tick), strict=True))
            tick(done + first + len(some))
        yield from (ledger.rows[self.key(i)] for i in rows)

    def _batch(self, measure: Measure, rows: Sequence[int], seed: int, done: int, tick: Tick) -> list[Row]:
        calls = 0

        def called() -> None:
            nonlocal calls
            calls += 1
            if measure.calls:
                tick(done + len(rows) * calls / measure.calls)

        x = self.pictures.tensor(rows).to(self.device)
        rng = Rng([(seed, "likelihood", self.key(i)) for i in rows])
        half = self.precision == "bfloat16" and isinstance(measure, BoundMeasure)
        with torch.no_grad():
            condition = self._condition(rows)
            counted = _Counted(self.generator.denoiser, called, measure.clip)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=half, cache_enabled=False):
                found = measure.rows(counted, x, condition, rng, self.levels)
        for i, row in zip(rows, found, strict=True):
            if not math.isfinite(row["bits_per_dim"]):
                raise NonFiniteError(
                    f"the likelihood of {self.pictures.names[i]} is not finite; `carrara show MODEL --verify` checks "
                    "the weights"
                )
            row["picture"] = self.pictures.names[i]
        return found

    def _condition(self, rows: Sequence[int]) -> Condition:
        said = [self.said[i] if self.said is not None else "" for i in rows]
        condition: Condition = finish(self.system.text.start(said))
        return condition


def check_model(system: System) -> None:
    """Raises RecipeError for a model that has no likelihood of pictures."""
    generator = system.generator
    if not isinstance(generator, DiffusionGenerator):
        raise RecipeError(
            f"a {type(generator).__name__} has no likelihood that could be measured here; give a diffusion model"
        )
    if generator.space.kind != "pixels" or system.decoder.pictures.kind != "pixels":
        raise RecipeError(
            f"this model's generator makes latents {generator.space.shape}, which a decoder turns into pictures; bits "
            "a dimension are a likelihood of discrete pixels, which latents have not, and no bound through the decoder "
            'is known. Measure a model whose decoder is "pixels"'
        )


def _said(system: System, pictures: Pictures) -> list[str] | None:
    """What is said of each picture, in the words that the model reads; None where that is nothing."""
    text = system.text
    if isinstance(text, Unconditional):
        return None
    if isinstance(text, Labels):
        known = set(text.names)
        return [label if label in known else "" for label in pictures.labels] if pictures.classes else None
    return [said[0] if said else "" for said in pictures.captions] if any(pictures.captions) else None


class Ledger:
    """Finished rows in a file of JSON lines that only grows; its first line says what they are rows of.

    Raises RecipeError for a file of other settings, StorageError where it cannot be read or written.
    """

    def __init__(self, path: Path, header: Mapping[str, Any]) -> None:
        self.path = path
        self.rows: dict[str, Row] = {}
        with storage_errors(f"cannot read {path}"):
            path.parent.mkdir(parents=True, exist_ok=True)
            lines = path.read_bytes().split(b"\n") if path.exists() else []
        whole, cut = lines[:-1], lines[-1] if lines else b""
        if not whole:
            self._write(json.dumps(dict(header)).encode() + b"\n", "wb")
            return
        self._refuse_others(whole[0], header)
        for number, line in enumerate(whole[1:], 2):
            row = _parsed(path, number, line)
            self.rows[row.pop("key")] = row
        if cut:  # the machine stopped within a line
            self._write(b"\n".join(whole) + b"\n", "wb")

    def _refuse_others(self, line: bytes, header: Mapping[str, Any]) -> None:
        found = _parsed(self.path, 1, line)
        if different := sorted(name for name in {*found, *header} if found.get(name) != header.get(name)):
            name = different[0]
            raise RecipeError(
                f"{self.path} holds rows of another {name.replace('_', ' ')} ({found.get(name)!r} instead of "
                f"{header.get(name)!r}); choose another --out, or delete it"
            )

    def add(self, rows: Any) -> None:
        """Appends (key, row) pairs, durably."""
        new = dict(rows)
        self._write(b"".join(json.dumps({"key": key, **row}).encode() + b"\n" for key, row in new.items()), "ab")
        self.rows |= new

    def _write(self, data: bytes, mode: str) -> None:
        with storage_errors(f"cannot write {self.path}"), open(self.path, mode) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())


def _parsed(path: Path, number: int, line: bytes) -> Row:
    try:
        row = json.loads(line)
        if not isinstance(row, dict) or (number > 1 and not {"key", "bits_per_dim"} <= set(row)):
            raise ValueError("not a row")
    except ValueError as error:
        raise StorageError(f"line {number} of {path} is damaged ({error}); delete the file to begin anew") from error
    return row


class Profile(NamedTuple):
    """Where the bound is spent, averaged over pictures; bits a dimension, grey levels, in the order of sampling."""

    times: list[float]  # (K,)
    steps: list[float]  # (K,) each stratum's share of the bound
    rate: list[float]  # (K,) what is known when it begins
    distortion: list[float]  # (K,) root mean square error of the estimate there, in grey levels


def profile(measure: BoundMeasure, rows: Sequence[Row], subject: Subject) -> Profile:
    """The mean profile of rows of a bound."""
    nats = math.log(2) * math.prod(subject.generator.space.shape)
    columns = list(zip(*(row["steps"] for row in rows), strict=True))
    steps = [math.fsum(column) / len(rows) / nats for column in columns]
    errors = [math.fsum(column) / len(rows) for column in zip(*(row["errors"] for row in rows), strict=True)]
    spent = math.fsum(row["prior"] for row in rows) / len(rows) / nats
    rate = []
    for share in steps:
        rate.append(spent)
        spent += share
    times = measure.span(subject.generator.denoiser.process.schedule, subject.levels, len(steps))
    return Profile(times, steps, rate, [math.sqrt(e) * (subject.levels - 1) / 2 for e in errors])
