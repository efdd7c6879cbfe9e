"""Small networks of every kind, with inputs that fit them; shared by the tests of this folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from carrara.nn import DiT, Flux, Fourier, ImageEncoder, KLAutoencoder, MMDiT, PixArt, TextTransformer, UNet
from carrara.nn.image_autoencoder import ImageAutoencoder
from carrara.nn.unet import Transformers
from carrara.nn.unet_adapter import UNetAdapter
from carrara.types import Condition

CONDITIONS: dict[str, Any] = {
    "context": 12,
    "vector": 6,
    "image_channels": 2,
    "numbers": ("augmentation", "height"),
}


class Case(NamedTuple):
    build: Callable[[], nn.Module]
    inputs: Callable[[int], tuple[Any, ...]]
    call: Callable[..., tuple[Tensor, ...]]


def perturb(module: nn.Module, seed: int = 0) -> nn.Module:
    """Move every parameter a little, so that what starts at zero does not hide what is behind it."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return module.eval()


def pictures(rows: int, channels: int = 3, height: int = 8, width: int = 12) -> Tensor:
    return torch.randn(rows, channels, height, width, generator=torch.Generator().manual_seed(2))


def condition(rows: int) -> Condition:
    """One of everything: tokens of which some are padding, a vector, two numbers and an image of 8 x 12."""
    generator = torch.Generator().manual_seed(1)
    lengths = torch.arange(rows) % 4 + 1
    return Condition(
        tokens=torch.randn(rows, 5, 12, generator=generator),
        mask=torch.arange(5)[None] < lengths[:, None],
        vector=torch.randn(rows, 6, generator=generator),
        numbers={"augmentation": torch.rand(rows, generator=generator), "height": torch.arange(rows) + 64.0},
        image=torch.randn(rows, 2, 8, 12, generator=generator),
    )


def rows_of(argument: Any, index: slice) -> Any:
    """The chosen rows of a tensor or a condition."""
    return argument.rows(index) if isinstance(argument, Condition) else argument[index]


def _untold(rows: int) -> tuple[Any, ...]:
    return pictures(rows), torch.linspace(0.0, 999.0, rows)


def _told(rows: int) -> tuple[Any, ...]:
    return (*_untold(rows), condition(rows))


def _guided(rows: int) -> tuple[Any, ...]:
    return (*_untold(rows), replace(condition(rows), numbers={"guidance": torch.arange(rows) + 1.5}))


def _captioned(rows: int) -> tuple[Any, ...]:
    numbers = {name: torch.arange(rows) + 0.5 for name in ("height", "width", "aspect_ratio")}
    return (*_untold(rows), replace(condition(rows), vector=None, image=None, numbers=numbers))


def _words(rows: int) -> tuple[Any, ...]:
    return torch.arange(rows * 5).reshape(rows, 5) % 11, condition(rows).mask


def _large(rows: int) -> tuple[Any, ...]:
    return (pictures(rows, 3, 16, 24),)


def _single(network: nn.Module, *arguments: Any) -> tuple[Tensor, ...]:
    return (network(*arguments),)


def _several(network: nn.Module, *arguments: Any) -> tuple[Tensor, ...]:
    return network(*arguments)


def _autoencode(network: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
    assert isinstance(network, KLAutoencoder | ImageAutoencoder)
    mean, logvar = network.encode(x)
    return mean, logvar, network.decode(mean)


def _autoencoder(**options: Any) -> Case:
    return Case(lambda: KLAutoencoder(**options), _large, _autoencode)


CASES = {
    "unet": Case(lambda: UNet(channels=16, multipliers=(1, 2), blocks=1), _untold, _single),
    "unet told": Case(
        lambda: UNet(
            channels=8,
            multipliers=(1, 3, 2),
            blocks=2,
            attention=(1, 2),
            heads=2,
            out_channels=6,
            asymmetric=False,
            dropout=0.1,
            embedding=Fourier(bandwidth=0.01),
            **CONDITIONS,
        ),
        _told,
        _single,
    ),
    "unet of transformers": Case(
        lambda: UNet(
            channels=8,
            multipliers=(1, 2),
            blocks=1,
            attention=(),
            groups=4,
            group_width=1,
            transformers=Transformers(depth=(0, 2), heads=(1, 4), middle=1),
            token_norm=False,
            joint_features=6,
            **CONDITIONS,
        ),
        _told,
        _single,
    ),
    "dit": Case(lambda: DiT(in_channels=3, out_channels=3, size=8, width=32, depth=2, heads=4), _untold, _single),
    "dit told": Case(
        lambda: DiT(
            in_channels=3,
            out_channels=6,
            size=(8, 12),
            patch=4,
            width=24,
            depth=2,
            heads=2,
            qk_norm=True,
            ratio=2.5,
            positions="learned",
            activation="silu",
            dropout=0.1,
            **CONDITIONS,
        ),
        _told,
        _single,
    ),
    "mmdit told": Case(
        lambda: MMDiT(
            in_channels=3, out_channels=6, size=(8, 12), patch=4, width=24, depth=2, heads=2, ratio=2.5, **CONDITIONS
        ),
        _told,
        _single,
    ),
    "mmdit as sd3": Case(
        lambda: MMDiT(
            in_channels=3,
            out_channels=3,
            size=8,
            width=16,
            depth=3,
            heads=2,
            activation="gelu-tanh",
            token_norm=False,
            vector_hidden=True,
            table=7,
            dual=(0, 2),
            **CONDITIONS,
        ),
        _told,
        _single,
    ),
    "flux": Case(
        lambda: Flux(
            in_channels=3,
            out_channels=3,
            context=12,
            vector=6,
            width=16,
            depth=2,
            single=2,
            heads=2,
            axes=(2, 4, 2),
            guidance=True,
            image_channels=2,
        ),
        _guided,
        _single,
    ),
    "pixart": Case(
        lambda: PixArt(
            in_channels=3, out_channels=6, size=(8, 12), context=12, width=24, depth=2, heads=2, sizes=True, spread=2.0
        ),
        _captioned,
        _single,
    ),
    "autoencoder of stable diffusion": Case(
        lambda: ImageAutoencoder(widths=(8, 16), blocks=1, groups=4), _large, _autoencode
    ),
    "adapter": Case(
        lambda: UNetAdapter(channels=3, widths=(8, 16), fold=2, halved=(1,)), lambda rows: (pictures(rows),), _several
    ),
    "autoencoder": _autoencoder(
        latent=4, down=8, patch=2, widths=(8, 12, 20), encoder_blocks=(1, 0, 1), decoder_blocks=(0, 1, 2)
    ),
    "autoencoder rms": _autoencoder(
        latent=5, down=4, patch=4, widths=(16,), encoder_blocks=(1,), decoder_blocks=(1,), norm="rms"
    ),
    "autoencoder none": _autoencoder(
        latent=3, down=2, patch=1, widths=(8, 8), encoder_blocks=(1, 1), decoder_blocks=(1, 1), norm="none"
    ),
    "image encoder": Case(lambda: ImageEncoder(width=10, patch=2, widths=(8, 16), blocks=(1, 1)), _large, _single),
    "text": Case(
        lambda: TextTransformer(vocabulary=11, width=16, depth=2, heads=2, length=5, pooled=7), _words, _several
    ),
}
