"""Files and folders that are there whole or not at all.

A folder is written under another name and takes its own in one rename:

    name.tmp/ -> its files, each fsynced -> manifest.json last (sizes and SHA-256) -> fsync of the folder
              -> rename to name/ -> fsync of the parent

So whatever is stopped, at whichever file operation, a folder that has its own name is complete. What damages it
later (a flipped bit, a cut file) is found by `verify`, which reads everything again and compares it with the manifest.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from carrara.errors import StorageError

__all__ = [
    "MANIFEST",
    "free_bytes",
    "new_directory",
    "read_json",
    "remove",
    "require_space",
    "storage_errors",
    "verify",
    "write_file",
    "write_json",
]

MANIFEST = "manifest.json"
_FORMAT_VERSION = 1
_LARGEST_JSON = 64 << 20  # bytes


@contextmanager
def storage_errors(what: str) -> Iterator[None]:
    """Turns an OSError inside into a StorageError that begins with `what` and says what the machine said."""
    try:
        yield
    except OSError as error:
        raise StorageError(f"{what}: {_reason(error)}") from error


def _reason(error: OSError) -> str:
    hints = {
        "ENOSPC": "no space is left on the disk; free some, or lower `keep`",
        "EDQUOT": "the disk quota is used up; free some space, or lower `keep`",
        "EROFS": "the disk is read-only; choose another folder",
        "EACCES": "this user may not write there; choose another folder or change its permissions",
        "EFBIG": "the file would be larger than is allowed here",
    }
    import errno

    name = errno.errorcode.get(error.errno or 0, "")
    return hints.get(name) or error.strerror or str(error)


def write_file(path: Path, data: bytes) -> None:
    """`path` holds `data` afterwards, or what it held before: never a part. Raises StorageError."""
    temporary = path.with_name(path.name + ".tmp")
    with storage_errors(f"cannot write {path}"):
        try:
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            _sync(path.parent)
        except BaseException:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """`write_file` of a JSON object, indented, with sorted keys."""
    write_file(path, (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file's object; StorageError where it is none, names something twice, or has more than 64 MiB."""
    try:
        if path.exists() and not path.is_file():  # opening a pipe would wait for ever
            raise StorageError(f"{path} is not a regular file")
        if (size := path.stat().st_size) > _LARGEST_JSON:
            raise StorageError(f"{path} has {size:,} bytes; expected a JSON file of at most {_LARGEST_JSON:,}")
        body = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_once)
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise StorageError(f"{path} is not JSON: {str(error)[:200]}") from error
    if not isinstance(body, dict):
        raise StorageError(f"{path} holds no JSON object")
    return body


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        ((twice, _),) = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"the key {twice[:80]!r} is there twice")
    return table


@contextmanager
def new_directory(path: Path, **facts: Any) -> Iterator[Path]:
    """A folder to fill, which becomes `path` in one rename when the block ends without an error.

    `facts` go into the manifest. A folder that has the name already is put aside first and deleted afterwards.
    Raises StorageError when the disk refuses; then, as after any other error, nothing of the attempt is left.
    """
    temporary = path.with_name(path.name + ".tmp")
    with storage_errors(f"cannot write {path}"):
        try:
            remove(temporary)
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.mkdir()
            yield temporary
            _seal(temporary, facts)
            aside = path.with_name(path.name + ".old.tmp")
            remove(aside)
            if path.exists():
                os.replace(path, aside)
            os.replace(temporary, path)
            _sync(path.parent)
            remove(aside)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


def _seal(folder: Path, facts: Mapping[str, Any]) -> None:
    files: dict[str, dict[str, Any]] = {}
    folders = [folder]
    for path in sorted(folder.rglob("*")):
        if path.is_dir():
            folders.append(path)
            continue
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        files[path.relative_to(folder).as_posix()] = {"size": path.stat().st_size, "sha256": digest}
    text = json.dumps({"format_version": _FORMAT_VERSION, "files": files, **facts}, indent=2, sort_keys=True)
    with open(folder / MANIFEST, "wb") as file:
        file.write(text.encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())
    for inner in reversed(folders):
        _sync(inner)


def _sync(folder: Path) -> None:
    """Makes the names in a folder durable, where the system can."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except PermissionError:  # Windows cannot open folders
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def verify(folder: Path, *, contents: bool = True) -> dict[str, Any]:
    """The manifest of a folder, after every file of it was found as it was written.

    `contents=False` compares only names and sizes. Raises StorageError that says what is wrong.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        version, files = manifest["format_version"], dict(manifest["files"])
    except FileNotFoundError:
        raise StorageError(f"{folder} has no {MANIFEST}: it is not a finished folder") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StorageError(f"{folder / MANIFEST} cannot be read: {error}") from error
    if not isinstance(version, int) or version > _FORMAT_VERSION:
        raise StorageError(
            f"{folder} has format version {version!r}; this Carrara reads up to {_FORMAT_VERSION}: update Carrara"
        )
    for name, entry in files.items():
        _verify_file(folder, name, entry, contents)
    return dict(manifest)


def _verify_file(folder: Path, name: str, entry: Mapping[str, Any], contents: bool) -> None:
    path = folder / name
    try:
        if path.is_symlink() or not path.resolve().is_relative_to(folder.resolve()):
            raise StorageError(f"{folder / MANIFEST} names {name!r}, which is not a plain file inside the folder")
        size = path.stat().st_size
        if size != entry["size"]:
            raise StorageError(f"{path} is damaged: it has {size} bytes and should have {entry['size']}")
        if contents:
            with open(path, "rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != entry["sha256"]:
                    raise StorageError(f"{path} is damaged: its SHA-256 is not the one it was written with")
    except FileNotFoundError:
        raise StorageError(f"{path} is missing") from None
    except (OSError, KeyError, TypeError) as error:
        raise StorageError(f"{path} cannot be checked: {error}") from error


def remove(path: Path) -> None:
    """Deletes a file or folder if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def free_bytes(folder: Path) -> int:
    """Bytes that can still be written to the disk of `folder` (or of its nearest parent that exists)."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free


def require_space(folder: Path, needed: int, purpose: str) -> None:
    """Raises StorageError unless `needed` bytes are free on the disk of `folder`."""
    free = free_bytes(folder)
    if free < needed:
        raise StorageError(
            f"{purpose} needs {needed / 2**20:,.0f} MiB in {folder} and {free / 2**20:,.0f} MiB are free; "
            "free some space, choose another folder, or keep fewer checkpoints"
        )
