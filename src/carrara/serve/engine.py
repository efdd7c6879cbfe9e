"""The second driver: holds many requests at once and answers their open asks in shared calls of the networks.

    engine = Engine()
    tickets = [engine.add(system.start(request)) for request in requests]
    while engine.turn():                                     # one call of one network
        pass
    pictures = [ticket.result() for ticket in tickets]

Requests may differ in everything: prompts, seeds, steps, samplers, guidance, starts, families. What shares a call is
what goes to one network in rows of one shape and type, whoever asked. A request joins, ends or is cancelled between two
calls. Its pictures depend on its own seeds alone: the rows of a network do not see one another, and what its
companions change is the rounding of a call of another batch size (`fixed` takes that away, too).

A turn:
    1. of the groups that share a network and a shape, the one that has been served least for its weight comes next
       (start-time fair queueing, Goyal et al. 1996; a group of priority p has the weight 2^p)
    2. its most urgent rows fill one call, as many as suit the network; a request of many rows may fill several
    3. a request whose round is answered goes on to its next one
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, NamedTuple, Protocol, Self

import torch
from torch import Tensor

from carrara.errors import is_out_of_memory
from carrara.run import call, cut, length, signature
from carrara.types import Ask, Condition, Rounds, Step

__all__ = ["Call", "Cancelled", "Engine", "Late", "Sizes", "Ticket", "Uniform"]

PATIENCE = 2.0  # seconds of waiting that one step of priority is worth


class Cancelled(Exception):
    """The request was cancelled before its pictures were made."""


class Late(Exception):
    """The request's deadline passed before its pictures were made."""


class Call(NamedTuple):
    """What one turn did, for whoever counts."""

    network: Callable[..., Any]
    rows: int
    requests: int
    seconds: float


class Sizes(Protocol):
    """How many rows a call of a network may have; see `carrara.serve.calibration`."""

    def most(self, ask: Ask) -> int:
        """Rows of one call with asks like this."""
        ...

    def lower(self, ask: Ask, rows: int) -> None:
        """So many were too many for the memory."""
        ...


class Uniform:
    """The same number of rows for every network, but for those whose memory was too small."""

    def __init__(self, rows: int = 16) -> None:
        if rows < 1:
            raise ValueError(f"a batch of {rows} rows; give 1 or more")
        self.rows = rows
        self._lower: dict[Any, int] = {}

    def most(self, ask: Ask) -> int:
        """Rows of one call with asks like this."""
        return self._lower.get(signature(ask), self.rows) if self._lower else self.rows

    def lower(self, ask: Ask, rows: int) -> None:
        """So many were too many: half of them from here on."""
        self._lower[signature(ask)] = max(1, rows // 2)


class Ticket:
    """A request in the engine. `on_step` is told every finished stride, in the engine's own thread."""

    def __init__(
        self,
        rounds: Rounds,
        number: int,
        arrived: float,
        *,
        priority: int = 0,
        deadline: float | None = None,
        on_step: Callable[[Step], None] | None = None,
        on_end: Callable[[Ticket], None] | None = None,
    ) -> None:
        self.number, self.arrived, self.priority, self.deadline = number, arrived, priority, deadline
        self._rounds, self._on_step, self._on_end = rounds, on_step, on_end
        self._open: list[_Part] = []
        self._value: Any = None
        self._error: BaseException | None = None
        self.done = False

    @property
    def urgency(self) -> float:
        """Earlier is more urgent: the arrival, each step of priority being worth a wait of `PATIENCE` seconds."""
        return self.arrived - PATIENCE * self.priority

    def result(self) -> Any:
        """What the request came to. Raises what it raised, `Cancelled` or `Late`, and ValueError before it is done."""
        if not self.done:
            raise ValueError("this request is not done; take turns until it is")
        if self._error is not None:
            raise self._error
        return self._value

    def _finish(self, value: Any = None, error: BaseException | None = None) -> None:
        self._value, self._error, self.done = value, error, True
        self._open = []
        self._rounds.close()
        if self._on_end is not None:
            self._on_end(self)


@dataclass(eq=False)
class _Part:
    """An open ask of a request, and the rows of its answer so far."""

    ticket: Ticket
    ask: Ask
    rows: int
    taken: int = 0
    pieces: list[tuple[Any, ...]] | None = None

    def answer(self) -> tuple[Any, ...]:
        pieces = self.pieces or []
        if len(pieces) == 1:
            return pieces[0]
        return tuple(_joined(column) for column in zip(*pieces, strict=True))


@dataclass
class _Group:
    """What may share a call, in the order of asking, and how much it has been served for its weight."""

    parts: list[_Part]
    served: float


class Engine:
    """Requests, and one call of a network a turn. Everything here belongs to one thread; see `Worker` for one.

    sizes    how many rows a call may have, by network
    fixed    every call has exactly that many rows, the spare ones being copies, and sequences are never padded to one
             another: with a fixed number of threads a request's pictures are then the same bit by bit whoever else is
             there, at the price of calls that are larger than they need to be
    on_call  is told of every call
    """

    def __init__(
        self,
        sizes: Sizes | None = None,
        *,
        fixed: bool = False,
        on_call: Callable[[Call], None] = lambda call: None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.sizes = sizes or Uniform()
        self.fixed = fixed
        self._on_call, self._clock = on_call, clock
        self._tickets: dict[int, Ticket] = {}
        self._groups: dict[Any, _Group] = {}
        self._numbers = itertools.count()
        self._served = 0.0  # of the group that was served last

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __len__(self) -> int:
        """How many requests are open."""
        return len(self._tickets)

    @property
    def waiting(self) -> int:
        """Rows that wait for a call."""
        return sum(part.rows - part.taken for group in self._groups.values() for part in group.parts)

    def add(
        self,
        rounds: Rounds,
        *,
        priority: int = 0,
        deadline: float | None = None,
        on_step: Callable[[Step], None] | None = None,
        on_end: Callable[[Ticket], None] | None = None,
    ) -> Ticket:
        """Takes a request in. `deadline` is a time of the engine's clock; `on_end` is told when it is done, however.

        What its first lines raise, a prompt that cannot be read, say, is its result.
        """
        ticket = Ticket(
            rounds,
            next(self._numbers),
            self._clock(),
            priority=priority,
            deadline=deadline,
            on_step=on_step,
            on_end=on_end,
        )
        self._tickets[ticket.number] = ticket
        self._advance(ticket, None)
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        """Ends a request before its next call; one that is done stays as it is."""
        self._end(ticket, error=Cancelled("the request was cancelled"))

    def now(self) -> float:
        """The time of its clock, which deadlines are times of."""
        return self._clock()

    def close(self) -> None:
        """Cancels what is open."""
        for ticket in list(self._tickets.values()):
            self.cancel(ticket)

    def turn(self) -> bool:
        """Makes one call, for whom it is due; False where nothing is open."""
        self._drop_late()
        if not self._groups:
            return False
        key = min(self._groups, key=lambda key: self._groups[key].served)
        group = self._groups[key]
        self._served = group.served
        parts, most = self._due(group)
        group.served += 2.0 ** -max(part.ticket.priority for part, _ in parts)
        began = self._clock()
        answers, errors = self._called(parts, most)
        seconds = self._clock() - began
        rows = sum(stop.stop - stop.start for _, stop in parts)
        self._on_call(Call(parts[0][0].ask.network, rows, len({part.ticket.number for part, _ in parts}), seconds))
        self._hand_out(key, parts, answers, errors)
        return bool(self._tickets)

    # --- what is due -------------------------------------------------------------------------------------------------

    def _due(self, group: _Group) -> tuple[list[tuple[_Part, slice]], int]:
        """The most urgent rows of a group, and how many rows a call may have."""
        first = group.parts[0].ask
        most = 0 if first.state is not None else self.sizes.most(first)
        chosen: list[tuple[_Part, slice]] = []
        room = most
        for part in sorted(group.parts, key=lambda part: (part.ticket.urgency, part.ticket.number)):
            if most == 0:  # with a state, all of it at once and alone
                return [(part, slice(0, part.rows))], part.rows
            rows = min(room, part.rows - part.taken)
            chosen.append((part, slice(part.taken, part.taken + rows)))
            room -= rows
            if room == 0:
                break
        return chosen, most

    def _drop_late(self) -> None:
        now: float | None = None
        for ticket in [ticket for ticket in self._tickets.values() if ticket.deadline is not None]:
            now = self._clock() if now is None else now
            if ticket.deadline is not None and ticket.deadline < now:
                self._end(ticket, error=Late("the request's deadline has passed"))

    # --- the call ----------------------------------------------------------------------------------------------------

    def _called(
        self, parts: Sequence[tuple[_Part, slice]], most: int
    ) -> tuple[list[tuple[Any, ...] | None], list[BaseException | None]]:
        """The answers, and what was raised instead: of several requests each is tried alone before it is to blame."""
        asks = [_rows_of(part.ask, rows) for part, rows in parts]
        try:
            return list(self._answered(asks, most)), [None] * len(asks)
        except Exception as error:
            if is_out_of_memory(error) and sum(map(length, asks)) > 1:
                self.sizes.lower(asks[0], sum(map(length, asks)))
                return self._one_by_one(asks, most=self.sizes.most(asks[0]))
            if len(asks) == 1:
                return [None], [error]
            return self._one_by_one(asks, most=most)

    def _one_by_one(
        self, asks: Sequence[Ask], most: int
    ) -> tuple[list[tuple[Any, ...] | None], list[BaseException | None]]:
        answers: list[tuple[Any, ...] | None] = []
        errors: list[BaseException | None] = []
        for ask in asks:
            try:
                pieces = [*self._pieces(ask, most)]
                answers.append(pieces[0] if len(pieces) == 1 else tuple(map(_joined, zip(*pieces, strict=True))))
                errors.append(None)
            except Exception as error:
                answers.append(None)
                errors.append(error)
        return answers, errors

    def _pieces(self, ask: Ask, most: int) -> Iterator[tuple[Any, ...]]:
        rows = length(ask)
        for start in range(0, rows, most):
            yield self._answered([_rows_of(ask, slice(start, min(rows, start + most)))], most)[0]

    def _answered(self, asks: Sequence[Ask], most: int) -> list[tuple[Any, ...]]:
        if not self.fixed or asks[0].state is not None:
            return call(asks)
        spare = most - sum(map(length, asks))
        last = asks[-1]
        padding = [_rows_of(last, slice(length(last) - 1, length(last)))] * spare
        return call([*asks, *padding])[: len(asks)]

    # --- what comes of it --------------------------------------------------------------------------------------------

    def _hand_out(
        self,
        key: Any,
        parts: Sequence[tuple[_Part, slice]],
        answers: Sequence[tuple[Any, ...] | None],
        errors: Sequence[BaseException | None],
    ) -> None:
        group = self._groups[key]
        whole: dict[int, Ticket] = {}
        for (part, rows), found, error in zip(parts, answers, errors, strict=True):
            ticket = part.ticket
            if ticket.done:
                continue
            if error is not None:
                self._end(ticket, error=error)
                continue
            assert found is not None
            part.pieces = [*(part.pieces or []), found]
            part.taken = rows.stop
            if part.taken == part.rows:
                group.parts.remove(part)
                if all(other.taken == other.rows for other in ticket._open):
                    whole[ticket.number] = ticket
        if not group.parts:
            self._groups.pop(key, None)
        for ticket in whole.values():
            if not ticket.done:
                self._advance(ticket, [part.answer() for part in ticket._open], group.served)

    def _advance(self, ticket: Ticket, answers: Any, served: float = 0.0) -> None:
        """The request goes on to its next round that asks for anything."""
        try:
            while True:
                asked = ticket._rounds.send(answers)
                if asked.step is not None and ticket._on_step is not None:
                    ticket._on_step(asked.step)
                if asked.asks:
                    break
                answers = []
        except StopIteration as finished:
            self._end(ticket, finished.value)
            return
        except Exception as error:
            self._end(ticket, error=error)
            return
        ticket._open = [_Part(ticket, ask, length(ask)) for ask in asked.asks]
        for part in ticket._open:
            name = (ticket.number, part.ask.network) if part.ask.state is not None else self._signature(part.ask)
            group = self._groups.get(name)
            if group is None:  # the request takes along what it was served; who was away has no claim on that time
                group = self._groups[name] = _Group([], max(served, self._served))
            group.parts.append(part)

    def _signature(self, ask: Ask) -> tuple[Any, ...]:
        return signature(ask, padded=not self.fixed)

    def _end(self, ticket: Ticket, value: Any = None, error: BaseException | None = None) -> None:
        if self._tickets.pop(ticket.number, None) is None:
            return
        for name in [name for name, group in self._groups.items() if any(p.ticket is ticket for p in group.parts)]:
            group = self._groups[name]
            group.parts = [part for part in group.parts if part.ticket is not ticket]
            if not group.parts:
                del self._groups[name]
        ticket._finish(value, error)


def _rows_of(ask: Ask, rows: slice) -> Ask:
    if ask.state is not None or (rows.start == 0 and rows.stop == length(ask)):
        return ask
    return ask._replace(rows=tuple(cut(row, rows.start, rows.stop) for row in ask.rows))


def _joined(pieces: Sequence[Any]) -> Any:
    if pieces[0] is None:
        return None
    return torch.cat(list(pieces)) if isinstance(pieces[0], Tensor) else Condition.stack(pieces)
