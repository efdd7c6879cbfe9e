"""A checkpoint is there whole or not at all, damage is found, and the last good one is never thrown away."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch

from carrara.errors import NonFiniteError, StorageError
from carrara.train import fit
from carrara.train import loop as loop_module
from carrara.train.checkpoint import checkpoints, find_checkpoint, read_checkpoint, save_checkpoint
from carrara.train.log import Event
from carrara.train.state import State
from train.crash import INFO, crash_everywhere, same, small_files, state_at
from train.toy import ToyLoader, ToyTask, process, settings


def saved(folder: Path, *steps: int, keep: int = 9) -> State:
    state = state_at(1)
    for step in steps:
        state.step = step
        save_checkpoint(folder, state, INFO, keep)
    return state


def names(folder: Path) -> list[int]:
    return [int(path.name[5:]) for path in checkpoints(folder)]


def test_a_crash_at_any_file_operation_leaves_a_valid_checkpoint(tmp_path: Path) -> None:
    result = tmp_path / "result.json"
    memory = Path("/dev/shm")  # some 150 saves, each with 20 fsyncs
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else tmp_path) as runs:
        child = process(crash_everywhere, runs, str(result))
        child.join(120)
    assert child.exitcode == 0
    report = json.loads(result.read_text())
    assert report["wrong"] == []
    assert report["crashes"] > 70


def test_a_state_comes_back_bit_for_bit(tmp_path: Path) -> None:
    state = state_at(4)
    path = save_checkpoint(tmp_path, state, INFO, keep=1)
    other = State(ToyTask(seed=9), state.training, state.device, "float32")
    found = read_checkpoint(path)
    other.load(found.tables, found.step)
    assert other.step == 4
    assert same(other.tables(), state.tables())
    assert {"step", "exp_avg", "exp_avg_sq"} == {name.rsplit("/", 1)[1] for name in found.tables["optimizer"]}
    assert found.tables["task"]["seen"] == 32


@pytest.mark.parametrize("name", ["weights.safetensors", "optimizer.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("harm", ["cut", "flip", "delete", "empty"])
def test_a_damaged_checkpoint_is_passed_over_with_a_sentence(tmp_path: Path, name: str, harm: str) -> None:
    saved(tmp_path, 3, 6)
    file = tmp_path / "checkpoints" / "step-00000006" / name
    data = file.read_bytes()
    draw = random.Random(name + harm)
    for _ in range(4 if harm in ("cut", "flip") else 1):
        place = draw.randrange(len(data) - 2)
        changed = {
            "cut": data[:place],
            "flip": data[:place] + bytes([data[place] ^ 0x80]) + data[place + 1 :],
            "empty": b"",
        }
        file.write_bytes(changed.get(harm, b""))
        if harm == "delete":
            file.unlink()
        said: list[str] = []
        found = find_checkpoint(tmp_path, said.append, tidy=False)
        assert found is not None and found.step == 3
        assert "step-00000006 is passed over" in said[0] and "goes on from step-00000003" in said[1]
        with pytest.raises(StorageError):
            read_checkpoint(file.parent)


def test_a_damaged_checkpoint_is_put_aside_until_there_is_a_better_one(tmp_path: Path) -> None:
    state = saved(tmp_path, 3, 6)
    (tmp_path / "checkpoints" / "step-00000006" / "ema.safetensors").write_bytes(b"")
    assert find_checkpoint(tmp_path, lambda _: None) is not None
    assert names(tmp_path) == [3]
    assert (tmp_path / "checkpoints" / "step-00000006.damaged").exists()
    state.step = 5
    save_checkpoint(tmp_path, state, INFO, keep=1)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000005"]


def test_a_damaged_checkpoint_is_not_counted_among_those_kept(tmp_path: Path) -> None:
    """Damage that nobody has noticed yet: two whole ones are kept all the same."""
    state = saved(tmp_path, 3, 6, 9)
    (tmp_path / "checkpoints" / "step-00000009" / "weights.safetensors").write_bytes(b"")
    state.step = 12
    save_checkpoint(tmp_path, state, INFO, keep=2)
    assert [step for step in names(tmp_path) if step != 9] == [6, 12]


def test_when_all_are_damaged_the_run_does_not_begin_again_by_itself(tmp_path: Path) -> None:
    saved(tmp_path, 3, 6)
    for path in checkpoints(tmp_path):
        (path / "weights.safetensors").write_bytes(b"")
    with pytest.raises(StorageError, match="none of the 2 checkpoints"):
        fit(ToyTask(), ToyLoader(), settings(), tmp_path, progress=False)
    assert names(tmp_path) == [3, 6]


def test_a_later_format_is_refused(tmp_path: Path) -> None:
    saved(tmp_path, 3)
    from carrara.store.atomic import new_directory

    path = checkpoints(tmp_path)[0]
    copy = tmp_path / "copy"
    shutil.copytree(path, copy)
    with new_directory(path) as temporary:
        for file in copy.glob("*.safetensors"):
            shutil.copy(file, temporary)
        info = json.loads((copy / "state.json").read_text()) | {"format_version": 99}
        (temporary / "state.json").write_text(json.dumps(info))
    with pytest.raises(StorageError, match="format version 99"):
        read_checkpoint(path)


def test_remains_of_a_crash_are_cleared_away(tmp_path: Path) -> None:
    saved(tmp_path, 3)
    (tmp_path / "checkpoints" / "step-00000006.tmp").mkdir()
    (tmp_path / "checkpoints" / "step-00000002.old.tmp").mkdir()
    assert find_checkpoint(tmp_path, print) is not None
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000003"]
    assert find_checkpoint(tmp_path / "nothing", print) is None


@pytest.mark.parametrize("seed", range(6))
def test_retention_keeps_enough_good_ones_whatever_happens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    draw, keep = random.Random(seed), 1 + seed % 3
    state = state_at(1)
    state.step, good, resumed = 0, set[int](), -1
    for _ in range(25):
        action = draw.choice(["save", "save", "save", "fail", "stuck", "damage", "resume"])
        if action == "damage" and len(good) > 1:
            newest = max(good)
            (tmp_path / "checkpoints" / f"step-{newest:08}" / "weights.safetensors").write_bytes(b"")
            good.remove(newest)
            action = "resume"
        if action == "resume" and good:
            found = find_checkpoint(tmp_path, lambda _: None)
            assert found is not None and found.step == max(good)
            state.step = resumed = found.step
        if action in ("save", "stuck", "fail"):
            state.step += 1
            with monkeypatch.context() as patch:
                if action == "fail":
                    patch.setattr(os, "fsync", _full)
                    with pytest.raises(StorageError, match="no space is left"):
                        save_checkpoint(tmp_path, state, INFO, keep)
                    assert set(names(tmp_path)) >= good
                    state.step -= 1
                    continue
                if action == "stuck":
                    patch.setattr("carrara.train.checkpoint.remove", _full)
                save_checkpoint(tmp_path, state, INFO, keep)
            good.add(state.step)
            left = set(names(tmp_path))
            assert set(sorted(good)[-keep:]) <= left
            assert resumed in {-1, *left} or len([step for step in good if step > resumed]) >= keep
            if action == "save":
                assert len(left & good) == min(keep, len(good))
            good &= left


def _full(*_: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    child = process(small_files, str(tmp_path / "run"), str(tmp_path / "said"))
    child.join(60)
    assert "cannot write" in (tmp_path / "said").read_text()
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000001"]
    assert same(read_checkpoint(checkpoints(tmp_path / "run")[0]).tables, state_at(1).tables())


def test_a_disk_that_fills_up_ends_the_run_and_it_goes_on_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill(event: Event) -> None:
        if event["event"] == "step" and event["step"] == 5:
            monkeypatch.setattr("carrara.store.atomic.os.fsync", _full)

    with monkeypatch.context() as patch:
        patch.setattr("carrara.train.log.os.fsync", os.fsync)
        with pytest.raises(StorageError, match="no space is left"):
            fit(ToyTask(), ToyLoader(), settings(sample_every=0), tmp_path, progress=False, on_event=fill)
    monkeypatch.undo()
    assert names(tmp_path) == [0, 3]
    outcome = fit(ToyTask(), ToyLoader(), settings(sample_every=0), tmp_path, progress=False)
    assert outcome.resumed_from == 3


def test_too_little_space_is_found_before_the_first_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("carrara.store.atomic.free_bytes", lambda _: 1000)
    with pytest.raises(StorageError, match="are free"):
        fit(ToyTask(), ToyLoader(), settings(), tmp_path, progress=False)


def test_a_folder_that_cannot_be_made_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="run folder"):
        fit(ToyTask(), ToyLoader(), settings(), tmp_path / "file" / "run", progress=False)


def test_a_second_trainer_is_refused(tmp_path: Path) -> None:
    def again(event: Event) -> None:
        if event["event"] == "step" and event["step"] == 2:
            with pytest.raises(StorageError, match=rf"in use by another training .process {os.getpid()}"):
                fit(ToyTask(), ToyLoader(), settings(), tmp_path, progress=False)

    fit(ToyTask(), ToyLoader(), settings(), tmp_path, progress=False, on_event=again)
    assert names(tmp_path) == [9, 12]


def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    task = ToyTask()

    def poison(event: Event) -> None:
        if event["event"] == "step" and event["step"] == 6:
            with torch.no_grad():
                task.modules["critic"].weight[0, 3] = float("nan")

    with pytest.raises(NonFiniteError, match=r"step 6 is refused, weights: critic\.weight holds NaN"):
        fit(task, ToyLoader(), settings(keep=1), tmp_path, progress=False, on_event=poison)
    assert names(tmp_path) == [3]


def test_a_checkpoint_is_due_after_some_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 10**6, 10))
    monkeypatch.setattr(loop_module.time, "monotonic", lambda: float(next(clock)))
    fit(ToyTask(), ToyLoader(), settings(save_every=0, save_seconds=60.0, keep=99), tmp_path, progress=False)
    assert 4 <= len(names(tmp_path)) <= 12
