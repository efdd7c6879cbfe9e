"""The command: runs all tests of the collection as the code is, then each exhibit's tests against its mutant."""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from museum.collection import EXHIBITS
from museum.exhibit import Exhibit
from museum.overlay import PACKAGE, ROOT, check, copied, overlay
from museum.page import page
from museum.runner import Job, Seen, run, warm
from museum.verdict import Verdict, judged, unsound

__all__ = ["main"]

PAGE = ROOT / "docs" / "museum.md"
_SOUND, _LEAST, _FACTOR = 300.0, 30.0, 10.0  # seconds for sound code; for a mutant at least, and as a multiple of that


def main(arguments: Sequence[str]) -> int:
    """0 when every mutant was killed, 1 when one was not, 2 when the museum is not in order, 130 when it is stopped."""
    asked = _parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if asked.page:
        PAGE.write_text(page(), encoding="utf-8")
        print(f"{PAGE.relative_to(ROOT)} is written")
        return 0
    known = {word for exhibit in EXHIBITS for word in (exhibit.name, str(exhibit.bug))}
    chosen = _chosen(asked.names, asked.k)
    if unknown := sorted(set(asked.names) - known):
        print(f"no exhibit is called {', '.join(unknown)}; --list shows all of them", file=sys.stderr)
        return 2
    if not chosen:
        print(f'no exhibit has "{asked.k}" in its name, file or tests; --list shows all of them', file=sys.stderr)
        return 2
    if asked.list:
        print(*(f"{exhibit.bug:3}  {exhibit.name}" for exhibit in chosen), sep="\n")
        return 0
    if problems := _problems(chosen):
        print(*problems, sep="\n", file=sys.stderr)
        return 2
    try:
        with tempfile.TemporaryDirectory(prefix="carrara-museum-") as work:
            return _visit(chosen, Path(work), processes=max(1, asked.jobs), verbose=asked.verbose)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python tests/museum", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="exhibits to show, by name or by the bug's number")
    parser.add_argument("-k", metavar="WORD", help="only exhibits with this word in their name, file or tests")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="processes at a time (default 2)")
    parser.add_argument("--list", action="store_true", help="list the exhibits and end")
    parser.add_argument("--page", action="store_true", help="write docs/museum.md and end")
    parser.add_argument(
        "-v", "--verbose", action="store_true", help="say which test kills, and what pytest said of a survivor"
    )
    return parser


def _chosen(names: Sequence[str], word: str | None) -> list[Exhibit]:
    chosen = [e for e in EXHIBITS if not names or e.name in names or str(e.bug) in names]
    return [e for e in chosen if not word or word in " ".join((e.name, e.file, *e.tests))]


def _problems(exhibits: Sequence[Exhibit]) -> list[str]:
    problems = []
    for exhibit in exhibits:
        try:
            check(exhibit)
        except ValueError as error:
            problems.append(str(error))
    return problems


def _visit(exhibits: Sequence[Exhibit], work: Path, *, processes: int, verbose: bool) -> int:
    began = time.monotonic()
    base = copied(PACKAGE, work / "as-it-is")
    warm()
    targets = sorted({test for exhibit in exhibits for test in exhibit.tests})
    sound = _as_it_is(targets, base, work, processes)
    if problems := unsound(targets, sound):
        print(*problems, sep="\n", file=sys.stderr)
        return 2
    took = {test: seconds for one in sound for test, seconds in one.durations.items()}
    print(f"{len(took)} tests pass as the code is ({time.monotonic() - began:.0f} s)", flush=True)
    survivors: list[tuple[Exhibit, Verdict]] = []
    jobs = (_job(exhibit, base, work, took) for exhibit in exhibits)
    shown = run(jobs, processes=processes, root=ROOT, work=work / "mutants")
    for number, (exhibit, (_, seen)) in enumerate(zip(exhibits, shown, strict=True), start=1):
        verdict = judged(exhibit, seen)
        mark = "killed" if verdict.killed else "SURVIVES"
        by = f"  ({verdict.why})" if verbose else ""
        print(f"{number:3} of {len(exhibits)}  {mark:8}  {seen.seconds:5.1f} s  {exhibit.name}{by}", flush=True)
        if not verdict.killed:
            survivors.append((exhibit, verdict))
            if verbose:
                print(seen.output)
    _conclude(exhibits, survivors, time.monotonic() - began)
    return 1 if survivors else 0


def _as_it_is(targets: Sequence[str], base: Path, work: Path, processes: int) -> list[Seen]:
    """The tests without a mutation, a file at a time."""
    files: dict[str, list[str]] = {}
    for target in targets:
        files.setdefault(target.split("::")[0], []).append(target)
    jobs = [Job(file, base, tuple(tests), _SOUND, first=False) for file, tests in files.items()]
    return [seen for _, seen in run(jobs, processes=processes, root=ROOT, work=work / "tests")]


def _job(exhibit: Exhibit, base: Path, work: Path, took: dict[str, float]) -> Job:
    """The exhibit's tests against its overlay, which is made now."""
    usual = sum(seconds for test, seconds in took.items() if test.startswith(exhibit.tests))
    place = overlay(base, work / "overlays" / exhibit.name, exhibit)
    return Job(exhibit.name, place, exhibit.tests, _LEAST + _FACTOR * usual)


def _conclude(exhibits: Sequence[Exhibit], survivors: Sequence[tuple[Exhibit, Verdict]], seconds: float) -> None:
    if survivors:
        print("\nSurvivors: bugs that no listed test catches")
        for exhibit, verdict in survivors:
            print(f"  {exhibit.bug:3}  {exhibit.name}  (src/carrara/{exhibit.file}): {verdict.why}")
    print(f"{seconds:.0f} s")
    print(f"museum: {len(exhibits) - len(survivors)} of {len(exhibits)} killed", flush=True)
