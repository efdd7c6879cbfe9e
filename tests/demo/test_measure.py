"""What the report shows of a sampling, and the unit of its distances."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from carrara.demo import measure as demo
from carrara.diffusion.guidance import ClassifierFree
from carrara.evaluate.fidelity import nearest
from carrara.types import Condition, Estimate, Step

STEPS = 20


def believed(x_t: Tensor, t: float, condition: Condition) -> Estimate:
    assert condition.vector is not None
    return Estimate((1 - t) * x_t + condition.vector[:, :, None, None])


class Text:
    """A prompt's condition is its length."""

    def start(self, prompts: Sequence[str]) -> Iterator[Any]:
        yield from ()
        return Condition(vector=torch.tensor([[float(len(prompt))] for prompt in prompts]))


def steps(scale: float) -> list[Step]:
    """A sampling whose guided estimates are far from what is believed."""
    x = torch.linspace(-1, 1, STEPS)
    times = [1 - i / STEPS for i in range(STEPS)]
    return [
        Step(x[i].view(1, 1, 1, 1), t, Estimate(torch.full((1, 1, 1, 1), 100 * scale))) for i, t in enumerate(times)
    ]


def trained(scale: float) -> Any:
    generator = SimpleNamespace(denoiser=believed, settings=SimpleNamespace(guidance=ClassifierFree(scale)))

    def generate(prompts: Sequence[str], seeds: Sequence[int]) -> list[Any]:
        return [SimpleNamespace(trace=step) for step in [*steps(scale), None]]

    system = SimpleNamespace(text=Text(), generator=generator, generate=generate)
    return SimpleNamespace(system=system, seed=0, decode=lambda z: z)


def test_a_trace_shows_the_guided_path_and_the_unguided_mean_on_it() -> None:
    """The mean is what the denoiser says of the x_t shown, at the time shown, under the prompt; not what guided it."""
    found = demo._trace(trained(3.0), "apple")
    assert len(found.times) == demo._LEVELS and found.times[0] == 1.0
    t = torch.tensor(found.times).view(-1, 1, 1, 1)
    torch.testing.assert_close(found.means, (1 - t) * found.noisy + len("apple"))
    assert {float(x) for x in found.noisy} <= {float(step.x) for step in steps(3.0)}


def test_the_scale_is_that_of_the_systems_own_guidance() -> None:
    assert demo._scale(trained(3.0)) == 3
    assert demo._scale(trained(1.0)) == 1


def test_distances_are_root_mean_squares_per_dimension() -> None:
    """So latents that differ by d in each number are d apart, whatever their shape."""
    z = torch.zeros(2, 4, 3, 3)
    assert demo._spread(nearest(z[:1] + 0.25, z), z).tolist() == pytest.approx([0.25])
