"""The tensors of a pipeline's text encoders under the names of their files: what reading them undoes."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from torch import Tensor

from carrara.errors import RecipeError, StorageError
from carrara.store.diffusers.foreign import ForeignPart
from carrara.store.diffusers.tensors import Stacked, Table, exported
from carrara.store.transformers.architectures import architecture
from carrara.store.transformers.source import PretrainedSource
from carrara.store.transformers.weights import Positions, Source

__all__ = ["names_of", "text_table", "written_text"]


@dataclass(frozen=True)
class _Listed:
    """Tensors of which names and shapes are known, as they lie in files."""

    title: str
    shapes: Mapping[str, tuple[int, ...]]

    @property
    def names(self) -> Collection[str]:
        return self.shapes.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        return self.shapes[name]

    def read(self, name: str) -> Tensor:
        raise StorageError(f"{self.title}: {name} is known by its name alone")


def _sources(part: ForeignPart, listed: _Listed) -> dict[str, Source]:
    return architecture(part.config, PretrainedSource(path="."), listed).tensors


def names_of(part: ForeignPart, shapes: Mapping[str, tuple[int, ...]]) -> set[str]:
    """The tensors of an encoder's files, of these shapes, that a network here reads."""
    return {name for source in _sources(part, _Listed(part.kind, shapes)).values() for name in _names(source)}


def text_table(part: ForeignPart, names: Collection[str], state: Mapping[str, Tensor]) -> Table:
    """Our tensors of an encoder's network, and where they are among the `names` that its files had.

    Raises RecipeError for a network that is not the one of the part's config.
    """
    projection = tuple(state["projection.weight"].shape) if "projection.weight" in state else ()
    sources = _sources(part, _Listed(part.kind, dict.fromkeys(names, projection)))
    if set(sources) != set(state):
        raise RecipeError(f"the text encoder is not the {part.kind} that was imported; write the one that was")
    return {
        ours: places[0] if len(places) == 1 else Stacked(places, (len(state[ours]) // len(places),) * len(places))
        for ours, places in ((ours, _names(source)) for ours, source in sources.items())
    }


def written_text(part: ForeignPart, names: Collection[str], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A network's state under those of the `names` that its tensors had in the files."""
    return exported(text_table(part, names, state), state)


def _names(source: Source) -> tuple[str, ...]:
    if isinstance(source, Positions):
        if source.first or source.types:
            raise RecipeError("positions that begin behind others, or a sum with a type, cannot be written back")
        return (source.table,)
    return (source,) if isinstance(source, str) else source
