"""Translated schedulers against diffusers' own, in its own loop: equal to rounding, for every spacing and setting.

What differs, and by how much, is in test_differences.py and docs/foreign-schedulers.md.
"""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("diffusers")

from parity.harness import foreign, gap, ours

# the parity that is asked for is 1e-5; in float64 there is little left but rounding
ROUNDING = 1e-9
STEPS = (1, 2, 3, 7, 10, 20, 50)
EVEN = (1, 2, 10, 20, 50)  # divide 1000
LATENT = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SPACINGS = ("leading", "trailing", "linspace")
LEVELS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")
FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}


def check(name: str, settings: dict[str, Any], steps: tuple[int, ...], bound: float = ROUNDING, **how: Any) -> None:
    for count in steps:
        found = gap({"_class_name": f"{name}Scheduler", **settings}, count, **how)
        assert found <= bound, f"{name} in {count} steps with {settings}: {found:.2e}"


def over(steps: tuple[int, ...], least: int) -> tuple[int, ...]:
    return tuple(count for count in steps if count >= least)


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("spacing", SPACINGS)
def test_ddpm(spacing: str, prediction: str) -> None:
    settings = {"timestep_spacing": spacing, "prediction_type": prediction, "clip_sample": False}
    check("DDPM", settings, over(STEPS, 2 if spacing == "linspace" else 1))


@pytest.mark.parametrize(
    "settings",
    [
        {"variance_type": "fixed_large"},
        {"variance_type": "fixed_small_log"},
        {"clip_sample": True, "clip_sample_range": 0.7},
        {"thresholding": True},
        {"thresholding": True, "dynamic_thresholding_ratio": 0.8, "sample_max_value": 1.2},
        {"beta_schedule": "sigmoid"},
        {"beta_schedule": "laplace"},
        {"beta_schedule": "squaredcos_cap_v2"},
        {"trained_betas": [0.001 + 1e-5 * i for i in range(1000)]},
        {**LATENT, "steps_offset": 1, "variance_type": "fixed_small"},
        {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "timestep_spacing": "trailing"},
    ],
    ids=str,
)
def test_ddpm_settings(settings: dict[str, Any]) -> None:
    check("DDPM", {"clip_sample": False, **settings}, (1, 7, 20))


def test_ddpm_full() -> None:
    """All thousand steps of the paper."""
    check("DDPM", {"clip_sample": False}, (1000,))


@pytest.mark.parametrize("to_one", [True, False])
@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("offset", [0, 1])
def test_ddim(offset: int, prediction: str, to_one: bool) -> None:
    settings = {"clip_sample": False, "prediction_type": prediction, "set_alpha_to_one": to_one}
    # one step from 1/T to 1/T is a grid of no strides, which is refused
    steps = over(STEPS, 1 if to_one or offset else 2)
    check("DDIM", {**LATENT, **settings, "steps_offset": offset}, steps)
    check("DDIM", {**LATENT, **settings, "timestep_spacing": "trailing"}, EVEN)


def test_ddim_settings() -> None:
    zero = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "timestep_spacing": "trailing"}
    check("DDIM", {**LATENT, **zero, "clip_sample": False}, EVEN)
    for clipping in ({}, {"thresholding": True, "sample_max_value": 1.2, "dynamic_thresholding_ratio": 0.8}):
        check("DDIM", clipping, (3, 10), step={"use_clipped_model_output": True})


@pytest.mark.parametrize("to_one", [True, False])
@pytest.mark.parametrize("offset", [0, 1])
def test_pndm(offset: int, to_one: bool) -> None:
    settings = {**LATENT, "steps_offset": offset, "set_alpha_to_one": to_one}
    check("PNDM", {**settings, "skip_prk_steps": True}, over(STEPS, 2))
    check("PNDM", {**settings, "timestep_spacing": "trailing", "skip_prk_steps": True, "steps_offset": 0}, EVEN[1:])
    check("PNDM", settings, over(STEPS, 7))


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
def test_lcm(prediction: str) -> None:
    """Its boundary conditions are left out: 5e-6 of an estimate at 50 steps, less at fewer."""
    check("LCM", {"prediction_type": prediction}, STEPS, 1e-5)
    check("LCM", {"prediction_type": prediction, "clip_sample": True, "original_inference_steps": 100}, (4,), 1e-5)


SIGMA = ("EulerDiscrete", "EulerAncestralDiscrete", "HeunDiscrete", "LMSDiscrete", "DPMSolverSDE")


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("name", SIGMA)
def test_sigmas(name: str, spacing: str) -> None:
    if (name, spacing) == ("DPMSolverSDE", "linspace"):
        return  # test_differences.py
    check(name, {**LATENT, "timestep_spacing": spacing}, over(STEPS, 2 if spacing == "linspace" else 1))


@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize("name", [name for name in SIGMA if name != "EulerAncestralDiscrete"])
def test_sigma_levels(name: str, levels: str) -> None:
    for spacing in SPACINGS:
        check(name, {**LATENT, "timestep_spacing": spacing, levels: True}, (2, 7, 20))
    check(name, {**LATENT, "timestep_spacing": "leading", "steps_offset": 1, levels: True}, (1, 10))


def test_sigma_settings() -> None:
    for name in ("EulerDiscrete", "HeunDiscrete", "LMSDiscrete"):
        check(name, {**LATENT, "prediction_type": "sample"}, (7,))
    for name in SIGMA:
        check(name, {**LATENT, "prediction_type": "v_prediction", "timestep_spacing": "leading"}, (7,))
    zero = {**LATENT, "rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}
    for name in SIGMA[:2]:
        check(name, {**zero, "timestep_spacing": "trailing"}, EVEN)
        check(name, {**zero, "timestep_spacing": "linspace"}, (2, 7))
    check("HeunDiscrete", {"clip_sample": True, "clip_sample_range": 0.8}, (2, 10))
    check("HeunDiscrete", {"beta_schedule": "exp"}, (2, 10))


def test_euler_settings() -> None:
    last = {**LATENT, "final_sigmas_type": "sigma_min"}
    check("EulerDiscrete", last, over(STEPS, 2))
    check("EulerDiscrete", {**last, "timestep_spacing": "trailing"}, EVEN)
    check("EulerDiscrete", {**last, "use_karras_sigmas": True}, (2, 10))
    check("EulerDiscrete", {**LATENT, "use_karras_sigmas": True, "interpolation_type": "log_linear"}, STEPS)
    continuous = {**LATENT, "timestep_type": "continuous", "prediction_type": "v_prediction"}
    check("EulerDiscrete", {**continuous, "timestep_spacing": "leading"}, (3, 10))
    for levels in LEVELS:
        between = {"sigma_min": 0.1, "sigma_max": 10.0, levels: True}
        check("EulerDiscrete", {**LATENT, **between}, (1, 2, 10))
        check("EulerDiscrete", {**continuous, **between, "sigma_min": 0.002, "sigma_max": 700.0}, (1, 2, 10))


SOLVERS = ("DPMSolverMultistep", "UniPCMultistep")


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("name", SOLVERS)
def test_solvers(name: str, spacing: str) -> None:
    check(name, {**LATENT, "timestep_spacing": spacing}, STEPS)
    zero = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}
    check(name, {**LATENT, **zero, "timestep_spacing": spacing}, (2, 10))


@pytest.mark.parametrize("levels", [*LEVELS, "use_lu_lambdas"])
@pytest.mark.parametrize("name", [*SOLVERS, "DPMSolverSinglestep"])
def test_solver_levels(name: str, levels: str) -> None:
    if levels == "use_lu_lambdas" and name != "DPMSolverMultistep":
        return
    check(name, {**LATENT, levels: True}, STEPS)


def test_solver_settings() -> None:
    for name in (*SOLVERS, "DPMSolverSinglestep"):
        check(name, {**LATENT, "solver_order": 1}, (1, 7))
        check(name, {**LATENT, "thresholding": True}, (3, 10))
        check(name, {"thresholding": True, "dynamic_thresholding_ratio": 0.8, "sample_max_value": 1.2}, (3, 10))
        for prediction in ("sample", "v_prediction"):
            check(name, {**LATENT, "prediction_type": prediction}, (7,))
    for name in SOLVERS:
        check(name, {**LATENT, "timestep_spacing": "leading", "steps_offset": 1}, (1, 10))


def test_multistep_settings() -> None:
    last = {**LATENT, "final_sigmas_type": "sigma_min"}
    for noise in ({}, {"algorithm_type": "sde-dpmsolver++"}):
        check("DPMSolverMultistep", {**LATENT, **noise}, STEPS)
        for ending in ({}, {"euler_at_final": True}, {"lower_order_final": False}):
            check("DPMSolverMultistep", {**last, **noise, **ending}, (2, 7, 14, 15, 20))
        # theirs makes a stride of no length at the end, with noise of the square root of a rounding error
        check("DPMSolverMultistep", {**last, **noise, "use_karras_sigmas": True}, (2, 14, 20), 1e-7)
        check("DPMSolverMultistep", {**LATENT, **noise, "use_exponential_sigmas": True}, (2, 10))
    cosine = {"beta_schedule": "squaredcos_cap_v2"}
    check("DPMSolverMultistep", {**cosine, "lambda_min_clipped": -5.1}, STEPS)
    check("DPMSolverMultistep", {**cosine, "use_karras_sigmas": True}, (2, 7))


def test_singlestep() -> None:
    check("DPMSolverSinglestep", LATENT, STEPS)
    for lower in (True, False):
        check("DPMSolverSinglestep", {**LATENT, "final_sigmas_type": "sigma_min", "lower_order_final": lower}, STEPS)
    check("DPMSolverSinglestep", {"lambda_min_clipped": -5.1, "beta_schedule": "squaredcos_cap_v2"}, (2, 7, 20))


@pytest.mark.parametrize("b", ["bh1", "bh2"])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_unipc(order: int, b: str) -> None:
    last = {"final_sigmas_type": "sigma_min", "lower_order_final": False}
    check("UniPCMultistep", {**LATENT, **last, "solver_order": order, "solver_type": b}, STEPS)


def test_unipc_levels() -> None:
    for levels in LEVELS:
        check("UniPCMultistep", {**LATENT, levels: True, "sigma_min": 0.1, "sigma_max": 10.0}, (1, 2, 10))


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_solvers_on_a_straight_path(shift: float) -> None:
    settings = {**FLOW, "flow_shift": shift}
    sound = tuple(count for count in STEPS if count != 3 or shift != 1)  # test_differences.py: 333 is truncated to 332
    check("DPMSolverMultistep", settings, sound)
    check("DPMSolverSinglestep", settings, sound)
    check("UniPCMultistep", settings, sound)
    check("DPMSolverMultistep", {**settings, "algorithm_type": "sde-dpmsolver++"}, (1, 7))
    for name in SOLVERS:
        check(name, {**settings, "prediction_type": "sample"}, (1, 7))
    check("UniPCMultistep", {**settings, "use_karras_sigmas": True, "sigma_max": 200.0, "sigma_min": 0.01}, STEPS)


def test_shifts_that_depend_on_the_size() -> None:
    for name in SOLVERS:
        check(name, {**FLOW, "use_dynamic_shifting": True}, (1, 7), mu=0.9)
    settings = {**FLOW, "use_dynamic_shifting": True, "time_shift_type": "linear"}
    check("UniPCMultistep", settings, (1, 7), mu=2.5)
    for kind in ("exponential", "linear"):
        check("FlowMatchEulerDiscrete", {"use_dynamic_shifting": True, "time_shift_type": kind}, STEPS, mu=0.9)
    flux = {"use_dynamic_shifting": True, "shift": 3.0}
    for steps in STEPS:
        sigmas = tuple(1 - i / steps for i in range(steps))
        # what FLUX's pipeline hands in for 4096 tokens, mu = max_shift
        laid = {"mu": 1.15, "sigmas": list(sigmas)}
        found = {"_class_name": "FlowMatchEulerDiscreteScheduler", **flux}
        assert gap(found, steps, laid=laid, tokens=4096, sigmas=sigmas) <= ROUNDING


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("schedule", ["karras", "exponential"])
@pytest.mark.parametrize("name", ["EDMEuler", "EDMDPMSolverMultistep"])
def test_edm(name: str, schedule: str, prediction: str) -> None:
    settings = {"sigma_schedule": schedule, "prediction_type": prediction, "sigma_data": 0.7}
    check(name, settings, over(STEPS, 2 if schedule == "exponential" else 1))
    check(name, {**settings, "final_sigmas_type": "sigma_min", "sigma_max": 20.0, "rho": 5.0}, (2, 7, 20))


def test_edm_multistep() -> None:
    check("EDMDPMSolverMultistep", {"algorithm_type": "sde-dpmsolver++"}, STEPS)
    check("EDMDPMSolverMultistep", {"solver_order": 1, "thresholding": True, "sample_max_value": 1.1}, (2, 7))


@pytest.mark.parametrize(
    "settings",
    [{}, {"shift": 3.0}, {"shift_terminal": 0.1, "shift": 3.0}, {"stochastic_sampling": True}]
    + [{levels: True, "shift": 3.0} for levels in LEVELS],
    ids=str,
)
def test_flow_euler(settings: dict[str, Any]) -> None:
    check("FlowMatchEulerDiscrete", settings, over(STEPS, 2 if "shift_terminal" in settings else 1))


def test_flow_heun() -> None:
    check("FlowMatchHeunDiscrete", {}, STEPS)
    check("FlowMatchHeunDiscrete", {"shift": 3.0}, STEPS)


def test_the_network_hears_the_same_numbers() -> None:
    """Not only the pictures: every number that the network is told, in order."""
    for name, settings in (
        ("PNDM", {"skip_prk_steps": True, "steps_offset": 1}),
        ("EulerDiscrete", {"use_karras_sigmas": True}),
        ("DPMSolverMultistep", {"use_karras_sigmas": True}),
        ("UniPCMultistep", {"use_exponential_sigmas": True}),
        ("FlowMatchHeunDiscrete", {"shift": 3.0}),
        ("EDMEuler", {}),
    ):
        config = {"_class_name": f"{name}Scheduler", **settings}
        (_, theirs), (_, mine) = foreign(config, 10), ours(config, 10)
        assert mine.asked == pytest.approx(theirs.asked, rel=1e-6, abs=1e-4)
