"""The other packages, and the networks that are compared.

diffusers (Apache-2.0) builds the same UNet, and with the same weights it computes the same function. lucidrains'
denoising-diffusion-pytorch (MIT) has a UNet of another design, which by chance has 35.7 million parameters too. It is
installed without its dependencies, and gets an empty torchvision, whose transforms only its data set would use.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import types
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from carrara.nn import UNet

__all__ = ["FULL", "TINY", "Missing", "Shape", "accelerator", "diffusers", "key_table", "lucidrains", "pair", "unet"]

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

LUCIDRAINS = "denoising-diffusion-pytorch"
STUB = (
    f"{LUCIDRAINS} is installed with --no-deps and imported with an empty module in the place of torchvision, "
    "which only its data set needs."
)


class Missing(Exception):
    """A peer that is not installed; the message says how to have it."""


@dataclass(frozen=True)
class Shape:
    """The sizes of a UNet. Attention is at the second resolution, as in DDPM's for CIFAR-10."""

    channels: int
    multipliers: tuple[int, ...]
    blocks: int
    groups: int
    size: int  # of the pictures, in pixels


FULL = Shape(128, (1, 2, 2, 2), 2, 32, 32)  # google/ddpm-cifar10-32: 35.7 million parameters
TINY = Shape(32, (1, 2), 1, 8, 16)


def diffusers() -> Any:
    """The package; raises Missing."""
    return _package("diffusers", "pip install diffusers")


def lucidrains() -> Any:
    """The package's main module; raises Missing."""
    stub = types.ModuleType("torchvision")
    stub.transforms, stub.utils = types.ModuleType("transforms"), types.ModuleType("utils")  # type: ignore[attr-defined]
    absent = importlib.util.find_spec("torchvision") is None
    if absent:
        sys.modules["torchvision"] = stub
    try:
        install = f"pip install --no-deps {LUCIDRAINS} ema-pytorch einops accelerate"
        _package("denoising_diffusion_pytorch", install)
    finally:
        if absent:
            del sys.modules["torchvision"]  # others look for it to see what they can do
    module = importlib.import_module("denoising_diffusion_pytorch.denoising_diffusion_pytorch")
    module.tqdm = lambda steps, **_: steps
    return module


def accelerator(precision: str) -> Any:
    """A new Accelerator of its own `mixed_precision` (a process can have only one at a time); raises Missing."""
    accelerate = _package("accelerate", "pip install --no-deps accelerate")
    accelerate.state.AcceleratorState._reset_state(True)
    return accelerate.Accelerator(mixed_precision=precision, cpu=True)


def _package(name: str, install: str) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module(name)
    except ImportError as error:
        raise Missing(f"{error}; {install}") from error


def pair(shape: Shape) -> tuple[UNet, nn.Module | None]:
    """Carrara's UNet and diffusers' (None where it is not installed), random and, but for names, of equal weights."""
    torch.manual_seed(0)
    ours = unet(shape)
    try:
        theirs = _diffusers_unet(shape)
    except Missing:
        return ours, None
    ours.load_state_dict(key_table(theirs.state_dict(), ours))
    return ours, theirs


def unet(shape: Shape) -> UNet:
    """Carrara's UNet with random weights, none of them zero: zeros may be a processor's easier numbers."""
    ours = UNet(channels=shape.channels, multipliers=shape.multipliers, blocks=shape.blocks, groups=shape.groups)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    return ours


def _diffusers_unet(shape: Shape) -> nn.Module:
    kinds = ["Attn" if i == 1 else "" for i in range(len(shape.multipliers))]
    unet: nn.Module = diffusers().UNet2DModel(
        sample_size=shape.size,
        block_out_channels=tuple(shape.channels * m for m in shape.multipliers),
        layers_per_block=shape.blocks,
        down_block_types=tuple(f"{kind}DownBlock2D" for kind in kinds),
        up_block_types=tuple(f"{kind}UpBlock2D" for kind in reversed(kinds)),
        attention_head_dim=None,
        norm_num_groups=shape.groups,
        norm_eps=1e-6,
        freq_shift=1,
        flip_sin_to_cos=False,
        downsample_padding=0,
    )
    return unet


def key_table(theirs: dict[str, Tensor], ours: UNet) -> dict[str, Tensor]:
    """The weights of a diffusers UNet2DModel under Carrara's names; the table is the parity test's."""
    tests = str(Path(__file__).resolve().parent.parent / "tests")
    sys.path.insert(0, tests)
    try:
        found: dict[str, Tensor] = importlib.import_module("nn.test_unet").translate(theirs, ours)
    finally:
        sys.path.remove(tests)
    return found
