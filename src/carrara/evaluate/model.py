"""A model folder as it is measured: its system, and what was noted of it when it was trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from carrara.conditions import missing
from carrara.config import build
from carrara.data import DataSettings, Pictures
from carrara.errors import RecipeError
from carrara.fingerprint import fingerprint
from carrara.store import ROLES, kinds, load, read_component
from carrara.store.atomic import read_json
from carrara.system import System
from carrara.text import Labels, TextEncoder, Unconditional

__all__ = ["Model", "open_model", "prepared", "said"]

_PLAIN = ("model", "system")  # names that say nothing


@dataclass(frozen=True, eq=False)
class Model:
    """A loaded model folder. `facts` are the generator's; `seconds` those of the trainings that are known, by part."""

    name: str
    path: Path
    system: System
    facts: Mapping[str, Any]
    seconds: Mapping[str, float]

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of its pictures."""
        _, height, width = self.system.decoder.pictures.shape
        return height, width

    @cached_property
    def parameters(self) -> dict[str, int]:
        """How many each part has."""
        parts: dict[str, Any] = {role: getattr(self.system, role) for role in ROLES}
        return {role: sum(p.numel() for p in part.parameters()) for role, part in parts.items()}

    @property
    def training_seconds(self) -> float | None:
        """Of all parts that have parameters; None where one is not known."""
        needed = [role for role, count in self.parameters.items() if count]
        return sum(self.seconds[role] for role in needed) if set(needed) <= set(self.seconds) else None

    @cached_property
    def key(self) -> str:
        """A hash of all its weights."""
        parts: dict[str, Any] = {role: getattr(self.system, role) for role in ROLES}
        return fingerprint({f"{role}.{n}": t for role, part in parts.items() for n, t in part.state_dict().items()})

    def to(self, device: torch.device) -> None:
        """Moves all parts."""
        for role in ROLES:
            getattr(self.system, role).to(device)

    def data(self, folder: Path, size: tuple[int, int] | None = None) -> DataSettings:
        """How a folder is prepared: as in training, as far as that is noted; channels and depth are the model's."""
        return prepared(self.facts, self.system.decoder, folder, size or self.size)

    def trained_on(self, pictures: Pictures) -> bool:
        """Whether these are the pictures that it was trained on, prepared alike."""
        noted = self.facts.get("data")
        return isinstance(noted, Mapping) and noted.get("fingerprint") == pictures.fingerprint


def prepared(facts: Mapping[str, Any], decoder: Any, folder: Path, size: tuple[int, int]) -> DataSettings:
    """How a folder is prepared for a decoder's channels and depth: else as a component's facts say of its training."""
    noted = facts.get("data", {})
    known = dict(noted.get("settings") or {}) if isinstance(noted, Mapping) else {}
    known |= {"folder": str(folder), "size": list(size), "channels": decoder.pictures.shape[0]}
    known |= {"depth": decoder.depth, "allow_uncaptioned": True, "flip": False}
    settings: DataSettings = build(DataSettings, known, kinds())
    return settings


def open_model(path: Path, name: str | None = None) -> Model:
    """The model of a folder; unless a name is given, it has the folder's, or for a plain one that of the folder above.

    Raises StorageError or RecipeError as `carrara.load`, and RecipeError for a model that needs more than a prompt.
    """
    system = load(path)
    if lacking := missing(system.conditions, ()):
        raise RecipeError(
            f"{path} was never without {lacking[0].name}, and is measured under prompts alone; measure a model that "
            "was trained with a drop above 0"
        )
    body = read_json(path / "model.json")
    noted = body.get("training_seconds")
    seconds = {
        role: float(value)
        for role, value in (noted.items() if isinstance(noted, dict) else ())
        if role in ROLES and isinstance(value, int | float)
    }
    here = path.resolve()
    usual = here.parent.name if here.name in _PLAIN and here.parent.name else here.name
    return Model(name or usual, path, system, read_component(path / str(body["generator"])).facts, seconds)


def said(text: TextEncoder, pictures: Pictures, rows: Sequence[int]) -> list[str]:
    """What a text encoder is told of each of these pictures: its first caption, its class, or nothing."""
    if isinstance(text, Unconditional):
        return [""] * len(rows)
    if isinstance(text, Labels):
        known = set(text.names)
        return [label if (label := pictures.labels[i]) in known else "" for i in rows]
    return [pictures.captions[i][0] if pictures.captions[i] else "" for i in rows]
