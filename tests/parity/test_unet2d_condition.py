"""The UNets of Stable Diffusion 1, 2 and XL compute what diffusers' own class does with the same weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from carrara.errors import RecipeError
from carrara.nn.unet import Transformers, UNet
from carrara.store.diffusers import unet2d_condition
from carrara.types import Condition
from parity.models import SMALL_UNET, UNETS, account, built, close, normal, twin

diffusers = pytest.importorskip("diffusers")


def ask(theirs: Any, ours: UNet, size: tuple[int, int] = (8, 12), **more: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """The same question to both: rows at different levels, with everything that the network reads."""
    extra = ours.config["image_channels"]
    x, image = normal(2, 4, *size), normal(2, extra, *size, seed=1) if extra else None
    tokens, level = normal(2, 7, 12, seed=2), torch.tensor([3.0, 987.0])
    width, names = ours.config["vector"], ours.config["numbers"]
    vector = None if width is None else normal(2, width, seed=3)
    numbers = {name: 100.0 * (torch.arange(2) + i) for i, name in enumerate(names)}
    joined = torch.cat([x, image], 1) if image is not None else x
    if ours.config["guidance_features"] is not None:
        numbers["guidance"] = torch.tensor([1.0, 7.5])
        waves = diffusers.LatentConsistencyModelPipeline.get_guidance_scale_embedding
        more["timestep_cond"] = waves(None, numbers["guidance"] - 1, ours.config["guidance_features"])
    if not ours.config["vector_bias"]:
        more["class_labels"] = torch.tensor([4, 1])
        vector = torch.nn.functional.one_hot(more["class_labels"], width).float()
    elif names:
        more["added_cond_kwargs"] = {"text_embeds": vector, "time_ids": torch.stack(list(numbers.values()), 1)}
    elif vector is not None:
        more["class_labels"] = vector
    with torch.no_grad():
        expected = theirs(joined, level, tokens, **more).sample
        found = ours(x, level, Condition(tokens=tokens, image=image, vector=vector, numbers=numbers))
    return found, expected


@pytest.mark.parametrize("case", UNETS)
def test_computes_what_diffusers_does(case: str) -> None:
    theirs = diffusers.UNet2DConditionModel(**UNETS[case])
    close(*ask(theirs, twin(unet2d_condition, theirs)))


def test_any_size_of_latents() -> None:
    theirs = diffusers.UNet2DConditionModel(**SMALL_UNET)
    ours = twin(unet2d_condition, theirs)
    for size in ((7, 9), (4, 5)):
        close(*ask(theirs, ours, size))


def test_each_block_computes_what_its_counterpart_does() -> None:
    theirs = diffusers.UNet2DConditionModel(**UNETS["sdxl"])
    ours = twin(unet2d_condition, theirs)
    seen: dict[str, list[torch.Tensor]] = {"ours": [], "theirs": []}

    def note(whose: str) -> Any:
        return lambda _module, _given, made: seen[whose].append(made if isinstance(made, torch.Tensor) else made[0])

    for i in range(3):
        ours.down[i][-1].register_forward_hook(note("ours"))
        last = theirs.down_blocks[i].attentions if i else theirs.down_blocks[i].resnets
        last[-1].register_forward_hook(note("theirs"))
    ours.middle[-1].register_forward_hook(note("ours"))
    theirs.mid_block.register_forward_hook(note("theirs"))
    for i in range(3):
        ours.up[i][-1].register_forward_hook(note("ours"))
        last = theirs.up_blocks[i].resnets if i == 2 else theirs.up_blocks[i].attentions
        last[-1].register_forward_hook(note("theirs"))
    ask(theirs, ours)
    assert len(seen["ours"]) == len(seen["theirs"]) == 7
    for found, expected in zip(seen["ours"], seen["theirs"], strict=True):
        close(found, expected)


def test_the_refiner_is_told_apart() -> None:
    assert unet2d_condition.network(UNETS["sdxl"])["numbers"] == list(unet2d_condition.SIZES)
    assert unet2d_condition.network(UNETS["refiner"])["numbers"] == list(unet2d_condition.REFINER_SIZES)


def test_every_key_is_known_or_refused() -> None:
    none = {"reverse_transformer_layers_per_block": [[1]], "encoder_hid_dim": 8, "encoder_hid_dim_type": "text_proj",
            "num_attention_heads": 8, "class_embed_type": "timestep", "addition_embed_type": "image",
            "num_class_embeds": 0, "time_embedding_dim": 7, "time_embedding_act_fn": "silu",
            "timestep_post_act": "silu", "time_cond_proj_dim": 0.5, "cross_attention_norm": "layer_norm"}  # fmt: skip
    other = {"center_input_sample": True, "only_cross_attention": [True, False, False, False], "act_fn": "gelu",
             "mid_block_scale_factor": 2, "norm_num_groups": None, "dual_cross_attention": True,
             "resnet_time_scale_shift": "scale_shift", "resnet_skip_time_act": True, "resnet_out_scale_factor": 2.0,
             "time_embedding_type": "fourier", "conv_in_kernel": 5, "conv_out_kernel": 1, "attention_type": "gated",
             "class_embeddings_concat": True, "mid_block_only_cross_attention": True,
             "mid_block_type": "UNetMidBlock2DSimpleCrossAttn", "down_block_types": ["KDownBlock2D"] * 4,
             "up_block_types": ["UpBlock2D"] * 4, "block_out_channels": [320, 480], "layers_per_block": [1, 2, 2, 2],
             "downsample_padding": 2, "cross_attention_dim": [1, 2, 3, 4], "attention_head_dim": [8, 8],
             "transformer_layers_per_block": [[1, 2]] * 4}  # fmt: skip
    account(unet2d_condition, diffusers.UNet2DConditionModel, {**none, **other})


def test_a_key_of_nobody_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"no key 'layer_per_block'; did you mean \"layers_per_block\""):
        unet2d_condition.network({"layer_per_block": 2})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"token_norm": True}, "token_norm"),
        ({"transformers": None}, "plain attention"),
        ({"fourier": [7]}, "fourier"),
        ({"embedding": {"kind": "fourier"}}, "embedding"),
        ({"numbers": ["augmentation"]}, "numbers"),
        ({"adapters": {"picture": 4}}, "adapters"),
        ({"group_width": 4}, "groups"),
        ({"middle": 3}, "middle"),
    ],
)
def test_what_the_class_cannot_say_is_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        unet2d_condition.config({**unet2d_condition.network(SMALL_UNET), **change})


@pytest.mark.parametrize(
    ("change", "parameters"),
    [
        ({"cross_attention_dim": 768}, 859_520_964),
        ({"cross_attention_dim": 768, "in_channels": 9}, None),
        ({"cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20], "use_linear_projection": True}, None),
        (
            {"cross_attention_dim": 2048, "attention_head_dim": [5, 10, 20], "use_linear_projection": True,
             "block_out_channels": [320, 640, 1280], "transformer_layers_per_block": [1, 2, 10],
             "down_block_types": UNETS["sdxl"]["down_block_types"], "up_block_types": UNETS["sdxl"]["up_block_types"],
             "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
             "projection_class_embeddings_input_dim": 2816},
            2_567_463_684,
        ),
    ],
    ids=["sd1", "inpainting", "sd2", "sdxl"],
)  # fmt: skip
def test_full_size_is_the_published_one(change: dict[str, Any], parameters: int | None) -> None:
    with torch.device("meta"):
        theirs = diffusers.UNet2DConditionModel(**change)
        ours = built(unet2d_condition.network(change))
    expected = sum(parameter.numel() for parameter in theirs.parameters())
    assert sum(parameter.numel() for parameter in ours.parameters()) == expected
    assert parameters in (None, expected)
    names = unet2d_condition.table(unet2d_condition.network(change))
    assert set(names) == set(ours.state_dict())


@pytest.mark.parametrize(
    "wrong",
    [
        {"context": None},
        {"transformers": Transformers(depth=(1,), heads=(2, 2))},
        {"numbers": (), "joint_features": 8},
    ],
)
def test_settings_that_do_not_fit_together_are_refused(wrong: dict[str, Any]) -> None:
    options = {"channels": 8, "multipliers": (1, 2), "context": 8, "attention": (), **wrong}
    with pytest.raises(ValueError, match="give"):
        UNet(**{"transformers": Transformers(depth=(1, 1), heads=(2, 2)), **options})


def test_transformers_begin_as_the_network_without_them() -> None:
    """Zero at the start, as every part that is added to a network."""
    small: dict[str, Any] = {"channels": 8, "multipliers": (1, 2), "blocks": 1, "attention": (), "context": 6}
    torch.manual_seed(0)
    network = UNet(**small, transformers=Transformers(depth=(1, 0), heads=(2, 2), middle=2))
    with torch.no_grad():
        network.outward.weight.normal_()
        x, level, tokens = normal(1, 3, 8, 8), torch.zeros(1), normal(1, 3, 6, seed=1)
        first, second = (network(x, level, Condition(tokens=scale * tokens)) for scale in (1.0, 5.0))
        assert torch.equal(first, second)
        network.middle[0].transformer.out.weight.normal_()
        assert not torch.equal(first, network(x, level, Condition(tokens=tokens)))
