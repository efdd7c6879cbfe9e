"""A data set ready for training: prepared pictures in a memory map, with captions, labels, inputs and a split.

The split into training and held-out pictures is the folder's own where it has one. Otherwise a picture is held out when
the hash of what it shows, taken as a number in [0, 1), is below the share that was asked for: so adding or removing
pictures never moves another one, every size of a picture is on the same side, and so are exact duplicates.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError
from .cache import Cache, Progress, default_cache, open_cache
from .findings import Findings, count, examples, refusals
from .folder import Listing, Row, list_folder
from .settings import DataSettings
from .split import held_out_rows

__all__ = ["Pictures", "open_pictures"]


def open_pictures(settings: DataSettings, cache: Path | None = None, *, progress: Progress | None = None) -> Pictures:
    """The pictures of `settings.folder`, decoded and resized into `cache`.

    Without `cache` it is `$CARRARA_CACHE`, else ~/.cache/carrara. `progress(done, total)` is called while the cache is
    built, and not when it is there already. Raises DataError where the data cannot be used as it is, StorageError where
    the disk refuses.
    """
    listing = list_folder(settings)
    _refuse(listing.findings, settings)
    pictures = Pictures(settings, listing, open_cache(listing, settings, cache or default_cache(), progress))
    _refuse(pictures.findings, settings)
    return pictures


def _refuse(findings: Findings, settings: DataSettings) -> None:
    if said := refusals(findings, settings):
        raise DataError(" ".join(said))


class Pictures:
    """A decoded, resized, memory-mapped data set; index i is one picture everywhere.

    Attributes: `settings`, `findings`, `channels`, `depth` (8 or 16 bits), `size` (height, width), `names`, `captions`
    (all captions of each picture, possibly none), `labels` ("" without), `classes` (sorted), `inputs` (name ->
    channels), `content` (hash of what each picture shows), `train` and `heldout` (int64 indices).
    """

    def __init__(self, settings: DataSettings, listing: Listing, cache: Cache) -> None:
        rows: list[Row] = [listing.rows[number] for number in cache.rows]
        self.settings = settings
        self.channels, self.depth, self.size = cache.channels, cache.depth, settings.shape
        self.names = tuple(row.name for row in rows)
        self.captions = tuple(row.captions for row in rows)
        self.labels = tuple(row.label for row in rows)
        self.classes = tuple(sorted({row.label for row in rows if row.label}))
        self.inputs: Mapping[str, int] = dict(cache.input_channels)
        self.content = cache.content
        self._cache = cache
        held = held_out_rows(rows, self.content, settings)
        self.train, self.heldout = np.flatnonzero(~held), np.flatnonzero(held)
        self.findings = self._findings(listing, rows)

    def __len__(self) -> int:
        return len(self.names)

    def __repr__(self) -> str:
        height, width = self.size
        return (
            f"Pictures({len(self)} of {self.channels} x {height} x {width}, {self.depth} bits, {self.settings.folder})"
        )

    @cached_property
    def fingerprint(self) -> str:
        """A hash of everything training sees: pictures, inputs, captions, labels, split and how they were prepared."""
        digest = hashlib.blake2b(digest_size=16)
        s = self.settings
        digest.update(repr((self.channels, self.depth, s.shape, s.fit, s.colour, sorted(self.inputs.items()))).encode())
        digest.update(np.isin(np.arange(len(self)), self.heldout).tobytes())
        for row in zip(self.content, self.captions, self.labels, strict=True):
            digest.update(repr(row).encode(errors="surrogatepass"))
        for name in sorted(self.inputs):
            digest.update(np.ascontiguousarray(self._cache.inputs[name]).data)
        return digest.hexdigest()

    @cached_property
    def _starts(self) -> np.ndarray:
        """(N + 1,) where each picture begins in the flat array of random crops, in pixels."""
        shapes = self._cache.shapes
        areas = np.empty(0, np.int64) if shapes is None else shapes[:, 0] * shapes[:, 1]
        return np.concatenate([np.zeros(1, np.int64), np.cumsum(areas)])

    def pixels(self, indices: Sequence[int] | np.ndarray, crop: np.ndarray | None = None) -> np.ndarray:
        """The pictures as stored: (B, H, W, C) uint8 or uint16.

        `crop` (B, 2) in [0, 1) is where each is cut, as shares of the room there is; it matters only when the settings
        say random crops, and None cuts the centre.
        """
        return self._read(self._cache.images, self._rows(indices), self.channels, crop)

    def tensor(self, indices: Sequence[int] | np.ndarray | Tensor, crop: np.ndarray | None = None) -> Tensor:
        """The pictures as (B, C, H, W) float32 in [-1, 1]: x / (2**depth - 1) * 2 - 1."""
        return _to_float(self.pixels(self._rows(indices), crop))

    def input_tensors(
        self, indices: Sequence[int] | np.ndarray | Tensor, crop: np.ndarray | None = None
    ) -> dict[str, Tensor]:
        """The further pictures of each row by name, cut as the pictures are: (B, C', H, W) float32 in [-1, 1]."""
        rows = self._rows(indices)
        return {
            name: _to_float(self._read(array, rows, self.inputs[name], crop))
            for name, array in self._cache.inputs.items()
        }

    def _rows(self, indices: Sequence[int] | np.ndarray | Tensor) -> np.ndarray:
        rows = np.asarray(indices, dtype=np.int64).reshape(-1)
        if rows.size and (rows.min() < 0 or rows.max() >= len(self)):
            raise ValueError(
                f"there are {len(self)} pictures; index {int(rows.max() if rows.min() >= 0 else rows.min())} is none"
            )
        return rows

    def _read(self, array: np.ndarray, rows: np.ndarray, channels: int, crop: np.ndarray | None) -> np.ndarray:
        shapes = self._cache.shapes
        if shapes is None:
            return np.asarray(array[rows])
        height, width = self.size
        starts = self._starts * channels
        where = np.full((len(rows), 2), 0.5) if crop is None else crop
        out = np.empty((len(rows), height, width, channels), array.dtype)
        for i, row in enumerate(rows):
            rooms = shapes[row] - (height, width)
            y, x = np.minimum((where[i] * (rooms + 1)).astype(np.int64), rooms) if crop is not None else rooms // 2
            whole = array[starts[row] : starts[row + 1]].reshape(*shapes[row], channels)
            out[i] = whole[y : y + height, x : x + width]
        return out

    def _findings(self, listing: Listing, rows: Sequence[Row]) -> Findings:
        found, kept = listing.findings, {row.name for row in rows}
        sources = {source: sum(row.source == source for row in rows) for source in found.captions}
        said = [*found.decisions, f"{len(self.train)} for training, {len(self.heldout)} held out."]
        said += [f"{count(number, 'picture')}: {note}." for note, number in sorted(self._cache.notes.items())]
        held = {self.content[i] for i in self.heldout}
        if both := [self.names[i] for i in self.train if self.content[i] in held]:
            said.append(
                f"{count(len(both), 'training picture')} also held out, by the folder's own split: {examples(both)}."
            )
        return replace(
            found,
            pictures=len(rows),
            captions={source: number for source, number in sources.items() if number},
            classes=self.classes,
            problems=(*found.problems, *self._cache.problems),
            uncaptioned=tuple(name for name in found.uncaptioned if name in kept),
            unlisted=tuple(name for name in found.unlisted if name in kept),
            upscaled=tuple(self.names[i] for i in self._cache.upscaled),
            decisions=tuple(said),
        )


def _to_float(pixels: np.ndarray) -> Tensor:
    """(B, H, W, C) whole numbers to (B, C, H, W) float32 in [-1, 1]."""
    top = float(np.iinfo(pixels.dtype).max)
    whole = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    return whole.to(torch.float32, memory_format=torch.contiguous_format).div_(top).mul_(2).sub_(1)
