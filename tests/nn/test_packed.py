"""Packed networks compute what the networks did."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from carrara.nn import ImageAutoencoder, Transformers, UNet, packed
from carrara.types import Condition

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch without oneDNN")


def _shaken(network: nn.Module) -> nn.Module:
    """The network with no weight at zero, so that every layer counts."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return network.eval().requires_grad_(False)


def _unet() -> nn.Module:
    transformers = Transformers(depth=(1, 0), heads=(2, 2), middle=1)
    return _shaken(
        UNet(
            in_channels=4, out_channels=4, channels=16, multipliers=(1, 2), blocks=1, attention=(),
            transformers=transformers, context=8,
        )
    )  # fmt: skip


def _asked(rows: int, size: int) -> tuple[torch.Tensor, torch.Tensor, Condition]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(rows, 4, size, size, generator=generator)
    return x, torch.full((rows,), 17.0), Condition(tokens=torch.randn(rows, 5, 8, generator=generator))


@pytest.mark.parametrize(("rows", "size"), [(2, 16), (1, 8), (3, 9)])
def test_a_packed_unet_is_the_unet(rows: int, size: int) -> None:
    plain = _unet()
    ready = packed(copy.deepcopy(plain), dtype=torch.float32)
    asked = _asked(rows, size)
    expected = plain(*asked)
    assert expected.std() > 1e-2
    torch.testing.assert_close(ready(*asked), expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


def test_bfloat16_is_near() -> None:
    plain = _unet()
    ready = packed(copy.deepcopy(plain))
    asked = _asked(2, 16)
    expected, made = plain(*asked), ready(*asked)
    assert made.dtype == torch.float32  # of x, whatever the weights are
    assert float((made - expected).norm() / expected.norm()) < 0.03
    assert not torch.equal(made, expected)


def test_a_packed_autoencoder_decodes_the_same() -> None:
    plain = _shaken(ImageAutoencoder(widths=(8, 16), blocks=1))
    ready = packed(copy.deepcopy(plain), dtype=torch.float32)
    z = torch.randn(2, 4, 8, 6, generator=torch.Generator().manual_seed(2))
    expected = plain.decode(z)
    torch.testing.assert_close(ready.decode(z), expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
    x = torch.randn(1, 3, 16, 12, generator=torch.Generator().manual_seed(3))
    for made, wanted in zip(ready.encode(x), plain.encode(x), strict=True):
        torch.testing.assert_close(made, wanted, rtol=1e-5, atol=1e-5 * float(wanted.abs().max()))


def test_what_cannot_be_packed_is_refused() -> None:
    with pytest.raises(ValueError, match="float16"):
        packed(nn.Conv2d(1, 1, 1), dtype=torch.float16)
    with pytest.raises(ValueError, match="move it to the CPU"):
        packed(nn.Conv2d(1, 1, 1, device="meta"))
