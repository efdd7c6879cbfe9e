r"""Adaptive projected guidance (Sadat et al. 2024): a contrast whose difference is tamed before it is scaled.

    d = D_c - D_worse                     the contrast's difference, row by row
    d <- d + beta d_before                momentum, negative in the paper: what every step repeats is taken off
    d <- d min(1, r / |d|)                its norm is bounded
    d <- d_orthogonal + eta d_parallel    the part along D_c saturates colours, and is scaled by eta
    D = D_c + (w - 1) d

All of it acts on the posterior mean D, as in the paper. With beta = 0, no r and eta = 1 it is the contrast itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Annotated

import torch
from torch import Tensor

from carrara.config import Role
from carrara.diffusion.guidance import Branch, ClassifierFree, Contrast, Guidance
from carrara.diffusion.process import Scale
from carrara.types import Condition, Estimate

__all__ = ["Projected"]


@dataclass(frozen=True)
class Projected(Guidance):
    """A contrast with its difference projected, bounded and with momentum; the paper's defaults but for the bound.

    `parallel` is eta; `limit` is r, the largest norm of the difference over a whole picture or latent, which depends on
    the model (the paper has 2.5 to 20); `momentum` is beta, and acts from one evaluation to the next of a sampling.
    """

    inner: Annotated[Contrast, Role("guidance")] = field(default_factory=ClassifierFree)
    parallel: float = 0.0
    limit: float | None = None
    momentum: float = 0.0

    def __post_init__(self) -> None:
        if not isinstance(self.inner, Contrast):
            raise ValueError(f"given {type(self.inner).__name__}; projected guidance wraps a contrast (ClassifierFree)")
        if self.limit is not None and not self.limit > 0:
            raise ValueError(f"limit = {self.limit}; expected a largest norm above 0, or none")
        if not -1 < self.momentum < 1:
            raise ValueError(f"momentum = {self.momentum}; expected a factor in (-1, 1), such as -0.5; 0 is off")

    def branches(
        self, denoiser: Callable[..., Estimate], condition: Condition, null: Condition, t: Scale
    ) -> tuple[Branch, ...]:
        return self.inner.branches(denoiser, condition, null, t)

    def combine(
        self, estimates: Sequence[Estimate], denoiser: Callable[..., Estimate], x_t: Tensor, t: Scale
    ) -> Estimate:
        if len(estimates) == 1:
            return estimates[0]
        if self.parallel == 1 and self.limit is None and self.momentum == 0:
            return self.inner.combine(estimates, denoiser, x_t, t)
        return self.led(estimates, estimates[0].mean - estimates[1].mean, t)

    def led(self, estimates: Sequence[Estimate], difference: Tensor, t: Scale) -> Estimate:
        """The conditional estimate, led along the difference in the rows where the contrast acts."""
        conditional, mix = estimates[0]
        d = difference.flatten(1).double()
        if self.limit is not None:
            d = d * (self.limit / d.norm(dim=1, keepdim=True)).clamp(max=1)
        along = torch.nn.functional.normalize(conditional.flatten(1).double(), dim=1)
        d = d + (self.parallel - 1) * (d * along).sum(1, keepdim=True) * along
        led = conditional + (self.inner.scale - 1) * d.view_as(conditional).to(conditional.dtype)
        return Estimate(self.inner.interval.choose(t, led, conditional), mix)

    def begin(self) -> Guidance:
        return self if self.momentum == 0 else _Moving(self)


class _Moving(Guidance):
    """The projected guidance of one sampling, with the differences that it has seen."""

    def __init__(self, projected: Projected) -> None:
        self._projected = projected
        self._total: Tensor | None = None

    def branches(
        self, denoiser: Callable[..., Estimate], condition: Condition, null: Condition, t: Scale
    ) -> tuple[Branch, ...]:
        return self._projected.branches(denoiser, condition, null, t)

    def combine(
        self, estimates: Sequence[Estimate], denoiser: Callable[..., Estimate], x_t: Tensor, t: Scale
    ) -> Estimate:
        if len(estimates) == 1:
            return estimates[0]
        difference = estimates[0].mean - estimates[1].mean
        before = torch.zeros_like(difference) if self._total is None else self._total
        total = difference + self._projected.momentum * before
        self._total = self._projected.inner.interval.choose(t, total, before)
        return self._projected.led(estimates, total, t)
