"""What the UNets of diffusers' layout have in common: their tensors, and the keys that all of their classes have."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from carrara.config import build, parameters
from carrara.errors import RecipeError
from carrara.nn.embed import Sinusoidal
from carrara.nn.unet import Transformers, UNet
from carrara.store.diffusers import parts
from carrara.store.diffusers.keys import MOST_BLOCKS, Keys
from carrara.store.diffusers.tensors import Place, Transposed
from carrara.store.kinds import kinds

__all__ = ["Settings", "TRAINING", "basics", "channels", "classes", "descent", "settings", "types", "whole", "written"]

TRAINING = ("decay", "inv_gamma", "min_decay", "optimization_step", "power", "update_after_step", "use_ema_warmup")
"""Keys of an average over a training, which some files hold and no class reads."""

_PERIOD = 10000.0


@dataclass(frozen=True)
class Settings:
    """A UNet's settings that its tensors and its keys depend on."""

    options: Mapping[str, Any]
    widths: tuple[int, ...]
    transformers: Transformers
    attends: tuple[bool, ...]

    def __getitem__(self, name: str) -> Any:
        return self.options[name]


def settings(network: Mapping[str, Any]) -> Settings:
    """All settings of our UNet from its table; RecipeError for another network or a setting that is wrong."""
    if network.get("kind") != "unet":
        raise RecipeError(f'the network is of kind {network.get("kind")!r}; this layout holds those of kind "unet"')
    known = parameters(UNet)
    if unknown := sorted(set(network) - set(known) - {"kind"}):
        raise RecipeError(f"the UNet has no settings {unknown}; it has {', '.join(sorted(known))}")
    options = {
        name: build(parameter.annotation, network[name], kinds()) if name in network else parameter.default
        for name, parameter in known.items()
    }
    multipliers = options["multipliers"]
    none = Transformers(depth=(0,) * len(multipliers), heads=(1,) * len(multipliers), middle=0)
    return Settings(
        options=options,
        widths=tuple(options["channels"] * multiplier for multiplier in multipliers),
        transformers=options["transformers"] or none,
        attends=tuple(i in options["attention"] for i in range(len(multipliers))),
    )


def descent(s: Settings) -> dict[str, Place]:
    """The tensors of what reads the level and the condition, of the way down and of the middle."""
    table: dict[str, Place] = {}
    for i in (1, 2):
        table |= parts.both(f"embed.level.linear{i}", f"time_embedding.linear_{i}")
        if s["joint_features"] is not None:
            table |= parts.both(f"embed.joint.linear{i}", f"add_embedding.linear_{i}")
    if s["vector"] is not None and s["joint_features"] is None:
        linear = parts.both("embed.vector", "class_embedding")
        classes: dict[str, Place] = {"embed.vector.weight": Transposed("class_embedding.weight")}
        table |= linear if s["vector_bias"] else classes
    if s["guidance_features"] is not None:
        table["embed.guidance.linear.weight"] = "time_embedding.cond_proj.weight"
    table |= parts.both("inward", "conv_in")
    here = s["channels"]
    for i, there in enumerate(s.widths):
        for j in range(s["blocks"]):
            table |= _stage(
                s, f"down.{i}.{j}", f"down_blocks.{i}", j, here, there, s.attends[i], s.transformers.depth[i]
            )
            here = there
        if i < len(s.widths) - 1:
            table |= parts.both(f"downsample.{i}.conv", f"down_blocks.{i}.downsamplers.0.conv")
    for j in range(s["middle"]):
        followed = j < s["middle"] - 1
        plain = followed and s["transformers"] is None
        table |= _stage(s, f"middle.{j}", "mid_block", j, here, here, plain, s.transformers.middle * followed)
    return table


def whole(s: Settings) -> dict[str, Place]:
    """All tensors."""
    table = descent(s)
    skips = list(_skips(s))
    here = s.widths[-1]
    for i, (place, there) in enumerate(reversed(list(enumerate(s.widths)))):
        for j in range(s["blocks"] + 1):
            ours, theirs = f"up.{i}.{j}", f"up_blocks.{i}"
            depth = s.transformers.depth[place]
            table |= _stage(s, ours, theirs, j, here + skips.pop(), there, s.attends[place], depth)
            here = there
        if place:
            table |= parts.both(f"upsample.{i}.conv", f"up_blocks.{i}.upsamplers.0.conv")
    return table | parts.both("norm", "conv_norm_out") | parts.both("outward", "conv_out")


def _skips(s: Settings) -> Iterator[int]:
    yield s["channels"]
    for i, width in enumerate(s.widths):
        yield from [width] * (s["blocks"] + (i < len(s.widths) - 1))


def _stage(
    s: Settings, ours: str, theirs: str, j: int, before: int, after: int, attends: bool, depth: int
) -> dict[str, Place]:
    block, follows = f"{theirs}.resnets.{j}", f"{theirs}.attentions.{j}"
    table = parts.residual(f"{ours}.block", block, embedding=True, shortcut=before != after)
    if attends:
        table |= parts.attention(f"{ours}.attention", follows, width=after)
    if depth:
        kernels = s.transformers.kernels
        table |= parts.transformer(f"{ours}.transformer", follows, width=after, depth=depth, kernels=kernels)
    return table


def basics(keys: Keys) -> dict[str, Any]:
    """The settings that all classes of UNets have keys for, in our table."""
    why = "networks here have no such part"
    keys.only("act_fn", "silu", "swish", why="the UNet's activation is silu")
    keys.only("mid_block_scale_factor", 1, why="the middle is not scaled here")
    keys.only("resnet_time_scale_shift", "default", why=why)
    widths, groups = keys.sizes("block_out_channels"), keys["norm_num_groups"]
    if type(groups) is not int or groups < 1:
        keys.refuse("norm_num_groups", "expected a whole number of groups, since every block here has its norms")
    if not widths or any(width % widths[0] or width % groups for width in widths):
        keys.refuse("block_out_channels", f"expected multiples of the first and of {groups}, the groups of the norms")
    blocks = set(keys.sizes("layers_per_block", len(widths), most=MOST_BLOCKS))
    if len(blocks) != 1:
        keys.refuse("layers_per_block", "every resolution has as many blocks here; expected one number")
    shift = keys.number("freq_shift")
    return {
        "kind": "unet",
        "channels": widths[0],
        "multipliers": [width // widths[0] for width in widths],
        "blocks": blocks.pop(),
        "groups": groups,
        "group_width": 1,
        "eps": keys.number("norm_eps"),
        "asymmetric": keys.choice("downsample_padding", {0: True, 1: False}),
        "embedding": {"kind": "sinusoidal", "shift": shift, "cosine_first": keys.flag("flip_sin_to_cos")},
    }


def channels(keys: Keys) -> dict[str, int]:
    """Channels in and out: beyond those that come out, what goes in is the condition's image."""
    inside, outside = keys.size("in_channels"), keys.size("out_channels")
    table = {"in_channels": min(inside, outside), "out_channels": outside}
    return table | ({"image_channels": inside - outside} if inside > outside else {})


def classes(keys: Keys) -> dict[str, Any]:
    """A table of classes: vectors with one 1 are told, and their map has no bias."""
    if keys["num_class_embeds"] is None:
        return {}
    return {"vector": keys.size("num_class_embeds"), "vector_bias": False}


def written(s: Settings, *, name: str) -> dict[str, Any]:
    """The keys of `basics` and `channels` for our settings; RecipeError for what they cannot say."""
    embedding = s["embedding"]

    def refuse(setting: str, expected: str) -> None:
        raise RecipeError(f"{name} cannot hold {setting} = {s[setting]!r}; it needs {expected}")

    if type(embedding) is not Sinusoidal or (embedding.max_period, embedding.scale) != (_PERIOD, 1.0):
        refuse("embedding", f"a sinusoidal one of period {_PERIOD:g} and scale 1")
    if not float(embedding.shift).is_integer():
        refuse("embedding", "a shift that is a whole number")
    for setting in ("fourier", "adapters"):
        if s[setting]:
            refuse(setting, "none")
    groups = s["groups"]
    if any(width % groups or width // groups < s["group_width"] for width in (s["channels"], *s.widths)):
        refuse("groups", f"a number that divides {list(s.widths)} and leaves {s['group_width']} channels a group")
    return {
        "in_channels": s["in_channels"] + s["image_channels"] + sum((s["controls"] or {}).values()),
        "out_channels": s["out_channels"],
        "block_out_channels": list(s.widths),
        "layers_per_block": s["blocks"],
        "dropout": s["dropout"],
        "norm_num_groups": groups,
        "norm_eps": s["eps"],
        "downsample_padding": 0 if s["asymmetric"] else 1,
        "flip_sin_to_cos": embedding.cosine_first,
        "freq_shift": int(embedding.shift),
    }


def types(kind: str, plain: str, which: Sequence[bool]) -> list[str]:
    """The names of the blocks at each resolution."""
    return [kind if one else plain for one in which]
