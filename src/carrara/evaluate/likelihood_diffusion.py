r"""What a diffusion model's likelihood is measured by: its variational bound, and the exact likelihood of its flow."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from torch import Tensor

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
from carrara.evaluate.likelihood import Row, Subject
from carrara.rng import Rng
from carrara.types import Condition, Estimate

__all__ = ["BoundMeasure", "OdeMeasure", "Profile", "default_variance", "own_clip", "profile", "variance_words"]

_NORMAL = NormalNoise()


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

    half: ClassVar[bool] = True
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

    def rows(
        self,
        generator: DiffusionGenerator,
        x: Tensor,
        condition: Condition,
        rng: Rng,
        levels: int,
        called: Callable[[], None],
    ) -> list[Row]:
        """One row a picture of x, in nats."""
        denoiser = _Counted(generator.denoiser, called, self.clip)
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

    half: ClassVar[bool] = False
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

    def rows(
        self,
        generator: DiffusionGenerator,
        x: Tensor,
        condition: Condition,
        rng: Rng,
        levels: int,
        called: Callable[[], None],
    ) -> list[Row]:
        """One row a picture of x, in nats; always in float32 or better, which the step control needs."""
        denoiser = _Counted(generator.denoiser, called)  # not clipped: a density needs a smooth map
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


class _Counted:
    """The denoiser with its estimates clamped to [-clip, clip], counting its calls."""

    def __init__(self, denoiser: Denoiser, tick: Callable[[], None], clip: float | None = None) -> None:
        self.denoiser, self.tick, self.clip = denoiser, tick, clip
        self.process: Process = denoiser.process

    def __call__(self, x_t: Tensor, t: Tensor | float, condition: Condition = Condition(), /) -> Estimate:  # noqa: B008
        mean, mix = self.denoiser(x_t, t, condition)
        self.tick()
        return Estimate(mean if self.clip is None else mean.clamp(-self.clip, self.clip), mix)


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
