r"""Sampling grids: the times that a sampler visits, strictly decreasing, from noise to data.

A grid is a function of the schedule; `times[0]` is where the noise starts (1, but for EDM's sigma_max), the last is
where the sampler stops: 0, or 1/T where a foreign convention ends there. Fewer steps are a coarser grid of the same
schedule, never another schedule ("respacing"). Shifts belong here and nowhere else.

    full, uniform, leading, trailing, linspace     the table's entries, or equal strides of t
    karras, exponential, uniform_logsnr            strides of the noise level sigma/alpha or of the log-SNR
    beta                                           quantiles of a Beta distribution: dense at both ends
    shift                                          any of these, moved towards noise
    given                                          a list of one's own
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Any

import torch

from carrara.config import Role
from carrara.diffusion.quantile import beta_quantile
from carrara.diffusion.schedule import Schedule, Tabulated

__all__ = ["Grid", "Times", "area_shift", "beta", "exponential", "full", "given", "karras", "leading", "linspace",
           "resolution_shift", "shift", "shifted", "trailing", "uniform", "uniform_logsnr"]  # fmt: skip

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


def _check_shift(by: float) -> None:
    if not 0 < by < math.inf:
        raise ValueError(f"shift = {by}; expected a positive factor, 1 for none")


def _on_entries(schedule: Schedule, times: Sequence[float]) -> Times:
    """The times as they are, or for a table the entries nearest to them."""
    if not isinstance(schedule, Tabulated):
        return tuple(times)
    T = schedule.steps
    nearest = tuple(round(t * T) / T for t in times)
    if len(set(nearest)) < len(nearest):
        raise ValueError(f"{len(times) - 1} steps fall on the same entries of a table of {T} here and there; use fewer")
    return nearest


def full(schedule: Schedule) -> Times:
    """Every entry of the table, T steps: 1, (T-1)/T, ..., 1/T, 0. DDPM's own."""
    T = _table(schedule, "full")
    return tuple(i / T for i in range(T, -1, -1))


def uniform(schedule: Schedule, *, steps: int = 50, shift: float = 1.0) -> Times:
    """`steps` equal strides from 1 to 0, moved by `shifted`; on the table's entries where there is a table."""
    _check(steps, schedule.steps if isinstance(schedule, Tabulated) else None)
    _check_shift(shift)
    return _on_entries(schedule, [shifted(i / steps, shift) for i in range(steps, -1, -1)])


_UNIFORM = functools.partial(uniform, steps=50)


def shift(schedule: Schedule, *, inner: Grid = _UNIFORM, by: float = 3.0) -> Times:
    """The times of another grid, each moved by `shifted`; on the table's entries where there is a table."""
    _check_shift(by)
    return _on_entries(schedule, [shifted(t, by) for t in inner(schedule)])


def shifted(t: float, by: float) -> float:
    """t' = s t / (1 + (s - 1) t): sigma/alpha of the straight path times s (SD3, eq. 23); 0 and 1 stay, 1 is off."""
    return by * t / (1 + (by - 1) * t)


def area_shift(pixels: int, trained: int) -> float:
    """The shift for pictures of another area than those trained on: sqrt(pixels / trained) (SD3, eq. 23)."""
    if min(pixels, trained) < 1:
        raise ValueError(f"areas of {pixels} and {trained} pixels; expected positive numbers")
    return math.sqrt(pixels / trained)


def resolution_shift(tokens: int, *, few: int = 256, many: int = 4096, low: float = 0.5, high: float = 1.15) -> float:
    """FLUX's shift for so many picture tokens: exp(mu), where mu is linear from `low` at `few` to `high` at `many`.

    `tokens` is height times width of the latent, over the patch's area.
    """
    if tokens < 1 or few >= many:
        raise ValueError(f"{tokens} tokens between {few} and {many}; expected at least one, and few < many")
    return math.exp(low + (high - low) * (tokens - few) / (many - few))


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
    stride = T - (T - T / steps)  # as numpy's arange has it, down to the last bit, which decides between two entries
    return _ended([round(T - i * stride) / T for i in range(steps)], end)


def linspace(schedule: Schedule, *, steps: int = 50, end: float = 0.0) -> Times:
    """diffusers' "linspace" spacing: from the table's last entry to its first, rounded; then to `end`."""
    T = _table(schedule, "linspace")
    _check(steps, T)
    if steps < 2:
        raise ValueError("steps = 1; linspace visits the table's last and first entry, so expected at least 2")
    stride = (T - 1) / (steps - 1)  # as numpy multiplies it, whose halves it rounds
    return _ended([(round(i * stride) + 1) / T for i in range(steps - 1, -1, -1)], end)


def _ended(times: list[float], end: float) -> Times:
    if not 0 <= end < times[-1]:
        if end == times[-1] and len(times) > 1:  # the last visited time is the end itself
            return tuple(times)
        raise ValueError(f"end = {end}; expected 0 or a time before the last visited one, {times[-1]:g}")
    return (*times, end)


def _levels(schedule: Schedule, sigma_min: float | None, sigma_max: float | None) -> tuple[float, float]:
    """The lowest and highest sigma/alpha of a grid: those of the schedule where none is given.

    Raises ValueError for levels that the schedule does not have: they would be the schedule's own without a word.
    """
    smallest, largest = (math.exp(-schedule.logsnr(t) / 2) for t in (schedule.t_min, schedule.t_max))
    for name, level in (("sigma_min", sigma_min), ("sigma_max", sigma_max)):
        if level is not None and not smallest * (1 - 1e-6) <= level <= largest * (1 + 1e-6):
            raise ValueError(
                f"{name} = {level:g}; the schedule's sigma/alpha goes from {smallest:g} to {largest:g}, and a level "
                f"beyond is never reached: expected one between, or no {name} for the schedule's own"
            )
    low = smallest if sigma_min is None else max(sigma_min, smallest)
    high = largest if sigma_max is None else min(sigma_max, largest)
    if not low < high:
        raise ValueError(f"sigma_min {low:g} and sigma_max {high:g}; expected sigma_min < sigma_max")
    return low, high


def _at_levels(schedule: Schedule, levels: Sequence[float]) -> Times:
    times: list[float] = schedule.time(-2 * torch.tensor(levels, dtype=torch.float64, device="cpu").log()).tolist()
    return (*times, 0.0)


def _shares(steps: int) -> list[float]:
    return [i / max(steps - 1, 1) for i in range(steps)]


def karras(
    schedule: Schedule,
    *,
    steps: int = 18,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    rho: float = 7.0,
) -> Times:
    """EDM's grid: (sigma/alpha)^(1/rho) in equal strides from sigma_max to sigma_min, then 0 (Karras et al. 2022, 5).

    `sigma_max` None is the schedule's largest level, `sigma_min` None EDM's 0.002 or the schedule's smallest where that
    is larger. On a table levels fall between entries, where the log-SNR is interpolated.
    """
    _check(steps)
    if not rho > 0:
        raise ValueError(f"rho = {rho}; expected a positive exponent, 7 for EDM's")
    smallest, largest = (math.exp(-schedule.logsnr(t) / 2) for t in (schedule.t_min, schedule.t_max))
    if sigma_min is None and smallest < 0.002 < largest:
        sigma_min = 0.002
    low, high = (level ** (1 / rho) for level in _levels(schedule, sigma_min, sigma_max))
    return _at_levels(schedule, [(high + share * (low - high)) ** rho for share in _shares(steps)])


def exponential(
    schedule: Schedule, *, steps: int = 18, sigma_min: float | None = None, sigma_max: float | None = None
) -> Times:
    """log(sigma/alpha) in equal strides from `sigma_max` to `sigma_min` (the schedule's own unless given), then 0."""
    _check(steps)
    low, high = _levels(schedule, sigma_min, sigma_max)
    return _at_levels(schedule, [high ** (1 - share) * low**share for share in _shares(steps)])


def uniform_logsnr(schedule: Schedule, *, steps: int = 20, start: float | None = None, end: float = 0.0) -> Times:
    """Equal strides of the log-SNR from time `start` (t_max unless given) to `end` (DPM-Solver's "logSNR" spacing).

    Where `end` is 0, whose log-SNR is infinite, they go to t_min, and a last stride to 0.
    """
    _check(steps)
    first = schedule.t_max if start is None else start
    last = schedule.t_min if end == 0 else end
    if not schedule.t_min <= last < first <= schedule.t_max:
        raise ValueError(
            f"start = {first:g} and end = {end:g}; expected {schedule.t_min:g} <= end < start <= {schedule.t_max:g}, "
            "or end 0"
        )
    shares = _shares(steps if end == 0 else steps + 1)
    low, high = schedule.logsnr(first), schedule.logsnr(last)
    between = torch.tensor([low + share * (high - low) for share in shares[1:-1]], dtype=torch.float64, device="cpu")
    times = (first, *schedule.time(between).tolist(), last)[: len(shares)]
    return (*times, 0.0) if end == 0 else times


def beta(schedule: Schedule, *, steps: int = 50, alpha: float = 0.6, beta: float = 0.6) -> Times:
    """Quantiles of a Beta(alpha, beta) distribution of t, dense where it is (Lee et al. 2024): 1 is the uniform grid.

    On the table's entries where there is a table.
    """
    _check(steps, schedule.steps if isinstance(schedule, Tabulated) else None)
    return _on_entries(schedule, [beta_quantile(i / steps, alpha, beta) for i in range(steps, -1, -1)])


def given(schedule: Schedule, *, values: tuple[float, ...] = (1.0, 0.0)) -> Times:
    """A list of one's own, strictly decreasing in [0, 1]."""
    if len(values) < 2 or any(a <= b for a, b in pairwise(values)) or values[0] > 1 or values[-1] < 0:
        raise ValueError(
            f"times {values}; expected at least two, strictly decreasing, from 1 at the most to 0 at the least"
        )
    return tuple(values)
