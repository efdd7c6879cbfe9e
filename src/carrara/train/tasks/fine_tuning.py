"""Fine-tuning: the generator of a whole model learns further from a folder of pictures.

[task]
kind = "fine-tuning"
model = "sd15"                        # a model folder: imported, or assembled here
prompt = "a photo of sks dog"         # of pictures without a caption

[task.prior]                          # DreamBooth (Ruiz et al. 2022): what the model knows of the class is kept
prompts = ["a photo of a dog"]        # in turn
pictures = 100                        # made by the model itself before it learns anything
weight = 1.0                          # loss = own + weight * prior
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from carrara.data.pictures import Pictures
from carrara.decoder import Decoder
from carrara.diffusion.draw import LogitNormal, Steps, TimeDistribution, Uniform
from carrara.diffusion.generator import DiffusionGenerator
from carrara.diffusion.loss import DenoisingLoss, Objective
from carrara.diffusion.number import numbered
from carrara.diffusion.parameterization import Flow
from carrara.diffusion.schedule import Tabulated
from carrara.errors import CarraraError, RecipeError
from carrara.fingerprint import fingerprint
from carrara.rng import Rng
from carrara.store import load
from carrara.system import System
from carrara.text import TextEncoder
from carrara.train.task import Loss
from carrara.train.tasks.diffusion import DiffusionTask, check_levels
from carrara.train.tasks.generator import TaughtRecipe, check_pictures
from carrara.types import Batch, Condition

__all__ = ["FineTuningRecipe", "FineTuningTask", "Prior", "TunedRecipe"]

_AT_ONCE = 4  # pictures of the prior


@dataclass(frozen=True, kw_only=True)
class Prior:
    """What the model shall go on making: pictures of its own, of prompts in turn, taught beside the new ones."""

    prompts: tuple[str, ...]
    pictures: int = 100
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not self.prompts:
            raise ValueError("prompts is empty; give one at least, such as the class, or leave the prior out")
        if self.pictures < 1:
            raise ValueError(f"pictures = {self.pictures}; give 1 or more, or leave the prior out")
        if not 0 < self.weight < float("inf"):
            raise ValueError(f"weight = {self.weight}; give a number above 0, or leave the prior out")


@dataclass(frozen=True, kw_only=True)
class TunedRecipe(TaughtRecipe):
    """What all fine-tuning says: the model, the prompt of pictures without a caption, and what is kept.

    `model` is a whole model folder. `objective` is by default DDPM's, at times as the model's family draws them: the
    steps of a table, the logit-normal of flows, otherwise uniform.
    """

    model: str
    prompt: str = ""
    prior: Prior | None = None
    objective: Objective | None = None

    @property
    def parts(self) -> str:
        return f"those of {self.model}"

    def tuned(self, pictures: Pictures, device: torch.device) -> tuple[System, DiffusionGenerator, Objective]:
        """The model, its generator, and what that is taught by."""
        try:
            system = load(self.model)
        except CarraraError as error:
            raise type(error)(f"task.model: {error}") from error
        generator: Any = system.generator
        if not isinstance(generator, DiffusionGenerator):
            raise RecipeError(
                f"task.model: the generator of {self.model} is no diffusion model; fine-tuning is of those"
            )
        check_pictures(system.decoder, pictures, f"task.model: {self.model}")
        objective = self.objective or DenoisingLoss(_draw(generator))
        try:
            objective.check(generator.denoiser)
            check_levels(objective, system.decoder)
        except ValueError as error:
            raise RecipeError(f"task.objective: {error}") from error
        for part in (system.text, generator, system.decoder):
            part.to(device)  # type: ignore[union-attr]
        return system, generator, objective


def _draw(generator: DiffusionGenerator) -> TimeDistribution:
    denoiser = generator.denoiser
    if isinstance(schedule := denoiser.process.schedule, Tabulated):
        return Steps(schedule.steps)
    return LogitNormal() if isinstance(denoiser.parameterization, Flow) else Uniform()


@dataclass(frozen=True, kw_only=True)
class FineTuningRecipe(TunedRecipe):
    """Every weight of the generator's network learns; the result is a generator for the model's other parts."""

    def create(self, pictures: Pictures, seed: int, device: torch.device) -> FineTuningTask:
        system, generator, objective = self.tuned(pictures, device)
        base = fingerprint(generator.state_dict())
        generator.denoiser.network.float().requires_grad_(True).train()
        return FineTuningTask(generator, self, pictures, system.text, system.decoder, objective=objective, base=base)


class FineTuningTask(DiffusionTask):
    """The objective on the folder's pictures, and with a prior on as many of the model's own.

    `base` is the fingerprint of the generator as it came: another one is another run.
    """

    phase_name = "fine-tuning"

    def __init__(
        self,
        generator: DiffusionGenerator,
        recipe: TunedRecipe,
        pictures: Pictures,
        text: TextEncoder,
        decoder: Decoder,
        *,
        objective: Objective,
        base: str,
        trained: nn.Module | None = None,
    ) -> None:
        self.recipe, self.base = recipe, base
        self._before: Tensor | None = None
        super().__init__(generator, recipe, pictures, text, decoder, objective=objective, trained=trained)
        self._spaces = torch.cat([self._spaces, torch.tensor(list(base.encode()), dtype=torch.uint8)])

    @property
    def system(self) -> System:
        return System(self.text, self.generator, self.decoder)

    def _said(self, batch: Batch) -> Sequence[str]:
        return [said or self.recipe.prompt for said in super()._said(batch)]

    def _further_prompts(self) -> list[str]:
        return [self.recipe.prompt, *(self.recipe.prior.prompts if self.recipe.prior else ())]

    def prompts(self, count: int) -> list[str]:
        """What the grid shows: the recipe's prompts, that of the pictures, that of the prior, then captions."""
        every = [*self.shared.prompts, *self._further_prompts(), *super().prompts(count)]
        different = [prompt for prompt in dict.fromkeys(every) if prompt] or [""]
        return [different[i % len(different)] for i in range(count)]

    def taught(self, batch: Batch, rng: Rng) -> Condition:
        return self._numbered(super().taught(batch, rng), len(batch))

    def told(self, batch: Batch) -> Condition:
        return self._numbered(super().told(batch), len(batch))

    def _numbered(self, condition: Condition, rows: int) -> Condition:
        """The condition with the numbers that the generator is told beside text."""
        return numbered(condition, self.generator.numbers, self.decoder.space.shape, rows)

    def loss(self, batch: Batch, rng: Rng) -> Loss:
        own = super().loss(batch, rng).rows
        if (prior := self.recipe.prior) is None:
            return Loss(own)
        streams = rng.fork("prior")
        every = self._prior()
        chosen = (streams.uniform() * len(every)).long()
        z, said = every[chosen], [prior.prompts[int(i) % len(prior.prompts)] for i in chosen]
        condition = self._numbered(self._condition(said), len(z))
        kept = self.objective(self.generator.denoiser, z, condition, streams.fork("objective"))
        return Loss(own + prior.weight * kept, {"own": own.detach().mean(), "prior": kept.detach().mean()})

    def _prior(self) -> Tensor:
        """z of the model's own pictures, made when they are first asked for: before it has learnt anything."""
        if self._before is None:
            prior = self.recipe.prior
            assert prior is not None
            modes = {module: module.training for module in self.modules.modules()}
            self.modules.eval()
            made = []
            with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
                for first in range(0, prior.pictures, _AT_ONCE):
                    seeds = range(first, min(first + _AT_ONCE, prior.pictures))
                    said = [prior.prompts[seed % len(prior.prompts)] for seed in seeds]
                    *_, last = self.system.generate(said, seeds=list(seeds))
                    made.append(self._encode(last.images))
            for module, mode in modes.items():
                module.training = mode
            self._before = torch.cat(made)
        return self._before

    def state(self) -> dict[str, Tensor]:
        """Beside the rest the prior's pictures, which cannot be made again by a model that has learnt."""
        return super().state() | ({} if self._before is None else {"prior": self._before})

    def load_state(self, state: Any) -> None:
        super().load_state(state)
        if "prior" in state:
            self._before = state["prior"].to(self.device)

    def _card(self, folder: Path) -> dict[str, Any]:
        return {**super()._card(folder), "what": f"A {self.role}, fine-tuned from {Path(self.recipe.model).name}."}

    def save(self, folder: Path) -> None:
        """Writes the generator; the model's other parts are its own."""
        self.facts |= {"tuned_from": {"model": Path(self.recipe.model).name, "generator": self.base}}
        super().save(folder)
