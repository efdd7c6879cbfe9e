"""EfficientNet-Lite0: what a small ImageNet network sees in a picture (Tan and Le 2019; the Lite variant, 2020).

    stem 3x3/2 -> seven stages of inverted residual blocks (expand 1x1, depthwise k x k, project 1x1) -> head 1x1

without squeeze-and-excitation, with ReLU6, and with TensorFlow's padding. Parameters have the names of the published
weights, so that these load as they are.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["EfficientNetLite0"]

_STAGES = (  # repeats, kernel, stride, expansion, channels in, channels out
    (1, 3, 1, 1, 32, 16),
    (2, 3, 2, 6, 16, 24),
    (2, 5, 2, 6, 24, 40),
    (3, 3, 2, 6, 40, 80),
    (3, 5, 1, 6, 80, 112),
    (4, 5, 2, 6, 112, 192),
    (1, 3, 1, 6, 192, 320),
)


class _Same(nn.Conv2d):
    """A convolution without bias whose output is ceil(size / stride); an odd row of padding goes below and right."""

    def __init__(self, inside: int, out: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(inside, out, kernel, stride, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        pads: list[int] = []
        for size, kernel, stride in zip(x.shape[:1:-1], self.kernel_size, self.stride, strict=True):  # width, height
            total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            pads += [total // 2, total - total // 2]
        return super().forward(F.pad(x, pads) if any(pads) else x)


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)


class _Block(nn.Module):
    def __init__(self, inside: int, out: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = inside * expansion
        if expansion != 1:
            self._expand_conv = _Same(inside, wide, 1)
            self._bn0 = _norm(wide)
        self._depthwise_conv = _Same(wide, wide, kernel, stride, groups=wide)
        self._bn1 = _norm(wide)
        self._project_conv = _Same(wide, out, 1)
        self._bn2 = _norm(out)
        self.expands, self.adds = expansion != 1, stride == 1 and inside == out

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        h = F.relu6(self._bn1(self._depthwise_conv(h)))
        h = self._bn2(self._project_conv(h))
        return x + h if self.adds else h


class EfficientNetLite0(nn.Module):
    """Pictures (B, 3, H, W), normalised, to features (B, 1280); `stages` gives those of every stage."""

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem = _Same(3, 32, 3, 2)
        self._bn0 = _norm(32)
        self._blocks = nn.ModuleList(
            _Block(out if i else inside, out, kernel, 1 if i else stride, expansion)
            for repeats, kernel, stride, expansion, inside, out in _STAGES
            for i in range(repeats)
        )
        self._conv_head = _Same(320, 1280, 1)
        self._bn1 = _norm(1280)
        self._fc = nn.Linear(1280, 1000)

    def stages(self, x: Tensor) -> list[Tensor]:
        """The feature maps after each of the seven stages, of 16 to 320 channels at a half to a 32nd of the size."""
        h = F.relu6(self._bn0(self._conv_stem(x)))
        found, blocks = [], iter(self._blocks)
        for repeats, *_ in _STAGES:
            for _ in range(repeats):
                h = next(blocks)(h)
            found.append(h)
        return found

    def forward(self, x: Tensor) -> Tensor:
        """The pooled features (B, 1280)."""
        return F.relu6(self._bn1(self._conv_head(self.stages(x)[-1]))).mean((2, 3))

    def logits(self, features: Tensor) -> Tensor:
        """The thousand ImageNet classes' logits (B, 1000) of pooled features."""
        classes: Tensor = self._fc(features)
        return classes
