"""The UNet is DDPM's: its size, and number for number what another implementation computes with the same weights."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from carrara.nn import Sinusoidal, UNet
from nn.networks import perturb

diffusers = pytest.importorskip("diffusers")

BLOCK = {
    "norm1": "norm1",
    "conv1": "conv1",
    "embed": "time_emb_proj",
    "norm2": "norm2",
    "conv2": "conv2",
    "shortcut": "conv_shortcut",
}


def translate(theirs: dict[str, Tensor], ours: UNet) -> dict[str, Tensor]:
    """The weights of a diffusers UNet2DModel under this package's names."""
    places = {
        "embed.level.linear1": "time_embedding.linear_1",
        "embed.level.linear2": "time_embedding.linear_2",
        "inward": "conv_in",
        "norm": "conv_norm_out",
        "outward": "conv_out",
    }
    stages = {}
    for way in ("down", "up"):
        for i, level in enumerate(getattr(ours, way)):
            stages |= {f"{way}.{i}.{j}": (f"{way}_blocks.{i}", j) for j in range(len(level))}
        for i in range(len(getattr(ours, f"{way}sample"))):
            places[f"{way}sample.{i}.conv"] = f"{way}_blocks.{i}.{way}samplers.0.conv"
    stages |= {f"middle.{j}": ("mid_block", j) for j in range(2)}
    found: dict[str, Tensor] = {}
    for our, (their, j) in stages.items():
        places |= {f"{our}.block.{mine}": f"{their}.resnets.{j}.{name}" for mine, name in BLOCK.items()}
        places[f"{our}.attention.norm"] = f"{their}.attentions.{j}.group_norm"
        places[f"{our}.attention.attention.out"] = f"{their}.attentions.{j}.to_out.0"
        for kind in ("weight", "bias"):
            parts = [f"{their}.attentions.{j}.to_{part}.{kind}" for part in "qkv"]
            if parts[0] in theirs:
                found[f"{our}.attention.attention.qkv.{kind}"] = torch.cat([theirs[part] for part in parts])
    for our, their in places.items():
        found |= {
            f"{our}.{kind}": theirs[f"{their}.{kind}"] for kind in ("weight", "bias") if f"{their}.weight" in theirs
        }
    return found


def compare(ours: UNet, theirs: torch.nn.Module, size: int) -> None:
    perturb(theirs)
    ours.load_state_dict(translate(theirs.state_dict(), ours))
    x = torch.randn(2, ours.config["in_channels"], size, size, generator=torch.Generator().manual_seed(0))
    level = torch.tensor([3.0, 987.0])
    with torch.no_grad():
        expected = theirs(x, level).sample
        torch.testing.assert_close(ours.eval()(x, level), expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


def test_agrees_with_diffusers_small() -> None:
    theirs = diffusers.UNet2DModel(
        sample_size=16,
        in_channels=2,
        out_channels=4,
        block_out_channels=(32, 64, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=None,
        norm_num_groups=8,
        norm_eps=1e-5,
        freq_shift=0,
        flip_sin_to_cos=True,
        downsample_padding=1,
    )
    ours = UNet(
        in_channels=2,
        out_channels=4,
        channels=32,
        multipliers=(1, 2, 2),
        blocks=1,
        attention=(1, 2),
        groups=8,
        eps=1e-5,
        asymmetric=False,
        embedding=Sinusoidal(cosine_first=True),
    )
    compare(ours, theirs, 16)


def test_is_the_network_of_ddpm() -> None:
    """The defaults, against the published configuration for CIFAR-10: 35.7 million parameters, the same function."""
    theirs = diffusers.UNet2DModel(
        sample_size=32,
        block_out_channels=(128, 256, 256, 256),
        layers_per_block=2,
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=None,
        norm_num_groups=32,
        norm_eps=1e-6,
        freq_shift=1,
        flip_sin_to_cos=False,
        downsample_padding=0,
    )
    ours = UNet()
    count = sum(parameter.numel() for parameter in ours.parameters())
    assert 35.6e6 < count < 35.8e6
    assert count == sum(parameter.numel() for parameter in theirs.parameters())
    compare(ours, theirs, 32)


@pytest.mark.parametrize("size", [(28, 28), (7, 9), (4, 4), (13, 4)])
@pytest.mark.parametrize("asymmetric", [True, False])
def test_takes_any_size(size: tuple[int, int], asymmetric: bool) -> None:
    network = perturb(UNet(channels=8, multipliers=(1, 1, 2), blocks=1, attention=(2,), asymmetric=asymmetric))
    assert network(torch.randn(1, 3, *size), torch.zeros(1)).shape == (1, 3, *size)


def test_the_level_survives_few_channels() -> None:
    """Norms with one channel a group would take out the level again."""
    network = perturb(UNet(channels=16, multipliers=(1, 2), blocks=1))
    x = torch.randn(1, 3, 8, 8)
    with torch.no_grad():
        a, b = network(x, torch.tensor([10.0])), network(x, torch.tensor([900.0]))
    assert float((a - b).norm() / a.norm()) > 1e-3


def test_fourier_features_are_the_waves_of_x() -> None:
    """sin and cos of 2^n pi x join x as further channels; in low precision they are still those of x itself."""
    waved = perturb(UNet(channels=8, multipliers=(1, 1), blocks=1, attention=(), fourier=(0, 7)))
    assert waved.inward.in_channels == 3 * 5
    seen: list[torch.Tensor] = []
    waved.inward.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    x = torch.rand(2, 3, 8, 8) * 2 - 1
    with torch.no_grad():
        waved(x, torch.zeros(2))
        waved.bfloat16()(x, torch.zeros(2))
    angles = [2.0**n * torch.pi * x.double() for n in (0, 7)]
    expected = torch.cat([x.double(), *(f(angle) for angle in angles for f in (torch.sin, torch.cos))], 1)
    torch.testing.assert_close(seen[0].double(), expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(seen[1].double(), expected, rtol=0, atol=1e-2)


def test_starts_at_zero() -> None:
    assert not UNet(channels=8, multipliers=(1,), attention=())(torch.randn(2, 3, 8, 8), torch.zeros(2)).any()


@pytest.mark.parametrize("options", [{"attention": (4,)}, {"multipliers": ()}, {"heads": 3}])
def test_refuses(options: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        UNet(**options)  # type: ignore[arg-type]


def test_refuses_what_cannot_be_halved() -> None:
    with pytest.raises(ValueError, match="at least 4 x 4"):
        UNet(channels=8, multipliers=(1, 1, 1), attention=())(torch.zeros(1, 3, 3, 8), torch.zeros(1))
