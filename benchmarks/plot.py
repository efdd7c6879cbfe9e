"""The page of all results: `python -m benchmarks.plot` reads benchmarks/results/*.json and writes index.html there.

Comparisons of models (compare-NAME.json) are not about speed beside others and stand in docs/results.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from benchmarks.harness import Record, Row, Spread, Table, read
from benchmarks.run import NAMES, RESULTS
from carrara.evaluate.plot import Bars, number
from carrara.evaluate.report import Blocks, KeyFigure, Report

__all__ = ["main", "page"]

_UNIT = {"us": "\N{MICRO SIGN}s"}


def page(records: Sequence[Record]) -> Report:
    """One section a record: key figures against the peers, then charts, tables and what it was measured on."""
    report = Report("Benchmarks", "Carrara beside other packages, measured in turns in one process")
    report.prose(
        "Each round runs every variant once, in an order that changes. Times are medians over rounds, and a ratio is "
        "the median of the ratios within rounds: below 1 is faster than the peer. Quartiles in brackets."
    )
    for record in records:
        _section(report, record)
    return report.footer(_footer(records))


def _section(report: Report, record: Record) -> None:
    report.heading(_title(record), record.about + ".")
    if record.quick:
        report.note("A rehearsal on tiny networks: the numbers mean nothing.")
    report.figures(*_keys(record))
    for table in record.tables:
        unit = _UNIT.get(table.unit, table.unit)
        names, medians = [row.name for row in table.rows], [row.time.median for row in table.rows]
        report.plot(Bars(_capital(table.title), names, medians, unit))
        rows = [
            (row.name, _spread(row.time), _spread(row.ratio) if row.ratio else "", row.peer or "", row.note)
            for row in table.rows
        ]
        report.table(("", unit, "ratio", "to", ""), rows)
        if table.checks:
            report.prose("; ".join(f"{what}: {number(value, 2)}" for what, value in table.checks.items()))
    inside = Blocks().prose("\n\n".join(record.notes))
    inside.prose("\n\n".join(f"Left out: {what} ({why})." for what, why in record.skipped.items()))
    inside.code("\n".join(_said(record)))
    report.details("How it was measured", inside)


def _title(record: Record) -> str:
    return _capital(record.benchmark.replace("_", " "))


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _keys(record: Record) -> list[KeyFigure]:
    keys = [
        KeyFigure(
            goal.what, goal.reached, goal.unit, f"{'within' if goal.reached <= goal.limit else 'beyond'} {goal.limit:g}"
        )
        for goal in record.goals
    ]
    for table in record.tables:
        keys += [_key(table, row) for row in table.rows if row.ratio is not None and table.unit != "us"]
    return keys


def _key(table: Table, row: Row) -> KeyFigure:
    median = row.ratio.median if row.ratio else 1.0
    return KeyFigure(f"{_capital(table.title)}: {row.name}", round(median, 3), "", f"of the time of {row.peer}")


def _spread(values: Spread) -> str:
    return f"{number(values.median)} [{number(values.lower)}, {number(values.upper)}]"


def _said(record: Record) -> list[str]:
    machine, threads = record.facts["machine"], record.facts["threads"]
    flags = ", ".join(f"{name}: {'yes' if has else 'no'}" for name, has in machine["flags"].items())
    return [
        record.facts["command"],
        f"{record.facts['date']}, {record.seconds:.0f} s",
        f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gib']} GiB, {threads} threads",
        f"{flags}; before: load {machine['load_before']}, {machine['busy_before']:.0%} busy",
        ", ".join(f"{name} {version}" for name, version in record.facts["versions"].items()),
    ]


def _footer(records: Sequence[Record]) -> str:
    machines = dict.fromkeys(record.facts["machine"]["processor"] for record in records)
    return f"Measured on {'; '.join(machines)}." if machines else ""


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plot", description="One page of all results.")
    parser.add_argument("folder", type=Path, nargs="?", default=RESULTS, help="where the JSON files are")
    folder = parser.parse_args(arguments).folder
    ranks = {name: rank for rank, name in enumerate(NAMES)}
    found = [path for path in folder.glob("*.json") if not path.stem.startswith("compare-")]
    paths = sorted(found, key=lambda path: (ranks.get(path.stem, len(ranks)), path.stem))
    print(page([read(path) for path in paths]).write(folder / "index.html"))


if __name__ == "__main__":
    main()
