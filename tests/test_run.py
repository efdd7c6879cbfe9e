"""Requests as coroutines: the first driver, and the calls that requests share."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor

from carrara.diffusion import (
    ClassifierFree,
    Linear,
    ddim,
    guide,
    uniform,
)
from carrara.rng import Rng
from carrara.run import answer, finish, run
from carrara.types import Ask, Condition, Round, Step
from toy_requests import STRIDES, new_denoiser, requests, tokens


@pytest.mark.parametrize("name", STRIDES)
def test_every_stride_is_delivered(name: str) -> None:
    """The first driver yields one Step a stride, the last included, each with what was believed at its time."""
    denoiser = new_denoiser()
    steps: list[Step] = []
    stepping = run(requests(denoiser)[name])
    while True:
        try:
            steps.append(next(stepping))
        except StopIteration as finished:
            result = finished.value
            break
    assert [step.t for step in steps] == list(uniform(Linear(), steps=STRIDES[name])[:-1])
    assert torch.equal(result, finish(requests(denoiser)[name]))
    torch.testing.assert_close(result, steps[-1].estimate.mean)  # the last stride goes to what is believed


def test_close_stops_and_frees() -> None:
    denoiser = new_denoiser()
    ended = []

    def watched(x: Tensor) -> Any:
        try:
            return (yield from ddim(denoiser.process, x, uniform(Linear(), steps=50), rng=Rng.seeds([0])))
        finally:
            ended.append(True)

    x = torch.zeros(1, 2, 4, 4, dtype=torch.float64)
    kept = weakref.ref(x)
    rounds = guide(watched(x), ClassifierFree(), denoiser, tokens(1, 2, 0), tokens(1, 1, 0))
    stepping = run(rounds)
    for _ in range(3):
        next(stepping)
    calls = len(denoiser.network.rows)
    stepping.close()
    assert ended == [True]
    with pytest.raises(StopIteration):
        next(rounds)
    del x, rounds, stepping
    gc.collect()
    assert kept() is None
    assert len(denoiser.network.rows) == calls


def test_an_error_reaches_the_caller_and_closes_the_request() -> None:
    closed = []

    def rounds() -> Any:
        try:
            yield Round((Ask(broken, (torch.zeros(1),)),))
        finally:
            closed.append(True)

    def broken(x: Tensor) -> Tensor:
        raise ValueError("out of paint")

    with pytest.raises(ValueError, match="out of paint"):
        finish(rounds())
    assert closed == [True]


class Calls:
    """A network that only notes what it was given."""

    def __init__(self) -> None:
        self.given: list[tuple[Any, ...]] = []

    def __call__(self, *rows: Any) -> Any:
        self.given.append(rows)
        return rows[0] * 2, None

    def method(self, x: Tensor) -> Tensor:
        self.given.append((x,))
        return x + 1


def test_answers_are_cut_apart_in_order() -> None:
    network = Calls()
    x = torch.arange(6.0)
    answers = answer([Ask(network, (x[:1],)), Ask(network, (x[1:4],)), Ask(network, (x[4:],))])
    assert len(network.given) == 1
    assert [found[0].tolist() for found in answers] == [[0.0], [2.0, 4.0, 6.0], [8.0, 10.0]]
    assert all(found[1] is None for found in answers)
    assert answer([]) == []


def test_asks_with_a_state_are_never_stacked() -> None:
    network, caches = Calls(), [{}, {}]
    answers = answer([Ask(network, (torch.ones(2),), cache) for cache in caches])
    assert len(network.given) == 2
    assert [rows[1] for rows in network.given] == caches and network.given[0][1] is caches[0]
    assert [len(found[0]) for found in answers] == [2, 2]
    answer([Ask(network, (torch.ones(2),), {}), Ask(network, (torch.ones(2),)), Ask(network, (torch.ones(2),))])
    assert [len(rows) for rows in network.given[2:]] == [2, 1]


VECTOR, IMAGE = torch.zeros(1, 3), torch.zeros(1, 1, 2, 2)


@pytest.mark.parametrize(
    "a, b, calls",
    [
        (torch.zeros(1, 3), torch.zeros(2, 3), 1),
        (torch.zeros(1, 3), torch.zeros(1, 4), 2),
        (torch.zeros(1, 3), torch.zeros(1, 3).double(), 2),
        (torch.zeros(1, 3), torch.zeros(1, 3, device="meta"), 2),
        (None, None, 1),
        (None, Condition(), 2),
        (Condition(), Condition(vector=VECTOR), 2),
        (Condition(vector=VECTOR), Condition(vector=VECTOR + 1), 1),
        (Condition(vector=VECTOR), Condition(vector=VECTOR.double()), 2),
        (Condition(tokens=torch.zeros(1, 2, 3)), Condition(tokens=torch.zeros(1, 5, 3)), 1),
        (Condition(tokens=torch.zeros(1, 2, 3)), Condition(tokens=torch.zeros(1, 2, 4)), 2),
        (Condition(image=IMAGE), Condition(image=torch.zeros(1, 1, 4, 4)), 2),
        (Condition(numbers={"a": VECTOR[:, 0]}), Condition(numbers={"a": VECTOR[:, 0]}), 1),
        (Condition(numbers={"a": VECTOR[:, 0]}), Condition(numbers={"b": VECTOR[:, 0]}), 2),
        (Condition(numbers={"a": VECTOR[:, 0]}), Condition(numbers={"a": VECTOR[:, 0].double()}), 2),
        (Condition(controls={"a": IMAGE}), Condition(controls={"a": torch.zeros(1, 1, 4, 4)}), 2),
    ],
    ids=lambda value: "",
)
def test_what_is_stacked(a: Any, b: Any, calls: int) -> None:
    network = Calls()

    def ask(row: Any) -> Ask:
        return Ask(network, (torch.zeros(row.shape[0] if isinstance(row, Tensor) else 1, 1), row))

    answer([ask(a), ask(b)])
    assert len(network.given) == calls


def test_different_networks_are_not_stacked_and_one_method_is() -> None:
    one, other, x = Calls(), Calls(), torch.zeros(1)
    answer([Ask(one, (x,)), Ask(other, (x,))])
    assert len(one.given) == len(other.given) == 1
    answer([Ask(one.method, (x,)), Ask(one.method, (x,))])
    assert len(one.given) == 2
    with pytest.raises(ValueError, match="at least one tensor"):
        answer([Ask(lambda nothing: nothing, (None,))])


def test_no_gradients_are_kept() -> None:
    weight = torch.ones(1, requires_grad=True)
    (found,) = answer([Ask(lambda x: x * weight, (torch.ones(2),))])
    assert not found[0].requires_grad
