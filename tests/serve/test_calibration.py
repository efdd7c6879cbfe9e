"""How many rows a call should have, on networks whose times are known."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from carrara.run import signature
from carrara.serve import Calibrated, calibrate
from carrara.serve.calibration import Measured, best
from carrara.types import Ask, Round, Rounds


class Clocked:
    """A network that takes as long as it is told to for its rows."""

    def __init__(self, seconds: Callable[[int], float]) -> None:
        self.now, self.seconds = 0.0, seconds

    def clock(self) -> float:
        return self.now

    def __call__(self, x: Tensor) -> Tensor:
        self.now += self.seconds(len(x))
        return x


def request(network: Clocked, rounds: int = 3) -> Rounds:
    x = torch.zeros(2, 3)
    for _ in range(rounds):
        ((x,),) = yield Round((Ask(network, (x,)),))
    return x


@pytest.mark.parametrize(
    "seconds, rows",
    [
        (lambda n: 0.01 * n, 1),  # nothing is gained
        (lambda n: 0.01, 64),  # all of it
        (lambda n: 0.01 * max(1, n / 8), 8),  # a machine that eight rows fill
        (lambda n: 0.01 + 0.002 * n, 32),
    ],
)
def test_rows_are_doubled_while_it_pays(seconds: Callable[[int], float], rows: int) -> None:
    network = Clocked(seconds)
    (measured,) = calibrate(request(network), clock=network.clock).values()
    assert best(measured) == rows
    assert all(one.seconds == pytest.approx(seconds(one.rows)) for one in measured)


def test_a_call_does_not_last_long() -> None:
    network = Clocked(lambda n: 0.3 * n**0.5)
    (measured,) = calibrate(request(network), clock=network.clock, longest=0.5).values()
    assert [one.rows for one in measured] == [1, 2, 4]


def test_the_end_of_memory_is_an_end() -> None:
    def seconds(rows: int) -> float:
        if rows > 4:
            raise RuntimeError("not enough memory")
        return 0.01

    network = Clocked(seconds)
    (measured,) = calibrate(request(network), clock=network.clock).values()
    assert measured[-1].rows == best(measured) == 4


def test_sizes_by_network() -> None:
    network, other = Clocked(lambda n: 1.0), Clocked(lambda n: 1.0)
    ask, wide = Ask(network, (torch.zeros(1, 3),)), Ask(network, (torch.zeros(1, 9),))
    sizes = Calibrated({signature(ask): 8}, default=3)
    assert [sizes.most(one) for one in (ask, wide, Ask(other, (torch.zeros(1, 3),)))] == [8, 3, 3]
    sizes.lower(ask, 8)
    assert sizes.most(ask) == 4 and sizes.most(wide) == 3
    assert best([Measured(1, 1.0)]) == 1
