"""A run that was stopped ends with the bits of one that was not."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from carrara.errors import Preempted, RecipeError
from carrara.store.safetensors_io import load_tensors
from carrara.train import fit
from carrara.train.checkpoint import checkpoints, find_checkpoint, read_checkpoint
from carrara.train.log import Event, read_log
from train.toy import ToyLoader, ToyTask, main, process, settings

TOY = Path(__file__).with_name("toy.py")
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}


def run(folder: Path, *, stop_after: int | None = None, **changes: object) -> None:
    def stop(event: Event) -> None:
        if event["event"] == "step" and event["step"] == stop_after:
            signal.raise_signal(signal.SIGTERM)

    fit(ToyTask(), ToyLoader(), settings(**changes), folder, progress=False, on_event=stop)


def bits(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(path.glob("*.safetensors"))}


def history(folder: Path) -> list[tuple[object, ...]]:
    keys = ("event", "step", "samples", "loss", "parts", "grad_norm", "clipped", "lr", "critic/loss", "figures")
    events = [event for event in read_log(folder / "log.jsonl") if event["event"] in ("step", "validate")]
    return [tuple(str(event.get(key)) for key in keys) for event in events]


def assert_same(a: Path, b: Path) -> None:
    assert bits(checkpoints(a)[-1]) == bits(checkpoints(b)[-1])
    assert set(bits(checkpoints(a)[-1])) == {f"{n}.safetensors" for n in ("weights", "ema", "optimizer", "task")}
    assert (a / "weights.safetensors").read_bytes() == (b / "weights.safetensors").read_bytes()
    assert history(a) == history(b)
    for picture in (a / "samples").iterdir():
        assert picture.read_bytes() == (b / "samples" / picture.name).read_bytes()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    run(folder)
    return folder


@pytest.mark.parametrize("stops", [(1,), (3,), (4, 5, 11), (6, 7, 8)])
def test_a_resumed_run_ends_with_the_same_bits(whole: Path, tmp_path: Path, stops: tuple[int, ...]) -> None:
    for step in stops:
        with pytest.raises(Preempted, match=f"SIGTERM after step {step} of 12") as caught:
            run(tmp_path, stop_after=step)
        assert caught.value.exit_code == 143
        assert checkpoints(tmp_path)[-1].name == f"step-{step:08}"
    run(tmp_path)
    assert_same(whole, tmp_path)


def test_the_global_generator_has_no_say_and_is_given_back(whole: Path, tmp_path: Path) -> None:
    torch.manual_seed(123)
    before = torch.random.get_rng_state()
    run(tmp_path)
    assert torch.equal(before, torch.random.get_rng_state())
    assert_same(whole, tmp_path)


def test_a_killed_run_has_the_bits_of_an_uninterrupted_one(tmp_path: Path) -> None:
    steps, whole, killed = "60", tmp_path / "whole", tmp_path / "killed"
    other = process(main, str(whole), steps)
    draw = random.Random(7)
    kills = 0
    for _ in range(5):
        child = process(main, str(killed), steps, "0.01")
        target = (find_step(killed) or 0) + draw.randint(2, 12)
        deadline = time.monotonic() + 30
        while child.is_alive() and (find_step(killed) or 0) < target and time.monotonic() < deadline:
            time.sleep(draw.uniform(0.001, 0.02))
        child.kill()
        child.join()
        kills += child.exitcode == -signal.SIGKILL
    last = process(main, str(killed), steps)
    for child in (other, last):
        child.join(60)
        assert child.exitcode == 0
    assert kills == 5
    assert_same(whole, killed)


def find_step(folder: Path) -> int | None:
    steps = [event["step"] for event in read_log(folder / "log.jsonl")]
    return max(steps, default=None)


def test_sigterm_ends_a_process_with_143_and_the_command_goes_on(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    child = subprocess.Popen(
        [sys.executable, str(TOY), str(folder), "40", "0.05"], env=ENVIRONMENT, stderr=subprocess.PIPE, text=True
    )
    while child.poll() is None and not find_step(folder):
        time.sleep(0.02)
    child.terminate()
    _, said = child.communicate(timeout=30)
    assert child.returncode == 143, said
    assert "the same command goes on" in said
    assert "Traceback" not in said
    found = find_checkpoint(folder, print)
    assert found is not None and found.step == find_step(folder)


def test_a_second_signal_ends_at_once_and_leaves_sound_checkpoints(tmp_path: Path) -> None:
    def stop(event: Event) -> None:
        if event["event"] == "step" and event["step"] == 5:
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGINT)

    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Preempted, match="at once"):
        fit(ToyTask(), ToyLoader(), settings(), tmp_path, progress=False, on_event=stop)
    assert signal.getsignal(signal.SIGTERM) is handler
    found = find_checkpoint(tmp_path, print)
    assert found is not None and found.step == 3


def test_a_finished_run_is_left_alone_unless_its_component_is_gone(whole: Path) -> None:
    stamp = (whole / "weights.safetensors").stat().st_mtime_ns
    run(whole)
    assert (whole / "weights.safetensors").stat().st_mtime_ns == stamp
    (whole / "weights.safetensors").unlink()
    run(whole)
    ema = read_checkpoint(checkpoints(whole)[-1]).tables["ema"]
    saved = load_tensors(whole / "weights.safetensors")
    assert all(torch.equal(saved[name], value) for name, value in ema.items())


@pytest.mark.parametrize(
    "change", [{"seed": 6}, {"learning_rate": 1e-3}, {"ema": 0.5}, {"steps": 14}, {"betas": (0.5, 0.9)}, {"clip": None}]
)
def test_other_settings_are_refused_by_name(whole: Path, change: dict[str, object]) -> None:
    with pytest.raises(RecipeError, match=next(iter(change))):
        run(whole, **change)


def test_settings_that_change_no_result_may_change(tmp_path: Path, whole: Path) -> None:
    with pytest.raises(Preempted):
        run(tmp_path, stop_after=4)
    run(tmp_path, save_every=0, keep=1, precision="auto")
    assert bits(checkpoints(tmp_path)[-1]) == bits(checkpoints(whole)[-1])


def test_other_data_and_other_architectures_are_refused(whole: Path) -> None:
    other = ToyLoader()
    other.fingerprint = "other"
    with pytest.raises(RecipeError, match="other data"):
        fit(ToyTask(), other, settings(), whole, progress=False)
    task = ToyTask()
    task.modules["extra"] = torch.nn.Linear(2, 2)
    with pytest.raises(RecipeError, match="another architecture"):
        fit(task, ToyLoader(), settings(), whole, progress=False)
    with pytest.raises(RecipeError, match="phases"):
        fit(ToyTask(phases=1), ToyLoader(), settings(), whole, progress=False)


def test_a_constant_rate_can_be_trained_on(tmp_path: Path) -> None:
    run(tmp_path / "a", decay="constant", steps=6)
    run(tmp_path / "a", decay="constant", steps=9)
    run(tmp_path / "b", decay="constant", steps=9)
    assert bits(checkpoints(tmp_path / "a")[-1]) == bits(checkpoints(tmp_path / "b")[-1])
    with pytest.raises(RecipeError, match="has done 9 steps"):
        run(tmp_path / "a", decay="constant", steps=6)
