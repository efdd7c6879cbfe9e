"""The autoencoder's and the picture tower's shapes, starts and refusals, and the shortcut that has no parameters."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from carrara.nn import ImageEncoder, KLAutoencoder
from carrara.nn.attention import HeadRms
from carrara.nn.layers import ChannelRms, match_channels, norm
from nn.networks import perturb

SMALL: dict[str, Any] = {"widths": (8, 8, 12), "encoder_blocks": (0, 1, 0), "decoder_blocks": (0, 1, 0)}


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("size", [(8, 8), (24, 40)])
@pytest.mark.parametrize("patch, widths", [(1, (4, 8, 8, 12)), (2, (8, 6, 12)), (4, (8, 5)), (8, (8,))])
def test_shapes(channels: int, size: tuple[int, int], patch: int, widths: tuple[int, ...]) -> None:
    blocks = (0,) * len(widths)
    network = KLAutoencoder(
        channels=channels, latent=5, patch=patch, widths=widths, encoder_blocks=blocks, decoder_blocks=blocks
    )
    x = torch.randn(2, channels, *size)
    mean, logvar = network.encode(x)
    assert mean.shape == logvar.shape == (2, 5, size[0] // 8, size[1] // 8)
    assert network.decode(mean).shape == network(x).shape == x.shape


def test_starts_sure_of_itself() -> None:
    """A fresh encoder's standard deviation is small beside its mean, and nothing is lost in scale on the way."""
    torch.manual_seed(0)
    with torch.no_grad():
        mean, logvar = KLAutoencoder().encode(torch.randn(4, 3, 32, 32))
    assert float((0.5 * logvar).exp().max()) < 0.1
    assert 0.2 < float(mean.std()) < 5


@pytest.mark.parametrize("size", [(12, 16), (16, 12), (4, 4)])
def test_refuses_sizes(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="multiples of 8"):
        KLAutoencoder(**SMALL).encode(torch.zeros(1, 3, *size))


def test_refuses_channels() -> None:
    network = KLAutoencoder(latent=4, **SMALL)
    with pytest.raises(ValueError, match="3 channels"):
        network.encode(torch.zeros(1, 4, 16, 16))
    with pytest.raises(ValueError, match="z has shape"):
        network.decode(torch.zeros(1, 5, 2, 2))


@pytest.mark.parametrize(
    "options", [{"down": 4}, {"patch": 4}, {"patch": 0}, {"widths": (8, 8)}, {"encoder_blocks": (1,)}]
)
def test_refuses_what_does_not_add_up(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="widths"):
        KLAutoencoder(**SMALL | options)


@pytest.mark.parametrize("before, after", [(8, 8), (8, 4), (4, 8), (12, 8), (8, 12), (5, 7)])
def test_match_channels(before: int, after: int) -> None:
    """Constants stay, the mean stays, and where one divides the other it is the plain average or repetition."""
    x = torch.randn(2, before, 3, 3)
    y = match_channels(x, after)
    assert y.shape == (2, after, 3, 3)
    torch.testing.assert_close(match_channels(torch.ones_like(x), after), torch.ones_like(y))
    torch.testing.assert_close(y.mean(1), x.mean(1))
    if before % after == 0:
        torch.testing.assert_close(y[:, 0], x[:, : before // after].mean(1))


def test_folding_is_undone_by_unfolding() -> None:
    """The two shortcuts of equal widths, one after another, are the average over 2 x 2 pixels."""
    x = torch.randn(1, 4, 6, 6)
    small = match_channels(F.pixel_unshuffle(x, 2), 4)
    torch.testing.assert_close(small, F.avg_pool2d(x, 2))
    torch.testing.assert_close(F.pixel_shuffle(match_channels(small, 16), 2), F.interpolate(small, scale_factor=2))


def test_rms_sees_one_pixel() -> None:
    layer = ChannelRms(6)
    x = torch.randn(1, 6, 2, 2)
    changed = x.clone()
    changed[..., 0, 0] = 100.0
    torch.testing.assert_close(layer(x)[..., 1:, :], layer(changed)[..., 1:, :])
    torch.testing.assert_close(layer(x).square().mean(1), torch.ones(1, 2, 2))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_rms_of_nothing_is_nothing(dtype: torch.dtype) -> None:
    """Small numbers squared are 0 in float16, and so is a small eps: neither may be divided by."""
    for layer, x in ((ChannelRms(6), torch.zeros(1, 6, 2, 2)), (HeadRms(8), torch.zeros(1, 2, 3, 8))):
        assert torch.equal(layer(x.to(dtype)), x.to(dtype))
        small = layer(torch.full_like(x, 1e-5).to(dtype))
        assert small.dtype == dtype and bool(small.isfinite().all()) and small.abs().max() <= 1.01


@pytest.mark.parametrize("channels", range(1, 40))
def test_group_norm_fits_any_channels(channels: int) -> None:
    layer = norm("group", channels)
    assert isinstance(layer, torch.nn.GroupNorm)
    assert channels % layer.num_groups == 0
    assert layer.num_groups == 1 or channels // layer.num_groups >= 4


@pytest.mark.parametrize("size", [32, 64, 128])
def test_image_encoder_sizes(size: int) -> None:
    network = perturb(ImageEncoder(channels=4, width=6, widths=(8, 8), blocks=(1, 0)))
    assert network(torch.randn(2, 4, size, size)).shape == (2, 6)


def test_image_encoder_refuses() -> None:
    network = ImageEncoder(widths=(8, 8), blocks=(0, 0))
    with pytest.raises(ValueError, match="multiples of 8"):
        network(torch.zeros(1, 3, 12, 16))
    with pytest.raises(ValueError, match="3 channels"):
        network(torch.zeros(1, 1, 16, 16))
    with pytest.raises(ValueError, match="blocks"):
        ImageEncoder(widths=(8, 8), blocks=(1,))
