"""The first driver: answers one request, all the asks of a round in as few network calls as possible.

`answer` is what every driver shares: it stacks the rows of all asks that go to the same network with rows of the same
shape, calls each network once, and cuts the results apart again. The serving engine is the other driver.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Any

import torch
from torch import Tensor

from carrara.types import Ask, Condition, Round, Rounds, Step

__all__ = ["answer", "finish", "run"]


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
    groups: dict[Any, list[int]] = {}
    for number, ask in enumerate(asks):
        key = (number,) if ask.state is not None else (ask.network, *(_signature(row) for row in ask.rows))
        groups.setdefault(key, []).append(number)
    answers: list[tuple[Any, ...]] = [()] * len(asks)
    for numbers in groups.values():
        members = [asks[number] for number in numbers]
        rows = [_stack(column) for column in zip(*(ask.rows for ask in members), strict=True)]
        with torch.no_grad():
            results = _call(members[0].network, rows, members[0].state)
        start = 0
        for number, ask in zip(numbers, members, strict=True):
            end = start + _length(ask)
            answers[number] = tuple(_cut(result, start, end) for result in results)
            start = end
    return answers


def _call(network: Callable[..., Any], rows: list[Any], state: object) -> tuple[Any, ...]:
    results = network(*rows) if state is None else network(*rows, state)
    return results if isinstance(results, tuple) else (results,)


def _signature(row: Tensor | Condition | None) -> Any:
    """What must agree for rows to be stacked: everything but the batch, and but the length of padded sequences."""
    if row is None:
        return None
    if isinstance(row, Tensor):
        return _kept(row, 1)
    parts: list[Any] = []
    for name in ("tokens", "vector", "image"):
        value = getattr(row, name)
        parts.append(None if value is None else _kept(value, 2 if name == "tokens" else 1))
    for mapping in (row.numbers, row.controls, row.adapters):
        parts.append(tuple((name, _kept(value, 1)) for name, value in sorted(mapping.items())))
    return tuple(parts)


def _kept(value: Tensor, axis: int) -> tuple[Any, ...]:
    """What stacking must not change: the shape from `axis` on, the type and the device."""
    return (tuple(value.shape[axis:]), value.dtype, value.device)


def _stack(column: Sequence[Any]) -> Any:
    if len(column) == 1 or column[0] is None:
        return column[0]
    return torch.cat(list(column)) if isinstance(column[0], Tensor) else Condition.stack(column)


def _length(ask: Ask) -> int:
    for row in ask.rows:
        if isinstance(row, Tensor):
            return len(row)
    raise ValueError("an ask needs at least one tensor among its rows, which says how many rows there are")


def _cut(result: Any, start: int, end: int) -> Any:
    if result is None:
        return None
    return result.rows(slice(start, end)) if isinstance(result, Condition) else result[start:end]
