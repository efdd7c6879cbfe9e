"""A system as a pipeline of diffusers: one that was imported, as it came.

    write_system("out", system, read_kept("model"))

Every network is written under the names and in the types that its tensors had, so that what was read and not changed is
the same bit by bit; configurations and tokenizers are those that were kept. A system whose parts are not those that
were imported is refused.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from carrara.errors import RecipeError
from carrara.store.diffusers.families import family_of
from carrara.store.diffusers.foreign import ForeignPart, ForeignPipeline, Tensors
from carrara.store.diffusers.kept import Kept
from carrara.store.diffusers.pipeline import autoencoder_of, network_of
from carrara.store.diffusers.tensors import Table, exported
from carrara.store.diffusers.texts import written_text
from carrara.system import System
from carrara.text import Absent, Joined, PretrainedText

__all__ = ["encoders_of", "returned"]


def returned(system: System, kept: Kept) -> ForeignPipeline:
    """The pipeline that a system was imported from, with the weights that it has now."""
    pipeline = kept.pipeline
    family = family_of(pipeline)
    generator: Any = system.generator
    decoder: Any = system.decoder
    parts = dict(pipeline.parts)
    network, vae = pipeline.part(family.network), pipeline.part("vae")
    table, names = network_of(network)
    written = {
        family.network: _written(family.network, generator.denoiser.network, table, names),
        "vae": _written("vae", decoder.autoencoder, *autoencoder_of(vae)),
        **_texts(system.text, kept),
    }
    for name, tensors in written.items():
        whole = kept.whole(name, tensors)
        parts[name] = dataclasses.replace(parts[name], tensors=Tensors(name, whole))
    return dataclasses.replace(pipeline, parts=parts)


def _written(component: str, module: Any, table: Mapping[str, Any], names: Table) -> dict[str, Tensor]:
    state = module.state_dict()
    if set(state) != set(names):
        other = sorted(set(state) ^ set(names))[0]
        raise RecipeError(f"the {component} is not the one that was imported: they differ in {other}")
    return exported(names, state)


def encoders_of(text: Any) -> list[Any]:
    """The text encoders that a pipeline has, in the order of its components."""
    return [part for part in (text.parts if isinstance(text, Joined) else (text,)) if not isinstance(part, Absent)]


def _texts(text: Any, kept: Kept) -> dict[str, dict[str, Tensor]]:
    """The tensors of the text encoders, in the order of their components."""
    components = sorted(name for name in kept.tensors if name.startswith("text_encoder"))
    encoders = encoders_of(text)
    if len(components) != len(encoders) or not all(isinstance(one, PretrainedText) for one in encoders):
        raise RecipeError(f"the model has {len(encoders)} text encoders and was imported with {len(components)}")
    found: dict[str, dict[str, Tensor]] = {}
    for component, encoder in zip(components, encoders, strict=True):
        network: Any = encoder.network
        part: ForeignPart = kept.pipeline.part(component)
        found[component] = written_text(part, kept.tensors[component], network.state_dict())
    return found
