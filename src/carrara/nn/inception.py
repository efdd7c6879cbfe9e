"""Inception-v3 as Frechet inception distances are measured with (Szegedy et al. 2015; Heusel et al. 2017).

The network of the weights `pt_inception-2015-12-05`: its average pooling does not count the padding, its last block
pools by the maximum, and it has 1008 classes. Parameters have the names of that file, so that it loads as it is.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["InceptionV3"]


class _Conv(nn.Module):
    """Convolution, norm, rectifier; padded so that stride 1 keeps the size where `pad` is true."""

    def __init__(
        self, inside: int, out: int, kernel: int | tuple[int, int] = 1, *, stride: int = 1, pad: bool = True
    ) -> None:
        super().__init__()
        high, wide = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = (high // 2, wide // 2) if pad else 0
        self.conv = nn.Conv2d(inside, out, (high, wide), stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(out, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


def _average(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


def _greatest(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 3, stride=1, padding=1)


def _chain(x: Tensor, layers: Sequence[nn.Module]) -> Tensor:
    for layer in layers:
        x = layer(x)
    return x


class _A(nn.Module):
    """Branches of 1x1, 5x5 and two 3x3 at one size."""

    def __init__(self, inside: int, pool: int, k: int) -> None:
        super().__init__()
        self.branch1x1 = _Conv(inside, 64 // k)
        self.branch5x5_1 = _Conv(inside, 48 // k)
        self.branch5x5_2 = _Conv(48 // k, 64 // k, 5)
        self.branch3x3dbl_1 = _Conv(inside, 64 // k)
        self.branch3x3dbl_2 = _Conv(64 // k, 96 // k, 3)
        self.branch3x3dbl_3 = _Conv(96 // k, 96 // k, 3)
        self.branch_pool = _Conv(inside, pool // k)

    def forward(self, x: Tensor) -> Tensor:
        parts = [
            self.branch1x1(x),
            _chain(x, (self.branch5x5_1, self.branch5x5_2)),
            _chain(x, (self.branch3x3dbl_1, self.branch3x3dbl_2, self.branch3x3dbl_3)),
            self.branch_pool(_average(x)),
        ]
        return torch.cat(parts, 1)


class _B(nn.Module):
    """Halves the size: 3x3, two 3x3, maximum."""

    def __init__(self, inside: int, k: int) -> None:
        super().__init__()
        self.branch3x3 = _Conv(inside, 384 // k, 3, stride=2, pad=False)
        self.branch3x3dbl_1 = _Conv(inside, 64 // k)
        self.branch3x3dbl_2 = _Conv(64 // k, 96 // k, 3)
        self.branch3x3dbl_3 = _Conv(96 // k, 96 // k, 3, stride=2, pad=False)

    def forward(self, x: Tensor) -> Tensor:
        double = _chain(x, (self.branch3x3dbl_1, self.branch3x3dbl_2, self.branch3x3dbl_3))
        return torch.cat([self.branch3x3(x), double, F.max_pool2d(x, 3, stride=2)], 1)


class _C(nn.Module):
    """Branches of 1x1, one and two factorised 7x7."""

    def __init__(self, inside: int, between: int, k: int) -> None:
        super().__init__()
        c, out = between // k, 192 // k
        self.branch1x1 = _Conv(inside, out)
        self.branch7x7_1 = _Conv(inside, c)
        self.branch7x7_2 = _Conv(c, c, (1, 7))
        self.branch7x7_3 = _Conv(c, out, (7, 1))
        self.branch7x7dbl_1 = _Conv(inside, c)
        self.branch7x7dbl_2 = _Conv(c, c, (7, 1))
        self.branch7x7dbl_3 = _Conv(c, c, (1, 7))
        self.branch7x7dbl_4 = _Conv(c, c, (7, 1))
        self.branch7x7dbl_5 = _Conv(c, out, (1, 7))
        self.branch_pool = _Conv(inside, out)

    def forward(self, x: Tensor) -> Tensor:
        double = (self.branch7x7dbl_1, self.branch7x7dbl_2, self.branch7x7dbl_3, self.branch7x7dbl_4)
        parts = [
            self.branch1x1(x),
            _chain(x, (self.branch7x7_1, self.branch7x7_2, self.branch7x7_3)),
            _chain(x, (*double, self.branch7x7dbl_5)),
            self.branch_pool(_average(x)),
        ]
        return torch.cat(parts, 1)


class _D(nn.Module):
    """Halves the size: 3x3, factorised 7x7 and 3x3, maximum."""

    def __init__(self, inside: int, k: int) -> None:
        super().__init__()
        c = 192 // k
        self.branch3x3_1 = _Conv(inside, c)
        self.branch3x3_2 = _Conv(c, 320 // k, 3, stride=2, pad=False)
        self.branch7x7x3_1 = _Conv(inside, c)
        self.branch7x7x3_2 = _Conv(c, c, (1, 7))
        self.branch7x7x3_3 = _Conv(c, c, (7, 1))
        self.branch7x7x3_4 = _Conv(c, c, 3, stride=2, pad=False)

    def forward(self, x: Tensor) -> Tensor:
        double = (self.branch7x7x3_1, self.branch7x7x3_2, self.branch7x7x3_3, self.branch7x7x3_4)
        parts = [_chain(x, (self.branch3x3_1, self.branch3x3_2)), _chain(x, double), F.max_pool2d(x, 3, stride=2)]
        return torch.cat(parts, 1)


class _E(nn.Module):
    """Branches that widen at the end; `greatest` says how the last one pools."""

    def __init__(self, inside: int, k: int, *, greatest: bool) -> None:
        super().__init__()
        c = 384 // k
        self.greatest = greatest
        self.branch1x1 = _Conv(inside, 320 // k)
        self.branch3x3_1 = _Conv(inside, c)
        self.branch3x3_2a = _Conv(c, c, (1, 3))
        self.branch3x3_2b = _Conv(c, c, (3, 1))
        self.branch3x3dbl_1 = _Conv(inside, 448 // k)
        self.branch3x3dbl_2 = _Conv(448 // k, c, 3)
        self.branch3x3dbl_3a = _Conv(c, c, (1, 3))
        self.branch3x3dbl_3b = _Conv(c, c, (3, 1))
        self.branch_pool = _Conv(inside, 192 // k)

    def forward(self, x: Tensor) -> Tensor:
        one = self.branch3x3_1(x)
        two = _chain(x, (self.branch3x3dbl_1, self.branch3x3dbl_2))
        pooled = _greatest(x) if self.greatest else _average(x)
        parts = [
            self.branch1x1(x),
            self.branch3x3_2a(one),
            self.branch3x3_2b(one),
            self.branch3x3dbl_3a(two),
            self.branch3x3dbl_3b(two),
            self.branch_pool(pooled),
        ]
        return torch.cat(parts, 1)


class InceptionV3(nn.Module):
    """Pictures (B, 3, H, W) in [-1, 1] to features (B, 2048 / shrink); the weights are for 299 x 299.

    `shrink`, a divisor of 16, divides every number of channels: 1 is the published network.
    """

    def __init__(self, *, shrink: int = 1, classes: int = 1008) -> None:
        super().__init__()
        if shrink < 1 or 16 % shrink:
            raise ValueError(f"shrink is {shrink}; every channel count divides by 1, 2, 4, 8 and 16")
        k = shrink
        self.Conv2d_1a_3x3 = _Conv(3, 32 // k, 3, stride=2, pad=False)
        self.Conv2d_2a_3x3 = _Conv(32 // k, 32 // k, 3, pad=False)
        self.Conv2d_2b_3x3 = _Conv(32 // k, 64 // k, 3)
        self.Conv2d_3b_1x1 = _Conv(64 // k, 80 // k)
        self.Conv2d_4a_3x3 = _Conv(80 // k, 192 // k, 3, pad=False)
        self.Mixed_5b = _A(192 // k, 32, k)
        self.Mixed_5c = _A(256 // k, 64, k)
        self.Mixed_5d = _A(288 // k, 64, k)
        self.Mixed_6a = _B(288 // k, k)
        self.Mixed_6b = _C(768 // k, 128, k)
        self.Mixed_6c = _C(768 // k, 160, k)
        self.Mixed_6d = _C(768 // k, 160, k)
        self.Mixed_6e = _C(768 // k, 192, k)
        self.Mixed_7a = _D(768 // k, k)
        self.Mixed_7b = _E(1280 // k, k, greatest=False)
        self.Mixed_7c = _E(2048 // k, k, greatest=True)
        self.fc = nn.Linear(2048 // k, classes)

    def forward(self, x: Tensor) -> Tensor:
        """The pooled features (B, 2048 / shrink)."""
        x = _chain(x, (self.Conv2d_1a_3x3, self.Conv2d_2a_3x3, self.Conv2d_2b_3x3))
        x = _chain(F.max_pool2d(x, 3, stride=2), (self.Conv2d_3b_1x1, self.Conv2d_4a_3x3))
        x = _chain(F.max_pool2d(x, 3, stride=2), (self.Mixed_5b, self.Mixed_5c, self.Mixed_5d))
        x = _chain(x, (self.Mixed_6a, self.Mixed_6b, self.Mixed_6c, self.Mixed_6d, self.Mixed_6e))
        return _chain(x, (self.Mixed_7a, self.Mixed_7b, self.Mixed_7c)).mean((2, 3))

    def logits(self, features: Tensor) -> Tensor:
        """The classes' logits (B, classes) of pooled features. As Inception scores are measured: without the bias."""
        return features @ self.fc.weight.T
