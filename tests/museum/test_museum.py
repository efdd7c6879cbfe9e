"""The museum itself: its texts are found, its page is up to date, and it tells a caught bug from a broken one."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from museum.catalogue import ABSENT, BUGS
from museum.collection import EXHIBITS
from museum.command import PAGE
from museum.exhibit import Exhibit
from museum.overlay import ROOT, check, copied, overlay
from museum.page import page
from museum.runner import Failure, Seen
from museum.verdict import covered, judged, unsound

TOY = Exhibit(name="toy", bug=1, file="sums.py", text="a + b", replacement="a - b", tests=("test_sums.py::test_sum",))


@pytest.fixture
def package(tmp_path: Path) -> Path:
    folder = tmp_path / "toy"
    folder.mkdir()
    (folder / "sums.py").write_text("def added(a, b):\n    return a + b\n")
    return folder


def changed(**values: object) -> Exhibit:
    return Exhibit(**{**vars(TOY), **values})


@pytest.mark.parametrize("exhibit", EXHIBITS, ids=lambda exhibit: exhibit.name)
def test_every_exhibit_can_be_made(exhibit: Exhibit) -> None:
    check(exhibit)
    for test in exhibit.tests:
        file, _, name = test.partition("::")
        assert (ROOT / file).is_file(), test
        assert f"def {name.split('[')[0]}(" in (ROOT / file).read_text() if name else file.endswith(".py")


def test_the_collection_is_whole() -> None:
    """Every bug of the catalogue is shown, or there is a reason why not; names are single."""
    assert [bug.number for bug in BUGS] == list(range(1, 69))
    shown, absent = {exhibit.bug for exhibit in EXHIBITS}, {absent.bug for absent in ABSENT}
    assert shown | absent == {bug.number for bug in BUGS} and not shown & absent
    assert len(shown) >= 60
    assert len({exhibit.name for exhibit in EXHIBITS}) == len(EXHIBITS)


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run: python tests/museum --page"


def test_an_overlay_changes_a_copy(package: Path, tmp_path: Path) -> None:
    before = (package / "sums.py").read_text()
    base = copied(package, tmp_path / "base")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("museum.overlay.PACKAGE", package)
        made = overlay(base, tmp_path / "made", TOY)
    assert (made / "toy" / "sums.py").read_text() == before.replace("a + b", "a - b")
    assert (package / "sums.py").read_text() == (base / "toy" / "sums.py").read_text() == before


@pytest.mark.parametrize(
    ("exhibit", "words"),
    [
        (changed(text="a * b"), r'"toy" \(bug 1\) looks for a text .* there 0 times'),
        (changed(text="a"), "there 3 times instead of once"),
        (changed(file="differences.py"), "which does not exist"),
        (changed(replacement="a + b"), "changes nothing"),
        (changed(replacement="a +"), "is not Python"),
    ],
)
def test_an_exhibit_that_went_stale_says_so(package: Path, exhibit: Exhibit, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        check(exhibit, package)


def failed(exception: str, when: str = "call") -> Seen:
    return Seen(failures=[Failure("test_sums.py::test_sum", when, exception, "so it was")])


def test_only_the_right_failure_is_a_kill() -> None:
    for exception in ("AssertionError", "Failed"):
        assert judged(TOY, failed(exception)).killed
    assert judged(changed(raises="ValueError"), failed("ValueError")).killed
    assert judged(TOY, failed("AssertionError")).why == "test_sums.py::test_sum"
    for seen, words in (
        (failed("NameError"), "ended in NameError (so it was) instead of AssertionError"),
        (failed("collection error", "collect"), "collection error"),
        (failed("AssertionError", "teardown"), "ended in AssertionError"),
        (Seen(passed=["test_sums.py::test_sum"]), "1 tests passed"),
        (Seen(ended="time"), "took too long"),
        (Seen(ended="signal 11"), "signal 11"),
    ):
        verdict = judged(TOY, seen)
        assert not verdict.killed and words in verdict.why


def test_tests_that_do_not_pass_or_do_not_run_prove_nothing() -> None:
    targets = list(TOY.tests)
    assert unsound(targets, [Seen(passed=["test_sums.py::test_sum[3]"])]) == []
    assert "does not pass without any change" in unsound(targets, [failed("AssertionError")])[0]
    assert "was not run" in unsound(targets, [Seen()])[0]
    assert "usage error" in unsound(targets, [Seen(ended="pytest: usage error")])[0]
    assert not covered("test_sums.py::test_sum", ["test_sums.py::test_sums"])


SCRIPT = """
import sys
from pathlib import Path
from museum.runner import Job, run
here = Path(sys.argv[1])
names = ("fails", "hangs", "crashes", "passes")
jobs = [Job(name, here, (f"test_toy.py::test_{name}",), 2.0 if name == "hangs" else 60.0) for name in names]
for job, seen in run(jobs, processes=2, root=here, work=here / "work"):
    print(job.name, seen.ended or [failure.exception for failure in seen.failures] or len(seen.passed), sep=": ")
"""
TOYS = """
import os, subprocess, sys, time
def test_fails(): assert len("ab") == 3
def test_hangs():
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]); time.sleep(60)
def test_crashes(): os.abort()
def test_passes(): pass
"""


def test_what_becomes_of_a_child(tmp_path: Path) -> None:
    """In the order of the jobs: a failure, a hang that is ended with all that it started, a crash, a pass."""
    (tmp_path / "test_toy.py").write_text(TOYS)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "PYTHONPATH": str(ROOT / "tests")}
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.split("\n")[:4] == ["fails: ['AssertionError']", "hangs: time", "crashes: signal 6", "passes: 1"]
    assert time.monotonic() - began < 50


def test_the_command(tmp_path: Path) -> None:
    """One exhibit for real, in processes of its own; and a name that is none."""
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "TMPDIR": str(tmp_path)}

    def run(*words: str) -> tuple[int, str]:
        done = subprocess.run(
            [sys.executable, str(ROOT / "tests" / "museum"), *words],
            cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        return done.returncode, done.stdout + done.stderr

    code, said = run("first-level-squared")
    assert code == 0, said
    assert said.strip().split("\n")[-1] == "museum: 1 of 1 killed"
    assert not list(tmp_path.glob("carrara-museum-*"))
    code, said = run("first-level-squared", "no-such-exhibit")
    assert code == 2 and said.startswith("no exhibit is called no-such-exhibit;")
    code, said = run("-k", "no-such-word")
    assert code == 2 and 'no exhibit has "no-such-word"' in said
    code, said = run("15", "--list")
    assert code == 0 and said.count("15  second-order-") == 4
