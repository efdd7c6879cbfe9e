"""Latents have unit scale wherever they are made, and decoding undoes what encoding did."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from carrara.decoder import Latents
from carrara.nn import KLAutoencoder
from carrara.rng import Rng


def data(rows: int, seed: int = 0) -> Tensor:
    """Pictures that are bright on average, so that their latents have a mean to be taken off."""
    return torch.rand(rows, 3, 16, 16, generator=torch.Generator().manual_seed(seed)) ** 0.3 * 2 - 1


@pytest.fixture(scope="module")
def latents() -> Latents:
    torch.manual_seed(0)
    autoencoder = KLAutoencoder(latent=4, widths=(8, 16, 16), decoder_blocks=(0, 1, 1))
    made = Latents(autoencoder, size=16)
    with torch.no_grad():
        for parameter in autoencoder.parameters():  # far from scale 1 and mean 0
            parameter.add_(0.1 * torch.randn_like(parameter))
    made.measure(data(64).split(16))
    return made.eval()


@torch.no_grad()
def test_latents_have_unit_scale(latents: Latents) -> None:
    """What training sees, drawn from the posterior, has mean 0 and standard deviation 1 a channel on the data."""
    assert latents.mean.abs().max() > 0.1 and (latents.std - 1).abs().max() > 0.1
    z = torch.cat([latents.encode(data(64), Rng.seeds(range(64 * i, 64 * i + 64))) for i in range(8)])
    assert z.mean((0, 2, 3)).abs().max() < 0.05
    assert (z.std((0, 2, 3)) - 1).abs().max() < 0.05


@torch.no_grad()
def test_decoding_undoes_the_scale(latents: Latents) -> None:
    """The generator's space is encoding's space: decode(encode(x)) is the autoencoder's own reconstruction."""
    x = data(4, seed=1)
    mean, _ = latents.autoencoder.encode(x)  # type: ignore[operator]
    plain = latents.autoencoder.decode(mean).clamp(-1, 1)  # type: ignore[operator]
    torch.testing.assert_close(latents.decode(latents.encode(x)), plain, rtol=0, atol=1e-5)
    torch.testing.assert_close(latents.encode(x) * latents.std + latents.mean, mean, rtol=0, atol=1e-5)
