"""Features gather in a few directions, in which a generator cannot tell hundreds of concepts apart: whitening.

What a generator reads of a text or a picture is brought to mean 0 and covariance near I over data, measured once and
stored with the weights.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

__all__ = ["Whitening"]


class Whitening(nn.Module):
    """x -> (x - mean) C^(-1/2) with the covariance C of data, a ten-thousandth of its largest eigenvalue added to all.

    Where few data span few directions, a row that lies off them would be enlarged a hundredfold: none is made
    longer than four times the usual sqrt(D). Before `measure` nothing else is done.
    """

    mean: Tensor
    matrix: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("matrix", torch.eye(width))
        self._longest = 4 * math.sqrt(width)

    @torch.no_grad()
    def measure(self, x: Tensor) -> None:
        """Measures mean and covariance of the rows of x (N, D)."""
        rows = x.double().cpu()
        mean = rows.mean(0)
        values, vectors = torch.linalg.eigh((rows - mean).T @ (rows - mean) / max(len(rows) - 1, 1))
        scale = (values.clamp(min=0) + 1e-4 * values.max().clamp(min=1e-12)).rsqrt()
        self.mean.copy_(mean)
        self.matrix.copy_((vectors * scale) @ vectors.T)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., D), whitened, in float32."""
        with torch.autocast(x.device.type, enabled=False):
            white = (x.float() - self.mean) @ self.matrix
            return white * (self._longest / white.norm(dim=-1, keepdim=True).clamp(min=self._longest))
