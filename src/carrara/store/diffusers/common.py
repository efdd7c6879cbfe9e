"""What the keys of several scheduler classes mean alike."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping

from carrara.diffusion.guidance import Wrapper
from carrara.diffusion.limits import Clip
from carrara.diffusion.parameterization import X0, Epsilon, Flow, Parameterization, V
from carrara.diffusion.sampler import Coordinate
from carrara.diffusion.schedule import Schedule, Tabulated
from carrara.diffusion.times import Grid, shift
from carrara.store.diffusers.keys import Keys
from carrara.store.diffusers.spacing import DynamicShift
from carrara.store.diffusers.threshold import BoundedThreshold
from carrara.store.diffusers.times import beta_levels, exponential_levels, karras_levels

__all__ = ["NOISY", "Step", "dynamic", "end", "levels", "limit", "prediction", "shifts", "sigma_range", "spaced"]

Step = functools.partial[Grid]
"""A grid without its steps, or without the grid inside of it."""

NOISY = ("epsilon", "sample", "v_prediction")
_PREDICTIONS: Mapping[str, Parameterization] = {
    "epsilon": Epsilon(), "sample": X0(), "v_prediction": V(), "flow_prediction": Flow(), "original_sample": X0(),
}  # fmt: skip


def prediction(keys: Keys, *names: str) -> Parameterization:
    """What the network says, one of `names`."""
    return keys.choice("prediction_type", {name: _PREDICTIONS[name] for name in names})


def limit(keys: Keys) -> Wrapper | None:
    """Clipping or thresholding of the estimate; thresholding wins. The default thresholding is clipping."""
    found: Wrapper | None = None
    if "clip_sample" in keys:
        clipped, most = keys.flag("clip_sample"), keys.number("clip_sample_range")
        found = Clip(limit=most) if clipped else None
    if "thresholding" in keys:
        percentile, most = keys.number("dynamic_thresholding_ratio"), keys.number("sample_max_value")
        if keys.flag("thresholding"):
            if most < 1:
                keys.refuse("sample_max_value", "expected 1 or more, since nothing within [-1, 1] is scaled")
            found = Clip(limit=1.0) if most == 1 else BoundedThreshold(percentile=percentile, most=most)
    return found


_LEVELS = {"use_karras_sigmas": karras_levels, "use_exponential_sigmas": exponential_levels,
           "use_beta_sigmas": beta_levels}  # fmt: skip


def levels(keys: Keys, coordinate: Coordinate, stop: float | None) -> Step | None:
    """The respacing by noise levels that the file asks for, which stops at `stop`."""
    asked = [name for name in _LEVELS if keys.flag(name)]
    if len(asked) > 1:
        keys.refuse(asked[1], f"{asked[0]} is true as well; expected one of them at most")
    return functools.partial(_LEVELS[asked[0]], coordinate=coordinate, end=stop) if asked else None


def spaced(keys: Keys, rules: Mapping[str, Step]) -> Step:
    """The rule of `timestep_spacing`, with `steps_offset` where it counts."""
    offset = keys.count("steps_offset")
    rule = keys.choice("timestep_spacing", rules)
    return functools.partial(rule, offset=offset) if keys["timestep_spacing"] == "leading" else rule


def end(keys: Keys, table: Schedule, key: str = "final_sigmas_type") -> float:
    """Where the sampler stops: 0, or the table's first entry."""
    if key == "set_alpha_to_one":
        return 0.0 if keys.flag(key) else table.t_min
    return keys.choice(key, {"zero": 0.0, "sigma_min": table.t_min})


def sigma_range(keys: Keys, table: Tabulated) -> tuple[float, float]:
    """The lowest and the highest sigma/alpha: `sigma_min` and `sigma_max`, or the table's."""
    low, high = (math.exp(-table.logsnr(t) / 2) for t in (table.t_min, table.t_max))
    low = low if keys["sigma_min"] is None else keys.number("sigma_min")
    high = high if keys["sigma_max"] is None else keys.number("sigma_max")
    if not 0 < low < high:
        keys.refuse("sigma_min", f"the levels would go from {low:g} to {high:g}; expected 0 < sigma_min < sigma_max")
    return low, high


def dynamic(keys: Keys, *sizes: str) -> DynamicShift | None:
    """The shift that depends on the picture's size, if there is one; `sizes` are the keys that say how."""
    exponential = keys.choice("time_shift_type", {"exponential": True, "linear": False})
    values = [keys[name] for name in sizes]
    return DynamicShift(exponential, *values) if keys.flag("use_dynamic_shifting") else None


def shifts(keys: Keys, key: str, chosen: DynamicShift | None) -> tuple[Step, ...]:
    """The shift that does not depend on it."""
    by = keys.number(key)
    if by <= 0:
        keys.refuse(key, "expected a positive factor, 1 for none")
    return (functools.partial(shift, by=by),) if chosen is None and by != 1 else ()
