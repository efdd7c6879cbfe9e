"""The tasks of decoders that make small pictures large: supervised on pairs, and by diffusion."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from carrara.data.augment import Augment
from carrara.data.pictures import Pictures
from carrara.decoder import Degradation, PictureLoss, Upsample
from carrara.errors import RecipeError
from carrara.nn.upsampler import bicubic
from carrara.rng import Rng
from carrara.train.task import Loss
from carrara.train.tasks.part import Table, TaskRecipe, built, depth
from carrara.train.tasks.pictures import Adversarial, Judges, Perceptual, PictureTask, likeness
from carrara.types import Batch

__all__ = ["UpsampleRecipe", "UpsampleTask", "enlarged"]


@dataclass(frozen=True, kw_only=True)
class UpsampleRecipe(TaskRecipe):
    """A network that makes small pictures large, learnt from pairs; the data's size is the large one.

    What it is given is degraded as a generator's pictures are: `degradation`.
    """

    network: Table = field(default_factory=lambda: {"kind": "residual"})
    loss: PictureLoss = field(default_factory=PictureLoss)
    perceptual: Perceptual | None = None  # a distance as a trained network sees it
    adversarial: Adversarial | None = None  # a discriminator, from a step on
    degradation: Degradation = field(default_factory=lambda: Degradation(noise=0.05, blur=0.4))
    augment: Augment = field(default_factory=Augment)

    def create(self, pictures: Pictures, seed: int, device: torch.device) -> UpsampleTask:
        network = built("upsampler", self.network, "task.network", seed, channels=pictures.channels)
        try:
            decoder = Upsample(network, size=pictures.size, depth=depth(pictures))
        except ValueError as error:
            raise RecipeError(f"task.network.factor: {error}") from error
        judges = Judges(self.perceptual, self.adversarial, channels=pictures.channels, seed=seed, device=device)
        return UpsampleTask(decoder.to(device), self, pictures, judges)


class UpsampleTask(PictureTask):
    """The large picture from a degraded small one. Held-out figures are of small ones that are not degraded."""

    phase_name = "upsample"

    def __init__(self, module: Upsample, recipe: UpsampleRecipe, pictures: Pictures, judges: Judges) -> None:
        self.decoder, self.recipe, self.pictures = module, recipe, pictures
        super().__init__(module, judges)
        # torch does not compile what is differentiated twice, as the network is for an adaptive weight
        self.networks = (module.network,) if judges.adversarial is None else (nn.Identity(),)

    def pairs(self, batch: Batch, rng: Rng) -> tuple[Tensor, Tensor]:
        images = self.recipe.augment(batch.images, rng.fork("augment"))
        small = self.recipe.degradation(self.decoder.encode(images), rng.fork("degradation"))
        return images, self.decoder.network(small)

    def loss(self, batch: Batch, rng: Rng) -> Loss:
        images, made = self.pairs(batch, rng)
        return self.judges.added(Loss(*self.recipe.loss(images, made)), images, made, self.decoder.network)

    def validate(self, batch: Batch, rng: Rng) -> dict[str, float]:
        """Held-out loss, PSNR in dB and SSIM, and how many dB that is above bicubic enlargement."""
        small = self.decoder.encode(batch.images)
        made = self.decoder.network(small)
        rows, _ = self.recipe.loss(batch.images, made)
        figures, plain = likeness(batch.images, made), likeness(batch.images, enlarged(small, batch.images))
        gain = figures["psnr_db"] - plain["psnr_db"]
        return {"loss": rows.mean().item(), **figures, "above_bicubic_db": gain}

    def sample(self, rng_seed: int) -> Tensor | None:
        """Eight pictures made small, enlarged by bicubic and by the network, and as they are: held-out ones if any."""
        images = shown_pictures(self.pictures).to(next(self.module.parameters()).device)
        small = self.decoder.encode(images)
        return torch.cat([enlarged(small, images), self.decoder.decode(small).float(), images])


def enlarged(small: Tensor, images: Tensor) -> Tensor:
    """Small pictures enlarged to the size of others by bicubic, clamped to [-1, 1]."""
    return bicubic(small, (images.shape[2], images.shape[3])).clamp(-1, 1)


def shown_pictures(pictures: Pictures) -> Tensor:
    """Eight pictures for a grid: held-out ones where there are any."""
    return pictures.tensor((pictures.heldout if len(pictures.heldout) else pictures.train)[:8])
