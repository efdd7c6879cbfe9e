"""The weights of a folder in the layout of transformers: safetensors files, read tensor by tensor, never a pickle."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from carrara.errors import StorageError
from carrara.store.atomic import read_json

__all__ = ["Positions", "Source", "WeightFiles", "find_weights"]


class Positions(NamedTuple):
    """A table of positions, without the `first` few, which no token has; plus the type that every token here has."""

    table: str
    first: int = 0
    types: str | None = None


Source = str | tuple[str, ...] | Positions
"""Where a tensor is from: the name of one, of several that are put one below the other, or a sum."""


class WeightFiles(NamedTuple):
    """Which file of a folder holds which tensor."""

    folder: Path
    where: Mapping[str, Path]

    def read(self, source: Source) -> Tensor:
        """A tensor; StorageError where it is not there, or a file is damaged."""
        if isinstance(source, Positions):
            rows = self._one(source.table)[source.first :].float()
            return rows + self._one(source.types)[0].float() if source.types else rows
        return self._one(source) if isinstance(source, str) else torch.cat([self._one(name) for name in source])

    def _one(self, name: str) -> Tensor:
        if name not in self.where:
            raise StorageError(f"{self.folder} has no tensor {name}; its weights are not those of its config.json")
        try:
            with safe_open(self.where[name], framework="pt") as file:
                tensor: Tensor = file.get_tensor(name)
                return tensor
        except (SafetensorError, OSError) as error:
            raise StorageError(f"{self.where[name]} is not a readable safetensors file: {error}") from error


def find_weights(folder: Path) -> WeightFiles:
    """The folder's model.safetensors, its shards, or the one variant of it that there is; StorageError for none."""
    whole, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if not whole.is_file() and index.is_file():
        shards = read_json(index).get("weight_map")
        if not isinstance(shards, dict) or any(Path(str(shard)).name != shard for shard in shards.values()):
            raise StorageError(f"{index} does not say which file holds which tensor")
        return WeightFiles(folder, {name: folder / shard for name, shard in shards.items()})
    found = [whole] if whole.is_file() else sorted(folder.glob("model.*.safetensors"))
    if len(found) != 1:
        pickles = sorted(path.name for path in (*folder.glob("*.bin"), *folder.glob("*.pt")))
        what = "several variants of" if found else "no"
        only = f", only {pickles[0]}, a pickle, which is never read" if pickles and not found else ""
        raise StorageError(
            f"{folder} has {what} model.safetensors{only}; save it with transformers:  model.save_pretrained(FOLDER)"
        )
    try:
        with safe_open(found[0], framework="pt") as file:
            return WeightFiles(folder, dict.fromkeys(file.keys(), found[0]))
    except (SafetensorError, OSError) as error:
        raise StorageError(f"{found[0]} is not a readable safetensors file: {error}") from error
