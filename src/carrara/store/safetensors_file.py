"""A safetensors file of anybody's: its head is checked before anything is read, its tensors are read one by one.

    8 bytes: the length of the head    the head: JSON {name: {"dtype", "shape", "data_offsets"}, ...}    the numbers

The head is whole, no name is there twice, every tensor has exactly the bytes that its type and shape take, and together
they are the rest of the file: no gap, no overlap, nothing behind. The numbers are mapped into memory, not copied.
"""

from __future__ import annotations

import json
import math
import os
import stat
from collections import Counter
from collections.abc import Collection, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from safetensors import SafetensorError, safe_open
from torch import Tensor

from carrara.errors import StorageError

__all__ = ["ALIASES", "Entry", "SafetensorsFile"]

ALIASES = "carrara.aliases"
"""The key of the metadata that names further names of a tensor, {further name: name}."""

_LARGEST_HEAD = 16 << 20  # bytes; that of the largest models has 1 MB, the format allows 100
_LARGEST_ALIASES = 10_000
_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
    "I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64, "C64": 64,
}  # fmt: skip


class Entry(NamedTuple):
    """What the head says of one tensor; `start` and `end` count from the end of the head."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


class SafetensorsFile:
    """The tensors of one file.

    Raises StorageError when it is made of a file that is not a regular one, or not what the format says.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.entries, self.metadata = _head(path)
        self.aliases = _aliases(path, self.entries, self.metadata)

    @property
    def title(self) -> str:
        """The path."""
        return str(self.path)

    @cached_property
    def names(self) -> Collection[str]:
        """Of all tensors, further names included."""
        return dict.fromkeys((*self.entries, *self.aliases)).keys()

    def shape(self, name: str) -> tuple[int, ...]:
        """Of one tensor; KeyError where there is none."""
        return self.entries[self.aliases.get(name, name)].shape

    @cached_property
    def _file(self) -> Any:
        try:
            return safe_open(self.path, framework="pt")
        except (SafetensorError, OSError) as error:
            raise StorageError(f"{self.path} is not a readable safetensors file: {error}") from error

    def read(self, name: str) -> Tensor:
        """One tensor, whose numbers are still in the file; StorageError where there is none."""
        name = self.aliases.get(name, name)
        if name not in self.entries:
            raise StorageError(f"{self.path} has no tensor {name}")
        try:
            tensor: Tensor = self._file.get_tensor(name)
            return tensor
        except (SafetensorError, OSError) as error:
            raise StorageError(f"{self.path} is not a readable safetensors file: {error}") from error


def _head(path: Path) -> tuple[dict[str, Entry], dict[str, str]]:
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would wait for ever
            raise StorageError(f"{path} is not a regular file")
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            first = file.read(8)
            length = int.from_bytes(first, "little")
            if len(first) < 8 or length > size - 8:
                _refuse(path, f"it has {size:,} bytes and is cut off" if size else "it is empty")
            if length > _LARGEST_HEAD:
                _refuse(path, f"its head has {length:,} bytes, and at most {_LARGEST_HEAD:,} are read")
            text = file.read(length)
    except FileNotFoundError:
        raise StorageError(f"{path} is missing") from None
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error.strerror or error}") from error
    try:
        if not text.startswith(b"{"):
            raise ValueError("it does not begin with a brace")
        body = json.loads(text.decode("utf-8"), object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        _refuse(path, f"its head is no JSON: {str(error)[:120]}")
    metadata = body.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        _refuse(path, "its __metadata__ is no table of texts")
    entries = {name: _entry(path, name, told) for name, told in body.items()}
    _fill(path, entries, size - 8 - length)
    return entries, metadata


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        ((twice, _),) = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"the name {_short(twice)} is there twice")
    return table


def _entry(path: Path, name: str, told: Any) -> Entry:
    if not isinstance(told, dict) or told.keys() != {"dtype", "shape", "data_offsets"}:
        _refuse(path, f"{_short(name)} has not exactly a dtype, a shape and data_offsets")
    dtype, shape, offsets = told["dtype"], told["shape"], told["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _BITS:
        _refuse(path, f"{_short(name)} is of a type that does not exist here, {_short(dtype)}")
    if not _whole_numbers(shape) or not _whole_numbers(offsets) or len(offsets) != 2:
        _refuse(path, f"{_short(name)} has a shape or offsets that are no sizes")
    needed = math.prod(shape) * _BITS[dtype] // 8
    if needed >= 2**63:
        _refuse(path, f"{_short(name)} has a shape whose size overflows")
    if offsets[1] - offsets[0] != needed:
        _refuse(path, f"{_short(name)} has {_short(offsets[1] - offsets[0])} bytes, and its shape takes {needed:,}")
    return Entry(dtype, tuple(shape), *offsets)


def _whole_numbers(value: Any) -> bool:
    return isinstance(value, list) and len(value) <= 64 and all(type(n) is int and 0 <= n < 2**63 for n in value)


def _fill(path: Path, entries: Mapping[str, Entry], size: int) -> None:
    """Refuses gaps, overlaps and numbers that are not in the file."""
    at = 0
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].end)):
        if entry.start != at:
            _refuse(path, f"{_short(name)} {'overlaps another' if entry.start < at else 'comes after a gap'}")
        at = entry.end
    if at != size:
        what = f"{size - at:,} bytes are left over" if at < size else f"it is cut off: {at - size:,} bytes are missing"
        _refuse(path, what)


def _aliases(path: Path, entries: Mapping[str, Entry], metadata: Mapping[str, str]) -> dict[str, str]:
    try:
        aliases = json.loads(metadata.get(ALIASES, "{}"))
    except (ValueError, RecursionError):
        aliases = None
    if (
        not isinstance(aliases, dict)
        or len(aliases) > _LARGEST_ALIASES
        or not all(isinstance(name, str) and name in entries for name in aliases.values())
        or not entries.keys().isdisjoint(aliases)
    ):
        raise StorageError(f"{path} has broken metadata: {ALIASES} names no tensors of the file")
    return aliases


def _short(value: object) -> str:
    text = ascii(value)
    return text if len(text) <= 80 else f"{text[:60]}..."


def _refuse(path: Path, why: str) -> NoReturn:
    raise StorageError(f"{path} is not a readable safetensors file: {why}")
