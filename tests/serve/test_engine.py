"""Many requests in shared calls: what each comes to, who is served when, and what fails with whom."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from carrara.diffusion import (
    ClassifierFree,
    Editing,
    SamplingSettings,
    ancestral,
    ddim,
    dpmpp_2m,
    heun,
    uniform,
)
from carrara.run import finish
from carrara.serve import Call, Cancelled, Engine, KnownPrompts, Late, Ticket, Uniform
from carrara.types import Ask, Request, Round, Rounds, Step
from test_system import TOLERANCE, make
from toy_requests import EVALUATIONS, STRIDES, new_denoiser, request, requests


def ended(engine: Engine) -> Engine:
    """The engine after all of its turns."""
    while engine.turn():
        pass
    assert len(engine) == 0 and engine.waiting == 0
    return engine


def test_many_requests_share_their_calls() -> None:
    """Other samplers, step counts, scales and batch sizes: as many calls as the longest has rounds, and equal bits."""
    denoiser = new_denoiser()
    alone = {name: finish(rounds) for name, rounds in requests(denoiser).items()}
    assert len(denoiser.network.rows) == sum(EVALUATIONS.values())

    denoiser.network.rows.clear()
    engine = Engine()
    steps: dict[str, list[Step]] = {name: [] for name in alone}
    tickets = {name: engine.add(rounds, on_step=steps[name].append) for name, rounds in requests(denoiser).items()}
    ended(engine)
    assert len(denoiser.network.rows) == max(EVALUATIONS.values())
    assert denoiser.network.rows[0] == 2 * 2 + 1 + 2 * 3  # condition and null of two, and one unguided
    for name, expected in alone.items():
        assert expected.dtype == torch.float64 and expected.std() > 0.1
        assert torch.equal(tickets[name].result(), expected), name
        assert len(steps[name]) == STRIDES[name]


def test_a_request_may_come_and_go_at_any_time() -> None:
    denoiser = new_denoiser()
    alone = {name: finish(rounds) for name, rounds in requests(denoiser).items()}
    late = requests(denoiser)
    engine = Engine()
    first = {name: engine.add(late.pop(name)) for name in ("dpmpp_2m", "heun")}
    for _ in range(5):
        engine.turn()
    engine.cancel(first["heun"])
    with pytest.raises(Cancelled):
        first["heun"].result()
    with pytest.raises(ValueError, match="not done"):
        first["dpmpp_2m"].result()
    first |= {name: engine.add(rounds) for name, rounds in late.items()}
    ended(engine)
    for name in ("dpmpp_2m", "guided ddim"):
        assert torch.equal(first[name].result(), alone[name])
    engine.cancel(first["dpmpp_2m"])  # done: it stays as it is
    assert first["dpmpp_2m"].result() is not None


def test_requests_of_different_sizes_go_side_by_side() -> None:
    denoiser = new_denoiser()

    def both() -> dict[str, Rounds]:
        return {
            "small": request(denoiser, ddim, 4, 2.0, [1], length=2, size=2),
            "large": request(denoiser, ddim, 4, 2.0, [1], length=2, size=4),
        }

    alone = {name: finish(rounds) for name, rounds in both().items()}
    denoiser.network.rows.clear()
    engine = Engine()
    tickets = {name: engine.add(rounds) for name, rounds in both().items()}
    ended(engine)
    assert denoiser.network.rows == [2] * 8
    assert all(torch.equal(tickets[name].result(), alone[name]) for name in alone)


@pytest.mark.parametrize("most", [1, 2, 3, 5, 64])
def test_a_call_has_no_more_rows_than_it_may(most: int) -> None:
    """A request of many rows fills several calls, and comes to the same."""
    denoiser = new_denoiser()
    alone = {name: finish(rounds) for name, rounds in requests(denoiser).items()}
    denoiser.network.rows.clear()
    calls: list[Call] = []
    engine = Engine(Uniform(most), on_call=calls.append)
    tickets = {name: engine.add(rounds) for name, rounds in requests(denoiser).items()}
    ended(engine)
    assert max(denoiser.network.rows) == min(most, 11)
    assert [call.rows for call in calls] == denoiser.network.rows
    assert all(torch.equal(tickets[name].result(), alone[name]) for name in alone)
    with pytest.raises(ValueError, match="1 or more"):
        Uniform(0)


# --- whole systems, mixed --------------------------------------------------------------------------------------------


@functools.cache
def system() -> Any:
    return make()


SAMPLERS = {"ddim": ddim, "heun": heun, "dpmpp_2m": dpmpp_2m, "ancestral": ancestral}
mixtures = st.lists(
    st.fixed_dictionaries(
        {
            "prompts": st.lists(
                st.sampled_from(["red apple", "cat face", "", "a long red cat"]), min_size=1, max_size=3
            ),
            "seed": st.integers(0, 5),
            "sampler": st.sampled_from(sorted(SAMPLERS)),
            "steps": st.integers(2, 6),
            "scale": st.sampled_from([1.0, 2.0, 4.5]),
            "negative": st.booleans(),
            "edit": st.sampled_from(["", "image", "mask"]),
            "joins": st.integers(0, 8),
            "priority": st.integers(-1, 1),
        }
    ),
    min_size=2,
    max_size=5,
)


def asked(case: dict[str, Any]) -> Request:
    rows = len(case["prompts"])
    sampler = SAMPLERS[case["sampler"]]
    chosen = SamplingSettings(
        sampler, functools.partial(uniform, steps=case["steps"]), ClassifierFree(case["scale"]), Editing(strength=0.6)
    )
    inputs: dict[str, Tensor] = {}
    if case["edit"]:
        inputs["image"] = torch.linspace(-1, 1, 32).expand(rows, 3, 32, 32)
    if case["edit"] == "mask":
        inputs["mask"] = (torch.arange(32) < 16).float().expand(rows, 1, 32, 32)
    return Request(
        tuple(case["prompts"]),
        tuple(range(case["seed"], case["seed"] + rows)),
        ("red",) * rows if case["negative"] else None,
        inputs=inputs,
        settings=chosen,
    )


def mixed(cases: Sequence[dict[str, Any]], engine: Engine) -> list[Ticket]:
    """The requests in one engine, each joining after some turns."""
    tickets: dict[int, Ticket] = {}
    turns = 0
    while len(tickets) < len(cases) or len(engine):
        for number, case in enumerate(cases):
            if number not in tickets and case["joins"] <= turns:
                tickets[number] = engine.add(system().start(asked(case)), priority=case["priority"])
        engine.turn()
        turns += 1
    return [tickets[number] for number in range(len(cases))]


@settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(mixtures, st.sampled_from([2, 5, 16]))
def test_a_picture_does_not_depend_on_its_companions(cases: list[dict[str, Any]], most: int) -> None:
    tickets = mixed(cases, Engine(Uniform(most)))
    for case, ticket in zip(cases, tickets, strict=True):
        torch.testing.assert_close(ticket.result(), finish(system().start(asked(case))), rtol=0, atol=TOLERANCE)


@settings(max_examples=8, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(mixtures)
def test_with_fixed_calls_it_is_the_same_bit_by_bit(cases: list[dict[str, Any]]) -> None:
    tickets = mixed(cases, Engine(Uniform(4), fixed=True))
    for case, ticket in zip(cases, tickets, strict=True):
        engine = Engine(Uniform(4), fixed=True)
        alone = engine.add(system().start(asked(case)))
        ended(engine)
        assert torch.equal(ticket.result(), alone.result())


def test_fixed_calls_all_have_that_many_rows() -> None:
    denoiser = new_denoiser()
    engine = Engine(Uniform(4), fixed=True)
    tickets = {name: engine.add(rounds) for name, rounds in requests(denoiser).items()}
    ended(engine)
    assert set(denoiser.network.rows) == {4}
    denoiser.network.rows.clear()
    assert all(torch.equal(tickets[name].result(), finish(r)) for name, r in requests(denoiser).items())


# --- who is served when ----------------------------------------------------------------------------------------------


class Clock:
    """A second a call."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def rows(network: Callable[..., Any], rounds: int, count: int = 1, width: int = 1) -> Rounds:
    """A request that asks a network so many times."""
    x = torch.zeros(count, width)
    for _ in range(rounds):
        ((x,),) = yield Round((Ask(network, (x,)),))
    return x


def test_shapes_take_turns() -> None:
    """One small request beside many large ones gets every second call."""
    seen: list[int] = []

    def network(x: Tensor) -> Tensor:
        seen.append(x.shape[1])
        return x + 1

    engine = Engine(Uniform(2))
    for _ in range(8):
        engine.add(rows(network, 5, width=2))
    lone = engine.add(rows(network, 5, width=1))
    while not lone.done:
        engine.turn()
    assert len(seen) <= 2 * 5 and seen.count(1) == 5
    ended(engine)


def test_a_shape_that_changes_at_every_step_does_not_starve_others() -> None:
    seen: list[str] = []

    def first(x: Tensor) -> Tensor:
        seen.append("changing")
        return x

    def second(x: Tensor) -> Tensor:
        seen.append("changing")
        return x

    def steady(x: Tensor) -> Tensor:
        seen.append("steady")
        return x

    def changing() -> Rounds:
        x = torch.zeros(1, 1)
        for _ in range(10):
            ((x,),) = yield Round((Ask(first, (x,)),))
            ((x,),) = yield Round((Ask(second, (x,)),))
        return x

    def writing() -> Rounds:  # a cache of its own, which is never stacked
        x, cache = torch.zeros(1, 1), object()
        for _ in range(20):
            ((x,),) = yield Round((Ask(lambda x, state: x, (x,), cache),))
        return x

    for other in (changing, writing):
        seen.clear()
        engine = Engine()
        engine.add(other())
        ticket = engine.add(rows(steady, 6))
        turns = 0
        while not ticket.done:
            engine.turn()
            turns += 1
        assert turns <= 14
        ended(engine)


def test_the_first_come_are_served_first_when_a_call_is_full() -> None:
    clock = Clock()
    order: list[int] = []
    engine = Engine(Uniform(2), clock=clock)
    tickets = []
    for number in range(6):
        clock.now += 0.1
        tickets.append(engine.add(rows(lambda x: x, 3), on_end=lambda _, n=number: order.append(n)))
    ended(engine)
    assert order == [0, 1, 2, 3, 4, 5]


def test_priority_is_worth_some_waiting_and_no_more() -> None:
    """An urgent request goes first, and one that has waited long goes before later urgent ones."""
    clock = Clock()
    order: list[str] = []

    def network(x: Tensor) -> Tensor:
        clock.now += 1
        return x

    engine = Engine(Uniform(1), clock=clock)
    engine.add(rows(network, 2), on_end=lambda _: order.append("old"))
    engine.turn()
    for number in range(8):
        clock.now += 0.5
        engine.add(rows(network, 2), priority=1, on_end=lambda _, n=number: order.append(f"urgent {n}"))
    ended(engine)
    place = order.index("old")
    assert 0 < place < 5
    assert order[0] == "urgent 0"


def test_a_deadline_that_has_passed_ends_the_request() -> None:
    clock = Clock()

    def network(x: Tensor) -> Tensor:
        clock.now += 1
        return x

    engine = Engine(Uniform(1), clock=clock)
    late = engine.add(rows(network, 5), deadline=2.5)
    well = engine.add(rows(network, 5), deadline=50)
    ended(engine)
    with pytest.raises(Late):
        late.result()
    assert well.result() is not None


# --- what fails with whom --------------------------------------------------------------------------------------------


def failing(x: Tensor) -> Tensor:
    if (x < 0).any():
        raise ValueError("out of paint")
    return x + 1


def begun(value: float, network: Callable[..., Any] = failing) -> Rounds:
    x = torch.full((1, 1), value)
    for _ in range(3):
        ((x,),) = yield Round((Ask(network, (x,)),))
    return x


def test_who_is_to_blame_fails_alone() -> None:
    engine = Engine()
    good, bad, other = engine.add(begun(1)), engine.add(begun(-5)), engine.add(begun(2))
    ended(engine)
    assert float(good.result()) == 4 and float(other.result()) == 5
    with pytest.raises(ValueError, match="out of paint"):
        bad.result()


def test_what_a_request_raises_is_its_own() -> None:
    closed: list[str] = []

    def broken(when: int) -> Iterator[Any]:
        try:
            for step in range(3):
                if step == when:
                    raise ValueError(f"broken at {when}")
                yield Round((Ask(failing, (torch.zeros(1, 1),)),))
        finally:
            closed.append("yes")

    engine = Engine()
    tickets = [engine.add(broken(when)) for when in (0, 2)]  # type: ignore[arg-type]
    good = engine.add(begun(0))
    ended(engine)
    for ticket, when in zip(tickets, (0, 2), strict=True):
        with pytest.raises(ValueError, match=f"broken at {when}"):
            ticket.result()
    assert len(closed) == 2 and float(good.result()) == 3


def test_without_memory_for_a_call_it_is_made_in_halves() -> None:
    seen: list[int] = []

    def greedy(x: Tensor) -> Tensor:
        seen.append(len(x))
        if len(x) > 3:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes")
        return x + 1

    engine = Engine(Uniform(6))
    tickets = [engine.add(rows(greedy, 3, count=3)) for _ in range(2)]
    big = engine.add(rows(greedy, 2, count=6))
    ended(engine)
    assert [float(ticket.result().sum()) for ticket in tickets] == [9, 9] and float(big.result().sum()) == 12
    assert seen.count(6) == 1  # never tried again

    def hopeless(x: Tensor) -> Tensor:
        raise MemoryError

    engine = Engine(Uniform(6))
    ticket = engine.add(rows(hopeless, 3, count=3))
    ended(engine)
    with pytest.raises(MemoryError):
        ticket.result()


def test_closing_cancels_what_is_open() -> None:
    with Engine() as engine:
        ticket = engine.add(begun(0))
    with pytest.raises(Cancelled):
        ticket.result()
    assert not engine.turn()


# --- prompts that are known ------------------------------------------------------------------------------------------


def test_known_prompts_are_not_read_again() -> None:
    plain = system()
    text = KnownPrompts(plain.text)
    first = finish(text.start(["red apple", "", "red apple"]))
    expected = finish(plain.text.start(["red apple", "", "red apple"]))
    torch.testing.assert_close(first.tokens, expected.tokens)
    rounds = text.start(["", "red apple"])
    with pytest.raises(StopIteration) as found:
        next(rounds)
    assert torch.equal(found.value.value.vector, first.vector[[1, 0]])
    asked = next(text.start(["cat", "red apple"]))
    assert len(asked.asks[0].rows[0]) == 1
    assert text.space == plain.text.space


def test_what_is_remembered_is_bounded() -> None:
    text = KnownPrompts(system().text, capacity=1)
    finish(text.start(["red apple"]))
    assert len(next(text.start(["red apple"])).asks) == 1
