"""A file that torch.save wrote (.ckpt, .pt, .pth, .bin), read without unpickling anything, by a process of its own.

    first bytes of the file -> is it one at all? -> a child lists its pickle (torch_child.py) -> safetensors in a
    temporary folder -> checked and mapped into memory, as any other safetensors file

So a hostile file meets a process that has little memory and time, and may open, import and run nothing; what it leaves
behind is trusted no more than the file was.
"""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Collection
from functools import cached_property
from pathlib import Path

from torch import Tensor

from carrara.errors import StorageError
from carrara.store import torch_child
from carrara.store.atomic import require_space
from carrara.store.safetensors_file import SafetensorsFile

__all__ = ["TorchFile"]

_MAGIC = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the number that the old format begins with, as a pickle has it
_END = b"PK\x05\x06"  # where a zip archive's list of members ends
_TAIL = 22 + 0xFFFF  # bytes that this end takes at most
_PATIENCE = 60  # seconds, and one more for each _PACE bytes
_PACE = 10 << 20
_WORDS = 300  # that are said of what is wrong


class TorchFile:
    """The tensors of one file; the file is converted when the first of them is asked for."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def title(self) -> str:
        """The path."""
        return str(self.path)

    @cached_property
    def _converted(self) -> SafetensorsFile:
        folder = Path(tempfile.mkdtemp(prefix="carrara-"))
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        return _convert(self.path, folder)

    @property
    def names(self) -> Collection[str]:
        """Of all tensors; StorageError for a file that holds other things than a state dict."""
        return self._converted.names

    def shape(self, name: str) -> tuple[int, ...]:
        """Of one tensor; KeyError where there is none."""
        return self._converted.shape(name)

    def read(self, name: str) -> Tensor:
        """One tensor; StorageError where there is none, or the file holds other things than a state dict."""
        if name not in self.names:
            raise StorageError(f"{self.path} has no tensor {name}")
        return self._converted.read(name)


def _convert(path: Path, folder: Path) -> SafetensorsFile:
    size = _glance(path)
    require_space(folder, size, f"reading {path}")
    out = folder / "tensors.safetensors"
    command = [sys.executable, "-I", "-S", "-B", str(Path(torch_child.__file__)), os.path.abspath(path), str(out)]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=_PATIENCE + size // _PACE,
            env={},
            cwd=folder,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise StorageError(f"{path} is not a state dict: reading it takes too long") from None
    except OSError as error:
        raise StorageError(f"{path} cannot be read: no process could be started ({error.strerror})") from error
    if done.returncode:
        said = done.stdout[:_WORDS].decode("ascii", "replace") or _stopped(done.returncode)
        raise StorageError(f"{path} is not a state dict in a format of PyTorch: {said}")
    return SafetensorsFile(out)


def _stopped(code: int) -> str:
    if code in (-signal.SIGKILL, -getattr(signal, "SIGXCPU", signal.SIGKILL)):
        return "reading it takes more time or memory than its size allows"
    return f"the process that reads it ended with {code}"


def _glance(path: Path) -> int:
    """The size of a file that may be one; StorageError, by its first and last bytes, for one that cannot be."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise StorageError(f"{path} is not a regular file")
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            first = file.read(16)
            file.seek(max(0, size - _TAIL))
            last = file.read(_TAIL)
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror or error}") from error
    what = "is not a state dict in a format of PyTorch"
    if first.startswith(b"PK\x03\x04"):
        if _END not in last:
            raise StorageError(f"{path} {what}: it is cut off, since the zip archive that it is has no end")
    elif not (first[:1] == b"\x80" and first[2:].startswith(_MAGIC)):
        raise StorageError(f"{path} {what}: {_kind(first) if size else 'it is empty'}")
    return size


def _kind(first: bytes) -> str:
    """What a file is that torch.save did not write, by its first bytes."""
    known = {
        b"\x80": "it is a pickle that torch.save did not write, and no other is ever read",
        b"7z\xbc\xaf'\x1c": "it is a 7z archive",
        b"\x1f\x8b": "it is a gzip archive",
        b"Rar!": "it is a rar archive",
        b"GGUF": "it is a GGUF file; only safetensors and torch.save's formats are read",
        b"\x89HDF": "it is an HDF5 file; only safetensors and torch.save's formats are read",
        b"PK": "it is an empty or broken zip archive",
        b"version https": "it is a pointer of git-lfs; fetch the file itself with:  git lfs pull",
        b"<": "it is a web page",
    }
    return next((what for begin, what in known.items() if first.startswith(begin)), "it does not begin as one does")
