"""What a run says, to files and to people, and that nothing it says can stop it."""

from __future__ import annotations

import errno
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from carrara.errors import RecipeError, StorageError
from carrara.train import fit
from carrara.train.grid import save_grid
from carrara.train.log import Event, Log, Progress, TensorBoard, peak_memory_bytes, read_log
from train.toy import ToyLoader, ToyTask, settings

STEP = {"step": 1, "loss": 0.5, "images_per_second": 10.0, "grad_norm": 1.0, "memory": 2**20}


def test_every_event_is_a_line_of_json(tmp_path: Path) -> None:
    events: list[Event] = []
    outcome = fit(ToyTask(), ToyLoader(), settings(), tmp_path, progress=False, on_event=events.append)
    lines = read_log(tmp_path / "log.jsonl")
    assert lines == json.loads(json.dumps(events))
    steps = [event for event in lines if event["event"] == "step"]
    assert [event["step"] for event in steps] == list(range(1, 13))
    wanted = {"samples", "loss", "parts", "grad_norm", "clipped", "lr", "images_per_second", "memory", "seconds"}
    assert all(wanted <= set(event) for event in steps)
    assert {"critic/loss", "critic/grad_norm"} <= set(steps[0])
    assert len({event["samples"] for event in steps}) == 12
    assert [event["step"] for event in lines if event["event"] == "validate"] == [4, 8, 12]
    assert [event["step"] for event in lines if event["event"] == "sample"] == [6, 12]
    assert lines[-1]["event"] == "done" and lines[-1]["files"] == ["weights.safetensors"]
    assert outcome.last_loss == steps[-1]["loss"] and outcome.figures == lines[-1]["figures"]
    assert outcome.steps == 12 and outcome.images_per_second > 0 and outcome.resumed_from is None
    assert 0 < outcome.clipped < 1


def test_the_log_can_be_thinned(tmp_path: Path) -> None:
    fit(ToyTask(), ToyLoader(), settings(log_every=5), tmp_path, progress=False)
    steps = [event["step"] for event in read_log(tmp_path / "log.jsonl") if event["event"] == "step"]
    assert steps == [5, 10, 12]


def test_a_log_goes_on_from_a_step(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"event": "start", "step": 0}\n{"event": "step", "step": 1}\n{"event": "step", "step": 2}\n{"eve')
    log = Log(path, 1)
    log.write({"event": "step", "step": 2, "loss": float("nan")})
    log.close()
    assert [event["step"] for event in read_log(path)] == [0, 1, 2]
    assert read_log(path)[-1]["loss"] is None
    assert read_log(tmp_path / "none.jsonl") == []


def test_a_log_that_cannot_be_written_costs_its_lines_only(tmp_path: Path) -> None:
    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    log = Log(tmp_path / "log.jsonl", 0)
    log.close()
    log._file = Full()
    log.write({"event": "step"})
    log.write({"event": "step"})
    assert log.broken is not None and "No space left" in log.broken


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


class Gone(io.StringIO):
    """A pipe that nobody reads."""

    def write(self, text: str) -> int:
        raise BrokenPipeError


def test_progress_is_a_line_now_and_then() -> None:
    stream, now = io.StringIO(), [0.0]
    progress = Progress(100, stream=stream, clock=lambda: now[0])
    for step in range(1, 31):
        now[0] += 1.0
        progress.step(STEP | {"step": step})
    progress.say("so far [good]")
    progress.close()
    lines = stream.getvalue().splitlines()
    assert len(lines) == 4
    assert lines[1] == "step 11/100, 1:29 left, 10.0 images/s, loss 0.5, gradient 1, 1 MiB"
    assert lines[-1] == "so far [good]"


def test_progress_in_a_terminal_is_one_line_that_lives() -> None:
    stream = Terminal()
    progress = Progress(10, stream=stream)
    progress.step(STEP)
    progress.say("so far [good]")
    progress.close()
    assert "so far [good]" in stream.getvalue()
    assert "1/10" in stream.getvalue()


@pytest.mark.parametrize("terminal", [False, True])
def test_nobody_listening_does_no_harm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, terminal: bool) -> None:
    stream = Gone()
    monkeypatch.setattr(stream, "isatty", lambda: terminal)
    monkeypatch.setattr(sys, "stderr", stream)
    assert fit(ToyTask(), ToyLoader(), settings(steps=3), tmp_path).steps == 3


def test_a_closed_pipe_does_no_harm(tmp_path: Path) -> None:
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]); from train.toy import *\n"
        "fit(ToyTask(), ToyLoader(), settings(steps=5), sys.argv[2])\nprint('done')"
    )
    reader, writer = os.pipe()
    os.close(reader)
    words = [sys.executable, "-c", script, str(Path(__file__).parents[1]), str(tmp_path)]
    child = subprocess.run(words, stdout=subprocess.PIPE, stderr=writer, env=os.environ | {"OMP_NUM_THREADS": "1"})
    os.close(writer)
    assert child.returncode == 0
    assert child.stdout == b"done\n"


def test_tensorboard_gets_the_numbers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    writer: Any = type("Writer", (), {"rows": [], "add_scalar": lambda self, *row: self.rows.append(row)})()
    writer.close = lambda: writer.rows.append("closed")
    monkeypatch.setitem(sys.modules, "tensorboard", type(sys)("tensorboard"))
    fake: Any = type(sys)("torch.utils.tensorboard")
    fake.SummaryWriter = lambda folder, purge_step: writer
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", fake)
    board = TensorBoard(tmp_path)
    board({"event": "step", "step": 3, "loss": 0.5, "parts": {"kl": 0.1}, "samples": "ab", "clipped": True})
    board({"event": "done", "step": 3, "seconds": 1.0})
    assert writer.rows == [("step/loss", 0.5, 3), ("step/parts/kl", 0.1, 3), ("done/seconds", 1.0, 3), "closed"]


def test_tensorboard_is_asked_for_in_words(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(RecipeError, match=r"pip install 'carrara\[tensorboard\]'"):
        TensorBoard(tmp_path)


@pytest.mark.parametrize("channels, mode", [(1, "L"), (2, "L"), (3, "RGB"), (4, "RGBA"), (8, "RGB")])
def test_pictures_lie_side_by_side(tmp_path: Path, channels: int, mode: str) -> None:
    pictures = torch.linspace(-1.5, 1.5, 5).view(5, 1, 1, 1).expand(5, channels, 4, 6)
    save_grid(tmp_path / "samples" / "grid.png", pictures)
    with Image.open(tmp_path / "samples" / "grid.png") as image:
        assert image.mode == mode and image.size == (3 * 8 - 2, 2 * 6 - 2)
        pixels = np.asarray(image.getchannel(0))
    assert [int(pixels[0, 0]), int(pixels[0, 8]), int(pixels[0, 16]), int(pixels[6, 0]), int(pixels[6, 8])] == [
        0, 32, 128, 223, 255,
    ]  # fmt: skip
    with pytest.raises(ValueError, match="N above 0"):
        save_grid(tmp_path / "x.png", pictures[0])


def test_pictures_of_a_run_are_the_same_for_the_same_weights(tmp_path: Path) -> None:
    for name in ("a", "b"):
        fit(ToyTask(), ToyLoader(), settings(), tmp_path / name, progress=False)
    names = sorted(path.name for path in (tmp_path / "a" / "samples").iterdir())
    assert names == ["step-000006.png", "step-000012.png"]
    for name in names:
        assert (tmp_path / "a" / "samples" / name).read_bytes() == (tmp_path / "b" / "samples" / name).read_bytes()


def test_pictures_that_are_not_finite_are_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    task = ToyTask()
    task.sample = lambda rng_seed: torch.full((1, 1, 4, 4), float("nan"))  # type: ignore[method-assign]
    assert fit(task, ToyLoader(), settings(), tmp_path).steps == 12
    assert "warning: the pictures at step 6 are not all finite" in capsys.readouterr().err


def test_a_disk_that_refuses_a_picture_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "samples").write_text("in the way")
    with pytest.raises(StorageError):
        save_grid(tmp_path / "samples" / "grid.png", torch.zeros(1, 1, 2, 2))


def test_memory_is_counted() -> None:
    assert 2**24 < peak_memory_bytes(torch.device("cpu")) < 2**40


PEAK = """
import torch
from carrara.train.log import peak_memory_bytes, reset_peak_memory
device = torch.device("cpu")
torch.ones(2**26).sum()
print(peak_memory_bytes(device), reset_peak_memory(device), peak_memory_bytes(device))
"""


def test_the_peak_of_memory_is_counted_anew() -> None:
    """256 MiB, given back, are no longer in the peak. In a process of its own, as another may have held more before."""
    child = subprocess.run(
        [sys.executable, "-c", PEAK],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    before, reset, after = child.stdout.split()
    if reset == "True":
        assert int(after) < int(before) - 2**27
