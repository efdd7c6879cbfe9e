r"""Sampling grids: the times that a sampler visits, strictly decreasing, from noise to data.

A grid is a function of the schedule; `times[0]` is where the noise starts (1, but for EDM's sigma_max), the last is
where the sampler stops: 0, or 1/T where a foreign convention ends there. A shift belongs here and nowhere else.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Annotated, Any

from carrara.config import Role
from carrara.diffusion.schedule import Schedule, Tabulated

__all__ = ["Grid", "Times", "full", "given", "karras", "leading", "trailing", "uniform"]

Times = tuple[float, ...]
Grid = Annotated[Any, Role("times")]
"""A function of the schedule that makes Times: one of those below with its settings bound."""


def _table(schedule: Schedule, name: str) -> int:
    if not isinstance(schedule, Tabulated):
        raise ValueError(
            f"{name} times count the steps of a table, and {type(schedule).__name__} has none; use uniform"
        )
    return schedule.steps


def _check(steps: int, most: int | None = None) -> None:
    if steps < 1 or (most is not None and steps > most):
        bound = f"1 to {most}" if most is not None else "at least 1"
        raise ValueError(f"steps = {steps}; expected {bound}")


def full(schedule: Schedule) -> Times:
    """Every entry of the table, T steps: 1, (T-1)/T, ..., 1/T, 0. DDPM's own."""
    T = _table(schedule, "full")
    return tuple(i / T for i in range(T, -1, -1))


def uniform(schedule: Schedule, *, steps: int = 50, shift: float = 1.0) -> Times:
    """`steps` equal strides from 1 to 0, on the table's entries where there is a table.

    `shift` s moves them to t' = s t / (1 + (s - 1) t), more steps at high noise for s > 1 (SD3, eq. 23).
    """
    _check(steps, schedule.steps if isinstance(schedule, Tabulated) else None)
    if not shift > 0:
        raise ValueError(f"shift = {shift}; expected a positive factor, 1 for none")
    times = [shifted(i / steps, shift) for i in range(steps, -1, -1)]
    if isinstance(schedule, Tabulated):
        T = schedule.steps
        times = [round(t * T) / T for t in times]
        if len(set(times)) <= steps:
            raise ValueError(
                f"{steps} steps with shift {shift} fall on the same entries of a table of {T}; use fewer steps"
            )
    return tuple(times)


def shifted(t: float, shift: float) -> float:
    """t' = s t / (1 + (s - 1) t): 0 and 1 stay, and s = 1 is off."""
    return shift * t / (1 + (shift - 1) * t)


def leading(schedule: Schedule, *, steps: int = 50, offset: int = 0, end: float = 0.0) -> Times:
    """diffusers' "leading" spacing: table steps 0, k, 2k, ... with k = T // steps, plus `offset`; ends at `end`.

    It never visits t = 1. `end` is 0, or 1/T for pipelines that stop at the table's first entry.
    """
    T = _table(schedule, "leading")
    _check(steps, T)
    times = [(i * (T // steps) + offset + 1) / T for i in range(steps - 1, -1, -1)]
    if times[0] > 1:
        raise ValueError(f"offset = {offset} moves the first of {steps} steps beyond the table's end; expected 0 or 1")
    return _ended(times, end)


def trailing(schedule: Schedule, *, steps: int = 50, end: float = 0.0) -> Times:
    """diffusers' "trailing" spacing: table entries T, T - T/steps, ..., rounded; begins at t = 1 and ends at `end`."""
    T = _table(schedule, "trailing")
    _check(steps, T)
    return _ended([round(T - i * T / steps) / T for i in range(steps)], end)


def _ended(times: list[float], end: float) -> Times:
    if not 0 <= end < times[-1]:
        if end == times[-1] and len(times) > 1:  # the last visited time is the end itself
            return tuple(times)
        raise ValueError(f"end = {end}; expected 0 or a time before the last visited one, {times[-1]:g}")
    return (*times, end)


def karras(
    schedule: Schedule, *, steps: int = 18, sigma_min: float = 0.002, sigma_max: float | None = None, rho: float = 7.0
) -> Times:
    """EDM's grid: sigma/alpha^(1/rho) in equal strides from sigma_max to sigma_min, then 0 (Karras et al. 2022, eq. 5).

    Levels are sigma/alpha, within what the schedule has at t_max and t_min; `sigma_max` None means the largest. On a
    table they fall between entries, where the log-SNR is interpolated.
    """
    _check(steps)
    largest = math.exp(-schedule.logsnr(schedule.t_max) / 2)
    smallest = math.exp(-schedule.logsnr(schedule.t_min) / 2)
    high, low = min(largest if sigma_max is None else sigma_max, largest), max(sigma_min, smallest)
    if not 0 < low < high:
        raise ValueError(f"sigma_min {low:g} and sigma_max {high:g}; expected 0 < sigma_min < sigma_max")
    levels = [
        (high ** (1 / rho) + i / max(steps - 1, 1) * (low ** (1 / rho) - high ** (1 / rho))) ** rho
        for i in range(steps)
    ]
    return (*(schedule.time(-2 * math.log(level)) for level in levels), 0.0)


def given(schedule: Schedule, *, values: tuple[float, ...] = (1.0, 0.0)) -> Times:
    """A list of one's own, strictly decreasing in [0, 1]."""
    if len(values) < 2 or any(a <= b for a, b in pairwise(values)) or values[0] > 1 or values[-1] < 0:
        raise ValueError(
            f"times {values}; expected at least two, strictly decreasing, from 1 at the most to 0 at the least"
        )
    return tuple(values)
