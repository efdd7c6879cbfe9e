"""One picture from bytes to the pixels that training sees, and a whole listing of them as a stream.

Order of the steps: decode, upright and to sRGB; take the content's hash; lay transparency on the background; to the
asked channels and depth; scale; cut or pad. A picture that cannot be used becomes a `Problem`, by a rule that depends
on its bytes alone, and the stream goes on.
"""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .colour import LUMA, as_channels, composite
from .findings import Problem
from .folder import Listing, Place, Row
from .formats import Decoded, Unreadable, decode, quiet
from .parquet import CellReader
from .paths import inside, leaves
from .settings import DataSettings
from .transform import Placement, place

Kind = tuple[int, int]
"""Channels and bits a channel."""

__all__ = ["Kind", "MAX_BYTES", "Prepared", "content_hash", "kind_advice", "kind_words", "prepare", "stream"]

MAX_BYTES = 1 << 30
"""The largest picture file that is read, in bytes."""


@dataclass(frozen=True)
class Prepared:
    """A picture ready for the cache."""

    pixels: np.ndarray  # (H, W, C) uint8 or uint16
    inputs: Mapping[str, np.ndarray]  # (H, W, C') each
    content: str  # hash of the decoded picture: the same for any size, container or name
    size: tuple[int, int]  # (height, width) of the file's picture, upright
    natural: Kind  # before any conversion that the settings ask for
    upscaled: bool
    format: str
    mode: str
    notes: tuple[str, ...]


def stream(
    listing: Listing, settings: DataSettings, workers: int | None = None
) -> Iterator[tuple[int, Prepared | Problem]]:
    """Every row's number and what became of it, in order; a few pictures are in memory at a time."""
    workers = workers or min(8, os.cpu_count() or 1)
    cells = CellReader()
    waiting: deque[tuple[int, Future[Prepared | Problem]]] = deque()
    with quiet(), ThreadPoolExecutor(workers, "carrara-decode") as pool:
        try:
            for number, row in enumerate(listing.rows):
                fetch = _fetcher(listing.root, row, cells)
                waiting.append((number, pool.submit(_or_problem, row, listing.inputs, fetch, settings)))
                if len(waiting) >= 4 * workers:
                    done, future = waiting.popleft()
                    yield done, future.result()
            while waiting:
                done, future = waiting.popleft()
                yield done, future.result()
        finally:
            for _, future in waiting:
                future.cancel()


def _fetcher(root: Path, row: Row, cells: CellReader) -> Callable[[Place], bytes]:
    """How the row's bytes are got; parquet cells are read now, in order, files later by the worker."""
    now: dict[Place, bytes | str | None] = {}
    for one in (row.place, *row.inputs.values()):
        if one.row >= 0:
            now[one] = cells.read(root / one.path, one.path, one.column, one.row)

    def fetch(one: Place) -> bytes:
        if one.row < 0:
            return _read(root, one.path)
        cell = now[one]
        if cell is None:
            raise Unreadable("its cell is empty")
        if isinstance(cell, bytes):
            return cell
        if reason := leaves(cell):
            raise Unreadable(f"its path is refused: {reason}")
        folder = one.path.rsplit("/", 1)[0] + "/" if "/" in one.path else ""
        return _read(root, folder + cell)

    return fetch


def _read(root: Path, name: str) -> bytes:
    path = root / name
    if not inside(root, path):
        raise Unreadable("the link leaves the folder")
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise Unreadable(f"it could not be opened: {error.strerror or error}") from None
    if len(data) > MAX_BYTES:
        raise Unreadable(f"the file is larger than {MAX_BYTES >> 20} MiB")
    return data


def _or_problem(
    row: Row, inputs: tuple[str, ...], fetch: Callable[[Place], bytes], settings: DataSettings
) -> Prepared | Problem:
    try:
        main = decode(fetch(row.place))
        further = {}
        for name in inputs:
            try:
                further[name] = decode(fetch(row.inputs[name]), values=name in settings.nearest)
            except Unreadable as error:
                raise Unreadable(f"its {name}: {error}") from None
        return prepare(main, further, settings)
    except Unreadable as error:
        return Problem(row.name, str(error))


def prepare(main: Decoded, inputs: Mapping[str, Decoded], settings: DataSettings) -> Prepared:
    """The decoded picture and its inputs, placed the same way; Raises Unreadable where they do not fit together."""
    pixels, alpha = _channels(main, settings)
    natural = (pixels.shape[2] if settings.channels is None else main.channels, main.depth)
    if settings.depth == 16:
        pixels = _to_depth(pixels, 16)
    size = (pixels.shape[0], pixels.shape[1])
    placement = place(size, settings.shape, settings.fit)
    ready = placement(pixels, _ground(pixels, alpha, settings), alpha=alpha)
    return Prepared(
        pixels=_to_depth(ready, settings.depth or main.depth),  # 16 bits become 8 last, so that they are rounded once
        inputs={name: _input(name, one, main, placement, settings) for name, one in inputs.items()},
        content=content_hash(main),
        size=size,
        natural=natural,
        upscaled=placement.upscaled,
        format=main.format,
        mode=main.mode,
        notes=main.notes,
    )


def _channels(main: Decoded, settings: DataSettings) -> tuple[np.ndarray, bool]:
    """(H, W, C) with the channels asked for, and whether the last is transparency."""
    want = settings.channels
    if want is not None and main.pixels.shape[2] == want:
        return main.pixels, main.alpha
    if want == 4 and main.channels in (1, 3):
        colours = as_channels(main.pixels[..., : main.channels], 3)
        top = np.iinfo(colours.dtype).max
        share = main.pixels[..., -1:] if main.alpha else np.full_like(colours[..., :1], top)
        return np.concatenate([colours, share], axis=2), True
    pixels = composite(main.pixels, settings.colour) if main.alpha else main.pixels
    if want is None:
        return pixels, False
    try:
        return as_channels(pixels, want), False
    except ValueError:
        raise Unreadable(f"it has {pixels.shape[2]} channels and {want} are asked for") from None


def _to_depth(pixels: np.ndarray, depth: int) -> np.ndarray:
    """uint8 or uint16; 8 to 16 bits is exact (times 257), 16 to 8 rounds."""
    if pixels.dtype == np.uint8 and depth == 16:
        return pixels.astype(np.uint16) * np.uint16(257)
    if pixels.dtype == np.uint16 and depth == 8:
        return ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)
    return pixels


def _ground(pixels: np.ndarray, alpha: bool, settings: DataSettings) -> np.ndarray:
    """(C,) what lies around a padded picture: the background, as grey where there is no colour, clear with alpha."""
    channels, scale = pixels.shape[2], int(np.iinfo(pixels.dtype).max) // 255
    colour = settings.colour
    if channels - alpha == 3:
        values = list(colour)
    else:
        grey = (sum(weight * value for weight, value in zip(LUMA, colour, strict=True)) + 500) // 1000
        values = [grey] * (channels - alpha)
    return np.array([value * scale for value in values] + [0] * alpha, pixels.dtype)


def _input(name: str, one: Decoded, main: Decoded, placement: Placement, settings: DataSettings) -> np.ndarray:
    nearest = name in settings.nearest
    height, width = one.pixels.shape[:2]
    rows, columns = main.pixels.shape[:2]
    if abs(width * rows - height * columns) > max(rows, columns, 0.01 * width * rows):
        raise Unreadable(f"its {name} has other proportions ({width} x {height}) than the picture ({columns} x {rows})")
    pixels = composite(one.pixels, settings.colour) if one.alpha and not nearest else one.pixels
    ground = np.zeros(pixels.shape[2], pixels.dtype) if nearest else _ground(pixels, False, settings)
    return placement(pixels, ground, nearest=nearest)


def content_hash(main: Decoded) -> str:
    """What the picture shows, hashed: blind to container, hidden colours, an opaque alpha and grey stored as colour."""
    pixels = main.pixels
    if main.alpha:
        alpha = pixels[..., -1:]
        if (alpha == np.iinfo(pixels.dtype).max).all():
            pixels = pixels[..., :-1]
        else:
            pixels = pixels * (alpha > 0)
    if pixels.shape[2] == 3 and (pixels == pixels[..., :1]).all():
        pixels = pixels[..., :1]
    digest = hashlib.blake2b(f"{pixels.shape} {pixels.dtype}".encode(), digest_size=16)
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.hexdigest()


def kind_words(kind: Kind) -> str:
    """Channels and depth for people."""
    what = {1: "grey", 3: "colour"}.get(kind[0], f"{kind[0]} channels")
    return f"{what} with {kind[1]} bits"


def kind_advice(a: Kind, b: Kind, main: bool = True) -> str:
    """What to do when pictures are of two kinds; further inputs (`main` false) are never converted."""
    if not main:
        return "save them all alike"
    said = []
    if a[0] != b[0]:
        convertible = {a[0], b[0]} == {1, 3}
        said.append("set channels = 3 (or 1) to convert them" if convertible else "keep one kind in the folder")
    if a[1] != b[1]:
        said.append("set depth = 8 or 16 to convert them")
    return " and ".join(said)
