"""diffusers' UNet2DModel: the UNet of DDPM, with plain attention, as ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from carrara.errors import RecipeError
from carrara.store.diffusers.keys import Keys
from carrara.store.diffusers.tensors import Table
from carrara.store.diffusers.unet_parts import (
    TRAINING,
    Settings,
    basics,
    channels,
    classes,
    settings,
    types,
    whole,
    written,
)

__all__ = ["DEFAULTS", "classed", "config", "network", "table"]

_NAME = "UNet2DModel"
_DOWN, _PLAIN_DOWN = "AttnDownBlock2D", "DownBlock2D"
_UP, _PLAIN_UP = "AttnUpBlock2D", "UpBlock2D"
_MIDDLE = {"UNetMidBlock2D": 2, None: 0}

DEFAULTS: dict[str, Any] = {
    "sample_size": None, "in_channels": 3, "out_channels": 3, "center_input_sample": False,
    "time_embedding_type": "positional", "time_embedding_dim": None, "freq_shift": 0, "flip_sin_to_cos": True,
    "down_block_types": [_PLAIN_DOWN, _DOWN, _DOWN, _DOWN], "mid_block_type": "UNetMidBlock2D",
    "up_block_types": [_UP, _UP, _UP, _PLAIN_UP], "block_out_channels": [224, 448, 672, 896], "layers_per_block": 2,
    "mid_block_scale_factor": 1, "downsample_padding": 1, "downsample_type": "conv", "upsample_type": "conv",
    "dropout": 0.0, "act_fn": "silu", "attention_head_dim": 8, "norm_num_groups": 32, "attn_norm_num_groups": None,
    "norm_eps": 1e-5, "resnet_time_scale_shift": "default", "add_attention": True, "class_embed_type": None,
    "num_class_embeds": None, "num_train_timesteps": None,
}  # fmt: skip


def network(config: Mapping[str, Any]) -> dict[str, Any]:
    """Our table for a config.json; RecipeError for a key that is not known or a value that has no counterpart."""
    keys = Keys(_NAME, config, defaults=DEFAULTS, elsewhere=TRAINING)
    found = {**basics(keys), **channels(keys), "dropout": keys.number("dropout")}
    count = len(found["multipliers"])
    down = keys["down_block_types"]
    if not isinstance(down, list | tuple) or len(down) != count or not set(down) <= {_DOWN, _PLAIN_DOWN}:
        keys.refuse("down_block_types", f"expected {count} of {_DOWN} and {_PLAIN_DOWN}, one for each resolution")
    up = [name.replace("Down", "Up") for name in reversed(down)]
    if list(keys["up_block_types"]) != up:
        keys.refuse("up_block_types", f"the way up mirrors the way down here; expected {up}")
    found["attention"] = [i for i, name in enumerate(down) if name == _DOWN]
    found["middle"] = keys.choice("mid_block_type", _MIDDLE)
    if keys["attention_head_dim"] is not None:
        width = keys.size("attention_head_dim")
        attending = [multiple * found["channels"] for multiple in found["multipliers"]]
        attending = [attending[i] for i in found["attention"]] + attending[-1:] * (found["middle"] > 0)
        if width < 1 or any(each % width for each in attending):
            keys.refuse("attention_head_dim", f"expected a width of heads that divides the channels {attending}")
        found["head_width"] = width
    why = "networks here have no such part"
    keys.only("center_input_sample", False, why="x is not moved here; expected false")
    keys.only("time_embedding_type", "positional", why="expected 'positional'")
    keys.only("time_embedding_dim", None, 4 * found["channels"], why="expected four times the first channels")
    keys.only("downsample_type", "conv", why=f"{why}; expected 'conv'")
    keys.only("upsample_type", "conv", why=f"{why}; expected 'conv'")
    keys.only("attn_norm_num_groups", None, found["groups"], why="all norms have as many groups here; expected null")
    keys.only("add_attention", True, why="the middle has attention here; expected true")
    keys.only("class_embed_type", None, why=f"{why}; expected null")
    keys.without_effect("sample_size", "num_train_timesteps")
    found |= classes(keys)
    keys.finish()
    return found


def config(network: Mapping[str, Any]) -> dict[str, Any]:
    """The config.json for our table; RecipeError for what this class cannot say."""
    s = settings(network)
    if s["transformers"] is not None or s["context"] is not None:
        raise RecipeError(f"{_NAME} reads no tokens; take a network without context, or UNet2DConditionModel")
    for part in ("numbers", "guidance_features"):
        if s[part]:
            raise RecipeError(f"{_NAME} cannot hold {part} = {s[part]!r}; it needs none")
    if s["vector"] is not None and s["vector_bias"]:
        raise RecipeError(f"{_NAME} has a table of classes and no bias to it; take the bias away by `classed`")
    kind = next((kind for kind, blocks in _MIDDLE.items() if blocks == s["middle"]), "")
    if kind == "":
        raise RecipeError(f"{_NAME} cannot hold a middle of {s['middle']} blocks; it needs two, or none")
    return {
        "_class_name": _NAME,
        **DEFAULTS,
        **written(s, name=_NAME),
        "down_block_types": types(_DOWN, _PLAIN_DOWN, s.attends),
        "up_block_types": types(_UP, _PLAIN_UP, s.attends[::-1]),
        "mid_block_type": kind,
        "attention_head_dim": _head_width(s),
        "num_class_embeds": s["vector"],
    }


def classed(network: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The same network with the bias of the vector's map in that of the level's, to which it is added anyway.

    So a network that is told classes, as vectors with one 1, can be written: a row of its table there is what a class
    adds. Any other is returned as it is.
    """
    s = settings(network)
    if s["vector"] is None or s["joint_features"] is not None or not s["vector_bias"]:
        return dict(network), dict(tensors)
    found = dict(tensors)
    bias, level = found.pop("embed.vector.bias"), found["embed.level.linear2.bias"]
    found["embed.level.linear2.bias"] = (level.float() + bias.float()).to(level.dtype)
    return {**network, "vector_bias": False}, found


def _head_width(s: Settings) -> int | None:
    """Of every attention: diffusers counts heads by their width, null for one head."""
    if s["head_width"] is not None:
        width: int = s["head_width"]
        return width
    attending = {width for width, attends in zip(s.widths, s.attends, strict=True) if attends}
    attending |= {s.widths[-1]} if s["middle"] else set()
    if s["heads"] == 1 or not attending:
        return None
    if len(attending) > 1:
        raise RecipeError(
            f"{_NAME} cannot hold heads = {s['heads']} at each of {sorted(attending)} channels; it needs one head, or "
            "one head_width"
        )
    return attending.pop() // int(s["heads"])


def table(network: Mapping[str, Any]) -> Table:
    """Our tensors and theirs."""
    return whole(settings(network))
