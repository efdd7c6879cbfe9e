"""Captions beside, above and in the names of picture files."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

__all__ = ["caption_values", "label_caption", "name_caption", "read_sidecar", "wordy"]

_LIMIT = 1 << 20  # bytes of a caption file that are read
_SEPARATORS = re.compile(r"[_\-.,;+&()\[\]{}\s]+")
_WORD = re.compile(r"[^\W\d_]{2,}")
_NO_WORDS = frozenset(  # what cameras, scanners and programs call their files
    {
        "img",
        "dsc",
        "dscn",
        "dscf",
        "dcim",
        "pict",
        "pic",
        "picture",
        "photo",
        "image",
        "images",
        "frame",
        "scan",
        "screenshot",
        "untitled",
        "file",
        "sample",
        "tile",
        "crop",
        "copy",
        "final",
        "new",
        "edited",
        "mvi",
        "gopr",
        "pxl",
        "vid",
        "video",
        "snapshot",
        "shot",
        "page",
        "export",
        "render",
        "output",
        "train",
        "test",
        "val",
        "id",
        "idx",
        "thumb",
        "data",
        "png",
        "jpg",
        "jpeg",
        "webp",
    }
)


def read_sidecar(path: Path, kind: str) -> tuple[str, ...]:
    """The captions in a `.caption` file (its first line) or a `.txt` file (each line one of several).

    Raises ValueError where the text cannot be read; the message is the reason in a few words.
    """
    with path.open("rb") as file:
        data = file.read(_LIMIT + 1)
    if len(data) > _LIMIT:
        raise ValueError(f"its caption file {path.name} is larger than 1 MiB")
    try:
        lines = [line.strip() for line in _text(data).splitlines()]
    except UnicodeDecodeError:
        raise ValueError(f"its caption file {path.name} is not UTF-8 text") from None
    said = tuple(dict.fromkeys(line for line in lines if line))
    return said[:1] if kind == "caption" else said


def _text(data: bytes) -> str:
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return data.decode("utf-16")
    return data.decode("utf-8-sig")


def caption_values(value: object) -> tuple[str, ...]:
    """A caption cell: nothing, a string or a list of strings; Raises ValueError for anything else."""
    if value is None:
        return ()
    values: Iterable[object] = (
        [value] if isinstance(value, str) else value if isinstance(value, list | tuple) else [value]
    )
    said = []
    for one in values:
        if one is None:
            continue
        if not isinstance(one, str):
            raise ValueError(f"a caption is {one!r}; give a string or a list of strings")
        said.append(one.encode("utf-8", "replace").decode().strip())  # JSON may hold halves of surrogate pairs
    return tuple(dict.fromkeys(one for one in said if one))


def label_caption(label: str) -> str:
    """A class name as a caption: "red_apple" says "red apple"."""
    return " ".join(label.replace("_", " ").split())


def name_caption(name: str) -> str:
    """The words of a file name, without its folder, suffix and closing number."""
    parts = [part for part in _SEPARATORS.split(PurePosixPath(name).stem) if part]
    while parts and parts[-1].isdigit():
        parts.pop()
    return " ".join(parts)


def wordy(names: Iterable[str]) -> bool:
    """Whether at least 80 % of the names look like words, not like IMG_1234 or 3f2a9c."""
    looks = [_looks_like_words(name) for name in names]
    return bool(looks) and sum(looks) >= 0.8 * len(looks)


def _looks_like_words(name: str) -> bool:
    parts = name_caption(name).split()
    words = [part for part in parts if _WORD.fullmatch(part) and part.lower() not in _NO_WORDS]
    long = [word for word in words if len(word) >= 3 and (not word.isascii() or re.search("[aeiouyAEIOUY]", word))]
    return bool(long) and len(words) >= 0.5 * len(parts)
