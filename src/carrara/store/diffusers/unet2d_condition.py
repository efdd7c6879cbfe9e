"""diffusers' UNet2DConditionModel: the UNets of Stable Diffusion 1, 2 and XL, as ours with transformers.

SDXL's six numbers, and the five of its refiner, are told by name in `condition.numbers`. Which of the two a file is
follows from its sizes: the refiner reads one text encoder, whose pooled vector is as wide as its tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from carrara.errors import RecipeError
from carrara.store.diffusers.keys import MOST_BLOCKS, Keys
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

__all__ = ["DEFAULTS", "REFINER_SIZES", "SIZES", "conditioned", "conditions", "config", "network", "table"]

_NAME = "UNet2DConditionModel"
_DOWN, _PLAIN_DOWN = "CrossAttnDownBlock2D", "DownBlock2D"
_UP, _PLAIN_UP = "CrossAttnUpBlock2D", "UpBlock2D"
_MIDDLE = {"UNetMidBlock2DCrossAttn": 2, "UNetMidBlock2D": 1, None: 0}

_CROPPED = ("original_height", "original_width", "crop_top", "crop_left")
SIZES = (*_CROPPED, "target_height", "target_width")
"""The numbers of SDXL, in its order."""
REFINER_SIZES = (*_CROPPED, "aesthetic_score")
"""The numbers of its refiner."""

DEFAULTS: dict[str, Any] = {
    "sample_size": None, "in_channels": 4, "out_channels": 4, "center_input_sample": False, "flip_sin_to_cos": True,
    "freq_shift": 0, "down_block_types": [_DOWN, _DOWN, _DOWN, _PLAIN_DOWN],
    "mid_block_type": "UNetMidBlock2DCrossAttn", "up_block_types": [_PLAIN_UP, _UP, _UP, _UP],
    "only_cross_attention": False, "block_out_channels": [320, 640, 1280, 1280], "layers_per_block": 2,
    "downsample_padding": 1, "mid_block_scale_factor": 1, "dropout": 0.0, "act_fn": "silu", "norm_num_groups": 32,
    "norm_eps": 1e-5, "cross_attention_dim": 1280, "transformer_layers_per_block": 1,
    "reverse_transformer_layers_per_block": None, "encoder_hid_dim": None, "encoder_hid_dim_type": None,
    "attention_head_dim": 8, "num_attention_heads": None, "dual_cross_attention": False,
    "use_linear_projection": False, "class_embed_type": None, "addition_embed_type": None,
    "addition_time_embed_dim": None, "num_class_embeds": None, "upcast_attention": False,
    "resnet_time_scale_shift": "default", "resnet_skip_time_act": False, "resnet_out_scale_factor": 1.0,
    "time_embedding_type": "positional", "time_embedding_dim": None, "time_embedding_act_fn": None,
    "timestep_post_act": None, "time_cond_proj_dim": None, "conv_in_kernel": 3, "conv_out_kernel": 3,
    "projection_class_embeddings_input_dim": None, "attention_type": "default", "class_embeddings_concat": False,
    "mid_block_only_cross_attention": None, "cross_attention_norm": None, "addition_embed_type_num_heads": 64,
}  # fmt: skip


def network(config: Mapping[str, Any]) -> dict[str, Any]:
    """Our table for a config.json; RecipeError for a key that is not known or a value that has no counterpart."""
    keys = Keys(_NAME, config, defaults=DEFAULTS, elsewhere=TRAINING)
    found = {**conditioned(keys), **channels(keys), "dropout": keys.number("dropout")}
    if keys["time_cond_proj_dim"] is not None:
        found["guidance_features"] = keys.size("time_cond_proj_dim")
    up = [name.replace("Down", "Up") for name in reversed(keys["down_block_types"])]
    if list(keys["up_block_types"]) != up:
        keys.refuse("up_block_types", f"the way up mirrors the way down here; expected {up}")
    why = "networks here have no such part"
    keys.only("center_input_sample", False, why="x is not moved here; expected false")
    keys.only("reverse_transformer_layers_per_block", None, why="the way up mirrors the way down here; expected null")
    keys.only("dual_cross_attention", False, why=why)
    keys.only("resnet_skip_time_act", False, why=why)
    keys.only("resnet_out_scale_factor", 1, why=why)
    keys.only("time_embedding_type", "positional", why="expected 'positional'")
    keys.only("time_embedding_dim", None, 4 * found["channels"], why="expected four times the first channels")
    for key in ("time_embedding_act_fn", "timestep_post_act", "cross_attention_norm"):
        keys.only(key, None, why=f"{why}; expected null")
    for key in ("conv_in_kernel", "conv_out_kernel"):
        keys.only(key, 3, why="expected kernels of 3 x 3")
    keys.only("attention_type", "default", why=f"{why}; expected 'default'")
    keys.only("class_embeddings_concat", False, why=f"{why}; expected false")
    keys.only("mid_block_only_cross_attention", None, False, why=f"{why}; expected null or false")
    keys.without_effect("sample_size")
    keys.finish()
    return found


def conditioned(keys: Keys) -> dict[str, Any]:
    """Our settings for what this class and a ControlNet have in common: all but channels and the way up."""
    found = basics(keys)
    count = len(found["multipliers"])
    down = keys["down_block_types"]
    if not isinstance(down, list | tuple) or len(down) != count or not set(down) <= {_DOWN, _PLAIN_DOWN}:
        keys.refuse("down_block_types", f"expected {count} of {_DOWN} and {_PLAIN_DOWN}, one for each resolution")
    found |= {"attention": [], "middle": keys.choice("mid_block_type", _MIDDLE), "token_norm": False}
    depth = keys.sizes("transformer_layers_per_block", count, most=MOST_BLOCKS)
    heads = keys.sizes("attention_head_dim", count)
    kernels, middle = not keys.flag("use_linear_projection"), depth[-1] if found["middle"] > 1 else 0
    depth = tuple(d if name == _DOWN else 0 for d, name in zip(depth, down, strict=True))
    context = set(keys.sizes("cross_attention_dim", count))
    if len(context) != 1:
        keys.refuse("cross_attention_dim", "the tokens have one width here; expected one number")
    if middle or any(depth):
        inside = {"depth": list(depth), "heads": list(heads), "middle": middle, "kernels": kernels}
        found |= {"context": context.pop(), "transformers": inside}
    why = "networks here have no such part"
    only = keys["only_cross_attention"]
    if any(only if isinstance(only, list | tuple) else [only]):
        keys.refuse("only_cross_attention", "every transformer here has self-attention; expected false")
    for key in ("encoder_hid_dim", "encoder_hid_dim_type", "num_attention_heads"):
        keys.only(key, None, why=f"{why}; expected null")
    keys.without_effect("upcast_attention", "addition_embed_type_num_heads")
    return found | _told(keys, context=found.get("context"))


def _told(keys: Keys, *, context: int | None) -> dict[str, Any]:
    """The pooled vector and the numbers."""
    keys.only("class_embed_type", None, "simple_projection", why="expected null or 'simple_projection'")
    keys.only("addition_embed_type", None, "text_time", why="expected null or 'text_time'")
    if keys["addition_embed_type"] is None:
        keys.without_effect("addition_time_embed_dim", "projection_class_embeddings_input_dim")
        if keys["class_embed_type"] is not None:
            keys.without_effect("num_class_embeds")
            return {"vector": keys.size("projection_class_embeddings_input_dim")}
        return classes(keys)
    for key in ("class_embed_type", "num_class_embeds"):
        keys.only(key, None, why="expected null beside an addition_embed_type")
    total, features = keys.size("projection_class_embeddings_input_dim"), keys.size("addition_time_embed_dim")
    numbers = REFINER_SIZES if total - len(REFINER_SIZES) * features == context else SIZES
    vector = total - len(numbers) * features
    if vector < 1:
        keys.refuse("projection_class_embeddings_input_dim", f"{len(numbers)} numbers of {features} leave no vector")
    return {"vector": vector, "numbers": list(numbers), "joint_features": features}


def config(network: Mapping[str, Any]) -> dict[str, Any]:
    """The config.json for our table; RecipeError for what this class cannot say."""
    s = settings(network)
    transformers = s.transformers
    return {
        "_class_name": _NAME, **DEFAULTS, **written(s, name=_NAME), **conditions(s, name=_NAME),
        "time_cond_proj_dim": s["guidance_features"],
        "up_block_types": types(_UP, _PLAIN_UP, [depth > 0 for depth in reversed(transformers.depth)]),
    }  # fmt: skip


def conditions(s: Settings, *, name: str) -> dict[str, Any]:
    """The keys of `conditioned` that are not of `basics`, for our settings."""
    transformers, middle = s.transformers, s["middle"]
    if any(s.attends) or (s["transformers"] is None and middle > 1):
        raise RecipeError(f"{name} has transformers and no plain attention; take one without, or UNet2DModel")
    if s["token_norm"] and s["context"] is not None:
        raise RecipeError(f"{name} does not normalise its tokens; it needs token_norm = false")
    kind = next((kind for kind, blocks in _MIDDLE.items() if blocks == middle), "")
    if kind == "" or (middle > 1) != (transformers.middle > 0):
        raise RecipeError(
            f"{name} cannot hold a middle of {middle} blocks and transformers of depth {transformers.middle} in it; it "
            "needs two blocks with a transformer, one without, or none"
        )
    depth = [max(1, one) for one in transformers.depth]
    if transformers.middle and not transformers.depth[-1]:
        depth[-1] = transformers.middle
    if transformers.middle and depth[-1] != transformers.middle:
        raise RecipeError(
            f"{name} cannot hold transformers of depth {transformers.middle} in the middle after {depth[-1]}; "
            "it needs the same depth"
        )
    return {
        "down_block_types": types(_DOWN, _PLAIN_DOWN, [one > 0 for one in transformers.depth]),
        "mid_block_type": kind,
        "cross_attention_dim": DEFAULTS["cross_attention_dim"] if s["context"] is None else s["context"],
        "transformer_layers_per_block": depth,
        "attention_head_dim": list(transformers.heads),
        "use_linear_projection": not transformers.kernels,
        **_written_told(s, name=name),
    }


def _written_told(s: Settings, *, name: str) -> dict[str, Any]:
    vector, numbers, features = s["vector"], tuple(s["numbers"]), s["joint_features"]
    if features is None:
        if numbers:
            raise RecipeError(f"{name} cannot hold numbers = {list(numbers)}; it needs none, or joint_features")
        if vector is None or not s["vector_bias"]:
            return {"num_class_embeds": vector}
        return {"class_embed_type": "simple_projection", "projection_class_embeddings_input_dim": vector}
    total = vector + len(numbers) * features
    if numbers != (REFINER_SIZES if total - len(REFINER_SIZES) * features == s["context"] else SIZES):
        raise RecipeError(
            f"{name} cannot hold numbers = {list(numbers)} beside a vector of {vector}; it needs {', '.join(SIZES)}, "
            "or the refiner's"
        )
    return {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": features,
        "projection_class_embeddings_input_dim": total,
    }


def table(network: Mapping[str, Any]) -> Table:
    """Our tensors and theirs."""
    return whole(settings(network))
