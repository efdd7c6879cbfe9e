"""What the commands that sample share: their options, and a model's own settings with what was given put in."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from carrara.cli.voice import Voice
from carrara.errors import RecipeError

if TYPE_CHECKING:
    from carrara.decoder import Decoding
    from carrara.diffusion.generator import DiffusionGenerator, SamplingSettings
    from carrara.system import System

__all__ = [
    "Candidates",
    "Guidance",
    "SamplerName",
    "Steps",
    "Temperature",
    "TopK",
    "TopP",
    "Truncation",
    "decoding_settings",
    "editing_settings",
    "guidance_scale",
    "sampling_settings",
    "with_steps",
]

Steps = Annotated[int | None, typer.Option(metavar="N", min=1, help="Strides from noise to picture.")]
SamplerName = Annotated[str | None, typer.Option(metavar="NAME", help="ancestral, ddim, dpmpp-2m, heun, ...")]
Guidance = Annotated[float | None, typer.Option(metavar="X", help="How much the prompt counts; 1 is off.")]
Temperature = Annotated[
    float | None, typer.Option(metavar="X", min=0, help="Of VAEs and tokens: below 1 likelier, less varied.")
]
TopK = Annotated[int | None, typer.Option(metavar="N", min=0, help="Of tokens: draw from the N likeliest; 0 is all.")]
TopP = Annotated[
    float | None, typer.Option(metavar="X", help="Of tokens: from the likeliest that make up this probability.")
]
Truncation = Annotated[
    float | None, typer.Option(metavar="X", min=0, max=1, help="Of GANs: below 1 likelier, less varied.")
]
Candidates = Annotated[
    int, typer.Option(metavar="N", min=1, help="Draws of each picture; the one that fits its prompt best is kept.")
]


def sampling_settings(
    system: System, asked: Mapping[str, Any], negative: str | None, voice: Voice, own: Any = None
) -> Any:
    """The generator's own settings with what was asked for put in; None for a generator that has none.

    `asked` are the options' values by name, None for those that were not given; each is a field of the settings, but
    for those of diffusion (`steps`, `sampler`, `guidance`), which change a part of one. `own` are other settings to put
    them in. RecipeError for an option that the generator's family does not have.
    """
    from carrara.diffusion.generator import DiffusionGenerator

    given = {name: value for name, value in asked.items() if value is not None}
    generator: Any = system.generator
    settings: Any = getattr(generator, "settings", None) if own is None else own
    diffusion = isinstance(generator, DiffusionGenerator)
    fields = [field.name for field in dataclasses.fields(settings)] if settings is not None else []
    known = list(_DIFFUSION) if diffusion else [name for name in fields if name in asked]
    if foreign := [name for name in given if name not in known]:
        raise RecipeError(f"{_refusal(system, foreign[0], known)}; leave it out")
    told = _told(system)
    if "guidance" in given and not told:
        voice.warn("--guidance has no effect: this model is told nothing, so there is nothing to guide by")
        del given["guidance"]
    if diffusion:
        settings = _diffusion_settings(generator, settings, given, voice)
        generator.times(settings)  # refuses a number of steps that the grid does not have
    elif given:
        try:
            settings = dataclasses.replace(settings, **given)
        except ValueError as error:
            raise RecipeError(_option(str(error), given)) from error
    if negative and told and guidance_scale(getattr(settings, "guidance", 1.0)) == 1:
        hint = "; add --guidance 2.5, say" if "guidance" in known else ", which this model does not have"
        voice.warn(f"--negative has no effect without guidance{hint}")
    return settings


_DIFFUSION = ("steps", "sampler", "guidance")  # options of it that are no fields


def _told(system: System) -> bool:
    from carrara.text import Unconditional

    return not isinstance(system.text, Unconditional)


def _diffusion_settings(
    generator: DiffusionGenerator, settings: SamplingSettings, given: Mapping[str, Any], voice: Voice
) -> SamplingSettings:
    if "sampler" in given:
        settings = dataclasses.replace(settings, sampler=_sampler(given["sampler"], generator))
    if "steps" in given:
        settings = dataclasses.replace(settings, times=_times(settings.times, given["steps"], voice))
    if "guidance" in given:
        settings = dataclasses.replace(settings, guidance=_guided(settings.guidance, given["guidance"]))
    return settings


def _refusal(system: System, name: str, known: Collection[str]) -> str:
    from carrara.store import kinds

    _, family = kinds().kind_of(type(system.generator))
    option = name.replace("_", "-")
    if name in ("steps", "sampler"):
        return f"--{option} is for diffusion models, and this generator is none ({family})"
    has = ", ".join(f"--{other.replace('_', '-')}" for other in known) or "no such options"
    return f"--{option} is not for a generator of this family ({family}), which has {has}"


def _option(said: str, given: Mapping[str, Any]) -> str:
    """A sentence about a field, as one about the option of that name."""
    for name in given:
        if said.startswith(f"{name} = "):
            return f"--{name.replace('_', '-')}{said.removeprefix(name)}"
    return said


def editing_settings(settings: Any, strength: float | None, inputs: Collection[str], voice: Voice) -> Any:
    """The settings with the strength that was asked for, which is for a picture to begin from."""
    if strength is None:
        return settings
    if not hasattr(settings, "editing"):
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


def guidance_scale(guidance: Any) -> float:
    """How much the prompt counts under a guidance; 1 for none."""
    if hasattr(guidance, "inner"):
        return guidance_scale(guidance.inner)
    return float(guidance if isinstance(guidance, int | float) else getattr(guidance, "scale", 1.0))


def decoding_settings(system: System, augmentation: float | None, tile: int | None, voice: Voice) -> Decoding | None:
    """How the decoder is asked to decode; None as it was saved. RecipeError for what none of its parts can do."""
    from carrara.decoder import Decoding, DiffusionUpsample, Pixels, Tiling

    if augmentation is None and tile is None:
        return None
    parts = getattr(system.decoder, "parts", (system.decoder,))
    upsamplers = [part for part in parts if isinstance(part, DiffusionUpsample)]
    if augmentation is not None and not upsamplers:
        raise RecipeError("--augmentation is of diffusion upsamplers, and this model's decoder is none; leave it out")
    if augmentation is not None and (most := min(part.most for part in upsamplers)) < augmentation:
        raise RecipeError(f"--augmentation is {augmentation}, and this model has learnt levels up to {most}")
    if tile is not None and all(isinstance(part, DiffusionUpsample | Pixels) for part in parts):
        voice.warn("--tile has no effect: no part of this model's decoder works in parts")
    elif tile is not None and upsamplers:
        voice.warn("--tile has no effect on the diffusion upsampler, which works on the whole picture")
    tiling = None if tile is None else Tiling(tile, tile // 4)
    return Decoding(tiling, augmentation)
