r"""Grids as foreign schedulers lay them; what they share with others is in `carrara.diffusion.times`.

    straight                               equal strides of t between two times, not rounded
    *_open                                 one time more is laid, and the one nearest to the data left out
    consistency                            every so many of the times that a consistency model was distilled at
    karras_levels, exponential_levels,     as many levels of noise as another grid has, between its first and its last
    beta_levels
    stretched, begun                       another grid, brought to end or begin elsewhere

`end` is where the sampler stops: 0, 1/T for those that stop at the table's first entry, None for those that stop at the
last time they ask at.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

from carrara.diffusion.process import Process
from carrara.diffusion.quantile import beta_quantile
from carrara.diffusion.sampler import Coordinate, Path, alpha_coordinate
from carrara.diffusion.schedule import Schedule, Tabulated
from carrara.diffusion.times import Grid, Times

__all__ = ["begun", "beta_levels", "consistency", "exponential_levels", "karras_levels", "leading_open",
           "linspace_open", "straight", "straight_open", "stretched"]  # fmt: skip


def _entries(schedule: Schedule, entries: int | None) -> tuple[int, int]:
    """T, and how many of the entries may be visited, those nearest to the data."""
    if not isinstance(schedule, Tabulated):
        raise ValueError(f"these times count the steps of a table, and {type(schedule).__name__} has none")
    if entries is not None and not 1 <= entries <= schedule.steps:
        raise ValueError(f"entries = {entries}; the table has 1 to {schedule.steps}")
    return schedule.steps, schedule.steps if entries is None else entries


def _check(steps: int, most: float = math.inf) -> None:
    if not 1 <= steps <= most:
        raise ValueError(f"steps = {steps}; expected " + (f"1 to {most:g}" if most < math.inf else "at least 1"))


def _ended(times: Sequence[float], end: float | None) -> Times:
    if end is None or end == times[-1]:
        if len(times) < 2:
            raise ValueError(f"a grid that begins and stops at t = {times[0]:g}; use more steps")
        return tuple(times)
    if not 0 <= end < times[-1]:
        raise ValueError(f"end = {end}; expected 0 or a time before the last visited one, {times[-1]:g}")
    return (*times, end)


def straight(
    schedule: Schedule, *, steps: int = 50, first: float = 1.0, last: float | None = None, end: float | None = 0.0
) -> Times:
    """`steps` times in equal strides from `first` to `last`, then `end`; between the entries where there is a table.

    `last` None is first / steps, whose strides to 0 are all equal.
    """
    return _ended(_between(steps, steps - 1, first, first / max(steps, 1) if last is None else last), end)


def straight_open(
    schedule: Schedule, *, steps: int = 50, first: float = 1.0, last: float = 0.001, end: float | None = 0.0
) -> Times:
    """The same, of steps + 1 times of which `last` is left out."""
    return _ended(_between(steps, steps, first, last), end)


def _between(steps: int, strides: int, first: float, last: float) -> list[float]:
    _check(steps)
    if not 0 < last <= first <= 1:
        raise ValueError(f"times from {first} to {last}; expected 1 >= first >= last > 0")
    return [last if i == strides > 0 else first + i / max(strides, 1) * (last - first) for i in range(steps)]


def linspace_open(schedule: Schedule, *, steps: int = 50, entries: int | None = None, end: float | None = 0.0) -> Times:
    """steps + 1 entries in equal strides, rounded, from the last to the first, which is left out; then `end`.

    `entries` None is all of the table; fewer leave out as many of the noisiest.
    """
    T, most = _entries(schedule, entries)
    _check(steps, most - 1)
    stride = (most - 1) / steps
    return _ended([(round(i * stride) + 1) / T for i in range(steps, 0, -1)], end)


def leading_open(
    schedule: Schedule, *, steps: int = 50, offset: int = 0, entries: int | None = None, end: float | None = 0.0
) -> Times:
    """Table steps k, 2k, ... steps k with k = T // (steps + 1), plus `offset`; then `end`. `entries` as above."""
    T, most = _entries(schedule, entries)
    _check(steps, most - 1)
    times = [(i * (most // (steps + 1)) + offset + 1) / T for i in range(steps, 0, -1)]
    if times[0] > 1:
        raise ValueError(f"offset = {offset} moves the first of {steps} steps beyond the table's end; expected 0 or 1")
    return _ended(times, end)


def consistency(schedule: Schedule, *, steps: int = 4, original: int = 50) -> Times:
    """`steps` of the times T, T - k, T - 2k, ... (of T) that an LCM was distilled at, k = T // `original`; then 0."""
    T, _ = _entries(schedule, None)
    _check(original, T)
    _check(steps, original)
    return (*((original - math.floor(i * (original / steps))) * (T // original) / T for i in range(steps)), 0.0)


def karras_levels(
    schedule: Schedule,
    *,
    inner: Grid = functools.partial(straight),  # noqa: B008 - not changed by anybody
    rho: float = 7.0,
    coordinate: Coordinate = alpha_coordinate,
    end: float | None = 0.0,
) -> Times:
    """u^(1/rho) in equal strides, u = sigma / c; as many as `inner` has, from its first time to its last before 0."""
    if not rho > 0:
        raise ValueError(f"rho = {rho}; expected a positive exponent, 7 for EDM's")

    def level(high: float, low: float, share: float) -> float:
        return float((high ** (1 / rho) + share * (low ** (1 / rho) - high ** (1 / rho))) ** rho)

    return _spread(schedule, inner, coordinate, end, level)


def exponential_levels(
    schedule: Schedule,
    *,
    inner: Grid = functools.partial(straight),  # noqa: B008
    coordinate: Coordinate = alpha_coordinate,
    end: float | None = 0.0,
) -> Times:
    """log u in equal strides, where `karras_levels` has its root."""

    def level(high: float, low: float, share: float) -> float:
        return float(high * (low / high) ** share)

    return _spread(schedule, inner, coordinate, end, level)


def beta_levels(
    schedule: Schedule,
    *,
    inner: Grid = functools.partial(straight),  # noqa: B008
    alpha: float = 0.6,
    beta: float = 0.6,
    coordinate: Coordinate = alpha_coordinate,
    end: float | None = 0.0,
) -> Times:
    """Quantiles of a Beta(alpha, beta) distribution of u itself (`times.beta` has those of t)."""

    def level(high: float, low: float, share: float) -> float:
        return low + beta_quantile(1 - share, alpha, beta) * (high - low)

    return _spread(schedule, inner, coordinate, end, level)


def _spread(
    schedule: Schedule,
    inner: Grid,
    coordinate: Coordinate,
    end: float | None,
    level: Callable[[float, float, float], float],
) -> Times:
    path = Path(Process(schedule), coordinate)
    visited = [t for t in inner(schedule) if t > 0]
    if len(visited) == 1:
        return _ended(visited, end)
    high, low = path.at(visited[0])[1], path.at(visited[-1])[1]
    between = [path.time(level(high, low, i / (len(visited) - 1))) for i in range(1, len(visited) - 1)]
    return _ended([visited[0], *between, visited[-1]], end)


def stretched(schedule: Schedule, *, inner: Grid = functools.partial(straight), terminal: float = 0.1) -> Times:  # noqa: B008
    """Another grid, 1 - t stretched by so much that the last time before 0 is `terminal`."""
    if not 0 < terminal < 1:
        raise ValueError(f"terminal = {terminal}; expected a time between 0 and 1")
    times = inner(schedule)
    last = min(t for t in times if t > 0)
    if last == 1:
        raise ValueError("a grid of one step is at 1 and cannot be stretched to end elsewhere; use two steps or more")
    return tuple(1 - (1 - t) * (1 - terminal) / (1 - last) if t > 0 else t for t in times)


def begun(schedule: Schedule, *, inner: Grid = functools.partial(straight), by: float = 1e-6) -> Times:  # noqa: B008
    """Another grid, begun at 1 - `by` where it begins at 1: there the log-SNR is finite."""
    first, *rest = inner(schedule)
    return (first - by if abs(first - 1) < by else first, *rest)
