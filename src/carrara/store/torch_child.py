"""A state dict that torch.save wrote, rewritten as safetensors; a script, for a process of its own (torch_file.py).

    before 1.6                                            since: a zip archive, nothing compressed
    magic number, protocol, system: three small pickles   NAME/data.pkl      a pickle: the state dict
    names -> views of storages: a pickle                  NAME/data/KEY      the numbers of each storage
    keys of the storages in order: a pickle               NAME/version, NAME/byteorder, ...
    for each key: 8 bytes of count, the numbers

A pickle is a program for a stack machine that can call anything. Here its instructions are only listed
(`pickletools.genops`), and the few that a state dict is made of are carried out on plain dicts, lists and tuples: a
name of code stays a name, and only "an OrderedDict", "a tensor" and "a parameter" are understood. All else is refused.

The process limits its own memory, time and files, and from then on an audit hook refuses all that Python can tell of:
opening, importing, running, connecting. It needs the standard library alone, so that it starts in a few hundredths of
a second, and says what is wrong in one line on its standard output.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import math
import mmap
import os
import pickletools
import sys
import zipfile
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

__all__ = ["convert", "main"]

_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
_INSTRUCTIONS = 500_000  # of one pickle; that of a large model has 60,000
_PICKLE = 32 << 20  # bytes of one
_MEMBERS = 100_000  # of a zip archive
_HEADROOM = 512 << 20  # bytes of memory beside the file's own
_TYPES = {
    "torch BFloat16Storage": ("BF16", 2),
    "torch BoolStorage": ("BOOL", 1),
    "torch ByteStorage": ("U8", 1),
    "torch CharStorage": ("I8", 1),
    "torch DoubleStorage": ("F64", 8),
    "torch FloatStorage": ("F32", 4),
    "torch HalfStorage": ("F16", 2),
    "torch IntStorage": ("I32", 4),
    "torch LongStorage": ("I64", 8),
    "torch ShortStorage": ("I16", 2),
}
_TABLES = ("state_dict", "model", "params", "module")  # where a training's file keeps the state dict
_INERT = frozenset({  # what else training frameworks leave in a file; nothing is made of it
    "_codecs encode", "numpy dtype", "numpy.core.multiarray scalar", "numpy._core.multiarray scalar",
})  # fmt: skip


class _Name(NamedTuple):
    """A name of code, which is never looked up."""

    text: str


class _Inert(NamedTuple):
    """Something of which only is known that it is no tensor."""

    what: str


class _Storage(NamedTuple):
    """A row of numbers elsewhere in the file."""

    key: str
    dtype: str
    size: int  # bytes of a number
    numbers: int


class _View(NamedTuple):
    """A tensor: some of a storage's numbers, in some order."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def numbers(self) -> int:
        return math.prod(self.shape)

    @property
    def end(self) -> int:
        """One behind the last number that it reads."""
        last = sum((size - 1) * stride for size, stride in zip(self.shape, self.stride, strict=True))
        return self.offset + last + 1 if self.numbers else self.offset


def main(path: str, out: str) -> str | None:
    """Writes the safetensors file `out`; what is wrong with the file `path`, or None."""
    with open(path, "rb") as file, open(out, "wb") as made:
        _confine(os.fstat(file.fileno()).st_size)
        try:
            convert(file, made)
        except MemoryError:
            return "it takes more memory than its size allows"
        except Exception as error:  # whatever a damaged file leads to ends here, in one line
            return f"{error}" if isinstance(error, ValueError) else f"it cannot be understood ({type(error).__name__})"
    return None


def _confine(size: int) -> None:
    """From here on: little more than the file's own memory, time to copy it, and nothing but what is open already."""
    with contextlib.suppress(ImportError):  # not every system has limits
        import resource

        seconds = 20 + size // (20 << 20)
        for what, most in (
            (resource.RLIMIT_AS, _HEADROOM + 2 * size),
            (resource.RLIMIT_CPU, seconds),
            (resource.RLIMIT_FSIZE, size + _PICKLE),
            (resource.RLIMIT_CORE, 0),
        ):
            with contextlib.suppress(ValueError, OSError):
                hard = resource.getrlimit(what)[1]
                most = most if hard == resource.RLIM_INFINITY else min(most, hard)
                resource.setrlimit(what, (most, most))
    "".encode("cp437")  # zip archives name their files in it; its table is imported now

    def refuse(event: str, arguments: tuple[Any, ...]) -> None:
        if not event.startswith(("mmap.", "sys.", "cpython.")):
            raise ValueError(f"reading it led to {event}, which is not allowed")

    sys.addaudithook(refuse)


def convert(file: BinaryIO, made: BinaryIO) -> None:
    """Writes the tensors of an open file as safetensors. Raises ValueError, or whatever a damaged file leads to."""
    data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    views, rows = (_zipped if data[:4] == b"PK\x03\x04" else _legacy)(data)
    _write(views, rows, memoryview(data), made)


# --- where the numbers are --------------------------------------------------------------------------------------------

_Rows = dict[str, int]
"""Where the numbers of each storage begin in the file."""


def _legacy(data: mmap.mmap) -> tuple[dict[str, _View], _Rows]:
    storages: dict[str, _Storage] = {}
    if (_run(data, {}), _run(data, {})) != (_MAGIC, _PROTOCOL):
        raise ValueError("it does not begin as such a file does")
    system, found, keys = _run(data, {}), _run(data, storages), _run(data, {})
    if not system["little_endian"]:
        raise ValueError("its numbers are big-endian")
    views = _views(found)
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys) or sorted(keys) != sorted(storages):
        raise ValueError("its list of storages is not that of its tensors")
    rows, at = {}, data.tell()
    for key in keys:
        storage = storages[key]
        if int.from_bytes(data[at : at + 8], "little") != storage.numbers:
            raise ValueError(f"storage {key[:40]!r} has another length than its tensors say")
        rows[key] = at + 8
        at += 8 + storage.numbers * storage.size
    if at > len(data):
        raise ValueError("it is cut off")
    if at != len(data):
        raise ValueError(f"{len(data) - at} bytes are left over")
    return views, rows


def _zipped(data: mmap.mmap) -> tuple[dict[str, _View], _Rows]:
    try:
        archive = zipfile.ZipFile(_Window(data))
    except (zipfile.BadZipFile, NotImplementedError) as error:
        raise ValueError(f"it is no whole zip archive: {error}") from error
    members = archive.infolist()
    if len(members) > _MEMBERS:
        raise ValueError(f"it has {len(members):,} members; expected at most {_MEMBERS:,}")
    files = {member.filename: member for member in members}
    if len(files) != len(members):
        raise ValueError("one of its names is there twice")
    if any(member.compress_type or member.flag_bits & 1 for member in members):
        raise ValueError("it is compressed or encrypted, which torch.save never does")
    if sum(member.file_size for member in members) > len(data):
        raise ValueError("its members have more bytes than it holds")
    roots = [name.removesuffix("data.pkl") for name in files if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(roots) != 1:
        raise ValueError("it has no data.pkl: it is another archive than torch.save makes")
    root, numbers = roots[0], memoryview(data)
    if any(name.startswith(root + "code/") or name == root + "constants.pkl" for name in files):
        raise ValueError("it is a TorchScript archive, which is code; save its state dict")

    def place(name: str) -> tuple[int, int]:
        """Where a member's bytes begin, and how many they are."""
        member = files[name]
        at = member.header_offset
        head = data[at : at + 30]
        if head[:4] != b"PK\x03\x04":
            raise ValueError(f"its member {name[:60]!r} is not where it should be")
        at += 30 + int.from_bytes(head[26:28], "little") + int.from_bytes(head[28:30], "little")
        if at + member.file_size > len(data):
            raise ValueError("it is cut off")
        if member.CRC and zlib.crc32(numbers[at : at + member.file_size]) != member.CRC:  # 0: torch.save left it out
            raise ValueError(f"its member {name[:60]!r} is damaged: its checksum is not the one it was written with")
        return at, member.file_size

    if root + "byteorder" in files:
        at, size = place(root + "byteorder")
        if data[at : at + min(size, 16)] != b"little":
            raise ValueError("its numbers are big-endian")
    at, size = place(root + "data.pkl")
    if size > _PICKLE:
        raise ValueError(f"its pickle has {size:,} bytes; expected at most {_PICKLE:,}")
    views = _views(_run(io.BytesIO(data[at : at + size]), {}))
    rows = {}
    for key, storage in {view.storage.key: view.storage for view in views.values()}.items():
        if f"{root}data/{key}" not in files:
            raise ValueError(f"its storage {key[:40]!r} is missing")
        rows[key], size = place(f"{root}data/{key}")
        if size != storage.numbers * storage.size:
            raise ValueError(f"storage {key[:40]!r} has another length than its tensors say")
    return views, rows


class _Window(io.RawIOBase):
    """The mapped file as a file to seek in."""

    def __init__(self, data: mmap.mmap) -> None:
        super().__init__()
        self._data, self._at = data, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = max(0, offset + (0, self._at, len(self._data))[whence])
        return self._at

    def read(self, size: int = -1) -> bytes:
        found = self._data[self._at : len(self._data) if size < 0 else self._at + size]
        self._at += len(found)
        return found


# --- what the tensors are ---------------------------------------------------------------------------------------------


def _views(value: Any) -> dict[str, _View]:
    """The named tensors of what the pickle describes."""
    if isinstance(value, dict) and not all(isinstance(inner, _View) for inner in value.values()):
        tables = [key for key in _TABLES if isinstance(value.get(key), dict)]
        value = value[tables[0]] if len(tables) == 1 else value
    if not isinstance(value, dict):
        raise ValueError("it holds other things than named tensors")
    for name, view in value.items():
        if not isinstance(name, str) or not isinstance(view, _View):
            raise ValueError(f"it holds other things than named tensors, such as {str(name)[:60]!r}")
        if view.end > view.storage.numbers:
            raise ValueError(f"{name[:60]!r} reaches beyond its storage")
    views: set[_View] = set(value.values())
    if sum(view.numbers for view in views) > sum(storage.numbers for storage in {view.storage for view in views}):
        raise ValueError("its tensors have more numbers than it holds")
    return value


def _write(views: dict[str, _View], rows: _Rows, data: memoryview, made: BinaryIO) -> None:
    """The safetensors file; a tensor that has several names is written once."""
    first: dict[_View, str] = {}
    aliases = {name: first[view] for name, view in views.items() if first.setdefault(view, name) != name}
    kept = sorted((view for view in first), key=lambda view: -view.storage.size)  # so all are aligned
    head: dict[str, Any] = {}
    if aliases:
        head["__metadata__"] = {"carrara.aliases": json.dumps(aliases)}
    at = 0
    for view in kept:
        size = view.numbers * view.storage.size
        head[first[view]] = {"dtype": view.storage.dtype, "shape": view.shape, "data_offsets": [at, at + size]}
        at += size
    if "__metadata__" in views:
        raise ValueError("a tensor is called __metadata__")
    text = json.dumps(head).encode()
    text += b" " * (-len(text) % 8)
    made.write(len(text).to_bytes(8, "little") + text)
    for view in kept:
        size = view.storage.size
        start = rows[view.storage.key]
        row = data[start : start + view.storage.numbers * size]
        for piece in _pieces(view, row):
            made.write(piece)


def _pieces(view: _View, row: memoryview) -> Iterator[memoryview | bytes]:
    """A view's bytes, in order, of its storage's."""
    size = view.storage.size
    if not view.numbers:
        return
    dims = [(n, stride) for n, stride in zip(view.shape, view.stride, strict=True) if n > 1]
    merged: list[tuple[int, int]] = []
    for n, stride in dims:  # rows that follow one another are one row
        if merged and merged[-1][1] == n * stride:
            merged[-1] = (merged[-1][0] * n, stride)
        else:
            merged.append((n, stride))
    inner, step = merged.pop() if merged else (1, 1)
    whole = _as_numbers(row, size)
    for place in itertools.product(*(range(0, n * stride, stride) if stride else (0,) * n for n, stride in merged)):
        at = view.offset + sum(place)
        if step == 1:
            yield row[at * size : (at + inner) * size]
        elif step == 0:
            yield row[at * size : (at + 1) * size].tobytes() * inner
        else:
            yield whole[at : at + (inner - 1) * step + 1 : step].tobytes()


def _as_numbers(row: memoryview, size: int) -> memoryview:
    match size:
        case 2:
            return row.cast("H")
        case 4:
            return row.cast("I")
        case 8:
            return row.cast("Q")
    return row


# --- the stack machine ------------------------------------------------------------------------------------------------

_MARK = object()
_CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": (), "MARK": _MARK}
_LITERALS = frozenset({
    "BINFLOAT", "BININT", "BININT1", "BININT2", "BINUNICODE", "LONG1", "SHORT_BINSTRING", "SHORT_BINUNICODE",
})  # fmt: skip
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_KEYS = (str, int, float, bool, type(None), _Name)  # of a dict: to hash a tuple of tuples can take for ever


def _run(stream: Any, storages: dict[str, _Storage]) -> Any:
    """What the pickle at the stream's position describes; the position is then behind it. Storages are noted."""
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    for count, (code, argument, _) in enumerate(pickletools.genops(stream)):
        if count >= _INSTRUCTIONS:
            raise ValueError(f"its pickle has more than {_INSTRUCTIONS:,} instructions")
        name = code.name
        if name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _LITERALS:
            stack.append(argument)
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[_whole(argument)] = stack[-1]
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[_whole(argument)])
        elif name == "STOP":
            return stack.pop()
        elif name not in ("PROTO", "FRAME"):
            _build(name, argument, stack, storages)
    raise ValueError("it is cut off")


def _build(name: str, argument: Any, stack: list[Any], storages: dict[str, _Storage]) -> None:
    """The instructions that make something of what lies on the stack."""
    if name == "EMPTY_DICT":
        stack.append({})
    elif name == "EMPTY_LIST":
        stack.append([])
    elif name == "GLOBAL":
        stack.append(_Name(argument))
    elif name == "STACK_GLOBAL":
        inner = _of(stack.pop(), str)
        stack.append(_Name(f"{_of(stack.pop(), str)} {inner}"))
    elif name == "BINPERSID":
        storage = _storage(stack.pop())
        if storages.setdefault(storage.key, storage) != storage:
            raise ValueError(f"storage {storage.key[:40]!r} is said to be of two kinds")
        stack.append(storage)
    elif name == "TUPLE":
        stack.append(tuple(_since_mark(stack)))
    elif name in _TUPLES:
        stack[-_TUPLES[name] :] = [tuple(stack[-_TUPLES[name] :])]
    elif name in ("APPEND", "APPENDS"):
        values = _since_mark(stack) if name == "APPENDS" else [stack.pop()]
        _of(stack[-1], list).extend(values)
    elif name in ("SETITEM", "SETITEMS"):
        pairs = _since_mark(stack) if name == "SETITEMS" else [stack.pop() for _ in range(2)][::-1]
        if not all(type(key) in _KEYS for key in pairs[::2]):
            raise ValueError("it has a key that is no text")
        _of(stack[-1], dict).update(zip(pairs[::2], pairs[1::2], strict=True))
    elif name == "REDUCE":
        arguments, function = _of(stack.pop(), tuple), stack.pop()
        stack.append(_made(function, arguments))
    elif name == "BUILD":  # an OrderedDict's attributes: the versions of its modules
        state = stack.pop()
        if not isinstance(stack[-1], _Inert):
            _of(state, dict)
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
        raise ValueError(f"a {type(value).__name__} is where a size was expected, or one that is too large")
    return value


def _storage(value: Any) -> _Storage:
    kind, dtype, key, _, count, *rest = _of(value, tuple)
    if kind != "storage" or rest not in ([], [None]) or not isinstance(dtype, _Name) or dtype.text not in _TYPES:
        raise ValueError("it holds numbers of a kind that is not known")
    return _Storage(_of(key, str), *_TYPES[dtype.text], _whole(count))


def _made(function: Any, arguments: tuple[Any, ...]) -> Any:
    name = function.text if isinstance(function, _Name) else f"a {type(function).__name__}"
    if name == "collections OrderedDict" and not arguments:
        return {}
    if name == "torch._utils _rebuild_tensor_v2":
        storage, offset, shape, stride, *_ = arguments
        if not isinstance(storage, _Storage) or not 64 >= len(_of(shape, tuple)) == len(_of(stride, tuple)):
            raise ValueError("it holds a tensor that does not fit its numbers")
        return _View(storage, _whole(offset), tuple(map(_whole, shape)), tuple(map(_whole, stride)))
    if name == "torch._utils _rebuild_parameter" and arguments:
        return _of(arguments[0], _View)
    if name in _INERT:
        return _Inert(name)
    raise ValueError(f"it asks for {name[:80]!r}, which no state dict needs")


if __name__ == "__main__":
    if told := main(sys.argv[1], sys.argv[2]):
        sys.stdout.write(ascii(told)[1:-1])
        sys.exit(1)
