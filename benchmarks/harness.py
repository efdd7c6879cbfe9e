"""Interleaved measurement of variants in one process, and the record of it as JSON.

A machine's speed drifts, and other work comes and goes. So every round calls each variant once, and variants are
compared within rounds:

    ratio_r = t_r(variant) / t_r(peer),    reported as the median over rounds r, with its quartiles

The order of a round is a row of a Williams square (Williams 1949): over as many rounds as there are variants (twice as
many when they are odd in number) each one takes every place, and follows every other, equally often.
"""

from __future__ import annotations

import gc
import json
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

__all__ = [
    "Goal",
    "Options",
    "Record",
    "Row",
    "Spread",
    "Table",
    "Variant",
    "measure",
    "order",
    "read",
    "rounded",
    "spread",
    "write",
]

FORMAT_VERSION = 1
UNITS = {"s": 1.0, "ms": 1e3, "us": 1e6}


@dataclass(frozen=True)
class Options:
    """What the command line may change. `quick` is a rehearsal on tiny networks: it shows that everything runs."""

    quick: bool = False
    batches: tuple[int, ...] = ()  # none: the benchmark's own
    rounds: int | None = None  # None: the benchmark's own


@dataclass(frozen=True)
class Variant:
    """One way of doing the work. A call does `steps` of it; `peer` names the variant it is compared with."""

    name: str
    call: Callable[[], object]
    steps: int = 1
    peer: str | None = None
    note: str = ""


@dataclass(frozen=True)
class Spread:
    """The median of some numbers between their quartiles."""

    median: float
    lower: float
    upper: float


@dataclass(frozen=True)
class Row:
    """A variant's times in the table's unit: `rounds` are all of them, in order."""

    name: str
    time: Spread
    rounds: tuple[float, ...]
    peer: str | None = None
    ratio: Spread | None = None  # to the peer's time in the same round; below 1 is faster
    note: str = ""


@dataclass(frozen=True)
class Table:
    """Variants that were measured together. `checks` are numbers that say that they did the same work."""

    title: str
    unit: str
    rows: tuple[Row, ...]
    checks: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Goal:
    """A number that should stay within a limit."""

    what: str
    limit: float
    reached: float
    unit: str


@dataclass(frozen=True)
class Record:
    """A run of a benchmark, as it is written to JSON."""

    benchmark: str
    about: str
    quick: bool
    seconds: float
    facts: Mapping[str, Any]
    tables: tuple[Table, ...]
    goals: tuple[Goal, ...] = ()
    notes: tuple[str, ...] = ()
    skipped: Mapping[str, str] = field(default_factory=dict)  # what was left out -> why
    format_version: int = FORMAT_VERSION


def order(count: int, turn: int) -> list[int]:
    """The order of `count` variants in round `turn` = 0, 1, ...: a row of a Williams square."""
    zigzag = [(place + 1) // 2 if place % 2 else -(place // 2) for place in range(count)]  # 0, 1, -1, 2, -2, ...
    row = [(step + turn) % count for step in zigzag]
    return row[::-1] if count % 2 and turn // count % 2 else row


def spread(values: Sequence[float]) -> Spread:
    """Median and quartiles (of all the values there are: the ends count as 0 and 100 %)."""
    if len(values) < 2:
        return Spread(values[0], values[0], values[0])
    lower, median, upper = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(median, lower, upper)


def measure(
    title: str,
    variants: Sequence[Variant],
    *,
    unit: str = "ms",
    rounds: int = 7,
    warmup: int = 1,
    budget: float = 120.0,
    checks: Mapping[str, float] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Table:
    """Times every variant once a round, in an order that changes; the first `warmup` rounds are not counted.

    `budget` is in seconds: when they are gone no further round begins, but for the first three.
    """
    names = [variant.name for variant in variants]
    if len(set(names)) < len(names):
        raise ValueError(f"two variants of {title!r} share a name: {names}")
    if unknown := {variant.peer for variant in variants} - {None, *names}:
        raise ValueError(f"{title!r} compares with {sorted(map(str, unknown))}, which is not measured; it has {names}")
    times: dict[str, list[float]] = {name: [] for name in names}
    gc.collect()
    gc.freeze()  # what exists by now is not searched again in the middle of somebody's turn
    try:
        began = clock()
        for turn in range(-warmup, rounds):
            if turn >= 3 and clock() - began > budget:
                break
            for place in order(len(variants), turn):
                variant = variants[place]
                before = clock()
                variant.call()
                if turn >= 0:
                    times[variant.name].append((clock() - before) / variant.steps * UNITS[unit])
    finally:
        gc.unfreeze()
    rows = [_row(variant, times[variant.name], times.get(variant.peer or "")) for variant in variants]
    return Table(title, unit, tuple(rows), dict(checks or {}))


def _row(variant: Variant, mine: list[float], theirs: list[float] | None) -> Row:
    ratio = spread([a / b for a, b in zip(mine, theirs, strict=True)]) if theirs else None
    return Row(variant.name, spread(mine), tuple(mine), variant.peer, ratio, variant.note)


def write(record: Record, path: Path) -> Path:
    """Writes the record; a reader sees the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.tmp")
    beside.write_text(json.dumps(rounded(asdict(record)), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(beside, path)
    return path


def rounded(value: Any) -> Any:
    """The value with floats cut to six digits, which is more than any clock here can tell."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, Mapping):
        return {key: rounded(item) for key, item in value.items()}
    return [rounded(item) for item in value] if isinstance(value, list | tuple) else value


def read(path: Path) -> Record:
    """The record in a file; ValueError when it is none, or of a later format."""
    from pydantic import TypeAdapter

    record = TypeAdapter(Record).validate_json(path.read_text(encoding="utf-8"))
    if record.format_version != FORMAT_VERSION:
        raise ValueError(f"{path} has format version {record.format_version}; expected {FORMAT_VERSION}")
    return record
