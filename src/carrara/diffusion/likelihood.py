r"""The variational bound of a diffusion model, term by term: all of it, a sample of it, or in continuous time.

    -log p(x) <= KL(q(x_1|x) || prior)  +  sum_{t > s > 0} E KL(q(x_s|x_t,x) || p(x_s|x_t))  +  E[-log p(x_0|x_t)]
                 prior (rate)              steps (rate)                                      reconstruction (distortion)

`vlb_terms` is DDPM's eq. 5 with every stride of a grid; `vlb_estimate` measures a few strides a row, without bias;
`continuous_bound` is the limit of infinitely many strides, in which the steps become (Kingma et al. 2021, eq. 17)

    1/2 integral of SNR |x - E[x|x_t]|^2 d logsnr,

whatever the schedule between its ends. Everything is in nats a row; `bits_per_dim` divides.

The reconstruction on a grid is that of discrete data: the normal density integrated over each of 256 grey levels, with
the outer two levels open to infinity (DDPM eq. 13), so that the probabilities of all levels sum to exactly 1. Its
variance cannot be the posterior's own, which is 0 at s = 0. As in the papers' code it is

    Posterior, Transition   the posterior's variance of the stride before: both "fixed" choices share it
    Learned                 between that and the last stride's own transition variance, by the network's mix (iDDPM)
    Given(f)                f(t, 0)

Near data, a grid's last stride has to be about as long as a grey level, as a table's is. In continuous time the
reconstruction is the other way round, P(x|x_t) in proportion to q(x_t|x) over the levels (Kingma et al. 2021, eq. 13).
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from carrara.diffusion.process import Posterior, Process, Transition, Variance, like
from carrara.diffusion.schedule import Schedule
from carrara.diffusion.times import Times
from carrara.rng import Rng
from carrara.types import Condition, Estimate, Gaussian

__all__ = [
    "Bound",
    "Denoises",
    "check_levels",
    "continuous_bound",
    "discretised_log_prob",
    "kl",
    "prior_kl",
    "resolving_time",
    "stride_term",
    "vlb_estimate",
    "vlb_terms",
]


class Denoises(Protocol):
    """E[x | x_t] under a process: a Denoiser, or what wraps one."""

    process: Process

    def __call__(self, x_t: Tensor, t: Tensor | float, condition: Condition = ..., /) -> Estimate:
        """The estimate for x_t (B, ...) at a time, or at times (B,)."""
        ...


class Bound(NamedTuple):
    """The bound's terms, nats a row, in the order from noise to data."""

    prior: Tensor  # (B,)
    steps: Tensor  # (B, K), one a stride without the last; or one a stratum of strides, scaled to stand for all of it
    reconstruction: Tensor  # (B,)
    dimensions: int
    errors: Tensor  # (B, K) mean square of x - E[x | x_t] a dimension, at the times of `steps`
    std_error: Tensor | None = None  # (B,) of a row's total, where steps are sampled; an upper estimate

    @property
    def total(self) -> Tensor:
        """-log p(x) at the most: (B,)."""
        return self.prior + self.steps.sum(1) + self.reconstruction

    @property
    def bits_per_dim(self) -> Tensor:
        """The total in bits a dimension: (B,)."""
        return self.total / (self.dimensions * math.log(2))

    @property
    def rate(self) -> Tensor:
        """What is known when each step begins, in nats: (B, K). Against `errors` it is DDPM's figure 5."""
        return self.prior[:, None] + self.steps.cumsum(1) - self.steps


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


def check_levels(x: Tensor, levels: int) -> None:
    """Raises ValueError for values that are not on `levels` equal grey levels in [-1, 1], as latents are not."""
    position = (x.double() + 1) / 2 * (levels - 1)
    on = ((position - position.round()).abs() < 1e-2) & (position > -0.5) & (position < levels - 0.5)
    if not bool(on.all()):
        raise ValueError(f"a likelihood is of data on {levels} grey levels in [-1, 1]; these values lie between levels")


def stride_term(
    process: Process,
    estimate: Estimate,
    x: Tensor,
    x_t: Tensor,
    times: Times,
    index: Tensor,
    *,
    variance: Variance,
    levels: int = 256,
) -> Tensor:
    """The bound's term of each row's own stride, times[i] to times[i + 1] with i from `index` (B,): nats (B,).

    KL(q(x_s|x_t,x) || p(x_s|x_t)), or for the last stride, which ends at 0, the reconstruction. Differentiable.
    """
    last = index == len(times) - 2
    if bool(last.any()) and not bool(last.all()):
        term = torch.zeros(len(x), dtype=x.dtype, device=x.device)
        for rows in (last.nonzero()[:, 0], (~last).nonzero()[:, 0]):
            on = rows.to(x.device)
            part = Estimate(estimate.mean[on], None if estimate.mix is None else estimate.mix[on])
            value = stride_term(process, part, x[on], x_t[on], times, index[rows], variance=variance, levels=levels)
            term = term.index_put((on,), value)
        return term
    grid = torch.tensor(times, dtype=torch.float64)
    t, s = grid[index], grid[index + 1]
    if bool(last.all()):
        return -discretised_log_prob(x, _decoded(process, estimate, x_t, times, t, variance), levels).flatten(1).sum(1)
    # both means are linear in (x, x_t): without what they share they differ in x alone, and nothing is lost to rounding
    nothing = torch.zeros_like(x)
    known = process.posterior(x - estimate.mean, nothing, t, s)
    p = process.reverse(estimate, x_t, t, s, variance)
    return kl(known, Gaussian(nothing, p.var)).flatten(1).sum(1)


def _decoded(
    process: Process, estimate: Estimate, x_t: Tensor, times: Times, t: Tensor, variance: Variance
) -> Gaussian:
    """p(x_0 | x_t) with the variance that stands in for the posterior's 0."""
    before = process.posterior_var(*times[-3:-1])
    _, own = process.step(0.0, times[-2])
    fixed = Posterior() if isinstance(variance, Transition) else variance
    var = fixed(before, own, estimate, times[-2], 0.0)
    mean, _ = process.posterior(estimate.mean, x_t, t, torch.zeros_like(t))
    return Gaussian(mean, var)


def vlb_terms(
    denoiser: Denoises,
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
    _check_grid(times)
    check_levels(x, levels)
    terms, errors = [], []
    for i, t in enumerate(times[:-1]):
        x_t = denoiser.process.diffuse(x, t, rng.fork("bound", i).normal_like(x))
        estimate = denoiser(x_t, t, condition)
        at = torch.full((len(x),), i)
        terms.append(stride_term(denoiser.process, estimate, x, x_t, times, at, variance=variance, levels=levels))
        errors.append(_error(x, estimate))
    steps = torch.stack(terms[:-1], 1)
    return Bound(prior_kl(denoiser.process, x, times[0]), steps, terms[-1], x[0].numel(), torch.stack(errors[:-1], 1))


def vlb_estimate(
    denoiser: Denoises,
    x: Tensor,
    times: Times,
    *,
    rng: Rng,
    terms: int = 32,
    condition: Condition = Condition(),  # noqa: B008 - frozen
    variance: Variance = Posterior(),  # noqa: B008
    levels: int = 256,
) -> Bound:
    """The same bound from `terms` strides a row and the reconstruction: terms + 1 network calls instead of all.

    The strides before the last are cut into `terms` equal strata, and each row draws one from each; its `steps` are
    the draws, scaled up to their strata, so that every column and the total are without bias. `terms` is even.
    """
    _check_grid(times)
    check_levels(x, levels)
    _check_terms(terms)
    process, strides = denoiser.process, len(times) - 2
    grid = torch.tensor(times, dtype=torch.float64)
    draws = (torch.arange(terms) + rng.fork("strata").uniform((terms,))) / terms * strides
    chosen = torch.cat([draws.long().clamp(max=strides - 1), torch.full((len(x), 1), strides)], 1)
    found, errors = [], []
    for i, at in enumerate(chosen.unbind(1)):
        t = grid[at]
        x_t = process.diffuse(x, t, rng.fork("bound", i).normal_like(x))
        estimate = denoiser(x_t, t, condition)
        found.append(stride_term(process, estimate, x, x_t, times, at, variance=variance, levels=levels))
        errors.append(_error(x, estimate))
    steps = torch.stack(found[:-1], 1) * (strides / terms)
    prior = prior_kl(process, x, times[0])
    return Bound(prior, steps, found[-1], x[0].numel(), torch.stack(errors[:-1], 1), _std_error(steps))


def continuous_bound(
    denoiser: Denoises,
    x: Tensor,
    *,
    rng: Rng,
    terms: int = 32,
    end: float | None = None,
    condition: Condition = Condition(),  # noqa: B008 - frozen
    levels: int = 256,
) -> Bound:
    """The bound in continuous time from `terms` network calls a row, for data on `levels` grey levels in [-1, 1].

    The log-SNR from t_max to `end` is cut into `terms` equal strata, and each row draws one time from each; `steps` are
    the strata's shares of the integral, each without bias. `end` None is `resolving_time`. `terms` is even.
    """
    check_levels(x, levels)
    _check_terms(terms)
    process, schedule = denoiser.process, denoiser.process.schedule
    end = resolving_time(schedule, levels) if end is None else end
    if not schedule.t_min <= end < schedule.t_max:
        raise ValueError(f"end = {end}; expected a time in [{schedule.t_min:g}, {schedule.t_max:g})")
    low, high = schedule.logsnr(schedule.t_max), schedule.logsnr(end)
    draws = low + (high - low) / terms * (torch.arange(terms) + rng.fork("strata").uniform((terms,)))
    steps, errors = [], []
    for i, logsnr in enumerate(draws.unbind(1)):
        t = schedule.time(logsnr)
        x_t = process.diffuse(x, t, rng.fork("bound", i).normal_like(x))
        error = _error(x, denoiser(x_t, t, condition))
        alpha, sigma = schedule(t)
        steps.append(like((alpha / sigma) ** 2, error) * error * (x[0].numel() * (high - low) / (2 * terms)))
        errors.append(error)
    nearly = process.diffuse(x, end, rng.fork("bound", terms).normal_like(x))
    reconstruction = -level_log_prob(process, x, nearly, end, levels).flatten(1).sum(1)
    shares = torch.stack(steps, 1)
    prior = prior_kl(process, x, schedule.t_max)
    return Bound(prior, shares, reconstruction, x[0].numel(), torch.stack(errors, 1), _std_error(shares))


def resolving_time(schedule: Schedule, levels: int = 256) -> float:
    """Where the noise is a sixth of the distance between grey levels, which then can be read off: logsnr 13.3 for 256.

    Closer to data a network is rarely trained, and there is nothing left to know; at least t_min.
    """
    return schedule.time(2 * math.log(6 * (levels - 1) / 2))


def level_log_prob(process: Process, x: Tensor, x_t: Tensor, t: float, levels: int) -> Tensor:
    """log P(x | x_t) in proportion to q(x_t | x) over the levels, element by element."""
    alpha, sigma = process.schedule(t)
    width = 2 / (levels - 1)
    nearest = ((x_t / alpha).clamp(-1, 1) / width).add((levels - 1) / 2).round()
    reach = min(
        levels - 1, 1 + math.ceil(9 * sigma / alpha / width)
    )  # beyond, the tails are below float64's last digit
    own = -((x_t - alpha * x) ** 2) / (2 * sigma**2)
    total = torch.full_like(x, -math.inf)
    for offset in range(-reach, reach + 1):
        level = nearest + offset
        log_q = -((x_t - alpha * (level * width - 1)) ** 2) / (2 * sigma**2)
        inside = (level >= 0) & (level <= levels - 1)
        total = torch.logaddexp(total, log_q.where(inside, torch.full_like(x, -math.inf)))
    return (own - total).clamp(max=0)


def prior_kl(process: Process, x: Tensor, t: float) -> Tensor:
    """KL(q(x_t|x) || N(0, prior_std^2)), the cost of beginning with noise that knows nothing of x: nats (B,)."""
    prior = process.prior_std(t)
    return kl(process.marginal(x, t), Gaussian(torch.zeros_like(x), prior**2)).flatten(1).sum(1)


def _error(x: Tensor, estimate: Estimate) -> Tensor:
    return (x - estimate.mean).square().flatten(1).mean(1)


def _std_error(steps: Tensor) -> Tensor:
    """Neighbouring strata are taken for two draws from one: their difference holds the variance of both, and more."""
    return (steps[:, 0::2] - steps[:, 1::2]).square().sum(1).sqrt()


def _check_grid(times: Times) -> None:
    if len(times) < 3 or times[-1] != 0 or any(t <= s for t, s in pairwise(times)):
        raise ValueError(
            f"the bound needs at least two strides that end at t = 0; given {len(times) - 1} that end at {times[-1]}"
        )


def _check_terms(terms: int) -> None:
    if terms < 2 or terms % 2:
        raise ValueError(f"terms = {terms}; expected an even number, at least 2, of strides to measure a row at")


def _tensor(value: Any, x: Tensor) -> Tensor:
    return value if isinstance(value, Tensor) else torch.as_tensor(value, dtype=x.dtype, device=x.device)
