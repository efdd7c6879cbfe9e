"""How a command ends when it is interrupted, when nobody listens, and when the fault is ours."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from carrara.cli import ending, main

from .conftest import run, tiny


def start(*words: object, cwd: Path, **more: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "carrara", *map(str, words)]
    return subprocess.Popen(command, cwd=cwd, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **more)


def test_an_interrupted_training_goes_on_with_the_same_command(project: Path, tmp_path: Path) -> None:
    words = ["train", "carrara-pics/text.toml", "--out", tmp_path / "run", *tiny("text", "train.decay='constant'")]
    running = start(*words, "--set", "train.steps=100000", cwd=project)
    log = tmp_path / "run" / "log.jsonl"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (log.exists() and '"event": "step"' in log.read_text()):
        time.sleep(0.05)
    running.send_signal(signal.SIGINT)
    try:
        _, err = running.communicate(timeout=60)
    finally:
        running.kill()  # nothing, where it has ended
        running.communicate()
    assert running.returncode == 143
    assert "the same command goes on from here" in err
    assert "Traceback" not in err
    done = len([line for line in log.read_text().splitlines() if '"event": "step"' in line])
    said = run(*words, "--set", f"train.steps={done + 2}", cwd=project)
    assert said.code == 0, said.err
    assert f"going on from step {done}" in said.err
    assert (tmp_path / "run" / "component.json").is_file()


def test_interrupted_elsewhere(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import carrara.store

    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(carrara.store, "load", stopped)
    said = run("sample", "carrara-pics/system", "x", cwd=project)
    assert (said.code, said.err) == (130, "interrupted\n")


def test_nobody_listens(project: Path) -> None:
    """`carrara show ... | head` is no error."""
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "carrara", "show", "carrara-pics/system"]
    ended = subprocess.run(command, cwd=project, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (ended.returncode, ended.stderr) == (141, "")


def test_a_disk_that_refuses(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import carrara.store

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", "/some/file")

    monkeypatch.setattr(carrara.store, "load", full)
    said = run("sample", "carrara-pics/system", "x", cwd=project)
    assert (said.code, said.err) == (5, "error: /some/file: No space left on device\n")


def test_our_own_fault_shows_where(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bug is no user's mistake: it is not dressed as one."""
    monkeypatch.setattr(ending, "_invoke", lambda _: [][1])
    with pytest.raises(IndexError):
        main(["doctor"])


def test_traceback_on_request(project: Path) -> None:
    environment = {**os.environ, "CARRARA_TRACEBACK": "1"}
    running = start("show", "nowhere", cwd=project, env=environment)
    _, err = running.communicate(timeout=60)
    assert running.returncode == 5
    assert "Traceback" in err
    assert err.splitlines()[-1] == "error: nowhere does not exist"


def test_control_characters_do_not_reach_the_terminal(tmp_path: Path) -> None:
    said = run("show", "\x1b[31mred", cwd=tmp_path)
    assert said.code == 5
    assert "\x1b" not in said.err
