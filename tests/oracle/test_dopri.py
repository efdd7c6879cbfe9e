"""Adaptive steps: the pair's order conditions, its tolerance kept, another implementation, and rows of their own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from carrara.diffusion import (
    Cosine,
    CosineBetas,
    Linear,
    LinearBetas,
    Process,
    ScaledLinearBetas,
    Schedule,
    VarianceExploding,
    alpha_coordinate,
    ddim,
    dopri,
    total_coordinate,
)
from carrara.diffusion.dormand_prince import ERROR, NODES, STAGES
from carrara.oracle import Mixture
from carrara.types import Estimate, Query
from oracle.test_orders import HIGH, LOW, START, denoised, reference

SCHEDULES: list[Schedule] = [
    LinearBetas(),
    ScaledLinearBetas(zero_terminal=True),
    CosineBetas(),
    Cosine(),
    Linear(),
    VarianceExploding(),
]


def names(value: object) -> str:
    return type(value).__name__


def test_order_conditions() -> None:
    """sum b_i Phi_i(tree) = 1 / gamma(tree) for every rooted tree: to order 5, and to order 4 for the other weights."""
    c = [Fraction(node).limit_denominator(100) for node in NODES]
    a = [[Fraction(value).limit_denominator(100_000) for value in stage] for stage in STAGES]
    for row, node in zip(a, c, strict=True):
        assert sum(row) == node
    full = [*a[6], Fraction(0)]
    lower = [b - Fraction(e).limit_denominator(1_000_000) for b, e in zip(full, ERROR, strict=True)]

    def through(values: Sequence[Fraction]) -> list[Fraction]:
        return [sum((w * v for w, v in zip(row, values, strict=False)), Fraction(0)) for row in a]

    def times(*factors: Sequence[Fraction]) -> list[Fraction]:
        return [math.prod(column, start=Fraction(1)) for column in zip(*factors, strict=True)]

    one = [Fraction(1)] * 7
    ac, ac2 = through(c), through(times(c, c))
    trees = [
        (1, one, 1),
        (2, c, 2),
        (3, times(c, c), 3),
        (3, ac, 6),
        (4, times(c, c, c), 4),
        (4, times(c, ac), 8),
        (4, ac2, 12),
        (4, through(ac), 24),
        (5, times(c, c, c, c), 5),
        (5, times(c, c, ac), 10),
        (5, times(c, ac2), 15),
        (5, times(c, through(ac)), 30),
        (5, times(ac, ac), 20),
        (5, through(times(c, c, c)), 20),
        (5, through(times(c, ac)), 40),
        (5, through(ac2), 60),
        (5, through(through(ac)), 120),
    ]
    for order, phi, gamma in trees:
        assert sum(b * p for b, p in zip(full, phi, strict=True)) == Fraction(1, gamma)
        if order <= 4:
            assert sum(b * p for b, p in zip(lower, phi, strict=True)) == Fraction(1, gamma)
    assert any(sum(b * p for b, p in zip(lower, phi, strict=True)) != Fraction(1, g) for o, phi, g in trees if o == 5)


def walk(process: Process, x: Tensor, times: tuple[float, ...], estimate: Any, **settings: Any) -> tuple[Tensor, int]:
    """The end of a sampling and the number of questions; `estimate` is a function of x and one time a row."""
    sampling, asked = dopri(process, x, times, rng=None, **settings), 0  # type: ignore[arg-type]
    try:
        query = next(sampling)
        while True:
            asked += 1
            assert query.inner == isinstance(query.t, Tensor)
            t = query.t if isinstance(query.t, Tensor) else torch.full((len(x),), query.t, dtype=torch.float64)
            assert t.shape == (len(x),) and query.x.shape == x.shape
            query = sampling.send(Estimate(estimate(query.x, t)))
    except StopIteration as finished:
        return finished.value, asked


@pytest.mark.parametrize("schedule", SCHEDULES, ids=names)
def test_gaussian_data(schedule: Schedule) -> None:
    """Against the flow's closed form, x_s = alpha_s m + (x - alpha_t m) std_s / std_t; times are a row's own."""
    m, q = 0.3, 0.6
    process = Process(schedule)
    x = torch.linspace(-2, 2, 6, dtype=torch.float64).view(3, 2) * process.prior_std(schedule.t_max)
    scale = torch.tensor([[1.0, 3.0], [0.5, 2.0], [1.0, 1.0]], dtype=torch.float64)  # rows that need different steps

    def estimate(x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = (value.view(-1, 1) for value in schedule(t))
        k = alpha * (q * scale) ** 2 / (alpha**2 * (q * scale) ** 2 + sigma**2)
        return m + k * (x - alpha * m)

    (a_t, s_t), (a_s, s_s) = schedule(schedule.t_max), schedule(schedule.t_min)
    ratio = ((a_s**2 * (q * scale) ** 2 + s_s**2) / (a_t**2 * (q * scale) ** 2 + s_t**2)).sqrt()
    expected = a_s * m + ratio * (x - a_t * m)
    for coordinate in (None, total_coordinate):
        end, _ = walk(
            process, x, (schedule.t_max, schedule.t_min), estimate, rtol=1e-9, atol=1e-9, coordinate=coordinate
        )
        assert (end - expected).abs().max() < 2e-7


def mixture(schedule: Schedule) -> Any:
    def estimate(x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = (value.numpy() for value in schedule(t))
        # one number a row
        return torch.from_numpy(
            np.array([denoised(x[i].numpy() / alpha[i], sigma[i] / alpha[i]) for i in range(len(x))])
        )

    return estimate


def test_the_tolerance_is_kept() -> None:
    """On the mixture, against an integrator of order 8; and what a tighter one costs grows as order 5 lets it.

    Step control sees the error of a step. Paths that part between the mixture's components blow it up, which is what
    the larger factors at loose tolerances are.
    """
    schedule = VarianceExploding(HIGH)
    x, costs = torch.from_numpy(START).view(-1, 1), []
    for tolerance, factor in ((1e-3, 100), (1e-5, 20), (1e-7, 2), (1e-9, 2), (1e-11, 2)):
        end, asked = walk(
            Process(schedule), x, (1.0, 0.9, LOW / HIGH), mixture(schedule), rtol=tolerance, atol=tolerance
        )
        assert np.abs(end[:, 0].numpy() - reference()).max() < factor * tolerance
        costs.append(asked)
        assert (asked - 1) % 6 == 0
    assert costs == sorted(costs) and all(b / a < 2.6 for a, b in pairwise(costs))  # 100^(1/5) = 2.5


def test_another_implementation() -> None:
    """torchdiffeq's dopri5 on the same ODE, a row at a time as here."""
    torchdiffeq = pytest.importorskip("torchdiffeq")
    schedule = VarianceExploding(HIGH)
    x = torch.from_numpy(START).view(-1, 1)
    end, _ = walk(Process(schedule), x, (1.0, LOW / HIGH), mixture(schedule), rtol=1e-10, atol=1e-10)

    def slope(u: Tensor, y: Tensor) -> Tensor:
        return (y - torch.from_numpy(denoised(y.numpy(), u.item()))) / u

    u = torch.tensor([HIGH, LOW], dtype=torch.float64)
    for i in range(len(x)):
        theirs = torchdiffeq.odeint(slope, x[i], u, rtol=1e-10, atol=1e-10, method="dopri5")[-1]
        assert (theirs - end[i]).abs().max() < 2e-9


@pytest.mark.parametrize("schedule", SCHEDULES, ids=names)
def test_beyond_the_log_snr_that_is_finite(schedule: Schedule) -> None:
    """From 1 to 0: one DDIM stride leads in where alpha is 0, and one leads out from t_min."""
    process = Process(schedule)
    data = Mixture([0.4, 0.6], [[-0.5], [0.7]], stds=[0.3, 0.2])
    x = torch.linspace(-1, 1, 5, dtype=torch.float64).view(-1, 1) * process.prior_std(1.0)
    made = data.denoiser(process)
    asked: list[Query] = []

    def drive(sampling: Any) -> Tensor:
        try:
            query = next(sampling)
            while True:
                asked.append(query)
                query = sampling.send(made(query.x, query.t))
        except StopIteration as finished:
            return finished.value

    whole = drive(dopri(process, x, (1.0, 0.5, 0.0), rng=None))  # type: ignore[arg-type]
    steps = [query.t for query in asked if not query.inner]
    assert steps == ([1.0] if schedule.t_max < 1 else []) + [schedule.t_max, schedule.t_min]
    first, last = schedule.t_max, schedule.t_min
    begun = drive(ddim(process, x, (1.0, first), rng=None)) if first < 1 else x  # type: ignore[arg-type]
    middle = drive(dopri(process, begun, (first, 0.5, last), rng=None))  # type: ignore[arg-type]
    assert torch.equal(drive(ddim(process, middle, (last, 0.0), rng=None)), whole)  # type: ignore[arg-type]


def test_times_between_have_no_effect_but_the_first() -> None:
    schedule = Cosine()
    x = torch.linspace(-1, 1, 4, dtype=torch.float64).view(-1, 1)
    data = Mixture([0.4, 0.6], [[-0.5], [0.7]], stds=[0.3, 0.2]).denoiser(Process(schedule))

    def run(*times: float) -> Tensor:
        return walk(Process(schedule), x, times, lambda x, t: data(x, t).mean)[0]

    assert torch.equal(run(0.9, 0.8, 0.1), run(0.9, 0.8, 0.3, 0.2, 0.1))
    torch.testing.assert_close(run(0.9, 0.8, 0.1), run(0.9, 0.1), rtol=0, atol=1e-4)


def test_rows_have_their_own_steps() -> None:
    """The number of questions is that of the slowest row; a row alone asks for itself, and ends in the same bits."""
    schedule = VarianceExploding(HIGH)
    x = torch.from_numpy(np.array([0.1, 14.0, -9.5, 25.0])).view(-1, 1)
    times = (1.0, 0.5, LOW / HIGH)
    together, most = walk(Process(schedule), x, times, mixture(schedule))
    alone = [walk(Process(schedule), x[i : i + 1], times, mixture(schedule)) for i in range(4)]
    assert torch.equal(torch.cat([end for end, _ in alone]), together)
    counts = [asked for _, asked in alone]
    assert most == max(counts) > min(counts)


def test_too_many_evaluations_are_refused() -> None:
    schedule = VarianceExploding(HIGH)
    x = torch.from_numpy(START).view(-1, 1)
    _, asked = walk(Process(schedule), x, (1.0, LOW / HIGH), mixture(schedule))
    walk(Process(schedule), x, (1.0, LOW / HIGH), mixture(schedule), most=asked)
    with pytest.raises(ValueError, match=r"after \d+ evaluations a row is at t = .*; loosen rtol = 1e-05"):
        walk(Process(schedule), x, (1.0, LOW / HIGH), mixture(schedule), most=asked - 1)
    with pytest.raises(ValueError, match="evaluations"):
        walk(Process(schedule), x, (1.0, LOW / HIGH), lambda x, t: x * math.nan)


def test_alpha_may_be_zero_in_one_coordinate_only() -> None:
    x = torch.zeros(1, 1, dtype=torch.float64)
    schedule = ScaledLinearBetas(zero_terminal=True)
    # begins at t_max, where alpha is small and not 0
    walk(Process(schedule), x, (1.0, 0.0), lambda x, t: 0 * x, coordinate=alpha_coordinate)
