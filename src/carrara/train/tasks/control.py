"""The control's task: a copy of a frozen generator's encoder learns to make it obey a picture (Zhang et al. 2023)."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from carrara.conditions import Control, controlled
from carrara.data.pictures import Pictures
from carrara.diffusion.draw import LogitNormal
from carrara.diffusion.generator import DiffusionGenerator
from carrara.diffusion.loss import DenoisingLoss, Objective
from carrara.errors import CarraraError, RecipeError
from carrara.fingerprint import fingerprint
from carrara.nn.control import control_of
from carrara.store import load
from carrara.system import System
from carrara.train.tasks.diffusion import DiffusionTask, check_levels
from carrara.train.tasks.generator import TaughtRecipe, check_pictures
from carrara.train.tasks.inputs import create_inputs
from carrara.train.tasks.part import PartTask, Table

__all__ = ["ControlRecipe", "ControlTask"]


@dataclass(frozen=True, kw_only=True)
class ControlRecipe(TaughtRecipe):
    """A control of a frozen generator, by the one input that `inputs` names.

    `model` is a whole model folder, with the generator and the parts that it was trained with. `objective` had best be
    the one that the generator was trained with; `hidden` is the width of the network that looks at the picture.
    """

    model: str
    inputs: dict[str, Table]
    hidden: int = 32
    objective: Objective = field(default_factory=lambda: DenoisingLoss(LogitNormal()))

    @property
    def parts(self) -> str:
        return f"those of {self.model}"

    def create(self, pictures: Pictures, seed: int, device: torch.device) -> ControlTask:
        try:
            system = load(self.model)
        except CarraraError as error:
            raise type(error)(f"task.model: {error}") from error
        generator, decoder = system.generator, system.decoder
        if not isinstance(generator, DiffusionGenerator):
            raise RecipeError(
                f"task.model: the generator of {self.model} is no diffusion model, and cannot be controlled"
            )
        check_pictures(decoder, pictures, f"task.model: {self.model}")
        if len(self.inputs) != 1:
            raise RecipeError(f"task.inputs: {len(self.inputs)} tables; a control has one, so train one for each")
        (condition,) = create_inputs(self.inputs, pictures, decoder, seed, device, drop=0.0)
        try:
            self.objective.check(generator.denoiser)
            check_levels(self.objective, decoder)
        except ValueError as error:
            raise RecipeError(f"task.objective: {error}") from error
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            try:
                network = control_of(generator.denoiser.network, channels=condition.channels, hidden=self.hidden)
                mine = fingerprint(generator.state_dict())
                control = Control(network, condition, generator.space, generator=mine)
                whole = controlled(generator, [control])
            except ValueError as error:
                raise RecipeError(f"task: {error}") from error
        for part in (whole, system.text, decoder):
            part.to(device)  # type: ignore[union-attr]
        control.train()
        return ControlTask(control, whole, System(system.text, whole, decoder), self, pictures)


class ControlTask(DiffusionTask):
    """The generator's objective under captions and the control's picture; nothing but the control learns."""

    role, phase_name = "control", "control"

    def __init__(
        self, control: Control, generator: DiffusionGenerator, system: System, recipe: ControlRecipe, pictures: Pictures
    ) -> None:
        self.control = control
        super().__init__(
            generator, recipe, pictures, system.text, system.decoder, objective=recipe.objective, trained=control
        )
        self._spaces = torch.cat([self._spaces, torch.tensor(list(control.generator.encode()), dtype=torch.uint8)])

    @property
    def system(self) -> System:
        return System(self.text, self.generator, self.decoder)

    def sample(self, rng_seed: int) -> Tensor | None:
        """Eight pictures, each beside the one that controls it."""
        return self._sample_with_inputs(rng_seed, 8)

    def save(self, folder: Path) -> None:
        """Writes the control alone."""
        PartTask.save(self, folder)
