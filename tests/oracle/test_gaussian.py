"""Every sampler, parameterization, schedule and grid on Gaussian data, against the exact affine recursion.

The impulse response: rows that begin at 0 and at 1 without noise give the constant and the gain, and a row for each
draw, whose noise is 1 at that draw and 0 at all others, gives that draw's coefficient: mean and variance, exactly.
"""

from __future__ import annotations

import functools
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from carrara.diffusion import (
    X0,
    Cosine,
    CosineBetas,
    Denoiser,
    Epsilon,
    Flow,
    Given,
    Karras,
    Linear,
    LinearBetas,
    Plain,
    Posterior,
    Process,
    ScaledLinearBetas,
    Schedule,
    Transition,
    V,
    VarianceExploding,
    alpha_coordinate,
    ancestral,
    ddim,
    dpmpp_2m,
    full,
    given,
    guide,
    heun,
    karras,
    leading,
    total_coordinate,
    trailing,
    uniform,
)
from carrara.diffusion.parameterization import Level, Parameterization
from carrara.run import finish
from carrara.types import Condition
from oracle import exact

DATA = exact.Data(m=0.3, q=0.6)
TOLERANCE = 1e-10

SCHEDULES: dict[str, tuple[Schedule, exact.Scales]] = {
    "LinearBetas": (LinearBetas(), exact.table(exact.linear_betas(1000))),
    "ScaledLinearBetas": (ScaledLinearBetas(), exact.table(exact.scaled_linear_betas(1000))),
    "ScaledLinearBetas, zero terminal": (
        ScaledLinearBetas(zero_terminal=True),
        exact.table(exact.zero_terminal(exact.scaled_linear_betas(1000))),
    ),
    "CosineBetas": (CosineBetas(), exact.table(exact.cosine_betas(1000))),
    "Cosine": (Cosine(), exact.cosine),
    "Linear": (Linear(), exact.linear),
    "VarianceExploding": (VarianceExploding(), exact.exploding),
}
SAMPLERS: dict[str, Any] = {
    "ancestral, posterior": functools.partial(ancestral, variance=Posterior()),
    "ancestral, transition": functools.partial(ancestral, variance=Transition()),
    "ddim 0": ddim,
    "ddim 0.5": functools.partial(ddim, eta=0.5),
    "ddim 1": functools.partial(ddim, eta=1.0),
    "heun": heun,
    "dpmpp_2m": dpmpp_2m,
}
PARAMETERIZATIONS: dict[str, Parameterization] = {
    "Epsilon": Epsilon(),
    "X0": X0(),
    "V": V(),
    "Flow": Flow(),
    "Karras": Karras(0.5),
}
TABLES = [name for name in SCHEDULES if "Betas" in name]


def grids(schedule: Schedule, N: int) -> dict[str, tuple[float, ...]]:
    """Every grid of N strides that the schedule can have."""
    found = {
        "uniform": uniform(schedule, steps=N),
        "karras": karras(schedule, steps=N, sigma_max=60.0),
        "given": given(schedule, values=tuple(round(1000 * (1 - i / N) ** 1.5) / 1000 for i in range(N + 1))),
    }
    if N <= 10:
        found["shifted"] = uniform(schedule, steps=N, shift=3.0)
    if not hasattr(schedule, "betas"):
        return found
    found["leading"] = leading(schedule, steps=N)
    found["leading to the first entry"] = leading(schedule, steps=N, offset=1, end=1 / 1000)
    found["trailing"] = trailing(schedule, steps=N)
    return found


class _Reads(Level):
    """A level that remembers the times in full precision, for the oracle below."""

    t = 1.0

    def __call__(self, process: Process, t: Tensor) -> Tensor:
        self.t = t[0].item()
        assert bool((t == t[0]).all())
        return t


class _Oracle(nn.Module):
    """The network that is right about the data, in the words of a parameterization."""

    def __init__(self, name: str, scales: exact.Scales, level: _Reads) -> None:
        super().__init__()
        self.name, self.scales, self.level = name, scales, level

    def forward(self, x: Tensor, level: Tensor, condition: Condition) -> Tensor:
        alpha, sigma = self.scales(self.level.t)
        x_t = x.numpy() / exact.input_scale(self.name, alpha, sigma)
        k = alpha * DATA.q**2 / (alpha**2 * DATA.q**2 + sigma**2)
        D = DATA.m + k * (x_t - alpha * DATA.m)
        return torch.from_numpy(exact.network_output(self.name, x_t, D, alpha, sigma))


class _Basis:
    """Stands in for the rng: draw number k is 1 in row 2 + k and 0 elsewhere."""

    def __init__(self) -> None:
        self.draws = 0

    def normal_like(self, x: Tensor) -> Tensor:
        noise = torch.zeros_like(x)
        noise[2 + self.draws] = 1
        self.draws += 1
        return noise


def response(sampler: Any, denoiser: Denoiser, times: tuple[float, ...]) -> np.ndarray:
    """The coefficients of a sampling over (1, x, z_1, ...), measured."""
    x = torch.zeros(1 + len(times), 1, dtype=torch.float64)
    x[1] = 1
    out = finish(guide(sampler(denoiser.process, x, times, rng=_Basis()), Plain(), denoiser))
    assert out.dtype == torch.float64
    found = out[:, 0].numpy()
    return np.concatenate([found[:1], found[1:] - found[0]])


def check(sampler: str, schedule: str, parameterization: str, times: tuple[float, ...], expected: np.ndarray) -> None:
    level = _Reads()
    network = _Oracle(parameterization, SCHEDULES[schedule][1], level)
    process = Process(SCHEDULES[schedule][0])
    denoiser = Denoiser(network, process, PARAMETERIZATIONS[parameterization], level)
    found = response(SAMPLERS[sampler], denoiser, times)
    # draw number k is the k-th stride's, for strides that draw come before those that do not
    assert found.shape == expected.shape
    worst = np.abs(found - expected).max()
    assert worst < TOLERANCE * max(1, np.abs(expected).max()), (
        f"{sampler}, {schedule}, {parameterization}, {len(times) - 1} strides: {worst:.2g}"
    )


def allowed(schedule: str, parameterization: str) -> bool:
    return parameterization != "Epsilon" or SCHEDULES[schedule][1](1.0)[0] > 1e-6


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_grid(sampler: str, schedule: str) -> None:
    for N in (1, 2, 3, 7, 10, 50):
        for times in grids(SCHEDULES[schedule][0], N).values():
            expected = exact.SAMPLERS[sampler](DATA, SCHEDULES[schedule][1], times)
            for parameterization in PARAMETERIZATIONS:
                if allowed(schedule, parameterization):
                    check(sampler, schedule, parameterization, times, expected)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_many_strides(sampler: str, schedule: str) -> None:
    made = SCHEDULES[schedule][0]
    chosen = [name for name in PARAMETERIZATIONS if allowed(schedule, name)]
    turn = (list(SAMPLERS).index(sampler) + list(SCHEDULES).index(schedule)) % len(chosen)
    for times in (
        trailing(made, steps=333) if schedule in TABLES else uniform(made, steps=333),
        full(made) if schedule in TABLES else uniform(made, steps=1000),
    ):
        expected = exact.SAMPLERS[sampler](DATA, SCHEDULES[schedule][1], times)
        check(sampler, schedule, chosen[turn], times, expected)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("N", [1, 2, 3, 7, 10, 50])
def test_full_table_of_few_steps(sampler: str, N: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """`full` for tables of every length."""
    few = LinearBetas(N, 0.01, 0.3), exact.table(exact.linear_betas(N, 0.01, 0.3))
    monkeypatch.setitem(SCHEDULES, "few", few)
    times = full(few[0])
    for parameterization in PARAMETERIZATIONS:
        check(sampler, "few", parameterization, times, exact.SAMPLERS[sampler](DATA, few[1], times))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_heun_in_either_coordinate(schedule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made, scales = SCHEDULES[schedule]
    times = uniform(made, steps=10)
    for coordinate in (alpha_coordinate, total_coordinate):
        straight = coordinate is total_coordinate
        monkeypatch.setitem(SAMPLERS, "heun", functools.partial(heun, coordinate=coordinate))
        if not straight and scales(1.0)[0] == 0:
            with pytest.raises(ValueError, match="use total_coordinate"):
                check("heun", schedule, "V", times, np.zeros(12))
        else:
            check("heun", schedule, "V", times, exact.heun(DATA, scales, times, straight))


def test_heun_stays_calm_where_alpha_is_small() -> None:
    """In y = x / alpha the first stride of a table that ends near alpha = 0 would multiply x by ten."""
    times = uniform(SCHEDULES["CosineBetas"][0], steps=10)
    assert abs(exact.heun(DATA, SCHEDULES["CosineBetas"][1], times)[1] - DATA.q) < 0.05


def test_ddim_is_a_product_of_gains() -> None:
    """The closed form: each stride's gain is (a_t a_s q^2 + s_t s_s) / (a_t^2 q^2 + s_t^2)."""
    for schedule, (made, scales) in SCHEDULES.items():
        times = uniform(made, steps=50)
        gain = 1.0
        for t, s in pairwise(times):
            (a_t, s_t), (a_s, s_s) = scales(t), scales(s)
            gain *= (a_t * a_s * DATA.q**2 + s_t * s_s) / (a_t**2 * DATA.q**2 + s_t**2)
        level = _Reads()
        denoiser = Denoiser(_Oracle("V", scales, level), Process(made), V(), level)
        found = response(ddim, denoiser, times)
        assert abs(found[1] - gain) < TOLERANCE, schedule


def test_exact_variance_of_the_whole_chain() -> None:
    """With the optimal reverse variance the chain of 1000 steps ends in the data's own distribution."""
    schedule, scales = SCHEDULES["LinearBetas"]

    def optimal(t: float, s: float) -> float:  # tilde beta + A^2 Var[x | x_t]
        (a_t, s_t), (a_s, s_s) = scales(t), scales(s)
        v = s_t**2 - (a_t / a_s) ** 2 * s_s**2
        spread = DATA.q**2 * s_t**2 / (a_t**2 * DATA.q**2 + s_t**2)
        return v * s_s**2 / s_t**2 + (a_s * v / s_t**2) ** 2 * spread

    times = full(schedule)[:-1]  # down to the first entry, whose marginal is known as well
    level = _Reads()
    denoiser = Denoiser(_Oracle("Epsilon", scales, level), Process(schedule), Epsilon(), level)
    found = response(functools.partial(ancestral, variance=Given(optimal)), denoiser, times)  # type: ignore[arg-type]
    alpha, sigma = scales(times[-1])
    begun = scales(1.0)
    # x_1 is drawn from N(0, 1) instead of N(alpha_1 m, alpha_1^2 q^2 + sigma_1^2): that is all the error there is
    mean = found[0] + found[1] * begun[0] * DATA.m
    var = (found[1:] ** 2).sum() + found[1] ** 2 * (begun[0] ** 2 * DATA.q**2 + begun[1] ** 2 - 1)
    assert abs(mean - alpha * DATA.m) < 1e-10
    assert abs(var - (alpha**2 * DATA.q**2 + sigma**2)) < 1e-10
