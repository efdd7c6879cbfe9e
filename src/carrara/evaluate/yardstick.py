"""What models are measured with: reference pictures, networks that see, how many samples of which prompts and seeds.

Every model makes pictures of the same prompts from the same seeds, so that figures differ by the models alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from carrara.config import describe
from carrara.data import Pictures
from carrara.errors import DataError, RecipeError
from carrara.evaluate.extractor import Extractor
from carrara.evaluate.features import BLOCK, features_of
from carrara.evaluate.model import Model, said
from carrara.evaluate.samples import Making, Samples, Series
from carrara.store import kinds

__all__ = ["FEWEST", "Split", "Yardstick", "settings_of"]

Split = Literal["train", "heldout", "all"]

FEWEST = 16
"""Samples, and reference pictures, below which nothing is measured."""

_VARIED = 64  # pictures of prompts that are asked for several times
_VARIED_SERIES = 1000  # of their series


@dataclass(frozen=True, eq=False)
class Yardstick:
    """What models are measured with.

    pictures: the data, at the size that is measured at. reference: which of them. extractor: the network that most
    figures are by. judge: a contrastive text encoder, for prompts. clip: a CLIP. count: samples of each of `repeats`
    sets. each: pictures of one prompt, for diversity. bits: held-out pictures for bits a dimension; 0 leaves it out.
    """

    pictures: Pictures
    reference: Split
    extractor: Extractor
    cache: Path
    judge: Extractor | None = None
    clip: Extractor | None = None
    count: int = 1000
    repeats: int = 1
    each: int = 4
    bits: int = 256
    seed: int = 0
    batch: int = 32

    def __post_init__(self) -> None:
        if self.count < FEWEST:
            raise RecipeError(f"{self.count} samples are too few to measure anything; give {FEWEST} or more")
        if len(self.rows) < FEWEST:
            raise DataError(
                f"{self.reference}: {len(self.rows)} pictures of {self.pictures.settings.folder} are too few for a "
                f"reference; {FEWEST} are needed"
            )

    @property
    def rows(self) -> list[int]:
        """The reference pictures."""
        if self.reference == "all":
            return list(range(len(self.pictures)))
        return (self.pictures.train if self.reference == "train" else self.pictures.heldout).tolist()

    def series(self, model: Model) -> list[Series]:
        """What the model is asked for: `repeats` sets, and prompts that are asked for `each` times."""
        prompts = said(model.system.text, self.pictures, self.rows)
        sets = [Series.drawn(f"set{i}", i, prompts, self.count, self.seed) for i in range(self.repeats)]
        if self.each < 2 or not any(prompts):
            return sets
        count = max(1, _VARIED // self.each) * self.each
        return [*sets, Series.drawn(f"varied{self.each}", _VARIED_SERIES, prompts, count, self.seed, each=self.each)]

    def samples(self, model: Model, folder: Path, making: Making) -> Samples:
        """Where the model's samples are kept, in `folder`."""
        identity = {
            "format_version": 1,
            "model": model.key,
            "settings": settings_of(model, making),
            "candidates": making.candidates,
            "data": self.pictures.fingerprint,
            "reference": self.reference,
            "seed": self.seed,
        }
        return Samples(model.system, folder / "samples", identity, making)

    def features(self, extractor: Extractor, rows: Sequence[int], tick: Callable[[int], None]) -> Tensor:
        """Of some of the pictures, from the cache where they are there."""
        blocks = (self.pictures.pixels(rows[i : i + BLOCK]) for i in range(0, len(rows), BLOCK))
        return features_of(extractor, blocks, self.cache / "features", tick)


def settings_of(model: Model, making: Making) -> dict[str, Any] | None:
    """The settings that a model's pictures are made with, as a recipe says them; None for a generator without any."""
    shown = making.settings if making.settings is not None else getattr(model.system.generator, "settings", None)
    return describe(shown, kinds()) if shown is not None else None
