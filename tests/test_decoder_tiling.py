"""Part by part: exact where the network's reach ends, seamless where it does not, in the memory of a part."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from carrara.decoder import Decoding, Latents, Tiling, Upsample
from carrara.decoder.tiling import Scale, answered, tiled
from carrara.nn.autoencoder import KLAutoencoder
from carrara.nn.reach import Stretch, halo, needed
from carrara.nn.tiny_autoencoder import TinyAutoencoder
from carrara.nn.upsampler import ResidualUpsampler
from carrara.rng import Rng
from carrara.types import Condition
from nn.networks import perturb

NETWORKS: dict[str, Any] = {
    "kl": lambda: KLAutoencoder(latent=3, widths=(8, 8, 12), decoder_blocks=(1, 1, 1)),
    "kl down 4": lambda: KLAutoencoder(
        latent=3, down=4, patch=1, widths=(4, 8, 8), encoder_blocks=(1, 1, 0), decoder_blocks=(0, 1, 1)
    ),
    "kl down 16": lambda: KLAutoencoder(
        latent=3, down=16, patch=4, widths=(8, 8, 8), encoder_blocks=(0, 1, 0), decoder_blocks=(0, 1, 0), norm="rms"
    ),
    "tiny": lambda: TinyAutoencoder(latent=3, width=8, encoder_blocks=(1, 1, 1), decoder_blocks=(1, 1, 1)),
}


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make(name: str) -> Any:
    torch.manual_seed(0)
    return perturb(NETWORKS[name]()).eval()


def drive(decoder: Any, z: Tensor, tiling: Tiling | None = None) -> Tensor:
    return answered(decoder.start(z, Condition(), Condition(), Rng.seeds([0]), Decoding(tiling=tiling)))


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_parts_are_what_they_are_in_the_whole_picture(name: str) -> None:
    network = make(name)
    side = 28 * network.down
    latents = Latents(network, size=side).eval()
    x = noise(2, 3, side, side + 5 * network.down).clamp(-1, 1)
    z = latents.encode(x)
    whole = latents.autoencoder.decode(z)
    scale = whole.std()
    assert scale > 0.01
    tiling = Tiling(tile=7 * network.down, overlap=0)
    part = answered(tiled(network.decode, z, tiling, Scale(1, network.down, network.halos[1])))
    assert (part - whole).abs().max() < 1e-5 * scale
    torch.testing.assert_close(drive(latents, z, tiling), drive(latents, z), rtol=0, atol=1e-5)
    latents.tiling = tiling
    torch.testing.assert_close(latents.encode(x), z, rtol=0, atol=1e-5 * float(z.std()))
    torch.testing.assert_close(latents.preview(z), latents.decode(z), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_the_halo_is_all_that_is_seen(name: str) -> None:
    """Inputs beyond it change nothing; the nearest one within it does, for decoding in float64."""
    network = make(name).double()
    reach = network.halos[1]
    z = noise(1, 3, 2 * reach + 3, 1).double().expand(-1, -1, -1, 2 * reach + 3)
    middle = slice((reach + 1) * network.down, (reach + 2) * network.down)

    def made(row: int) -> Tensor:
        changed = z.clone()
        changed[:, :, row] += 1
        return network.decode(changed)[:, :, middle] - network.decode(z)[:, :, middle]

    assert made(0).abs().max() == 0 == made(2 * reach + 2).abs().max()
    assert max(made(1).abs().max(), made(2 * reach + 1).abs().max()) > 0


def test_stretches_of_single_layers() -> None:
    here = Stretch(0, 4)
    assert needed(nn.Conv2d(1, 1, 3, padding=1), here) == (-1, 5)
    assert needed(nn.Conv2d(1, 1, 3, stride=2, padding=1), here) == (-1, 8)
    assert needed(nn.Upsample(scale_factor=2), Stretch(-1, 5)) == (-1, 3)
    assert needed((nn.Upsample(scale_factor=2), nn.Conv2d(1, 1, 3, padding=1)), here) == (-1, 3)
    assert needed((nn.SiLU(), nn.GroupNorm(1, 4)), here) is None
    assert halo(nn.Sequential(nn.Conv2d(1, 1, 5, padding=2)), 1, 1) == 2
    with pytest.raises(ValueError, match="LSTM sees is not known"):
        needed(nn.LSTM(1, 1), here)


@torch.no_grad()
def test_an_upsampler_in_parts() -> None:
    torch.manual_seed(0)
    for factor in (2, 3, 4):
        network = perturb(ResidualUpsampler(factor=factor, width=8, blocks=2)).eval()
        decoder = Upsample(network, size=12 * factor)
        z = noise(1, 3, 20, 23)
        whole = network(z)
        part = answered(tiled(network, z, Tiling(5 * factor, 0), Scale(1, factor, network.halo)))
        assert (part - whole).abs().max() < 1e-5 * whole.std()
        torch.testing.assert_close(drive(decoder, z, Tiling(5 * factor, 0)), drive(decoder, z), rtol=0, atol=1e-5)


@torch.no_grad()
def test_a_network_that_sees_everything_is_blended_without_a_seam() -> None:
    """A norm over groups: near the whole picture's, and smooth where parts meet."""
    torch.manual_seed(0)
    network = perturb(
        KLAutoencoder(latent=3, widths=(8, 8, 8), encoder_blocks=(0, 0, 0), decoder_blocks=(1, 1, 1), norm="group")
    ).eval()
    assert network.halos == (None, None)
    latents = Latents(network, size=256)
    z = noise(1, 3, 32, 32)
    whole, parts = latents.decode(z), drive(latents, z, Tiling(128, 64))
    hard = drive(latents, z, Tiling(128, 0))
    assert (parts - whole).abs().mean() < 0.05 * whole.std()

    def step(images: Tensor) -> Tensor:
        """How much larger the steps across the middle are than those beside it."""
        across = (images - whole).diff(dim=3).abs().mean((0, 1, 2))
        return across[127] / across[100:120].mean()

    assert step(parts) < 3 < step(hard)


def test_one_part_is_the_whole_and_blending_weights_are_shares() -> None:
    torch.manual_seed(0)
    x = noise(1, 2, 12, 9)

    def same(x: Tensor) -> Tensor:
        return x

    for tiling in (Tiling(4, 0), Tiling(4, 3), Tiling(64, 8)):
        for reach in (None, 0, 2):
            torch.testing.assert_close(answered(tiled(same, x, tiling, Scale(1, 1, reach))), x)


@torch.no_grad()
def test_memory_is_that_of_a_part() -> None:
    """The largest thing that the network is ever given does not grow with the picture."""
    network = make("kl")
    latents = Latents(network, size=64, tiling=Tiling(64, 0))
    largest: list[int] = []
    network.decoder.register_forward_hook(lambda _, given, made: largest.append(max(given[0].numel(), made.numel())))
    found = []
    for side in (40, 80):
        largest.clear()
        drive(latents, noise(1, 3, side, side))
        found.append(max(largest))
    assert found[0] == found[1]


def test_tilings_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="tile = 0"):
        Tiling(0)
    with pytest.raises(ValueError, match="overlap = 8"):
        Tiling(8, 8)
