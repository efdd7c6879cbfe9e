"""The decoder's task: an autoencoder, whose decoding half decodes a generator's latents."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from carrara.data.augment import Augment
from carrara.data.pictures import Pictures
from carrara.decoder import AutoencoderLoss, Latents
from carrara.errors import RecipeError
from carrara.rng import Rng, permutation
from carrara.train.task import Loss
from carrara.train.tasks.part import Table, TaskRecipe, built, depth
from carrara.train.tasks.pictures import Adversarial, Judges, Perceptual, PictureTask, likeness
from carrara.types import Batch

__all__ = ["AutoencoderRecipe", "AutoencoderTask", "measure_latents"]

_MEASURED = 4096  # pictures


@dataclass(frozen=True, kw_only=True)
class AutoencoderRecipe(TaskRecipe):
    """A KL autoencoder, whose decoding half decodes a generator's latents."""

    autoencoder: Table = field(default_factory=lambda: {"kind": "kl"})
    loss: AutoencoderLoss = field(default_factory=AutoencoderLoss)
    perceptual: Perceptual | None = None  # a distance as a trained network sees it
    adversarial: Adversarial | None = None  # a discriminator, from a step on
    augment: Augment = field(default_factory=Augment)

    def create(self, pictures: Pictures, seed: int, device: torch.device) -> AutoencoderTask:
        network = built("autoencoder", self.autoencoder, "task.autoencoder", seed, channels=pictures.channels)
        try:
            latents = Latents(network, size=pictures.size, depth=depth(pictures))
        except ValueError as error:
            raise RecipeError(f"task.autoencoder: {error}") from error
        judges = Judges(self.perceptual, self.adversarial, channels=pictures.channels, seed=seed, device=device)
        return AutoencoderTask(latents.to(device), self, pictures, judges)


class AutoencoderTask(PictureTask):
    """Reconstruction and a little KL; the latents' scale is measured when the component is saved."""

    phase_name = "autoencoder"

    def __init__(self, module: Latents, recipe: AutoencoderRecipe, pictures: Pictures, judges: Judges) -> None:
        self.latents, self.recipe, self.pictures = module, recipe, pictures
        super().__init__(module, judges)
        encoder, decoder = module.autoencoder.encoder, module.autoencoder.decoder
        # torch does not compile what is differentiated twice, as the decoder is for an adaptive weight
        self.networks = (encoder, decoder) if judges.adversarial is None else (encoder,)

    def _through(self, batch: Batch, rng: Rng) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The pictures, what a draw of their latents decodes to, and the latents' mean and log-variance."""
        images = self.recipe.augment(batch.images, rng.fork("augment"))
        mean, logvar = self.latents.autoencoder.encode(images)  # type: ignore[operator]
        z = mean + (logvar.float() / 2).exp() * rng.fork("latent").normal_like(mean)
        return images, self.latents.autoencoder.decode(z), mean, logvar  # type: ignore[operator]

    def pairs(self, batch: Batch, rng: Rng) -> tuple[Tensor, Tensor]:
        images, decoded, _, _ = self._through(batch, rng)
        return images, decoded

    def loss(self, batch: Batch, rng: Rng) -> Loss:
        images, decoded, mean, logvar = self._through(batch, rng)
        loss = Loss(*self.recipe.loss(images, decoded, mean, logvar))
        return self.judges.added(loss, images, decoded, self.latents.autoencoder)

    def validate(self, batch: Batch, rng: Rng) -> dict[str, float]:
        """Held-out loss, and PSNR in dB and SSIM of the picture decoded from its mean latent."""
        mean, logvar = self.latents.autoencoder.encode(batch.images)  # type: ignore[operator]
        decoded = self.latents.autoencoder.decode(mean)  # type: ignore[operator]
        rows, _ = self.recipe.loss(batch.images, decoded, mean, logvar)
        return {"loss": rows.mean().item(), **likeness(batch.images, decoded)}

    def sample(self, rng_seed: int) -> Tensor | None:
        """Eight pictures above their reconstructions: held-out ones where there are any."""
        chosen = (self.pictures.heldout if len(self.pictures.heldout) else self.pictures.train)[:8]
        images = self.pictures.tensor(chosen).to(self.latents.mean.device)
        decoded = self.latents.autoencoder(images)
        return torch.cat([images, decoded.float().clamp(-1, 1)])

    def save(self, folder: Path) -> None:
        """Measures the latents' mean and scale over the training pictures, then writes the component."""
        measure_latents(self.latents, self.pictures)
        super().save(folder)


def measure_latents(latents: Latents, pictures: Pictures) -> None:
    """Measures the latents' mean and scale over the training pictures, 4096 of very many."""
    rows = pictures.train
    if len(rows) > _MEASURED:
        rows = rows[permutation(len(rows), 0, "measure")[:_MEASURED]]
    latents.measure(pictures.tensor(rows[i : i + 64]) for i in range(0, len(rows), 64))
