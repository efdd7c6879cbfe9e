"""How different two pictures look to a network that was trained to see (LPIPS, Zhang et al. 2018, arXiv:1801.03924).

    d(x, y) = sum over layers of mean over places of sum over channels of w (f(x) / |f(x)| - f(y) / |f(y)|)^2

with the features f of a frozen network, each place's divided by their length, and weights w that LPIPS has learnt from
people's judgements; without learnt ones every channel counts the same. Three networks are known by the names of their
weights:

    VGG-16, AlexNet       torchvision's ("features.0.weight") or LPIPS's ("net.slice1.0.weight", "lin0.model.1.weight")
    EfficientNet-Lite0    "_conv_stem.weight"
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn

from carrara.nn.efficientnet import EfficientNetLite0

__all__ = ["PerceptualDistance"]

_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # ImageNet's mean and standard deviation, in [-1, 1]
_VGG = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512)  # channels; 0 halves the size
_VGG_TAPS, _ALEX_TAPS = (3, 8, 15, 22, 29), (1, 4, 7, 9, 11)
_LITE_TAPS = 5  # stages, down to a sixteenth of the size
_EPS = 1e-20  # under the root: half of all features may be zero


class PerceptualDistance(nn.Module):
    """d(x, y) of pictures (B, 1 or 3, H, W) in [-1, 1], frozen; made by `of`."""

    def __init__(self, network: nn.Module, taps: tuple[int, ...], weights: tuple[Tensor, ...] | None = None) -> None:
        super().__init__()
        self.network, self.taps, self.weights = network, taps, weights
        self.eval().requires_grad_(False)

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> PerceptualDistance:
        """The distance of a file's tensors, or of several files' together. ValueError for a network that is not known.

        What the distance does not read (a classifier's last layers) may be there.
        """
        mine = {re.sub(r"^net\.slice\d\.", "features.", name): tensor.float() for name, tensor in tensors.items()}
        if "_conv_stem.weight" in mine:
            network: nn.Module = EfficientNetLite0()
            _load(network, mine)
            return cls(network, tuple(range(_LITE_TAPS)))
        first = mine.get("features.0.weight")
        if first is None or first.shape[:2] != (64, 3) or first.shape[-1] not in (3, 11):
            raise ValueError(
                "these weights are of no network whose features are known; give those of VGG-16, AlexNet, LPIPS or "
                "EfficientNet-Lite0"
            )
        layers, taps = (_vgg(), _VGG_TAPS) if first.shape[-1] == 3 else (_alex(), _ALEX_TAPS)
        network = nn.ModuleDict({"features": layers})
        _load(network, mine)
        return cls(layers, taps, _learnt(mine, len(taps)))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """The distance of each row: (B,) float32. Grey pictures are seen as colour; others are refused."""
        total = torch.zeros(len(x), device=x.device)
        weights = self.weights or (None,) * len(self.taps)
        for a, b, weight in zip(self._features(x), self._features(y), weights, strict=True):
            apart = (_unit(a) - _unit(b)).square()
            if weight is not None:
                apart = apart * weight.to(apart.device).view(1, -1, 1, 1)
            total = total + apart.sum(1).flatten(1).mean(1)
        return total

    def _features(self, x: Tensor) -> list[Tensor]:
        if x.shape[1] not in (1, 3):
            raise ValueError(f"pictures of {x.shape[1]} channels; the networks of perceptual distances see 3, or grey")
        x = x.float().expand(-1, 3, -1, -1)
        with torch.autocast(x.device.type, enabled=False):
            if isinstance(self.network, EfficientNetLite0):
                return self.network.stages((127.5 * x + 0.5) / 128)[:_LITE_TAPS]
            h = (x - x.new_tensor(_SHIFT).view(-1, 1, 1)) / x.new_tensor(_SCALE).view(-1, 1, 1)
            found = []
            for number, layer in enumerate(cast(nn.Sequential, self.network)):
                h = layer(h)
                if number in self.taps:
                    found.append(h)
            return found


def _unit(features: Tensor) -> Tensor:
    return features * torch.rsqrt(features.square().sum(1, keepdim=True) + _EPS)


def _vgg() -> nn.Sequential:
    layers: list[nn.Module] = []
    here = 3
    for width in _VGG:
        if not width:
            layers.append(nn.MaxPool2d(2))
            continue
        layers += [nn.Conv2d(here, width, 3, padding=1), nn.ReLU()]
        here = width
    return nn.Sequential(*layers)


def _alex() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 64, 11, 4, 2), nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.Conv2d(192, 384, 3, padding=1), nn.ReLU(),
        nn.Conv2d(384, 256, 3, padding=1), nn.ReLU(),
        nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(),
    )  # fmt: skip


def _load(network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    wanted = network.state_dict()
    counters = {name for name in wanted if name.endswith("num_batches_tracked")}  # older files have none
    wrong = [n for n in wanted if n not in counters and (n not in tensors or tensors[n].shape != wanted[n].shape)]
    if wrong:
        raise ValueError(f"{len(wrong)} of the network's weights are missing or of another shape, such as {wrong[0]}")
    network.load_state_dict({name: tensors.get(name, wanted[name]) for name in wanted})


def _learnt(tensors: Mapping[str, Tensor], layers: int) -> tuple[Tensor, ...] | None:
    found = [tensors.get(f"lin{i}.model.1.weight") for i in range(layers)]
    given = [weight.flatten() for weight in found if weight is not None]
    if given and len(given) < layers:
        raise ValueError(
            f"the weights of {len(given)} layers are learnt and {layers} are needed: lin0 to lin{layers - 1}"
        )
    return tuple(given) or None
