"""ControlNets and T2I-adapters, and UNets under them, compute what diffusers' own classes do with the same weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from carrara.errors import RecipeError
from carrara.nn.control import Controlled
from carrara.nn.unet_adapter import UNetAdapter
from carrara.store.diffusers import controlnet, t2i_adapter, unet2d_condition
from carrara.types import Condition
from parity.models import SMALL_UNET, UNETS, account, built, close, normal, twin

diffusers = pytest.importorskip("diffusers")

CONTROLS: dict[str, dict[str, Any]] = {
    name: {key: value for key, value in UNETS[name].items() if key != "up_block_types"}
    for name in ("sd1", "sd2", "sdxl", "middle alone")
}
ADAPTERS: dict[str, tuple[str, dict[str, Any]]] = {
    "full": ("sd1", {"channels": [8, 16, 16]}),
    "light": ("sd1", {"channels": [8, 16], "adapter_type": "light_adapter", "num_res_blocks": 3}),
    "xl": ("sdxl", {"channels": [8, 16, 16, 16], "adapter_type": "full_adapter_xl", "downscale_factor": 16}),
}
LEVEL = torch.tensor([3.0, 987.0])


def control(case: str) -> tuple[Any, Any]:
    theirs = diffusers.ControlNetModel(**CONTROLS[case], conditioning_embedding_out_channels=(4, 8, 8, 12))
    return theirs, twin(controlnet, theirs, role="control_network")


def seen(scale: Sequence[float] = (1.0, 1.0), seed: int = 5, times: int = 8) -> tuple[Tensor, Tensor]:
    """A picture as the pipelines give it, in [0, 1], and as it is told here, with how strongly it counts."""
    picture = torch.rand(2, 3, 8 * times, 12 * times, generator=torch.Generator().manual_seed(seed))
    strength = torch.tensor(scale).view(2, 1, 1, 1).expand(2, 1, 8 * times, 12 * times)
    return picture, torch.cat([2 * picture - 1, strength], 1)


def told(case: str) -> tuple[Condition, dict[str, Any]]:
    condition = Condition(tokens=normal(2, 7, 12, seed=2))
    if case != "sdxl":
        return condition, {}
    numbers = {name: 100.0 * (torch.arange(2) + i) for i, name in enumerate(unet2d_condition.SIZES)}
    vector = normal(2, 8, seed=3)
    time_ids = torch.stack(list(numbers.values()), 1)
    more = {"added_cond_kwargs": {"text_embeds": vector, "time_ids": time_ids}}
    return Condition(tokens=condition.tokens, vector=vector, numbers=numbers), more


@pytest.mark.parametrize("case", CONTROLS)
def test_a_control_computes_what_diffusers_does(case: str) -> None:
    theirs, ours = control(case)
    (picture, mine), (condition, more) = seen(), told(case)
    x = normal(2, 4, 8, 12)
    with torch.no_grad():
        down, middle = theirs(x, LEVEL, condition.tokens, picture, return_dict=False, **more)
        found = ours(x, LEVEL, condition, mine)
    assert len(found) == len(down) + 1
    for feature, expected in zip(found, (*down, middle), strict=True):
        close(feature, expected)


@pytest.mark.parametrize("case", ["sd1", "sdxl", "inpainting"])
def test_a_controlled_unet_computes_what_diffusers_does(case: str) -> None:
    """Two controls, each with a scale of its own; an inpainting UNet's control sees the latents alone."""
    theirs = diffusers.UNet2DConditionModel(**UNETS[case])
    ours = twin(unet2d_condition, theirs)
    controls = [control("sd1" if case == "inpainting" else case) for _ in range(2)]
    pictures, scales = [seen((scale,) * 2, seed) for scale, seed in ((0.7, 5), (1.3, 6))], (0.7, 1.3)
    condition, more = told(case)
    x, image = normal(2, 4, 8, 12), normal(2, 5, 8, 12, seed=1) if case == "inpainting" else None
    total: list[Tensor] = []
    with torch.no_grad():
        for (net, _), (picture, _), scale in zip(controls, pictures, scales, strict=True):
            down, middle = net(x, LEVEL, condition.tokens, picture, scale, return_dict=False, **more)
            total = [a + b for a, b in zip(total, (*down, middle), strict=True)] if total else [*down, middle]
        expected = theirs(
            x if image is None else torch.cat([x, image], 1), LEVEL, condition.tokens,
            down_block_additional_residuals=total[:-1], mid_block_additional_residual=total[-1], **more,
        ).sample  # fmt: skip
        whole = Controlled(ours, {"a": controls[0][1], "b": controls[1][1]})
        inputs = {"a": pictures[0][1], "b": pictures[1][1]}
        given = Condition(tokens=condition.tokens, vector=condition.vector, numbers=condition.numbers, image=image,
                          controls=inputs)  # fmt: skip
        close(whole(x, LEVEL, given), expected)


@pytest.mark.parametrize("kind", ADAPTERS)
def test_an_adapted_unet_computes_what_diffusers_does(kind: str) -> None:
    case, options = ADAPTERS[kind]
    theirs = diffusers.UNet2DConditionModel(**UNETS[case])
    ours = twin(unet2d_condition, theirs)
    their_adapter = diffusers.T2IAdapter(**options)
    adapter = twin(t2i_adapter, their_adapter, role="control_network")
    (picture, mine), (condition, more) = seen((0.8, 0.8)), told(case)
    x = normal(2, 4, 8, 12)
    with torch.no_grad():
        features = their_adapter(picture)
        for found, expected in zip(adapter(mine), features, strict=True):
            close(found, expected)
        scaled = [0.8 * feature for feature in features]
        expected = theirs(x, LEVEL, condition.tokens, down_intrablock_additional_residuals=scaled, **more).sample
        given = Condition(tokens=condition.tokens, vector=condition.vector, numbers=condition.numbers,
                          controls={"sketch": mine})  # fmt: skip
        close(Controlled(ours, {"sketch": adapter})(x, LEVEL, given), expected)


def test_an_adapter_without_its_picture_adds_nothing() -> None:
    ours = built(unet2d_condition.network(SMALL_UNET))
    whole = Controlled(ours, {"sketch": UNetAdapter(channels=4, widths=(8, 16, 16), halved=(1, 2))})
    condition, _ = told("sd1")
    x, (_, mine) = normal(2, 4, 8, 12), seen((1.0, 0.0))
    with torch.no_grad():
        torch.nn.init.normal_(ours.outward.weight)
        plain = ours(x, LEVEL, condition)
        found = whole(x, LEVEL, Condition(tokens=condition.tokens, controls={"sketch": mine}))
    assert torch.equal(found[1], plain[1])
    assert not torch.allclose(found[0], plain[0])


def test_pictures_of_other_sizes_are_refused() -> None:
    _, ours = control("sd1")
    with pytest.raises(ValueError, match="8 times x's size"):
        ours(normal(2, 4, 8, 12), LEVEL, told("sd1")[0], seen(times=4)[1])
    with pytest.raises(ValueError, match="multiples of 16"):
        UNetAdapter(channels=4, widths=(8, 8), halved=(1,))(normal(2, 4, 24, 24))
    with pytest.raises(ValueError, match="one for each of them"):
        built(unet2d_condition.network(SMALL_UNET))(
            normal(1, 4, 8, 8), LEVEL[:1], Condition(tokens=normal(1, 2, 12)), within=[torch.zeros(1)] * 5
        )


def test_every_key_is_known_or_refused() -> None:
    account(
        controlnet,
        diffusers.ControlNetModel,
        {"mid_block_type": None, "only_cross_attention": True, "mid_block_scale_factor": 2, "act_fn": "gelu",
         "norm_num_groups": None, "encoder_hid_dim": 8, "encoder_hid_dim_type": "text_proj", "num_attention_heads": 8,
         "class_embed_type": "simple_projection", "addition_embed_type": "text", "num_class_embeds": 5,
         "resnet_time_scale_shift": "scale_shift", "controlnet_conditioning_channel_order": "bgr",
         "conditioning_embedding_out_channels": None, "global_pool_conditions": True, "conditioning_channels": None,
         "down_block_types": ["DownBlock2D"], "downsample_padding": 2},
    )  # fmt: skip
    account(
        t2i_adapter,
        diffusers.T2IAdapter,
        {"in_channels": "3", "channels": [], "num_res_blocks": 0, "downscale_factor": 0, "adapter_type": "heavy"},
    )


def test_what_the_classes_cannot_say_is_refused() -> None:
    table = controlnet.network({key: value for key, value in SMALL_UNET.items() if key != "up_block_types"})
    with pytest.raises(RecipeError, match="stem"):
        controlnet.config({**table, "stem": []})
    with pytest.raises(RecipeError, match="middle"):
        controlnet.config({**table, "network": {**table["network"], "middle": 0}})
    with pytest.raises(RecipeError, match="halved"):
        t2i_adapter.config({**t2i_adapter.network({}), "halved": [0]})
    with pytest.raises(RecipeError, match="third"):
        t2i_adapter.network({"adapter_type": "full_adapter_xl", "channels": [4, 4, 4, 8]})


@pytest.mark.parametrize("case", ["sd1", "sdxl"])
def test_full_size_has_every_tensor(case: str) -> None:
    large: dict[str, Any] = {"cross_attention_dim": 768}
    if case == "sdxl":
        large = {"cross_attention_dim": 2048, "attention_head_dim": [5, 10, 20], "use_linear_projection": True,
                 "block_out_channels": [320, 640, 1280], "transformer_layers_per_block": [1, 2, 10],
                 "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
                 "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
                 "projection_class_embeddings_input_dim": 2816}  # fmt: skip
    with torch.device("meta"):
        theirs, ours = diffusers.ControlNetModel(**large), built(controlnet.network(large), "control_network")
    assert set(controlnet.table(controlnet.network(large))) == set(ours.state_dict())
    counts = [sum(parameter.numel() for parameter in each.parameters()) for each in (ours, theirs)]
    assert counts[0] == counts[1]
