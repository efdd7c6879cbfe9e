"""What the tasks of all parts share: one phase, a component that is saved with its card, networks built from tables."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn

from carrara.config import Role, build
from carrara.data.pictures import Pictures
from carrara.errors import RecipeError
from carrara.evaluate.card import card
from carrara.rng import Rng
from carrara.store import kinds, save_component
from carrara.train.task import Loss, Phase
from carrara.types import Batch

__all__ = ["PartTask", "Table", "TaskRecipe", "built", "depth"]

Table = dict[str, Any]


class PartTask:
    """What the tasks share: one phase, no further state, and a component that is saved with its card."""

    role: str
    phase_name: str
    separable = True

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.modules = nn.ModuleDict({self.role: module})
        parameters = tuple(p for p in module.parameters() if p.requires_grad)
        self.phases: tuple[Phase, ...] = (Phase(self.phase_name, parameters, self.loss, self.separable),)
        self.facts: dict[str, Any] = {}

    def loss(self, batch: Batch, rng: Rng) -> Loss:
        raise NotImplementedError  # each task has its own

    def validate(self, batch: Batch, rng: Rng) -> dict[str, float]:
        """Held-out figures; each task has its own."""
        raise NotImplementedError

    def state(self) -> dict[str, Tensor]:
        """Nothing but the modules changes."""
        return {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Nothing to take over."""

    def sample(self, rng_seed: int) -> Tensor | None:
        """No pictures."""
        return None

    def save(self, folder: Path) -> None:
        """Writes the component from the weights as they are."""
        save_component(folder, self.role, self.module, facts=self.facts, card=card(self._card(folder)))

    def _card(self, folder: Path) -> dict[str, Any]:
        shown = {
            key: value
            for key, value in self.facts.items()
            if key in ("trained_on", "training", "figures", "license", "attribution")
        }
        return {"name": folder.resolve().name, "what": f"A {self.role} of a Carrara system.", **shown}


class TaskRecipe:
    """The base of what `[task]` can be."""

    def create(self, pictures: Pictures, seed: int, device: torch.device) -> PartTask:
        """The task for a data set, with weights initialised from the seed."""
        raise NotImplementedError


def depth(pictures: Pictures) -> Literal[8, 16]:
    """Bits a channel of a decoder for these pictures."""
    return 16 if pictures.depth == 16 else 8


def built(role: str, table: Mapping[str, Any], where: str, seed: int, **derived: Any) -> nn.Module:
    """A network from its table, with what follows from the data filled in; the same weights for the same seed."""
    if clash := sorted(name for name in derived if name in table and table[name] != derived[name]):
        raise RecipeError(
            f"{where}.{clash[0]}: given {table[clash[0]]!r}, but data and parts make it {derived[clash[0]]!r}; "
            "leave it out"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            module: nn.Module = build(Annotated[nn.Module, Role(role)], {**table, **derived}, kinds())
        except RecipeError as error:
            said = (f"{where}.{line}" for line in str(error).splitlines())
            raise RecipeError("\n".join(said).replace(f"{where}.recipe:", f"{where}:")) from error
    return module
