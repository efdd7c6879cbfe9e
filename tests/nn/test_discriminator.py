"""The two networks of a GAN: shapes, starts, what they are told, and the second derivatives that penalties need."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from carrara.nn.bottleneck import Bottleneck, Resize, halvings, pooled, usual_widths
from carrara.nn.discriminator import Discriminator
from carrara.nn.gan_generator import ConvGenerator
from carrara.types import Condition
from nn.networks import perturb

SMALL: dict[str, Any] = {"widths": (16, 8), "blocks": 1, "group": 4}


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def told(rows: int) -> Condition:
    """A vector, and tokens of which some are padding."""
    mask = torch.arange(4)[None] < (torch.arange(rows) % 3 + 2)[:, None]
    return Condition(tokens=normal(rows, 4, 12), mask=mask, vector=normal(rows, 6, seed=1))


def generator(**options: Any) -> ConvGenerator:
    torch.manual_seed(0)
    return ConvGenerator(**{"out_channels": 3, "size": 8, "noise": 5, "style": 8, **SMALL, **options})


def discriminator(**options: Any) -> Discriminator:
    torch.manual_seed(0)
    return Discriminator(**{"in_channels": 3, "size": 8, "features": 10, **SMALL, **options})


@pytest.mark.parametrize("size", [4, 8, 12, (8, 20), 64])
def test_any_space_can_be_made_and_judged(size: int | tuple[int, int]) -> None:
    """Latents of 8 x 8 and pixels of 64 x 64 by the same settings; the networks mirror each other."""
    shape = (size, size) if isinstance(size, int) else size
    options: dict[str, Any] = {"size": size, "widths": (), "group": 8, "vector": 6, "context": 12}
    made = generator(out_channels=5, **options)(normal(2, 5), told(2))
    judge = discriminator(in_channels=5, **options)
    assert made.shape == (2, 5, *shape) and judge(made, told(2)).shape == (2,)
    assert len(usual_widths(shape)) == halvings(shape) + 1
    assert usual_widths((64, 64)) == (192, 192, 192, 96, 48) and usual_widths((8, 8)) == (192, 192)
    with pytest.raises(ValueError, match="fewer widths"):
        generator(size=size, widths=(8,) * (halvings(shape) + 2))
    with pytest.raises(ValueError, match="fewer widths"):
        discriminator(size=size, widths=(8,) * (halvings(shape) + 2))


def test_networks_of_any_depth_start_as_their_skeleton() -> None:
    x = normal(2, 8, 4, 4)
    block = Bottleneck(8, blocks=9, group=4, style=3)
    assert torch.equal(block(x, normal(2, 3)), x)
    assert block.mix.weight.std().item() == pytest.approx((2 / 1.04) ** 0.5 / 6 * 9**-0.25, rel=0.1)
    made = generator(blocks=3)
    before = made(normal(2, 5), Condition())
    with torch.no_grad():
        for part in made.modules():
            if isinstance(part, Bottleneck):
                part.mix.weight.normal_()
    assert torch.equal(made(normal(2, 5), Condition()), before)
    sizes = [discriminator(blocks=blocks)(normal(64, 3, 8, 8), Condition()).std().item() for blocks in (1, 4)]
    assert all(0.1 < size < 3 for size in sizes)


def test_resizing_is_bilinear() -> None:
    ramp = torch.arange(8.0).expand(1, 2, 8, 8)
    up, down = Resize(2, 2, up=True)(ramp), Resize(2, 2, up=False)(ramp)
    torch.testing.assert_close(up[0, 0, 0, 1:-1], torch.arange(1, 15) / 2 - 0.25)  # still a ramp
    torch.testing.assert_close(down[0, 0, 0], torch.tensor([0.5, 2.5, 4.5, 6.5]))
    x, project = normal(2, 3, 8, 8), Resize(3, 5, up=True)
    first = torch.nn.functional.interpolate(x, scale_factor=2, mode="bilinear")  # a 1x1 convolution may come before
    torch.testing.assert_close(project(x), project.project(first))


@pytest.mark.parametrize("make", [generator, discriminator])
def test_every_parameter_learns_and_the_condition_counts(make: Any) -> None:
    options = {"attention": (1,), "heads": 2} if make is generator else {}
    network = make(vector=6, context=12, **options)
    x = normal(3, 5) if make is generator else normal(3, 3, 8, 8)
    assert not torch.equal(network(x, told(3)), network(x, told(3).rows([1, 2, 0])))  # from the first step on
    perturb(network)
    network(x, told(3)).square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in network.parameters())


def test_tokens_are_read_where_they_are_attended_to() -> None:
    network, noise, condition = perturb(generator(vector=6, context=12, attention=(0,), heads=2)), normal(3, 5), told(3)
    swapped = replace(condition, tokens=condition.tokens.flip(0))
    assert not torch.allclose(network(noise, condition), network(noise, swapped), atol=1e-3)
    padded = Condition.stack((condition, Condition(normal(1, 6, 12), None, normal(1, 6)))).rows(slice(0, 3))
    torch.testing.assert_close(network(noise, condition), network(noise, padded))  # padding never matters
    deaf = perturb(generator(vector=6, context=12))
    assert torch.equal(deaf(noise, condition), deaf(noise, swapped))
    with pytest.raises(ValueError, match="tokens is missing"):
        network(noise, Condition(vector=condition.vector))
    with pytest.raises(ValueError, match="leave it out"):
        generator(attention=(0,))
    with pytest.raises(ValueError, match="numbered from 0"):
        generator(attention=(2,), context=12)


def test_what_is_told_is_of_one_loudness() -> None:
    loud, quiet = pooled(Condition(vector=5 * normal(3, 6)), 6, 3), pooled(Condition(vector=normal(3, 6)), 6, 3)
    assert loud is not None and quiet is not None
    torch.testing.assert_close(loud, quiet)
    torch.testing.assert_close(loud.square().mean(1), torch.ones(3))
    alone = told(3)
    tokens = pooled(replace(alone, vector=None), 12, 3)  # without a vector: the mean of what is not padding
    assert alone.tokens is not None and alone.mask is not None and tokens is not None
    mean = torch.stack([row[mask].mean(0) for row, mask in zip(alone.tokens, alone.mask, strict=True)])
    torch.testing.assert_close(tokens, mean / mean.square().mean(1, keepdim=True).sqrt())
    assert pooled(Condition(), None, 3) is None
    for condition, width, said in (
        (Condition(vector=normal(3, 6)), None, "built without"),
        (Condition(), 6, "neither vector nor tokens"),
        (Condition(vector=normal(3, 5)), 6, r"reads \(3, 6\)"),
        (Condition(vector=normal(3, 6), image=normal(3, 1, 8, 8)), 6, "image is not read"),
    ):
        with pytest.raises(ValueError, match=said):
            pooled(condition, width, 3)


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"draws from \(B, 5\)"):
        generator()(normal(2, 6), Condition())
    with pytest.raises(ValueError, match=r"built for \(8, 8\)"):
        discriminator()(normal(2, 3, 4, 4), Condition())
    made: tuple[tuple[Any, str], ...] = ((generator, "noise"), (generator, "heads"), (discriminator, "features"))
    for network, wrong in made:
        with pytest.raises(ValueError, match=f"{wrong}=0; give a number from 1 up"):
            network(**{wrong: 0})
    with pytest.raises(ValueError, match=r"widths=\(16, 0\); give numbers, each from 1 up"):
        generator(widths=(16, 0))
    with pytest.raises(ValueError, match="groups of 7"):
        discriminator(group=7)


def test_rows_are_judged_alone_and_features_serve_further_conditions() -> None:
    network, x = perturb(discriminator(vector=6, context=12)), normal(4, 3, 8, 8)
    scores = network(x, told(4))
    torch.testing.assert_close(network(x[1:2], told(4).rows([1])), scores[1:2])
    features = network.features(x)
    torch.testing.assert_close(network.judge(features, told(4)), scores)
    another = network.judge(features, told(4).rows([3, 2, 1, 0]))
    torch.testing.assert_close(another, network(x, told(4).rows([3, 2, 1, 0])))


def test_second_derivatives_are_right() -> None:
    """What the gradient of a penalty is made of, against finite differences in float64."""
    network = perturb(discriminator(in_channels=1, size=(8, 4), widths=(4,), group=2))
    trunk = nn.Sequential(network.inward, network.layers, network.basis).double()
    names = [name for name, _ in trunk.named_parameters()]
    weights = [p.detach().requires_grad_() for p in trunk.parameters()]

    def through(x: torch.Tensor, *given: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(trunk, dict(zip(names, given, strict=True)), (x,)).sum()

    x = normal(1, 1, 8, 4).double().requires_grad_()
    assert torch.autograd.gradgradcheck(through, (x, *weights), atol=1e-5, fast_mode=True)
