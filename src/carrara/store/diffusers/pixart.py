"""PixArtTransformer2DModel: the network of PixArt-Alpha and PixArt-Sigma.

Alpha's files are from a time when the class had more keys; they are read where they say what the class now does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from carrara.errors import RecipeError
from carrara.store.diffusers.joint import attention, both, feed_forward, pair
from carrara.store.diffusers.keys import Keys
from carrara.store.diffusers.settings import settings
from carrara.store.diffusers.tensors import Kernel, Pixels, Place, Stacked, Table

__all__ = ["DEFAULTS", "NAME", "config", "network", "table"]

NAME = "PixArtTransformer2DModel"
DEFAULTS: dict[str, Any] = {
    "num_attention_heads": 16, "attention_head_dim": 72, "in_channels": 4, "out_channels": 8, "num_layers": 28,
    "dropout": 0.0, "norm_num_groups": 32, "cross_attention_dim": 1152, "attention_bias": True, "sample_size": 128,
    "patch_size": 2, "activation_fn": "gelu-approximate", "num_embeds_ada_norm": 1000, "upcast_attention": False,
    "norm_type": "ada_norm_single", "norm_elementwise_affine": False, "norm_eps": 1e-6, "interpolation_scale": None,
    "use_additional_conditions": None, "caption_channels": None, "attention_type": "default",
}  # fmt: skip
_FORMER: dict[str, Any] = {
    "double_self_attention": False, "num_vector_embeds": None, "only_cross_attention": False,
    "use_linear_projection": False,
}  # fmt: skip
# What every such network has as the class has it by default.
_ALWAYS = ("dropout", "attention_bias", "activation_fn", "upcast_attention", "norm_type", "norm_elementwise_affine",
           "norm_eps", "attention_type")  # fmt: skip
_FIXED: dict[str, Any] = {"ratio": 4.0}


def network(config: Mapping[str, Any]) -> dict[str, Any]:
    """Our table of the network that a config.json describes; RecipeError that names the key which cannot be read."""
    keys = Keys(NAME, config, DEFAULTS | _FORMER)
    for key in (*_ALWAYS, *_FORMER):
        wanted = (DEFAULTS | _FORMER)[key]
        keys.only(key, wanted, why=f"expected {wanted!r}: nothing else is read")
    for key in ("norm_num_groups", "num_embeds_ada_norm"):
        keys.size(key)  # the class builds nothing of them
    heads, size = keys.size("num_attention_heads"), keys.size("sample_size")
    width = heads * keys.size("attention_head_dim")
    if keys["cross_attention_dim"] != width:
        keys.refuse("cross_attention_dim", f"expected {width}, which captions are projected to")
    if keys["caption_channels"] is None:
        keys.refuse("caption_channels", "expected a number: words that are not projected are not read")
    sizes = _sizes(size) if keys["use_additional_conditions"] is None else keys.flag("use_additional_conditions")
    spread = _spread(size) if keys["interpolation_scale"] is None else keys.number("interpolation_scale")
    if not 0 < spread < float("inf"):
        keys.refuse("interpolation_scale", "expected a number above 0")
    found = {
        "kind": "pixart",
        "in_channels": keys.size("in_channels"),
        "out_channels": keys.size("in_channels" if keys["out_channels"] is None else "out_channels"),
        "size": size,
        "patch": keys.size("patch_size"),
        "width": width,
        "depth": keys.size("num_layers", most=1000),
        "heads": heads,
        "context": keys.size("caption_channels"),
        "sizes": sizes,
        "spread": float(spread),
    }
    keys.finish()
    return found


def _sizes(size: int) -> bool:
    """Whether the sizes are read, where a file does not say it."""
    return size == 128


def _spread(size: int) -> int:
    """What places are divided by, where a file does not say it."""
    return max(size // 64, 1)


def config(network: Mapping[str, Any]) -> dict[str, Any]:
    """The config.json of a `PixArt`; RecipeError for what it cannot say."""
    ours = settings(network, _FIXED, kind="pixart", name=NAME)
    size, width, spread = ours["size"], ours["width"], ours["spread"]
    if not isinstance(size, int):
        raise RecipeError(f"{NAME} is square, and this network's size is {size}; build it with one number")
    return {
        "_class_name": NAME,
        **DEFAULTS,
        "num_attention_heads": ours["heads"],
        "attention_head_dim": width // ours["heads"],
        "in_channels": ours["in_channels"],
        "out_channels": ours["out_channels"],
        "num_layers": ours["depth"],
        "cross_attention_dim": width,
        "sample_size": size,
        "patch_size": ours["patch"],
        "interpolation_scale": None if spread == _spread(size) else int(spread) if spread == int(spread) else spread,
        "use_additional_conditions": None if ours["sizes"] == _sizes(size) else ours["sizes"],
        "caption_channels": ours["context"],
    }


def table(network: Mapping[str, Any]) -> Table:
    """Where each of our tensors is there."""
    ours = settings(network, _FIXED, kind="pixart", name=NAME)
    patch, width = ours["patch"], ours["width"]
    found: dict[str, Place] = {
        "inward.weight": Kernel("pos_embed.proj.weight", patch),
        "inward.bias": "pos_embed.proj.bias",
        **pair(("embed.level.linear1", "embed.level.linear2"), "adaln_single.emb.timestep_embedder"),
        **both("modulation", "adaln_single.linear"),
        **pair(("words.0", "words.2"), "caption_projection"),
        "offsets": "scale_shift_table",
        "outward.weight": Pixels("proj_out.weight", patch),
        "outward.bias": Pixels("proj_out.bias", patch),
    }
    if ours["sizes"]:
        found |= pair(("sizes.length.linear1", "sizes.length.linear2"), "adaln_single.emb.resolution_embedder")
        found |= pair(("sizes.aspect.linear1", "sizes.aspect.linear2"), "adaln_single.emb.aspect_ratio_embedder")
    for number in range(ours["depth"]):
        found |= _block(f"blocks.{number}", f"transformer_blocks.{number}", width)
    return found


def _block(ours: str, theirs: str, width: int) -> dict[str, Place]:
    one, two = f"{theirs}.attn1", f"{theirs}.attn2"
    return {
        f"{ours}.offsets": f"{theirs}.scale_shift_table",
        **attention(f"{ours}.attention", (f"{one}.to_q", f"{one}.to_k", f"{one}.to_v"), f"{one}.to_out.0", None, width),
        **both(f"{ours}.cross.q", f"{two}.to_q"),
        **{
            f"{ours}.cross.kv.{part}": Stacked((f"{two}.to_k.{part}", f"{two}.to_v.{part}"), (width, width))
            for part in ("weight", "bias")
        },
        **both(f"{ours}.cross.out", f"{two}.to_out.0"),
        **feed_forward(f"{ours}.feed_forward", f"{theirs}.ff"),
    }
