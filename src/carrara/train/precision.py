"""In which numbers the networks compute: float32, or bfloat16 by autocast with float32 weights."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from contextlib import AbstractContextManager
from os import environ
from typing import Literal

import torch
from torch import nn

from carrara.errors import RecipeError

__all__ = ["Precision", "autocast", "candidates", "compile_networks", "compiled_graphs"]

Precision = Literal["float32", "bfloat16"]


def candidates(device: torch.device, asked: Literal["auto", "float32", "bfloat16"]) -> tuple[Precision, ...]:
    """The precisions to choose from; more than one is settled by measuring a step in each.

    A GPU with bfloat16 units is always faster with them. A processor that has them (AMX, AVX512-BF16) may lose more by
    converting than it gains, which depends on the network.
    """
    if asked != "auto":
        return (asked,)
    if device.type == "cuda":
        return ("bfloat16",) if torch.cuda.is_bf16_supported(including_emulation=False) else ("float32",)
    if device.type == "cpu":
        able = torch.cpu.get_capabilities()
        return ("bfloat16", "float32") if able.get("amx_bf16") or able.get("avx512_bf16") else ("float32",)
    return ("float32",)


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[object]:
    """The context in which the networks are called.

    The cache of converted weights is off: one that was filled without gradients (a self-conditioning pass) would cut
    the weights off from the pass that has them.
    """
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16", cache_enabled=False)


def compile_networks(modules: Iterable[nn.Module], device: torch.device) -> None:
    """Has torch compile each module's `forward` at its first call. Raises RecipeError without a C++ compiler."""
    names = [environ["CXX"]] if environ.get("CXX") else ["g++", "clang++", "cl"]
    if not any(shutil.which(name) for name in names):
        raise RecipeError(
            f"`compile` is on and no C++ compiler was found (looked for {', '.join(names)}); "
            "install one, such as g++, or set `compile` to false"
        )
    for module in modules:
        module.compile()


def compiled_graphs() -> int:
    """How many graphs torch has compiled in this process so far."""
    from torch._dynamo.utils import counters

    return int(counters["stats"]["unique_graphs"])
