"""Decoders one after another: encoding and decoding compose, neighbours fit, and a system goes through them all."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from carrara.decoder import Chain, Decoding, DiffusionUpsample, Latents, Pixels, Tiling, Upsample
from carrara.diffusion import Denoiser, DiffusionGenerator, Flow, Linear, Plain, Process, ScaledTime, uniform
from carrara.diffusion.generator import SamplingSettings
from carrara.errors import RecipeError
from carrara.nn import KLAutoencoder, UNet
from carrara.nn.upsampler import ResidualUpsampler, bicubic
from carrara.rng import Rng
from carrara.run import finish
from carrara.store import assemble, load, load_component, save_component
from carrara.system import System
from carrara.text import Labels, Unconditional
from carrara.types import Condition, Space
from nn.networks import perturb

SETTINGS = SamplingSettings(times=functools.partial(uniform, steps=3), guidance=Plain())


def upsample(size: int, factor: int = 2, seed: int = 0) -> Upsample:
    torch.manual_seed(seed)
    return Upsample(perturb(ResidualUpsampler(factor=factor, width=8, blocks=1), seed), size=size)


def unet(seed: int = 0, **more: Any) -> UNet:
    torch.manual_seed(seed)
    made = perturb(UNet(channels=8, multipliers=(1, 2), blocks=1, attention=(), groups=4, **more))
    assert isinstance(made, UNet)
    return made


def denoiser(**more: Any) -> Denoiser:
    return Denoiser(unet(**more), Process(Linear()), Flow(), ScaledTime())


def diffusion(size: int, **more: Any) -> DiffusionUpsample:
    vector = more.pop("vector", None)
    told = denoiser(image_channels=3, numbers=("augmentation",), vector=vector)
    return DiffusionUpsample(told, size=size, factor=2, settings=SETTINGS, **more)


def latents(size: int = 16) -> Latents:
    torch.manual_seed(0)
    decoder = Latents(KLAutoencoder(latent=4, widths=(8, 8, 8), decoder_blocks=(0, 0, 1)), size=size)
    decoder.measure([pictures(8, size)])
    return decoder.eval()


def pictures(rows: int, side: int) -> Tensor:
    return torch.rand(rows, 3, side, side, generator=torch.Generator().manual_seed(1)) * 2 - 1


def decoded(decoder: Any, z: Tensor, settings: Decoding | None = None) -> Tensor:
    with torch.no_grad():
        made: Tensor = finish(decoder.start(z, Condition(), Condition(), Rng.seeds(range(len(z))), settings))
    return made


@torch.no_grad()
def test_chaining_is_associative() -> None:
    """However it is bracketed: the same z, the same pictures, the same draws."""
    a, b, c = latents(16), upsample(32), diffusion(64)
    left, right, flat = Chain((Chain((a, b)), c)), Chain((a, Chain((b, c)))), Chain((a, b, c))
    x = pictures(2, 64)
    z = flat.encode(x)
    assert flat.space == a.space and flat.pictures == c.pictures
    assert torch.equal(z, a.encode(b.encode(c.encode(x))))
    drawn = flat.encode(x, Rng.seeds([0, 1]))
    assert not torch.equal(drawn, z)
    for other in (left, right):
        assert torch.equal(other.encode(x), z)
        assert torch.equal(other.encode(x, Rng.seeds([0, 1])), drawn)
        assert torch.equal(decoded(other, z), decoded(flat, z))
        assert torch.equal(other.preview(z), flat.preview(z))


@torch.no_grad()
def test_decoding_is_one_after_the_other() -> None:
    a, b = upsample(32, seed=1), upsample(64, seed=2)
    z = pictures(2, 16)
    assert torch.equal(decoded(Chain((a, b)), z), b.decode(a.decode(z)))
    torch.testing.assert_close(decoded(Chain((a, b)), z, Decoding(Tiling(16, 0))), b.decode(a.decode(z)))


def test_settings_reach_the_part_that_they_concern() -> None:
    chain = Chain((upsample(16), diffusion(32, most=0.5)))
    z = pictures(2, 8)
    assert (decoded(chain, z, Decoding(augmentation=0.5)) - decoded(chain, z)).abs().max() > 1e-3
    with pytest.raises(ValueError, match=r"levels up to 0\.5"):
        decoded(chain, z, Decoding(augmentation=0.9))


def test_neighbours_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"decoder 1 makes pixels \(3, 32, 32\) and decoder 2 is for pixels \(3, 16"):
        Chain((upsample(32), upsample(32)))
    with pytest.raises(ValueError, match="decoder 2 is for latent"):
        Chain((upsample(32), latents(16)))
    with pytest.raises(ValueError, match="two or more"):
        Chain((upsample(32),))
    deep = Upsample(ResidualUpsampler(factor=2, width=8, blocks=0), size=64, depth=16)
    with pytest.raises(ValueError, match="8 bits and decoder 2 of 16"):
        Chain((upsample(32), deep))
    one, other = (Space("text", (3,), 2, name) for name in ("one", "other"))
    with pytest.raises(ValueError, match="different text encoders"):
        Chain((diffusion(16, reads=one, vector=3), upsample(32), diffusion(64, reads=other, vector=3)))


def generator(space: Space, reads: Space | None = None, **more: Any) -> DiffusionGenerator:
    return DiffusionGenerator(denoiser(**more), space, reads=reads, settings=SETTINGS).eval()


def test_a_cascade_as_a_system() -> None:
    """8 -> 16 -> 32: pictures of the last size at every step, whoever makes it; each of its seed alone."""
    chain = Chain((upsample(16), diffusion(32)))
    system = System(Unconditional(), generator(chain.space), chain.eval())
    frames = list(system.generate([""], seeds=[0, 1]))
    assert [frame.images.shape for frame in frames] == [(2, 3, 32, 32)] * 7  # three steps of each sampling, and the end
    assert [frame.step for frame in frames] == [1, 2, 3, 4, 5, 6, 6]
    first, fourth = frames[0], frames[3]
    assert first.trace is not None and fourth.trace is not None
    small = first.trace.estimate.mean
    assert small.shape[-1] == 8 and fourth.trace.estimate.mean.shape[-1] == 32
    with torch.no_grad():
        shown = bicubic(chain.parts[0].preview(small), (32, 32)).clamp(-1, 1)
    torch.testing.assert_close(first.images, shown)
    torch.testing.assert_close(fourth.images, fourth.trace.estimate.mean.clamp(-1, 1))
    *_, alone = system.generate([""], seeds=[1])
    torch.testing.assert_close(alone.images[0], frames[-1].images[1], rtol=0, atol=5e-5)
    *_, other = system.generate([""], seeds=[1], decoding=Decoding(augmentation=0.5))
    assert (other.images - alone.images).abs().max() > 1e-3
    *_, large = system.generate([""], seeds=[1], size=(48, 64))
    assert large.images.shape == (1, 3, 48, 64)


def test_a_generator_of_small_pixels_fits_any_upsampler() -> None:
    made = generator(Pixels(size=8).space)
    for decoder in (Pixels(size=8), upsample(16), diffusion(16), Chain((upsample(16), upsample(32)))):
        System(Unconditional(), made, decoder)
    with pytest.raises(RecipeError, match=r"trained for pixels \(3, 8, 8\) and this decoder has pixels \(3, 16, 16\)"):
        System(Unconditional(), made, upsample(32))


def test_an_upsampler_told_by_text_needs_the_text_encoder_it_was_trained_with() -> None:
    labels = Labels(("cat", "dog"))
    chain = Chain((upsample(16), diffusion(32, reads=labels.space, vector=3)))
    assert chain.reads == labels.space
    told = generator(chain.space, reads=labels.space, vector=3)
    *_, last = System(labels, told, chain.eval()).generate(["cat"], seeds=[0])
    assert last.images.shape == (1, 3, 32, 32)
    with pytest.raises(RecipeError, match="the decoder was trained for text"):
        System(Unconditional(), generator(chain.space), chain)


def test_a_quick_decoder_shows_the_steps() -> None:
    slow = latents(32)
    system = System(Unconditional(), generator(slow.space, in_channels=4, out_channels=4), slow)
    torch.manual_seed(3)
    quick = slow.decoded_by(KLAutoencoder(latent=4, widths=(8, 8, 8), decoder_blocks=(0, 0, 0)))
    frames = list(system.generate([""], seeds=[0], preview=quick))
    plain = list(system.generate([""], seeds=[0]))
    step = frames[0].trace
    assert step is not None
    with torch.no_grad():
        torch.testing.assert_close(frames[0].images, quick.decode(step.estimate.mean))
    assert (frames[0].images - plain[0].images).abs().max() > 1e-3
    assert torch.equal(frames[-1].images, plain[-1].images)
    with pytest.raises(ValueError, match="the preview decodes"):
        next(system.generate([""], seeds=[0], preview=latents(16)))
    with pytest.raises(ValueError, match="other autoencoder has 5"):
        slow.decoded_by(KLAutoencoder(latent=5))


@torch.no_grad()
def test_a_chain_is_saved_loaded_and_assembled(tmp_path: Path) -> None:
    """As a component of its own, and put together from two folders by `assemble`; the same pictures either way."""
    first, second = upsample(16, seed=1).eval(), diffusion(32).eval()
    chain = Chain((first, second)).eval()
    save_component(tmp_path / "chain", "decoder", chain)
    loaded = load_component(tmp_path / "chain", "decoder")
    z = pictures(2, 8)
    assert torch.equal(decoded(loaded, z), decoded(chain, z)) and loaded.space == chain.space
    for name, part in (("first", first), ("second", second)):
        save_component(tmp_path / name, "decoder", part, facts={"trained_on": name})
    made = generator(chain.space)
    save_component(tmp_path / "base", "generator", made)
    save_component(tmp_path / "base" / "text", "text", Unconditional())
    parts = [tmp_path / "first", tmp_path / "second"]
    assemble(tmp_path / "model", generator=tmp_path / "base", decoder=parts)
    system = load(tmp_path / "model")
    *_, last = system.generate([""], seeds=[4])
    *_, wanted = System(Unconditional(), made, chain).generate([""], seeds=[4])
    torch.testing.assert_close(last.images, wanted.images, rtol=0, atol=2e-5)  # numbers lie elsewhere in memory
    with pytest.raises(RecipeError, match="in the order from the generator to the picture"):
        assemble(tmp_path / "wrong", generator=tmp_path / "base", decoder=parts[::-1])
    assert not (tmp_path / "wrong").exists()
