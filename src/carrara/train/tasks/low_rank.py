"""Low-rank fine-tuning (LoRA, Hu et al. 2021): the generator stays as it is, and small updates of its layers learn.

[task]
kind = "low-rank"
model = "sd15"
prompt = "a photo of sks dog"
rank = 8
layers = ["attention"]                # also "convolution", "linear"

The run folder gets lora.safetensors, for `carrara sample sd15 "..." --lora runs/dog/lora.safetensors:0.8`, and where
the model was imported for `pipeline.load_lora_weights("runs/dog", weight_name="lora.safetensors")` in diffusers.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from carrara.data.pictures import Pictures
from carrara.diffusion.generator import DiffusionGenerator
from carrara.errors import RecipeError
from carrara.evaluate.card import card
from carrara.fingerprint import fingerprint
from carrara.nn.low_rank import Layers, LowRank
from carrara.store.atomic import storage_errors, write_file
from carrara.store.diffusers.lora import Update
from carrara.store.diffusers.tensors import Pointwise, Stacked
from carrara.store.lora import Place, place_of, save_lora
from carrara.system import System
from carrara.train.tasks.fine_tuning import FineTuningTask, TunedRecipe

__all__ = ["LowRankRecipe", "LowRankTask"]

FILE = "lora.safetensors"


@dataclass(frozen=True, kw_only=True)
class LowRankRecipe(TunedRecipe):
    """Updates of rank `rank`, times alpha / rank, of the network's `layers`; alpha is the rank by default."""

    rank: int = 8
    alpha: float | None = None
    layers: tuple[Layers, ...] = ("attention",)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rank < 1:
            raise ValueError(f"rank = {self.rank}; give 1 or more")
        if self.alpha is not None and not 0 < self.alpha < float("inf"):
            raise ValueError(f"alpha = {self.alpha}; give a number above 0, or leave it out, which is the rank")

    def create(self, pictures: Pictures, seed: int, device: torch.device) -> LowRankTask:
        system, generator, objective = self.tuned(pictures, device)
        network = generator.denoiser.network
        if device.type == "cpu" and next(network.parameters()).dtype is torch.float16:
            network.float()
        base = fingerprint(network.state_dict())
        place = place_of(system, Path(self.model))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            try:
                updates = LowRank(network, rank=self.rank, alpha=self.alpha, which=self.layers)
            except ValueError as error:
                raise RecipeError(f"task.layers: {error}") from error
        for name in updates.names:
            if not isinstance(place.table.get(f"{name}.weight"), str | Stacked | Pointwise):
                raise RecipeError(
                    f"task.layers: an update of {name} could not be written under the names of this model's files; "
                    'take "attention" alone'
                )
        updates.train()
        return LowRankTask(updates, place, generator, system, self, pictures, objective=objective, base=base)


class LowRankTask(FineTuningTask):
    """Nothing but the updates learns, and nothing else is written."""

    role, phase_name = "lora", "low-rank"

    def __init__(
        self,
        updates: LowRank,
        place: Place,
        generator: DiffusionGenerator,
        system: System,
        recipe: LowRankRecipe,
        pictures: Pictures,
        **more: Any,
    ) -> None:
        self.updates, self.place = updates, place
        super().__init__(generator, recipe, pictures, system.text, system.decoder, trained=updates, **more)

    def save(self, folder: Path) -> None:
        """Writes lora.safetensors and a card."""
        factors = {
            name: Update(part.down.cpu(), part.up.cpu(), part.alpha) for name, part in self.updates.factors.items()
        }
        with storage_errors(f"{folder} cannot be written"):
            folder.mkdir(parents=True, exist_ok=True)
            temporary = folder / f"{FILE}.tmp"
            save_lora(temporary, self.place, factors, base=self.base)
            temporary.replace(folder / FILE)
            write_file(folder / "README.md", card(self._card(folder)).encode())

    def _card(self, folder: Path) -> dict[str, Any]:
        model = Path(self.recipe.model).name
        return {**super()._card(folder), "what": f"Low-rank updates (LoRA) for the generator of {model}."}
