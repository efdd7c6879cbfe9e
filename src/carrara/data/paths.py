"""Names from metadata files that must stay inside the data folder.

Metadata comes from others. A name in it may be a web address, an absolute path, a climb through `..` or a link out of
the folder; none of these is ever opened.
"""

from __future__ import annotations

import os
import re
import unicodedata
from pathlib import Path, PurePosixPath

__all__ = ["inside", "joined", "leaves", "nfc"]

_DRIVE = re.compile(r"^[A-Za-z]:")


def leaves(name: str) -> str | None:
    """Why a relative name from a metadata file must not be followed, or None where it may be."""
    if not name.strip():
        return "it is empty"
    if "\x00" in name:
        return "it contains a null character"
    if "://" in name:
        return "it is a web address; only files of the folder are read"
    plain = name.replace("\\", "/")
    if plain.startswith(("/", "~")) or _DRIVE.match(plain):
        return "it is an absolute path"
    if ".." in plain.split("/"):
        return 'it climbs out with ".."'
    return None


def joined(folder: str, name: str) -> str:
    """`name` relative to `folder` (itself relative to the data folder) as one posix path."""
    path = PurePosixPath(folder) / name
    return "/".join(part for part in path.parts if part != ".")


def inside(root: Path, path: Path) -> bool:
    """Whether `path`, with every link followed, lies under `root` (already resolved)."""
    try:
        real = os.path.realpath(path)
    except (OSError, ValueError):
        return False
    return real == str(root) or real.startswith(str(root).rstrip(os.sep) + os.sep)


def nfc(name: str) -> str:
    """The composed form of a name: file systems and zip programs differ in how they write accents."""
    return unicodedata.normalize("NFC", name)
