r"""DPM-Solver++ and its stochastic kin (Lu et al. 2022): exponential integrators in lambda = log(alpha / sigma).

Over a stride of h = lambda_s - lambda_t the exact solution is an integral of D(lambda) = E[x | x_lambda],

    x_s = keep x_t + alpha_s integral (1 + eta) e^{-(1 + eta)(lambda_s - lambda)} D(lambda) dlambda + drawn z
    drawn = sigma_s sqrt(1 - e^{-2 eta h}),   keep = sqrt(sigma_s^2 - drawn^2) / sigma_t

with eta 0 for the probability-flow ODE and eta 1 for the reverse SDE. A method is its value of D for the stride, a
combination of estimates; what is done with it is `stride`, whose noise leaves `keep`. Constant D gives `ddim`.

The *_sde functions are the same coroutines with eta 1, the names that they are known by. Where the log-SNR is infinite
at either end of a stride, that stride takes D at its beginning, and what was known before is forgotten.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

from torch import Tensor

from carrara.diffusion.process import Process
from carrara.diffusion.quadrature import combined, exponential_moments, weights
from carrara.diffusion.sampler import kept, noisy, stride
from carrara.diffusion.schedule import Schedule
from carrara.diffusion.times import Times
from carrara.rng import Rng
from carrara.types import Query, Sampling

__all__ = ["dpmpp_2m", "dpmpp_2m_sde", "dpmpp_2s", "dpmpp_3m", "dpmpp_3m_sde", "dpmpp_sde", "level"]


def level(schedule: Schedule, t: float) -> float:
    """lambda = log(alpha / sigma), half the log-SNR."""
    return schedule.logsnr(t) / 2


def _drawn(process: Process, t: float, s: float, eta: float) -> float:
    """The std of what the SDE of this eta draws from t to s."""
    if eta == 0:
        return 0.0
    h = level(process.schedule, s) - level(process.schedule, t)
    return process.schedule(s)[1] * math.sqrt(-math.expm1(-2 * eta * h))


def _check(eta: float) -> None:
    if not 0 <= eta < math.inf:
        raise ValueError(f"eta = {eta}; expected 0 for the ODE, 1 for the reverse SDE, or a value around them")


# Singlestep


def dpmpp_2s(process: Process, x: Tensor, times: Times, *, rng: Rng, eta: float = 0.0) -> Sampling:
    """DPM-Solver++(2S) (Lu et al. 2022, Algorithm 1, r = 1/2), deterministic with eta 0; in lambda.

    Two evaluations a stride, the second in the middle of it; one where the log-SNR is infinite at either end. With
    eta > 0 both stages see the same noise: what is drawn up to the middle is carried on.
    """
    _check(eta)
    for t, s in pairwise(times):
        mean = (yield Query(x, t)).mean
        drawn = _drawn(process, t, s, eta)
        m = _middle(process.schedule, t, s)
        if m is None:
            x = noisy(stride(process, x, mean, t, s, drawn), drawn, rng)
            continue
        first, rest = _drawn(process, t, m, eta), _drawn(process, m, s, eta)
        moved = stride(process, x, mean, t, m, first)
        halfway = noisy(moved, first, rng)
        inner = (yield Query(halfway, m, inner=True)).mean
        start, middle, end = (level(process.schedule, time) for time in (t, m, s))
        share = (end - start) / (2 * (middle - start))  # 1 / (2 r); m is in the middle but for rounding
        x = stride(process, x, combined([1 - share, share], [mean, inner]), t, s, drawn)
        if eta > 0:
            x = noisy(x + kept(process, m, s, rest) * (halfway - moved), rest, rng)
    return x


def _middle(schedule: Schedule, t: float, s: float) -> float | None:
    """The time with the log-SNR half way from t to s, or None where there is none in [t_min, t_max]."""
    half = (schedule.logsnr(t) + schedule.logsnr(s)) / 2
    middle = schedule.time(half) if math.isfinite(half) else t
    return middle if s < middle < t else None


def dpmpp_sde(process: Process, x: Tensor, times: Times, *, rng: Rng, eta: float = 1.0) -> Sampling:
    """DPM-Solver++ of two stages for the reverse SDE, known from k-diffusion: `dpmpp_2s` with eta 1."""
    return dpmpp_2s(process, x, times, rng=rng, eta=eta)


# Multistep


def dpmpp_2m(process: Process, x: Tensor, times: Times, *, rng: Rng, eta: float = 0.0) -> Sampling:
    """DPM-Solver++(2M) (Lu et al. 2022, Algorithm 2), deterministic with eta 0; in lambda. One evaluation a stride.

    D is extrapolated to the stride's middle; the first stride is a DDIM stride.
    """
    return _multistep(process, x, times, rng, eta, 2, _midpoint)


def dpmpp_2m_sde(process: Process, x: Tensor, times: Times, *, rng: Rng, eta: float = 1.0) -> Sampling:
    """SDE-DPM-Solver++(2M), in the form with the midpoint: `dpmpp_2m` with eta 1. One evaluation a stride."""
    return _multistep(process, x, times, rng, eta, 2, _midpoint)


def dpmpp_3m(process: Process, x: Tensor, times: Times, *, rng: Rng, eta: float = 0.0) -> Sampling:
    """DPM-Solver++(3M), deterministic with eta 0; in lambda. One evaluation a stride.

    The parabola through the last three estimates is integrated exactly; the first stride knows one of them, the second
    two. The authors' code, and what follows it, has half of this quadratic term, which makes the order 2.
    """
    return _multistep(process, x, times, rng, eta, 3, _exact)


def dpmpp_3m_sde(process: Process, x: Tensor, times: Times, *, rng: Rng, eta: float = 1.0) -> Sampling:
    """DPM-Solver++(3M) for the reverse SDE, known from k-diffusion: `dpmpp_3m` with eta 1. One evaluation a stride."""
    return _multistep(process, x, times, rng, eta, 3, _exact)


def _multistep(
    process: Process,
    x: Tensor,
    times: Times,
    rng: Rng,
    eta: float,
    order: int,
    rule: Callable[[float, Sequence[float]], list[float]],
) -> Sampling:
    _check(eta)
    known: list[tuple[float, Tensor]] = []  # (lambda, estimate), the latest first
    for t, s in pairwise(times):
        mean = (yield Query(x, t)).mean
        start, end = level(process.schedule, t), level(process.schedule, s)
        known = [(start, mean), *known[: order - 1]] if math.isfinite(start) else []
        if known and math.isfinite(end):
            h = end - start
            factors = rule((1 + eta) * h, [(at - start) / h for at, _ in known])
            mean = combined(factors, [estimate for _, estimate in known])
        drawn = _drawn(process, t, s, eta)
        x = noisy(stride(process, x, mean, t, s, drawn), drawn, rng)
    return x


def _midpoint(h: float, nodes: Sequence[float]) -> list[float]:
    """The line through the last two estimates, at v = 1/2."""
    return [1.0] if len(nodes) == 1 else [1 - 1 / (2 * nodes[1]), 1 / (2 * nodes[1])]


def _exact(h: float, nodes: Sequence[float]) -> list[float]:
    return weights(nodes, exponential_moments(h, len(nodes)))
