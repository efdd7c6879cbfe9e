"""The GAN's task: generator and discriminator in turns, each with an optimiser of its own, and an eye on collapse.

Held-out figures, under the averaged weights; distances are in the decoder's space, root mean square a dimension:

    loss        the generator's
    margin      D(real) - D(made), in the mean; far above the training's own it says that D knows its pictures by heart
    matched     share of real pictures whose own caption scores above another picture's
    diversity   distance between pictures made of one prompt, in shares of the data's
    spread      distance between pictures made of two prompts, in shares of the data's

The data's distance for `spread` is that between any two pictures. For `diversity` it is that between two pictures of
one caption, where there are at least 16 such pairs; without captions, and where each has one picture, it is that of
`spread`. In the last case the data does not say how diverse a prompt's pictures should be, and only `spread` is warned
of.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from carrara.data.augment import Augment
from carrara.data.pictures import Pictures
from carrara.decoder import Decoder
from carrara.gan import GanGenerator, GanSettings, RelativisticLoss, distances, relativistic
from carrara.rng import Rng, permutation
from carrara.text import Labels, TextEncoder, Unconditional
from carrara.train.task import Loss, Phase
from carrara.train.tasks.generator import GeneratorRecipe, GeneratorTask, condition_widths
from carrara.train.tasks.part import Table, built
from carrara.types import Batch, Condition

__all__ = ["GanRecipe", "GanTask"]

_SAMPLES = 4  # pictures of a prompt that are compared
_COMPARED = 256  # pictures of the data that are
_ALIKE = 16  # pairs of pictures of one caption that are enough to say how diverse they are; at most of each caption


@dataclass(frozen=True, kw_only=True)
class GanRecipe(GeneratorRecipe):
    """A generator that makes z in one pass, trained against a discriminator.

    Give its `[train]` no momentum: betas = [0.0, 0.99].
    """

    network: Table = field(default_factory=lambda: {"kind": "convolutional"})
    discriminator: Table = field(default_factory=lambda: {"kind": "convolutional"})
    loss: RelativisticLoss = field(default_factory=RelativisticLoss)
    augment: Augment = field(default_factory=Augment)  # of what the discriminator sees, real and made alike
    settings: GanSettings = field(default_factory=GanSettings)  # how it is sampled unless told otherwise
    least_diversity: float = 0.2  # share of the data's, below which `diversity` and `spread` are warned of

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.least_diversity <= 1:
            raise ValueError(f"least_diversity = {self.least_diversity}; expected a share in [0, 1]")

    def create_with(
        self, text: TextEncoder, decoder: Decoder, pictures: Pictures, seed: int, device: torch.device
    ) -> GanTask:
        channels, height, width = decoder.space.shape
        shared: dict[str, Any] = {"size": height if height == width else [height, width], **condition_widths(text)}
        network = built("gan_network", self.network, "task.network", seed, out_channels=channels, **shared)
        discriminator = built(
            "discriminator", self.discriminator, "task.discriminator", seed, in_channels=channels, **shared
        )
        generator = GanGenerator(network, decoder.space, reads=text.space, settings=self.settings)
        return GanTask(generator.to(device), discriminator.to(device), self, pictures, text, decoder)


class GanTask(GeneratorTask):
    """A phase for the generator, then one for the discriminator; only the generator is kept as a component."""

    phase_name = "generator"

    def __init__(
        self,
        module: GanGenerator,
        discriminator: nn.Module,
        recipe: GanRecipe,
        pictures: Pictures,
        text: TextEncoder,
        decoder: Decoder,
    ) -> None:
        self.generator, self.recipe = module, recipe
        self.judge: Any = discriminator
        super().__init__(module, recipe, pictures, text, decoder)
        self.modules["discriminator"] = discriminator
        self.phases = (
            Phase(self.phase_name, tuple(module.parameters()), self.loss),
            Phase("discriminator", tuple(discriminator.parameters()), self.judging),
        )
        self.networks = (module.network,)  # torch does not compile what is differentiated twice
        self._apart = self._mean_distance(self._any_pairs())
        alike = self._alike_pairs()
        told = not isinstance(self.text, Unconditional)
        self._apart_told = self._mean_distance(alike) if told and len(alike) >= _ALIKE else self._apart
        self._watched = ("diversity", "spread") if not told or len(alike) >= _ALIKE else ("spread",)

    # The two losses

    def make(self, condition: Condition, rng: Rng) -> Tensor:
        """A z for each row of the condition."""
        z: Tensor = self.generator.network(self.generator.noise(rng.fork("noise")), condition)
        return z

    def loss(self, batch: Batch, rng: Rng) -> Loss:
        """The generator's loss."""
        condition = self.taught(batch, rng)
        real = self.recipe.augment(self.z(batch), rng.fork("augment"))
        fake = self.recipe.augment(self.make(condition, rng), rng.fork("augment-made"))
        return Loss(self.recipe.loss.generator(self.judge, real, fake, condition))

    def judging(self, batch: Batch, rng: Rng) -> Loss:
        """The discriminator's loss."""
        condition = self.taught(batch, rng)
        with torch.no_grad():
            fake = self.recipe.augment(self.make(condition, rng), rng.fork("augment-made"))
        real = self.recipe.augment(self.z(batch), rng.fork("augment"))
        captions = self._captions(batch, rng) if self.recipe.loss.mismatch else None
        return Loss(*self.recipe.loss.discriminator(self.judge, real, fake, condition, batch.sample, captions))

    def _captions(self, batch: Batch, rng: Rng) -> tuple[Condition, Condition, Tensor] | None:
        """The rows' own condition, that of another training picture, and where their words differ."""
        if isinstance(self.text, Unconditional):
            return None
        said, other = self._said(batch), self._others(rng)
        differ = torch.tensor([a != b for a, b in zip(said, other, strict=True)], device=self.device)
        return self.told(batch), self._condition(other), differ

    def _others(self, rng: Rng) -> list[str]:
        """What is said of a training picture for each row, drawn anew."""
        train = self.pictures.train
        return [self._called(int(train[i])) for i in rng.fork("other").integers(len(train)).tolist()]

    # Looking for collapse

    def validate(self, batch: Batch, rng: Rng) -> dict[str, float]:
        """Held-out figures; see the module."""
        told, real = self.told(batch), self.z(batch)
        rows = torch.arange(len(batch)).repeat_interleave(_SAMPLES).tolist()
        noise = self.generator.noise(rng.fork("noise"), _SAMPLES)
        made = self.generator.network(noise, told.rows(rows)).unflatten(0, (len(batch), _SAMPLES))
        features = self.judge.features(real)
        right, wrong = self.judge.judge(features, told), self.judge(made[:, 0], told)
        another = self.make(self._condition(self._others(rng)), rng.fork("another"))
        figures = {
            "loss": relativistic(wrong, right).mean(),
            "margin": (right - wrong).mean(),
            "diversity": distances(made).mean() / self._apart_told,
            "spread": distances(torch.stack((made[:, 0], another), 1)).mean() / self._apart,
        }
        if (captions := self._captions(batch, rng)) is not None:
            figures["matched"] = (right > self.judge.judge(features, captions[1])).float().mean()
        return {name: figure.item() for name, figure in figures.items()}

    def warnings(self, figures: Mapping[str, float]) -> Sequence[str]:
        """What the figures say of a collapse."""
        least = self.recipe.least_diversity
        said = {
            "diversity": "pictures of one prompt are nearly the same",
            "spread": "pictures of different prompts are nearly the same",
        }
        advice = "raise task.loss.gamma, lower train.learning_rate, or see whether the discriminator's margin runs away"
        return [
            f"the generator is collapsing: {what}, {figures[name]:.1%} as far apart as the data's "
            f"(warned of below {least:.0%}); {advice}"
            for name, what in said.items()
            if name in self._watched and figures.get(name, 1.0) < least
        ]

    def _drawn(self) -> list[int]:
        """The training pictures in an order that means nothing."""
        train = self.pictures.train
        return [int(train[i]) for i in permutation(len(train), 0, "apart")]

    def _any_pairs(self) -> list[tuple[int, int]]:
        """Pairs of training pictures, no picture twice."""
        drawn = self._drawn()[: 2 * _COMPARED]
        return list(zip(drawn[::2], drawn[1::2], strict=False))

    def _alike_pairs(self) -> list[tuple[int, int]]:
        """Pairs of training pictures that one thing is said of."""
        called: dict[str, list[int]] = defaultdict(list)
        for number in self._drawn():
            called[self._called(number)].append(number)
        alike = [pair for numbers in called.values() for pair in list(itertools.pairwise(numbers))[:_ALIKE]]
        return [alike[i] for i in permutation(len(alike), 0, "alike")[:_COMPARED]]

    @torch.no_grad()
    def _mean_distance(self, pairs: Sequence[tuple[int, int]]) -> float:
        """The mean distance of pairs of pictures; of no pair, or of equal ones, a small number above 0."""
        found = [
            distances(self._pictures([i for pair in pairs[start : start + 32] for i in pair]))
            for start in range(0, len(pairs), 32)
        ]
        return max(1e-6, torch.cat(found).mean().item()) if found else 1e-6

    def _pictures(self, numbers: Sequence[int]) -> Tensor:
        """z of pictures in pairs, (N / 2, 2, ...)."""
        z = self._encode(self.pictures.tensor(numbers)) if self._encodings is None else self._encodings[list(numbers)]
        return z.unflatten(0, (-1, 2))

    def _called(self, number: int) -> str:
        """What is said of a picture."""
        if isinstance(self.text, Unconditional):
            return ""
        if isinstance(self.text, Labels):
            return self.pictures.labels[number]
        return next(iter(self.pictures.captions[number]), "")
