"""Figures by name, with what is known of each: between which numbers it lies, on what it stands, why it is missing."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from carrara.errors import CarraraError
from carrara.evaluate.distances import Interval, repeated

__all__ = ["Figures", "share_interval"]

_NORMAL = 1.959964  # 95 % of a normal distribution lie within so many standard deviations


def share_interval(share: float, n: int) -> Interval:
    """Of a share of n independent cases, Wilson's score interval (1927): it stays in [0, 1] and fits few cases."""
    z = _NORMAL**2 / n
    middle = (share + z / 2) / (1 + z)
    half = _NORMAL * math.sqrt(share * (1 - share) / n + z / (4 * n)) / (1 + z)
    return Interval(share, max(0.0, middle - half), min(1.0, middle + half))


class Figures:
    """The figures of one model, filled one by one."""

    def __init__(self) -> None:
        self.values: dict[str, float] = {}
        self.intervals: dict[str, list[float]] = {}
        self.marks: dict[str, str] = {}
        self.missing: dict[str, str] = {}

    def add(self, name: str, values: Sequence[float], interval: Interval | None = None) -> None:
        """The mean of repeats, with their interval, or the one that is known of a single one."""
        self.values[name] = math.fsum(values) / len(values)
        if found := repeated(values) or interval:
            self.intervals[name] = [found.low, found.high]

    def share(self, name: str, values: Sequence[float], n: int) -> None:
        """Adds shares of n cases each: their mean, with the interval of a share of all cases."""
        self.values[name] = mean = math.fsum(values) / len(values)
        self.intervals[name] = list(share_interval(mean, n * len(values))[1:])

    def attempt(self, name: str, work: Callable[[], float | Sequence[float]]) -> None:
        """Adds what `work` finds, or the reason why it finds nothing."""
        try:
            found = work()
        except (CarraraError, ValueError) as error:
            self.missing[name] = str(error)
            return
        self.add(name, [found] if isinstance(found, int | float) else found)
