"""diffusers' T2IAdapter, full, full for SDXL, and light, as our UNetAdapter.

Its conditioning scale is the last plane of the adapter's picture, which is in [-1, 1] here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from carrara.config import build, parameters
from carrara.errors import RecipeError
from carrara.nn.unet_adapter import UNetAdapter
from carrara.store.diffusers import parts
from carrara.store.diffusers.keys import MOST_BLOCKS, Keys
from carrara.store.diffusers.tensors import Place, Table
from carrara.store.kinds import kinds

__all__ = ["DEFAULTS", "config", "network", "table"]

_NAME = "T2IAdapter"
_KIND = "unet-adapter"
_FULL, _XL, _LIGHT = _TYPES = ("full_adapter", "full_adapter_xl", "light_adapter")
_XL_HALVED = 2

DEFAULTS: dict[str, Any] = {
    "in_channels": 3, "channels": [320, 640, 1280, 1280], "num_res_blocks": 2, "downscale_factor": 8,
    "adapter_type": _FULL,
}  # fmt: skip


def network(config: Mapping[str, Any]) -> dict[str, Any]:
    """Our table for a config.json; RecipeError for a key that is not known or a value that has no counterpart."""
    return _network(config)


def _network(config: Mapping[str, Any]) -> dict[str, Any]:
    keys = Keys(_NAME, config, defaults=DEFAULTS)
    kind = keys.choice("adapter_type", {one: one for one in _TYPES})
    widths = keys.sizes("channels")
    blocks, fold = keys.size("num_res_blocks", most=MOST_BLOCKS), keys.size("downscale_factor", most=MOST_BLOCKS)
    if not widths or (kind == _LIGHT and any(width % 4 for width in widths)):
        keys.refuse("channels", "expected a width at least, multiples of 4 in a light adapter")
    halved = [i for i in range(1, len(widths)) if kind != _XL or i == _XL_HALVED]
    if kind == _XL and len(set(widths[_XL_HALVED:])) > 1:
        keys.refuse("channels", "expected as many from the third on, as the class itself does")
    if kind == _LIGHT:
        widths, halved = (*widths, widths[-1]), [*halved, len(widths)]
    channels = keys.size("in_channels") + 1
    keys.finish()
    return {
        "kind": _KIND,
        "channels": channels,
        "widths": list(widths),
        "blocks": blocks,
        "fold": fold,
        "halved": halved,
        "light": kind == _LIGHT,
    }


def config(network: Mapping[str, Any]) -> dict[str, Any]:
    """The config.json for our table; RecipeError for what this class cannot say."""
    s = _settings(network)
    light, widths = s["light"], list(s["widths"])
    for kind in (_LIGHT,) if light else (_FULL, _XL):
        found = {
            "in_channels": s["channels"] - 1,
            "channels": widths[:-1] if light else widths,
            "num_res_blocks": s["blocks"],
            "downscale_factor": s["fold"],
            "adapter_type": kind,
        }
        try:
            again = _network(found)
        except RecipeError:
            continue
        if _settings(again) == s:
            return {"_class_name": _NAME, **found}
    raise RecipeError(
        f"{_NAME} cannot hold widths = {widths} halved at {list(s['halved'])}; it needs all halved but the first, or "
        f"only number {_XL_HALVED}, and two last ones alike if light"
    )


def _settings(network: Mapping[str, Any]) -> dict[str, Any]:
    if network.get("kind") != _KIND:
        raise RecipeError(f'the network is of kind {network.get("kind")!r}; {_NAME} holds those of kind "{_KIND}"')
    return {
        name: build(parameter.annotation, network[name], kinds()) if name in network else parameter.default
        for name, parameter in parameters(UNetAdapter).items()
    }


def table(network: Mapping[str, Any]) -> Table:
    """Our tensors and theirs."""
    s = _settings(network)
    widths, light = s["widths"], s["light"]
    found: dict[str, Place] = {} if light else parts.both("inward", "adapter.conv_in")
    for i, width in enumerate(widths):
        ours, theirs = f"body.{i}", f"adapter.body.{i}"
        if light or (i and widths[i - 1] != width):
            found |= parts.both(f"{ours}.1", f"{theirs}.in_conv")
        for j in range(s["blocks"]):
            for k in (1, 2):
                found |= parts.both(f"{ours}.{j + 2}.conv{k}", f"{theirs}.resnets.{j}.block{k}")
        if light:
            found |= parts.both(f"{ours}.{s['blocks'] + 2}", f"{theirs}.out_conv")
    return found
