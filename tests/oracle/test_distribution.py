"""What stochastic samplers draw is the data's distribution: every projection of 20,000 samples against its exact CDF.

The bound is Dvoretzky, Kiefer and Wolfowitz's with Massart's constant, P(sup |F_n - F| > e) <= 2 exp(-2 n e^2), over K
projections at a failure probability of 1e-9: no luck in it. It is a last rung, after the exact recursions of
test_gaussian.py: it sees errors of scale, not a step too many in three hundred.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from carrara.diffusion import (
    Churn,
    Linear,
    Plain,
    Process,
    Schedule,
    Transition,
    VarianceExploding,
    ancestral,
    ddim,
    dpmpp_2m_sde,
    dpmpp_3m_sde,
    dpmpp_sde,
    euler_ancestral,
    guide,
    heun,
    predictor_corrector,
    uniform_logsnr,
)
from carrara.oracle import Mixture
from carrara.run import finish
from oracle.stream import stream

PROJECTIONS = 8
WEIGHTS, MEANS, STDS = (
    torch.tensor(values, dtype=torch.float64)
    for values in ([0.2, 0.5, 0.3], [[-1.0, 0.5], [0.6, -0.2], [0.3, 1.1]], [0.15, 0.3, 0.1])
)
DATA = Mixture(WEIGHTS, MEANS, stds=STDS)

SAMPLERS: dict[str, tuple[Any, int]] = {  # with strides that make the error of the discretisation small
    "ancestral": (ancestral, 250),
    "ancestral, transition": (functools.partial(ancestral, variance=Transition()), 250),
    "ddim 0.5": (functools.partial(ddim, eta=0.5), 250),
    "ddim 1": (functools.partial(ddim, eta=1.0), 250),
    "euler_ancestral": (euler_ancestral, 250),
    "heun, churn": (functools.partial(heun, churn=Churn(10.0)), 40),
    "predictor_corrector": (functools.partial(predictor_corrector, snr=0.02), 100),
    "dpmpp_sde": (dpmpp_sde, 40),
    "dpmpp_2m_sde": (dpmpp_2m_sde, 60),
    "dpmpp_3m_sde": (dpmpp_3m_sde, 60),
}


def bound(rows: int) -> float:
    """What so many samples' distance stays below, but for one case in 1e9."""
    return math.sqrt(math.log(2 * PROJECTIONS / 1e-9) / (2 * rows))


def distance(x: Tensor) -> float:
    """The largest sup |F_n - F| over projections of x (N, 2)."""
    worst = 0.0
    n = len(x)
    above = torch.arange(1, n + 1, dtype=torch.float64) / n
    for k in range(PROJECTIONS):
        angle = math.pi * k / PROJECTIONS
        direction = torch.tensor([math.cos(angle), math.sin(angle)], dtype=torch.float64)
        values = (x.double() @ direction).sort().values
        exact = torch.special.ndtr((values[:, None] - MEANS @ direction) / STDS) @ WEIGHTS
        worst = max(worst, (above - exact).abs().max().item(), (exact - above + 1 / n).abs().max().item())
    return worst


def drawn(name: str, schedule: Schedule, scale: float = 1.0) -> Tensor:
    """Samples (N, 2); the noise that is added on the way scaled."""
    sampler, steps = SAMPLERS[name]
    rows = 4_000 if name == "predictor_corrector" else 20_000  # which takes the norm of each row by itself
    process, times = Process(schedule), uniform_logsnr(schedule, steps=steps)
    noise = process.prior_std(times[0]) * stream(rows, 0).normal((2,)).double()
    sampling = sampler(process, noise, times, rng=stream(rows, 1, scale))
    return finish(guide(sampling, Plain(), DATA.denoiser(process)))


@pytest.mark.parametrize("name", SAMPLERS)
def test_samples_have_the_datas_distribution(name: str) -> None:
    x = drawn(name, Linear())
    assert distance(x) < bound(len(x))


@pytest.mark.parametrize("name", ["ancestral", "dpmpp_2m_sde"])
def test_from_an_exploding_variance(name: str) -> None:
    x = drawn(name, VarianceExploding(80.0))
    assert distance(x) < bound(len(x))


@pytest.mark.parametrize("name", ["ddim 0.5", "heun, churn", "dpmpp_2m_sde"])
def test_too_much_noise_is_noticed(name: str) -> None:
    """The bound is not so wide that nothing could exceed it: noise of 1.3 times the standard deviation does."""
    x = drawn(name, Linear(), 1.3)
    assert distance(x) > 2 * bound(len(x))
