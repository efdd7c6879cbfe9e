"""Grids: strictly decreasing, of the promised length, at the promised places, and refused when they cannot be."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
from scipy import stats

from carrara.diffusion import (
    Cosine,
    CosineBetas,
    Linear,
    LinearBetas,
    ScaledLinearBetas,
    Schedule,
    VarianceExploding,
    area_shift,
    beta,
    exponential,
    full,
    given,
    karras,
    leading,
    linspace,
    resolution_shift,
    shift,
    trailing,
    uniform,
    uniform_logsnr,
)
from carrara.diffusion.quantile import beta_distribution, beta_quantile
from carrara.diffusion.times import shifted

TABLE = LinearBetas()
SCHEDULES: list[Schedule] = [
    TABLE,
    ScaledLinearBetas(zero_terminal=True),
    CosineBetas(),
    Cosine(),
    Linear(),
    VarianceExploding(),
]


def decreasing(times: tuple[float, ...]) -> bool:
    return all(a > b for a, b in pairwise(times))


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
@pytest.mark.parametrize("steps", [1, 2, 3, 7, 10, 50, 333, 1000])
def test_counts_and_order(schedule: Schedule, steps: int) -> None:
    made = [grid(schedule, steps=steps) for grid in (uniform, karras, exponential, uniform_logsnr)]
    if steps < 300 or schedule not in SCHEDULES[:3]:  # on a table so many would fall together
        made += [beta(schedule, steps=steps), shift(schedule, inner=functools.partial(uniform, steps=steps))]
    if schedule in SCHEDULES[:3]:
        made += [leading(schedule, steps=steps), trailing(schedule, steps=steps)]
        made += [linspace(schedule, steps=steps)] if steps > 1 else []
    for times in made:
        assert len(times) == steps + 1
        assert decreasing(times)
        assert 0 < times[0] <= 1 and times[-1] == 0
        for t in times:
            alpha, sigma = schedule(t)  # every time is one that the schedule knows
            assert math.isfinite(alpha) and math.isfinite(sigma)


def test_full() -> None:
    times = full(TABLE)
    assert len(times) == 1001 and times[0] == 1 and times[-2] == 1 / 1000 and times[-1] == 0
    assert times == tuple(i / 1000 for i in range(1000, -1, -1)) == uniform(TABLE, steps=1000)


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 10, 30, 50, 333, 1000])
def test_foreign_spacings(steps: int) -> None:
    """The table's steps t T - 1 are those that diffusers' formulas name."""
    k = 1000 // steps
    expected = np.round(np.arange(steps) * k)[::-1]
    for offset in (0, 1):
        if expected[0] + offset < 1000:
            visited = leading(TABLE, steps=steps, offset=offset)[:-1]
            np.testing.assert_allclose(np.array(visited) * 1000 - 1, expected + offset, atol=1e-9)
    visited = trailing(TABLE, steps=steps)[:-1]
    assert visited[0] == 1.0
    ideal = 1000 - np.arange(steps) * 1000 / steps
    assert np.abs(np.array(visited) * 1000 - ideal).max() <= 0.5 + 1e-9


@pytest.mark.parametrize("T", [1000, 50, 997])
def test_linspace_is_numpys(T: int) -> None:
    table = LinearBetas(steps=T)
    for steps in range(2, T + 1, 7):
        expected = np.linspace(0, T - 1, steps).round()[::-1]
        np.testing.assert_allclose(np.array(linspace(table, steps=steps)[:-1]) * T - 1, expected, atol=1e-9)
    assert linspace(table, steps=10, end=1 / T)[-2:] != (1 / T, 1 / T)


@pytest.mark.parametrize("T", [1000, 50, 997])
def test_trailing_is_numpys(T: int) -> None:
    table = LinearBetas(steps=T)
    for steps in range(1, T + 1):
        expected = np.round(np.arange(T, 0, -T / steps))[:steps]
        np.testing.assert_allclose(np.array(trailing(table, steps=steps)[:-1]) * T, expected, atol=1e-9)


def test_ends_are_stated() -> None:
    assert leading(TABLE, steps=50)[-2:] == (1 / 1000, 0)
    assert leading(TABLE, steps=50, offset=1)[-2:] == (2 / 1000, 0)
    assert leading(TABLE, steps=50, offset=1, end=1 / 1000)[-2:] == (2 / 1000, 1 / 1000)
    # the last visited time is the end itself: that stride would do nothing
    assert leading(TABLE, steps=50, end=1 / 1000)[-2:] == (21 / 1000, 1 / 1000)
    assert trailing(TABLE, steps=50, end=1 / 1000)[-2:] == (20 / 1000, 1 / 1000)
    assert leading(TABLE, steps=50)[0] < 1 and trailing(TABLE, steps=50)[0] == 1


def test_shift() -> None:
    plain, moved = uniform(Linear(), steps=20), uniform(Linear(), steps=20, shift=3.0)
    assert moved[0] == 1 and moved[-1] == 0
    for t, u in zip(plain[1:-1], moved[1:-1], strict=True):
        assert u == pytest.approx(3 * t / (1 + 2 * t), rel=1e-15) and u > t
    assert uniform(Linear(), steps=20, shift=1.0) == plain
    # shifting by s multiplies sigma/alpha of the straight path by s; by s and then 1/s, nothing is left
    for t in (0.1, 0.5, 0.9):
        u = shifted(t, 3.0)
        assert u / (1 - u) == pytest.approx(3 * t / (1 - t))
        assert shifted(u, 1 / 3) == pytest.approx(t)


def test_karras() -> None:
    schedule = VarianceExploding(80.0)
    times = karras(schedule, steps=18)
    i = np.arange(18)
    expected = (80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    np.testing.assert_allclose([80 * t for t in times[:-1]], expected, rtol=1e-12)
    assert times[0] == pytest.approx(1.0, abs=1e-13) and times[0] <= 1
    np.testing.assert_allclose(
        [s / a for a, s in map(Linear(), karras(Linear(), steps=5, sigma_max=10.0, sigma_min=0.1)[:-1])],
        (10 ** (1 / 7) + np.arange(5) / 4 * (0.1 ** (1 / 7) - 10 ** (1 / 7))) ** 7,
        rtol=1e-12,
    )
    assert karras(TABLE, steps=10)[-2] == pytest.approx(1 / 1000)  # whose level is larger than EDM's 0.002


@pytest.mark.parametrize("grid", [karras, exponential])
@pytest.mark.parametrize("schedule", [TABLE, VarianceExploding(), Linear()], ids=str)
def test_levels_out_of_reach_are_refused(grid: Callable[..., tuple[float, ...]], schedule: Schedule) -> None:
    """They would be the schedule's own without a word."""
    largest = math.exp(-schedule.logsnr(schedule.t_max) / 2)
    smallest = math.exp(-schedule.logsnr(schedule.t_min) / 2)
    for wrong in ({"sigma_max": 1.01 * largest}, {"sigma_min": 0.99 * smallest}, {"sigma_max": 0.0}):
        with pytest.raises(ValueError, match="expected one between"):
            grid(schedule, **wrong)
    assert grid(schedule, sigma_max=largest, sigma_min=smallest)[0] == pytest.approx(schedule.t_max)


def test_exponential() -> None:
    for schedule in (VarianceExploding(80.0), Linear(), TABLE):
        times = exponential(schedule, steps=7, sigma_min=0.02, sigma_max=50.0)
        levels = [sigma / alpha for alpha, sigma in map(schedule, times[:-1])]
        np.testing.assert_allclose(levels, np.exp(np.linspace(math.log(50), math.log(0.02), 7)), rtol=1e-11)
        assert karras(schedule, steps=7, rho=1e5, sigma_min=0.02, sigma_max=50.0)[3] == pytest.approx(
            times[3], rel=1e-4
        )


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_uniform_logsnr(schedule: Schedule) -> None:
    for start, end in ((None, 0.0), (0.9, 0.1), (None, 0.25)):
        times = uniform_logsnr(schedule, steps=9, start=start, end=end)
        assert len(times) == 10 and times[-1] == end and times[0] == (start or schedule.t_max)
        if end == 0:
            assert times[-2] == schedule.t_min
        strides = np.diff([schedule.logsnr(t) for t in (times[:-1] if end == 0 else times)])
        np.testing.assert_allclose(strides, strides[0], rtol=1e-6)
    for start, end in ((0.5, 0.5), (0.5, 0.9), (1.5, 0.0), (0.5, -0.1)):
        with pytest.raises(ValueError, match="expected"):
            uniform_logsnr(schedule, start=start, end=end)


def test_beta() -> None:
    assert beta(Linear(), steps=20, alpha=1.0, beta=1.0) == uniform(Linear(), steps=20)
    for a, b in ((0.6, 0.6), (0.5, 0.5), (2.0, 5.0), (0.1, 3.0), (80.0, 60.0)):
        found = beta(Linear(), steps=40, alpha=a, beta=b)
        np.testing.assert_allclose(found, stats.beta.ppf(1 - np.arange(41) / 40, a, b), rtol=0, atol=1e-12)
        for share, t in zip(np.arange(41)[::-1] / 40, found, strict=True):
            if t < 0.9:  # nearer to 1, t itself has not the digits
                assert beta_distribution(t, a, b) == pytest.approx(share, abs=1e-12)
    for share in (0.0, 0.01, 0.3, 0.5, 0.8, 1.0):  # closed forms: Beta(1/2, 1/2) is the arcsine law, Beta(a, 1) a power
        assert beta_quantile(share, 0.5, 0.5) == pytest.approx(math.sin(math.pi * share / 2) ** 2, abs=1e-14)
        assert beta_quantile(share, 3.0, 1.0) == pytest.approx(share ** (1 / 3), abs=1e-14)
        assert beta_quantile(share, 1.0, 4.0) == pytest.approx(1 - (1 - share) ** 0.25, abs=1e-14)
    symmetric = beta(Linear(), steps=20)
    np.testing.assert_allclose(np.array(symmetric) + np.array(symmetric)[::-1], 1, atol=1e-14)
    on_table = beta(TABLE, steps=20)
    np.testing.assert_allclose(np.array(on_table), symmetric, atol=0.5 / 1000 + 1e-12)
    assert all(float(t * 1000).is_integer() or abs(t * 1000 - round(t * 1000)) < 1e-9 for t in on_table)


def test_shift_goes_around_any_grid() -> None:
    for inner in (functools.partial(uniform, steps=12), functools.partial(karras, steps=12), uniform):
        plain, moved = inner(Linear()), shift(Linear(), inner=inner, by=3.0)
        assert moved == tuple(shifted(t, 3.0) for t in plain)
        assert shift(Linear(), inner=inner, by=1.0) == plain
    assert shift(Linear(), inner=functools.partial(uniform, steps=20), by=2.5) == uniform(Linear(), steps=20, shift=2.5)
    twice = functools.partial(shift, inner=functools.partial(uniform, steps=9), by=2.0)
    np.testing.assert_allclose(shift(Linear(), inner=twice, by=2.0), uniform(Linear(), steps=9, shift=4.0), rtol=1e-14)
    on_table = shift(TABLE, inner=functools.partial(trailing, steps=10), by=3.0)
    np.testing.assert_allclose(np.array(on_table) * 1000, np.round(np.array(on_table) * 1000), atol=1e-9)


def test_shifts_for_resolutions() -> None:
    """SD3: sqrt of the areas' ratio. FLUX: exp(mu), mu = 0.5 at 256 tokens and 1.15 at 4096, linear between."""
    assert area_shift(1024 * 1024, 512 * 512) == pytest.approx(2)
    assert area_shift(512 * 512, 512 * 512) == 1
    assert resolution_shift(256) == pytest.approx(math.exp(0.5))
    assert resolution_shift(4096) == pytest.approx(math.exp(1.15))
    slope = (1.15 - 0.5) / (4096 - 256)
    for tokens in (1, 1024, 6400):
        assert resolution_shift(tokens) == pytest.approx(math.exp(tokens * slope + 0.5 - slope * 256), rel=1e-12)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: full(Linear()),
        lambda: leading(Linear()),
        lambda: trailing(Cosine()),
        lambda: uniform(Linear(), steps=0),
        lambda: uniform(TABLE, steps=1001),
        lambda: uniform(Linear(), shift=0.0),
        lambda: uniform(TABLE, steps=900, shift=5.0),
        lambda: leading(TABLE, steps=0),
        lambda: leading(TABLE, steps=1000, offset=1),
        lambda: leading(TABLE, steps=50, end=0.5),
        lambda: leading(TABLE, steps=1, end=1 / 1000),
        lambda: trailing(TABLE, steps=2000),
        lambda: trailing(TABLE, steps=50, end=-0.1),
        lambda: karras(VarianceExploding(), sigma_min=2.0, sigma_max=1.0),
        lambda: karras(VarianceExploding(), sigma_max=0.0),
        lambda: karras(VarianceExploding(), steps=0),
        lambda: karras(VarianceExploding(), rho=0.0),
        lambda: exponential(Linear(), sigma_min=1.0, sigma_max=0.5),
        lambda: exponential(Linear(), steps=0),
        lambda: uniform_logsnr(Linear(), steps=0),
        lambda: linspace(Linear()),
        lambda: linspace(TABLE, steps=1),
        lambda: linspace(TABLE, steps=1001),
        lambda: beta(Linear(), alpha=0.0),
        lambda: beta(Linear(), steps=0),
        lambda: beta(TABLE, steps=900),
        lambda: shift(Linear(), by=0.0),
        lambda: shift(Linear(), by=-1.0),
        lambda: resolution_shift(0),
        lambda: area_shift(0, 1),
        lambda: given(Linear(), values=(1.0,)),
        lambda: given(Linear(), values=(1.0, 1.0, 0.0)),
        lambda: given(Linear(), values=(0.0, 1.0)),
        lambda: given(Linear(), values=(1.1, 0.0)),
        lambda: given(Linear(), values=(1.0, -0.1)),
    ],
)
def test_refused(wrong: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match=r"expected|use"):
        wrong()
