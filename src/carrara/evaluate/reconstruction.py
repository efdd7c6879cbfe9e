r"""A decoder by itself: pictures are encoded, decoded again, and compared with what they were.

    psnr_db, ssim              a picture with its own, on average
    above_bicubic_db           where z is a small picture: PSNR less that of enlarging z by bicubic
    reconstruction_fd_NAME     the Frechet distance of all that came back to all that was given
    vocabulary_used            where z is tokens: the share of the vocabulary that occurs,
    perplexity                 and exp of the entropy of its use: so many tokens, used alike, would carry as much

No generator is better than this: it is what is lost where z is made without a fault.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from carrara.data import Pictures
from carrara.decoder import psnr, ssim
from carrara.errors import DataError
from carrara.evaluate.distances import Interval, frechet_of
from carrara.evaluate.extractor import Extractor
from carrara.evaluate.features import features_of
from carrara.evaluate.figures import Figures
from carrara.evaluate.measure import Say
from carrara.evaluate.model import said
from carrara.evaluate.resize import levels
from carrara.evaluate.samples import BLOCK
from carrara.evaluate.yardstick import FEWEST, Split
from carrara.fingerprint import fingerprint
from carrara.image import to_pixels
from carrara.nn.upsampler import bicubic
from carrara.rng import Rng, permutation
from carrara.run import finish
from carrara.types import Condition

__all__ = ["Reconstruction", "Trial"]

_NORMAL = 1.959964  # 95 % of a normal distribution lie within so many standard deviations
_SIDE = 11  # pixels, the least of SSIM
_SHOWN = 16


class Reconstruction(NamedTuple):
    """Figures as plain facts, and the first pictures (n, 3, H, W) in [-1, 1]: as given, as made, and by bicubic."""

    facts: dict[str, Any]
    given: Tensor
    made: Tensor
    enlarged: Tensor | None


@dataclass(frozen=True, eq=False)
class Trial:
    """What a decoder is tried on.

    path: its folder. facts: what was noted of it. text: the encoder whose condition it reads, if it reads one. split:
    which of the pictures; `count` of them at most, which the seed draws. cache: for the features of the pictures.
    """

    path: Path
    decoder: Any
    facts: dict[str, Any]
    text: Any
    pictures: Pictures
    split: Split
    extractor: Extractor
    cache: Path
    count: int = 1000
    seed: int = 0
    batch: int = 32

    @property
    def rows(self) -> list[int]:
        """The pictures, in the data's order. Raises DataError where there is none."""
        splits = {"train": self.pictures.train.tolist(), "heldout": self.pictures.heldout.tolist()}
        of: list[int] = splits.get(self.split, [*range(len(self.pictures))])
        if not of:
            raise DataError(
                f"no picture of {self.pictures.settings.folder} is held out; give --reference train or all, or raise "
                "`heldout` in the recipe"
            )
        chosen = permutation(len(of), self.seed, "reconstruction")[: self.count]
        return sorted(of[i] for i in chosen)

    def measured(self, say: Say) -> Reconstruction:
        """Everything."""
        return _Work(self, say).measured()


class _Work:
    """The measuring of one decoder."""

    def __init__(self, trial: Trial, say: Say) -> None:
        self.trial, self.say, self.rows = trial, say, trial.rows
        self.figures = Figures()
        self.seconds = 0.0
        space, pictures = trial.decoder.space, trial.decoder.pictures
        self.small = space.kind == "pixels" and space.shape != pictures.shape
        self.used = torch.zeros(space.vocabulary if space.kind == "tokens" else 0, dtype=torch.float64)
        self.found: dict[str, list[Tensor]] = {}

    def measured(self) -> Reconstruction:
        """Everything."""
        blocks: list[np.ndarray] = []
        shown: list[tuple[Tensor, Tensor, Tensor | None]] = []
        tick = self.say("pictures", len(self.rows))
        for first in range(0, len(self.rows), BLOCK):
            parts = []
            block = self.rows[first : first + BLOCK]
            for start in range(0, len(block), self.trial.batch):
                images, made, enlarged = self._batch(block[start : start + self.trial.batch], first + start)
                parts.append(to_pixels(made, self.trial.decoder.depth))
                if sum(len(given) for given, _, _ in shown) < _SHOWN:
                    shown.append((images, made, enlarged))
                tick(first + start + len(images))
            blocks.append(np.concatenate(parts))
        for name, values in self.found.items():
            self._mean(name, torch.cat(values))
        self._distance(blocks)
        if len(self.used):
            share = self.used / self.used.sum()
            self.figures.add("vocabulary_used", [(self.used > 0).double().mean().item()])
            self.figures.add("perplexity", [torch.special.entr(share).sum().exp().item()])
        self.figures.add("seconds_per_picture", [self.seconds / len(self.rows)])
        self.figures.add("parameters", [sum(p.numel() for p in self.trial.decoder.parameters())])
        by_bicubic = [plain for *_, plain in shown if plain is not None]
        return Reconstruction(
            self._facts(),
            _colour(torch.cat([given for given, _, _ in shown])),
            _colour(torch.cat([made for _, made, _ in shown])),
            _colour(torch.cat(by_bicubic)) if by_bicubic else None,
        )

    def _batch(self, rows: Sequence[int], first: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """The pictures, what the decoder makes of their z, and what bicubic makes of it where it can."""
        trial, decoder = self.trial, self.trial.decoder
        device = next((p.device for p in decoder.parameters()), torch.device("cpu"))
        images = trial.pictures.tensor(rows).to(device)
        condition, null = self._told(rows)
        rng = Rng.seeds(range(trial.seed + first, trial.seed + first + len(rows))).fork("decoder")
        with torch.no_grad():
            z = decoder.encode(images)
            began = time.perf_counter()
            made = finish(decoder.start(z, condition, null, rng)).float().clamp(-1, 1).cpu()
            self.seconds += time.perf_counter() - began
            images, z = images.cpu(), z.cpu()
            enlarged = bicubic(z, (images.shape[2], images.shape[3])).clamp(-1, 1) if self.small else None
        if len(self.used):
            self.used += torch.bincount(z.flatten(), minlength=len(self.used))
        near = psnr(images, made)
        self._note("psnr_db", near)
        if enlarged is not None:
            self._note("above_bicubic_db", near - psnr(images, enlarged))
        if min(images.shape[2:]) >= _SIDE:
            self._note("ssim", ssim(images, made))
        return images, made, enlarged

    def _told(self, rows: Sequence[int]) -> tuple[Condition, Condition]:
        """What the decoder is told of each picture, as a model would be, and the same of nothing."""
        if self.trial.text is None:
            return Condition(), Condition()
        told = said(self.trial.text, self.trial.pictures, rows)
        both: Condition = finish(self.trial.text.start([*told, *("" for _ in told)]))
        return both.rows(slice(0, len(told))), both.rows(slice(len(told), None))

    def _note(self, name: str, values: Tensor) -> None:
        self.found.setdefault(name, []).append(values)

    def _mean(self, name: str, values: Tensor) -> None:
        """The mean over pictures, with the interval of its standard error."""
        values, mean, interval = values.double(), values.double().mean().item(), None
        if len(values) > 1:
            around = _NORMAL * values.std().item() / math.sqrt(len(values))
            interval = Interval(mean, mean - around, mean + around)
        self.figures.add(name, [mean], interval)

    def _distance(self, blocks: Sequence[np.ndarray]) -> None:
        """Of the pictures that came back to those that were given, as the network sees both."""
        name = f"reconstruction_fd_{self.trial.extractor.slug}"
        if len(self.rows) < FEWEST:
            self.figures.missing[name] = f"{len(self.rows)} pictures are too few; {FEWEST} are needed"
            return
        self.figures.attempt(name, lambda: self._apart(blocks))

    def _apart(self, blocks: Sequence[np.ndarray]) -> float:
        trial, rows = self.trial, self.rows
        given = (trial.pictures.pixels(rows[i : i + BLOCK]) for i in range(0, len(rows), BLOCK))
        real = features_of(trial.extractor, given, trial.cache / "features", self.say("pictures seen", len(rows)))
        if len(rows) <= real.shape[1]:
            name = f"reconstruction_fd_{trial.extractor.slug}"
            self.figures.marks[name] = f"n<d: {len(rows)} pictures, {real.shape[1]} dimensions"
        return frechet_of(torch.cat([trial.extractor.features(pixels) for pixels in blocks]), real)

    def _facts(self) -> dict[str, Any]:
        trial, pictures = self.trial, self.trial.pictures
        noted = trial.facts.get("data")
        return {
            "format_version": 1,
            "name": trial.path.resolve().name,
            "decoder": str(trial.path),
            "decoder_key": fingerprint(dict(trial.decoder.state_dict())),
            "figures": self.figures.values,
            "intervals": self.figures.intervals,
            "marks": self.figures.marks,
            "missing": self.figures.missing,
            "reference": {
                "folder": str(pictures.settings.folder),
                "split": trial.split,
                "pictures": len(self.rows),
                "fingerprint": pictures.fingerprint,
                "trained_on": isinstance(noted, dict) and noted.get("fingerprint") == pictures.fingerprint,
            },
            "seed": trial.seed,
            "size": list(pictures.size),
            "z": {"kind": trial.decoder.space.kind, "shape": list(trial.decoder.space.shape)},
            "extractor": {"name": trial.extractor.name, "key": trial.extractor.key},
        }


def _colour(images: Tensor) -> Tensor:
    """The first pictures, as a page shows them: grey, or their first three channels."""
    shown = images[:_SHOWN, : 3 if images.shape[1] >= 3 else 1]
    return levels(to_pixels(shown)) / 127.5 - 1
