"""Orders of convergence on a mixture of normals, whose optimal denoiser is exact and not affine.

The reference is the probability-flow ODE dy/du = (y - E[x | y]) / u in y = x / alpha, u = sigma / alpha, from u = 10 to
u = 0.05, by an adaptive solver of order 8. Grids: uniform in log u, Karras's, one whose strides alternate 1 : 3, and
one that begins with short strides, so that what multistep methods do without a past does not count.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from carrara.diffusion import (
    Cosine,
    Linear,
    Process,
    Schedule,
    VarianceExploding,
    adams,
    dpmpp_2s,
    given,
    heun,
    plms,
    pndm,
    total_coordinate,
)
from carrara.types import Estimate, Query, Sampling
from oracle.samplers import CASES

WEIGHTS, MEANS, STDS = np.array([0.3, 0.5, 0.2]), np.array([-0.8, 0.1, 0.7]), np.array([0.4, 0.5, 0.3])
HIGH, LOW = 10.0, 0.05
SCHEDULES: dict[str, Schedule] = {
    "VarianceExploding": VarianceExploding(10.0),
    "Cosine": Cosine(),
    "Linear": Linear(),
}


def denoised(y: np.ndarray, u: float) -> np.ndarray:
    """E[x | x + u noise = y] of the mixture."""
    V = STDS**2 + u**2
    log_gamma = np.log(WEIGHTS) - np.log(V) / 2 - (y[:, None] - MEANS) ** 2 / (2 * V)
    gamma = np.exp(log_gamma - log_gamma.max(1, keepdims=True))
    gamma /= gamma.sum(1, keepdims=True)
    return (gamma * (MEANS + STDS**2 / V * (y[:, None] - MEANS))).sum(1)


START = np.linspace(-2.5, 2.5, 16) * HIGH


@functools.cache
def reference() -> np.ndarray:
    """y at u = LOW, from START at u = HIGH, integrated in log u."""
    solved = solve_ivp(
        lambda log_u, y: y - denoised(y, math.exp(log_u)),
        (math.log(HIGH), math.log(LOW)),
        START,
        method="DOP853",
        rtol=1e-12,
        atol=1e-13,
    )
    return solved.y[:, -1]


def levels(grid: str, N: int) -> np.ndarray:
    if grid == "karras":
        return (HIGH ** (1 / 7) + np.arange(N + 1) / N * (LOW ** (1 / 7) - HIGH ** (1 / 7))) ** 7
    if grid == "ramped":
        return HIGH * (LOW / HIGH) ** ((np.arange(N + 1) / N) ** 2)
    strides = np.where(np.arange(N) % 2 == 0, 1.0, 3.0 if grid == "alternating" else 1.0)
    share = np.concatenate([[0], strides.cumsum() / strides.sum()])
    return HIGH * (LOW / HIGH) ** share


def walk(sampling: Sampling, estimate: Callable[[Query], np.ndarray]) -> np.ndarray:
    """The end of a sampling whose questions are answered by a function."""
    try:
        query = next(sampling)
        while True:
            query = sampling.send(Estimate(torch.from_numpy(estimate(query))))
    except StopIteration as finished:
        return finished.value.numpy()


def error(sampler: Any, schedule: Schedule, grid: str, N: int) -> float:
    """The largest error over the paths."""
    values = tuple(schedule.time(-2 * math.log(u)) for u in levels(grid, N))
    times = given(schedule, values=values)

    def estimate(query: Query) -> np.ndarray:
        assert isinstance(query.t, float)
        alpha, sigma = schedule(query.t)
        return denoised(query.x.numpy() / alpha, sigma / alpha)

    x = torch.from_numpy(START) * schedule(times[0])[0]
    y = walk(sampler(Process(schedule), x, times, rng=None), estimate) / schedule(times[-1])[0]
    return float(np.abs(y - reference()).max())


ORDERED = {name: case for name, case in CASES.items() if case.order is not None}


@pytest.mark.parametrize("grid", ["uniform", "karras", "alternating", "ramped"])
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("sampler", ORDERED)
def test_order(sampler: str, schedule: str, grid: str) -> None:
    """Up to 512 strides, where a wrong time or a wrong step would show as a plateau."""
    case = ORDERED[sampler]
    assert case.order is not None
    least = case.order if grid == "ramped" else case.begun or case.order
    least = case.rough or least if grid == "alternating" else least
    errors = [error(case.sampler, SCHEDULES[schedule], grid, N) for N in (64, 128, 256, 512)]
    orders = [math.log2(a / b) for a, b in pairwise(errors)]
    assert all(least - 0.2 <= order <= case.order + 0.2 for order in orders), f"orders {orders}; errors {errors}"


@pytest.mark.parametrize("sampler, least", [(pndm, 4), (plms, 3)], ids=["pndm", "plms"])
def test_order_on_equal_strides(sampler: Any, least: int) -> None:
    """Of u = sigma / (alpha + sigma), which the weights of these two are made for: limited by how they begin."""
    errors = []
    for N in (64, 128, 256):
        times = tuple(np.linspace(HIGH / (1 + HIGH), LOW / (1 + LOW), N + 1).tolist())
        x = torch.from_numpy(START) * (1 - times[0])
        sampling = sampler(Process(Linear()), x, times, rng=None, coordinate=total_coordinate)
        end = walk(sampling, lambda query: denoised(query.x.numpy() / (1 - query.t), query.t / (1 - query.t)))
        errors.append(np.abs(end / (1 - times[-1]) - reference()).max())
    assert all(math.log2(a / b) > least - 0.3 for a, b in pairwise(errors)), f"{errors}"


def flow(y: np.ndarray, u: float, v: float) -> np.ndarray:
    """Along the exact path from u to v."""
    solved = solve_ivp(
        lambda log_u, y: y - denoised(y, math.exp(log_u)),
        (math.log(u), math.log(v)),
        y,
        method="DOP853",
        rtol=1e-13,
        atol=1e-14,
    )
    return solved.y[:, -1]


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("sampler", [name for name, case in ORDERED.items() if case.local is not None])
def test_local_order(sampler: str, schedule: str) -> None:
    """The error of one stride, after others that were twice as long each, when everything before it was exact.

    Unequal strides of a fixed ratio tell a ratio from its inverse, which grids that alternate do not.
    """
    case, made = CASES[sampler], SCHEDULES[schedule]
    assert case.local is not None
    errors = [_stride_error(case.sampler, made, h) for h in (0.0125, 0.00625, 0.003125)]
    orders = [math.log2(a / b) for a, b in pairwise(errors)]
    assert all(order >= case.local - 0.2 for order in orders), f"orders {orders}; errors {errors}"


def _stride_error(sampler: Any, schedule: Schedule, h: float) -> float:
    """Paths through y at u = 1; nodes with log u = 14 h, 6 h, 2 h, 0, -h."""
    us = [math.exp(k * h) for k in (14, 6, 2, 0, -1)]
    here = np.linspace(-1.5, 1.5, 16)
    paths = [flow(here, 1.0, u) if u != 1 else here for u in us]
    times = given(schedule, values=tuple(schedule.time(-2 * math.log(u)) for u in us))
    alphas = [schedule(t)[0] for t in times]

    def run(off: float) -> tuple[np.ndarray, np.ndarray]:
        """x at the last stride's beginning and end; estimates at the nodes are those of the exact paths."""
        begun = here

        def estimate(query: Query) -> np.ndarray:
            nonlocal begun
            assert isinstance(query.t, float)
            alpha, sigma = schedule(query.t)
            if query.inner:
                return denoised(query.x.numpy() / alpha, sigma / alpha)
            begun, i = query.x.numpy(), times.index(query.t)
            # Adams' memory is of slopes, (y - estimate) / u
            apart = (begun - paths[i] * alpha) / alpha if sampler.func is adams else 0.0
            return denoised(paths[i], us[i]) + apart

        x = torch.from_numpy(paths[0] * alphas[0] + off)
        ended = walk(sampler(Process(schedule), x, times, rng=None), estimate)
        return begun, ended

    if sampler.func in (heun, dpmpp_2s):  # nothing is remembered: the last stride is all there is
        x = torch.from_numpy(here * alphas[3])
        end = walk(
            sampler(Process(schedule), x, times[3:], rng=None),
            lambda query: denoised(query.x.numpy() / schedule(query.t)[0], math.exp(-schedule.logsnr(query.t) / 2)),
        )
        return float(np.abs(end / alphas[4] - paths[4]).max())
    begun, ended = run(0.0)
    # with the estimates given, x_s is affine in x_t: what earlier strides did wrong is taken off
    begun_off, ended_off = run(1.0)
    gain = (ended_off - ended) / (begun_off - begun)
    return float(np.abs((ended - gain * (begun - here * alphas[3])) / alphas[4] - paths[4]).max())
