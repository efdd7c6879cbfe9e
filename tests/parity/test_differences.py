"""Where a translated scheduler is not diffusers' own: each difference with the least that it makes, and what is right.

docs/foreign-schedulers.md has the table with the reasons. A difference that has gone is a reason to change both.
"""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("diffusers")

from carrara.diffusion import Plain, Process, guide, heun, uniform_logsnr
from carrara.run import finish
from carrara.store.diffusers import translate
from carrara.store.diffusers.scheduler import noise_prior
from carrara.types import Estimate
from parity import harness
from parity.harness import DATA, NOISE, Recorded, foreign, gap, lifted, ours, scheduler_class

LATENT = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}


def config(name: str, **settings: Any) -> dict[str, Any]:
    return {"_class_name": f"{name}Scheduler", **settings}


class Exact:
    """The oracle of the harness, without a network: it is told the true time."""

    def __init__(self, process: Process) -> None:
        self.process = process

    def __call__(self, x: Tensor, t: Any, condition: Any = None) -> Estimate:
        return Estimate(1.2 * DATA.mean(x, t, self.process))


def reference(settings: dict[str, Any], steps: int) -> Tensor:
    """The probability-flow ODE's solution between the ends of the grid, by Heun's method in many strides."""
    process = translate(settings).process
    fine = uniform_logsnr(process.schedule, steps=1500, start=1.0, end=process.schedule.t_min)
    return finish(guide(heun(process, NOISE.clone(), fine, rng=Recorded()), Plain(), Exact(process)))


@pytest.mark.parametrize("name", ["DDIM", "PNDM"])
def test_the_next_time_is_the_grid_s_own(name: str) -> None:
    """theirs moves by T // N, whatever the grid says: wrong for linspace, and for trailing unless N divides T."""
    more = {"skip_prk_steps": True} if name == "PNDM" else {"clip_sample": False}
    for steps in (3, 7, 10, 20, 50):
        assert gap(config(name, **LATENT, **more, timestep_spacing="linspace"), steps) > 5e-3
    for steps in (3, 7):
        assert gap(config(name, **LATENT, **more, timestep_spacing="trailing"), steps) > 1e-4


def test_trailing_has_as_many_times_as_were_asked_for() -> None:
    """62 of the numbers to 1000 get one more, whose timestep is -1: the table's last entry, by Python's indices."""
    more = []
    with lifted("DDIMScheduler") as cls:
        scheduler = cls(timestep_spacing="trailing")
        for steps in range(1, 1001):
            scheduler.set_timesteps(steps)
            if len(scheduler.timesteps) != steps:
                assert len(scheduler.timesteps) == steps + 1 and scheduler.timesteps[-1] == -1
                more.append(steps)
    assert len(more) == 62 and more[:4] == [61, 103, 121, 122]
    found = translate(config("DDIM", clip_sample=False, timestep_spacing="trailing"))
    assert all(len(found.times(steps)(found.schedule)) == steps + 1 for steps in more)


def test_the_last_step_adds_no_noise() -> None:
    """theirs adds noise wherever the timestep is not 0, the last time included."""
    settings = config("DDPM", variance_type="fixed_large", clip_sample=False, timestep_spacing="trailing")
    assert all(gap(settings, steps) > 1e-2 for steps in (1, 10, 50))
    assert gap(config("DDPM", clip_sample=False, timestep_spacing="trailing"), 10) > 1e-11  # variance 1e-20


def test_clipping_changes_the_noise_as_well() -> None:
    """theirs keeps the noise that belongs to the estimate before it was clipped."""
    for steps in (3, 10):
        assert gap(config("DDIM", clip_sample=True), steps) > 1e-4
        assert gap(config("DDIM", clip_sample=True), steps, step={"use_clipped_model_output": True}) < 1e-9


def test_pndm_combines_noise_and_not_velocity() -> None:
    settings = {**LATENT, "timestep_spacing": "leading", "steps_offset": 1}
    for skip in (True, False):
        same = [config("PNDM", **settings, skip_prk_steps=skip, prediction_type=p) for p in ("epsilon", "v_prediction")]
        assert all(gap(same[1], steps) > 1e-3 for steps in (7, 10, 20))
        assert torch.allclose(ours(same[0], 10)[0], ours(same[1], 10)[0], atol=1e-9)  # the same denoiser


def test_pndm_of_one_step_is_heun_s() -> None:
    """theirs leaves out the second evaluation there."""
    assert gap(config("PNDM", **LATENT, skip_prk_steps=True, steps_offset=1), 1) > 1e-3


def test_pndm_s_middle_is_in_the_middle() -> None:
    """theirs moves by T // N // 2 and asks at T // N - T // N // 2: not the same where T // N is odd."""
    settings = config("PNDM", **LATENT, steps_offset=1)
    assert 1000 // 30 % 2 == 1 and 1e-6 < gap(settings, 30) < 1e-3


@pytest.mark.parametrize("name", ["EulerDiscrete", "EulerAncestralDiscrete", "HeunDiscrete", "LMSDiscrete"])
def test_one_step_of_linspace_begins_in_noise(name: str) -> None:
    """theirs begins, and ends, at timestep 0."""
    settings = config(name, **LATENT)
    assert gap(settings, 1) > 0.1
    found = translate(settings)
    assert found.times(1)(found.schedule) == (1.0, 0.0)


def test_one_step_of_exponential_levels_begins_in_noise() -> None:
    assert gap(config("EDMEuler", sigma_schedule="exponential"), 1) > 1
    assert gap(config("EDMEuler", sigma_schedule="karras"), 1) < 1e-9


def test_middles_between_entries_have_one_time() -> None:
    """On plain linspace theirs reads sigma linearly in t, but looks the middle's timestep up linearly in log sigma."""
    for steps in (3, 7, 20):
        assert 1e-7 < gap(config("DPMSolverSDE", **LATENT), steps) < 1e-3


@pytest.mark.parametrize("algorithm", ["dpmsolver++", "sde-dpmsolver++"])
def test_third_order_is_of_third_order(algorithm: str) -> None:
    """theirs has half of the quadratic term (and for the SDE its constant with the wrong sign)."""
    settings = config("DPMSolverMultistep", **LATENT, solver_order=3, algorithm_type=algorithm)
    least = 1e-4 if algorithm == "dpmsolver++" else 1e-2
    assert all(gap(settings, steps) > least for steps in (10, 20, 50))


def test_third_order_is_nearer_to_the_truth() -> None:
    # which ends in a stride of no length, where third order would be 0/0 in theirs
    last = {"final_sigmas_type": "sigma_min", "euler_at_final": True, "use_exponential_sigmas": True}
    settings = config("DPMSolverMultistep", **LATENT, **last, solver_order=3)
    for steps in (60, 120):
        truth = reference(settings, steps)
        # both on times that are between the entries, where only the truncated number differs from the truth
        mine, theirs = (_exact_level(run, settings, steps) for run in (ours, foreign))
        assert (mine - truth).abs().max() < 0.5 * (theirs - truth).abs().max()


def _exact_level(run: Any, settings: dict[str, Any], steps: int) -> Tensor:
    """The same run with a network that hears where x_t is, and not the entry below."""
    found = translate(settings)
    times = iter(found.times(steps)(found.schedule))
    told = harness.Oracle.time
    harness.Oracle.time = lambda self, level: next(times)  # type: ignore[method-assign]
    try:
        x: Tensor = run(settings, steps)[0]
    finally:
        harness.Oracle.time = told  # type: ignore[method-assign]
    return x


def test_unipc_of_third_order_keeps_it() -> None:
    """theirs lowers the order of the last two strides ("lower_order_final")."""
    assert all(gap(config("UniPCMultistep", **LATENT, solver_order=3), steps) > 1e-4 for steps in (7, 20, 50))
    assert gap(config("UniPCMultistep", **LATENT, solver_order=2), 20) < 1e-9


def test_unipc_with_bh1_ends() -> None:
    """theirs multiplies an infinite B(h) by 0 in the last stride."""
    settings = config("UniPCMultistep", **LATENT, solver_type="bh1")
    assert not bool(foreign(settings, 10)[0].isfinite().any()) and bool(ours(settings, 10)[0].isfinite().all())


def test_whole_numbers_are_truncated_after_rounding_errors() -> None:
    """theirs truncates 332.9999... to 332, here it is 333."""
    settings = config("DPMSolverSinglestep", **FLOW)
    (_, theirs), (_, mine) = foreign(settings, 3), ours(settings, 3)
    assert theirs.asked == [999.0, 666.0, 332.0] and mine.asked == [999.0, 666.0, 333.0]
    settings = config("UniPCMultistep", **FLOW, shift_terminal=0.1)
    (_, theirs), (_, mine) = foreign(settings, 7), ours(settings, 7)
    assert theirs.asked[-1] == 99.0 and mine.asked[-1] == 100.0


def test_levels_that_fall_on_one_whole_number_are_walked() -> None:
    """theirs looks its place up by the whole number; in float32 the first two are one, and it runs off the end."""
    settings = {"beta_schedule": "squaredcos_cap_v2", "use_karras_sigmas": True}
    scheduler = scheduler_class("DPMSolverMultistepScheduler")(**settings)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        scheduler.set_timesteps(20)
    assert scheduler.timesteps[0] == scheduler.timesteps[1]
    x = torch.zeros(1, 1, 2, 2)
    with pytest.raises(IndexError):
        for t in scheduler.timesteps:
            x = scheduler.step(torch.zeros_like(x), t, x).prev_sample
    assert bool(ours(config("DPMSolverMultistep", **settings), 20)[0].isfinite().all())


def test_the_noise_of_two_stages_is_one_path() -> None:
    """Both stages of DPMSolverSDE have the right variance in theirs; how they are correlated differs."""
    found = translate(config("DPMSolverSDE", **LATENT, timestep_spacing="trailing"))
    assert found.prior is noise_prior
    # theirs is Brownian in sigma, the SDE's own is Brownian in sigma^2: in sigma / alpha from 8 over 4 to 2
    sigma, middle, to = 8.0, 4.0, 2.0
    theirs = ((sigma - middle) / (sigma - to)) ** 0.5
    up = lambda a, b: b * (1 - (b / a) ** 2) ** 0.5
    right = (to / middle) ** 2 * up(sigma, middle) / up(sigma, to)
    assert abs(theirs - right) > 0.3


def test_the_noise_begun_with() -> None:
    """theirs scales it by what `prior_std` says; Carrara's generator by 1, or by sigma where that is larger."""
    for name, settings, least, most in (
        ("DDIM", {}, 1.0, 1.0),
        ("EulerDiscrete", {"timestep_spacing": "leading"}, 1.0, 1.0),
        ("EulerDiscrete", {"timestep_spacing": "trailing"}, 0.997, 0.998),
        ("EDMEuler", {}, 80.006, 80.007),
        ("FlowMatchEulerDiscrete", {"shift": 3.0}, 1.0, 1.0),
    ):
        full = config(name, **({} if name.startswith(("EDM", "Flow")) else LATENT), **settings)
        found = translate(full)
        with lifted(full["_class_name"]) as cls:
            scheduler = cls(**{key: value for key, value in full.items() if key != "_class_name"})
            scheduler.set_timesteps(10)
            theirs = float(getattr(scheduler, "init_noise_sigma", 1.0))
        first = found.schedule(found.times(10)(found.schedule)[0])
        if name == "EulerDiscrete":  # theirs is that of x / alpha
            theirs *= first[0]
        assert least - 1e-12 <= found.prior_std(10) <= most + 1e-12
        assert found.prior_std(10) == pytest.approx(theirs, rel=1e-3 if "leading" in str(settings) else 1e-9)
        assert found.process.prior_std() == pytest.approx(found.prior_std(10), rel=3e-3)
