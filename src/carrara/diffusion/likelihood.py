r"""The variational bound of a diffusion model, term by term (DDPM eq. 5).

    -log p(x) <= KL(q(x_1|x) || prior)  +  sum_{t > s > 0} E KL(q(x_s|x_t,x) || p(x_s|x_t))  +  E[-log p(x_0|x_t)]
                 prior (rate)              steps (rate)                                      reconstruction (distortion)

The reconstruction is that of discrete data: the normal density integrated over each of 256 grey levels, with the outer
two levels open to infinity (DDPM eq. 13), so that the probabilities of all levels sum to exactly 1. Its variance is
that of the next stride, since the last posterior's own is 0. Everything is in nats a row; `bits_per_dim` divides.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from carrara.diffusion.denoiser import Denoiser
from carrara.diffusion.process import Posterior, Variance, like
from carrara.diffusion.times import Times
from carrara.rng import Rng
from carrara.types import Condition, Gaussian

__all__ = ["Bound", "discretised_log_prob", "kl", "vlb_terms"]


class Bound(NamedTuple):
    """The bound's terms, nats a row."""

    prior: Tensor  # (B,)
    steps: Tensor  # (B, N - 1), one a stride from noise to data, without the last
    reconstruction: Tensor  # (B,)
    dimensions: int

    @property
    def total(self) -> Tensor:
        """-log p(x) at the most: (B,)."""
        return self.prior + self.steps.sum(1) + self.reconstruction

    @property
    def bits_per_dim(self) -> Tensor:
        """The total in bits a dimension: (B,)."""
        return self.total / (self.dimensions * math.log(2))


def kl(p: Gaussian, q: Gaussian) -> Tensor:
    """KL(p || q) of diagonal normals, element by element, in nats."""
    p_var, q_var = (_tensor(g.var, g.mean) for g in (p, q))
    return 0.5 * (p_var / q_var - 1 + (q_var / p_var).log() + (q.mean - p.mean) ** 2 / q_var)


def discretised_log_prob(x: Tensor, p: Gaussian, levels: int = 256) -> Tensor:
    """log P(x) of data on `levels` equal grey levels in [-1, 1] under a normal, element by element (DDPM eq. 13)."""
    half = 1 / (levels - 1)
    std = _tensor(p.std, p.mean)
    above, below = (x - p.mean + half) / std, (x - p.mean - half) / std
    # upper tails are mirrored into lower ones, and the difference is taken of logarithms: exact, and never log(0)
    flip = below > 0
    low, high = torch.where(flip, -above, below), torch.where(flip, -below, above)
    log_low, log_high = torch.special.log_ndtr(low), torch.special.log_ndtr(high)
    inside = log_high + torch.log(-torch.expm1(log_low - log_high))
    top, bottom = x > 1 - half, x < -1 + half
    return torch.where(bottom, torch.special.log_ndtr(above), torch.where(top, torch.special.log_ndtr(-below), inside))


def vlb_terms(
    denoiser: Denoiser,
    x: Tensor,
    times: Times,
    *,
    rng: Rng,
    condition: Condition = Condition(),  # noqa: B008 - frozen
    variance: Variance = Posterior(),  # noqa: B008
    levels: int = 256,
) -> Bound:
    """All terms of the bound for x (B, ...) on `levels` grey levels in [-1, 1], over a grid that ends at 0.

    One draw of x_t a term and row; the expectation is over the rng. Raises ValueError for data off the levels.
    """
    if times[-1] != 0 or len(times) < 3:
        raise ValueError(f"the bound needs at least two strides that end at t = 0; given times that end at {times[-1]}")
    off = ((x + 1) / 2 * (levels - 1)).sub(((x + 1) / 2 * (levels - 1)).round()).abs().max().item()
    if off > 1e-2 or x.abs().max() > 1 + 1e-6:
        raise ValueError(f"the bound is for data on {levels} grey levels in [-1, 1]; these values lie between levels")
    process = denoiser.process
    prior = process.prior_std(times[0])
    flat = kl(process.marginal(x, times[0]), Gaussian(torch.zeros_like(x), prior**2)).flatten(1).sum(1)
    steps = []
    reconstruction = torch.zeros_like(flat)
    for i, (t, s) in enumerate(pairwise(times)):
        x_t = process.diffuse(x, t, rng.fork("bound", i).normal_like(x))
        estimate = denoiser(x_t, t, condition)
        p = process.reverse(estimate, x_t, t, s, variance)
        if s > 0:
            steps.append(kl(process.posterior(x, x_t, t, s), p).flatten(1).sum(1))
        else:
            before = times[-3], times[-2]
            _, own = process.step(s, t)
            var = variance(process.posterior_var(*before), own, estimate, t, s)
            last = Gaussian(p.mean, var if isinstance(var, Tensor) and var.ndim > 1 else like(var, x))
            reconstruction = -discretised_log_prob(x, last, levels).flatten(1).sum(1)
    return Bound(flat, torch.stack(steps, 1), reconstruction, x[0].numel())


def _tensor(value: Any, x: Tensor) -> Tensor:
    return value if isinstance(value, Tensor) else torch.as_tensor(value, dtype=x.dtype, device=x.device)
