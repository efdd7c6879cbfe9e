"""The VAE's task: the ELBO of encoded pictures, under encoded prompts; a collapsed posterior is measured and said."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from carrara.data.pictures import Pictures
from carrara.decoder import Decoder
from carrara.errors import RecipeError
from carrara.rng import Rng
from carrara.text import TextEncoder
from carrara.train.task import Loss
from carrara.train.tasks.generator import GeneratorRecipe, GeneratorTask, condition_widths
from carrara.train.tasks.part import Table, built
from carrara.types import Batch
from carrara.vae import DiscretisedLogistic, Likelihood, Normal, VaeGenerator, VaeObjective, VaeSettings, collapse

__all__ = ["VaeRecipe", "VaeTask"]

_ACTIVE = 0.01  # mean square of a unit's posterior mean, in variances of its prior (Burda et al. 2016)
_BITS = "bits_of_level_"


@dataclass(frozen=True, kw_only=True)
class VaeRecipe(GeneratorRecipe):
    """A VAE generator. A network without `attention` is told the text's vector alone, one with it also the tokens."""

    network: Table = field(default_factory=lambda: {"kind": "ladder"})
    likelihood: Likelihood | None = None  # None: of pixels a discretised logistic, of latents a normal one
    objective: VaeObjective = field(default_factory=VaeObjective)
    settings: VaeSettings = field(default_factory=VaeSettings)  # how it is sampled unless told otherwise

    def create_with(
        self, text: TextEncoder, decoder: Decoder, pictures: Pictures, seed: int, device: torch.device
    ) -> VaeTask:
        channels, height, width = decoder.space.shape
        derived: dict[str, Any] = {
            "in_channels": channels,
            "out_channels": 2 * channels,
            "size": height if height == width else [height, width],
            **self._told(condition_widths(text)),
        }
        network = built("vae_network", self.network, "task.network", seed, **derived)
        try:
            likelihood = _fitting(self.likelihood, decoder)
            generator = VaeGenerator(network, likelihood, decoder.space, reads=text.space, settings=self.settings)
        except ValueError as error:
            raise RecipeError(f"task.likelihood: {error}") from error
        return VaeTask(generator.to(device), self, pictures, text, decoder)

    def _told(self, widths: Mapping[str, int]) -> dict[str, int]:
        if self.network.get("attention"):
            return dict(widths)
        if widths and "vector" not in widths:
            raise RecipeError(
                "task.network.attention: this text encoder makes tokens and no vector, and only attention reads "
                "tokens; name resolutions that have it, such as attention = [1]"
            )
        return {name: width for name, width in widths.items() if name != "context"}


def _fitting(likelihood: Likelihood | None, decoder: Decoder) -> Likelihood:
    """The likelihood that was asked for, or the usual one; ValueError for other grey levels than the decoder's."""
    levels = 2**decoder.depth
    if likelihood is None:
        return DiscretisedLogistic(levels) if decoder.space.kind == "pixels" else Normal()
    if likelihood.grey_levels not in (None, levels) and decoder.space.kind == "pixels":
        raise ValueError(f"levels = {likelihood.grey_levels}, and pictures of {decoder.depth} bits have {levels}")
    return likelihood


class VaeTask(GeneratorTask):
    """The recipe's objective, in bits a dimension (of latents those of a density, which may be negative)."""

    phase_name = "elbo"

    def __init__(
        self, module: VaeGenerator, recipe: VaeRecipe, pictures: Pictures, text: TextEncoder, decoder: Decoder
    ) -> None:
        self.generator, self.recipe = module, recipe
        super().__init__(module, recipe, pictures, text, decoder)
        self.networks = (module.network,)

    def loss(self, batch: Batch, rng: Rng) -> Loss:
        return Loss(*self.recipe.objective(self.generator, self.z(batch), self.taught(batch, rng), rng))

    def validate(self, batch: Batch, rng: Rng) -> dict[str, float]:
        """The held-out ELBO and its parts in bits a dimension, each level's bits a picture, the share of active units.

        A unit of z is active where, over the pictures, its posterior mean moves from its prior's by a tenth of the
        prior's standard deviation (root mean square).
        """
        draw = self.generator.posterior(self.z(batch), self.told(batch), rng.fork("validate"))
        dimensions = math.prod(self.generator.space.shape) * math.log(2)
        figures = {
            "loss": (draw.reconstruction + draw.kl.sum(1)).mean().item() / dimensions,
            "reconstruction": draw.reconstruction.mean().item() / dimensions,
            "kl": draw.kl.sum(1).mean().item() / dimensions,
        }
        moved = torch.cat([mean.float().square().mean(0).flatten() for mean in draw.means])
        figures["active_units"] = (moved > _ACTIVE).float().mean().item()
        bits = (draw.kl.mean(0) / math.log(2)).tolist()
        return figures | {f"{_BITS}{level}": value for level, value in enumerate(bits, 1)}

    def warnings(self, figures: Mapping[str, float]) -> tuple[str, ...]:
        """Whether the posterior has collapsed, in some of the levels or in all."""
        said = collapse([value for name, value in figures.items() if name.startswith(_BITS)])
        return (said,) if said else ()
