"""Few steps of a table lie where equal strides would be, as near as its entries allow; and so does its every entry."""

from __future__ import annotations

import pytest
import torch

from carrara.diffusion import CosineBetas, GivenBetas, Linear, LinearBetas, ScaledLinearBetas, uniform
from carrara.diffusion.schedule import Tabulated

TABLES = [LinearBetas(), ScaledLinearBetas(zero_terminal=True), CosineBetas(50), GivenBetas((0.1,) * 97)]


@pytest.mark.parametrize("schedule", TABLES, ids=str)
@pytest.mark.parametrize("steps", [1, 2, 3, 7, 11, 40])
def test_uniform_steps_are_even(schedule: Tabulated, steps: int) -> None:
    """Within half an entry of i / N, from 1 to 0: no stride takes what the others leave over."""
    times = uniform(schedule, steps=steps)
    assert times[0] == 1 and times[-1] == 0 and len(times) == steps + 1
    for i, t in enumerate(reversed(times)):
        assert abs(t - i / steps) * schedule.steps <= 0.5 + 1e-9
    for i, t in enumerate(reversed(uniform(Linear(), steps=steps))):
        assert t == pytest.approx(i / steps, abs=1e-15)


@pytest.mark.parametrize("schedule", TABLES, ids=str)
def test_an_entry_is_the_same_alone_and_in_a_batch(schedule: Tabulated) -> None:
    """Every entry, the first and the last among them, for a batch with a time for each row and for one time alone."""
    times = [i / schedule.steps for i in range(schedule.steps + 1)]
    alpha, sigma = schedule(torch.tensor(times, dtype=torch.float64))
    assert list(zip(alpha.tolist(), sigma.tolist(), strict=True)) == [schedule(t) for t in times]
