"""diffusers' AutoencoderTiny: TAESD, as our TinyAutoencoder, whose tensors have the names of the published files.

There the decoder's bound, 3 tanh(z / 3), is no layer, so that it counts its layers from one less.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from carrara.config import build, parameters
from carrara.errors import RecipeError
from carrara.nn.tiny_autoencoder import TinyAutoencoder
from carrara.store.diffusers import parts
from carrara.store.diffusers.keys import MOST_BLOCKS, Keys
from carrara.store.diffusers.tensors import Place, Table
from carrara.store.kinds import kinds

__all__ = ["DEFAULTS", "config", "network", "scale", "table"]

_NAME = "AutoencoderTiny"

DEFAULTS: dict[str, Any] = {
    "in_channels": 3, "out_channels": 3, "encoder_block_out_channels": [64, 64, 64, 64],
    "decoder_block_out_channels": [64, 64, 64, 64], "act_fn": "relu", "upsample_fn": "nearest", "latent_channels": 4,
    "upsampling_scaling_factor": 2, "num_encoder_blocks": [1, 3, 3, 3], "num_decoder_blocks": [3, 3, 3, 1],
    "latent_magnitude": 3, "latent_shift": 0.5, "force_upcast": False, "scaling_factor": 1.0, "shift_factor": 0.0,
}  # fmt: skip

_REPEATED = ("block_out_channels",)  # written beside those of the decoder, and read by nobody


def network(config: Mapping[str, Any]) -> dict[str, Any]:
    """Our table for a config.json; RecipeError for a key that is not known or a value that has no counterpart."""
    keys = _keys(config)
    widths = keys.sizes("encoder_block_out_channels")
    for key in ("encoder_block_out_channels", "decoder_block_out_channels"):
        if len(set(keys.sizes(key))) != 1 or keys.sizes(key) != widths:
            keys.refuse(key, "every layer is as wide here; expected one number, as often as there are resolutions")
    blocks = {}
    for half in ("encoder", "decoder"):
        blocks[half] = keys.sizes(f"num_{half}_blocks", len(widths), most=MOST_BLOCKS)
    keys.only("out_channels", keys.size("in_channels"), why="pictures come out as they went in; expected in_channels")
    keys.only("act_fn", "relu", why="expected 'relu'")
    keys.only("upsample_fn", "nearest", why="expected 'nearest'")
    keys.only("upsampling_scaling_factor", 2, why="every resolution is twice the next here; expected 2")
    scale(config)
    keys.without_effect("scaling_factor", "shift_factor", "latent_magnitude", "latent_shift", "force_upcast")
    found = {
        "kind": "tiny",
        "channels": keys.size("in_channels"),
        "latent": keys.size("latent_channels"),
        "width": widths[0],
        "encoder_blocks": list(blocks["encoder"]),
        "decoder_blocks": list(blocks["decoder"]),
    }
    keys.finish()
    return found


def _keys(config: Mapping[str, Any]) -> Keys:
    return Keys(_NAME, config, defaults=DEFAULTS, elsewhere=_REPEATED)


def scale(config: Mapping[str, Any]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The mean and the standard deviation of each channel of the latents that a config.json says."""
    keys = _keys(config)
    factor, shift, count = keys.number("scaling_factor"), keys.number("shift_factor"), keys.size("latent_channels")
    if not factor > 0:
        keys.refuse("scaling_factor", "expected a positive factor")
    return (shift,) * count, (1 / factor,) * count


def config(network: Mapping[str, Any]) -> dict[str, Any]:
    """The config.json for our table; RecipeError for what this class cannot say."""
    s = _settings(network)
    widths = [s["width"]] * len(s["encoder_blocks"])
    if s["pooled"]:
        raise RecipeError(f"{_NAME} has no blocks that see the whole picture; it needs pooled = false")
    return {
        "_class_name": _NAME,
        **DEFAULTS,
        "in_channels": s["channels"],
        "out_channels": s["channels"],
        "encoder_block_out_channels": widths,
        "decoder_block_out_channels": widths,
        "latent_channels": s["latent"],
        "num_encoder_blocks": list(s["encoder_blocks"]),
        "num_decoder_blocks": list(s["decoder_blocks"]),
    }


def _settings(network: Mapping[str, Any]) -> dict[str, Any]:
    if network.get("kind") != "tiny":
        raise RecipeError(f'the autoencoder is of kind {network.get("kind")!r}; {_NAME} holds those of kind "tiny"')
    return {
        name: build(parameter.annotation, network[name], kinds()) if name in network else parameter.default
        for name, parameter in parameters(TinyAutoencoder).items()
    }


def table(network: Mapping[str, Any]) -> Table:
    """Our tensors and theirs."""
    s = _settings(network)
    found: dict[str, Place] = {}
    for half, blocks, first in (("encoder", s["encoder_blocks"], 0), ("decoder", s["decoder_blocks"], 1)):
        found |= _layer(half, first, first)
        place = first + 1 + first  # the decoder's first convolution has its ReLU after it
        for i, count in enumerate(blocks):
            if i:
                place += first  # it doubles the size before the convolution
                found[f"{half}.{place}.weight"] = f"{half}.layers.{place - first}.weight"
                place += 1
            for _ in range(count):
                for j in (0, 2, 4):
                    ours, theirs = f"{half}.{place}.conv.{j}", f"{half}.layers.{place - first}.conv.{j}"
                    found |= parts.both(ours, theirs)
                place += 1
        found |= _layer(half, place, first)
    return found


def _layer(half: str, place: int, first: int) -> dict[str, Place]:
    return parts.both(f"{half}.{place}", f"{half}.layers.{place - first}")
