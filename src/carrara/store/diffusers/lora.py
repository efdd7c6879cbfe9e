"""Low-rank updates of weights (LoRA, Hu et al. 2021): their files read, merged into a network, and written.

    W'  =  W + strength * alpha / r * up @ down                     r: rows of down
    W'  =  W + strength * (m (W + d) / |W + d| - W)                 with a magnitude m for each output (DoRA, Liu 2024)

A convolution's update has the kernel in `down`, or in a `middle` between two 1 x 1 convolutions. Two layouts are read:

    unet.mid_block.attentions.0.proj_in.lora_A.weight           diffusers and PEFT: the names of modules; older ones
                                                                say lora.down, to_q_lora.down, lora_linear_layer.down
    lora_unet_mid_block_attentions_0_proj_in.lora_down.weight   kohya: the same with underscores throughout

Every tensor belongs to a layer of the network that it is for, or the file is refused: what is not applied is no small
thing. Updates of another algebra (LoHa, LoKr, OFT, differences of whole weights) are refused by name.
"""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from carrara.errors import RecipeError, StorageError
from carrara.store.diffusers.tensors import Pointwise, Stacked, Table, TensorSource, names
from carrara.store.safetensors_io import nonfinite

__all__ = ["Lora", "Update", "merged", "parted", "read_lora", "written"]

_METADATA = "lora_adapter_metadata"
_NAMED = 3
_KOHYA = {"lora_unet_": "unet", "lora_transformer_": "transformer", "lora_te_": "text_encoder",
          "lora_te1_": "text_encoder", "lora_te2_": "text_encoder_2", "lora_te3_": "text_encoder_3"}  # fmt: skip
_PART = re.compile(
    r"(?P<module>.+?)"
    r"(?:\.(?:lora|lora_linear_layer)(?=\.(?:down|up)\.)|_lora(?=\.(?:down|up)\.))?"
    r"\.(?P<part>(?:lora_)?(?:down|up|mid)\.weight|lora_[AB](?:\.\w+)?\.weight|alpha|dora_scale"
    r"|lora_magnitude_vector(?:\.\w+)?(?:\.weight)?)"
)
_OTHER = {
    "hada_": "LoHa", "lokr_": "LoKr", "oft_": "OFT", "boft_": "BOFT", ".diff": "whole differences of weights",
    "lora_B.bias": "an update of a bias", "lora_embedding": "an update of an embedding", "glora": "GLoRA",
}  # fmt: skip


class Update(NamedTuple):
    """What is added to one weight: down (r, in, ...), up (out, r, ...), middle (r, r, k, k), magnitude (out,)."""

    down: Tensor
    up: Tensor
    alpha: float
    middle: Tensor | None = None
    magnitude: Tensor | None = None

    def delta(self) -> Tensor:
        """alpha / r * up @ down in float32, as a matrix (out, in) or a kernel (out, in, k, k)."""
        up, down = self.up.float(), self.down.float()
        scale = self.alpha / down.shape[0]
        if self.middle is not None:
            kernel = torch.einsum("oa,abhw,bi->oihw", up.flatten(1), self.middle.float(), down.flatten(1))
            return scale * kernel
        return scale * (up.flatten(1) @ down.flatten(1)).view(len(up), *down.shape[1:])

    def applied(self, weight: Tensor, strength: float = 1.0) -> Tensor:
        """The weight with this in it, in its own dtype and shape. ValueError for a weight that it is not for."""
        delta = self.delta().to(weight.device)
        if delta.flatten(1).shape != weight.flatten(1).shape:
            shapes = tuple(delta.shape), tuple(weight.shape)
            raise ValueError("an update of shape {} is for another weight than one of shape {}".format(*shapes))
        before, delta = weight.float(), delta.view(weight.shape)
        if self.magnitude is not None:
            whole = before + delta
            axes = tuple(range(1, whole.ndim))
            size = self.magnitude.float().to(weight.device).flatten().view(-1, *[1] * len(axes))
            delta = size * whole / torch.linalg.vector_norm(whole, dim=axes, keepdim=True) - before
        return (before + strength * delta).to(weight.dtype)


@dataclass(frozen=True)
class Lora:
    """The updates of a file: for each component by its name in a pipeline, of modules by their names there."""

    updates: Mapping[str, Mapping[str, Update]]
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def ranks(self) -> tuple[int, ...]:
        """The different ranks, in order."""
        return tuple(sorted({len(update.down) for part in self.updates.values() for update in part.values()}))


def read_lora(
    source: TensorSource,
    modules: Mapping[str, Collection[str]],
    *,
    metadata: Mapping[str, str] | None = None,
    aliases: Mapping[str, Mapping[str, str]] | None = None,
) -> Lora:
    """The updates of a file, for components with these `modules` (names of their layers, without ".weight").

    `metadata` is that of the file, in which diffusers says alpha; without it, and without an alpha beside an update,
    alpha is the rank. `aliases` are further names of modules, as the original layout of a checkpoint has them, for each
    component. Raises StorageError, in one sentence, for tensors that belong to no module, that lack their partner, or
    that are not finite, and for updates of another algebra.
    """
    known = {
        part: {**{_flat(name): name for name in layers}, **{_flat(a): name for a, name in _of(aliases, part).items()}}
        for part, layers in modules.items()
    }
    told = _adapter(source, metadata or {})
    parts: dict[tuple[str, str], dict[str, Tensor]] = defaultdict(dict)
    strange: list[str] = []
    for name in source.names:
        if other := next((what for mark, what in _OTHER.items() if mark in name), None):
            raise StorageError(f"{source.title} holds {other} ({name}), which is not read; convert it to a plain LoRA")
        place, kind = _place(name, known)
        if place is None:
            strange.append(name)
        elif kind in parts[place]:
            raise StorageError(f"{source.title} names {name} twice, once in another layout; take one of them out")
        else:
            parts[place][kind] = source.read(name)
    if strange:
        raise StorageError(f"{source.title} holds {len(strange)} tensors of no layer here: {_some(strange)}")
    if not parts:
        raise StorageError(f"{source.title} holds no tensors; expected the updates of a LoRA")
    updates: dict[str, dict[str, Update]] = defaultdict(dict)
    for (component, module), found in parts.items():
        updates[component][module] = _update(source.title, component, module, found, told)
    return Lora(dict(updates), dict(metadata or {}))


def merged(
    table: Table, tensors: Mapping[str, Tensor], updates: Mapping[str, Update], strength: float = 1.0
) -> dict[str, Tensor]:
    """Those of our tensors that updates change, changed; the others are left out.

    Raises StorageError for an update of another shape, or of a module that has no weight here.
    """
    left, changed = set(updates), {}
    for ours, place in table.items():
        weights = names(place)
        here = [name.removesuffix(".weight") for name in weights]
        if left.isdisjoint(here):
            continue
        tensor = tensors[ours]
        rows = list(place.rows) if isinstance(place, Stacked) else [len(tensor)]
        parts = list(tensor.split(rows))
        for i, module in enumerate(here):
            if weights[i].endswith(".weight") and module in updates:
                try:
                    parts[i] = updates[module].applied(parts[i], strength)
                except ValueError as error:
                    raise StorageError(f"{module}: {error}; it is a LoRA for another model") from error
                left.discard(module)
        changed[ours] = torch.cat(parts)
    if left:
        raise StorageError(f"{len(left)} updates are of layers that this network does not have: {_some(left)}")
    return changed


def parted(table: Table, factors: Mapping[str, Update]) -> dict[str, Update]:
    """Updates of our layers as updates of theirs, by the names of modules there; what `merged` undoes.

    One that is stacked of several has the same `down` for each of them, and of `up` its rows.
    """
    found: dict[str, Update] = {}
    for layer, update in factors.items():
        place = table[f"{layer}.weight"]
        if isinstance(place, Stacked):
            ups = update.up.split(list(place.rows))
        else:
            ups = (update.up,)
        for name, up in zip(names(place), ups, strict=True):
            down = update.down
            if isinstance(place, Pointwise):
                up, down = up[:, :, None, None], down[:, :, None, None]
            found[name.removesuffix(".weight")] = Update(down, up, update.alpha)
    return found


def written(lora: Lora) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a file that diffusers reads, and its metadata; what `read_lora` undoes.

    Raises RecipeError for what that layout cannot say, a convolution with a middle.
    """
    tensors: dict[str, Tensor] = {}
    about: dict[str, Any] = {}
    for component, updates in lora.updates.items():
        ranks = {module: len(update.down) for module, update in updates.items()}
        alphas = {module: update.alpha for module, update in updates.items()}
        for module, update in updates.items():
            if update.middle is not None:
                raise RecipeError(f"{module} has a kernel between its two factors, which diffusers' layout cannot say")
            tensors[f"{component}.{module}.lora_A.weight"] = update.down
            tensors[f"{component}.{module}.lora_B.weight"] = update.up
            if update.magnitude is not None:
                tensors[f"{component}.{module}.lora_magnitude_vector"] = update.magnitude
        rank, alpha = _usual(ranks.values()), _usual(alphas.values())
        about |= {
            f"{component}.r": rank,
            f"{component}.lora_alpha": alpha,
            f"{component}.rank_pattern": {name: value for name, value in ranks.items() if value != rank},
            f"{component}.alpha_pattern": {name: value for name, value in alphas.items() if value != alpha},
            f"{component}.target_modules": sorted(updates),
            f"{component}.use_dora": any(update.magnitude is not None for update in updates.values()),
        }
    return tensors, {"format": "pt", _METADATA: json.dumps(about, sort_keys=True)}


# --- names ------------------------------------------------------------------------------------------------------------


def _flat(name: str) -> str:
    return name.replace(".", "_")


def _of(aliases: Mapping[str, Mapping[str, str]] | None, part: str) -> Mapping[str, str]:
    return (aliases or {}).get(part, {})


def _place(name: str, known: Mapping[str, Mapping[str, str]]) -> tuple[tuple[str, str] | None, str]:
    """Of a tensor the component and module that it is for, None where there is none, and what it is of the update."""
    found = _PART.fullmatch(name)
    if found is None:
        return None, ""
    component, module = _component(found["module"].removeprefix("base_model.model."), known)
    for candidate in (module, module.replace("_processor_", "_"), f"{module}_0".replace("_processor_", "_")):
        if (layer := known.get(component, {}).get(candidate)) is not None:
            return (component, layer), _kind(found["part"])
    return None, ""


def _component(module: str, known: Mapping[str, Mapping[str, str]]) -> tuple[str, str]:
    """The component that a name begins with, and the rest of it with underscores throughout."""
    for prefix, component in _KOHYA.items():
        if module.startswith(prefix):
            if component == "unet" and "unet" not in known:
                component = "transformer"
            return component, _flat(module.removeprefix(prefix))
    first, _, rest = module.partition(".")
    if first in known:
        return first, _flat(rest)
    networks = [name for name in known if not name.startswith("text_encoder")]  # a file of one network, unnamed
    return (networks[0] if networks else ""), _flat(module)


def _kind(part: str) -> str:
    first = part.removeprefix("lora_").split(".")[0]
    names = {"A": "down", "B": "up", "magnitude_vector": "magnitude", "dora_scale": "magnitude", "mid": "middle"}
    return names.get(first, first)


# --- values -----------------------------------------------------------------------------------------------------------


def _adapter(source: TensorSource, metadata: Mapping[str, str]) -> dict[str, Any]:
    """What diffusers has written of the updates' alpha."""
    try:
        told = json.loads(metadata.get(_METADATA, "{}"))
    except ValueError as error:
        raise StorageError(f"{source.title}: its metadata are not JSON: {error}") from error
    if not isinstance(told, dict):
        raise StorageError(f"{source.title}: its metadata are no table")
    return told


def _update(title: str, component: str, module: str, found: Mapping[str, Tensor], told: Mapping[str, Any]) -> Update:
    if lacking := [part for part in ("down", "up") if part not in found]:
        raise StorageError(f"{title}: the update of {component} {module} has no {lacking[0]}; the file is incomplete")
    if bad := nonfinite(found):
        raise StorageError(f"{title}: the {bad[0]} of {component} {module} holds NaN or infinite numbers")
    down, up, middle = found["down"], found["up"], found.get("middle")
    rank = down.shape[0] if down.ndim > 1 else 0
    fits = up.ndim == down.ndim and up.ndim in (2, 4) and up.shape[1] == rank and (middle is None or up.ndim == 4)
    if not fits or not rank or (middle is not None and tuple(middle.shape[:2]) != (rank, rank)):
        shapes = " and ".join(str(tuple(tensor.shape)) for tensor in (down, up))
        raise StorageError(f"{title}: {component} {module} has factors of shape {shapes}, which make no update")
    magnitude = found.get("magnitude")
    if magnitude is not None and magnitude.numel() != len(up):
        raise StorageError(
            f"{title}: {component} {module} has a magnitude of {magnitude.numel()} for {len(up)} outputs"
        )
    alpha = float(found["alpha"]) if "alpha" in found else _alpha(title, component, module, rank, told)
    return Update(down, up, alpha, middle, magnitude)


def _alpha(title: str, component: str, module: str, rank: int, told: Mapping[str, Any]) -> float:
    """From the metadata; the rank itself where they do not say it."""
    pattern = told.get(f"{component}.alpha_pattern")
    alpha = told.get(f"{component}.lora_alpha", rank)
    if isinstance(pattern, dict):
        ends = [value for end, value in pattern.items() if module == end or module.endswith(f".{end}")]
        alpha = ends[0] if ends else alpha
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise StorageError(f"{title}: alpha of {component} is {alpha!r}; expected a number")
    return float(alpha) * (rank**0.5 if told.get(f"{component}.use_rslora") else 1.0)


def _usual(values: Iterable[float]) -> float:
    every = list(values)
    return max(set(every), key=lambda value: (every.count(value), -value))


def _some(which: Collection[str]) -> str:
    every = sorted(which)
    more = f" and {len(every) - _NAMED} more" if len(every) > _NAMED else ""
    return ", ".join(every[:_NAMED]) + more
