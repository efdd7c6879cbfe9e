"""A pipeline of diffusers as a system of three parts.

    found = read_system("stable-diffusion-v1-5")
    *_, last = found.system.generate(["a red apple"], seeds=[0])

text         its text encoders, reading prompts as the pipeline does
generator    its network with its scheduler: process, parameterization, grid, sampler; and the pipeline's own guidance
decoder      its autoencoder; z = (encoding - shift) * scale

Every tensor and every key of every configuration is accounted for, or the folder is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from carrara.conditions import LatentMask
from carrara.config import Role, build
from carrara.decoder import Latents
from carrara.diffusion.denoiser import Denoiser
from carrara.diffusion.generator import DiffusionGenerator, SamplingSettings
from carrara.diffusion.guidance import Guidance
from carrara.errors import RecipeError
from carrara.store.diffusers import autoencoder_kl, autoencoder_tiny
from carrara.store.diffusers.families import NETWORKS, Family, family_of
from carrara.store.diffusers.folder import read_pipeline
from carrara.store.diffusers.foreign import ForeignPart, ForeignPipeline
from carrara.store.diffusers.scheduler import ForeignScheduler, translate
from carrara.store.diffusers.tensors import Table, imported
from carrara.store.diffusers.times import straight
from carrara.store.kinds import kinds
from carrara.system import System
from carrara.types import Space

__all__ = ["ForeignSystem", "IGNORED", "autoencoder_of", "network_of", "read_decoder", "read_network", "read_system"]

_AUTOENCODERS: dict[str, ModuleType] = {"AutoencoderKL": autoencoder_kl, "AutoencoderTiny": autoencoder_tiny}
IGNORED = ("feature_extractor", "image_encoder", "safety_checker")
_PATCH = 4  # cells of z that are one token, where a shift depends on how many there are
_MASKED = 1  # planes of a mask, before those of what it leaves


@dataclass(frozen=True)
class ForeignSystem:
    """A pipeline that was read: the system, its family and scheduler, and sentences of what should be known."""

    system: System
    family: Family
    pipeline: ForeignPipeline
    scheduler: ForeignScheduler
    notes: tuple[str, ...] = ()

    def settings(self, steps: int, guidance: Guidance | None = None) -> SamplingSettings:
        """How the pipeline samples in so many steps, guided as it is by default, or otherwise."""
        generator: Any = self.system.generator
        chosen = self.family.guidance(generator.denoiser.network.config) if guidance is None else guidance
        return _settings(self.scheduler, steps, chosen, generator.space)


def read_system(
    folder: Path | str, *, variant: str | None = None, dtype: torch.dtype | None = None, size: int | None = None
) -> ForeignSystem:
    """The system of a pipeline's folder, for pictures of `size` pixels a side, or as many as it was trained for.

    Weights have `dtype`, float32 or bfloat16, or the one that they are stored in; text encoders have float32 then.
    Raises StorageError for a folder that is damaged, RecipeError for what is not read.
    """
    folder = Path(folder)
    pipeline = read_pipeline(folder, variant=variant)
    family = family_of(pipeline)
    notes = [*pipeline.notes, *_left_out(pipeline, family)]
    network, table = read_network(pipeline.part(family.network), dtype=dtype)
    scheduler = translate(pipeline.part("scheduler").config)
    if family.straight and scheduler.spacing.handed:
        scheduler = replace(scheduler, spacing=replace(scheduler.spacing, base=partial(straight)))
    decoder = read_decoder(pipeline.part("vae"), size=size or _size(pipeline, family), dtype=dtype)
    precision = "bfloat16" if dtype is torch.bfloat16 else "float32"
    text = family.text(folder, pipeline, table, {"variant": variant, "precision": precision})
    generator = _generator(family, network, table, scheduler, decoder, text.space)
    if scheduler.ignored:
        ignored = ", ".join(scheduler.ignored)
        notes.append(f"scheduler_config.json has keys of other classes, which its own ignores: {ignored}")
    return ForeignSystem(System(text, generator, decoder), family, pipeline, scheduler, tuple(notes))


def network_of(part: ForeignPart) -> tuple[dict[str, Any], Table]:
    """Our table of a network and the places of its tensors; a mask with what it leaves is the control "mask"."""
    if (module := NETWORKS.get(part.kind)) is None:
        raise RecipeError(f"a {part.kind} is not read; these are: {', '.join(sorted(NETWORKS))}")
    table = module.network(part.config)
    names = module.table(table)
    channels = table["in_channels"]
    if table.get("kind") == "unet" and table.get("image_channels"):
        if table["image_channels"] != _MASKED + channels:
            raise RecipeError(
                f"{part.kind}: in_channels = {channels + table['image_channels']} beside out_channels = {channels} is "
                f"no model of inpainting, which has {_MASKED + channels} more; others are not read"
            )
        table = {**table, "image_channels": 0, "controls": {"mask": table["image_channels"]}}
    return table, names


def read_network(part: ForeignPart, *, dtype: torch.dtype | None = None) -> tuple[nn.Module, dict[str, Any]]:
    """The network of a component, and our table of it."""
    table, names = network_of(part)
    return _filled("network", table, names, part, dtype), table


def autoencoder_of(part: ForeignPart) -> tuple[dict[str, Any], Table]:
    """Our table of a component's autoencoder, and where its tensors are."""
    module = _autoencoder(part)
    table = module.network(part.config)
    return table, module.table(table)


def _autoencoder(part: ForeignPart) -> ModuleType:
    if (module := _AUTOENCODERS.get(part.kind)) is None:
        raise RecipeError(f"a {part.kind} is not read; these are: {', '.join(sorted(_AUTOENCODERS))}")
    return module


def read_decoder(part: ForeignPart, *, size: int | None = None, dtype: torch.dtype | None = None) -> Latents:
    """The latents of an autoencoder, with its scale; `size` is that of the pictures, the component's own by default."""
    module, (table, names) = _autoencoder(part), autoencoder_of(part)
    autoencoder = _filled("autoencoder", table, names, part, dtype)
    own = part.config.get("sample_size")
    latents = Latents(autoencoder, size=size or (own if isinstance(own, int) and own > 0 else 512))
    for buffer, values in zip((latents.mean, latents.std), module.scale(part.config), strict=True):
        buffer.copy_(torch.tensor(values).view(-1, 1, 1))
    return latents.eval().requires_grad_(False)


def _filled(
    role: str, table: Mapping[str, Any], names: Table, part: ForeignPart, dtype: torch.dtype | None
) -> nn.Module:
    """A module of a table, with the weights of a component."""
    if part.tensors is None:
        raise RecipeError(f"a {part.kind} has weights, and this component has none")
    with torch.device("meta"):  # every weight is replaced
        module: nn.Module = build(Annotated[nn.Module, Role(role)], table, kinds())
    tensors = imported(names, part.tensors, module.state_dict())
    if dtype is not None:
        tensors = {name: _as(tensor, dtype) for name, tensor in tensors.items()}
    module.load_state_dict(tensors, strict=True, assign=True)
    return module.eval().requires_grad_(False)


def _as(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def _generator(
    family: Family,
    network: nn.Module,
    table: Mapping[str, Any],
    scheduler: ForeignScheduler,
    decoder: Latents,
    reads: Space,
) -> DiffusionGenerator:
    down = decoder.pictures.shape[-1] // decoder.space.shape[-1]
    channels = decoder.space.shape[0]
    if table["in_channels"] != channels:
        raise RecipeError(
            f"the {family.network} reads {table['in_channels']} channels and the vae has {channels}; they are not of "
            "one model"
        )
    learned = table["out_channels"] == 2 * table["in_channels"]
    denoiser = Denoiser(
        network, scheduler.process, scheduler.parameterization, scheduler.level, learned_variance=learned
    )
    conditions = (LatentMask(),) if table.get("controls") else ()
    return DiffusionGenerator(
        denoiser,
        decoder.space,
        reads=reads,
        settings=_settings(scheduler, family.steps(table), family.guidance(table), decoder.space),
        conditions=conditions,
        numbers=family.numbers(table, down),
    ).eval()


def _settings(scheduler: ForeignScheduler, steps: int, guidance: Guidance, space: Space) -> SamplingSettings:
    """Of so many steps; a shift that depends on the picture's size is that of z."""
    _, height, width = space.shape
    dynamic = scheduler.spacing.dynamic is not None
    return scheduler.settings(steps, guidance, tokens=height * width // _PATCH if dynamic else None)


def _size(pipeline: ForeignPipeline, family: Family) -> int:
    """Of the pictures that the network was trained for, in pixels."""
    cells = pipeline.part(family.network).config.get("sample_size")
    widths = pipeline.part("vae").config.get("block_out_channels")
    down = 2 ** (len(widths) - 1) if isinstance(widths, list) and widths else 8
    if isinstance(cells, int) and cells > 0:
        return cells * down
    return 128 * down


def _left_out(pipeline: ForeignPipeline, family: Family) -> list[str]:
    """What the pipeline has and the system does not."""
    text = {name for name in pipeline.parts if name.startswith(("text_", "token"))}
    left = sorted(set(pipeline.parts) - text - {family.network, "vae", "scheduler"})
    if other := [name for name in left if name not in IGNORED]:
        raise RecipeError(f"{pipeline.title} has a component {other[0]}, which a {pipeline.kind} here does not have")
    said = [f"{name} is not read" for name in left]
    return said + ([f"not understood, and left out: {', '.join(pipeline.unread)}"] if pipeline.unread else [])
