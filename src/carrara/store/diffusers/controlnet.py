"""diffusers' ControlNetModel, for Stable Diffusion and SDXL, as our UNetControl.

Its conditioning scale is the last plane of the control's picture, which is in [-1, 1] here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from carrara.errors import RecipeError
from carrara.store.diffusers import parts, unet2d_condition
from carrara.store.diffusers.keys import Keys
from carrara.store.diffusers.tensors import Place, Table
from carrara.store.diffusers.unet_parts import descent, settings, written

__all__ = ["DEFAULTS", "config", "network", "table"]

_NAME = "ControlNetModel"
_SHARED = (
    "in_channels", "flip_sin_to_cos", "freq_shift", "down_block_types", "mid_block_type", "only_cross_attention",
    "block_out_channels", "layers_per_block", "downsample_padding", "mid_block_scale_factor", "act_fn",
    "norm_num_groups", "norm_eps", "cross_attention_dim", "transformer_layers_per_block", "encoder_hid_dim",
    "encoder_hid_dim_type", "attention_head_dim", "num_attention_heads", "use_linear_projection", "class_embed_type",
    "addition_embed_type", "addition_time_embed_dim", "num_class_embeds", "upcast_attention",
    "resnet_time_scale_shift", "projection_class_embeddings_input_dim", "addition_embed_type_num_heads",
)  # fmt: skip

DEFAULTS: dict[str, Any] = {
    **{key: unet2d_condition.DEFAULTS[key] for key in _SHARED},
    "conditioning_channels": 3,
    "controlnet_conditioning_channel_order": "rgb",
    "conditioning_embedding_out_channels": [16, 32, 96, 256],
    "global_pool_conditions": False,
}


def network(config: Mapping[str, Any]) -> dict[str, Any]:
    """Our table for a config.json; RecipeError for a key that is not known or a value that has no counterpart."""
    keys = Keys(_NAME, config, defaults=DEFAULTS)
    keys.only("mid_block_type", "UNetMidBlock2DCrossAttn", "UNetMidBlock2D", why="expected a middle")
    for key in ("class_embed_type", "num_class_embeds"):
        keys.only(key, None, why="a control here reads no classes; expected null")
    found = unet2d_condition.conditioned(keys)
    found |= {"in_channels": keys.size("in_channels"), "out_channels": keys.size("in_channels")}
    keys.only("controlnet_conditioning_channel_order", "rgb", why="pictures are red, green and blue here")
    keys.only("global_pool_conditions", False, why="a control tells its places apart here; expected false")
    stem = keys.sizes("conditioning_embedding_out_channels")
    if not stem:
        keys.refuse("conditioning_embedding_out_channels", "expected a width at least")
    channels = keys.size("conditioning_channels") + 1
    keys.finish()
    return {"kind": "unet", "network": found, "channels": channels, "stem": list(stem)}


def config(network: Mapping[str, Any]) -> dict[str, Any]:
    """The config.json for our table; RecipeError for what this class cannot say."""
    _check(network)
    s = settings(network["network"])
    keys = {**written(s, name=_NAME), **unet2d_condition.conditions(s, name=_NAME)}
    if s["middle"] == 0 or s["guidance_features"] or (s["vector"] and s["joint_features"] is None):
        raise RecipeError(f"{_NAME} has a middle, and reads no guidance, nor a vector alone; it needs such a UNet")
    return {
        "_class_name": _NAME,
        **DEFAULTS,
        **{key: value for key, value in keys.items() if key in DEFAULTS},
        "conditioning_channels": network["channels"] - 1,
        "conditioning_embedding_out_channels": list(network["stem"]),
    }


def _check(network: Mapping[str, Any]) -> None:
    if network.get("kind") != "unet" or not network.get("stem"):
        raise RecipeError(f'{_NAME} holds controls of kind "unet" that have a stem, and this one is not such a one')


def table(network: Mapping[str, Any]) -> Table:
    """Our tensors and theirs."""
    _check(network)
    s, stem = settings(network["network"]), network["stem"]
    found: dict[str, Place] = descent(s) | parts.both("hint.0", "controlnet_cond_embedding.conv_in")
    for i in range(2 * len(stem) - 2):
        found |= parts.both(f"hint.{2 * i + 2}", f"controlnet_cond_embedding.blocks.{i}")
    found |= parts.both("seen", "controlnet_cond_embedding.conv_out")
    skips = len(s.widths) * (s["blocks"] + 1)
    for i in range(skips):
        found |= parts.both(f"beside.{i}", f"controlnet_down_blocks.{i}")
    return found | parts.both(f"beside.{skips}", "controlnet_mid_block")
