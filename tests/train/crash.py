"""Crashes at chosen file operations, for processes of their own."""

from __future__ import annotations

import builtins
import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from carrara.store import safetensors_io
from carrara.store.safetensors_io import nonfinite
from carrara.train.checkpoint import checkpoints, find_checkpoint, save_checkpoint
from carrara.train.parallel import World
from carrara.train.settings import Training
from carrara.train.state import State
from carrara.train.step import train_step
from train.toy import ToyLoader, ToyTask, settings

INFO = {"settings": {}, "counters": {}, "phases": ["body", "critic"], "data": None}


def state_at(step: int, **changes: object) -> State:
    """A run's state after some steps, made on the spot."""
    training: Training = settings(**changes)
    state = State(ToyTask(), training, torch.device("cpu"), "float32")
    for number in range(step):
        train_step(state, ToyLoader().batch(number), World())
    return state


def same(a: dict[str, dict[str, torch.Tensor]], b: dict[str, dict[str, torch.Tensor]]) -> bool:
    """Whether two sets of tables hold the same bits."""
    return a.keys() == b.keys() and all(
        a[name].keys() == b[name].keys() and all(torch.equal(a[name][key], b[name][key]) for key in a[name])
        for name in a
    )


class Crash:
    """Ends the process before the k-th operation that changes a disk, or (`torn`) half-way through the k-th write."""

    def __init__(self, k: int, torn: bool) -> None:
        self.k, self.torn, self.count = k, torn, 0

    def install(self) -> None:
        """Puts itself in front of every operation that changes a disk."""
        for module, names in (
            (os, ("replace", "rename", "fsync", "mkdir", "rmdir", "unlink", "remove", "chmod", "open")),
            (safetensors_io, ("save_file",)),
        ):
            for name in names:
                setattr(module, name, self._wrap(getattr(module, name), name))
        opened = builtins.open

        def watched(*words: Any, **named: Any) -> Any:
            file = self._call(opened, "open", *words, **named)
            return _Watched(file, self) if "w" in str(words[1:2]) + str(named.get("mode", "")) else file

        builtins.open = watched  # type: ignore[assignment]
        io.open = watched  # type: ignore[assignment]

    def _wrap(self, call: Callable[..., Any], name: str) -> Callable[..., Any]:
        return lambda *words, **named: self._call(call, name, *words, **named)

    def _call(self, call: Callable[..., Any], name: str, *words: Any, **named: Any) -> Any:
        if not self.torn or name == "save_file":
            self.count += 1
            if self.count == self.k:
                if self.torn:
                    Path(words[1]).write_bytes(b"half of a file")
                os._exit(137)
        return call(*words, **named)

    def write(self, file: Any, data: Any) -> Any:
        """A write, or half of one."""
        self.count += 1
        if self.count == self.k:
            if self.torn:
                file.write(data[: len(data) // 2])
                file.flush()
            os._exit(137)
        return file.write(data)


class _Watched:
    def __init__(self, file: Any, crash: Crash) -> None:
        self._file, self._crash = file, crash

    def write(self, data: Any) -> Any:
        return self._crash.write(self._file, data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> _Watched:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def crash_everywhere(folder: str, result: str) -> None:
    """Saves step 2 over step 1 with a crash at every file operation in turn, and looks at what is left each time."""
    torch.set_num_threads(1)
    base = Path(folder)
    old, new = state_at(1), state_at(2)
    before = {name: {key: value.clone() for key, value in table.items()} for name, table in old.tables().items()}
    save_checkpoint(base / "base", old, INFO, keep=1)
    crashes, wrong = 0, []
    for torn in (False, True):
        k = 1
        while True:
            place = base / f"{torn}-{k}"
            shutil.copytree(base / "base", place)
            child = os.fork()
            if child == 0:
                Crash(k, torn).install()
                save_checkpoint(place, new, INFO, keep=1)
                os._exit(0)
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            wrong += [f"{place.name}: {fault}" for fault in _faults(place, before, new)]
            shutil.rmtree(place)
            if code == 0:
                break
            crashes += 1
            k += 1
    Path(result).write_text(json.dumps({"crashes": crashes, "wrong": wrong}))


def _faults(place: Path, before: dict[str, dict[str, torch.Tensor]], new: State) -> list[str]:
    said: list[str] = []
    found = find_checkpoint(place, said.append)
    if found is None:
        return ["no checkpoint is left"]
    expected = before if found.step == 1 else new.tables()
    faults = [] if same(found.tables, expected) else [f"step {found.step} holds other bits"]
    faults += [f"a checkpoint was damaged: {said}"] if said else []
    faults += ["not finite"] if any(nonfinite(table) for table in found.tables.values()) else []
    save_checkpoint(place, new, INFO, keep=1)
    again = find_checkpoint(place, said.append)
    faults += [] if again and again.step == 2 and same(again.tables, new.tables()) else ["it cannot be saved again"]
    faults += [] if [path.name for path in checkpoints(place)] == ["step-00000002"] else ["others are left"]
    faults += [] if (place / "latest").read_text() == "step-00000002\n" else ["latest is wrong"]
    left = [path.name for path in (place / "checkpoints").iterdir() if path.name != "step-00000002"]
    return faults + ([f"remains: {left}"] if left else [])


def small_files(folder: str, result: str) -> None:
    """A run in a process that may not write files beyond 4 KiB after its first checkpoint, as on a full disk."""
    import resource

    from carrara.errors import StorageError

    torch.set_num_threads(1)
    save_checkpoint(Path(folder), state_at(1), INFO, keep=2)
    resource.setrlimit(resource.RLIMIT_FSIZE, (700, resource.RLIM_INFINITY))
    try:
        save_checkpoint(Path(folder), state_at(2), INFO, keep=2)
        said = "nothing"
    except StorageError as error:
        said = str(error)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    Path(result).write_text(said)
