"""The plain values that every floor speaks in: conditions, spaces, questions and answers.

Nothing here computes. Images are float tensors in [-1, 1], NCHW, wherever a type says `images`;
`t` is time, with t = 0 the data and t = 1 the noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = [
    "Ask",
    "Asset",
    "Batch",
    "Condition",
    "Estimate",
    "Gaussian",
    "Query",
    "Request",
    "Round",
    "Rounds",
    "Sampling",
    "Space",
    "Step",
]


class Gaussian(NamedTuple):
    """A diagonal normal distribution; `var` is a number or a tensor that broadcasts against `mean`."""

    mean: Tensor
    var: Tensor | float

    @property
    def std(self) -> Tensor | float:
        """The standard deviation, shaped as `var`."""
        return self.var.sqrt() if isinstance(self.var, Tensor) else math.sqrt(self.var)


class Asset(NamedTuple):
    """A file that belongs to a component, such as a tokenizer: a plain file name and its bytes."""

    name: str
    data: bytes


class Space(NamedTuple):
    """What a component makes or reads, so that parts which do not fit are refused.

    `kind` is "pixels", "latent", "tokens" or "text"; `shape` leaves the batch out; `fingerprint` is a hash of
    the encoding half's weights, so that two latents of one shape from two trainings are told apart.
    """

    kind: str
    shape: tuple[int, ...]
    vocabulary: int | None = None
    fingerprint: str | None = None


@dataclass(frozen=True)
class Condition:
    """What a network is told besides x_t and t; every part is optional, the first axis is always the batch."""

    tokens: Tensor | None = None  # (B, L, D) sequence for cross-attention
    mask: Tensor | None = None  # (B, L) bool, True where a token counts
    vector: Tensor | None = None  # (B, D) pooled text or label
    numbers: Mapping[str, Tensor] = field(default_factory=dict)  # (B,) each: augmentation level, sizes, guidance
    image: Tensor | None = None  # (B, C, H, W) to be concatenated: low resolution
    controls: Mapping[str, Tensor] = field(default_factory=dict)  # (B, C, H, W) each: edges, masks, ...; zero is none
    adapters: Mapping[str, Tensor] = field(default_factory=dict)  # (B, L, D) each: picture tokens; zero is none

    def map(self, function: Callable[[Tensor], Tensor]) -> Condition:
        """The condition with `function` applied to every tensor in it."""
        changed: dict[str, Any] = {}
        for part in fields(self):
            value = getattr(self, part.name)
            if isinstance(value, Tensor):
                changed[part.name] = function(value)
            elif value is not None:
                changed[part.name] = {name: function(tensor) for name, tensor in value.items()}
        return replace(self, **changed)

    def rows(self, index: slice | Tensor | Sequence[int]) -> Condition:
        """The chosen rows of every part."""
        chosen = index if isinstance(index, slice | Tensor) else torch.as_tensor(index)
        return self.map(lambda tensor: tensor[chosen])

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Condition:
        """The condition on `device`; floating-point parts in `dtype` when one is given."""
        return self.map(lambda tensor: tensor.to(device, dtype if tensor.is_floating_point() else None))

    def drop(self, names: Sequence[str]) -> Condition:
        """The condition without the named parts; `tokens` takes its `mask` along."""
        known = {part.name for part in fields(self)}
        if unknown := sorted(set(names) - known):
            raise ValueError(f"a condition has no part {unknown}; its parts are {sorted(known)}")
        gone = set(names) | ({"mask"} if "tokens" in names else set())
        empty: dict[str, Any] = {"numbers": {}, "controls": {}, "adapters": {}}
        changed: dict[str, Any] = {name: empty.get(name) for name in gone}
        return replace(self, **changed)

    def without(self, names: Sequence[str]) -> Condition:
        """The condition with the `controls` and `adapters` of these names at zero, which says that none was given."""
        if unknown := sorted(set(names) - {*self.controls, *self.adapters}):
            known = sorted({*self.controls, *self.adapters})
            raise ValueError(f"the condition has no input {unknown}; its inputs are {known}")

        def zeroed(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {name: torch.zeros_like(x) if name in names else x for name, x in inputs.items()}

        return replace(self, controls=zeroed(self.controls), adapters=zeroed(self.adapters))

    def where(self, keep: Tensor, other: Condition) -> Condition:
        """Row by row this condition where `keep` (B,) is true, else `other` (one row, or B rows)."""
        rows = len(keep)
        mine, theirs = _pad((self, other))
        chosen: dict[str, Any] = {}
        for part in fields(self):
            a, b = getattr(mine, part.name), getattr(theirs, part.name)
            if isinstance(a, Mapping):
                _same_names(part.name, a, b)
                chosen[part.name] = {name: _where(keep, a[name], b[name], rows) for name in a}
            elif (a is None) != (b is None):
                raise ValueError(f"conditions differ in `{part.name}`: one has it and the other does not")
            elif a is not None:
                chosen[part.name] = _where(keep, a, b, rows)
        return replace(self, **chosen)

    @staticmethod
    def stack(conditions: Sequence[Condition]) -> Condition:
        """All rows of all conditions as one; token sequences are padded and masked to the longest.

        Raises ValueError when one condition has a part that another lacks.
        """
        if len(conditions) == 1:
            return conditions[0]
        padded = _pad(conditions)
        stacked: dict[str, Any] = {}
        for part in fields(Condition):
            values = [getattr(condition, part.name) for condition in padded]
            if isinstance(values[0], Mapping):
                for value in values[1:]:
                    _same_names(part.name, values[0], value)
                stacked[part.name] = {name: torch.cat([value[name] for value in values]) for name in values[0]}
            elif any(value is None for value in values):
                if any(value is not None for value in values):
                    raise ValueError(f"conditions differ in `{part.name}`: some have it and some do not")
            else:
                stacked[part.name] = torch.cat(values)
        return Condition(**stacked)


def _same_names(part: str, a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> None:
    if set(a) != set(b):
        raise ValueError(f"conditions differ in `{part}`: {sorted(a)} against {sorted(b)}")


def _where(keep: Tensor, a: Tensor, b: Tensor, rows: int) -> Tensor:
    flag = keep.to(a.device).view(rows, *[1] * (a.ndim - 1))
    return torch.where(flag, a, b.to(a.dtype))


def _pad(conditions: Sequence[Condition]) -> tuple[Condition, ...]:
    lengths = {c.tokens.shape[1] for c in conditions if c.tokens is not None}
    masked = any(c.mask is not None for c in conditions)
    if not lengths or (len(lengths) == 1 and not masked):
        return tuple(conditions)
    longest = max(lengths)
    padded = []
    for condition in conditions:
        tokens = condition.tokens
        if tokens is None:
            padded.append(condition)
            continue
        mask = condition.mask
        if mask is None:
            mask = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        extra = longest - tokens.shape[1]
        padded.append(
            replace(
                condition,
                tokens=torch.nn.functional.pad(tokens, (0, 0, 0, extra)),
                mask=torch.nn.functional.pad(mask, (0, extra)),
            )
        )
    return tuple(padded)


@dataclass(frozen=True)
class Batch:
    """Rows of a data set as a training step sees them."""

    images: Tensor  # (B, C, H, W) float32 in [-1, 1]
    captions: tuple[str, ...]  # one a row; "" where there is none
    index: tuple[int, ...]  # which picture of the data set each row is
    sample: tuple[int, ...]  # the row's number in the whole run, which keys its randomness
    inputs: Mapping[str, Tensor] = field(default_factory=dict)  # (B, C', H, W) each: masks and conditions of the row
    labels: tuple[str, ...] = ()  # class names, where the data has classes

    def __len__(self) -> int:
        return len(self.images)


class Estimate(NamedTuple):
    """What a denoiser believes: the mean E[x | x_t] and, with a learned variance, its `mix` (shaped as the mean)."""

    mean: Tensor
    mix: Tensor | None = None


class Query(NamedTuple):
    """A sampler's question: what is E[x | x_t]? `inner` marks a further evaluation within one stride (Heun).

    All rows share a time, but where each has a stride of its own: such a question is `inner`, and t has shape (B,).
    """

    x: Tensor
    t: float | Tensor
    inner: bool = False


class Ask(NamedTuple):
    """Work for one network, in rows that may be stacked with anybody else's.

    `rows` are the network's positional arguments, each a tensor or Condition with the batch as first axis, or None.
    `state` (a key-value cache, say) belongs to one request, and such asks are never stacked.
    """

    network: Callable[..., Any]
    rows: tuple[Tensor | Condition | None, ...]
    state: object = None


class Step(NamedTuple):
    """A finished stride of a sampling: the noisy x, its time, and what was believed there.

    `show`, where it is given, makes the pictures of that; otherwise the estimate is a z, which the decoder shows.
    """

    x: Tensor
    t: float
    estimate: Estimate
    show: Callable[[], Tensor] | None = None


class Round(NamedTuple):
    """What a request wants to know next; `step` is the stride that has just been finished, if one has."""

    asks: tuple[Ask, ...]
    step: Step | None = None


Sampling = Generator[Query, Estimate, Tensor]
"""A sampler: yields questions, receives estimates, returns x_0."""

Rounds = Generator[Round, Sequence[tuple[Any, ...]], Any]
"""A request: yields rounds, receives one tuple of tensors an ask, returns its result."""


@dataclass(frozen=True)
class Request:
    """One call for pictures: as many rows as there are prompts, each with its own seed."""

    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    negative: tuple[str, ...] | None = None
    size: tuple[int, int] | None = None  # (height, width) in pixels; None is the system's own
    inputs: Mapping[str, Tensor] = field(default_factory=dict)  # pictures, masks, controls by name, (B, C, H, W)
    settings: Any = None  # the generator's own settings object; None is its default
    candidates: int = 1  # draws of each picture, of which the one that fits its prompt best is kept
    decoding: Any = None  # the decoder's: a `Decoding`; None is as it was saved
    reading: Any = None  # the text encoder's: a `Reading`; None is as it was saved
