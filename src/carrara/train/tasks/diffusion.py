"""The diffusion generator's task: an objective on encoded pictures, under encoded prompts."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from carrara.conditions import Input
from carrara.data.pictures import Pictures
from carrara.decoder import Decoder
from carrara.diffusion.denoiser import Denoiser
from carrara.diffusion.draw import LogitNormal, TimeDistribution
from carrara.diffusion.generator import DiffusionGenerator, SamplingSettings
from carrara.diffusion.loss import DenoisingLoss, Objective, parts
from carrara.diffusion.parameterization import Flow, Level, Parameterization, ScaledTime
from carrara.diffusion.process import Process
from carrara.diffusion.schedule import Linear, Schedule
from carrara.errors import RecipeError
from carrara.rng import Rng
from carrara.text import TextEncoder
from carrara.train.parallel import World
from carrara.train.task import Loss, Phase
from carrara.train.tasks.generator import GeneratorRecipe, GeneratorTask, TaughtRecipe, condition_widths
from carrara.train.tasks.inputs import create_inputs, network_widths
from carrara.train.tasks.part import Table, built
from carrara.types import Batch

__all__ = ["Denoising", "DiffusionRecipe", "DiffusionTask", "check_levels"]


@dataclass(frozen=True, kw_only=True)
class Denoising:
    """What every training of a denoiser says: the network, the noise, what is minimised, and how it is sampled."""

    network: Table = field(default_factory=lambda: {"kind": "unet"})
    schedule: Schedule = field(default_factory=Linear)
    parameterization: Parameterization = field(default_factory=Flow)
    level: Level = field(default_factory=ScaledTime)
    objective: Objective = field(default_factory=lambda: DenoisingLoss(LogitNormal()))
    learned_variance: bool = False  # taught by "hybrid", or "bound" with variance "learned"
    settings: SamplingSettings = field(default_factory=SamplingSettings)  # how it is sampled unless told otherwise

    def denoiser(self, decoder: Decoder, seed: int, widths: Mapping[str, Any]) -> Denoiser:
        """The denoiser of a decoder's z, whose network has these further settings. RecipeError for what cannot be."""
        channels, height, width = decoder.space.shape
        derived: dict[str, Any] = {"in_channels": channels, "out_channels": channels * (1 + self.learned_variance)}
        if self.network.get("kind") == "mmdit" and "context" not in widths:
            raise RecipeError(
                'task.network: an mmdit reads words beside patches, and this text encoder has none; give kind = "dit", '
                "or a text encoder with tokens"
            )
        if self.network.get("kind") in ("dit", "mmdit"):
            derived["size"] = height if height == width else [height, width]
        network = built("network", self.network, "task.network", seed, **derived, **widths)
        process = Process(copy.deepcopy(self.schedule))  # a learned one is this task's own
        try:
            denoiser = Denoiser(
                network, process, self.parameterization, self.level, learned_variance=self.learned_variance
            )
        except ValueError as error:
            raise RecipeError(f"task.parameterization: {error}") from error
        try:
            self.objective.check(denoiser)
            check_levels(self.objective, decoder)
        except ValueError as error:
            raise RecipeError(f"task.objective: {error}") from error
        return denoiser


@dataclass(frozen=True, kw_only=True)
class DiffusionRecipe(Denoising, GeneratorRecipe):
    """A diffusion or flow generator; `inputs` are what it is told beside text, a table with a `kind` for each name."""

    inputs: dict[str, Table] = field(default_factory=dict)

    def create_with(
        self, text: TextEncoder, decoder: Decoder, pictures: Pictures, seed: int, device: torch.device
    ) -> DiffusionTask:
        inputs = create_inputs(self.inputs, pictures, decoder, seed, device)
        denoiser = self.denoiser(decoder, seed, condition_widths(text) | network_widths(inputs))
        generator = DiffusionGenerator(
            denoiser, decoder.space, reads=text.space, settings=self.settings, conditions=inputs
        )
        return DiffusionTask(generator.to(device), self, pictures, text, decoder, objective=self.objective)


def check_levels(objective: Objective, decoder: Decoder) -> None:
    """Raises ValueError for a bound of data on other grey levels than the decoder's pictures have."""
    levels = objective.grey_levels
    if levels is None:
        return
    if decoder.space.kind != "pixels":
        raise ValueError(
            f"the bound is of data on {levels} grey levels, and the decoder's {decoder.space.kind} have none; "
            'use "denoising", or "hybrid" with levels = 0'
        )
    if levels != 2**decoder.depth:
        raise ValueError(f"levels = {levels}, and pictures of {decoder.depth} bits have {2**decoder.depth}")


class DiffusionTask(GeneratorTask):
    """The recipe's objective on encoded pictures, under encoded prompts of which a share is dropped.

    What an objective learns (a weight's uncertainty) is in `modules` beside the generator, what it remembers (losses,
    for importance sampling) in `state`; a learned schedule is the generator's own. `trained` is what learns, where that
    is not the generator but a part of its network (a control).
    """

    phase_name = "denoising"

    def __init__(
        self,
        generator: DiffusionGenerator,
        recipe: TaughtRecipe,
        pictures: Pictures,
        text: TextEncoder,
        decoder: Decoder,
        *,
        objective: Objective,
        trained: nn.Module | None = None,
    ) -> None:
        self.generator = generator
        self.objective = copy.deepcopy(objective)
        self._draws = dict(parts(self.objective, TimeDistribution))  # type: ignore[type-abstract]
        conditions = cast(Iterable[Input], generator.conditions)
        super().__init__(trained or generator, recipe, pictures, text, decoder, tuple(conditions))
        for name, part in parts(self.objective, nn.Module):
            self.modules[name] = part.to(self.device)
        learning = tuple(p for p in self.modules.parameters() if p.requires_grad)
        self.phases = (Phase(self.phase_name, learning, self.loss, self.separable),)
        self.networks = (generator.denoiser.network,)

    def state(self) -> dict[str, Tensor]:
        """Beside the parts' fingerprints, what draws remember."""
        return super().state() | {
            f"{name}/{key}": value for name, draw in self._draws.items() for key, value in draw.state().items()
        }

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Takes over what draws remembered."""
        super().load_state(state)
        for name, draw in self._draws.items():
            mine = {key: state[f"{name}/{key}"] for key in draw.state() if f"{name}/{key}" in state}
            if mine:
                draw.load_state(mine)

    def after_step(self, world: World) -> None:
        """Draws that remember take in what this step's rows have lost, in all processes alike."""
        for draw in self._draws.values():
            draw.commit(world.gather)

    def loss(self, batch: Batch, rng: Rng) -> Loss:
        return Loss(self.objective(self.generator.denoiser, self.z(batch), self.taught(batch, rng), rng))

    def validate(self, batch: Batch, rng: Rng) -> dict[str, float]:
        """Held-out loss at four times and noises a row, the same whenever it is measured."""
        condition, z = self.told(batch), self.z(batch)
        draws = [self.objective(self.generator.denoiser, z, condition, rng.fork("validate", i)) for i in range(4)]
        return {"loss": torch.stack(draws).mean().item()}
