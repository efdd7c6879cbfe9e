"""The sampling settings of a model, with what was asked for on the command line put in."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from carrara.cli.voice import Voice
from carrara.errors import RecipeError

if TYPE_CHECKING:
    from carrara.diffusion.generator import DiffusionGenerator, SamplingSettings
    from carrara.system import System

__all__ = ["editing_settings", "sampling_settings", "with_steps"]


def sampling_settings(
    system: System,
    steps: int | None,
    sampler: str | None,
    guidance: float | None,
    negative: str | None,
    voice: Voice,
) -> SamplingSettings | None:
    """The generator's own settings with what was asked for put in; None for a generator that has none."""
    from carrara.diffusion.generator import DiffusionGenerator
    from carrara.text import Unconditional

    asked = {"--steps": steps, "--sampler": sampler, "--guidance": guidance}
    if not isinstance(system.generator, DiffusionGenerator):
        if given := [name for name, value in asked.items() if value is not None]:
            raise RecipeError(f"{given[0]} is for diffusion models, and this generator is none; leave it out")
        return None
    settings = system.generator.settings
    if sampler is not None:
        settings = dataclasses.replace(settings, sampler=_sampler(sampler, system.generator))
    if steps is not None:
        settings = dataclasses.replace(settings, times=_times(settings.times, steps, voice))
    told = not isinstance(system.text, Unconditional)
    if guidance is not None:
        if told:
            settings = dataclasses.replace(settings, guidance=_guided(settings.guidance, guidance))
        else:
            voice.warn("--guidance has no effect: this model is told nothing, so there is nothing to guide by")
    if negative and told and _scale(settings.guidance) == 1:
        voice.warn("--negative has no effect without guidance; add --guidance 2.5, say")
    system.generator.times(settings)  # refuses a number of steps that the grid does not have
    return settings


def editing_settings(
    settings: SamplingSettings | None, strength: float | None, inputs: Collection[str], voice: Voice
) -> SamplingSettings | None:
    """The settings with the strength that was asked for, which is for a picture to begin from."""
    if strength is None:
        return settings
    if settings is None:
        raise RecipeError("--strength is for diffusion models, and this generator is none; leave it out")
    if "image" not in inputs:
        raise RecipeError("--strength is how much of an image changes; give the image too, with --image FILE")
    if strength == 1 and "mask" not in inputs:
        voice.warn("--image has no effect with --strength 1, which makes the whole picture anew; give a lower one")
    return dataclasses.replace(settings, editing=dataclasses.replace(settings.editing, strength=strength))


def _sampler(name: str, generator: DiffusionGenerator) -> Any:
    """The sampler as the model has it, where it is the model's own; where it takes a learned variance, with that."""
    from carrara.diffusion.process import Learned
    from carrara.store import kinds

    try:
        function = kinds().resolve("sampler", name)
    except ValueError as error:
        raise RecipeError(f"--sampler: {error}") from error
    own = generator.settings.sampler
    if getattr(own, "func", own) is function:
        return own
    taught = generator.denoiser.learned_variance and "variance" in inspect.signature(function).parameters
    return functools.partial(function, variance=Learned()) if taught else functools.partial(function)


def _times(times: Any, steps: int, voice: Voice) -> Any:
    from carrara.diffusion.times import uniform

    if (found := with_steps(times, steps)) is not None:
        return found
    name = getattr(times, "func", times).__name__
    voice.say(f"The model's own times ({name}) have a fixed number; {steps} uniform steps instead.")
    return functools.partial(uniform, steps=steps)


def with_steps(grid: Any, steps: int) -> Any:
    """The grid with another number of steps, inside of whatever moves it; None when its number is fixed."""
    function, given = getattr(grid, "func", grid), getattr(grid, "keywords", {})
    takes = inspect.signature(function).parameters
    if "steps" in takes:
        return functools.partial(function, **{**given, "steps": steps})
    if "inner" not in takes or (inner := with_steps(given.get("inner", takes["inner"].default), steps)) is None:
        return None
    return functools.partial(function, **{**given, "inner": inner})


def _guided(guidance: Any, scale: float) -> Any:
    """The guidance with another scale, inside of whatever wraps it."""
    from carrara.diffusion.guidance import ClassifierFree, Plain

    if isinstance(guidance, ClassifierFree):
        return dataclasses.replace(guidance, scale=scale)
    if isinstance(guidance, Plain):
        return ClassifierFree(scale)
    if hasattr(guidance, "inner"):
        return dataclasses.replace(guidance, inner=_guided(guidance.inner, scale))
    raise RecipeError(f"--guidance: this model is guided by {type(guidance).__name__}, which has no scale to set")


def _scale(guidance: Any) -> float:
    if hasattr(guidance, "inner"):
        return _scale(guidance.inner)
    return float(getattr(guidance, "scale", 1.0))
