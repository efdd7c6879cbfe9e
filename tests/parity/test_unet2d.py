"""The UNets of DDPM compute what diffusers' UNet2DModel does with the same weights, and ours can be written as one."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from carrara.config import describe
from carrara.errors import RecipeError
from carrara.nn.unet import UNet
from carrara.store import kinds
from carrara.store.diffusers import unet2d
from carrara.store.diffusers.tensors import exported
from carrara.types import Condition
from nn.networks import perturb
from parity.models import account, close, normal, twin

diffusers = pytest.importorskip("diffusers")

SMALL: dict[str, Any] = {"block_out_channels": [8, 16, 16], "norm_num_groups": 4, "layers_per_block": 1,
                         "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D"],
                         "up_block_types": ["UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
                         "attention_head_dim": None}  # fmt: skip
CASES: dict[str, dict[str, Any]] = {
    "ddpm": {**SMALL, "freq_shift": 1, "flip_sin_to_cos": False, "downsample_padding": 0, "norm_eps": 1e-6},
    "heads": {**SMALL, "attention_head_dim": 8, "out_channels": 6},
    "no middle": {**SMALL, "mid_block_type": None, "in_channels": 4},
    "narrow groups": {**SMALL, "norm_num_groups": 8, "attn_norm_num_groups": 8},
}


@pytest.mark.parametrize("case", CASES)
def test_computes_what_diffusers_does(case: str) -> None:
    theirs = diffusers.UNet2DModel(**CASES[case])
    ours = twin(unet2d, theirs)
    x, level = normal(2, theirs.config.in_channels, 8, 12), torch.tensor([3.0, 987.0])
    own, joined = ours.config["in_channels"], ours.config["image_channels"]
    condition = [Condition(image=x[:, own:])] if joined else []
    with torch.no_grad():
        close(ours(x[:, :own], level, *condition), theirs(x, level).sample)


@pytest.mark.parametrize(
    "options",
    [
        {"channels": 32, "groups": 8},
        {"channels": 16, "groups": 4, "attention": (0, 2), "multipliers": (1, 1, 2), "head_width": 8},
        {"channels": 16, "groups": 4, "attention": (), "heads": 4, "image_channels": 3, "asymmetric": False},
    ],
)
def test_a_network_of_ones_own_is_the_same_in_diffusers(options: dict[str, Any]) -> None:
    ours = perturb(UNet(**{"multipliers": (1, 2), "blocks": 1, **options}))
    table = describe(ours, kinds())
    theirs = diffusers.UNet2DModel.from_config(unet2d.config(table)).eval()
    theirs.load_state_dict(exported(unet2d.table(table), ours.state_dict()))
    joined = ours.config["image_channels"]
    x, image, level = normal(2, 3, 8, 8), normal(2, joined, 8, 8, seed=1), torch.tensor([3.0, 987.0])
    with torch.no_grad():
        found = ours(x, level, *([Condition(image=image)] if joined else []))
        close(theirs(torch.cat([x, image], 1), level).sample, found)


def test_a_network_of_classes_is_the_same_in_diffusers_and_back() -> None:
    ours = perturb(UNet(channels=16, groups=4, multipliers=(1, 2), blocks=1, vector=4))
    table, tensors = unet2d.classed(describe(ours, kinds()), ours.state_dict())
    theirs = diffusers.UNet2DModel.from_config(unet2d.config(table)).eval()
    theirs.load_state_dict(exported(unet2d.table(table), tensors))
    x, level, label = normal(2, 3, 8, 8), torch.tensor([3.0, 987.0]), torch.tensor([3, 1])
    told = Condition(vector=torch.nn.functional.one_hot(label, 4).float())
    with torch.no_grad():
        close(theirs(x, level, label).sample, ours(x, level, told))
        close(twin(unet2d, theirs)(x, level, told), theirs(x, level, label).sample)
    assert unet2d.classed(table, tensors)[0] == table


def test_every_key_is_known_or_refused() -> None:
    account(
        unet2d,
        diffusers.UNet2DModel,
        {"center_input_sample": True, "time_embedding_type": "fourier", "time_embedding_dim": 7,
         "down_block_types": ["SkipDownBlock2D"] * 4, "mid_block_type": "UNetMidBlock2DCrossAttn",
         "up_block_types": ["UpBlock2D"] * 4, "mid_block_scale_factor": 1.5, "downsample_type": "resnet",
         "upsample_type": "resnet", "act_fn": "gelu", "attention_head_dim": 9, "attn_norm_num_groups": 16,
         "resnet_time_scale_shift": "scale_shift", "add_attention": False, "class_embed_type": "timestep",
         "num_class_embeds": 0, "layers_per_block": 0, "norm_num_groups": 0, "downsample_padding": 2},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"context": 8}, "tokens"),
        ({"vector": 8}, "classed"),
        ({"numbers": ["height"]}, "numbers"),
        ({"fourier": [7]}, "fourier"),
        ({"group_width": 4}, "groups"),
        ({"middle": 3}, "middle"),
        ({"attention": [0, 1], "heads": 2}, "heads"),
        ({"kind": "dit"}, "kind 'dit'"),
        ({"width": 8}, "no settings"),
    ],
)
def test_what_the_class_cannot_say_is_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        unet2d.config({**unet2d.network(SMALL), **change})
