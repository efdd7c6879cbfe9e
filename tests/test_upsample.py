"""Upsampling decoders: what they learn from is exact, an untrained one is bicubic, a clean level says nothing."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from carrara.decoder import Decoding, Degradation, DiffusionUpsample, Upsample
from carrara.decoder.diffusion_upsample import augmented
from carrara.decoder.upsample import downsample
from carrara.diffusion import ClassifierFree, Denoiser, Flow, Linear, Plain, Process, ScaledTime, Threshold, uniform
from carrara.diffusion.generator import SamplingSettings
from carrara.nn import UNet
from carrara.nn.upsampler import ResidualUpsampler, bicubic
from carrara.rng import Rng
from carrara.run import finish, run
from carrara.types import Condition, Space
from nn.networks import perturb


def pictures(rows: int = 2, side: int = 16, seed: int = 0) -> Tensor:
    return torch.rand(rows, 3, side, side, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_bicubic_is_pillows() -> None:
    """Smaller and larger: Pillow's own, which widens the kernel where it makes smaller."""
    x = pictures(1, 24)
    for size in ((6, 6), (12, 8), (48, 72), (24, 24)):
        planes = [
            np.asarray(Image.fromarray(plane).resize(size[::-1], Image.Resampling.BICUBIC)) for plane in x[0].numpy()
        ]
        torch.testing.assert_close(bicubic(x, size)[0], torch.from_numpy(np.stack(planes)), rtol=0, atol=1e-5)


def test_flat_pictures_stay_flat() -> None:
    x = torch.full((1, 1, 16, 16), 0.3)
    for made in (bicubic(x, (64, 64)), downsample(x, 4)):
        torch.testing.assert_close(made, torch.full_like(made, 0.3))


def test_a_fresh_upsampler_is_bicubic() -> None:
    for factor in (2, 3, 4, 6):
        decoder = Upsample(ResidualUpsampler(factor=factor, width=8, blocks=1), size=12 * factor)
        z = pictures(2, 12)
        made = finish(decoder.start(z, Condition(), Condition(), Rng.seeds([0, 1])))
        assert torch.equal(made, bicubic(z, (12 * factor, 12 * factor)).clamp(-1, 1))
        assert decoder.space == Space("pixels", (3, 12, 12))
        assert decoder.pictures == Space("pixels", (3, 12 * factor, 12 * factor))


def test_encoding_has_no_weights_and_no_chance() -> None:
    """Two upsamplers have one space, which is that of the small pictures: either decodes what a generator makes."""
    x = pictures(2, 32)
    one, other = (Upsample(perturb(ResidualUpsampler(width=8, blocks=1), seed), size=32) for seed in (1, 2))
    assert one.space == other.space
    assert torch.equal(one.encode(x), other.encode(x, Rng.seeds([0, 1])))
    assert torch.equal(one.encode(x), bicubic(x, (8, 8)).clamp(-1, 1))


@pytest.mark.parametrize("size, factor", [(30, 4), ((32, 30), 4), (32, 1)])
def test_sizes_that_do_not_divide(size: Any, factor: int) -> None:
    with pytest.raises(ValueError, match="factor"):
        if factor < 2:
            ResidualUpsampler(factor=factor)
        Upsample(ResidualUpsampler(factor=factor, width=8, blocks=0), size=size)


# Degradation


def test_no_degradation_is_none_bit_for_bit() -> None:
    x = pictures()
    assert Degradation()(x, Rng.seeds([0, 1])) is x


@pytest.mark.parametrize(
    "degradation",
    [Degradation(noise=0.2), Degradation(blur=1.0), Degradation(levels=5), Degradation(shift=1.0),
     Degradation(0.1, 0.5, 16, 0.5)],
)  # fmt: skip
def test_degradation_is_of_a_rows_own(degradation: Degradation) -> None:
    x = pictures(3)
    made = degradation(x, Rng.seeds([4, 5, 6]))
    assert made.shape == x.shape and made.abs().max() <= 1 + 1e-6 and not torch.equal(made, x)
    torch.testing.assert_close(made[1:2], degradation(x[1:2], Rng.seeds([5])), rtol=0, atol=1e-6)
    if degradation.levels != 5:  # which are not drawn
        assert not torch.equal(made, degradation(x, Rng.seeds([7, 8, 9])))


def test_amounts_of_degradation() -> None:
    """Noise has the drawn deviation, levels are as many as asked for, blur and shift leave what is flat."""
    flat = torch.zeros(64, 1, 16, 16)
    noisy = Degradation(noise=0.3)(flat, Rng.seeds(range(64))).std((1, 2, 3))
    assert 0 < noisy.min() < 0.05 and 0.25 < noisy.max() < 0.35
    assert len(Degradation(levels=4)(pictures(), Rng.seeds([0, 1])).unique()) == 4
    half = torch.full((2, 3, 8, 8), 0.5)
    for degradation in (Degradation(blur=2.0), Degradation(shift=3.0)):
        torch.testing.assert_close(degradation(half, Rng.seeds([0, 1])), half)


def test_a_blur_is_gaussian() -> None:
    """Its variance is the square of the drawn standard deviation, in both directions."""
    point = torch.zeros(32, 1, 33, 33)
    point[:, :, 16, 16] = 1
    rng = Rng.seeds(range(32))
    std = rng.fork("amounts").uniform((4,))[:, 2] * 2.0
    made = Degradation(blur=2.0)(point, rng).double()
    torch.testing.assert_close(made.sum((1, 2, 3)), torch.ones(32).double(), rtol=0, atol=1e-5)
    places = (torch.arange(33) - 16).double()
    for axis in (2, 3):
        variance = (made.sum((1, 5 - axis)) * places**2).sum(1)
        wide = std > 0.6  # narrower ones are not what their samples at pixels say
        torch.testing.assert_close(variance[wide].sqrt(), std[wide], rtol=0.05, atol=0)


def test_a_shift_is_one() -> None:
    """By a whole number of pixels it is the picture moved."""
    x = pictures(1, 12)
    moved = Degradation(shift=0.5)(x, Rng.seeds([0]))
    down, across = (2 * Rng.seeds([0]).fork("amounts").uniform((4,))[0, :2].flip(0) - 1) * 0.5
    y, i = torch.meshgrid(torch.arange(2, 10), torch.arange(2, 10), indexing="ij")
    fy, fx = (y - down).floor().long(), (i - across).floor().long()
    wy, wx = (y - down) - fy, (i - across) - fx
    wanted = sum(
        x[0, :, fy + a, fx + b].double() * (wy if a else 1 - wy) * (wx if b else 1 - wx) for a in (0, 1) for b in (0, 1)
    )
    torch.testing.assert_close(moved[0, :, 2:10, 2:10].double(), wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("wrong", [{"noise": -1.0}, {"levels": 1}, {"blur": float("inf")}])
def test_degradations_that_cannot_be(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Degradation(**wrong)


# Diffusion


class Recorder(torch.nn.Module):
    """A network that keeps what it was told and says nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.told: list[Condition] = []

    def forward(self, x: Tensor, level: Tensor, condition: Condition) -> Tensor:
        self.told.append(condition)
        return self.weight * x


def upsampler(network: torch.nn.Module, guidance: Any = None, **more: Any) -> DiffusionUpsample:
    settings = SamplingSettings(times=functools.partial(uniform, steps=3), guidance=guidance or Plain())
    denoiser = Denoiser(network, Process(Linear()), Flow(), ScaledTime())
    return DiffusionUpsample(denoiser, size=16, factor=2, settings=settings, **more)


def test_no_augmentation_is_the_small_picture_itself() -> None:
    z, noise = pictures(2, 8), torch.randn(2, 3, 8, 8)
    assert torch.equal(augmented(z, torch.zeros(2), noise), z)
    assert torch.equal(augmented(z, torch.ones(2), noise), noise)
    half = augmented(z, torch.tensor([0.0, 0.5]), noise)
    assert torch.equal(half[0], z[0])
    torch.testing.assert_close(half[1], (z[1] + noise[1]) / 2)


def test_what_the_network_is_told() -> None:
    """The small picture with noise of its level, enlarged; the level; of the text only what it reads."""
    z, text = pictures(2, 8), Condition(vector=torch.ones(2, 4))
    for reads in (None, Space("text", (4,))):
        network = Recorder()
        decoder = upsampler(network, most=0.6, augmentation=0.1, reads=reads)
        for level in (0.0, None, 0.6):
            network.told.clear()
            finish(decoder.start(z, text, text, Rng.seeds([3, 4]), Decoding(augmentation=level)))
            told, given = network.told[0], 0.1 if level is None else level
            assert told.image is not None
            noise = Rng.seeds([3, 4]).fork("augmentation").normal_like(z)
            wanted = bicubic((1 - given) * z + given * noise, (16, 16))
            torch.testing.assert_close(told.image, wanted, rtol=0, atol=1e-5)
            torch.testing.assert_close(told.numbers["augmentation"], torch.full((2,), given))
            assert (told.vector is None) == (reads is None)
        with pytest.raises(ValueError, match=r"levels up to 0\.6"):
            finish(decoder.start(z, text, text, Rng.seeds([3, 4]), Decoding(augmentation=0.7)))


def test_guidance_is_of_the_text_and_both_see_the_picture() -> None:
    network = Recorder()
    decoder = upsampler(network, Threshold(ClassifierFree(3.0)), reads=Space("text", (4,)))
    z = pictures(2, 8)
    condition, null = (Condition(vector=torch.full((2, 4), value)) for value in (1.0, 0.0))
    finish(decoder.start(z, condition, null, Rng.seeds([0, 1])))
    vectors = [told.vector for told in network.told]
    assert any(vector is not None and bool((vector == 1).all(1).any()) for vector in vectors)
    assert any(vector is not None and bool((vector == 0).all(1).any()) for vector in vectors)
    assert all(told.image is not None for told in network.told)


def test_a_sampling_is_of_its_seed_and_within_range() -> None:
    torch.manual_seed(0)
    network = perturb(UNet(channels=8, multipliers=(1, 2), blocks=1, attention=(), groups=4, image_channels=3,
                           numbers=("augmentation",)))  # fmt: skip
    decoder = upsampler(network, augmentation=0.3)
    z = pictures(3, 8)

    def made(rows: slice, seeds: list[int], **settings: Any) -> Tensor:
        with torch.no_grad():
            some: Tensor = finish(
                decoder.start(z[rows], Condition(), Condition(), Rng.seeds(seeds), Decoding(**settings))
            )
        return some

    every = made(slice(None), [5, 6, 7])
    assert every.shape == (3, 3, 16, 16) and every.abs().max() <= 1
    torch.testing.assert_close(made(slice(1, 2), [6]), every[1:2], rtol=0, atol=2e-5)
    assert (made(slice(None), [5, 6, 8])[2] - every[2]).abs().max() > 1e-3
    other = dataclasses.replace(decoder.settings, times=functools.partial(uniform, steps=2))
    assert (made(slice(None), [5, 6, 7], sampling=other) - every).abs().max() > 1e-4
    assert (made(slice(None), [5, 6, 7], augmentation=0.0) - every).abs().max() > 1e-4


def test_its_steps_show_large_pictures_and_its_preview_is_bicubic() -> None:
    decoder, z = upsampler(Recorder()), pictures(2, 8)
    steps = list(run(decoder.start(z, Condition(), Condition(), Rng.seeds([0, 1]))))
    assert len(steps) == 3
    for step in steps:
        assert step.show is not None
        assert torch.equal(step.show(), step.estimate.mean.clamp(-1, 1))
    assert torch.equal(decoder.preview(z), bicubic(z, (16, 16)).clamp(-1, 1))


def test_levels_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="augmentation <= most"):
        upsampler(Recorder(), augmentation=0.5, most=0.2)
    with pytest.raises(ValueError, match="augmentation = 2"):
        Decoding(augmentation=2.0)
