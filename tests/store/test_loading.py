"""A module that is loaded is the one that was saved, though its parameters are never filled on the way."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from carrara.decoder import Latents
from carrara.diffusion import Denoiser, DiffusionGenerator, Epsilon, IntegerStep, LinearBetas, Process
from carrara.nn import DiT, KLAutoencoder, UNet
from carrara.store import load_component, save_component
from carrara.store.component import _Unfilled
from carrara.text import Labels
from carrara.types import Space


def generator(network: nn.Module) -> nn.Module:
    denoiser = Denoiser(network, Process(LinearBetas()), Epsilon(), IntegerStep(1000))
    return DiffusionGenerator(denoiser, Space("pixels", (3, 8, 8)))


PARTS = {
    "unet": ("generator", lambda: generator(UNet(channels=8, multipliers=(1, 2), blocks=1, numbers=("level",)))),
    "dit": ("generator", lambda: generator(DiT(in_channels=3, out_channels=3, size=8, width=32, depth=1, heads=2))),
    "latents": ("decoder", lambda: Latents(KLAutoencoder(), size=(32, 32))),
    "labels": ("text", lambda: Labels(("a", "b"))),
}


@pytest.mark.parametrize("part", PARTS)
def test_every_tensor_comes_back(part: str, tmp_path: Path) -> None:
    role, make = PARTS[part]
    made = make().eval()
    with torch.no_grad():
        for tensor in made.state_dict().values():
            tensor.copy_(torch.randn_like(tensor))
    save_component(tmp_path, role, made)
    loaded = load_component(tmp_path, role)
    state = loaded.state_dict()
    assert list(state) == list(made.state_dict())
    assert all(torch.equal(state[name], tensor) for name, tensor in made.state_dict().items())
    theirs = dict(made.named_buffers())  # those that no file holds among them
    assert all(torch.equal(buffer, theirs[name]) for name, buffer in loaded.named_buffers())
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


class _Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((3,), 5.0))
        nn.init.zeros_(self.weight)
        self.weight.requires_grad_(False)
        self.register_buffer("table", nn.init.ones_(torch.empty(3)), persistent=False)
        self.drawn: Tensor = torch.zeros(3).uniform_(1, 2)


def test_only_parameters_are_left_unfilled() -> None:
    with _Unfilled():
        mixed = _Mixed()
    assert mixed.weight.tolist() == [5, 5, 5] and not mixed.weight.requires_grad
    assert mixed.table.tolist() == [1, 1, 1]  # type: ignore[operator]
    assert bool((mixed.drawn >= 1).all())
    assert _Mixed().weight.tolist() == [0, 0, 0]  # outside, all is as ever
