"""A state dict in the file format that PyTorch wrote before 1.6, read as data: nothing in the file is executed.

    magic number, protocol, system       three small pickles
    names -> views of storages           a pickle: the state dict
    keys of the storages                 a pickle: their order in the file
    for each key: count, numbers         8 bytes, then the raw numbers

A pickle is a program for a stack machine that can call anything. Here its instructions are only listed
(`pickletools.genops`), and the few that a state dict is made of are carried out on plain dicts, lists and tuples: a
name of code stays a name, and only "an OrderedDict" and "a tensor" are understood. Everything else is refused.
"""

from __future__ import annotations

import io
import math
import pickletools
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from carrara.errors import StorageError
from carrara.store.atomic import storage_errors

__all__ = ["load_torch_file"]

_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
_LARGEST = 4 << 30  # bytes of a file
_TYPES = {
    "torch BoolStorage": "?",
    "torch ByteStorage": "u1",
    "torch CharStorage": "i1",
    "torch DoubleStorage": "<f8",
    "torch FloatStorage": "<f4",
    "torch HalfStorage": "<f2",
    "torch IntStorage": "<i4",
    "torch LongStorage": "<i8",
    "torch ShortStorage": "<i2",
}


class _Name(NamedTuple):
    """A name of code, which is never looked up."""

    text: str


class _Storage(NamedTuple):
    """A row of numbers that comes later in the file."""

    key: str
    dtype: str
    numbers: int


class _View(NamedTuple):
    """A tensor: some of a storage's numbers, in some order."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def end(self) -> int:
        """One behind the last number that it reads."""
        last = sum((size - 1) * stride for size, stride in zip(self.shape, self.stride, strict=True))
        return self.offset + last + 1 if self.size else self.offset


def load_torch_file(path: Path) -> dict[str, Tensor]:
    """The tensors of a state dict by name. Raises StorageError for a file that is anything else."""
    with storage_errors(f"cannot read {path}"):
        if path.stat().st_size > _LARGEST:
            raise StorageError(f"{path} has {path.stat().st_size:,} bytes; expected at most {_LARGEST:,}")
        data = path.read_bytes()
    if data[:4] == b"PK\x03\x04":
        raise StorageError(f"{path} is in the newer format of torch.save; save its tensors as safetensors")
    stream = io.BytesIO(data)
    try:
        if (_run(stream), _run(stream)) != (_MAGIC, _PROTOCOL):
            raise ValueError("it does not begin as such a file does")
        system, views, keys = _run(stream), _run(stream), _run(stream)
        if not system["little_endian"]:
            raise ValueError("its numbers are big-endian")
        return _tensors(_checked(views), keys, data, stream.tell())
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError) as error:
        raise StorageError(f"{path} is not a state dict in PyTorch's old file format: {error}") from error


def _checked(views: Any) -> dict[str, _View]:
    if not isinstance(views, dict) or not all(isinstance(k, str) and isinstance(v, _View) for k, v in views.items()):
        raise ValueError("it holds other things than named tensors")
    return views


def _tensors(views: dict[str, _View], keys: Any, data: bytes, at: int) -> dict[str, Tensor]:
    known = {view.storage.key: view.storage for view in views.values()}
    if not isinstance(keys, list) or sorted(keys) != sorted(known):
        raise ValueError("its list of storages is not that of its tensors")
    rows = {}
    for key in keys:
        storage = known[key]
        if int.from_bytes(data[at : at + 8], "little") != storage.numbers:
            raise ValueError(f"storage {key!r} has another length than its tensors say")
        rows[key] = np.frombuffer(data, storage.dtype, storage.numbers, at + 8).copy()
        at += 8 + rows[key].nbytes
    if at != len(data):
        raise ValueError(f"{len(data) - at} bytes are left over")
    if sum(view.size for view in views.values()) > sum(map(len, rows.values())):
        raise ValueError("its tensors have more numbers than it holds")
    found = {}
    for name, view in views.items():
        if view.end > view.storage.numbers:
            raise ValueError(f"{name!r} reaches beyond its storage")
        row = torch.from_numpy(rows[view.storage.key])
        found[name] = row.as_strided(view.shape, view.stride, view.offset).contiguous()
    return found


# --- the stack machine ------------------------------------------------------------------------------------------------

_MARK = object()
_CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": (), "MARK": _MARK}
_LITERALS = frozenset({"BININT", "BININT1", "BININT2", "LONG1", "BINUNICODE"})
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def _run(stream: io.BytesIO) -> Any:
    """What the pickle at the stream's position describes; the position is then behind it."""
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    for code, argument, _ in pickletools.genops(stream):
        name = code.name
        if name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _LITERALS:
            stack.append(argument)
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[_whole(argument)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[_whole(argument)])
        elif name == "STOP":
            return stack.pop()
        elif name != "PROTO":
            _build(name, argument, stack)
    raise ValueError("it is cut off")


def _build(name: str, argument: Any, stack: list[Any]) -> None:
    """The instructions that make something of what lies on the stack."""
    if name == "EMPTY_DICT":
        stack.append({})
    elif name == "EMPTY_LIST":
        stack.append([])
    elif name == "GLOBAL":
        stack.append(_Name(argument))
    elif name == "BINPERSID":
        stack.append(_storage(stack.pop()))
    elif name == "TUPLE":
        stack.append(tuple(_since_mark(stack)))
    elif name in _TUPLES:
        stack[-_TUPLES[name] :] = [tuple(stack[-_TUPLES[name] :])]
    elif name in ("APPEND", "APPENDS"):
        values = _since_mark(stack) if name == "APPENDS" else [stack.pop()]
        _of(stack[-1], list).extend(values)
    elif name in ("SETITEM", "SETITEMS"):
        pairs = _since_mark(stack) if name == "SETITEMS" else [stack.pop() for _ in range(2)][::-1]
        _of(stack[-1], dict).update(zip(pairs[::2], pairs[1::2], strict=True))
    elif name == "REDUCE":
        arguments, function = _of(stack.pop(), tuple), stack.pop()
        stack.append(_made(function, arguments))
    elif name == "BUILD":  # an OrderedDict's attributes: the versions of its modules
        _of(stack.pop(), dict)
        _of(stack[-1], dict)
    else:
        raise ValueError(f"it holds the instruction {name}, which no state dict needs")


def _since_mark(stack: list[Any]) -> list[Any]:
    at = next(i for i in range(len(stack) - 1, -1, -1) if stack[i] is _MARK)
    values = stack[at + 1 :]
    del stack[at:]
    return values


def _of(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise ValueError(f"a {kind.__name__} was expected where a {type(value).__name__} is")
    return value


def _whole(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**62:
        raise ValueError(f"{value!r} is not a size")
    return value


def _storage(value: Any) -> _Storage:
    kind, dtype, key, _, count, view = _of(value, tuple)
    if kind != "storage" or view is not None or not isinstance(dtype, _Name) or dtype.text not in _TYPES:
        raise ValueError("it holds numbers of a kind that is not known")
    return _Storage(_of(key, str), _TYPES[dtype.text], _whole(count))


def _made(function: Any, arguments: tuple[Any, ...]) -> Any:
    if function == _Name("collections OrderedDict") and not arguments:
        return {}
    if function == _Name("torch._utils _rebuild_tensor_v2"):
        storage, offset, shape, stride, *_ = arguments
        if not isinstance(storage, _Storage) or len(_of(shape, tuple)) != len(_of(stride, tuple)):
            raise ValueError("it holds a tensor that does not fit its numbers")
        return _View(storage, _whole(offset), tuple(map(_whole, shape)), tuple(map(_whole, stride)))
    raise ValueError(f"it asks for {getattr(function, 'text', function)!r}, which no state dict needs")
