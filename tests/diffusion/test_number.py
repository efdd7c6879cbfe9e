"""Numbers beside text: constants and sizes, told to both conditions, and saved with the generator."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor, nn

from carrara import Rng, Space
from carrara.config import Role, build, describe
from carrara.diffusion import (
    ClassifierFree,
    Denoiser,
    DiffusionGenerator,
    Flow,
    Linear,
    Number,
    Process,
    SamplingSettings,
    ScaledTime,
    numbered,
    uniform,
)
from carrara.nn import UNet
from carrara.run import finish
from carrara.store import kinds
from carrara.types import Condition

NUMBERS = (Number("guidance", 3.5), Number("height", "height", 8.0), Number("width", "width", 8.0),
           Number("score", 6.0, negative=2.5))  # fmt: skip


class Listening(nn.Module):
    """A network that keeps what it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.told: list[Condition] = []

    def forward(self, x: Tensor, level: Tensor, condition: Condition) -> Tensor:
        self.told.append(condition)
        return torch.zeros_like(x)


def test_both_conditions_are_told_sizes_and_constants_and_the_null_its_own() -> None:
    network = Listening()
    settings = SamplingSettings(times=lambda schedule: uniform(schedule, steps=1), guidance=ClassifierFree(3.0))
    generator = DiffusionGenerator(
        Denoiser(network, Process(Linear()), Flow(), ScaledTime()), Space("latent", (4, 8, 8)), settings=settings,
        numbers=NUMBERS,
    )  # fmt: skip
    text, null = (Condition(vector=torch.full((2, 3), value)) for value in (1.0, 0.0))
    finish(generator.start((4, 6, 10), text, null, Rng.seeds([0, 1])))
    rows = {float(v[0]): {k: float(n[i]) for k, n in c.numbers.items()} for c in network.told
            for i, v in enumerate(c.vector)}  # type: ignore[arg-type]  # fmt: skip
    same = {"guidance": 3.5, "height": 48.0, "width": 80.0}
    assert rows == {1.0: {**same, "score": 6.0}, 0.0: {**same, "score": 2.5}}


def test_a_number_that_the_condition_has_stays() -> None:
    told = numbered(Condition(numbers={"guidance": torch.tensor([1.0, 2.0])}), NUMBERS, (4, 8, 8), 2)
    assert told.numbers["guidance"].tolist() == [1.0, 2.0]
    assert told.numbers["score"].tolist() == [6.0, 6.0]


def test_numbers_are_saved_with_the_generator() -> None:
    network = UNet(channels=8, multipliers=(1,), blocks=1, attention=(), groups=2, numbers=("guidance", "height"))
    denoiser = Denoiser(network, Process(Linear()), Flow(), ScaledTime())
    generator = DiffusionGenerator(denoiser, Space("pixels", (3, 8, 8)), numbers=NUMBERS[:2])
    again = build(Annotated[nn.Module, Role("generator")], describe(generator, kinds()), kinds())
    assert again.numbers == NUMBERS[:2]
