"""A hash of weights: two trainings of one shape are told apart by it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

__all__ = ["fingerprint"]


def fingerprint(tensors: Mapping[str, Tensor], *more: bytes) -> str:
    """A hash of weights (names, shapes and bits) and of further bytes: 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        whole = tensor.detach().to("cpu").contiguous()
        digest.update(f"{name}{tuple(whole.shape)}{whole.dtype}".encode())
        digest.update(whole.reshape(-1).view(torch.uint8).numpy().tobytes())
    for data in more:
        digest.update(data)
    return digest.hexdigest()[:16]
