"""A pipeline of diffusers as data: what its files say, with nothing built of it yet.

The same is read from a folder (folder.py) and from a single file (single.py), and written by `write_pipeline`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from carrara.errors import StorageError
from carrara.store.diffusers.tensors import TensorSource

__all__ = ["ForeignPart", "ForeignPipeline", "Renamed", "Tensors"]


@dataclass(frozen=True)
class ForeignPart:
    """One component: the class that its pipeline names, its configuration, its weights and its other files.

    `config` is of config.json, scheduler_config.json, tokenizer_config.json or preprocessor_config.json; what stands in
    it is data, and whoever builds of it refuses what he does not know. `files` are the others by name, such as a
    vocabulary. `variant` is that of the weights' file.
    """

    library: str
    kind: str
    config: Mapping[str, Any]
    tensors: TensorSource | None = None
    files: Mapping[str, Path | bytes] = field(default_factory=dict)
    variant: str | None = None


@dataclass(frozen=True)
class ForeignPipeline:
    """A pipeline: its class, its components by name, and what else model_index.json says.

    `absent` are components that it names and does not have. `unread` are the files of the folder, or the tensors of the
    file, that belong to nothing which is understood. `notes` are sentences of what was decided where the file does not.
    """

    title: str
    kind: str
    parts: Mapping[str, ForeignPart]
    absent: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    unread: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def part(self, name: str) -> ForeignPart:
        """A component; StorageError where there is none."""
        if name not in self.parts:
            raise StorageError(f"{self.title} has no {name}; it has {', '.join(sorted(self.parts)) or 'nothing'}")
        return self.parts[name]


@dataclass(frozen=True)
class Tensors:
    """Tensors in memory as a source."""

    title: str
    tensors: Mapping[str, Tensor]

    @property
    def names(self) -> Collection[str]:
        """Of all tensors."""
        return self.tensors.keys()

    def read(self, name: str) -> Tensor:
        """One tensor; StorageError where there is none."""
        if name not in self.tensors:
            raise StorageError(f"{self.title} has no tensor {name}")
        return self.tensors[name]


@dataclass(frozen=True)
class Renamed:
    """The tensors of another source under the names that `rename` gives them."""

    source: TensorSource
    rename: Callable[[str], str]

    @cached_property
    def _there(self) -> Mapping[str, str]:
        there = {self.rename(name): name for name in self.source.names}
        if len(there) != len(self.source.names):
            raise StorageError(f"{self.title} has a tensor under its former and its present name")
        return there

    @property
    def title(self) -> str:
        """The source's."""
        return self.source.title

    @property
    def names(self) -> Collection[str]:
        """Of all tensors."""
        return self._there.keys()

    def read(self, name: str) -> Tensor:
        """One tensor; StorageError where there is none."""
        if name not in self._there:
            raise StorageError(f"{self.title} has no tensor {name}")
        return self.source.read(self._there[name])
