"""diffusers' AutoencoderKL: the autoencoders of Stable Diffusion 1, 2, XL and 3, and of FLUX, as our ImageAutoencoder.

Its factors are `decoder.Latents`' mean and std:  z = (encoding - shift) * scale,  so  mean = shift,  std = 1 / scale.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from carrara.config import build, parameters
from carrara.errors import RecipeError
from carrara.nn.image_autoencoder import ImageAutoencoder
from carrara.store.diffusers import parts
from carrara.store.diffusers.keys import MOST_BLOCKS, Keys
from carrara.store.diffusers.tensors import Place, Table
from carrara.store.kinds import kinds

__all__ = ["DEFAULTS", "config", "network", "scale", "scaled", "table"]

_NAME = "AutoencoderKL"
_KIND = "stable-diffusion"
_DOWN, _UP = "DownEncoderBlock2D", "UpDecoderBlock2D"

DEFAULTS: dict[str, Any] = {
    "in_channels": 3, "out_channels": 3, "down_block_types": [_DOWN], "up_block_types": [_UP],
    "block_out_channels": [64], "layers_per_block": 1, "act_fn": "silu", "latent_channels": 4, "norm_num_groups": 32,
    "sample_size": 32, "scaling_factor": 0.18215, "shift_factor": None, "latents_mean": None, "latents_std": None,
    "force_upcast": True, "use_quant_conv": True, "use_post_quant_conv": True, "mid_block_add_attention": True,
}  # fmt: skip


def network(config: Mapping[str, Any]) -> dict[str, Any]:
    """Our table for a config.json; RecipeError for a key that is not known or a value that has no counterpart."""
    keys = _keys(config)
    widths, groups = keys.sizes("block_out_channels"), keys.size("norm_num_groups")
    if not widths or any(width % groups for width in widths):
        keys.refuse("block_out_channels", f"expected widths that the {groups} groups of the norms divide")
    for key, kind in (("down_block_types", _DOWN), ("up_block_types", _UP)):
        if list(keys[key]) != [kind] * len(widths):
            keys.refuse(key, f"expected {len(widths)} times {kind}, one for each resolution")
    keys.only("act_fn", "silu", "swish", why="the autoencoder's activation is silu")
    keys.only("out_channels", keys.size("in_channels"), why="pictures come out as they went in; expected in_channels")
    keys.without_effect("sample_size", "force_upcast")
    scale(config)
    keys.without_effect("scaling_factor", "shift_factor", "latents_mean", "latents_std")
    found = {
        "kind": _KIND,
        "channels": keys.size("in_channels"),
        "latent": keys.size("latent_channels"),
        "widths": list(widths),
        "blocks": keys.size("layers_per_block", most=MOST_BLOCKS),
        "attention": keys.flag("mid_block_add_attention"),
        "mix_moments": keys.flag("use_quant_conv"),
        "mix_latent": keys.flag("use_post_quant_conv"),
        "groups": groups,
        "group_width": 1,
    }
    keys.finish()
    return found


def _keys(config: Mapping[str, Any]) -> Keys:
    return Keys(_NAME, config, defaults=DEFAULTS)


def scale(config: Mapping[str, Any]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The mean and the standard deviation of each channel of the latents that a config.json says."""
    keys = _keys(config)
    factor = keys.number("scaling_factor")
    if not factor > 0:
        keys.refuse("scaling_factor", "expected a positive factor")
    count = keys.size("latent_channels")
    mean, std = (_each(keys, key, count) for key in ("latents_mean", "latents_std"))
    shift = 0.0 if keys["shift_factor"] is None else keys.number("shift_factor")
    if shift and mean is not None:
        keys.refuse("latents_mean", "there is a shift_factor as well; expected one of them at most")
    if std is not None and not min(std) > 0:
        keys.refuse("latents_std", "expected positive numbers")
    return mean or (shift,) * count, tuple(one / factor for one in std or (1.0,) * count)


def _each(keys: Keys, key: str, count: int) -> tuple[float, ...] | None:
    values = keys[key]
    if values is None:
        return None
    numbers = isinstance(values, list | tuple) and all(type(one) in (int, float) for one in values)
    if not numbers or len(values) != count:
        keys.refuse(key, f"expected null or {count} numbers, one for each of the latents' channels")
    return tuple(float(one) for one in values)


def scaled(mean: Sequence[float], std: Sequence[float]) -> dict[str, Any]:
    """The keys that say this mean and standard deviation of each channel, to seven digits, as `scale` reads them."""
    if len(set(mean)) == 1 and len(set(std)) == 1:
        shift = _short(mean[0])
        return {"scaling_factor": _short(1 / std[0]), "shift_factor": shift or None}
    return {
        "scaling_factor": 1.0,
        "latents_mean": [_short(one) for one in mean],
        "latents_std": [_short(one) for one in std],
    }


def _short(value: float) -> float:
    """To the digits that a float32 holds: 0.18215 is so again after it has been inverted twice."""
    return float(f"{value:.7g}")


def config(network: Mapping[str, Any]) -> dict[str, Any]:
    """The config.json for our table, without what `scaled` says; RecipeError for what this class cannot say."""
    s = _settings(network)
    widths, groups = list(s["widths"]), s["groups"]
    if any(width % groups or width // groups < s["group_width"] for width in widths):
        raise RecipeError(
            f"{_NAME} cannot hold groups = {groups} of {s['group_width']} channels or more; it needs some that "
            f"divide {widths} so"
        )
    return {
        "_class_name": _NAME,
        **DEFAULTS,
        "in_channels": s["channels"],
        "out_channels": s["channels"],
        "down_block_types": [_DOWN] * len(widths),
        "up_block_types": [_UP] * len(widths),
        "block_out_channels": widths,
        "layers_per_block": s["blocks"],
        "latent_channels": s["latent"],
        "norm_num_groups": groups,
        "use_quant_conv": s["mix_moments"],
        "use_post_quant_conv": s["mix_latent"],
        "mid_block_add_attention": s["attention"],
    }


def _settings(network: Mapping[str, Any]) -> dict[str, Any]:
    if network.get("kind") != _KIND:
        raise RecipeError(f'the autoencoder is of kind {network.get("kind")!r}; {_NAME} holds those of kind "{_KIND}"')
    return {
        name: build(parameter.annotation, network[name], kinds()) if name in network else parameter.default
        for name, parameter in parameters(ImageAutoencoder).items()
    }


def table(network: Mapping[str, Any]) -> Table:
    """Our tensors and theirs."""
    s = _settings(network)
    widths, last, found = s["widths"], len(s["widths"]) - 1, dict[str, Place]()
    here = widths[0]
    for i, there in enumerate(widths):
        found |= _blocks(f"encoder.down.{i}", f"encoder.down_blocks.{i}", here, there, s["blocks"])
        here = there
        if i < last:
            found |= parts.both(f"encoder.downsample.{i}.conv", f"encoder.down_blocks.{i}.downsamplers.0.conv")
    for i, there in enumerate(reversed(widths)):
        found |= _blocks(f"decoder.up.{i}", f"decoder.up_blocks.{i}", here, there, s["blocks"] + 1)
        here = there
        if i < last:
            found |= parts.both(f"decoder.upsample.{i}.conv", f"decoder.up_blocks.{i}.upsamplers.0.conv")
    for half in ("encoder", "decoder"):
        found |= dict(_middle(half, widths[-1], attention=s["attention"]))
        for ours, theirs in (("inward", "conv_in"), ("norm", "conv_norm_out"), ("outward", "conv_out")):
            found |= parts.both(f"{half}.{ours}", f"{half}.{theirs}")
    found |= parts.both("encoder.mix", "quant_conv") if s["mix_moments"] else {}
    found |= parts.both("decoder.mix", "post_quant_conv") if s["mix_latent"] else {}
    return found


def _blocks(ours: str, theirs: str, before: int, after: int, count: int) -> dict[str, Place]:
    found: dict[str, Place] = {}
    for j in range(count):
        shortcut = j == 0 and before != after
        found |= parts.residual(f"{ours}.{j}", f"{theirs}.resnets.{j}", embedding=False, shortcut=shortcut)
    return found


def _middle(half: str, width: int, *, attention: bool) -> Iterator[tuple[str, Place]]:
    ours, theirs = f"{half}.middle", f"{half}.mid_block"
    for place, j in ((0, 0), (2 if attention else 1, 1)):
        yield from parts.residual(f"{ours}.{place}", f"{theirs}.resnets.{j}", embedding=False, shortcut=False).items()
    if attention:
        yield from parts.attention(f"{ours}.1", f"{theirs}.attentions.0", width=width).items()
