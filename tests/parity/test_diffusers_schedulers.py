"""The samplers of another implementation: diffusers' DDPM and DDIM on one small random network, to 1e-5 of max|x|.

Its tables are lifted to float64 and its noise is replaced by ours; everything else is its own code. What it calls
`set_alpha_to_one=False` is a grid that ends at 1/T here.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from carrara.diffusion import (
    X0,
    CosineBetas,
    Denoiser,
    Epsilon,
    IntegerStep,
    LinearBetas,
    Plain,
    Posterior,
    Process,
    ScaledLinearBetas,
    Tabulated,
    Transition,
    V,
    ancestral,
    ddim,
    full,
    guide,
    leading,
    trailing,
)
from carrara.run import finish
from carrara.types import Condition

# the parity that is asked for is 1e-5; with float64 tables there is nothing left but rounding
TOLERANCE = 1e-9

diffusers = pytest.importorskip("diffusers")


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Conv2d(2, 8, 3, padding=1), nn.Conv2d(8, 2, 3, padding=1)
        self.double()

    def forward(self, x: Tensor, level: Tensor, condition: Condition = Condition()) -> Tensor:  # noqa: B008
        return self.last(torch.tanh(self.first(x) + level.double().view(-1, 1, 1, 1) / 500 - 1))


class Recorded:
    """Stands in for the rng: hands out noise number k, whoever asks."""

    def __init__(self, x: Tensor) -> None:
        self.shape, self.number = x.shape, 0

    def normal_like(self, x: Tensor) -> Tensor:
        self.number += 1
        generator = torch.Generator().manual_seed(self.number)
        return torch.randn(self.shape, generator=generator, dtype=torch.float64)


NETWORK = Network()
PARAMETERIZATIONS = {"epsilon": Epsilon(), "sample": X0(), "v_prediction": V()}
START = torch.randn(2, 2, 4, 4, generator=torch.Generator().manual_seed(99), dtype=torch.float64)


def lifted(scheduler: Any, schedule: Tabulated) -> Any:
    betas = schedule.betas()
    scheduler.betas, scheduler.alphas = betas, 1 - betas
    scheduler.alphas_cumprod = schedule(torch.arange(1, 1001, dtype=torch.float64) / 1000)[0] ** 2
    scheduler.one = torch.tensor(1.0, dtype=torch.float64)
    if hasattr(scheduler, "final_alpha_cumprod"):
        to_one = scheduler.config.set_alpha_to_one
        scheduler.final_alpha_cumprod = scheduler.one if to_one else scheduler.alphas_cumprod[0]
    return scheduler


def foreign(scheduler: Any, steps: int, **kwargs: Any) -> Tensor:
    scheduler.set_timesteps(steps)
    x = START
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(NETWORK(x, t.expand(len(x))), t, x, **kwargs).prev_sample
    return x


def ours(sampler: Any, schedule: Tabulated, kind: str, times: tuple[float, ...], **kwargs: Any) -> Tensor:
    denoiser = Denoiser(NETWORK, Process(schedule), PARAMETERIZATIONS[kind], IntegerStep(1000))
    sampling = sampler(denoiser.process, START, times, rng=Recorded(START), **kwargs)
    return finish(guide(sampling, Plain(), denoiser))


def equal(a: Tensor, b: Tensor) -> None:
    assert a.dtype == b.dtype == torch.float64 and bool(a.isfinite().all())
    assert (a - b).abs().max() <= TOLERANCE * b.abs().max()


SCHEDULES = [LinearBetas(), ScaledLinearBetas(), CosineBetas()]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("kind", PARAMETERIZATIONS)
@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_ddpm(schedule: Tabulated, kind: str, variance: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from diffusers.schedulers import scheduling_ddpm

    for steps, spacing in ((1, "leading"), (7, "leading"), (50, "leading"), (333, "leading"), (10, "trailing")):
        if spacing == "trailing" and variance == "fixed_large":
            continue  # it adds noise in its last step, whose t is not 0: the picture would be left noisy
        rng = Recorded(START)
        monkeypatch.setattr(scheduling_ddpm, "randn_tensor", lambda *args, rng=rng, **kwargs: rng.normal_like(START))
        scheduler = lifted(
            diffusers.DDPMScheduler(
                1000, variance_type=variance, clip_sample=False, timestep_spacing=spacing, prediction_type=kind
            ),
            schedule,
        )
        times = (leading if spacing == "leading" else trailing)(schedule, steps=steps)
        chosen = Posterior() if variance == "fixed_small" else Transition()
        equal(ours(ancestral, schedule, kind, times, variance=chosen), foreign(scheduler, steps))


def test_ddpm_full(monkeypatch: pytest.MonkeyPatch) -> None:
    """All thousand steps of the paper."""
    from diffusers.schedulers import scheduling_ddpm

    rng, schedule = Recorded(START), LinearBetas()
    monkeypatch.setattr(scheduling_ddpm, "randn_tensor", lambda *args, **kwargs: rng.normal_like(START))
    scheduler = lifted(diffusers.DDPMScheduler(1000, variance_type="fixed_small", clip_sample=False), schedule)
    equal(ours(ancestral, schedule, "epsilon", full(schedule)), foreign(scheduler, 1000))


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("kind", PARAMETERIZATIONS)
@pytest.mark.parametrize("to_one", [True, False])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_ddim(schedule: Tabulated, kind: str, to_one: bool, eta: float, monkeypatch: pytest.MonkeyPatch) -> None:
    from diffusers.schedulers import scheduling_ddim

    for steps, spacing, offset in (
        (1, "leading", 0),
        (7, "leading", 0),
        (50, "leading", 1),
        (10, "trailing", 0),
        (50, "trailing", 0),
    ):
        rng = Recorded(START)
        monkeypatch.setattr(scheduling_ddim, "randn_tensor", lambda *args, rng=rng, **kwargs: rng.normal_like(START))
        scheduler = lifted(
            diffusers.DDIMScheduler(
                1000,
                clip_sample=False,
                set_alpha_to_one=to_one,
                steps_offset=offset,
                timestep_spacing=spacing,
                prediction_type=kind,
            ),
            schedule,
        )
        end = 0.0 if to_one else 1 / 1000
        if spacing == "leading":
            if steps == 1 and not to_one and offset == 0:
                continue  # one step from 1/T to 1/T: a grid of no strides, which is refused
            times = leading(schedule, steps=steps, offset=offset, end=end)
        else:
            times = trailing(schedule, steps=steps, end=end)
        equal(ours(ddim, schedule, kind, times, eta=eta), foreign(scheduler, steps, eta=eta))
