"""Batches by number: what training sees at a step is a pure function of the seed and the step.

Sample g of a run (g = step * batch + i) is picture `order[g mod n]` of epoch `g // n`, whose order is the permutation
named (seed, "order", epoch). Its caption, flip and crop are the g-th draws of streams named (seed, purpose). So
resuming at a step, another number of ranks, or reading ahead cannot change anything, and no state has to be saved.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch

from ..rng import keyed, permutation
from ..types import Batch
from .pictures import Pictures

__all__ = ["Loader"]


class Loader:
    """Training and held-out batches of `pictures`; rank r of `world` reads the r-th part of each batch.

    `batch` is the whole batch, over all ranks. `flip` mirrors half of the samples (default: as the data settings say).
    Raises ValueError where there is nothing to train on or the batch does not divide.
    """

    def __init__(
        self, pictures: Pictures, batch: int, seed: int, *, flip: bool | None = None, rank: int = 0, world: int = 1
    ) -> None:
        if batch < 1:
            raise ValueError(f"batch is {batch}; give at least 1 row")
        if world < 1 or not 0 <= rank < world:
            raise ValueError(f"rank {rank} of {world} ranks; rank is at least 0 and below the number of ranks")
        if batch % world:
            raise ValueError(f"a batch of {batch} does not divide among {world} ranks; give a multiple of {world}")
        if not len(pictures.train):
            raise ValueError("every picture is held out; lower the held-out share or add training pictures")
        self.pictures, self.batch_size, self.seed = pictures, batch, seed
        self.flip = pictures.settings.flip if flip is None else flip
        self.rank, self.world = rank, world
        self._order = lru_cache(maxsize=2)(self._draw_order)

    @property
    def epoch_size(self) -> int:
        """Training pictures in an epoch."""
        return len(self.pictures.train)

    @property
    def fingerprint(self) -> str:
        """A hash of what the batches are cut from: a run that goes on with another one is refused."""
        return f"{self.pictures.fingerprint}-flip" if self.flip else self.pictures.fingerprint

    def samples(self, step: int) -> np.ndarray:
        """This rank's sample numbers at `step`: int64 (B / world,)."""
        if step < 0:
            raise ValueError(f"step is {step}; steps count from 0")
        rows = self.batch_size // self.world
        start = step * self.batch_size + self.rank * rows
        return np.arange(start, start + rows, dtype=np.int64)

    def indices(self, samples: np.ndarray) -> np.ndarray:
        """Which picture each sample number is: int64."""
        epochs, places = np.divmod(samples, self.epoch_size)
        chosen = np.empty_like(samples)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            chosen[here] = self._order(int(epoch))[places[here]]
        return chosen

    def batch(self, step: int) -> Batch:
        """The rows of this rank at `step`: images (B / world, C, H, W) float32 in [-1, 1], captions, inputs, labels."""
        samples = self.samples(step)
        index = self.indices(samples)
        start, rows = int(samples[0]), len(samples)
        crop = None
        if self.pictures.settings.fit == "random-crop":
            crop = np.stack([self._uniform("crop y", start, rows), self._uniform("crop x", start, rows)], 1)
        images, inputs = self.pictures.tensor(index, crop), self.pictures.input_tensors(index, crop)
        if self.flip:
            turned = torch.from_numpy(self._uniform("flip", start, rows) < 0.5)
            for tensor in (images, *inputs.values()):
                tensor[turned] = tensor[turned].flip(-1)
        return Batch(
            images=images,
            captions=self._captions(index, self._uniform("caption", start, rows)),
            index=tuple(index.tolist()),
            sample=tuple(samples.tolist()),
            inputs=inputs,
            labels=self._labels(index),
        )

    def heldout(self, count: int) -> Batch:
        """The first `count` held-out rows (or all there are): the same pictures, first captions, unflipped.

        `sample` numbers count from 0. Raises ValueError where nothing is held out.
        """
        index = self.pictures.heldout[:count]
        if not len(index):
            raise ValueError("no pictures are held out; set a held-out share above 0, or ask for at least 1 row")
        return Batch(
            images=self.pictures.tensor(index),
            captions=self._captions(index, np.zeros(len(index))),
            index=tuple(index.tolist()),
            sample=tuple(range(len(index))),
            inputs=self.pictures.input_tensors(index),
            labels=self._labels(index),
        )

    def _draw_order(self, epoch: int) -> np.ndarray:
        return self.pictures.train[permutation(self.epoch_size, self.seed, "order", epoch)]

    def _uniform(self, purpose: str, start: int, count: int) -> np.ndarray:
        """Draws number start .. start + count of the stream (seed, purpose), in [0, 1)."""
        bits = keyed(self.seed, purpose).bit_generator
        assert isinstance(bits, np.random.Philox)
        bits.advance(start // 4)  # a Philox block is four words
        words = bits.random_raw(start % 4 + count)[start % 4 :]
        return np.asarray((words >> np.uint64(11)) * 2.0**-53)

    def _captions(self, index: np.ndarray, draws: np.ndarray) -> tuple[str, ...]:
        captions = self.pictures.captions
        return tuple(
            said[int(draw * len(said))] if (said := captions[i]) else "" for i, draw in zip(index, draws, strict=True)
        )

    def _labels(self, index: np.ndarray) -> tuple[str, ...]:
        return tuple(self.pictures.labels[i] for i in index) if self.pictures.classes else ()
