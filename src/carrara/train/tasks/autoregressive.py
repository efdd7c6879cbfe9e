"""The autoregressive generator's task: the next token of an encoded picture, under its encoded prompt."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from carrara.autoregressive import AutoregressiveGenerator, AutoregressiveSettings
from carrara.data.augment import Augment
from carrara.data.pictures import Pictures
from carrara.decoder import Decoder
from carrara.rng import Rng
from carrara.text import TextEncoder, Unconditional
from carrara.train.task import Loss
from carrara.train.tasks.generator import GeneratorRecipe, GeneratorTask, condition_widths
from carrara.train.tasks.part import Table, built
from carrara.types import Batch, Condition

__all__ = ["AutoregressiveRecipe", "AutoregressiveTask"]


@dataclass(frozen=True, kw_only=True)
class AutoregressiveRecipe(GeneratorRecipe):
    """An autoregressive generator; `decoder` is the folder of one that makes tokens."""

    makes: ClassVar[tuple[str, ...]] = ("tokens",)

    network: Table = field(default_factory=lambda: {"kind": "causal"})
    augment: Augment = field(default_factory=Augment)  # of the pictures, before they become the tokens to be learnt
    settings: AutoregressiveSettings = field(default_factory=AutoregressiveSettings)  # how it is sampled unless told

    def create_with(
        self, text: TextEncoder, decoder: Decoder, pictures: Pictures, seed: int, device: torch.device
    ) -> AutoregressiveTask:
        space = decoder.space
        network = built(
            "token_network",
            self.network,
            "task.network",
            seed,
            vocabulary=space.vocabulary,
            size=list(space.shape),
            **condition_widths(text),
        )
        generator = AutoregressiveGenerator(network, space, reads=text.space, settings=self.settings)
        return AutoregressiveTask(generator.to(device), self, pictures, text, decoder)


class AutoregressiveTask(GeneratorTask):
    """Cross-entropy of each token given those before it, mean over a picture's tokens, in nats."""

    phase_name = "tokens"

    def __init__(
        self,
        module: AutoregressiveGenerator,
        recipe: AutoregressiveRecipe,
        pictures: Pictures,
        text: TextEncoder,
        decoder: Decoder,
    ) -> None:
        self.generator, self.augment = module, recipe.augment
        super().__init__(module, recipe, pictures, text, decoder)
        self.networks = (module.network,)

    def loss(self, batch: Batch, rng: Rng) -> Loss:
        return Loss(self._cross_entropy(self._moved(batch, rng), self.taught(batch, rng)))

    def _moved(self, batch: Batch, rng: Rng) -> Tensor:
        """The rows' tokens; where the recipe moves pictures, those of moved ones, encoded anew."""
        if self.augment == Augment():
            return self.z(batch)
        return self._encode(self.augment(batch.images, rng.fork("augment")))

    def _cross_entropy(self, z: Tensor, condition: Condition) -> Tensor:
        return -self.generator.log_prob(z, condition) / z[0].numel()

    def validate(self, batch: Batch, rng: Rng) -> dict[str, float]:
        """Held-out cross-entropy in nats and in bits a token, and in bits what the caption saves of them."""
        z = self.z(batch)
        told = self._cross_entropy(z, self.told(batch)).mean().item()
        figures = {"loss": told, "bits_per_token": told / math.log(2)}
        if not isinstance(self.text, Unconditional):
            untold = self._cross_entropy(z, self.null.rows([0] * len(batch))).mean().item()
            figures["bits_saved_by_text"] = (untold - told) / math.log(2)
        return figures

    def derived(self, figures: Mapping[str, float]) -> dict[str, float]:
        """The perplexity that the mean cross-entropy over all held-out rows comes to."""
        return {"perplexity": math.exp(figures["loss"])}
