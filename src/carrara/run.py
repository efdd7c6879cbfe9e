"""The first driver: answers one request, all the asks of a round in as few network calls as possible.

`call` is what every driver shares: it stacks the rows of asks that go to one network with rows of one shape, calls it
once, and cuts the results apart again. The serving engine is the other driver.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any

import torch
from torch import Tensor

from carrara.types import Ask, Condition, Round, Rounds, Step

__all__ = ["answer", "call", "cut", "finish", "length", "run", "signature"]


def run(rounds: Rounds) -> Generator[Step, None, Any]:
    """Drives a request: yields each finished Step and returns the request's result. Stop it early by `close()`."""
    try:
        asked: Round = next(rounds)
        while True:
            if asked.step is not None:
                yield asked.step
            asked = rounds.send(answer(asked.asks))
    except StopIteration as finished:
        return finished.value
    finally:
        rounds.close()


def finish(rounds: Rounds) -> Any:
    """Drives a request to its end and returns its result."""
    steps = run(rounds)
    while True:
        try:
            next(steps)
        except StopIteration as finished:
            return finished.value


def answer(asks: Sequence[Ask]) -> list[tuple[Any, ...]]:
    """One tuple of results an ask, in order; asks for one network with rows of one shape share a call."""
    if len(asks) == 1:
        return call(asks)
    groups: dict[Any, list[int]] = {}
    for number, ask in enumerate(asks):
        groups.setdefault((number,) if ask.state is not None else signature(ask), []).append(number)
    answers: list[tuple[Any, ...]] = [()] * len(asks)
    for numbers in groups.values():
        for number, results in zip(numbers, call([asks[number] for number in numbers]), strict=True):
            answers[number] = results
    return answers


def call(asks: Sequence[Ask]) -> list[tuple[Any, ...]]:
    """One tuple of results an ask, of one call of their network; asks that share it have one signature."""
    rows = [_stack(column) for column in zip(*(ask.rows for ask in asks), strict=True)]
    network, state = asks[0].network, asks[0].state
    with torch.no_grad():
        found = network(*rows) if state is None else network(*rows, state)
    results = found if isinstance(found, tuple) else (found,)
    if len(asks) == 1 and length(asks[0]):
        return [results]
    answers: list[tuple[Any, ...]] = []
    start = 0
    for ask in asks:
        end = start + length(ask)
        answers.append(tuple(cut(result, start, end) for result in results))
        start = end
    return answers


def signature(ask: Ask, *, padded: bool = True) -> tuple[Any, ...]:
    """What must agree for asks to share a call: the network, and everything of the rows but the batch.

    The length of a sequence of tokens is left out too, as the shorter ones are padded, unless `padded` is false.
    """
    return (ask.network, *(_shapes(row, padded) for row in ask.rows))


def _shapes(row: Tensor | Condition | None, padded: bool) -> Any:
    if row is None:
        return None
    if isinstance(row, Tensor):
        return _kept(row, 1)
    parts: list[Any] = []
    for name in ("tokens", "vector", "image"):
        value = getattr(row, name)
        parts.append(None if value is None else _kept(value, 2 if padded and name == "tokens" else 1))
    for mapping in (row.numbers, row.controls, row.adapters):
        parts.append(tuple((name, _kept(value, 1)) for name, value in sorted(mapping.items())))
    return (*parts, padded or row.mask is None)


def _kept(value: Tensor, axis: int) -> tuple[Any, ...]:
    """What stacking must not change: the shape from `axis` on, the type and the device."""
    return (tuple(value.shape[axis:]), value.dtype, value.device)


def _stack(column: Sequence[Any]) -> Any:
    if len(column) == 1 or column[0] is None:
        return column[0]
    return torch.cat(list(column)) if isinstance(column[0], Tensor) else Condition.stack(column)


def length(ask: Ask) -> int:
    """How many rows an ask has."""
    for row in ask.rows:
        if isinstance(row, Tensor):
            return row.shape[0]
    raise ValueError("an ask needs at least one tensor among its rows, which says how many rows there are")


def cut(result: Any, start: int, end: int) -> Any:
    """Some of the rows of a tensor, a condition or nothing."""
    if result is None:
        return None
    return result.rows(slice(start, end)) if isinstance(result, Condition) else result[start:end]
