r"""Samplers: coroutines that walk the grid and ask, at each time, what E[x | x_t] is.

Each takes x at times[0] and returns x at times[-1]; it knows nothing of networks, guidance, batches or progress.
State is kept in x's own type, coefficients are float64. Two ideas are shared by nearly all of them, here and in the
modules beside this one:

A stride along an estimate D of the data, which leaves room for noise of std `drawn` (DDIM, eq. 12),

    x_s = alpha_s D + sqrt(sigma_s^2 - drawn^2) / sigma_t (x_t - alpha_t D) + drawn z

is exact for constant D, at alpha_t = 0 and sigma_s = 0 as well. `ddim` takes D at t; those in dpm.py and unipc.py have
better values of D for the whole stride; the stochastic ones differ in `drawn`.

The others integrate the probability-flow ODE in y = x_t / c over u = sigma / c, where every coordinate
c = alpha + k sigma gives the same exact solution and dy/du = (y - E[x | x_t]) / u:

    c = alpha           for processes that keep some data at t = 1 (EDM, DDPM's tables)
    c = alpha + sigma   for straight paths, and wherever alpha reaches 0

What is random is drawn from the rng, a stream a row.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Any

import torch
from torch import Tensor

from carrara.config import Role
from carrara.diffusion.process import Posterior, Process, Variance, like
from carrara.diffusion.schedule import Schedule
from carrara.diffusion.times import Times
from carrara.rng import Rng
from carrara.types import Estimate, Query, Sampling

__all__ = [
    "Churn",
    "Coordinate",
    "Path",
    "Sampler",
    "alpha_coordinate",
    "ancestral",
    "ddim",
    "euler_ancestral",
    "heun",
    "kept",
    "lcm",
    "noisy",
    "predictor_corrector",
    "stride",
    "total_coordinate",
]

Sampler = Annotated[Any, Role("sampler")]
"""One of the coroutines with its settings bound: called as sampler(process, x, times, rng=rng)."""

Coordinate = Annotated[Callable[[float, float], float], Role("coordinate")]
"""c as a function of (alpha, sigma), linear in both."""


def alpha_coordinate(alpha: float, sigma: float) -> float:
    """c = alpha."""
    return alpha


def total_coordinate(alpha: float, sigma: float) -> float:
    """c = alpha + sigma."""
    return alpha + sigma


# What the samplers share


def stride(process: Process, x: Tensor, mean: Tensor, t: float, s: float, drawn: float = 0.0) -> Tensor:
    """x_s from x_t along the estimate `mean`, short of the noise of std `drawn` that is yet to be added."""
    keep = kept(process, t, s, drawn)
    moved: Tensor = keep * x + (process.schedule(s)[0] - keep * process.schedule(t)[0]) * mean
    return moved


def kept(process: Process, t: float, s: float, drawn: float) -> float:
    """How much of the noise at t is left at s, when noise of std `drawn` comes new."""
    return math.sqrt(process.schedule(s)[1] ** 2 - drawn**2) / process.schedule(t)[1]


def noisy(x: Tensor, drawn: float, rng: Rng) -> Tensor:
    """x with noise of std `drawn`; nothing is drawn for 0."""
    return x + drawn * rng.normal_like(x) if drawn > 0 else x


@dataclass(frozen=True)
class Path:
    """The probability-flow ODE of a process in y = x_t / c over u = sigma / c."""

    process: Process
    coordinate: Coordinate

    @classmethod
    def of(cls, process: Process, times: Times, coordinate: Coordinate | None) -> Path:
        """In the given coordinate; None is alpha, or alpha + sigma where alpha (nearly) vanishes at times[0]."""
        alpha, sigma = process.schedule(times[0])
        if coordinate is None:
            # small alpha makes the first stride in sigma / alpha huge: tenfold std with 10 strides on CosineBetas
            coordinate = alpha_coordinate if alpha > 1e-3 else total_coordinate
        if coordinate(alpha, sigma) == 0:
            raise ValueError(f"the coordinate is 0 at t = {times[0]}, where alpha is; use total_coordinate")
        return cls(process, coordinate)

    def at(self, t: float) -> tuple[float, float]:
        """(c, u) at t."""
        alpha, sigma = self.process.schedule(t)
        c = self.coordinate(alpha, sigma)
        return c, sigma / c

    def slope(self, x: Tensor, t: float, inner: bool = False) -> Generator[Query, Estimate, tuple[Tensor, Tensor]]:
        """y and dy/du at x_t, for one question."""
        c, u = self.at(t)
        y = x / c
        return y, (y - (yield Query(x, t, inner)).mean) / u

    def along(self, y: Tensor, slope: Tensor, t: float, s: float) -> Tensor:
        """x_s, from y at t along a slope."""
        (_, u_t), (c_s, u_s) = self.at(t), self.at(s)
        x: Tensor = c_s * (y + (u_s - u_t) * slope)
        return x

    def time(self, u: float) -> float:
        """The t in [t_min, t_max] at which sigma / c is u: alpha / sigma = (1 / u - c(0, 1)) / c(1, 0)."""
        snr = (1 / u - self.coordinate(0.0, 1.0)) / self.coordinate(1.0, 0.0)
        return self.process.schedule.time(2 * math.log(snr)) if snr > 0 else self.process.schedule.t_max


# Methods of one evaluation a stride


def ancestral(process: Process, x: Tensor, times: Times, *, rng: Rng, variance: Variance = Posterior()) -> Sampling:  # noqa: B008
    """DDPM Algorithm 2: draw each x_s from p(x_s | x_t). One evaluation a stride."""
    for t, s in pairwise(times):
        estimate = yield Query(x, t)
        p = process.reverse(estimate, x, t, s, variance)
        x = p.mean if s == 0 else p.mean + p.std * rng.normal_like(x)
    return x


def ddim(process: Process, x: Tensor, times: Times, *, rng: Rng, eta: float = 0.0) -> Sampling:
    """DDIM (Song et al. 2021, eqs. 12 and 16): eta 0 is deterministic, eta 1 has the posterior's variance.

    One evaluation a stride. With eta 0 it is Euler's method in every coordinate.
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta = {eta}; expected a share of the posterior's standard deviation in [0, 1]")
    for t, s in pairwise(times):
        mean = (yield Query(x, t)).mean
        drawn = eta * float(process.posterior_var(t, s)) ** 0.5 if eta > 0 else 0.0
        x = noisy(stride(process, x, mean, t, s, drawn), drawn, rng)
    return x


def euler_ancestral(process: Process, x: Tensor, times: Times, *, rng: Rng, eta: float = 1.0) -> Sampling:
    """k-diffusion's Euler ancestral: Euler's method in sigma / alpha down to sigma_down, then noise of std sigma_up.

    One evaluation a stride. It is DDIM with this eta, stride by stride, since Euler's method is a DDIM stride and
    sigma_up is eta times the posterior's standard deviation; so it is right for alpha = 0 as well.
    """
    return ddim(process, x, times, rng=rng, eta=eta)


def lcm(process: Process, x: Tensor, times: Times, *, rng: Rng) -> Sampling:
    """Consistency sampling (Song et al. 2023, Algorithm 1; Luo et al. 2023): estimate x, and make it noisy again.

    One evaluation a stride; for denoisers that were distilled to leap to the data in one.
    """
    for t, s in pairwise(times):
        mean = (yield Query(x, t)).mean
        x = noisy(stride(process, x, mean, t, s, drawn := process.schedule(s)[1]), drawn, rng)
    return x


# Methods of several evaluations a stride


@dataclass(frozen=True)
class Churn:
    """Noise that is put in before each stride, to be taken out again by it (EDM, Algorithm 2); `amount` 0 is off.

    `amount` is S_churn, spread over the strides of the grid; `noise` is S_noise, a factor on the std of what is put in.
    It acts at levels sigma / alpha from `sigma_min` to `sigma_max` (S_tmin, S_tmax; None has no bound).
    """

    amount: float = 0.0
    noise: float = 1.0
    sigma_min: float = 0.0
    sigma_max: float | None = None

    def __post_init__(self) -> None:
        if not (self.amount >= 0 and self.noise >= 0):
            raise ValueError(f"churn of amount {self.amount} and noise {self.noise}; expected both to be 0 or more")
        if not 0 <= self.sigma_min <= self._most:
            raise ValueError(f"churn from sigma {self.sigma_min} to {self.sigma_max}; expected 0 <= min <= max")

    @property
    def _most(self) -> float:
        return math.inf if self.sigma_max is None else self.sigma_max

    def raised(self, schedule: Schedule, t: float, strides: int) -> float:
        """t hat >= t, where sigma / alpha is larger by min(amount / strides, sqrt 2 - 1), up to t_max."""
        grown = min(self.amount / strides, math.sqrt(2) - 1)
        alpha, sigma = schedule(t)
        if grown == 0 or alpha == 0 or not self.sigma_min <= sigma / alpha <= self._most:
            return t
        return max(t, schedule.time(schedule.logsnr(t) - 2 * math.log1p(grown)))


def heun(
    process: Process,
    x: Tensor,
    times: Times,
    *,
    rng: Rng,
    churn: Churn = Churn(),
    coordinate: Coordinate | None = None,
) -> Sampling:
    """EDM's second-order sampler (Karras et al. 2022, Algorithm 2; without churn its Algorithm 1), in y over u.

    Two evaluations a stride, and one in a last stride that ends at 0. Churn goes forward to t hat by q(x_that | x_t),
    whatever the coordinate is.
    `coordinate` None is alpha, or alpha + sigma where alpha (nearly) vanishes at times[0].
    """
    path = Path.of(process, times, coordinate)
    for t, s in pairwise(times):
        raised = churn.raised(process.schedule, t, len(times) - 1)
        if raised > t:
            keep, var = (float(value) for value in process.step(t, raised))
            x, t = noisy(keep * x, churn.noise * math.sqrt(var), rng), raised
        y, slope = yield from path.slope(x, t)
        x = path.along(y, slope, t, s)
        if path.at(s)[1] > 0:
            _, ahead = yield from path.slope(x, s, inner=True)
            x = path.along(y, (slope + ahead) / 2, t, s)
    return x


def predictor_corrector(
    process: Process,
    x: Tensor,
    times: Times,
    *,
    rng: Rng,
    snr: float = 0.16,
    corrections: int = 1,
    variance: Variance = Posterior(),  # noqa: B008 - frozen
) -> Sampling:
    r"""An ancestral stride, then Langevin steps at the time that it came to (Song et al. 2021, Algorithms 2 to 5).

        x <- x + e score + sqrt(2 e) z,     e = 2 (snr |z| / |score|)^2,     score = (alpha E[x | x_s] - x) / sigma^2

    with both norms taken row by row, and e at most sigma^2 (where the score vanishes the paper's is infinite).
    1 + `corrections` evaluations a stride, and one in a last stride that ends at 0. `variance` Transition() makes the
    predictor of a variance-exploding process the paper's reverse diffusion. The factor 1 - beta_i that Algorithm 5 puts
    before e, within 0.02 of 1 on DDPM's table, is left out.
    """
    if not snr > 0 or corrections < 0:
        raise ValueError(
            f"snr = {snr}, corrections = {corrections}; expected a positive ratio (0.16), and 0 or more steps"
        )
    for t, s in pairwise(times):
        p = process.reverse((yield Query(x, t)), x, t, s, variance)
        alpha, sigma = process.schedule(s)
        if sigma == 0:
            return p.mean
        x = p.mean + p.std * rng.normal_like(x)
        for _ in range(corrections):
            mean = (yield Query(x, s, inner=True)).mean
            score, noise = (alpha * mean - x) / sigma**2, rng.normal_like(x)
            size = (2 * (snr * _norms(noise) / _norms(score)) ** 2).clamp(max=sigma**2)
            x = x + like(size, x) * score + like((2 * size).sqrt(), x) * noise
    return x


def _norms(x: Tensor) -> Tensor:
    # a row at a time: a reduction over a batch may round differently at different sizes of it
    return torch.stack([row.double().square().sum().sqrt() for row in x])
