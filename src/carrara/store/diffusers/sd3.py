"""SD3Transformer2DModel: the network of Stable Diffusion 3 and 3.5, which is an `MMDiT` here.

The stored table of places, `pos_embed.pos_embed`, comes along. So do the gains on the queries of the last block's
words, on which no result depends: nothing of a file is lost.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from carrara.errors import RecipeError
from carrara.nn.embed import Sinusoidal
from carrara.store.diffusers.joint import both, joint_block, pair, swapped
from carrara.store.diffusers.keys import Keys
from carrara.store.diffusers.settings import settings
from carrara.store.diffusers.tensors import Kernel, Pixels, Place, Table

__all__ = ["DEFAULTS", "NAME", "config", "network", "table"]

NAME = "SD3Transformer2DModel"
DEFAULTS: dict[str, Any] = {
    "sample_size": 128, "patch_size": 2, "in_channels": 16, "num_layers": 18, "attention_head_dim": 64,
    "num_attention_heads": 18, "joint_attention_dim": 4096, "caption_projection_dim": 1152,
    "pooled_projection_dim": 2048, "out_channels": 16, "pos_embed_max_size": 96, "dual_attention_layers": (),
    "qk_norm": None,
}  # fmt: skip
_SAID: dict[str, Any] = {"activation": "gelu-tanh", "token_norm": False, "vector_hidden": True, "spare": True}
_FIXED: dict[str, Any] = {
    **_SAID, "image_channels": 0, "numbers": (), "controls": None, "adapters": None, "ratio": 4.0, "features": 256,
    "embedding": Sinusoidal(cosine_first=True),
}  # fmt: skip


def network(config: Mapping[str, Any]) -> dict[str, Any]:
    """Our table of the network that a config.json describes; RecipeError that names the key which cannot be read."""
    keys = Keys(NAME, config, DEFAULTS)
    heads = keys.size("num_attention_heads")
    width = heads * keys.size("attention_head_dim")
    depth = keys.size("num_layers", most=1000)
    if keys.size("caption_projection_dim") != width:
        keys.refuse("caption_projection_dim", f"expected {width}, as wide as the {heads} heads are together")
    if keys["pos_embed_max_size"] is None:
        keys.refuse("pos_embed_max_size", "expected a number: places without a stored table are not read")
    dual = keys["dual_attention_layers"]
    if not isinstance(dual, list | tuple) or not all(type(i) is int and 0 <= i < depth for i in dual):
        keys.refuse("dual_attention_layers", f"expected a list of numbers from 0 to {depth - 1}")
    made = {
        "kind": "mmdit",
        "in_channels": keys.size("in_channels"),
        "out_channels": keys.size("in_channels" if keys["out_channels"] is None else "out_channels"),
        "size": keys.size("sample_size"),
        "patch": keys.size("patch_size"),
        "width": width,
        "depth": depth,
        "heads": heads,
        "context": keys.size("joint_attention_dim"),
        "vector": keys.size("pooled_projection_dim"),
        "qk_norm": keys.choice("qk_norm", {None: False, "rms_norm": True}),
        "table": keys.size("pos_embed_max_size", most=4096),
        "dual": list(dual),
        **_SAID,
    }
    keys.finish()
    return made


def config(network: Mapping[str, Any]) -> dict[str, Any]:
    """The config.json of an MMDiT; RecipeError for what it cannot say."""
    ours = settings(network, _FIXED, kind="mmdit", name=NAME)
    for key in ("vector", "table"):
        if ours[key] is None:
            raise RecipeError(f"{NAME} needs {key}, and this network has none; build it with one")
    if not isinstance(ours["size"], int):
        raise RecipeError(f"{NAME} is square, and this network's size is {ours['size']}; build it with one number")
    return {
        "_class_name": NAME,
        "sample_size": ours["size"],
        "patch_size": ours["patch"],
        "in_channels": ours["in_channels"],
        "num_layers": ours["depth"],
        "attention_head_dim": ours["width"] // ours["heads"],
        "num_attention_heads": ours["heads"],
        "joint_attention_dim": ours["context"],
        "caption_projection_dim": ours["width"],
        "pooled_projection_dim": ours["vector"],
        "out_channels": ours["out_channels"],
        "pos_embed_max_size": ours["table"],
        "dual_attention_layers": list(ours["dual"]),
        "qk_norm": "rms_norm" if ours["qk_norm"] else None,
    }


def table(network: Mapping[str, Any]) -> Table:
    """Where each of our tensors is there."""
    ours = settings(network, _FIXED, kind="mmdit", name=NAME)
    embed, patch = "time_text_embed", ours["patch"]
    found: dict[str, Place] = {
        "table": "pos_embed.pos_embed",
        "inward.weight": Kernel("pos_embed.proj.weight", patch),
        "inward.bias": "pos_embed.proj.bias",
        **pair(("embed.level.linear1", "embed.level.linear2"), f"{embed}.timestep_embedder"),
        **pair(("embed.vector.0", "embed.vector.2"), f"{embed}.text_embedder"),
        **both("words", "context_embedder"),
        **swapped("modulation", "norm_out.linear"),
        "outward.weight": Pixels("proj_out.weight", patch),
        "outward.bias": Pixels("proj_out.bias", patch),
    }
    for number in range(ours["depth"]):
        found |= joint_block(
            f"blocks.{number}",
            f"transformer_blocks.{number}",
            width=ours["width"],
            qk_norm=ours["qk_norm"],
            last=number == ours["depth"] - 1,
            dual=number in ours["dual"],
        )
    return found
