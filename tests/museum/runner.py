"""Runs tests against an overlay, each time in a process forked from this one, which has PyTorch but not Carrara.

To import PyTorch takes two seconds, to fork a hundredth of one: a mutant costs what its tests cost. A child runs pytest
on its node ids, writes what it saw to a file and leaves. Children run a few at a time, each with one thread.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["Failure", "Job", "Seen", "run", "warm"]

# What the tests import besides Carrara, and what PyTorch does at an optimiser's first step; none of it has to be there.
_WARM = (
    "PIL.Image", "PIL.ImageCms", "PIL.ImageOps", "_hypothesis_pytestplugin", "anyio.pytest_plugin",
    "hypothesis.strategies", "numpy", "png", "pyarrow.parquet", "pydantic", "pytest", "rich.console",
    "safetensors.torch", "scipy.integrate", "sympy", "tifffile", "tokenizers", "tomli_w", "torch", "torch._dynamo",
    "torch.distributed.tensor", "torch.fx.experimental.symbolic_shapes", "torch.nn.functional", "torch.testing",
    "typer.testing", "xdist.plugin",
)  # fmt: skip


@dataclass(frozen=True)
class Job:
    """Tests to be run against an overlay, within `limit` seconds."""

    name: str
    overlay: Path
    tests: tuple[str, ...]
    limit: float
    first: bool = True  # stop at the first failure


@dataclass(frozen=True)
class Failure:
    """A test that did not pass: in which phase ("setup", "call", "teardown", "collect"), and with what exception."""

    test: str
    when: str
    exception: str
    said: str


@dataclass
class Seen:
    """What became of a job."""

    passed: list[str] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    seconds: float = 0.0
    durations: dict[str, float] = field(default_factory=dict)  # seconds by test
    ended: str = ""  # why there is no result: "time" or the signal or status that the process ended with
    output: str = ""


class _Watch:
    """A pytest plugin that notes what each test came to."""

    def __init__(self) -> None:
        self.seen = Seen()

    def pytest_runtest_makereport(self, item: Any, call: Any) -> None:
        test = item.nodeid
        self.seen.durations[test] = self.seen.durations.get(test, 0.0) + call.duration
        error = call.excinfo
        if error is None:
            if call.when == "call":
                self.seen.passed.append(test)
        elif error.typename not in ("Skipped", "XFailed"):
            said = str(error.value).strip().split("\n")[0][:200]
            self.seen.failures.append(Failure(test, call.when, error.typename, said))

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            said = str(report.longrepr).strip().split("\n")[-1][:200]
            self.seen.failures.append(Failure(report.nodeid, "collect", "collection error", said))


def warm() -> None:
    """Imports what every child needs; to be called once, before `run`."""
    os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false")
    for name in _WARM:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    if "carrara" in sys.modules:
        raise RuntimeError("carrara is imported already, and no overlay would be seen")


def run(jobs: Iterable[Job], *, processes: int, root: Path, work: Path) -> Iterator[tuple[Job, Seen]]:
    """What becomes of each job, in the order of the jobs, `processes` of them at a time.

    `root` is where the tests' names begin, `work` a folder for temporary files.
    """
    waiting = enumerate(jobs)
    started: list[_Child] = []
    done: dict[int, tuple[Job, Seen]] = {}
    told = 0
    try:
        while True:
            while len(started) < processes and (following := next(waiting, None)) is not None:
                started.append(_Child(*following, root, work))
            if not started:
                return
            time.sleep(0.02)
            for child in [child for child in started if child.ended()]:
                started.remove(child)
                done[child.number] = child.job, child.result()
            while told in done:
                yield done.pop(told)
                told += 1
    finally:
        for child in started:
            child.kill()


class _Child:
    """A forked process that runs one job, and everything that it starts itself."""

    def __init__(self, number: int, job: Job, root: Path, work: Path) -> None:
        self.number, self.job = number, job
        self.place = work / f"job-{number}"
        self.place.mkdir(parents=True)
        self.began = time.monotonic()
        self.status: int | None = None
        self.late = False
        sys.stdout.flush()
        sys.stderr.flush()
        self.process = os.fork()
        if not self.process:
            _child(job, root, self.place)  # never returns

    def ended(self) -> bool:
        if not self.late and time.monotonic() - self.began > self.job.limit:
            self.late = True
            self.kill()
        found, status = os.waitpid(self.process, os.WNOHANG)
        self.status = status if found else None
        return bool(found)

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process, signal.SIGKILL)

    def result(self) -> Seen:
        self.kill()  # what it left running
        report = self.place / "report.json"
        seen = Seen()
        if report.is_file():
            table = json.loads(report.read_text())
            seen = Seen(**{**table, "failures": [Failure(**one) for one in table["failures"]]})
        elif self.late:
            seen.ended = "time"
        else:
            code = os.waitstatus_to_exitcode(self.status or 0)
            seen.ended = f"signal {-code}" if code < 0 else f"status {code}"
        seen.seconds = time.monotonic() - self.began
        with contextlib.suppress(OSError):
            seen.output = (self.place / "output.txt").read_text(errors="replace")
        return seen


def _child(job: Job, root: Path, place: Path) -> None:
    """Everything that happens in a child; it ends the process."""
    code = 1
    try:
        os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        output = os.open(place / "output.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.chdir(root)
        sys.path.insert(0, str(job.overlay))
        os.environ["PYTHONPATH"] = os.pathsep.join([str(job.overlay), *filter(None, [os.environ.get("PYTHONPATH")])])
        seen = _tested(job, place)
        (place / "report.part").write_text(json.dumps(asdict(seen)))
        os.replace(place / "report.part", place / "report.json")
        code = 0
    except BaseException as error:  # a child must not go on as its parent
        with contextlib.suppress(BaseException):
            print(f"{type(error).__name__}: {error}", flush=True)
    finally:
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _tested(job: Job, place: Path) -> Seen:
    import pytest
    import torch

    torch.set_num_threads(1)
    watch = _Watch()
    options = ["-q", "--no-header", "--tb=short", "-p", "no:cacheprovider", "-p", "no:xdist"]
    options += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # of what was imported to be warm
    code = pytest.main([*job.tests, *options, *["-x"] * job.first, f"--basetemp={place / 'tmp'}"], plugins=[watch])
    seen = watch.seen
    carrara = sys.modules.get("carrara")
    if carrara is not None and not str(carrara.__file__).startswith(str(job.overlay)):
        seen.ended = f"carrara came from {carrara.__file__} and not from the overlay"
    elif code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.INTERRUPTED):
        seen.ended = f"pytest: {pytest.ExitCode(code).name.lower().replace('_', ' ')}"
    return seen
