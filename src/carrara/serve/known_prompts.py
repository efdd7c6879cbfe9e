"""A text encoder that remembers the prompts it has read: what is asked again costs nothing."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from carrara.text import TextEncoder
from carrara.types import Condition, Rounds, Space

__all__ = ["KnownPrompts"]


class KnownPrompts:
    """The encoder with the conditions of its last prompts, up to so many bytes; all else is the encoder's own."""

    def __init__(self, text: TextEncoder, capacity: int = 256 * 2**20) -> None:
        self.text, self.capacity = text, capacity
        self._known: OrderedDict[str, tuple[Condition, int]] = OrderedDict()
        self._bytes = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.text, name)

    @property
    def space(self) -> Space:
        """The encoder's."""
        return self.text.space

    def start(self, prompts: Sequence[str]) -> Rounds:
        """The Condition of the prompts: a request for those that are not known."""
        unknown = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._known]
        found = {prompt: self._known[prompt][0] for prompt in prompts if prompt in self._known}
        if unknown:
            condition = yield from self.text.start(unknown)
            for row, prompt in enumerate(unknown):
                found[prompt] = condition.rows(slice(row, row + 1)).map(Tensor.clone)
                self._remember(prompt, found[prompt])
        for prompt in found:
            if prompt in self._known:
                self._known.move_to_end(prompt)
        return Condition.stack([found[prompt] for prompt in prompts])

    def _remember(self, prompt: str, condition: Condition) -> None:
        size = sum(tensor.nbytes for tensor in _tensors(condition))
        self._bytes += size - self._known.pop(prompt, (condition, 0))[1]
        self._known[prompt] = condition, size
        while self._bytes > self.capacity:
            self._bytes -= self._known.popitem(last=False)[1][1]


def _tensors(condition: Condition) -> list[Tensor]:
    found: list[Tensor] = []

    def seen(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    condition.map(seen)
    return found
