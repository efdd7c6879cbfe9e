"""A text encoder's whitening, measured over prompts: of its tokens and of its vector."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from carrara.nn.whitening import Whitening

__all__ = ["measure_both"]


@torch.no_grad()
def measure_both(
    tokens: Whitening,
    vector: Whitening,
    prompts: Sequence[str],
    read: Callable[[Sequence[str]], tuple[Tensor, Tensor]],
) -> None:
    """Measures the whitening of a text encoder's tokens and of its vector over prompts.

    `read` gives all the tokens (N, D) of some prompts, without padding, and their vectors (B, D').
    """
    features = [read(prompts[i : i + 256]) for i in range(0, len(prompts), 256)]
    tokens.measure(torch.cat([some for some, _ in features]))
    vector.measure(torch.cat([some for _, some in features]))
