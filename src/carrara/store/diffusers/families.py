"""The families of pipelines: which components each has, and what its pipeline adds to them.

    family     network                    told beside text                     sampled as its pipeline does
    sd1, sd2   UNet2DConditionModel                                            guidance 7.5, 50 steps
    sdxl       UNet2DConditionModel       six numbers: sizes and crop          guidance 5, 50 steps
    sd3        SD3Transformer2DModel                                           guidance 7, 28 steps
    flux       FluxTransformer2DModel     how much it is guided                28 steps, schnell 4
    pixart     PixArtTransformer2DModel   alpha at 1024: sizes                 guidance 4.5, 20 steps

The defaults are those of the pipelines' calls; an option that a pipeline's index does not have is not guessed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from carrara.diffusion.guidance import ClassifierFree, Guidance, Plain
from carrara.diffusion.number import Number
from carrara.errors import RecipeError
from carrara.store.diffusers import flux, pixart, sd3, unet2d_condition
from carrara.store.diffusers.foreign import ForeignPipeline
from carrara.store.diffusers.prompts import (
    flux_text,
    pixart_text,
    stable_diffusion_3_text,
    stable_diffusion_text,
    stable_diffusion_xl_text,
)

__all__ = ["FAMILIES", "Family", "NETWORKS", "family_of"]

Table = Mapping[str, Any]

NETWORKS: dict[str, ModuleType] = {
    "FluxTransformer2DModel": flux,
    "PixArtTransformer2DModel": pixart,
    "SD3Transformer2DModel": sd3,
    "UNet2DConditionModel": unet2d_condition,
}


@dataclass(frozen=True)
class Family:
    """What the pipelines of a family have in common.

    `network` is the component that denoises, `kinds` the classes of their pipelines, `text` reads the text encoders of
    a folder for a network of this table, with further settings of theirs. `numbers` are what the network is told of a z
    of which a cell has so many pixels a side, `guidance` how its pipeline guides it, `steps` in how many it samples;
    `straight`: in equal strides before any shift.
    """

    name: str
    network: str
    kinds: tuple[str, ...]
    text: Callable[[Path, ForeignPipeline, Table, Table], Any]
    steps: Callable[[Table], int]
    guidance: Callable[[Table], Guidance]
    numbers: Callable[[Table, int], tuple[Number, ...]] = lambda table, down: ()
    straight: bool = False


def _sizes(table: Table, down: int) -> tuple[Number, ...]:
    """SDXL's numbers, or its refiner's: the picture asked for was of that size, and is not cropped."""
    values: dict[str, Number] = {
        "original_height": Number("original_height", "height", float(down)),
        "original_width": Number("original_width", "width", float(down)),
        "crop_top": Number("crop_top", 0.0),
        "crop_left": Number("crop_left", 0.0),
        "target_height": Number("target_height", "height", float(down)),
        "target_width": Number("target_width", "width", float(down)),
        "aesthetic_score": Number("aesthetic_score", 6.0, negative=2.5),
    }
    return tuple(values[name] for name in table.get("numbers", ()))


def _pixart_numbers(table: Table, down: int) -> tuple[Number, ...]:
    if not table["sizes"]:
        return ()
    return (
        Number("height", "height", float(down)),
        Number("width", "width", float(down)),
        Number("aspect_ratio", "aspect_ratio"),
    )


def _classifier_free(scale: float) -> Callable[[Table], Guidance]:
    return lambda table: ClassifierFree(scale)


FAMILIES: dict[str, Family] = {
    "sd": Family(
        "sd",
        "unet",
        (
            "StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline",
            "StableDiffusionPipelineSafe", "LatentConsistencyModelPipeline",
        ),
        lambda folder, pipeline, table, told: stable_diffusion_text(folder, **told),
        lambda table: 50,
        _classifier_free(7.5),
    ),
    "sdxl": Family(
        "sdxl",
        "unet",
        ("StableDiffusionXLPipeline", "StableDiffusionXLImg2ImgPipeline", "StableDiffusionXLInpaintPipeline"),
        lambda folder, pipeline, table, told: stable_diffusion_xl_text(
            folder, zero_empty=bool(pipeline.options.get("force_zeros_for_empty_prompt", True)), **told
        ),
        lambda table: 50,
        _classifier_free(5.0),
        _sizes,
    ),
    "sd3": Family(
        "sd3",
        "transformer",
        ("StableDiffusion3Pipeline", "StableDiffusion3Img2ImgPipeline", "StableDiffusion3InpaintPipeline"),
        lambda folder, pipeline, table, told: stable_diffusion_3_text(folder, width=table["context"], **told),
        lambda table: 28,
        _classifier_free(7.0),
    ),
    "flux": Family(
        "flux",
        "transformer",
        ("FluxPipeline", "FluxImg2ImgPipeline", "FluxInpaintPipeline"),
        lambda folder, pipeline, table, told: flux_text(folder, length=512 if table["guidance"] else 256, **told),
        lambda table: 28 if table["guidance"] else 4,
        lambda table: Plain(),
        lambda table, down: (Number("guidance", 3.5),) if table["guidance"] else (),
        straight=True,
    ),
    "pixart": Family(
        "pixart",
        "transformer",
        ("PixArtAlphaPipeline", "PixArtSigmaPipeline"),
        lambda folder, pipeline, table, told: pixart_text(
            folder, length=300 if "Sigma" in pipeline.kind else 120, **told
        ),
        lambda table: 20,
        _classifier_free(4.5),
        _pixart_numbers,
    ),
}  # fmt: skip


def family_of(pipeline: ForeignPipeline) -> Family:
    """The family of a pipeline's class; RecipeError for one that is not read."""
    for family in FAMILIES.values():
        if pipeline.kind in family.kinds:
            return family
    known = ", ".join(sorted(kind for family in FAMILIES.values() for kind in family.kinds))
    raise RecipeError(f"{pipeline.title} is a {pipeline.kind}, which is not read; these are: {known}")
