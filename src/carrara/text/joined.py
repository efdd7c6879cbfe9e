"""Several text encoders as one, for the networks that were trained with more than one.

    SDXL    tokens = ((0, 1),)       both CLIPs side by side          vector = (1,)
    SD3     tokens = ((0, 1), (2,))  the same, then T5 behind them    vector = (0, 1)
    FLUX    tokens = ((1,),)         T5                               vector = (0,)

Encoders of one group stand side by side along the width, groups one behind the other along the length, each padded with
zeros to the width of the widest. Vectors stand side by side.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from carrara.config import Configured, Role
from carrara.fingerprint import fingerprint
from carrara.text.base import Cut, Reading
from carrara.types import Condition, Rounds, Space

__all__ = ["Joined"]

_AS_SAVED = Reading()


class Joined(Configured, nn.Module):
    """Text encoders that all read the same prompt; `tokens` and `vector` say by number which give what.

    Raises ValueError for a number that is no part's, for a part that gives no vector where it should, for parts of one
    group that differ in length, and for a layout without tokens.
    """

    def __init__(
        self,
        parts: tuple[Annotated[nn.Module, Role("text")], ...],
        tokens: tuple[tuple[int, ...], ...],
        vector: tuple[int, ...] = (),
    ) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.tokens, self.vector = tokens, vector
        named = {part for group in (*tokens, vector) for part in group}
        if not tokens or not all(tokens) or named != set(range(len(parts))):
            raise ValueError(
                f"tokens = {tokens} and vector = {vector} for {len(parts)} encoders; each has a number from 0, all are "
                "to be used, and there is at least one group, none of them empty"
            )
        shapes = self._shapes
        for group in tokens:
            if len(lengths := {shapes[part][0] for part in group}) > 1:
                raise ValueError(f"encoders {group}, side by side, read {sorted(lengths)} tokens; give them one length")
        if lacking := [part for part in vector if len(shapes[part]) < 3]:
            raise ValueError(f"encoder {lacking[0]} gives no vector; make it with one, or leave it out of `vector`")

    @property
    def _shapes(self) -> list[tuple[int, ...]]:
        """Length, width and, for those that have a vector, its width, of each part."""
        return [part.space.shape for part in self._encoders]

    @property
    def _encoders(self) -> list[Any]:
        return list(self.parts)

    @property
    def space(self) -> Space:
        shapes, spaces = self._shapes, [part.space for part in self._encoders]
        length = sum(shapes[group[0]][0] for group in self.tokens)
        vector = [sum(shapes[part][2] for part in self.vector)] if self.vector else []
        how = json.dumps([*(space.fingerprint or space.shape for space in spaces), self.tokens, self.vector])
        vocabulary = next((space.vocabulary for space in spaces if space.vocabulary), None)
        return Space("text", (length, self._width, *vector), vocabulary, fingerprint({}, how.encode()))

    @property
    def _width(self) -> int:
        return max(sum(self._shapes[part][1] for part in group) for group in self.tokens)

    @property
    def skips(self) -> int:
        """The most layers that a `Reading` may skip: of the parts that can, which all skip as many."""
        return min((part.skips for part in self._encoders if getattr(part, "skips", 0)), default=0)

    @property
    def skipped(self) -> int:
        """How many layers the tokens never go through, of the first part that can skip any."""
        return next((part.skipped for part in self._encoders if getattr(part, "skips", 0)), 0)

    def cuts(self, prompts: Sequence[str]) -> list[Cut]:
        """The prompts of which no part that gives tokens reads the end, with what is lost to all of them."""
        used = {part for group in self.tokens for part in group}
        readers = [part for number, part in enumerate(self._encoders) if number in used and hasattr(part, "cuts")]
        each = [{cut.row: cut for cut in part.cuts(prompts)} for part in readers]
        rows = sorted(set.intersection(*map(set, each))) if each else []
        return [min((cuts[row] for cuts in each), key=lambda cut: len(cut.lost)) for row in rows]

    def start(self, prompts: Sequence[str], reading: Reading = _AS_SAVED) -> Rounds:
        """The Condition of the prompts, one part after another."""
        if reading.skip > self.skips:
            raise ValueError(f"skip = {reading.skip}, and of these text encoders {self.skips} layers can be skipped")
        found: list[Condition] = []
        for part in self._encoders:
            own = part.start(prompts, reading) if getattr(part, "skips", 0) else part.start(prompts)
            found.append((yield from own))
        groups = [self._beside([found[part] for part in group]) for group in self.tokens]
        tokens = torch.cat([tokens for tokens, _ in groups], 1)
        mask = None
        if any(mask is not None for _, mask in groups):
            mask = torch.cat([_all(tokens) if mask is None else mask for tokens, mask in groups], 1)
        vectors = [found[part].vector for part in self.vector]
        vector = torch.cat([one for one in vectors if one is not None], 1) if vectors else None
        return Condition(tokens=tokens, mask=mask, vector=vector)

    def _beside(self, group: Sequence[Condition]) -> tuple[Tensor, Tensor | None]:
        """The tokens of a group at the full width, and a mask, true where any of them counts; None where all do."""
        parts = [(one.tokens, one.mask) for one in group if one.tokens is not None]
        longest = max(tokens.shape[1] for tokens, _ in parts)
        wide = torch.cat([F.pad(tokens, (0, 0, 0, longest - tokens.shape[1])) for tokens, _ in parts], 2)
        wide = F.pad(wide, (0, self._width - wide.shape[2]))
        if all(mask is None and tokens.shape[1] == longest for tokens, mask in parts):
            return wide, None
        masks = [_all(tokens) if mask is None else mask for tokens, mask in parts]
        return wide, torch.stack([F.pad(mask, (0, longest - mask.shape[1])) for mask in masks]).any(0)


def _all(tokens: Tensor) -> Tensor:
    return torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
