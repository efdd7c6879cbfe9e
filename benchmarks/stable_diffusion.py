"""What Stable Diffusion costs: a guided step of the 860-million-parameter UNet of 1.5, and the decoding of a picture.

The networks are diffusers' own classes with random weights, imported; both sides carry the same numbers. diffusers runs
as it comes (float32) and at its best (bfloat16 weights, channels_last), Carrara packed for inference.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import peers
from benchmarks.harness import Goal, Options, Table, Variant, measure
from benchmarks.outcome import Outcome
from carrara.nn import packed
from carrara.store.diffusers.foreign import ForeignPart, Tensors
from carrara.store.diffusers.pipeline import read_decoder, read_network
from carrara.types import Condition

__all__ = ["ABOUT", "run"]

ABOUT = "A guided step of Stable Diffusion 1.5's UNet, and the decoding of a picture"
NOTES = (
    "Random weights, made in diffusers' classes and imported: the same numbers on both sides.",
    "A step is one network call on two rows, with and without the prompt.",
    "An error is |mine - theirs| / |theirs| (Euclidean norms), where theirs is diffusers in float32.",
    "bfloat16 means weights of that type, in channels_last order; packed, convolutions in oneDNN's own order, too.",
)
FLOAT, BEST, MINE = "diffusers, float32", "diffusers, bfloat16", "carrara, bfloat16 packed"
_TINY_UNET: Mapping[str, Any] = {
    "sample_size": 8, "block_out_channels": (32, 64), "layers_per_block": 1, "cross_attention_dim": 16,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "attention_head_dim": 8,
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}  # fmt: skip
_UNET: Mapping[str, Any] = {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8}
_VAE: Mapping[str, Any] = {
    "latent_channels": 4, "sample_size": 512, "block_out_channels": (128, 256, 512, 512), "layers_per_block": 2,
    "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4,
}  # fmt: skip
_TINY_VAE: Mapping[str, Any] = {
    "latent_channels": 4, "sample_size": 32, "block_out_channels": (32, 64), "layers_per_block": 1,
    "down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2,
}  # fmt: skip


def run(options: Options) -> Outcome:
    """Measures both tables."""
    outcome = Outcome(notes=NOTES)
    try:
        package = peers.diffusers()
    except peers.Missing as missing:
        outcome.skip("everything", str(missing))
        return outcome
    torch.manual_seed(0)
    for made, limits in ((_step, (1 / 3.8, 1 / 1.1)), (_decoding, (1 / 5, 1 / 1.2))):
        table = made(package, options)
        outcome.tables.append(table)
        if not options.quick:
            outcome.goals += _goals(table, limits)
    return outcome


def _step(package: Any, options: Options) -> Table:
    config = _TINY_UNET if options.quick else _UNET
    theirs = package.UNet2DConditionModel(**config).eval().requires_grad_(False)
    mine, _ = read_network(_part(theirs), dtype=torch.bfloat16)
    side = config["sample_size"]
    x = torch.randn(1, 4, side, side).repeat(2, 1, 1, 1)
    tokens, level = torch.randn(2, 77, config["cross_attention_dim"]), torch.full((2,), 481.0)
    condition = Condition(tokens=tokens)

    def call(network: nn.Module, dtype: torch.dtype) -> Callable[[], Tensor]:
        return lambda: network(x.to(dtype), level, tokens.to(dtype)).sample

    ready = packed(mine)
    calls = _calls(theirs, call) | {MINE: lambda: ready(x, level, condition)}
    return _measured("a guided step", calls, options)


def _decoding(package: Any, options: Options) -> Table:
    config = _TINY_VAE if options.quick else _VAE
    theirs = package.AutoencoderKL(**config).eval().requires_grad_(False)
    mine = read_decoder(_part(theirs), dtype=torch.bfloat16).autoencoder
    side = config["sample_size"] // 2 ** (len(config["block_out_channels"]) - 1)
    z = torch.randn(1, 4, side, side)

    def call(network: nn.Module, dtype: torch.dtype) -> Callable[[], Tensor]:
        return lambda: network.decode(z.to(dtype)).sample  # type: ignore[operator]

    ready: Any = packed(mine)
    calls = _calls(theirs, call) | {MINE: lambda: ready.decode(z)}
    return _measured(f"decoding {config['sample_size']} x {config['sample_size']} pixels", calls, options)


def _part(theirs: Any) -> ForeignPart:
    kind = type(theirs).__name__
    config = {"_class_name": kind, **{key: value for key, value in theirs.config.items() if not key.startswith("_")}}
    config = {key: list(value) if isinstance(value, tuple) else value for key, value in config.items()}
    return ForeignPart("diffusers", kind, config, Tensors(kind, theirs.state_dict()))


def _calls(
    theirs: nn.Module, call: Callable[[nn.Module, torch.dtype], Callable[[], Tensor]]
) -> dict[str, Callable[[], Tensor]]:
    best = copy.deepcopy(theirs).to(torch.bfloat16).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return {FLOAT: call(theirs, torch.float32), BEST: call(best, torch.bfloat16)}


@torch.no_grad()
def _measured(title: str, calls: Mapping[str, Callable[[], Tensor]], options: Options) -> Table:
    right = calls[FLOAT]().float()
    checks = {f"error, {name}": _error(calls[name]().float(), right) for name in (BEST, MINE)}
    variants = [Variant(name, call, peer=None if name == MINE else MINE) for name, call in calls.items()]
    rounds = options.rounds or (2 if options.quick else 7)
    return measure(title, variants, unit="s", rounds=rounds, warmup=0, budget=120, checks=checks)


def _error(mine: Tensor, theirs: Tensor) -> float:
    return float((mine - theirs).norm() / theirs.norm())


def _goals(table: Table, limits: tuple[float, float]) -> list[Goal]:
    ratios = {row.name: row.ratio.median for row in table.rows if row.ratio is not None}
    return [
        Goal(f"{table.title}: time over that of {name}", limit, 1 / ratios[name], "")
        for name, limit in zip((FLOAT, BEST), limits, strict=True)
    ] + [Goal(f"{table.title}: error", 0.01, table.checks[f"error, {MINE}"], "")]
