"""Folders that a command is about to write to."""

from __future__ import annotations

import os
from pathlib import Path

from carrara.errors import StorageError

__all__ = ["default_folder", "require_writable", "unwritable"]


def default_folder(folder: Path) -> Path:
    """Where what belongs to a data folder goes unless told otherwise: `carrara-<its name>`, here."""
    return Path(f"carrara-{folder.expanduser().resolve().name or 'pictures'}")


def unwritable(folder: Path) -> str | None:
    """Why nothing can be written into a folder, which need not exist yet; None where it can. It is not made."""
    place = folder
    while not place.exists() and place != place.parent:
        place = place.parent
    if not place.is_dir():
        return f"{place} is a file"
    trial = place / f".carrara-{os.getpid()}.tmp"
    try:
        trial.touch()
        trial.unlink()
    except OSError as error:
        return error.strerror or str(error)
    return None


def require_writable(folder: Path) -> None:
    """Raises StorageError unless something can be written into the folder: before hours of work, not after."""
    if why := unwritable(folder):
        raise StorageError(f"cannot write into {folder}: {why}; choose another folder")
