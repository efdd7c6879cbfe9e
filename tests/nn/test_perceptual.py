"""Perceptual distances: LPIPS as its paper and its weights' names say it, on random networks of its shape."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from carrara.nn.efficientnet import EfficientNetLite0
from carrara.nn.perceptual import PerceptualDistance

SLICES = {0: 1, 3: 2, 6: 3, 8: 4, 10: 5}  # of LPIPS's AlexNet: convolution -> slice
SHAPES = {0: (64, 3, 11, 11), 3: (192, 64, 5, 5), 6: (384, 192, 3, 3), 8: (256, 384, 3, 3), 10: (256, 256, 3, 3)}


def alexnet(learnt: bool) -> dict[str, Tensor]:
    """Random weights under LPIPS's names, or torchvision's."""
    generator = torch.Generator().manual_seed(0)
    tensors: dict[str, Tensor] = (
        {"scaling_layer.shift": torch.zeros(3)} if learnt else {"classifier.1.bias": torch.ones(2)}
    )
    for number, (place, shape) in enumerate(SHAPES.items()):
        name = f"net.slice{SLICES[place]}.{place}" if learnt else f"features.{place}"
        fan = shape[1] * shape[2] * shape[3]
        tensors[f"{name}.weight"] = torch.randn(shape, generator=generator) * (2 / fan) ** 0.5
        tensors[f"{name}.bias"] = 0.1 * torch.randn(shape[0], generator=generator)
        if learnt:
            tensors[f"lin{number}.model.1.weight"] = torch.rand(1, shape[0], 1, 1, generator=generator)
    return tensors


def written_out(tensors: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
    """LPIPS, layer by layer, with PyTorch's functions."""
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])

    def features(h: Tensor) -> list[Tensor]:
        h = (h - shift.view(-1, 1, 1)) / scale.view(-1, 1, 1)
        found = []
        for place, (stride, padding) in zip(SHAPES, ((4, 2), (1, 2), (1, 1), (1, 1), (1, 1)), strict=True):
            name = f"net.slice{SLICES[place]}.{place}"
            name = name if f"{name}.weight" in tensors else f"features.{place}"
            if place in (3, 6):
                h = F.max_pool2d(h, 3, 2)
            h = F.relu(F.conv2d(h, tensors[f"{name}.weight"], tensors[f"{name}.bias"], stride, padding))
            found.append(h)
        return found

    total = torch.zeros(len(x))
    for number, (a, b) in enumerate(zip(features(x), features(y), strict=True)):
        a, b = (h / (h.square().sum(1, keepdim=True).sqrt() + 1e-10) for h in (a, b))
        weight = tensors.get(f"lin{number}.model.1.weight")
        apart = (a - b).square()
        total += (apart.sum(1) if weight is None else F.conv2d(apart, weight)[:, 0]).mean((1, 2))
    return total


def pair() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(2, 3, 48, 40, generator=generator) * 2 - 1
    return x, (x + 0.3 * torch.randn(x.shape, generator=generator)).clamp(-1, 1)


@pytest.mark.parametrize("learnt", [True, False])
@torch.no_grad()
def test_lpips(learnt: bool) -> None:
    tensors = alexnet(learnt)
    distance = PerceptualDistance.of(tensors)
    x, y = pair()
    torch.testing.assert_close(distance(x, y), written_out(tensors, x, y), rtol=1e-4, atol=1e-6)
    assert torch.equal(distance(x, x), torch.zeros(2))
    torch.testing.assert_close(distance(x, y), distance(y, x))


def efficientnet() -> PerceptualDistance:
    torch.manual_seed(0)
    return PerceptualDistance.of(EfficientNetLite0().state_dict())


def test_efficientnet_by_its_names() -> None:
    distance = efficientnet()
    x, y = pair()
    y.requires_grad_()
    found = distance(x, y)
    assert found.shape == (2,) and bool((found > 0).all())
    found.sum().backward()
    assert y.grad is not None and bool(y.grad.isfinite().all()) and y.grad.abs().max() > 0
    assert not any(p.requires_grad for p in distance.parameters())


@torch.no_grad()
def test_nearer_pictures_are_nearer() -> None:
    distance = efficientnet()
    x, y = pair()
    assert bool((distance(x, torch.lerp(x, y, 0.3)) < distance(x, y)).all())


def test_features_of_zero_have_a_gradient() -> None:
    """Where no unit speaks, the length of the features is 0, and its root has no slope."""
    tensors = {name: torch.zeros_like(t) for name, t in alexnet(True).items()}
    x, y = pair()
    y.requires_grad_()
    PerceptualDistance.of(tensors)(x, y).sum().backward()
    assert y.grad is not None and bool(y.grad.isfinite().all())


@torch.no_grad()
def test_grey_is_seen_as_colour() -> None:
    distance = efficientnet()
    x, y = (picture[:, :1] for picture in pair())
    torch.testing.assert_close(distance(x, y), distance(x.expand(-1, 3, -1, -1), y.expand(-1, 3, -1, -1)))
    with pytest.raises(ValueError, match="4 channels"):
        distance(torch.zeros(1, 4, 32, 32), torch.zeros(1, 4, 32, 32))


def test_other_weights_are_refused() -> None:
    with pytest.raises(ValueError, match="no network whose features are known"):
        PerceptualDistance.of({"conv.weight": torch.zeros(2, 2)})
    tensors = alexnet(False)
    tensors.pop("features.8.weight")
    with pytest.raises(ValueError, match=r"such as features\.8\.weight|such as 8\.weight"):
        PerceptualDistance.of(tensors)
    some = alexnet(True)
    some.pop("lin2.model.1.weight")
    with pytest.raises(ValueError, match="4 layers are learnt and 5"):
        PerceptualDistance.of(some)
