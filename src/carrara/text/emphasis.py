r"""Emphasis in prompts: parts of a text count more or less, as the users of Stable Diffusion write it.

    prompt  =  { "(" prompt [ ":" number ] ")"      counts 1.1 times as much, or `number` times
               | "[" prompt "]"                     counts 1/1.1 times as much
               | "\(" | "\)" | "\[" | "\]" | "\\"   the second sign itself
               | any other sign }                   itself

Nested brackets multiply, 16 deep at most; a weight is held between -100 and 100. A bracket that nothing closes reaches
to the end; one that nothing has opened is a sign like any other, and so is a ":" but for that of "(...:number)". Round
and square brackets are told apart: the two kinds may cross. So any text is a prompt.

With w the weight of each token, the tokens h (L, D) of a prompt become

    h' = w h,    h'' = h' mean(h) / mean(h')

the second of which keeps the mean over all of h, as the web interface of AUTOMATIC1111 does; here of each prompt by
itself, whatever stands beside it in a batch.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Weighted", "emphasise", "parse_emphasis"]

_STEP = 1.1
_DEEPEST = 16
_MOST = 100.0
_PIECE = re.compile(r"\\[()\[\]\\]|[()\[\]]|:\s*+([+-]?(?:\d++(?:\.\d*+)?|\.\d++))\s*+\)|[^\\()\[\]:]++|[\\:]")


class Weighted(NamedTuple):
    """A part of a prompt, without the brackets, and how much it counts."""

    text: str
    weight: float


def parse_emphasis(prompt: str) -> tuple[Weighted, ...]:
    """The parts of a prompt in order, of which neighbours have different weights; none for an empty prompt."""
    texts: list[str] = []
    weights: list[float] = []
    opened: dict[str, list[int | None]] = {"(": [], "[": []}  # where each began; None for one that is too deep

    def close(bracket: str, factor: float) -> None:
        if (start := opened[bracket].pop()) is not None:
            weights[start:] = [weight * factor for weight in weights[start:]]

    for piece in _PIECE.finditer(prompt):
        text = piece[0]
        if text in opened:
            opened[text].append(len(texts) if len(opened[text]) < _DEEPEST else None)
        elif text == ")" and opened["("]:
            close("(", _STEP)
        elif text == "]" and opened["["]:
            close("[", 1 / _STEP)
        elif piece[1] and opened["("]:
            close("(", max(-_MOST, min(_MOST, float(piece[1]))))
        else:
            texts.append(text[1:] if len(text) == 2 and text[0] == "\\" else text)
            weights.append(1.0)
    for bracket, factor in (("(", _STEP), ("[", 1 / _STEP)):
        while opened[bracket]:
            close(bracket, factor)
    return _merged(texts, [max(-_MOST, min(_MOST, weight)) for weight in weights])


def _merged(texts: Sequence[str], weights: Sequence[float]) -> tuple[Weighted, ...]:
    merged: list[tuple[list[str], float]] = []
    for text, weight in zip(texts, weights, strict=True):
        if merged and merged[-1][1] == weight:
            merged[-1][0].append(text)
        else:
            merged.append(([text], weight))
    return tuple(Weighted("".join(parts), weight) for parts, weight in merged)


def emphasise(tokens: Tensor, weights: Tensor, *, restore: bool = True) -> Tensor:
    """Tokens (B, L, D) times their weights (B, L); with `restore` each row's mean stays what it was.

    A row whose weighted mean is zero is not restored, since nothing could.
    """
    weighted = tokens * weights[:, :, None].to(tokens.dtype)
    if not restore:
        return weighted
    ratio = tokens.mean((1, 2), keepdim=True) / weighted.mean((1, 2), keepdim=True)
    return weighted * torch.where(ratio.isfinite(), ratio, 1.0)
