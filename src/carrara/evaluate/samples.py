"""Pictures that a model makes to be measured, in files that are only added to.

    FOLDER/samples.json                           what they are samples of: model, settings, prompts, seed
    FOLDER/<series>-000128.safetensors            pixels (n, H, W, C) as they would be stored, seconds that they took

Picture i of a series has a prompt and a seed of its own, whatever the number of pictures and whichever machine makes
it. So work goes on after a stop and with a larger number, and is shared: block b belongs to share b mod n of it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from carrara.errors import NonFiniteError, RecipeError, StorageError
from carrara.rng import permutation
from carrara.store.atomic import storage_errors, write_json
from carrara.store.safetensors_io import load_tensors, save_tensors
from carrara.system import System

__all__ = ["Asked", "BLOCK", "Block", "Making", "Samples", "Series"]

BLOCK = 64
"""Pictures of a file."""

_ALL = (1, 1)
_APART = 1_000_000  # seeds between two series


class Asked(NamedTuple):
    """One picture: what it should show, and its seed."""

    prompt: str
    seed: int


class Series(NamedTuple):
    """A row of pictures that are asked for."""

    name: str
    asked: tuple[Asked, ...]

    @classmethod
    def drawn(cls, name: str, number: int, prompts: Sequence[str], count: int, seed: int, *, each: int = 1) -> Series:
        """`count` pictures of prompts in an order that the seed and the series' number draw, `each` times in a row.

        A larger count begins with the same ones. The seeds of picture i are seed + 1,000,000 number + i.
        """
        order = permutation(len(prompts), seed, "evaluate", number)
        first = seed + _APART * number
        return cls(name, tuple(Asked(prompts[order[i // each % len(order)]], first + i) for i in range(count)))

    @property
    def prompts(self) -> list[str]:
        """One a picture."""
        return [one.prompt for one in self.asked]

    @property
    def blocks(self) -> list[tuple[Asked, ...]]:
        """The pictures of each file."""
        return [self.asked[i : i + BLOCK] for i in range(0, len(self.asked), BLOCK)]


@dataclass(frozen=True)
class Making:
    """How pictures are made: sampling settings (None: the generator's own), draws of each, pictures at a time."""

    settings: Any = None
    candidates: int = 1
    batch: int = 32


class Block(NamedTuple):
    """The pictures of a file, (n, H, W, C) uint8 or uint16, and the seconds that they took."""

    pixels: np.ndarray
    seconds: float


class Samples:
    """What `system` makes as `making` says, in a folder whose identity says so.

    Raises RecipeError for a folder with samples of something else, StorageError where it cannot be read or written.
    """

    def __init__(self, system: System, folder: Path, identity: Mapping[str, Any], making: Making) -> None:
        self.system, self.folder, self.making = system, folder, making
        path = folder / "samples.json"
        with storage_errors(f"cannot use {folder}"):
            folder.mkdir(parents=True, exist_ok=True)
            found = path.read_text(encoding="utf-8") if path.exists() else None
        if found is None:
            write_json(path, dict(identity))
        else:
            _same(path, found, identity)

    def path(self, series: Series, number: int) -> Path:
        """The file of a block."""
        return self.folder / f"{series.name}-{number * BLOCK:06}.safetensors"

    def make(
        self, series: Series, *, share: tuple[int, int] = _ALL, tick: Callable[[int], None] = lambda _: None
    ) -> int:
        """Makes what is missing of a share (i of n, from 1); how many pictures of the series are there then.

        `tick` is told after each block how many pictures of the share are done.
        """
        which, shares = share
        done = there = 0
        for number, asked in enumerate(series.blocks):
            mine = number % shares == which - 1
            whole = self._read(series, number, len(asked)) is not None
            if mine and not whole:
                self._write(self.path(series, number), self._made(asked))
                whole = True
            done += len(asked) * mine
            there += len(asked) * whole
            if mine:
                tick(done)
        return there

    def blocks(self, series: Series) -> Iterator[Block]:
        """The pictures of a series, file by file; StorageError where one is missing."""
        for number, asked in enumerate(series.blocks):
            block = self._read(series, number, len(asked))
            if block is None:
                raise StorageError(f"{self.path(series, number)} is missing or not whole; make the samples again")
            yield block

    def _read(self, series: Series, number: int, count: int) -> Block | None:
        """The first `count` pictures of a file; None where there are fewer, or none."""
        path = self.path(series, number)
        if not path.exists():
            return None
        tensors = load_tensors(path)
        pixels, seconds = tensors.get("pixels"), tensors.get("seconds")
        if pixels is None or seconds is None or pixels.ndim != 4 or seconds.shape != (len(pixels),):
            raise StorageError(f"{path} does not hold samples; delete it, and the same command makes them again")
        if len(pixels) < count:
            return None
        return Block(pixels[:count].numpy(), float(seconds[:count].sum()))

    def _made(self, asked: Sequence[Asked]) -> Block:
        parts, began = [], time.perf_counter()
        batch = max(1, self.making.batch // self.making.candidates)
        for first in range(0, len(asked), batch):
            parts.append(self._batch(asked[first : first + batch]))
        return Block(np.concatenate(parts), time.perf_counter() - began)

    def _batch(self, asked: Sequence[Asked]) -> np.ndarray:
        prompts, seeds = [one.prompt for one in asked], [one.seed for one in asked]
        with torch.no_grad():
            making = self.making
            for frame in self.system.generate(
                prompts, seeds=seeds, settings=making.settings, candidates=making.candidates
            ):
                last = frame
        try:
            return last.pixels()
        except NonFiniteError as error:
            raise NonFiniteError(f"{error} (seeds {seeds[0]} to {seeds[-1]}); this model cannot be measured") from error

    @staticmethod
    def _write(path: Path, block: Block) -> None:
        seconds = torch.full((len(block.pixels),), block.seconds / len(block.pixels), dtype=torch.float64)
        temporary = path.with_suffix(".tmp")
        with storage_errors(f"cannot write {path}"):
            save_tensors(temporary, {"pixels": torch.from_numpy(block.pixels), "seconds": seconds})
            temporary.replace(path)


def _same(path: Path, text: str, identity: Mapping[str, Any]) -> None:
    try:
        found, wanted = json.loads(text), json.loads(json.dumps(identity))
        different = sorted(name for name in {*found, *wanted} if found.get(name) != wanted.get(name))
    except (ValueError, TypeError, AttributeError) as error:
        raise StorageError(f"{path} is damaged: {error}; choose another --out") from error
    if different:
        where, was, now = _difference(different[0], found.get(different[0]), wanted.get(different[0]))
        what = where.replace("_", " ")
        raise RecipeError(
            f"{path.parent} holds samples of another {what} ({was!r} instead of {now!r}); choose another --out, or "
            "delete it"
        )


def _difference(where: str, was: Any, now: Any) -> tuple[str, Any, Any]:
    """The first place, dotted, where two values differ, and what is there in each."""
    if isinstance(was, dict) and isinstance(now, dict):
        for name in sorted({*was, *now}):
            if was.get(name) != now.get(name):
                return _difference(f"{where}.{name}", was.get(name), now.get(name))
    return where, was, now
