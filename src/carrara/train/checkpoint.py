"""Checkpoints of a run: whole or absent, checked when read, and never all thrown away.

    run/checkpoints/step-00000100/   weights, ema, optimizer, task .safetensors, state.json, manifest.json
    run/latest                       the name of the newest one

A new checkpoint is complete under its own name before `latest` names it, and only then are old ones deleted.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from carrara.errors import StorageError
from carrara.store.atomic import new_directory, remove, storage_errors, verify, write_file, write_json
from carrara.store.safetensors_io import load_tensors, refuse_nonfinite, save_tensors
from carrara.train.state import State, Tables

__all__ = ["Checkpoint", "checkpoints", "find_checkpoint", "locked", "read_checkpoint", "save_checkpoint"]

_FORMAT_VERSION = 1
_NAME = re.compile(r"step-(\d{8,})")


class Checkpoint(NamedTuple):
    """A checkpoint as it was read."""

    path: Path
    step: int
    tables: Tables  # tensors by file and name
    info: dict[str, Any]  # settings and counters


def checkpoints(folder: Path) -> list[Path]:
    """The finished checkpoints of a run folder, oldest first; they may be damaged all the same."""
    inside = folder / "checkpoints"
    found = [path for path in inside.iterdir() if _NAME.fullmatch(path.name)] if inside.is_dir() else []
    return sorted(found, key=_step)


def _step(path: Path) -> int:
    match = _NAME.fullmatch(path.name)
    return int(match[1]) if match else -1


def save_checkpoint(folder: Path, state: State, info: Mapping[str, Any], keep: int) -> Path:
    """Writes the state as a checkpoint of the run folder and deletes older ones beyond the `keep` newest.

    Raises NonFiniteError before anything is written when a weight, average or moment is not finite, and StorageError
    when the disk refuses; the checkpoints there were are untouched then.
    """
    tables = state.tables()
    for name in ("weights", "ema", "optimizer"):
        refuse_nonfinite(tables.get(name, {}), f"the checkpoint of step {state.step} is refused, {name}")
    path = folder / "checkpoints" / f"step-{state.step:08}"
    with new_directory(path, step=state.step) as temporary:
        for name, table in tables.items():
            save_tensors(temporary / f"{name}.safetensors", table, finite=False)
        facts = {**info, "format_version": _FORMAT_VERSION, "step": state.step, "tables": sorted(tables)}
        write_json(temporary / "state.json", facts)
    write_file(folder / "latest", path.name.encode() + b"\n")
    _purge(folder, keep)
    return path


def _purge(folder: Path, keep: int) -> None:
    """Deletes what is older than the `keep` newest sound checkpoints; a deletion that fails is left for next time."""
    sound = 0
    for path in reversed(checkpoints(folder)):
        if sound >= keep:
            with suppress(OSError):
                aside = path.with_name(path.name + ".old.tmp")  # so that no half-deleted folder keeps the name
                remove(aside)
                os.replace(path, aside)
                remove(aside)
            continue
        with suppress(StorageError):
            verify(path, contents=False)
            sound += 1
    for path in (folder / "checkpoints").glob("*.damaged"):
        with suppress(OSError):
            remove(path)


def find_checkpoint(folder: Path, say: Callable[[str], None], *, tidy: bool = True) -> Checkpoint | None:
    """The newest sound checkpoint of a run folder, or None for a run that has none yet.

    Damaged ones are passed over with a sentence and, with `tidy`, renamed; so are the remains of unfinished ones
    deleted. Raises StorageError when there are checkpoints and every one is damaged.
    """
    with storage_errors(f"cannot read the checkpoints of {folder}"):
        found = checkpoints(folder)
        if tidy:
            for rest in (folder / "checkpoints").glob("*.tmp"):
                remove(rest)
    reasons: list[str] = []
    for path in reversed(found):
        try:
            checkpoint = read_checkpoint(path)
        except StorageError as error:
            reasons.append(str(error))
            say(f"checkpoint {path.name} is passed over: {error}")
            continue
        if reasons:
            say(f"the run goes on from {path.name} instead")
            if tidy:
                _put_aside([other for other in found if _step(other) > checkpoint.step])
        return checkpoint
    if reasons:
        raise StorageError(
            f"none of the {len(found)} checkpoints in {folder} can be read ({reasons[0]}); "
            "restore one from a copy, or delete the folder `checkpoints` to begin again"
        )
    return None


def _put_aside(damaged: list[Path]) -> None:
    for path in damaged:
        with suppress(OSError):
            aside = path.with_name(path.name + ".damaged")
            remove(aside)
            os.replace(path, aside)


def read_checkpoint(path: Path) -> Checkpoint:
    """One checkpoint, every byte of it checked. Raises StorageError when anything about it is wrong."""
    manifest = verify(path)
    try:
        info = json.loads((path / "state.json").read_bytes())
        step, version, names = int(info["step"]), int(info["format_version"]), [str(name) for name in info["tables"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StorageError(f"{path / 'state.json'} cannot be read: {error}") from error
    if version > _FORMAT_VERSION:
        raise StorageError(f"{path} has format version {version}; this Carrara reads up to {_FORMAT_VERSION}")
    if missing := [name for name in names if f"{name}.safetensors" not in manifest["files"]]:
        raise StorageError(f"{path} has no {missing[0]}.safetensors")
    tables = {name: load_tensors(path / f"{name}.safetensors") for name in names}
    return Checkpoint(path, step, tables, info)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds the run folder, so that a second trainer is refused. Raises StorageError when somebody else holds it."""
    path = folder / "run.lock"
    with storage_errors(f"cannot use {folder} as a run folder"):
        folder.mkdir(parents=True, exist_ok=True)
        file = open(path, "a+", encoding="utf-8")  # noqa: SIM115 (held while the run lasts)
    with file:
        try:
            import fcntl
        except ImportError:  # no such locks on Windows
            yield
            return
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            holder = file.read().strip()
            raise StorageError(
                f"{folder} is in use by another training{f' (process {holder})' if holder else ''}; "
                "wait for it, stop it, or train into another folder"
            ) from None
        with suppress(OSError):
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
        yield
