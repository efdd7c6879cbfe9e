"""Runs a benchmark: `python -m benchmarks.run NAME [--quick] [--out FILE] [--threads N] [--batch N] [--rounds N]`.

Prints a table and writes benchmarks/results/NAME.json. `--quick` rehearses on tiny networks in seconds and writes only
where `--out` says.
"""

from __future__ import annotations

import argparse
import importlib
import os
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.facts import facts
from benchmarks.harness import Options, Record, Spread, Table, write

__all__ = ["NAMES", "main", "perform"]

NAMES = ("sampling", "training_step", "startup", "stable_diffusion")
RESULTS = Path(__file__).resolve().parent / "results"


def perform(name: str, options: Options, command: str = "") -> Record:
    """Runs a benchmark and returns its record."""
    described = facts(command or f"python -m benchmarks.run {name}")
    began = time.perf_counter()
    module = importlib.import_module(f"benchmarks.{name}")
    outcome = module.run(options)
    return Record(
        name,
        module.ABOUT,
        options.quick,
        time.perf_counter() - began,
        described,
        tuple(outcome.tables),
        tuple(outcome.goals),
        tuple(outcome.notes),
        outcome.skipped,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description="Measure Carrara beside its peers.")
    parser.add_argument("name", choices=NAMES)
    parser.add_argument("--quick", action="store_true", help="rehearse on tiny networks; shows that it runs, no more")
    parser.add_argument("--out", type=Path, help="the JSON file (default benchmarks/results/NAME.json)")
    parser.add_argument("--threads", type=int, help="threads of torch (default: as many as there are cores)")
    parser.add_argument("--batch", type=int, action="append", default=[], help="rows a step; may be given again")
    parser.add_argument("--rounds", type=int, help="how often everything is measured")
    given = parser.parse_args(arguments)
    if given.threads:
        os.environ["OMP_NUM_THREADS"] = str(given.threads)  # before torch is imported
    words = [f"--{key} {value}" for key in ("threads", "rounds") if (value := getattr(given, key))]
    words += [f"--batch {rows}" for rows in given.batch] + (["--quick"] if given.quick else [])
    command = " ".join(["python -m benchmarks.run", given.name, *words])
    record = perform(given.name, Options(given.quick, tuple(given.batch), given.rounds), command)
    show(record)
    if out := given.out or (None if given.quick else RESULTS / f"{given.name}.json"):
        print(write(record, out))


def show(record: Record) -> None:
    """Prints a record."""
    from rich.console import Console

    console = Console()
    console.print(f"[bold]{record.about}[/]" + (" (a rehearsal: the numbers mean nothing)" if record.quick else ""))
    for table in record.tables:
        console.print(_printed(table))
    for goal in record.goals:
        met = "[green]met[/]" if goal.reached <= goal.limit else "[red]missed[/]"
        console.print(f"{goal.what}: {goal.reached:.3g} {goal.unit}, at most {goal.limit:g} {goal.unit}: {met}")
    for what, why in record.skipped.items():
        console.print(f"[dim]left out: {what} ({why})[/]")
    console.print(
        f"[dim]{record.facts['machine']['processor']}, {record.facts['threads']} threads, {record.seconds:.0f} s[/]"
    )


def _printed(table: Table) -> object:
    from rich.table import Table as Printed

    printed = Printed(title=f"{table.title}, {table.unit}", title_justify="left")
    printed.add_column("")
    for header in ("median", "of its peer's"):
        printed.add_column(header, justify="right", no_wrap=True)
    for row in table.rows:
        name = f"{row.name} ({row.note})" if row.note else row.name
        printed.add_row(name, _spread(row.time), _spread(row.ratio) if row.ratio else "")
    for what, value in table.checks.items():
        printed.add_row(f"[dim]{what}[/]", f"[dim]{value:.2g}[/]")
    return printed


def _spread(values: Spread) -> str:
    from rich.markup import escape

    from carrara.evaluate.plot import number

    return escape(f"{number(values.median)} [{number(values.lower)}, {number(values.upper)}]")


if __name__ == "__main__":
    main()
