"""Every sampler, parameterization, schedule and grid on Gaussian data, against the exact affine recursion.

The impulse response: rows that begin at 0 and at 1 without noise give the constant and the gain, and a row for each
draw, whose noise is 1 at that draw and 0 at all others, gives that draw's coefficient: mean and variance, exactly.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
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
    Learned,
    Linear,
    LinearBetas,
    Posterior,
    Process,
    ScaledLinearBetas,
    Schedule,
    Transition,
    V,
    VarianceExploding,
    adams,
    alpha_coordinate,
    ancestral,
    ddim,
    full,
    given,
    heun,
    karras,
    leading,
    plms,
    pndm,
    predictor_corrector,
    total_coordinate,
    trailing,
    uniform,
)
from carrara.diffusion.parameterization import Level, Parameterization
from carrara.types import Condition, Estimate, Query, Sampling
from oracle import exact
from oracle.samplers import CASES, Case

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
SAMPLERS = {name: case for name, case in CASES.items() if case.exact is not None}
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
        "karras": karras(schedule, steps=N, sigma_max=min(60.0, math.exp(-schedule.logsnr(schedule.t_max) / 2))),
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
    """Stands in for the rng: draw number k is 1 in row 2 + k of every block of rows and 0 elsewhere."""

    def __init__(self, rows: int) -> None:
        self.rows, self.draws = rows, 0

    def normal_like(self, x: Tensor) -> Tensor:
        noise = torch.zeros_like(x)
        noise[2 + self.draws :: self.rows] = 1
        self.draws += 1
        return noise


class _Denoisers:
    """A block of rows for each parameterization, with the denoiser whose network is right in its words."""

    def __init__(self, schedule: Schedule, scales: exact.Scales, names: Sequence[str], variance: float | None = None):
        self.process, self.calls = Process(schedule), 0
        self.all = []
        for name in names:
            level = _Reads()
            network = _Oracle(name, scales, level)
            self.all.append(Denoiser(network, self.process, PARAMETERIZATIONS[name], level))

    @torch.no_grad()
    def __call__(self, query: Query) -> Estimate:
        self.calls += 1
        blocks = query.x.chunk(len(self.all))
        assert isinstance(query.t, float)
        return Estimate(torch.cat([each(x, query.t).mean for each, x in zip(self.all, blocks, strict=True)]))


def sample(sampling: Sampling, estimate: Callable[[Query], Estimate]) -> Tensor:
    """The end of a sampling whose questions are answered by a function."""
    try:
        query = next(sampling)
        while True:
            query = sampling.send(estimate(query))
    except StopIteration as finished:
        return finished.value


def response(sampler: Any, denoisers: _Denoisers, times: tuple[float, ...], draws: int) -> np.ndarray:
    """The coefficients of a sampling over (1, x, z_1, ...), measured: a row for each parameterization."""
    x, rng = torch.zeros(len(denoisers.all) * (2 + draws), 1, dtype=torch.float64), _Basis(2 + draws)
    x[1 :: 2 + draws] = 1
    out = sample(sampler(denoisers.process, x, times, rng=rng), denoisers)
    assert out.dtype == torch.float64 and rng.draws == draws
    found = out.view(-1, 2 + draws).numpy()
    return np.concatenate([found[:, :1], found[:, 1:] - found[:, :1]], 1)


def check(case: Case, schedule: str, names: Sequence[str], times: tuple[float, ...]) -> None:
    """The case, with the networks that are named, against its recursion."""
    made, scales = SCHEDULES[schedule]
    denoisers = _Denoisers(made, scales, names)
    assert case.exact is not None and case.evaluations is not None
    expected = case.exact(DATA, scales, times)
    found = response(case.sampler, denoisers, times, len(expected) - 2)
    worst = np.abs(found - expected).max(1) / max(1, np.abs(expected).max())
    for name, error in zip(names, worst, strict=True):
        assert error < TOLERANCE, f"{schedule}, {name}, {len(times) - 1} strides from {times[0]}: {error:.2g}"
    assert denoisers.calls == case.evaluations(scales, times), f"{schedule}, {times}"


def allowed(schedule: str) -> list[str]:
    return [name for name in PARAMETERIZATIONS if name != "Epsilon" or SCHEDULES[schedule][1](1.0)[0] > 1e-6]


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_grid(sampler: str, schedule: str) -> None:
    for N in (1, 2, 3, 7, 10, 50):
        for times in grids(SCHEDULES[schedule][0], N).values():
            check(SAMPLERS[sampler], schedule, allowed(schedule), times)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_many_strides(sampler: str, schedule: str) -> None:
    """333 on every schedule, 1000 on two or three of them, each with a parameterization in turn."""
    made, names = SCHEDULES[schedule][0], allowed(schedule)
    turn = list(SAMPLERS).index(sampler) + list(SCHEDULES).index(schedule)
    tabulated = schedule in TABLES
    name = names[turn % len(names)]
    check(SAMPLERS[sampler], schedule, [name], (trailing if tabulated else uniform)(made, steps=333))
    if turn % 3 == 0:
        check(SAMPLERS[sampler], schedule, [name], full(made) if tabulated else uniform(made, steps=1000))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_predictor_corrector(schedule: str) -> None:
    """Not affine, so paths are compared: rows of three numbers, with the same noise for every parameterization."""
    made, scales = SCHEDULES[schedule]
    names = allowed(schedule)

    class Drawn:
        def __init__(self) -> None:
            self.rng = np.random.default_rng(7)

        def __next__(self) -> np.ndarray:
            return self.rng.standard_normal((4, 3))

        def normal_like(self, x: Tensor) -> Tensor:
            return torch.from_numpy(np.tile(next(self), (len(names), 1)))

    start = np.random.default_rng(8).standard_normal((4, 3)) * scales(1.0)[1]
    x = torch.from_numpy(np.tile(start, (len(names), 1)))
    for N in (1, 2, 3, 7, 10, 50, 333, 1000):
        for i, times in enumerate(grids(made, N).values() if N <= 50 else [uniform(made, steps=N)]):
            M, largest = i % 3, i % 2 == 0
            sampler = functools.partial(
                predictor_corrector, corrections=M, snr=0.2, variance=Transition() if largest else Posterior()
            )
            denoisers = _Denoisers(made, scales, names)
            found = sample(sampler(denoisers.process, x, times, rng=Drawn()), denoisers).view(len(names), 4, 3).numpy()
            expected = exact.predictor_corrector(DATA, scales, times, start, Drawn(), r=0.2, M=M, largest=largest)
            assert np.abs(found - expected).max() < TOLERANCE * max(1, np.abs(expected).max()), f"{N}, {times}"
            assert denoisers.calls == N + M * sum(scales(s)[1] > 0 for s in times[1:])


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_full_table_of_few_steps(sampler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`full` for tables of every length."""
    for N in (1, 2, 3, 7, 10, 50):
        few = LinearBetas(N, 0.01, 0.3), exact.table(exact.linear_betas(N, 0.01, 0.3))
        monkeypatch.setitem(SCHEDULES, "few", few)
        check(SAMPLERS[sampler], "few", list(PARAMETERIZATIONS), full(few[0]))


@pytest.mark.parametrize("sampler", [name for name, case in SAMPLERS.items() if case.point])
def test_one_point_is_exact(sampler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Data that is one point m: at every time x_t is N(alpha m, sigma^2) again, on any grid; or stays on its path."""
    monkeypatch.setattr(f"{__name__}.DATA", exact.Data(m=0.3, q=0.0))
    for schedule, (made, scales) in SCHEDULES.items():
        for N in (1, 3, 10):
            for times in grids(made, N).values():
                times = times[: len(times) - 1] if N > 1 else times  # where noise is left, too
                denoisers = _Denoisers(made, scales, ["X0"])
                case = SAMPLERS[sampler]
                assert case.exact is not None
                draws = len(case.exact(DATA, scales, times)) - 2
                found = response(case.sampler, denoisers, times, draws)[0]
                (a_t, s_t), (a_s, s_s) = scales(times[0]), scales(times[-1])
                mean, var = found[0] + found[1] * a_t * DATA.m, found[1] ** 2 * s_t**2 + (found[2:] ** 2).sum()
                assert abs(mean - a_s * DATA.m) < TOLERANCE, schedule
                assert abs(var - s_s**2) < TOLERANCE * max(1, s_s**2), schedule


def test_standard_normal_data_stays_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """The transition's variance is right for data N(0, I): where variance is preserved the chain stays in it."""
    monkeypatch.setattr(f"{__name__}.DATA", exact.Data(m=0.0, q=1.0))
    sampler = functools.partial(ancestral, variance=Transition())
    for schedule in (*TABLES, "Cosine"):
        made, scales = SCHEDULES[schedule]
        for N in (1, 3, 10, 50):
            for times in grids(made, N).values():
                times = times[:-1] if times[-1] == 0 and N > 1 else times  # the last stride to 0 draws nothing
                draws = sum(s > 0 for s in times[1:])
                found = response(sampler, _Denoisers(made, scales, ["X0"]), times, draws)[0]
                if times[-1] > 0:
                    assert abs(found[0]) < TOLERANCE and abs((found[1:] ** 2).sum() - 1) < TOLERANCE, schedule


@pytest.mark.parametrize("schedule", [name for name in TABLES if "zero" not in name])
@pytest.mark.parametrize("mix", [0.0, 0.3, 1.0, 1.2])
def test_learned_variance(schedule: str, mix: float) -> None:
    """The variance between the bounds, log-linear in the mix: iDDPM eq. 15."""
    made, scales = SCHEDULES[schedule]

    class Mixed(_Denoisers):
        def __call__(self, query: Query) -> Estimate:
            mean = super().__call__(query).mean
            return Estimate(mean, torch.full_like(mean, mix))

    for N in (1, 2, 7, 50):
        for times in grids(made, N).values():
            small, large = (exact.ancestral(DATA, scales, times, largest=each) for each in (False, True))
            found = response(
                functools.partial(ancestral, variance=Learned()), Mixed(made, scales, ["V"]), times, len(small) - 2
            )[0]
            expected = np.concatenate([small[:2], small[2:] ** (1 - mix) * large[2:] ** mix])
            assert np.abs(found - expected).max() < TOLERANCE


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("sampler", [heun, adams, plms, pndm], ids=lambda sampler: sampler.__name__)
def test_either_coordinate(sampler: Any, schedule: str) -> None:
    made, scales = SCHEDULES[schedule]
    times = uniform(made, steps=10)
    recursions: dict[Any, Any] = {
        heun: exact.heun,
        adams: functools.partial(exact.adams, order=4),
        plms: functools.partial(exact.pndm, runge_kutta=False),
        pndm: functools.partial(exact.pndm, runge_kutta=True),
    }
    for coordinate in (alpha_coordinate, total_coordinate):
        straight = coordinate is total_coordinate
        case = Case(
            functools.partial(sampler, coordinate=coordinate),
            functools.partial(recursions[sampler], straight=straight),
            next(case.evaluations for case in CASES.values() if case.sampler.func is sampler),
        )
        if not straight and scales(1.0)[0] == 0:
            with pytest.raises(ValueError, match="use total_coordinate"):
                next(case.sampler(Process(made), torch.ones(1, 1), times, rng=None))
        else:
            check(case, schedule, ["V"], times)


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
        found = response(ddim, _Denoisers(made, scales, ["V"]), times, 0)[0]
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
    sampler = functools.partial(ancestral, variance=Given(optimal))  # type: ignore[arg-type]
    found = response(sampler, _Denoisers(schedule, scales, ["Epsilon"]), times, len(times) - 1)[0]
    alpha, sigma = scales(times[-1])
    begun = scales(1.0)
    # x_1 is drawn from N(0, 1) instead of N(alpha_1 m, alpha_1^2 q^2 + sigma_1^2): that is all the error there is
    mean = found[0] + found[1] * begun[0] * DATA.m
    var = (found[1:] ** 2).sum() + found[1] ** 2 * (begun[0] ** 2 * DATA.q**2 + begun[1] ** 2 - 1)
    assert abs(mean - alpha * DATA.m) < 1e-10
    assert abs(var - (alpha**2 * DATA.q**2 + sigma**2)) < 1e-10


@pytest.mark.parametrize("schedule", ["Cosine", "Linear"])
@pytest.mark.parametrize(
    "sampler, order",
    [
        ("ancestral, posterior", 1),
        ("ancestral, transition", 1),
        ("ddim 1", 1),
        ("dpmpp_sde", 2),
        ("dpmpp_2m_sde", 2),
        ("dpmpp_3m_sde", 2),
        ("heun, churn everywhere", 2),
    ],
)
def test_weak_order(sampler: str, order: int, schedule: str) -> None:
    """The error of the last variance, when x at times[0] has the variance that it should."""
    made, scales = SCHEDULES[schedule]
    errors = []
    for N in (32, 64, 128, 256):
        times = tuple(made.time(12 * (i / N - 1 / 2)) for i in range(N + 1))
        draws = 2 * N if sampler == "dpmpp_sde" else N
        found = response(SAMPLERS[sampler].sampler, _Denoisers(made, scales, ["X0"]), times, draws)[0]
        (a_t, s_t), (a_s, s_s) = scales(times[0]), scales(times[-1])
        begun = (found[1] * math.hypot(a_t * DATA.q, s_t)) ** 2
        errors.append(abs(begun + (found[2:] ** 2).sum() - (a_s * DATA.q) ** 2 - s_s**2))
    for a, b in pairwise(errors[1:]):
        assert order - 0.2 < math.log2(a / b) < order + 0.3, f"{sampler}: {errors}"
