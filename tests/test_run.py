"""Requests as coroutines: the first driver, and a toy of the second, which answers many requests in shared calls."""

from __future__ import annotations

import functools
import gc
import weakref
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from carrara.diffusion import (
    ClassifierFree,
    Denoiser,
    Flow,
    Linear,
    Process,
    ScaledTime,
    ddim,
    dpmpp_2m,
    guide,
    heun,
    uniform,
)
from carrara.rng import Rng
from carrara.run import answer, finish, run
from carrara.types import Ask, Condition, Round, Rounds, Step


class Elementwise(nn.Module):
    """A network of plain arithmetic, so that a row's bits do not depend on the rows beside it; counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[int] = []

    def forward(self, x: Tensor, level: Tensor, condition: Condition) -> Tensor:
        self.rows.append(len(x))
        assert condition.tokens is not None and condition.mask is not None
        told = (condition.tokens * condition.mask[..., None]).sum(1)  # padding counts for nothing
        wave = x * (told[:, :1, None, None] + level.double().view(-1, 1, 1, 1) / 1000)
        return wave / (1 + wave * wave) - x / 2


def tokens(rows: int, length: int, seed: int) -> Condition:
    # eighths: sums of them are exact in any order, and so with any padding
    values = torch.randint(-8, 8, (rows, length, 3), generator=torch.Generator().manual_seed(seed)).double() / 8
    return Condition(tokens=values, mask=torch.ones(rows, length, dtype=torch.bool))


def request(
    denoiser: Denoiser, sampler: Any, steps: int, scale: float, seeds: Sequence[int], *, length: int, size: int = 4
) -> Rounds:
    """A guided sampling under a condition of its own length, and a null condition of length 1."""
    rng = Rng.seeds(seeds)
    x = rng.fork("prior").normal((2, size, size)).double()
    times = uniform(denoiser.process.schedule, steps=steps)
    sampling = sampler(denoiser.process, x, times, rng=rng.fork("steps"))
    condition, null = tokens(len(seeds), length, seeds[0]), tokens(len(seeds), 1, 0)
    return guide(sampling, ClassifierFree(scale), denoiser, condition, null)


class Engine:
    """The second driver, a toy: holds requests at different steps and answers all their open asks together."""

    def __init__(self, requests: dict[str, Rounds]) -> None:
        self.open = dict(requests)
        self.asked: dict[str, Round] = {}
        self.results: dict[str, Any] = {}
        self.steps: dict[str, list[Step]] = {name: [] for name in requests}
        self.rounds = 0
        for name in requests:
            self._advance(name, None)

    def _advance(self, name: str, answers: Any) -> None:
        try:
            self.asked[name] = self.open[name].send(answers)
        except StopIteration as finished:
            self.results[name] = finished.value
            del self.open[name], self.asked[name]
            return
        if (step := self.asked[name].step) is not None:
            self.steps[name].append(step)

    def tick(self) -> None:
        """One round: every request's asks in as few calls as possible, and to each its own rows."""
        asked = dict(self.asked)
        answers = iter(answer([ask for each in asked.values() for ask in each.asks]))
        self.rounds += any(each.asks for each in asked.values())
        for name, each in asked.items():
            self._advance(name, [next(answers) for _ in each.asks])

    def stop(self, name: str) -> None:
        self.open.pop(name).close()
        del self.asked[name]


def new_denoiser() -> Denoiser:
    return Denoiser(Elementwise(), Process(Linear()), Flow(), ScaledTime())


def requests(denoiser: Denoiser) -> dict[str, Rounds]:
    return {
        "guided ddim": request(denoiser, functools.partial(ddim, eta=0.5), 10, 3.0, [5, 6], length=4),
        "heun": request(denoiser, heun, 7, 1.0, [0], length=2),
        "dpmpp_2m": request(denoiser, dpmpp_2m, 25, 1.5, [7, 8, 9], length=7),
    }


EVALUATIONS = {"guided ddim": 10, "heun": 13, "dpmpp_2m": 25}
STRIDES = {"guided ddim": 10, "heun": 7, "dpmpp_2m": 25}


def test_many_requests_share_their_calls() -> None:
    """Other samplers, step counts, scales and batch sizes: as many calls as the longest has rounds, and equal bits."""
    denoiser = new_denoiser()
    alone = {name: finish(rounds) for name, rounds in requests(denoiser).items()}
    assert len(denoiser.network.rows) == sum(EVALUATIONS.values())

    denoiser.network.rows.clear()
    engine = Engine(requests(denoiser))
    while engine.open:
        engine.tick()
    assert len(denoiser.network.rows) == engine.rounds == max(EVALUATIONS.values())
    assert denoiser.network.rows[0] == 2 * 2 + 1 + 2 * 3  # condition and null of two, and one unguided
    for name, expected in alone.items():
        assert expected.dtype == torch.float64 and expected.std() > 0.1
        assert torch.equal(engine.results[name], expected), name
        assert len(engine.steps[name]) == STRIDES[name]


def test_a_request_may_come_and_go_at_any_time() -> None:
    denoiser = new_denoiser()
    alone = {name: finish(rounds) for name, rounds in requests(denoiser).items()}
    late = requests(denoiser)
    engine = Engine({"dpmpp_2m": late.pop("dpmpp_2m"), "heun": late.pop("heun")})
    for _ in range(5):
        engine.tick()
    engine.stop("heun")
    newcomer = Engine(late)
    engine.open.update(newcomer.open)
    engine.asked.update(newcomer.asked)
    engine.steps.update(newcomer.steps)
    while engine.open:
        engine.tick()
    assert set(engine.results) == {"dpmpp_2m", "guided ddim"}
    for name, result in engine.results.items():
        assert torch.equal(result, alone[name])


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


def test_requests_of_different_sizes_go_side_by_side() -> None:
    denoiser = new_denoiser()

    def both() -> dict[str, Rounds]:
        return {
            "small": request(denoiser, ddim, 4, 2.0, [1], length=2, size=2),
            "large": request(denoiser, ddim, 4, 2.0, [1], length=2, size=4),
        }

    alone = {name: finish(rounds) for name, rounds in both().items()}
    denoiser.network.rows.clear()
    engine = Engine(both())
    while engine.open:
        engine.tick()
    assert denoiser.network.rows == [2] * 8
    assert all(torch.equal(engine.results[name], alone[name]) for name in alone)
