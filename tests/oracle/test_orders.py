"""Orders of convergence on a mixture of normals, whose optimal denoiser is exact and not affine.

The reference is the probability-flow ODE dy/du = (y - E[x | y]) / u in y = x / alpha, u = sigma / alpha, from u = 10 to
u = 0.05, by an adaptive solver of order 8. Grids: uniform in log u, Karras's, and one whose strides alternate 1 : 3.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from carrara.diffusion import Cosine, Linear, Process, Schedule, VarianceExploding, ddim, dpmpp_2m, given, heun
from carrara.types import Estimate

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
    strides = np.where(np.arange(N) % 2 == 0, 1.0, 3.0 if grid == "alternating" else 1.0)
    share = np.concatenate([[0], strides.cumsum() / strides.sum()])
    return HIGH * (LOW / HIGH) ** share


def error(sampler: Any, schedule: Schedule, grid: str, N: int) -> tuple[float, int]:
    """The largest error over the paths, and the number of evaluations."""
    process = Process(schedule)
    values = tuple(schedule.time(-2 * math.log(u)) for u in levels(grid, N))
    times = given(schedule, values=values)
    calls = 0

    def estimate(x: Tensor, t: float) -> Estimate:
        nonlocal calls
        calls += 1
        alpha, sigma = schedule(t)
        return Estimate(torch.from_numpy(denoised(x.numpy() / alpha, sigma / alpha)))

    sampling = sampler(process, torch.from_numpy(START) * schedule(times[0])[0], times, rng=None)
    query = next(sampling)
    try:
        while True:
            query = sampling.send(estimate(query.x, query.t))
    except StopIteration as finished:
        y = finished.value.numpy() / schedule(times[-1])[0]
    return np.abs(y - reference()).max(), calls


@pytest.mark.parametrize("grid", ["uniform", "karras", "alternating"])
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(
    "sampler, low, high, evaluations",
    [(ddim, 0.9, 1.2, 1), (heun, 1.8, 2.2, 2), (dpmpp_2m, 1.8, 2.3, 1)],
    ids=["ddim", "heun", "dpmpp_2m"],
)
def test_order(sampler: Any, low: float, high: float, evaluations: int, schedule: str, grid: str) -> None:
    made = SCHEDULES[schedule]
    errors = {}
    for N in (64, 128, 256, 512):
        errors[N], calls = error(sampler, made, grid, N)
        assert calls == evaluations * N
    for N in (64, 128, 256):
        order = math.log2(errors[N] / errors[2 * N])
        assert low <= order <= high, f"{N} to {2 * N} strides: order {order:.2f}; errors {errors}"
