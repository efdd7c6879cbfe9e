"""Configurations: of models that are about, of every class with every key, and those that are refused in a sentence."""

from __future__ import annotations

import importlib
import inspect
import json
from pathlib import Path
from typing import Annotated, Any

import pytest
from torch import nn

from carrara.config import Role, build, describe
from carrara.diffusion import (
    ClassifierFree,
    Clip,
    DiffusionGenerator,
    Epsilon,
    Flow,
    Karras,
    Learned,
    LogSigma,
    SamplingSettings,
    ScaledLinearBetas,
    Schedule,
    Transition,
    V,
    leading,
    resolution_shift,
    trailing,
    uniform,
)
from carrara.diffusion.parameterization import Level, Parameterization
from carrara.errors import RecipeError
from carrara.store.diffusers import read_scheduler, translate
from carrara.store.diffusers.classes import CLASSES
from carrara.store.diffusers.keys import REFUSED, SUPPORTED, Keys
from carrara.store.diffusers.parameterization import NegativeKarras
from carrara.store.diffusers.threshold import BoundedThreshold
from carrara.store.kinds import kinds
from carrara.types import Space
from parity.harness import scheduler_class

CONFIGS = Path(__file__).parent / "configs"
NAMES = sorted(path.stem for path in CONFIGS.glob("*.json") if path.stem != "wuerstchen")
SIZE = {"flux-dev": {"tokens": 4096}, "ltx-video": {"tokens": 2048}}


@pytest.mark.parametrize("name", NAMES)
def test_models_that_are_about(name: str) -> None:
    found = read_scheduler(CONFIGS / f"{name}.json")
    settings = found.settings(10, ClassifierFree(3.0), **SIZE.get(name, {}))
    times = settings.times(found.schedule)
    assert len(times) == 11 and times[0] <= 1 and times[-1] in (0, 1 / 1000)
    network = nn.Conv2d(3, 6 if found.learned_variance else 3, 1)
    generator = DiffusionGenerator(found.denoiser(network), Space("latent", (3, 4, 4)), settings=settings)
    assert generator.strides() == 10


@pytest.mark.parametrize("name", NAMES)
def test_a_model_folder_can_say_it(name: str) -> None:
    """Every object that a translation makes has a kind, and comes back from a file as it was."""
    found, known = read_scheduler(CONFIGS / f"{name}.json"), kinds()
    for annotation, value in (
        (Schedule, found.schedule),
        (Parameterization, found.parameterization),
        (Level, found.level),
        (SamplingSettings, found.settings(10, **SIZE.get(name, {}))),
    ):
        table = describe(value, known)
        again = build(annotation, json.loads(json.dumps(table)), known)
        assert describe(again, known) == table


def test_what_the_models_are() -> None:
    def read(name: str) -> Any:
        return read_scheduler(CONFIGS / f"{name}.json")

    found = read("stable-diffusion-1.5")
    assert (found.schedule, found.parameterization) == (ScaledLinearBetas(), Epsilon())
    assert found.sampler.func.__name__ == "plms" and found.ignored == ("clip_sample",)
    assert found.times(50)(found.schedule) == leading(found.schedule, steps=50, offset=1, end=1 / 1000)
    found = read("stable-diffusion-2.1")
    assert found.parameterization == V() and found.limit is None and found.ignored == ("skip_prk_steps",)
    found = read("sdxl")
    assert found.times(25)(found.schedule) == leading(found.schedule, steps=25, offset=1)
    found = read("sdxl-turbo")
    assert found.sampler.func.__name__ == "euler_ancestral"
    assert found.times(1)(found.schedule) == trailing(found.schedule, steps=1) == (1.0, 0.0)
    found = read("stable-diffusion-3")
    assert found.parameterization == Flow() and found.times(2)(found.schedule)[0] == 1
    found = read("flux-dev")
    sigmas = tuple(1 - i / 28 for i in range(28))
    handed = found.times(28, tokens=4096, sigmas=sigmas)(found.schedule)
    assert handed == pytest.approx(uniform(found.schedule, steps=28, shift=resolution_shift(4096)), abs=1e-12)
    found = read("lcm-dreamshaper")
    assert [round(1000 * t) for t in found.times(4)(found.schedule)] == [1000, 760, 500, 260, 0]
    found = read("playground-2.5")
    assert (found.parameterization, found.level) == (Karras(0.5), LogSigma())
    found = read("ddpm-cifar10")
    assert found.sampler.keywords == {"variance": Transition()} and found.limit == Clip()
    found = read("stable-video-diffusion")
    assert found.schedule.sigma_max == 700 and found.parameterization == NegativeKarras(1.0)
    found = read("deepfloyd-if")
    assert found.learned_variance and found.sampler.keywords == {"variance": Learned()}
    assert found.limit == BoundedThreshold(percentile=0.95, most=1.5)
    with pytest.raises(RecipeError, match="Würstchen is not read"):
        read("wuerstchen")


def every_class() -> dict[str, type]:
    """The scheduler classes of the installed library, from all its modules."""
    diffusers = pytest.importorskip("diffusers")
    found: dict[str, type] = {"DPMSolverSDEScheduler": scheduler_class("DPMSolverSDEScheduler")}
    folder = Path(diffusers.schedulers.__path__[0])
    for path in sorted(folder.rglob("scheduling_*.py")):
        if "flax" in path.name or path.stem in ("scheduling_dpmsolver_sde", "scheduling_cosine_dpmsolver_multistep"):
            continue
        module = importlib.import_module(
            ".".join(("diffusers.schedulers", *path.relative_to(folder).with_suffix("").parts))
        )
        for name, cls in vars(module).items():
            if name.endswith("Scheduler") and inspect.isclass(cls) and cls.__module__ == module.__name__:
                found[name] = cls
    return found


def test_every_class_is_read_or_refused_by_name() -> None:
    names = {*every_class(), "CosineDPMSolverMultistepScheduler"}
    assert set(CLASSES) == set(SUPPORTED)
    assert not set(SUPPORTED) & set(REFUSED)
    assert names - set(SUPPORTED) - set(REFUSED) == set()
    for name in REFUSED:
        with pytest.raises(RecipeError, match=f"^{name} is not read: .*These are: DDIMParallelScheduler"):
            translate({"_class_name": name})


@pytest.mark.parametrize("name", sorted(SUPPORTED))
def test_every_key_of_the_installed_library_is_covered(name: str) -> None:
    """The same keys, the same defaults; and every one of them is read."""
    parameters = inspect.signature(every_class()[name].__init__).parameters
    theirs = {key: value.default for key, value in parameters.items() if key != "self"}
    assert SUPPORTED[name] == theirs
    keys = Keys(name, {})
    CLASSES[name](keys)
    assert keys.finish() == () and keys.read == set(theirs)


# A value that is none, or a setting without a counterpart, for every key of every class; the others do nothing.
WRONG: dict[str, Any] = {
    "num_train_timesteps": "many", "beta_start": "low", "beta_end": -1.0, "beta_schedule": "round",
    "trained_betas": [2.0] * 1000, "variance_type": "fixed_large_log", "clip_sample": "yes", "clip_sample_range": None,
    "prediction_type": "score", "thresholding": 1, "dynamic_thresholding_ratio": "half", "sample_max_value": None,
    "timestep_spacing": "even", "steps_offset": 0.5, "rescale_betas_zero_snr": "yes", "set_alpha_to_one": 2,
    "skip_prk_steps": "no", "use_karras_sigmas": "yes", "use_exponential_sigmas": 1, "use_beta_sigmas": 1,
    "solver_order": 4, "algorithm_type": "dpmsolver", "solver_type": "simpson", "lower_order_final": "yes",
    "euler_at_final": "no", "use_lu_lambdas": 1, "use_flow_sigmas": 1, "final_sigmas_type": "one",
    "lambda_min_clipped": "low", "interpolation_type": "log_linear", "sigma_min": "low", "sigma_max": "high",
    "timestep_type": "dense", "sigma_data": -1.0, "sigma_schedule": "linear", "rho": "7", "shift": 0.0,
    "use_dynamic_shifting": 1, "time_shift_type": "square", "invert_sigmas": True, "shift_terminal": "near",
    "stochastic_sampling": "yes", "original_inference_steps": 0, "timestep_scaling": 1.0, "predict_x0": False,
    "disable_corrector": [0], "solver_p": {}, "flow_shift": -1.0,
}  # fmt: skip
IDLE = {
    "noise_sampler_seed": "DPMSolverSDEScheduler",
    "base_shift": "FlowMatchEulerDiscreteScheduler",
    "max_shift": "FlowMatchEulerDiscreteScheduler",
    "base_image_seq_len": "FlowMatchEulerDiscreteScheduler",
    "max_image_seq_len": "FlowMatchEulerDiscreteScheduler",
}


@pytest.mark.parametrize("key", sorted({key for keys in SUPPORTED.values() for key in keys}))
def test_a_wrong_value_is_refused_by_its_key(key: str) -> None:
    """At least one class that has the key refuses it by name, in a sentence that says what was expected."""
    if key in IDLE:
        return
    refused = []
    for name, keys in SUPPORTED.items():
        if key not in keys:
            continue
        given = {"_class_name": name, key: WRONG[key]}
        if key == "sample_max_value":
            given["thresholding"] = True
        if key == "flow_shift":
            given |= {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
        try:
            translate(given)
        except RecipeError as error:
            if f"{key} = " in str(error):
                refused.append(str(error))
    assert refused and all("expected" in message or "outside" in message for message in refused), refused


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"use_karras_sigma": True}, r'no key .use_karras_sigma.; did you mean "use_karras_sigmas"'),
        ({"colour": "red"}, r"no key .colour.; it has algorithm_type"),
        ({"solver_type": "heun"}, "solver_type = 'heun'; the rule of second order here is the midpoint"),
        ({"use_karras_sigmas": True, "use_beta_sigmas": True}, "use_karras_sigmas is true as well"),
        ({"use_flow_sigmas": True, "use_karras_sigmas": True}, "its levels are those of a table"),
        ({"use_flow_sigmas": True, "prediction_type": "v_prediction"}, "prediction_type = 'v_prediction'; expected"),
        ({"prediction_type": "flow_prediction"}, "prediction_type = 'flow_prediction'; expected"),
        ({"predict_epsilon": False}, '"prediction_type": "sample"'),
        ({"trained_betas": [0.1, 0.2]}, "trained_betas has 2 numbers"),
        ({"lambda_min_clipped": -5.0, "timestep_spacing": "trailing"}, "begins at the table's end"),
    ],
    ids=str,
)
def test_one_sentence_says_what_is_wrong(given: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        translate({"_class_name": "DPMSolverMultistepScheduler", **given})


def test_what_cannot_be_said_together_is_refused() -> None:
    for config, message in (
        ({"_class_name": "DDIMScheduler", "rescale_betas_zero_snr": True}, "predicting the noise says nothing"),
        ({"_class_name": "UniPCMultistepScheduler", "final_sigmas_type": "sigma_min"}, "of another order in diffusers"),
        ({"_class_name": "UniPCMultistepScheduler", "use_karras_sigmas": True, "sigma_max": 900.0}, "no such level"),
        ({"_class_name": "EulerDiscreteScheduler", "sigma_max": 9.0}, "does nothing without use_karras_sigmas"),
        ({"_class_name": "EulerDiscreteScheduler", "use_karras_sigmas": True, "sigma_max": 700.0}, "beyond the table"),
        ({"_class_name": "EDMDPMSolverMultistepScheduler", "algorithm_type": "sde-dpmsolver++", "solver_order": 3},
         "no stochastic form"),
        ({"_class_name": "NoSuchScheduler"}, "no such class is known"),
        ({}, '"_class_name"'),
    ):  # fmt: skip
        with pytest.raises(RecipeError, match=message):
            translate(config)


def test_the_size_is_asked_for_where_it_counts() -> None:
    found = read_scheduler(CONFIGS / "flux-dev.json")
    with pytest.raises(ValueError, match="give `tokens`"):
        found.times(4)
    with pytest.raises(ValueError, match="5 sigmas for 4 steps"):
        found.times(4, tokens=4096, sigmas=(1.0, 0.8, 0.6, 0.4, 0.2))
    found = read_scheduler(CONFIGS / "sdxl.json")
    with pytest.raises(ValueError, match="do not depend on the picture's size"):
        found.times(4, tokens=4096)
    with pytest.raises(ValueError, match="takes no sigmas"):
        found.times(4, sigmas=(1.0, 0.8, 0.6, 0.4))


def test_files_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "scheduler_config.json"
    with pytest.raises(RecipeError, match="cannot be read"):
        read_scheduler(tmp_path)
    path.write_text("[1]")
    with pytest.raises(RecipeError, match="holds list"):
        read_scheduler(tmp_path)
    path.write_text('{"_class_name": "FlaxDDIMScheduler"}')
    assert read_scheduler(tmp_path).name == "DDIMScheduler"


def test_new_kinds_are_of_their_roles() -> None:
    table = {"kind": "karras-levels", "inner": {"kind": "leading", "steps": 5, "offset": 1}, "end": None}
    grid = build(Annotated[Any, Role("times")], table, kinds())
    times = grid(ScaledLinearBetas())
    assert len(times) == 5 and times[0] == 802 / 1000 and times[-1] == 2 / 1000
