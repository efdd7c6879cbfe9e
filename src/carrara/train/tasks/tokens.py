"""The token decoder's task: a quantising autoencoder, whose decoding half decodes a generator's tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from carrara.data.augment import Augment
from carrara.data.pictures import Pictures
from carrara.decoder import PictureLoss, Tokens
from carrara.errors import RecipeError
from carrara.nn.quantize import Quantizer, Seen
from carrara.rng import Rng, permutation
from carrara.train.parallel import World
from carrara.train.task import Loss
from carrara.train.tasks.part import Table, TaskRecipe, built, depth
from carrara.train.tasks.pictures import Adversarial, Judges, Perceptual, PictureTask, likeness
from carrara.types import Batch

__all__ = ["TokensRecipe", "TokensTask"]


@dataclass(frozen=True, kw_only=True)
class TokensRecipe(TaskRecipe):
    """A quantising autoencoder (VQ-VAE, FSQ), whose decoding half decodes a generator's tokens."""

    autoencoder: Table = field(default_factory=lambda: {"kind": "kl"})
    quantizer: Table = field(default_factory=lambda: {"kind": "vq"})
    loss: PictureLoss = field(default_factory=lambda: PictureLoss(l1=1.0, l2=1.0, edges=1.0))
    perceptual: Perceptual | None = None  # a distance as a trained network sees it
    adversarial: Adversarial | None = None  # a discriminator, from a step on
    augment: Augment = field(default_factory=Augment)

    def create(self, pictures: Pictures, seed: int, device: torch.device) -> TokensTask:
        quantizer = built("quantizer", self.quantizer, "task.quantizer", seed)
        derived = {"channels": pictures.channels, "latent": quantizer.channels}
        network = built("autoencoder", self.autoencoder, "task.autoencoder", seed, **derived)
        try:
            tokens = Tokens(network, quantizer, size=pictures.size, depth=depth(pictures))  # type: ignore[arg-type]
        except ValueError as error:
            raise RecipeError(f"task.autoencoder: {error}") from error
        judges = Judges(self.perceptual, self.adversarial, channels=pictures.channels, seed=seed, device=device)
        return TokensTask(tokens.to(device), self, pictures, judges)


class TokensTask(PictureTask):
    """Reconstruction and the encoder's commitment; the quantizer learns from what a whole step saw, in all processes.

    The codes are buffers, not weights: they are running means already, and are judged and kept as they are beside the
    averaged weights.
    """

    phase_name = "tokens"

    def __init__(self, module: Tokens, recipe: TokensRecipe, pictures: Pictures, judges: Judges) -> None:
        self.tokens, self.recipe, self.pictures = module, recipe, pictures
        super().__init__(module, judges)
        self.networks = (module.autoencoder.encoder, module.autoencoder.decoder)
        self._seen: list[Seen] = []

    @property
    def quantizer(self) -> Quantizer:
        """Of the module that is trained."""
        return self.tokens.quantizer

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """What a step that was broken off has seen is forgotten."""
        super().load_state(state)
        self._seen.clear()

    def pairs(self, batch: Batch, rng: Rng) -> tuple[Tensor, Tensor]:
        images = self.recipe.augment(batch.images, rng.fork("augment"))
        return images, self.tokens.reconstruct(images)[0]

    def loss(self, batch: Batch, rng: Rng) -> Loss:
        images = self.recipe.augment(batch.images, rng.fork("augment"))
        decoded, z, codes = self.tokens.reconstruct(images)
        self._seen.append(self.quantizer.observe(z, codes.indices, rng.fork("codes")))
        rows, parts = self.recipe.loss(images, decoded)
        figures = {"commitment": codes.loss.detach().mean(), "perplexity": self.quantizer.perplexity}
        return self.judges.added(
            Loss(rows + codes.loss, {**parts, **figures}), images, decoded, self.tokens.autoencoder
        )

    def after_step(self, world: World) -> None:
        """The quantizer takes in what this step's rows have shown, in all processes alike."""
        super().after_step(world)
        seen = Seen.all(self._seen)
        self._seen.clear()
        sums = torch.cat((seen.counts[:, None], seen.sums), 1)
        whole = world.gather(sums.flatten()[None]).sum(0).view(sums.shape)
        self.quantizer.learn(Seen(whole[:, 0], whole[:, 1:], world.gather(seen.offers)))

    def validate(self, batch: Batch, rng: Rng) -> dict[str, float]:
        """Held-out loss, PSNR in dB and SSIM, and the perplexity of the codes' use of late."""
        decoded, _, codes = self.tokens.reconstruct(batch.images)
        rows, _ = self.recipe.loss(batch.images, decoded)
        figures = {"loss": (rows + codes.loss).mean().item(), **likeness(batch.images, decoded)}
        return figures | {"perplexity": self.quantizer.perplexity.item()}

    def sample(self, rng_seed: int) -> Tensor | None:
        """Eight pictures above their reconstructions: held-out ones where there are any."""
        chosen = (self.pictures.heldout if len(self.pictures.heldout) else self.pictures.train)[:8]
        images = self.pictures.tensor(chosen).to(self.quantizer.usage.device)
        decoded, _, _ = self.tokens.reconstruct(images)
        return torch.cat([images, decoded.float().clamp(-1, 1)])

    def save(self, folder: Path) -> None:
        """Measures how the training pictures use the vocabulary, then writes the component."""
        rows = self.pictures.train
        if len(rows) > 4096:
            rows = rows[permutation(len(rows), 0, "measure")[:4096]]
        use = self.tokens.measure(self.pictures.tensor(rows[i : i + 64]) for i in range(0, len(rows), 64))
        self.facts["vocabulary"] = {"size": self.quantizer.vocabulary, **use._asdict()}
        super().save(folder)
