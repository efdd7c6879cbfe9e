"""Prepared pictures on disk: decoded and resized once, then mapped into memory.

A cache is a folder with `images.npy` (uint8 or uint16, NHWC; for random crops one flat array, because widths differ),
`input-<name>.npy` for further pictures, and `index.json`: which rows are there, their content hashes, what was skipped
and why, and checksums. Its name is made from the settings and from every file's path, size and times, so a changed
folder gets a new cache. It is written beside its place and renamed into it, under a lock, so that neither a crash nor
a second process can leave half a cache behind; one that does not match its checksums is built again.
Captions and labels are never in it: they are read from the folder each time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

from ..errors import DataError, StorageError
from .findings import Problem, count, examples, printable
from .folder import Listing
from .preparation import Kind, Prepared, kind_advice, kind_words, stream
from .settings import DataSettings

__all__ = ["Cache", "default_cache", "open_cache"]

Progress = Callable[[int, int], None]

FORMAT = "carrara-cache"
VERSION = 1
_CHUNK = 1 << 24  # bytes a checksum covers
_VERIFY = 1 << 30  # up to this size all of a cache is verified when it is opened; above, a sample of it
_HEADER = 128  # bytes of a .npy header: room for any shape, so that it can be rewritten


class _Held:
    """The index of a cache, open and locked for as long as the cache is in use, so that nobody removes it."""

    def __init__(self, path: Path) -> None:
        self.file = os.open(path, os.O_RDONLY)
        _flock(self.file, alone=False)

    def text(self) -> str:
        with os.fdopen(self.file, "rb", closefd=False) as file:
            return file.read().decode("ascii")

    def __del__(self) -> None:
        if hasattr(self, "file"):
            os.close(self.file)


@dataclass(frozen=True)
class Cache:
    """An opened cache; arrays are read-only memory maps."""

    folder: Path
    images: np.ndarray  # (N, H, W, C), or flat
    inputs: Mapping[str, np.ndarray]
    rows: np.ndarray  # (N,) int64: which row of the listing each picture is
    content: tuple[str, ...]  # (N,) content hashes
    sizes: np.ndarray  # (N, 2) int64: height and width in the file
    shapes: np.ndarray | None  # (N, 2) int64: height and width in the cache, for random crops
    channels: int
    depth: int
    input_channels: Mapping[str, int]
    problems: tuple[Problem, ...]
    upscaled: tuple[int, ...]  # picture numbers
    notes: Mapping[str, int]
    held: _Held


def default_cache() -> Path:
    """`$CARRARA_CACHE`, or `~/.cache/carrara`."""
    given = os.environ.get("CARRARA_CACHE")
    return Path(given).expanduser() if given else Path.home() / ".cache" / "carrara"


def open_cache(listing: Listing, settings: DataSettings, place: Path, progress: Progress | None = None) -> Cache:
    """The cache of these pictures under the folder `place`, built when it is not there or not sound.

    Raises DataError where the pictures do not go together, StorageError where the disk refuses.
    """
    about = _about(listing, settings)
    try:
        place.mkdir(parents=True, exist_ok=True)
        target = place / f"pictures-{about}-{listing.stamp[:16]}"
        if (sound := _open(target)) is not None:
            return sound
        with _lock(place / f".{target.name}.lock"):
            if (sound := _open(target)) is not None:
                return sound  # another process built it meanwhile
            _build(listing, settings, place, target, progress)
        built = _open(target)
        _forget(place, target, f"pictures-{about}-")
    except OSError as error:
        raise StorageError(
            f"the cache in {printable(str(place))} could not be written: {error.strerror or error}"
        ) from None
    if built is None:
        raise StorageError(f"the cache {target} does not read back as it was written; check the disk")
    return built


def _about(listing: Listing, settings: DataSettings) -> str:
    """Everything but the files that decides what the cache holds."""
    said = {
        "version": VERSION,
        "folder": str(listing.root),
        "shape": settings.shape,
        "channels": settings.channels,
        "depth": settings.depth,
        "fit": settings.fit,
        "background": settings.colour,
        "inputs": listing.inputs,
        "nearest": sorted(set(settings.nearest) & set(listing.inputs)),
    }
    return hashlib.blake2b(json.dumps(said, sort_keys=True).encode(), digest_size=6).hexdigest()


def _flock(file: IO[Any] | int, *, alone: bool, wait: bool = True) -> bool:
    """Lock an open file, for oneself or with other readers, until it is closed; False where somebody else has it.

    Where there are no such locks (Windows, some network file systems) everything is granted: two builders then each
    build, and the slower one gives way.
    """
    try:
        import fcntl
    except ImportError:
        return True
    try:
        fcntl.flock(file, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """One builder at a time; the lock goes with the process that holds it."""
    with path.open("w") as file:
        _flock(file, alone=True)
        yield
    with contextlib.suppress(OSError):
        path.unlink()


def _forget(place: Path, target: Path, prefix: str) -> None:
    """Remove caches of the same folder and settings as it was before, but none that somebody still has open."""
    for old in place.glob(f"{prefix}*"):
        if old == target or not old.is_dir():
            continue
        with contextlib.suppress(OSError), (old / "index.json").open("rb") as file:
            if _flock(file, alone=True, wait=False):
                shutil.rmtree(old, ignore_errors=True)


# --- building ---------------------------------------------------------------------------------------------------------


class _Array:
    """A .npy file that grows row by row; its header is filled in at the end."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file: IO[bytes] = path.open("wb")
        self.file.write(b" " * _HEADER)
        self.rows, self.bytes = 0, 0
        self.crcs: list[int] = []
        self._crc, self._filled = 0, 0

    def add(self, pixels: np.ndarray) -> None:
        data = np.ascontiguousarray(pixels).data.cast("B")
        self.file.write(data)
        self.rows += 1
        self.bytes += len(data)
        while len(data):
            part = data[: _CHUNK - self._filled]
            self._crc, self._filled = zlib.crc32(part, self._crc), self._filled + len(part)
            if self._filled == _CHUNK:
                self._end_chunk()
            data = data[len(part) :]

    def _end_chunk(self) -> None:
        self.crcs.append(self._crc)
        self._crc, self._filled = 0, 0

    def finish(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> dict[str, Any]:
        if self._filled:
            self._end_chunk()
        descr = np.lib.format.dtype_to_descr(dtype)
        text = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape!r}, }}"
        head = b"\x93NUMPY\x01\x00" + (_HEADER - 10).to_bytes(2, "little") + text.encode().ljust(_HEADER - 11) + b"\n"
        self.file.seek(0)
        self.file.write(head)
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()
        return {"shape": list(shape), "dtype": dtype.str, "bytes": self.bytes, "crc": self.crcs}


@dataclass
class _Building:
    """What is gathered while the pictures go by."""

    rows: list[int] = field(default_factory=list)
    content: list[str] = field(default_factory=list)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    shapes: list[tuple[int, int]] = field(default_factory=list)
    upscaled: list[int] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    notes: Counter[str] = field(default_factory=Counter)
    kinds: dict[str, tuple[Kind, str, int]] = field(default_factory=dict)  # array -> kind, first name, seen


def _build(listing: Listing, settings: DataSettings, place: Path, target: Path, progress: Progress | None) -> None:
    work = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=place))
    arrays: dict[str, _Array] = {}
    try:
        body = _fill(listing, settings, work, arrays, progress)
        text = json.dumps(body, ensure_ascii=True)
        with (work / "index.json").open("w", encoding="ascii") as file:
            file.write(json.dumps({"digest": _digest(text), "body": text}))
            file.flush()
            os.fsync(file.fileno())
        _into_place(work, target)
    except OSError as error:
        raise StorageError(
            f"the cache in {printable(str(place))} could not be written: {error.strerror or error}; "
            "free some space or name another cache folder (CARRARA_CACHE)"
        ) from None
    finally:
        for array in arrays.values():
            array.file.close()
        shutil.rmtree(work, ignore_errors=True)


def _into_place(work: Path, target: Path) -> None:
    if target.exists():
        if _open(target) is not None:  # another process was faster, with the same pictures
            return
        shutil.rmtree(target, ignore_errors=True)
    try:
        work.rename(target)
    except OSError:
        if _open(target) is None:
            raise


def _fill(
    listing: Listing, settings: DataSettings, work: Path, arrays: dict[str, _Array], progress: Progress | None
) -> dict[str, Any]:
    done = _Building()
    total = len(listing.rows)
    for number, one in stream(listing, settings):
        if isinstance(one, Problem):
            done.problems.append(one)
        else:
            _add(done, arrays, work, listing, number, one)
        if len(done.rows) == 1 and not isinstance(one, Problem):
            _enough_space(work, total, one)
        if progress is not None:
            progress(number + 1, total)
    if not done.rows:
        raise DataError(
            f"none of the {count(total, 'picture')} in {listing.findings.folder} could be read: "
            + examples(f"{p.name} ({p.reason})" for p in done.problems)
        )
    return _body(listing, settings, arrays, done)


def _add(done: _Building, arrays: dict[str, _Array], work: Path, listing: Listing, number: int, one: Prepared) -> None:
    name = listing.rows[number].name
    for key, pixels in (("images", one.pixels), *((f"input-{k}", v) for k, v in one.inputs.items())):
        _agree(done, key, pixels, name)
        if key not in arrays:
            arrays[key] = _Array(work / f"{_file_word(key)}.npy")
        arrays[key].add(pixels)
    if one.upscaled:
        done.upscaled.append(len(done.rows))
    done.rows.append(number)
    done.content.append(one.content)
    done.sizes.append(one.size)
    done.shapes.append((one.pixels.shape[0], one.pixels.shape[1]))
    done.notes.update(one.notes)


def _file_word(key: str) -> str:
    """A plain file name for an input whose name comes from a column."""
    plain = "".join(c if (c.isalnum() and c.isascii()) or c in "-_" else "_" for c in key)
    return (
        plain if plain == key else f"{plain}-{hashlib.blake2b(key.encode(errors='replace'), digest_size=4).hexdigest()}"
    )


def _agree(done: _Building, key: str, pixels: np.ndarray, name: str) -> None:
    """All pictures have the first one's channels and depth; Raises DataError at the first that does not."""
    kind = (pixels.shape[2], 8 * pixels.dtype.itemsize)
    first, example, seen = done.kinds.setdefault(key, (kind, name, 0))
    if kind == first:
        done.kinds[key] = (first, example, seen + 1)
        return
    what = "pictures" if key == "images" else f'pictures of the input "{printable(key.removeprefix("input-"))}"'
    others = f" and {seen - 1} more" if seen > 1 else ""
    raise DataError(
        f"the {what} are of two kinds: {examples([example])}{others}: {kind_words(first)}; "
        f"{examples([name])}: {kind_words(kind)}; {kind_advice(first, kind, key == 'images')}"
    )


def _enough_space(work: Path, total: int, one: Prepared) -> None:
    wanted = total * (one.pixels.nbytes + sum(pixels.nbytes for pixels in one.inputs.values()))
    free = shutil.disk_usage(work).free
    if wanted > free:
        raise StorageError(
            f"the cache of {count(total, 'picture')} needs {wanted / 1e9:.1f} GB and {free / 1e9:.1f} GB are free "
            f"in {work.parent}; name another cache folder (CARRARA_CACHE) or ask for a smaller size"
        )


def _body(listing: Listing, settings: DataSettings, arrays: dict[str, _Array], done: _Building) -> dict[str, Any]:
    files = {}
    for key, array in arrays.items():
        (channels, depth), _, _ = done.kinds[key]
        dtype = np.dtype(f"<u{depth // 8}")
        flat = settings.fit == "random-crop"
        shape = (array.bytes // dtype.itemsize,) if flat else (array.rows, *settings.shape, channels)
        files[key] = {"file": array.path.name, "channels": channels, **array.finish(shape, dtype)}
    return {
        "format": FORMAT,
        "version": VERSION,
        "stamp": listing.stamp,
        "files": files,
        "rows": done.rows,
        "content": done.content,
        "sizes": done.sizes,
        "shapes": done.shapes if settings.fit == "random-crop" else None,
        "upscaled": done.upscaled,
        "problems": [list(problem) for problem in done.problems],
        "notes": dict(done.notes),
    }


# --- opening ----------------------------------------------------------------------------------------------------------


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _open(folder: Path) -> Cache | None:
    """The cache when it is whole and sound, else None."""
    try:
        held = _Held(folder / "index.json")
        outer = json.loads(held.text())
        if outer["digest"] != _digest(outer["body"]):
            return None
        body = json.loads(outer["body"])
        if (body["format"], body["version"]) != (FORMAT, VERSION):
            return None
        arrays = {key: _map(folder, about) for key, about in body["files"].items()}
        return _cache(folder, body, arrays, held)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _cache(folder: Path, body: Mapping[str, Any], arrays: dict[str, np.ndarray], held: _Held) -> Cache:
    files, shapes = body["files"], body["shapes"]
    return Cache(
        folder=folder,
        images=arrays["images"],
        inputs={key.removeprefix("input-"): array for key, array in arrays.items() if key != "images"},
        rows=np.asarray(body["rows"], np.int64),
        content=tuple(body["content"]),
        sizes=np.asarray(body["sizes"], np.int64).reshape(-1, 2),
        shapes=None if shapes is None else np.asarray(shapes, np.int64).reshape(-1, 2),
        channels=files["images"]["channels"],
        depth=8 * arrays["images"].dtype.itemsize,
        input_channels={k.removeprefix("input-"): v["channels"] for k, v in files.items() if k != "images"},
        problems=tuple(Problem(*problem) for problem in body["problems"]),
        upscaled=tuple(body["upscaled"]),
        notes=dict(body["notes"]),
        held=held,
    )


def _map(folder: Path, about: Mapping[str, Any]) -> np.ndarray:
    path = folder / about["file"]
    if path.stat().st_size != _HEADER + about["bytes"]:
        raise ValueError("a file of the cache has another length")
    array: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    if list(array.shape) != about["shape"] or array.dtype.str != about["dtype"]:
        raise ValueError("a file of the cache has another shape")
    _verify(path, about["bytes"], about["crc"])
    return array


def _verify(path: Path, size: int, crcs: list[int]) -> None:
    """Checksums of all chunks, or of 64 spread evenly where the file is large."""
    chosen = range(len(crcs)) if size <= _VERIFY else np.unique(np.linspace(0, len(crcs) - 1, 64).astype(int)).tolist()
    with path.open("rb") as file:
        for chunk in chosen:
            file.seek(_HEADER + chunk * _CHUNK)
            if zlib.crc32(file.read(_CHUNK)) != crcs[chunk]:
                raise ValueError("a file of the cache is damaged")
