"""Does a picture show what was asked for? By neighbours: which training picture is nearest, and its name.

    fidelity     the share of generated pictures whose nearest training picture carries the prompt as a caption
    retrieval    the share of texts for which the right picture is the first, or among the first k, of all pictures

Features are any vectors (N, D); nearest is by Euclidean distance, for unit vectors the same as by cosine.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Nearest", "fidelity", "nearest", "retrieval"]


class Nearest(NamedTuple):
    """For each query the number of its nearest reference (N,) and the distance to it (N,)."""

    number: Tensor
    distance: Tensor


def nearest(queries: Tensor, references: Tensor, *, chunk: int = 1024) -> Nearest:
    """The nearest of `references` (M, D) for each of `queries` (N, D); any shape after the first axis.

    In float64: by way of the scalar product, float32 would not tell small distances from none.
    """
    queries, references = queries.flatten(1).double(), references.flatten(1).double()
    if queries.shape[1] != references.shape[1] or not len(references):
        raise ValueError(
            f"queries of {queries.shape[1]} numbers against {len(references)} references of {references.shape[1]}; "
            "expected vectors of one length and at least one reference"
        )
    found = [torch.cdist(part, references).min(1) for part in queries.split(chunk)]
    return Nearest(torch.cat([f.indices for f in found]), torch.cat([f.values for f in found]).float())


def fidelity(prompts: Sequence[str], found: Nearest, captions: Sequence[Sequence[str]]) -> tuple[float, list[bool]]:
    """The share of rows whose nearest reference carries the prompt, and which rows those are.

    `captions` are all captions of each reference.
    """
    right = [prompt in captions[int(number)] for prompt, number in zip(prompts, found.number, strict=True)]
    return sum(right) / max(len(right), 1), right


def retrieval(texts: Tensor, pictures: Tensor, right: Sequence[int], *, k: int) -> float:
    """The share of `texts` (N, D) whose own picture (number `right[i]` of `pictures` (M, D)) is among its k best."""
    with torch.autocast(texts.device.type, enabled=False):  # rounded scores would tie
        best = (texts.float() @ pictures.float().T).topk(min(k, len(pictures)), dim=1).indices
    wanted = torch.tensor(list(right), device=best.device)[:, None]
    return (best == wanted).any(1).float().mean().item()
