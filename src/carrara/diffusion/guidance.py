r"""Guidance: which estimates a step needs, and how they become one. `guide` turns a sampling into rounds for networks.

With D = E[x | x_t, ...], a contrast leads away from a worse estimate, and scale 1 is off:

    ClassifierFree   D = D_null + w (D_condition - D_null)            (Ho & Salimans 2022)
    Autoguidance     D = D_weak + w (D_condition - D_weak)            (Karras et al. 2024)
    Composed         D = D_null + sum_i w_i (D_condition_i - D_null)  (Liu et al. 2022)

Guidances wrap one another: `Projected` in projection.py, `Clip`, `Threshold` and `Rescale` in limits.py and
`Classifier` in classifier.py act on what another guidance makes. At their neutral parameter all of them are the plain
denoiser: one branch, equal bit for bit.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from carrara.diffusion.process import Scale
from carrara.types import Ask, Condition, Estimate, Round, Rounds, Sampling, Step

__all__ = [
    "Autoguidance",
    "Branch",
    "ClassifierFree",
    "Composed",
    "Contrast",
    "Guidance",
    "Interval",
    "Plain",
    "Wrapper",
    "guide",
]


class Branch(NamedTuple):
    """One estimate that a guidance asks for."""

    denoiser: Callable[..., Estimate]
    condition: Condition


class Guidance(ABC):
    """Says which branches it needs and combines their estimates. Times are floats, or tensors (B,) with one a row."""

    @abstractmethod
    def branches(
        self, denoiser: Callable[..., Estimate], condition: Condition, null: Condition, t: Scale
    ) -> tuple[Branch, ...]:
        """What to ask at time t, the conditional branch first."""

    @abstractmethod
    def combine(
        self, estimates: Sequence[Estimate], denoiser: Callable[..., Estimate], x_t: Tensor, t: Scale
    ) -> Estimate:
        """One estimate from those of the branches; the mix is the conditional branch's."""

    def begin(self) -> Guidance:
        """The guidance of one sampling: itself, or for those that remember what was, an object with a fresh memory."""
        return self


@dataclass(frozen=True)
class Plain(Guidance):
    """No guidance: the conditional denoiser."""

    def branches(
        self, denoiser: Callable[..., Estimate], condition: Condition, null: Condition, t: Scale
    ) -> tuple[Branch, ...]:
        return (Branch(denoiser, condition),)

    def combine(
        self, estimates: Sequence[Estimate], denoiser: Callable[..., Estimate], x_t: Tensor, t: Scale
    ) -> Estimate:
        return estimates[0]


@dataclass(frozen=True)
class Wrapper(Guidance):
    """Acts on what the guidance inside of it makes; asks what that one asks."""

    inner: Guidance = Plain()

    def branches(
        self, denoiser: Callable[..., Estimate], condition: Condition, null: Condition, t: Scale
    ) -> tuple[Branch, ...]:
        return self.inner.branches(denoiser, condition, null, t)

    def begin(self) -> Guidance:
        inner = self.inner.begin()
        return self if inner is self.inner else replace(self, inner=inner)


class Interval(NamedTuple):
    """Where a guidance acts: start >= t > end (Kynkäänniemi et al. 2024), row by row where each has its own time."""

    start: float
    end: float

    def check(self) -> None:
        """Raises ValueError for one that is none."""
        if not 0 <= self.end <= self.start <= 1:
            raise ValueError(f"guidance from t = {self.start} to {self.end}; expected 1 >= start >= end >= 0")

    def any(self, t: Scale) -> bool:
        """Whether any row is in it."""
        rows = (self.end < t) & (t <= self.start)
        return bool(rows.any()) if isinstance(rows, Tensor) else rows

    def choose(self, t: Scale, inside: Tensor, outside: Tensor) -> Tensor:
        """`inside` for the rows in it, `outside` for the others."""
        rows = (self.end < t) & (t <= self.start)
        if not isinstance(rows, Tensor):
            return inside if rows else outside
        return torch.where(rows.to(inside.device).view(-1, *[1] * (inside.ndim - 1)), inside, outside)


@dataclass(frozen=True)
class Contrast(Guidance):
    """Away from a worse estimate by `scale`: 1 is off, 0 is the worse estimate itself.

    It acts where start >= t > end and is off elsewhere.
    """

    scale: float = 1.0
    start: float = 1.0
    end: float = 0.0

    def __post_init__(self) -> None:
        self.interval.check()

    @property
    def interval(self) -> Interval:
        """Where it acts."""
        return Interval(self.start, self.end)

    @abstractmethod
    def worse(self, denoiser: Callable[..., Estimate], condition: Condition, null: Condition) -> Branch:
        """The branch to lead away from."""

    def branches(
        self, denoiser: Callable[..., Estimate], condition: Condition, null: Condition, t: Scale
    ) -> tuple[Branch, ...]:
        conditional = Branch(denoiser, condition)
        acts = self.scale != 1 and self.interval.any(t)
        return (conditional, self.worse(denoiser, condition, null)) if acts else (conditional,)

    def combine(
        self, estimates: Sequence[Estimate], denoiser: Callable[..., Estimate], x_t: Tensor, t: Scale
    ) -> Estimate:
        if len(estimates) == 1:
            return estimates[0]
        (conditional, mix), (worse, _) = estimates
        return Estimate(self.interval.choose(t, worse + self.scale * (conditional - worse), conditional), mix)


@dataclass(frozen=True)
class ClassifierFree(Contrast):
    """Away from the null condition, which is the empty prompt or a negative one."""

    def worse(self, denoiser: Callable[..., Estimate], condition: Condition, null: Condition) -> Branch:
        return Branch(denoiser, null)


@dataclass(frozen=True)
class Autoguidance(Contrast):
    """Away from a weaker model under the same condition: one that is smaller, or was trained for less time.

    `weak` is a denoiser of the same process, conditions and space; a file cannot name it.
    """

    weak: Callable[..., Estimate] = field(kw_only=True)

    def worse(self, denoiser: Callable[..., Estimate], condition: Condition, null: Condition) -> Branch:
        return Branch(self.weak, condition)


@dataclass(frozen=True)
class Composed(Guidance):
    """Several conditions at once: the request's own by `scale`, and each of `others` by its own.

    Every one has a row a picture. A negative scale leads away. A file cannot name conditions.
    """

    others: tuple[tuple[Condition, float], ...]
    scale: float = 1.0

    def branches(
        self, denoiser: Callable[..., Estimate], condition: Condition, null: Condition, t: Scale
    ) -> tuple[Branch, ...]:
        others = tuple(Branch(denoiser, other) for other, scale in self.others if scale != 0)
        plain = self.scale == 1 and not others
        return (Branch(denoiser, condition), *others, *(() if plain else (Branch(denoiser, null),)))

    def combine(
        self, estimates: Sequence[Estimate], denoiser: Callable[..., Estimate], x_t: Tensor, t: Scale
    ) -> Estimate:
        (own, mix), *others = estimates
        if not others:
            return estimates[0]
        null = others.pop().mean
        scales = [scale for _, scale in self.others if scale != 0]
        mean = null + self.scale * (own - null)
        for (other, _), scale in zip(others, scales, strict=True):
            mean = mean + scale * (other - null)
        return Estimate(mean, mix)


def guide(
    sampling: Sampling,
    guidance: Guidance,
    denoiser: Callable[..., Any],
    condition: Condition = Condition(),  # noqa: B008 - frozen
    null: Condition = Condition(),  # noqa: B008
) -> Rounds:
    """The sampling as rounds: each question becomes the guidance's asks, and each answer one estimate.

    A finished stride rides with the next round; the last one rides alone, in a round without asks.
    """
    step: Step | None = None
    guidance = guidance.begin()
    try:
        query = next(sampling)
        while True:
            branches = guidance.branches(denoiser, condition, null, query.t)
            different = {(id(b.denoiser), id(b.condition)): b for b in branches}  # what is asked twice is asked once
            times = _rows(query.t, query.x)
            asks = tuple(Ask(b.denoiser, (query.x, times, b.condition)) for b in different.values())
            answers = dict(zip(different, (yield Round(asks, step)), strict=True))
            estimates = [Estimate(*answers[id(b.denoiser), id(b.condition)]) for b in branches]
            estimate = guidance.combine(estimates, denoiser, query.x, query.t)
            # a time for each row is no stride that all of them have made
            step = None if query.inner or isinstance(query.t, Tensor) else Step(query.x, query.t, estimate)
            query = sampling.send(estimate)
    except StopIteration as finished:
        if step is not None:
            yield Round((), step)
        return finished.value
    finally:
        sampling.close()


def _rows(t: Scale, x: Tensor) -> Tensor:
    """(B,) float64, one time a row."""
    return t if isinstance(t, Tensor) else torch.full((x.shape[0],), t, dtype=torch.float64)
