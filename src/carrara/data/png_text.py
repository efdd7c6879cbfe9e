"""The text chunks of a PNG: tEXt (Latin-1), zTXt (deflated), iTXt (UTF-8, deflated or not), read within bounds.

    signature, then chunks:  length (4, big-endian)  type (4)  data  CRC-32 of type and data (4)

Only chunks that are asked for are read, never a pixel; a text that deflates to more than `MOST` bytes is refused before
it is made. The first of several chunks of one name counts.
"""

from __future__ import annotations

import zlib
from collections.abc import Collection
from pathlib import Path
from typing import BinaryIO

from carrara.errors import DataError, StorageError

__all__ = ["MOST", "read_png_text"]

MOST = 1 << 20
"""The most bytes of one text."""

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_KINDS = (b"tEXt", b"zTXt", b"iTXt")
_CHUNKS = 1 << 16  # of a file, at most
_NAME = 79  # bytes of a chunk's name, at most


def read_png_text(path: Path, names: Collection[str]) -> dict[str, str]:
    """The texts of these names that a PNG has.

    Raises StorageError for a file that cannot be opened, DataError for one that is no PNG, is damaged, or whose text is
    beyond the bounds.
    """
    try:
        with path.open("rb") as file:
            return _read(file, path, names)
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error.strerror or error}") from error


def _read(file: BinaryIO, path: Path, names: Collection[str]) -> dict[str, str]:
    if file.read(8) != _SIGNATURE:
        raise DataError(f"{path} is no PNG, which is where pictures keep how they were made")
    found: dict[str, str] = {}
    for _ in range(_CHUNKS):
        head = file.read(8)
        if len(head) < 8 or head[4:] == b"IEND":
            return found
        length, kind = int.from_bytes(head[:4], "big"), head[4:]
        start = file.tell()
        if kind in _KINDS:
            before, nul, _ = file.read(min(length, _NAME + 1)).partition(b"\0")
            name = before.decode("latin-1")
            if nul and name in names and name not in found:
                file.seek(start)
                found[name] = _text(file, path, kind, length, name)
        file.seek(start + length + 4)
    raise DataError(f"{path} has more than {_CHUNKS:,} chunks, which no picture needs")


def _text(file: BinaryIO, path: Path, kind: bytes, length: int, name: str) -> str:
    """The text of one chunk, at whose data the file stands."""
    too_long = DataError(f'{path} has a text "{name}" of more than {MOST:,} bytes, which is not read')
    damaged = DataError(f'the text "{name}" of {path} is damaged')
    if length > MOST + 256:  # a name and what stands before the text
        raise too_long
    data, check = file.read(length), file.read(4)
    if len(data) < length or check != zlib.crc32(kind + data).to_bytes(4, "big"):
        raise damaged
    rest = data[len(name.encode("latin-1")) + 1 :]
    packed = kind == b"zTXt"
    if kind == b"iTXt":
        flags, rest = rest[:2], rest[2:]
        packed = flags[:1] == b"\1"
        parts = rest.split(b"\0", 2)  # language, translated name, text
        if len(flags) < 2 or len(parts) < 3:
            raise damaged
        rest = parts[2]
    elif packed:
        rest = rest[1:]  # the method, of which there is one
    if packed:
        unpacking = zlib.decompressobj()
        try:
            rest = unpacking.decompress(rest, MOST + 1)
        except zlib.error as error:
            raise damaged from error
        if not unpacking.eof and len(rest) <= MOST:
            raise damaged
    if len(rest) > MOST:
        raise too_long
    return rest.decode("utf-8" if kind == b"iTXt" else "latin-1", errors="replace")
