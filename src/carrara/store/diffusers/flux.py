"""FluxTransformer2DModel: the network of FLUX.1, which reads packed latents there and latents here.

Its channels there are those of a patch of 2 x 2. Where more come in than go out (Fill, Canny, Depth) the others are
those of `condition.image`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from carrara.errors import RecipeError
from carrara.store.diffusers.joint import both, joint_block, pair, swapped
from carrara.store.diffusers.keys import Keys
from carrara.store.diffusers.settings import settings
from carrara.store.diffusers.tensors import Place, Stacked, Table

__all__ = ["DEFAULTS", "NAME", "config", "network", "table"]

NAME = "FluxTransformer2DModel"
DEFAULTS: dict[str, Any] = {
    "patch_size": 1, "in_channels": 64, "out_channels": None, "num_layers": 19, "num_single_layers": 38,
    "attention_head_dim": 128, "num_attention_heads": 24, "joint_attention_dim": 4096, "pooled_projection_dim": 768,
    "guidance_embeds": False, "axes_dims_rope": (16, 56, 56),
}  # fmt: skip
_FIXED: dict[str, Any] = {"patch": 2, "ratio": 4.0}
_PACKED = 4  # pixels of a patch


def network(config: Mapping[str, Any]) -> dict[str, Any]:
    """Our table of the network that a config.json describes; RecipeError that names the key which cannot be read."""
    keys = Keys(NAME, config, DEFAULTS)
    heads, head = keys.size("num_attention_heads"), keys.size("attention_head_dim")
    keys.only("patch_size", 1, why="expected 1: latents are packed before they reach it")
    read = _unpacked(keys, "in_channels")
    made = read if keys["out_channels"] is None else _unpacked(keys, "out_channels")
    if made > read:
        keys.refuse("out_channels", f"expected at most the {_PACKED * read} of in_channels")
    axes = keys["axes_dims_rope"]
    if not isinstance(axes, list | tuple) or len(axes) != 3 or not all(type(a) is int for a in axes):
        keys.refuse("axes_dims_rope", "expected three whole numbers")
    if sum(axes) != head or any(a < 0 or a % 2 for a in axes):
        keys.refuse("axes_dims_rope", f"expected even numbers that are {head} together, as attention_head_dim is")
    found = {
        "kind": "flux",
        "in_channels": made,
        "out_channels": made,
        "image_channels": read - made,
        "context": keys.size("joint_attention_dim"),
        "vector": keys.size("pooled_projection_dim"),
        "width": heads * head,
        "depth": keys.size("num_layers", most=1000),
        "single": keys.size("num_single_layers", most=1000),
        "heads": heads,
        "axes": list(axes),
        "guidance": keys.flag("guidance_embeds"),
    }
    keys.finish()
    return found


def _unpacked(keys: Keys, key: str) -> int:
    channels = keys.size(key)
    if channels % _PACKED:
        keys.refuse(key, f"expected a multiple of {_PACKED}, the pixels of a patch")
    return channels // _PACKED


def config(network: Mapping[str, Any]) -> dict[str, Any]:
    """The config.json of a `Flux`; RecipeError for what it cannot say."""
    ours = settings(network, _FIXED, kind="flux", name=NAME)
    if ours["in_channels"] != ours["out_channels"]:
        raise RecipeError(
            f"{NAME} makes as many channels as x has, and this network has in_channels = {ours['in_channels']} and "
            f"out_channels = {ours['out_channels']}; build it with the same"
        )
    read = _PACKED * (ours["in_channels"] + ours["image_channels"])
    return {
        "_class_name": NAME,
        "patch_size": 1,
        "in_channels": read,
        "out_channels": _PACKED * ours["out_channels"] if ours["image_channels"] else None,
        "num_layers": ours["depth"],
        "num_single_layers": ours["single"],
        "attention_head_dim": ours["width"] // ours["heads"],
        "num_attention_heads": ours["heads"],
        "joint_attention_dim": ours["context"],
        "pooled_projection_dim": ours["vector"],
        "guidance_embeds": ours["guidance"],
        "axes_dims_rope": list(ours["axes"]),
    }


def table(network: Mapping[str, Any]) -> Table:
    """Where each of our tensors is there."""
    ours = settings(network, _FIXED, kind="flux", name=NAME)
    embed, width = "time_text_embed", ours["width"]
    found: dict[str, Place] = {
        **both("inward", "x_embedder"),
        **both("words", "context_embedder"),
        **pair(("embed.level.linear1", "embed.level.linear2"), f"{embed}.timestep_embedder"),
        **pair(("embed.vector.0", "embed.vector.2"), f"{embed}.text_embedder"),
        **swapped("modulation", "norm_out.linear"),
        **both("outward", "proj_out"),
    }
    if ours["guidance"]:
        guidance = "embed.number.guidance"
        found |= pair((f"{guidance}.linear1", f"{guidance}.linear2"), f"{embed}.guidance_embedder")
    for number in range(ours["depth"]):
        found |= joint_block(f"blocks.{number}", f"transformer_blocks.{number}", width=width, qk_norm=True)
    for number in range(ours["single"]):
        found |= _single_block(f"single.{number}", f"single_transformer_blocks.{number}", width)
    return found


def _single_block(ours: str, theirs: str, width: int) -> dict[str, Place]:
    attn = f"{theirs}.attn"
    maps = (f"{attn}.to_q", f"{attn}.to_k", f"{attn}.to_v", f"{theirs}.proj_mlp")
    return {
        **both(f"{ours}.modulation", f"{theirs}.norm.linear"),
        **{
            f"{ours}.inward.{part}": Stacked(tuple(f"{name}.{part}" for name in maps), (width, width, width, 4 * width))
            for part in ("weight", "bias")
        },
        f"{ours}.q_norm.weight": f"{attn}.norm_q.weight",
        f"{ours}.k_norm.weight": f"{attn}.norm_k.weight",
        **both(f"{ours}.outward", f"{theirs}.proj_out"),
    }
