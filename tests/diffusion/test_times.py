"""Grids: strictly decreasing, of the promised length, at the promised places, and refused when they cannot be."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest

from carrara.diffusion import (
    Cosine,
    CosineBetas,
    Linear,
    LinearBetas,
    ScaledLinearBetas,
    Schedule,
    VarianceExploding,
    full,
    given,
    karras,
    leading,
    trailing,
    uniform,
)
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
    made = [uniform(schedule, steps=steps), karras(schedule, steps=steps)]
    if schedule in SCHEDULES[:3]:
        made += [leading(schedule, steps=steps), trailing(schedule, steps=steps)]
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
    first = TABLE(1 / 1000)
    assert karras(TABLE, steps=10, sigma_min=1e-9)[-2] == pytest.approx(1 / 1000)
    assert first[1] > 0


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
