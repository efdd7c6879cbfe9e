"""How many rows a call of a network should have: as many as make it fast, and no more.

Rows are doubled until a call of twice as many brings less than a tenth more rows a second, or lasts too long for those
who wait for the next one. What is measured is the network of a request's own asks, with copies of its rows.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from carrara.errors import is_out_of_memory
from carrara.run import call, cut, signature
from carrara.types import Ask, Rounds

__all__ = ["Calibrated", "Measured", "best", "calibrate"]


class Measured(NamedTuple):
    """A call of so many rows lasts so long, in seconds: the median of the repeats."""

    rows: int
    seconds: float


class Calibrated:
    """Rows of a call by network, as they were measured; `default` for those that were not."""

    def __init__(self, most: dict[Any, int], default: int = 16) -> None:
        self._most, self._default = dict(most), default

    def most(self, ask: Ask) -> int:
        """Rows of one call with asks like this."""
        found: int = self._most.get(signature(ask), self._default)
        return found

    def lower(self, ask: Ask, rows: int) -> None:
        """So many were too many: half of them from here on."""
        self._most[signature(ask)] = max(1, rows // 2)


def calibrate(
    rounds: Rounds,
    *,
    most: int = 64,
    longest: float = 1.0,
    gain: float = 1.1,
    repeats: int = 3,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[Any, list[Measured]]:
    """The measured calls of each network that a request asks, from one row on; the request is answered on the way.

    A network is measured at its first ask, once with every shape, up to `most` rows and calls of `longest` seconds.
    """
    found: dict[Any, list[Measured]] = {}
    try:
        asked = next(rounds)
        while True:
            for ask in asked.asks:
                if ask.state is None and (key := signature(ask)) not in found:
                    found[key] = _measured(ask, most, longest, gain, repeats, clock)
            asked = rounds.send([call([ask])[0] for ask in asked.asks])
    except StopIteration:
        return found
    finally:
        rounds.close()


def best(measured: Sequence[Measured], gain: float = 1.1) -> int:
    """The least rows beyond which twice as many bring less than `gain` times the rows a second."""
    chosen = measured[0]
    for one in measured[1:]:
        if one.rows / one.seconds < gain * chosen.rows / chosen.seconds:
            break
        chosen = one
    return chosen.rows


def _measured(
    ask: Ask, most: int, longest: float, gain: float, repeats: int, clock: Callable[[], float]
) -> list[Measured]:
    row = ask._replace(rows=tuple(cut(one, 0, 1) for one in ask.rows))
    found: list[Measured] = []
    rows = 1
    while rows <= most:
        try:
            seconds = sorted(_timed([row] * rows, clock) for _ in range(repeats))[repeats // 2]
        except Exception as error:
            if found and is_out_of_memory(error):
                break
            raise
        found.append(Measured(rows, seconds))
        if seconds > longest or best(found, gain) != rows:
            break
        rows *= 2
    return found


def _timed(asks: list[Ask], clock: Callable[[], float]) -> float:
    began = clock()
    call(asks)
    return max(clock() - began, 1e-9)
