r"""Samplers: coroutines that walk the grid and ask, at each time, what E[x | x_t] is.

Each takes x at times[0] and returns x at times[-1]; it knows nothing of networks, guidance, batches or progress.
State is kept in x's own type. Those that integrate an ODE do it in y = x_t / c over u = sigma / c, where every
coordinate c = alpha + k sigma gives the same exact solution and dy/du = (y - E[x | x_t]) / u:

    c = alpha           for processes that keep some data at t = 1 (EDM, DDPM's tables)
    c = alpha + sigma   for straight paths, and wherever alpha reaches 0

`heun` and `dpmpp_2m` are deterministic; `ancestral` and `ddim` with eta > 0 draw from the rng, a stream a row.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Annotated, Any

from torch import Tensor

from carrara.config import Role
from carrara.diffusion.process import Posterior, Process, Variance
from carrara.diffusion.times import Times
from carrara.rng import Rng
from carrara.types import Query, Sampling

__all__ = ["Coordinate", "Sampler", "alpha_coordinate", "ancestral", "ddim", "dpmpp_2m", "heun", "total_coordinate"]

Sampler = Annotated[Any, Role("sampler")]
"""One of the coroutines below with its settings bound: called as sampler(process, x, times, rng=rng)."""

Coordinate = Callable[[float, float], float]
"""c as a function of (alpha, sigma)."""


def alpha_coordinate(alpha: float, sigma: float) -> float:
    """c = alpha."""
    return alpha


def total_coordinate(alpha: float, sigma: float) -> float:
    """c = alpha + sigma."""
    return alpha + sigma


def _coordinate(process: Process, t: float) -> Coordinate:
    # where alpha is small, the first stride in sigma / alpha is huge: tenfold std with 10 strides on CosineBetas
    return alpha_coordinate if process.schedule(t)[0] > 1e-3 else total_coordinate


def ancestral(process: Process, x: Tensor, times: Times, *, rng: Rng, variance: Variance = Posterior()) -> Sampling:  # noqa: B008
    """DDPM Algorithm 2: draw each x_s from p(x_s | x_t)."""
    for t, s in pairwise(times):
        estimate = yield Query(x, t)
        p = process.reverse(estimate, x, t, s, variance)
        x = p.mean if s == 0 else p.mean + p.std * rng.normal_like(x)
    return x


def ddim(process: Process, x: Tensor, times: Times, *, rng: Rng, eta: float = 0.0) -> Sampling:
    """DDIM (Song et al. 2021, eq. 12): eta 0 is deterministic (Euler's method), eta 1 has the posterior's variance."""
    if not 0 <= eta <= 1:
        raise ValueError(f"eta = {eta}; expected a share of the posterior's standard deviation in [0, 1]")
    for t, s in pairwise(times):
        mean = (yield Query(x, t)).mean
        drawn = eta * float(process.posterior_var(t, s)) ** 0.5
        x = _ddim(process, x, mean, t, s, drawn)
        if drawn > 0:
            x = x + drawn * rng.normal_like(x)
    return x


def _ddim(process: Process, x: Tensor, mean: Tensor, t: float, s: float, drawn: float = 0.0) -> Tensor:
    """To s along the estimated noise, leaving room for noise of std `drawn` that is yet to be added."""
    (alpha_t, sigma_t), (alpha_s, sigma_s) = process.schedule(t), process.schedule(s)
    return alpha_s * mean + math.sqrt(sigma_s**2 - drawn**2) / sigma_t * (x - alpha_t * mean)


def heun(process: Process, x: Tensor, times: Times, *, rng: Rng, coordinate: Coordinate | None = None) -> Sampling:
    """EDM's second-order sampler without churn (Karras et al. 2022, Algorithm 1).

    Two evaluations a stride, and one in a last stride that ends at 0.
    `coordinate` None is alpha, or alpha + sigma where alpha (nearly) vanishes at times[0].
    """
    c = coordinate or _coordinate(process, times[0])
    if c(*process.schedule(times[0])) == 0:
        raise ValueError(f"the coordinate is 0 at t = {times[0]}, where alpha is; use total_coordinate")
    for t, s in pairwise(times):
        (alpha_t, sigma_t), (alpha_s, sigma_s) = process.schedule(t), process.schedule(s)
        c_t, c_s = c(alpha_t, sigma_t), c(alpha_s, sigma_s)
        u_t, u_s = sigma_t / c_t, sigma_s / c_s
        y = x / c_t
        slope = (y - (yield Query(x, t)).mean) / u_t
        euler = y + (u_s - u_t) * slope
        if u_s > 0:
            inner = (euler - (yield Query(c_s * euler, s, inner=True)).mean) / u_s
            euler = y + (u_s - u_t) * (slope + inner) / 2
        x = c_s * euler
    return x


def dpmpp_2m(process: Process, x: Tensor, times: Times, *, rng: Rng) -> Sampling:
    """DPM-Solver++(2M) (Lu et al. 2022, Algorithm 2), in half the log-SNR; one evaluation a stride.

    The first stride, and those where the log-SNR is infinite at either end, are DDIM strides.
    """
    schedule = process.schedule
    previous: tuple[Tensor, float] | None = None  # the last estimate, and the length of its stride
    for t, s in pairwise(times):
        mean = (yield Query(x, t)).mean
        h = (schedule.logsnr(s) - schedule.logsnr(t)) / 2
        direction = mean
        if previous is not None and math.isfinite(h):
            before, length = previous
            direction = mean + h / (2 * length) * (mean - before)
        (_, sigma_t), (alpha_s, sigma_s) = schedule(t), schedule(s)
        x = (
            sigma_s / sigma_t * x - alpha_s * math.expm1(-h) * direction
            if math.isfinite(h)
            else _ddim(process, x, mean, t, s)
        )
        previous = (mean, h) if math.isfinite(h) else None
    return x
