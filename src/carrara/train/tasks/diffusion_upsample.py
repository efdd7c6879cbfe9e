"""The task of a diffusion upsampler: to denoise the large picture, told the small one with noise of a known level."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from carrara.data.pictures import Pictures
from carrara.decoder import Decoding, Degradation, DiffusionUpsample, Pixels
from carrara.decoder.diffusion_upsample import LEVEL
from carrara.diffusion.edit import Editing
from carrara.diffusion.generator import SamplingSettings
from carrara.diffusion.guidance import ClassifierFree
from carrara.diffusion.limits import Threshold
from carrara.errors import RecipeError
from carrara.rng import Rng
from carrara.run import finish
from carrara.text import TextEncoder, Unconditional
from carrara.train.tasks.diffusion import Denoising, DiffusionTask
from carrara.train.tasks.generator import TaughtRecipe, check_text, condition_widths, text_encoder
from carrara.train.tasks.part import PartTask, Table, depth
from carrara.train.tasks.pictures import likeness
from carrara.train.tasks.upsample import enlarged, shown_pictures
from carrara.types import Batch, Condition

__all__ = ["DiffusionUpsampleRecipe", "DiffusionUpsampleTask"]

_SAMPLED = 16  # held-out pictures that are sampled for PSNR


@dataclass(frozen=True, kw_only=True)
class DiffusionUpsampleRecipe(Denoising, TaughtRecipe):
    """A diffusion model of large pictures that is told small ones; the data's size is the large one.

    `text` is as a generator's recipe has it.
    """

    text: str | Table = "unconditional"
    factor: int = 4  # how many times larger the sides become
    most: float = 0.5  # the largest level of noise on the small picture; each row's is drawn between 0 and this
    augmentation: float = 0.1  # the level at which it samples unless told otherwise
    degradation: Degradation = field(default_factory=Degradation)  # of the small pictures, before the noise
    settings: SamplingSettings = field(default_factory=lambda: SamplingSettings(guidance=Threshold(ClassifierFree())))

    def __post_init__(self) -> None:
        super().__post_init__()
        check_text(self.text)
        if not 0 <= self.augmentation <= self.most <= 1:
            raise ValueError(
                f"augmentation = {self.augmentation} and most = {self.most}; expected 0 <= augmentation <= most <= 1"
            )
        if self.settings.editing != Editing():
            raise ValueError("settings.editing: an upsampler begins from noise and edits nothing; leave it out")

    @property
    def parts(self) -> str:
        return str(self.text)

    def create(self, pictures: Pictures, seed: int, device: torch.device) -> DiffusionUpsampleTask:
        text = text_encoder(self.text, pictures, device)
        large = Pixels(channels=pictures.channels, size=pictures.size, depth=depth(pictures))
        told = {"image_channels": pictures.channels, "numbers": [LEVEL]}
        denoiser = self.denoiser(large, seed, {**condition_widths(text), **told})
        try:
            decoder = DiffusionUpsample(
                denoiser,
                channels=pictures.channels,
                size=pictures.size,
                factor=self.factor,
                depth=depth(pictures),
                reads=None if isinstance(text, Unconditional) else text.space,
                augmentation=self.augmentation,
                most=self.most,
                settings=self.settings,
            )
        except ValueError as error:
            raise RecipeError(f"task.factor: {error}") from error
        return DiffusionUpsampleTask(decoder.to(device), self, pictures, text, large)


class DiffusionUpsampleTask(DiffusionTask):
    """The objective on large pictures, under captions and the small picture, of which every row has its own level."""

    role = "decoder"

    def __init__(
        self,
        module: DiffusionUpsample,
        recipe: DiffusionUpsampleRecipe,
        pictures: Pictures,
        text: TextEncoder,
        large: Pixels,
    ) -> None:
        self.upsampler, self.recipe = module, recipe
        super().__init__(module, recipe, pictures, text, large, objective=recipe.objective)  # type: ignore[arg-type]

    def taught(self, batch: Batch, rng: Rng) -> Condition:
        """What the rows are told in training: the caption, or nothing, and the small picture at a level of its own."""
        small = self.recipe.degradation(self._small(batch.images), rng.fork("degradation"))
        level = rng.fork("level").uniform() * self.recipe.most
        noise = rng.fork("augmentation").normal_like(small)
        return self.upsampler.told(super().taught(batch, rng), small, level.to(self.device, torch.float32), noise)

    def told(self, batch: Batch) -> Condition:
        """The rows' captions and their small pictures without noise."""
        small = self._small(batch.images)
        return self.upsampler.told(super().told(batch), small, small.new_zeros(len(batch)), torch.zeros_like(small))

    def _small(self, images: Tensor) -> Tensor:
        return self.upsampler.encode(images.to(self.device))

    def validate(self, batch: Batch, rng: Rng) -> dict[str, float]:
        """Held-out loss, and of a few sampled pictures PSNR in dB, SSIM, and how many dB that is above bicubic."""
        figures, some = super().validate(batch, rng), slice(0, _SAMPLED)
        images = batch.images[some].to(self.device)
        captions = self._said(batch)[some]
        seeds = [int(number) for number in batch.sample[some]]
        found = likeness(images, self._sampled(images, captions, seeds))
        plain = likeness(images, enlarged(self._small(images), images))
        return {**figures, **found, "above_bicubic_db": found["psnr_db"] - plain["psnr_db"]}

    def _sampled(self, images: Tensor, captions: Sequence[str], seeds: Sequence[int]) -> Tensor:
        condition, null = self._condition(captions), self.null.rows([0] * len(images))
        rng = Rng.seeds(seeds, "decoder")
        made: Tensor = finish(self.upsampler.start(self._small(images), condition, null, rng, Decoding()))
        return made

    def sample(self, rng_seed: int) -> Tensor | None:
        """Eight pictures made small, enlarged by bicubic and sampled, and as they are: held-out ones if any."""
        images = shown_pictures(self.pictures).to(self.device)
        rows = (self.pictures.heldout if len(self.pictures.heldout) else self.pictures.train)[: len(images)]
        captions = [self._own(int(row)) for row in rows]
        made = self._sampled(images, captions, [rng_seed + i for i in range(len(images))])
        return torch.cat([enlarged(self._small(images), images), made, images])

    def save(self, folder: Path) -> None:
        """Writes the component; a text encoder has a folder of its own."""
        PartTask.save(self, folder)
