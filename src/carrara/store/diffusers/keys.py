"""The keys of a configuration file: what a class may say, and what it means when it does not say it.

A network's module says which keys its class has. Of schedulers, `SUPPORTED` has the constructor's arguments of every
class that is translated, with diffusers' own defaults; `REFUSED` why each of the others is not. The file of one often
holds keys of another class, from which it was converted: diffusers ignores those, and so does this, but says so.
Nothing else is ignored.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Collection, Mapping
from typing import Any, NoReturn, TypeVar

from carrara.errors import RecipeError

__all__ = ["Keys", "MOST_BLOCKS", "REFUSED", "SUPPORTED"]

MOST_BLOCKS = 256
"""Of what a network has one after another: beyond it a file is meant to do harm."""

Value = TypeVar("Value")

_TABLE = {"num_train_timesteps": 1000, "beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear",
          "trained_betas": None}  # fmt: skip
_LATENT_TABLE = {**_TABLE, "beta_start": 0.00085, "beta_end": 0.012}
_SIGMAS = {"use_karras_sigmas": False, "use_exponential_sigmas": False, "use_beta_sigmas": False}
_SPACED = {"timestep_spacing": "linspace", "steps_offset": 0}
_LEADING = {"timestep_spacing": "leading", "steps_offset": 0}
_PREDICTION = {"prediction_type": "epsilon"}
_THRESHOLD = {"thresholding": False, "dynamic_thresholding_ratio": 0.995, "sample_max_value": 1.0}
_CLIP = {"clip_sample": True, "clip_sample_range": 1.0}
_ZERO_SNR = {"rescale_betas_zero_snr": False}
_FINAL = {"final_sigmas_type": "zero"}
_FLOW = {"use_flow_sigmas": False, "flow_shift": 1.0, "use_dynamic_shifting": False, "time_shift_type": "exponential"}
_DPM = {"solver_order": 2, "algorithm_type": "dpmsolver++", "solver_type": "midpoint"}
_CLIPPED = {"lambda_min_clipped": -math.inf, "variance_type": None}
_EDM = {"sigma_min": 0.002, "sigma_max": 80.0, "sigma_data": 0.5, "sigma_schedule": "karras",
        "num_train_timesteps": 1000, "rho": 7.0}  # fmt: skip
_DDPM = {**_TABLE, "variance_type": "fixed_small", **_CLIP, **_PREDICTION, **_THRESHOLD, **_LEADING, **_ZERO_SNR}
_DDIM = {**_TABLE, **_CLIP, "set_alpha_to_one": True, **_PREDICTION, **_THRESHOLD, **_LEADING, **_ZERO_SNR}

SUPPORTED: dict[str, dict[str, Any]] = {
    "DDIMParallelScheduler": _DDIM,
    "DDIMScheduler": _DDIM,
    "DDPMParallelScheduler": _DDPM,
    "DDPMScheduler": _DDPM,
    "DPMSolverMultistepScheduler": {
        **_TABLE, **_DPM, **_PREDICTION, **_THRESHOLD, **_SIGMAS, **_FLOW, **_FINAL, **_CLIPPED, **_SPACED,
        **_ZERO_SNR, "lower_order_final": True, "euler_at_final": False, "use_lu_lambdas": False,
    },
    "DPMSolverSDEScheduler": {**_LATENT_TABLE, **_PREDICTION, **_SIGMAS, **_SPACED, "noise_sampler_seed": None},
    "DPMSolverSinglestepScheduler": {
        **_TABLE, **_DPM, **_PREDICTION, **_THRESHOLD, **_SIGMAS, **_FLOW, **_FINAL, **_CLIPPED,
        "lower_order_final": False,
    },
    "EDMDPMSolverMultistepScheduler": {
        **_EDM, **_PREDICTION, **_DPM, **_THRESHOLD, **_FINAL, "lower_order_final": True, "euler_at_final": False,
    },
    "EDMEulerScheduler": {**_EDM, **_PREDICTION, **_FINAL},
    "EulerAncestralDiscreteScheduler": {**_TABLE, **_PREDICTION, **_SPACED, **_ZERO_SNR},
    "EulerDiscreteScheduler": {
        **_TABLE, **_PREDICTION, **_SIGMAS, **_SPACED, **_ZERO_SNR, **_FINAL, "interpolation_type": "linear",
        "sigma_min": None, "sigma_max": None, "timestep_type": "discrete",
    },
    "FlowMatchEulerDiscreteScheduler": {
        **_SIGMAS, "num_train_timesteps": 1000, "shift": 1.0, "use_dynamic_shifting": False, "base_shift": 0.5,
        "max_shift": 1.15, "base_image_seq_len": 256, "max_image_seq_len": 4096, "invert_sigmas": False,
        "shift_terminal": None, "time_shift_type": "exponential", "stochastic_sampling": False,
    },
    "FlowMatchHeunDiscreteScheduler": {"num_train_timesteps": 1000, "shift": 1.0},
    "HeunDiscreteScheduler": {**_LATENT_TABLE, **_PREDICTION, **_SIGMAS, **_CLIP, "clip_sample": False, **_SPACED},
    "LCMScheduler": {
        **_LATENT_TABLE, "beta_schedule": "scaled_linear", "original_inference_steps": 50, **_CLIP,
        "clip_sample": False, "set_alpha_to_one": True, **_PREDICTION, **_THRESHOLD, **_LEADING,
        "timestep_scaling": 10.0, **_ZERO_SNR,
    },
    "LMSDiscreteScheduler": {**_TABLE, **_PREDICTION, **_SIGMAS, **_SPACED},
    "PNDMScheduler": {**_TABLE, "skip_prk_steps": False, "set_alpha_to_one": False, **_PREDICTION, **_LEADING},
    "UniPCMultistepScheduler": {
        **_TABLE, **_PREDICTION, **_THRESHOLD, **_SIGMAS, **_FLOW, **_FINAL, **_SPACED, **_ZERO_SNR,
        "solver_order": 2, "predict_x0": True, "solver_type": "bh2", "lower_order_final": True,
        "disable_corrector": [], "solver_p": None, "sigma_min": None, "sigma_max": None, "shift_terminal": None,
    },
}  # fmt: skip

_TOKENS = "it unmasks tokens, and there is no noise in it that a schedule could say"
_OTHER = "no sampler here is that algorithm"
_VIDEO = "it belongs to one video model, whose stages it knows"

REFUSED: dict[str, str] = {
    "AmusedScheduler": _TOKENS,
    "BlockRefinementScheduler": _TOKENS,
    "CMStochasticIterativeScheduler": "its consistency model has boundary conditions that no parameterization here has",
    "CogVideoXDDIMScheduler": "its table is shifted in SNR, which no schedule here is",
    "CogVideoXDPMScheduler": "its table is shifted in SNR, which no schedule here is",
    "ConsistencyDecoderScheduler": "it belongs to one decoder of two steps",
    "CosineDPMSolverMultistepScheduler": "it belongs to one audio model, whose preconditioning it holds",
    "DDIMInverseScheduler": "it goes from data to noise, which is no sampler but `carrara.diffusion.invert`; "
    'take the "DDIMScheduler" that it inverts',
    "DDPMWuerstchenScheduler": "it asks at times of its own in (0, 1) and has no table; Würstchen is not read",
    "DEISMultistepScheduler": _OTHER,
    "DPMSolverMultistepInverseScheduler": "it goes from data to noise, which is no sampler",
    "DiscreteDDIMScheduler": _TOKENS,
    "EntropyBoundScheduler": _TOKENS,
    "FlowMapEulerDiscreteScheduler": "its network is told two times, and networks here are told one",
    "FlowMatchLCMScheduler": "it changes the size of the picture on its way",
    "HeliosDMDScheduler": _VIDEO,
    "HeliosScheduler": _VIDEO,
    "IPNDMScheduler": _OTHER,
    "KDPM2AncestralDiscreteScheduler": _OTHER,
    "KDPM2DiscreteScheduler": _OTHER,
    "KarrasVeScheduler": "its first stride begins with noise at every level; take `heun` with a `Churn`",
    "LTXEulerAncestralRFScheduler": _OTHER,
    "MiniMaxH3Scheduler": _VIDEO,
    "PiflowScheduler": "its network makes a policy and no estimate",
    "RFD4ProteinaScheduler": "it belongs to one protein model",
    "RePaintScheduler": "it fills in a part of a picture, which is `carrara.diffusion.inpaint`",
    "SASolverScheduler": _OTHER,
    "SCMScheduler": "it belongs to networks that predict in the angle of noise and data (TrigFlow)",
    "ScoreSdeVeScheduler": "it corrects before it predicts; take `predictor_corrector`",
    "ScoreSdeVpScheduler": _OTHER,
    "TCDScheduler": _OTHER,
    "UnCLIPScheduler": "it belongs to one cascade, whose variances it splits",
    "VQDiffusionScheduler": _TOKENS,
}

_OF_THE_FILE = ("_class_name", "_diffusers_version", "_name_or_path", "_use_default_values")
# What earlier versions wrote, or others' files hold, and none of the classes above reads any longer.
_FORMER = {"clip_denoised", "predict_epsilon", "set_alpha_to_zero", "timestep_values", "tensor_format"}
_ELSEWHERE = {key for keys in SUPPORTED.values() for key in keys} | _FORMER | {
    "args", "eta", "kwargs", "snr_shift_scale", "s_noise", "tau_func", "predictor_order", "corrector_order",
}  # fmt: skip


class Keys:
    """The keys of one file; every one has to be read, or be said to do nothing, before `finish`.

    name: the class in its library. defaults: of all its keys; None for a scheduler. elsewhere: keys of other classes
    that its files may hold, which are ignored and kept in `ignored`; a scheduler's may hold those of all others.
    Raises RecipeError for any other key.
    """

    def __init__(
        self,
        name: str,
        given: Mapping[str, Any],
        defaults: Mapping[str, Any] | None = None,
        *,
        elsewhere: Collection[str] | None = None,
    ) -> None:
        self.name = name
        if elsewhere is None:
            elsewhere = _ELSEWHERE if defaults is None else ()
        defaults = SUPPORTED[name] if defaults is None else defaults
        self.ignored: list[str] = []
        for key in given:
            if key in defaults or key in _OF_THE_FILE:
                continue
            if key not in elsewhere:
                near = difflib.get_close_matches(key, [*defaults, *sorted(elsewhere)], n=1, cutoff=0.5)
                hint = f'; did you mean "{near[0]}"?' if near else ";"
                allowed = ", ".join(sorted(defaults))
                raise RecipeError(f"{name} has no key {key!r}{hint} it has {allowed}")
            self.ignored.append(key)
        if given.get("predict_epsilon") is False:
            raise RecipeError(
                f'{name}: predict_epsilon = false is no longer read; write "prediction_type": "sample" in its place'
            )
        self._values = {key: given.get(key, default) for key, default in defaults.items()}
        self.read: set[str] = set()

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def __getitem__(self, key: str) -> Any:
        self.read.add(key)
        return self._values[key]

    def flag(self, key: str) -> bool:
        """A truth; null is false, and so is a key that the class does not have."""
        if key not in self:
            return False
        value = self[key]
        if value is not None and not isinstance(value, bool):
            self.refuse(key, "expected true or false")
        return bool(value)

    def number(self, key: str) -> float:
        """A number."""
        value = self[key]
        if isinstance(value, bool) or not isinstance(value, int | float):
            self.refuse(key, "expected a number")
        return float(value)

    def count(self, key: str) -> int:
        """A whole number."""
        value = self[key]
        if isinstance(value, bool) or not isinstance(value, int):
            self.refuse(key, "expected a whole number")
        return value

    def size(self, key: str, *, most: int = 1 << 20) -> int:
        """A whole number from 1 to `most`: what a network is built of."""
        value = self.count(key)
        if not 1 <= value <= most:
            self.refuse(key, f"expected a number from 1 to {most}")
        return value

    def sizes(self, key: str, count: int | None = None, *, most: int = 1 << 20) -> tuple[int, ...]:
        """Such numbers, `count` of them if that is given; one number then stands for as many."""
        value = self[key]
        each = [value] * count if count is not None and not isinstance(value, list | tuple) else value
        if not isinstance(each, list | tuple) or not all(type(item) is int and 1 <= item <= most for item in each):
            self.refuse(key, f"expected numbers from 1 to {most}")
        if count is not None and len(each) != count:
            self.refuse(key, f"expected {count} numbers, one for each resolution")
        return tuple(each)

    def choice(self, key: str, choices: Mapping[Any, Value]) -> Value:
        """What the key's value stands for."""
        value = self[key]
        if not isinstance(value, str | int | None) or value not in choices:
            self.refuse(key, "expected " + ", ".join(repr(choice) for choice in choices))
        return choices[value]

    def only(self, key: str, *allowed: Any, why: str) -> None:
        """Refuses every value but these."""
        if self[key] not in allowed:
            self.refuse(key, why)

    def without_effect(self, *keys: str) -> None:
        """Says that what these keys hold changes nothing here, as it changes nothing in diffusers."""
        self.read.update(keys)

    def refuse(self, key: str, why: str) -> NoReturn:
        """Raises the error that names the class, the key and its value."""
        value = repr(self._values[key])
        raise RecipeError(f"{self.name}: {key} = {value if len(value) < 80 else value[:60] + '...'}; {why}")

    def finish(self) -> tuple[str, ...]:
        """The keys of other classes that were ignored; every key of this one has been read."""
        left = sorted(self._values.keys() - self.read)
        assert not left, f"{self.name}: nothing reads {left}"
        return tuple(self.ignored)
