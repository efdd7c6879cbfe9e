"""Class names in place of a text encoder."""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from carrara.config import Configured
from carrara.fingerprint import fingerprint
from carrara.types import Condition, Rounds, Space

__all__ = ["Labels"]


class Labels(Configured, nn.Module):
    """Class names as one-hot vectors (B, K + 1); the last place is the null class, which the empty prompt names.

    It has no weights: the generator's own projection of the vector is the embedding.
    """

    _here: Tensor

    def __init__(self, names: tuple[str, ...]) -> None:
        super().__init__()
        if not names or len(set(names)) < len(names):
            raise ValueError(f"{len(names)} class names with {len(set(names))} different ones; expected distinct names")
        self.names = names
        self.register_buffer("_here", torch.empty(0), persistent=False)  # knows the device

    @property
    def space(self) -> Space:
        return Space("text", (len(self.names) + 1,), len(self.names), fingerprint({}, json.dumps(self.names).encode()))

    def start(self, prompts: Sequence[str]) -> Rounds:
        """The Condition of the labels; ValueError with the nearest name for an unknown one."""
        places = {name: place for place, name in enumerate(self.names)} | {"": len(self.names)}
        for prompt in prompts:
            if prompt not in places:
                near = difflib.get_close_matches(prompt, self.names, n=3)
                hint = f"did you mean {' or '.join(near)}?" if near else f"the classes are {', '.join(self.names[:20])}"
                raise ValueError(f'"{prompt}" is no class of this model; {hint}')
        index = torch.tensor([places[prompt] for prompt in prompts], device=self._here.device)
        yield from ()
        return Condition(vector=F.one_hot(index, len(self.names) + 1).float())
