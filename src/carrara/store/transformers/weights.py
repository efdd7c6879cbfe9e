"""What a tensor of ours is made of in the layout of transformers."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from carrara.store.weights import WeightFiles

__all__ = ["Positions", "Source", "gathered"]


class Positions(NamedTuple):
    """A table of positions, without the `first` few, which no token has; plus the type that every token here has."""

    table: str
    first: int = 0
    types: str | None = None


Source = str | tuple[str, ...] | Positions
"""Where a tensor is from: the name of one, of several that are put one below the other, or a sum."""


def gathered(files: WeightFiles, source: Source) -> Tensor:
    """A tensor; StorageError where it is not there, or a file is damaged."""
    if isinstance(source, Positions):
        rows = files.read(source.table)[source.first :].float()
        return rows + files.read(source.types)[0].float() if source.types else rows
    return files.read(source) if isinstance(source, str) else torch.cat([files.read(name) for name in source])
