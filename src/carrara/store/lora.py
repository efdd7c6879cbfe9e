"""Low-rank updates as files: whose weights they change, under which names, and a model with them in its weights.

    apply_lora(system, Path("model"), Path("style.safetensors"), strength=0.8)

Of a model that was imported, the names are those of its pipeline: files for diffusers, kohya's programs and PEFT are
read, and what is trained here is written for diffusers. Of a model of our own, they are our own, of a component
"generator".
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from carrara.errors import RecipeError, StorageError
from carrara.fingerprint import fingerprint
from carrara.store.diffusers.export import encoders_of
from carrara.store.diffusers.families import family_of
from carrara.store.diffusers.kept import Kept, read_kept
from carrara.store.diffusers.lora import Lora, Update, merged, parted, read_lora, written
from carrara.store.diffusers.pipeline import network_of
from carrara.store.diffusers.tensors import Table, names
from carrara.store.diffusers.texts import text_table
from carrara.store.safetensors_io import save_plain
from carrara.store.weights import open_tensors
from carrara.system import System

__all__ = ["Place", "apply_lora", "place_of", "save_lora"]

OWN = "generator"
_TEXT = "text_model."
_BASE = "carrara.generator"  # metadata: the fingerprint of the generator that an update was trained for


@dataclass(frozen=True)
class Place:
    """A network whose weights are updated: the component's name in its files, and the names of its tensors there."""

    component: str
    network: nn.Module
    table: Table

    @property
    def modules(self) -> set[str]:
        """The layers that have a weight, by their names in files."""
        every = (name for place in self.table.values() for name in names(place))
        return {name.removesuffix(".weight") for name in every if name.endswith(".weight")}


def place_of(system: System, folder: Path) -> Place:
    """The generator's network. `folder` is that of the model, which may have been imported."""
    return _generator(system, read_kept(folder))


def _generator(system: System, kept: Kept | None) -> Place:
    generator: Any = system.generator
    network = getattr(getattr(generator, "denoiser", None), "network", None)
    if network is None:
        raise RecipeError("low-rank updates are for diffusion models, and this generator is none")
    if kept is None:
        return Place(OWN, network, {name: name for name in network.state_dict()})
    component = family_of(kept.pipeline).network
    return Place(component, network, network_of(kept.pipeline.part(component))[1])


def _places(system: System, kept: Kept | None) -> dict[str, Place]:
    """Every network that an update may be for: the generator's, and those of the text encoders of a pipeline."""
    places = [_generator(system, kept)]
    if kept is not None:
        components = sorted(name for name in kept.tensors if name.startswith("text_encoder"))
        for component, encoder in zip(components, encoders_of(system.text), strict=True):
            network: Any = encoder.network
            table = text_table(kept.pipeline.part(component), kept.tensors[component], network.state_dict())
            places.append(Place(component, network, table))
    return {place.component: place for place in places}


def apply_lora(system: System, folder: Path, file: Path, *, strength: float = 1.0) -> dict[str, Any]:
    """Puts the updates of a file into the weights of a system that was loaded from `folder`; what should be said of it.

    Raises StorageError for a file that is damaged or that is for another model, with the names that do not fit.
    """
    kept = read_kept(folder)
    places = _places(system, kept)
    source = open_tensors(file)
    metadata: Mapping[str, str] = getattr(source, "metadata", {})
    base = metadata.get(_BASE)
    other = base is not None and base != fingerprint(_generator(system, kept).network.state_dict())
    modules = {name: place.modules for name, place in places.items()}
    found = read_lora(source, modules, metadata=metadata, aliases=_aliases(modules))
    for component, updates in found.updates.items():
        place = places[component]
        state = place.network.state_dict()
        changed = merged(place.table, state, updates, strength)
        place.network.load_state_dict({**state, **changed}, assign=True)
    for place in places.values():
        place.network.requires_grad_(False)
    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    said: dict[str, Any] = {"file": file.name, "strength": strength, "sha256": digest}
    if other:
        said["warning"] = f"{file.name} was trained for a generator with other weights (fingerprint {base})"
    return said


def _aliases(modules: Mapping[str, set[str]]) -> dict[str, dict[str, str]]:
    """The names of a text encoder's layers with and without the prefix that some versions write."""
    return {
        component: {
            name.removeprefix(_TEXT) if name.startswith(_TEXT) else f"{_TEXT}{name}": name
            for name in modules[component]
        }
        for component in modules
        if component.startswith("text_encoder")
    }


def save_lora(path: Path, place: Place, updates: Mapping[str, Update], *, base: str) -> None:
    """Writes updates of our layers, by their names here, as a file that diffusers reads for an imported model.

    base: the fingerprint of the network that they were trained for. Raises StorageError when the disk refuses.
    """
    tensors, metadata = written(Lora({place.component: parted(place.table, updates)}))
    if not tensors:
        raise StorageError(f"{path}: there are no updates to write")
    save_plain(path, {name: x.contiguous() for name, x in tensors.items()}, {**metadata, _BASE: base})
