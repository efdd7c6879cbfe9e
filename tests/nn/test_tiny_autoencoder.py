"""The tiny autoencoder: equal to diffusers' where the layout is the same, under either program's names."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch import Tensor

from carrara.decoder import Latents, psnr
from carrara.nn.tiny_autoencoder import TinyAutoencoder
from carrara.store import load_component, save_component
from carrara.store.safetensors_io import load_tensors

PUBLISHED = Path(os.environ.get("CARRARA_TEST_DATA", "data")) / "taef2_fp16.safetensors"


def theirs(**settings: object) -> torch.nn.Module:
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    return diffusers.AutoencoderTiny(**settings).eval()


@pytest.mark.parametrize(
    "settings",
    [
        {"latent_channels": 4, "encoder_block_out_channels": (16,) * 4, "decoder_block_out_channels": (16,) * 4},
        {
            "latent_channels": 16, "encoder_block_out_channels": (8,) * 3, "decoder_block_out_channels": (8,) * 3,
            "num_encoder_blocks": (2, 1, 1), "num_decoder_blocks": (1, 2, 1),
        },
    ],
    ids=["taesd", "shallow"],
)  # fmt: skip
@torch.no_grad()
def test_equal_to_diffusers(settings: dict[str, object]) -> None:
    other = theirs(**settings)
    tensors = other.state_dict()
    mine = TinyAutoencoder.of(tensors).eval()
    x = torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(0)) * 2 - 1
    z = other.encode(x).latents
    torch.testing.assert_close(mine.encode(x)[0], z, rtol=0, atol=1e-5)
    torch.testing.assert_close(mine.decode(3 * z), other.decode(3 * z).sample, rtol=0, atol=1e-5)
    again = TinyAutoencoder.of({name: tensor.half() for name, tensor in mine.state_dict().items()})
    assert again.config == mine.config
    assert mine.down == 2 ** (len(mine.config["encoder_blocks"]) - 1)


@pytest.mark.parametrize("pooled", [False, True])
def test_its_own_names_come_back(pooled: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = TinyAutoencoder(
        channels=1, latent=6, width=8, encoder_blocks=(1, 2), decoder_blocks=(2, 1), pooled=pooled
    )
    made = TinyAutoencoder.of(network.state_dict())
    assert made.config == network.config and made.config["pooled"] is pooled
    decoder = Latents(made, size=16)
    save_component(tmp_path, "decoder", decoder)
    loaded = load_component(tmp_path, "decoder")
    assert loaded.space == decoder.space
    z = torch.randn(1, 6, 8, 8)
    with torch.no_grad():
        assert torch.equal(loaded.decode(z), decoder.eval().decode(z))


def test_it_is_certain() -> None:
    mean, logvar = TinyAutoencoder(width=8).encode(torch.zeros(1, 3, 16, 16))
    assert mean.shape == logvar.shape == (1, 4, 2, 2)
    assert (logvar / 2).exp().max() < 1e-6


def test_other_files_are_refused() -> None:
    with pytest.raises(ValueError, match=r"not of TAESD's layout .*: encoder\.0\.weight is missing$"):
        TinyAutoencoder.of({"a.weight": torch.zeros(3)})
    some = TinyAutoencoder(width=8).state_dict()
    some.pop("encoder.3.conv.0.weight")
    with pytest.raises(ValueError, match="not of TAESD's layout"):
        TinyAutoencoder.of(some)


def test_refuses_shapes() -> None:
    network = TinyAutoencoder(width=8)
    with pytest.raises(ValueError, match="multiples of 8"):
        network.encode(torch.zeros(1, 3, 12, 16))
    with pytest.raises(ValueError, match="z has shape"):
        network.decode(torch.zeros(1, 5, 2, 2))
    with pytest.raises(ValueError, match="as many of both"):
        TinyAutoencoder(encoder_blocks=(1, 1), decoder_blocks=(1,))


def smooth(side: int) -> Tensor:
    """Coloured discs on white."""
    places = torch.linspace(-1, 1, side)
    y, x = torch.meshgrid(places, places, indexing="ij")
    rows = []
    for number in range(4):
        inside = torch.sigmoid(((0.3 + 0.1 * number) - (x**2 + y**2).sqrt()) * side / 2)
        colour = torch.tensor([1.0, 0.2 * number, -0.5]).view(3, 1, 1)
        rows.append(inside * colour + (1 - inside) * torch.ones(3, 1, 1))
    return torch.stack(rows)


@pytest.mark.skipif(not PUBLISHED.is_file(), reason="CARRARA_TEST_DATA names no folder with the published weights")
@torch.no_grad()
def test_the_published_weights_reconstruct() -> None:
    network = TinyAutoencoder.of(load_tensors(PUBLISHED)).eval()
    assert network.config["pooled"] and network.config["latent"] == 32
    x = smooth(64)
    assert psnr(x, network(x).clamp(-1, 1)).min() > 25
