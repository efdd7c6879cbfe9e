r"""Guidance: which estimates a step needs, and how they become one. `guide` turns a sampling into rounds for networks.

    ClassifierFree(w):  D = D_null + w (D_condition - D_null)      (Ho & Salimans 2022, with scale 1 = off)
    Clip(g):            g's estimate, clamped to the data's range  (DDPM's own code; dangerous for latents)

Guidances wrap one another. At their neutral parameter they reduce to the plain denoiser, with one branch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from carrara.types import Ask, Condition, Estimate, Round, Rounds, Sampling, Step

__all__ = ["Branch", "ClassifierFree", "Clip", "Guidance", "Plain", "guide"]


class Branch(NamedTuple):
    """One estimate that a guidance asks for."""

    denoiser: Callable[..., Estimate]
    condition: Condition


class Guidance(ABC):
    """Says which branches it needs and combines their estimates."""

    @abstractmethod
    def branches(
        self, denoiser: Callable[..., Estimate], condition: Condition, null: Condition, t: float
    ) -> tuple[Branch, ...]:
        """What to ask at time t, the conditional branch first."""

    @abstractmethod
    def combine(
        self, estimates: Sequence[Estimate], denoiser: Callable[..., Estimate], x_t: Tensor, t: float
    ) -> Estimate:
        """One estimate from those of the branches; the mix is the conditional branch's."""


@dataclass(frozen=True)
class Plain(Guidance):
    """No guidance: the conditional denoiser."""

    def branches(
        self, denoiser: Callable[..., Estimate], condition: Condition, null: Condition, t: float
    ) -> tuple[Branch, ...]:
        return (Branch(denoiser, condition),)

    def combine(
        self, estimates: Sequence[Estimate], denoiser: Callable[..., Estimate], x_t: Tensor, t: float
    ) -> Estimate:
        return estimates[0]


@dataclass(frozen=True)
class ClassifierFree(Guidance):
    """Away from the null condition by `scale`: 1 is off, 0 is unconditional.

    It acts where start >= t > end (Kynkaanniemi et al. 2024) and is off elsewhere.
    """

    scale: float = 1.0
    start: float = 1.0
    end: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.end <= self.start <= 1:
            raise ValueError(f"guidance from t = {self.start} to {self.end}; expected 1 >= start >= end >= 0")

    def _acts(self, t: float) -> bool:
        return self.scale != 1 and self.end < t <= self.start

    def branches(
        self, denoiser: Callable[..., Estimate], condition: Condition, null: Condition, t: float
    ) -> tuple[Branch, ...]:
        conditional = Branch(denoiser, condition)
        return (conditional, Branch(denoiser, null)) if self._acts(t) else (conditional,)

    def combine(
        self, estimates: Sequence[Estimate], denoiser: Callable[..., Estimate], x_t: Tensor, t: float
    ) -> Estimate:
        if len(estimates) == 1:
            return estimates[0]
        (conditional, mix), (null, _) = estimates
        return Estimate(null + self.scale * (conditional - null), mix)


@dataclass(frozen=True)
class Clip(Guidance):
    """Clamps the estimate to [-limit, limit]: right for pixels in [-1, 1], wrong for latents."""

    inner: Guidance = Plain()
    limit: float = 1.0

    def branches(
        self, denoiser: Callable[..., Estimate], condition: Condition, null: Condition, t: float
    ) -> tuple[Branch, ...]:
        return self.inner.branches(denoiser, condition, null, t)

    def combine(
        self, estimates: Sequence[Estimate], denoiser: Callable[..., Estimate], x_t: Tensor, t: float
    ) -> Estimate:
        mean, mix = self.inner.combine(estimates, denoiser, x_t, t)
        return Estimate(mean.clamp(-self.limit, self.limit), mix)


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
    try:
        query = next(sampling)
        while True:
            branches = guidance.branches(denoiser, condition, null, query.t)
            times = torch.full((len(query.x),), query.t, dtype=torch.float64)
            answers = yield Round(tuple(Ask(b.denoiser, (query.x, times, b.condition)) for b in branches), step)
            estimate = guidance.combine([Estimate(*answer) for answer in answers], denoiser, query.x, query.t)
            step = None if query.inner else Step(query.x, query.t, estimate)
            query = sampling.send(estimate)
    except StopIteration as finished:
        if step is not None:
            yield Round((), step)
        return finished.value
    finally:
        sampling.close()
