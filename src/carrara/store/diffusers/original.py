"""Where each tensor of diffusers' layout is in the layouts that models were published in (LDM, SGM, MMDiT, FLUX).

    Layout = {name in diffusers: place there}      a place: a name, rows of a fused tensor, swapped halves, ...

Each function takes the shapes of one network's tensors by their name there, without the prefix that the network has in
its file, and yields what it understands; what it does not is left over and listed by the caller.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from carrara.errors import StorageError
from carrara.store.diffusers.tensors import TensorSource

__all__ = [
    "Flat",
    "Layout",
    "Original",
    "Rows",
    "Shapes",
    "Swapped",
    "Turned",
    "Unit",
    "autoencoder",
    "clip",
    "control",
    "flux",
    "mmdit",
    "open_clip",
    "t5",
    "unet",
]


class Rows(NamedTuple):
    """Some rows of a tensor there."""

    name: str
    start: int
    stop: int


class Swapped(NamedTuple):
    """A tensor there with the halves of its rows exchanged: (shift, scale) there, (scale, shift) in diffusers."""

    name: str


class Turned(NamedTuple):
    """A matrix there, transposed."""

    name: str


class Flat(NamedTuple):
    """The kernel (out, in, 1, 1) of a convolution there, as a matrix."""

    name: str


class Unit(NamedTuple):
    """The unit matrix, which is not in the file."""

    size: int


Place = str | Rows | Swapped | Turned | Flat | Unit
Layout = Mapping[str, Place]
Shapes = Mapping[str, tuple[int, ...]]
_Pairs = Iterator[tuple[str, Place]]


@dataclass(frozen=True)
class Original:
    """The tensors of a network in diffusers' layout, out of a file of another one."""

    source: TensorSource
    layout: Layout

    @property
    def title(self) -> str:
        """The file's."""
        return self.source.title

    @property
    def names(self) -> Collection[str]:
        """Of all tensors, as diffusers calls them."""
        return self.layout.keys()

    def read(self, name: str) -> Tensor:
        """One tensor; StorageError where there is none, or it has not the shape that its place asks for."""
        match self.layout.get(name):
            case None:
                raise StorageError(f"{self.title} has no tensor {name}")
            case Unit(size):
                return torch.eye(size)
            case str() as there:
                return self.source.read(there)
            case place:
                tensor = self.source.read(place.name)
        try:
            match place:
                case Rows(_, start, stop):
                    return tensor[start:stop]
                case Swapped():
                    first, second = tensor.chunk(2)
                    return torch.cat([second, first])
                case Turned():
                    return tensor.T.contiguous()
        except (ValueError, IndexError, RuntimeError):
            raise StorageError(
                f"{self.title}: {place.name} has the shape {tuple(tensor.shape)}, which is no {name}'s"
            ) from None
        return tensor.reshape(tensor.shape[:2])


def _renamed(shapes: Shapes, rename: Callable[[str], str | None]) -> _Pairs:
    for name in shapes:
        if (ours := rename(name)) is not None:
            yield ours, name


def _module(name: str, modules: Mapping[str, str]) -> str | None:
    """The new name of a tensor whose module is in the table."""
    module, _, leaf = name.rpartition(".")
    return f"{modules[module]}.{leaf}" if module in modules else None


# --- UNet, ControlNet -------------------------------------------------------------------------------------------------

_UNET = {
    "time_embed.0": "time_embedding.linear_1", "time_embed.2": "time_embedding.linear_2",
    "label_emb.0.0": "add_embedding.linear_1", "label_emb.0.2": "add_embedding.linear_2",
    "input_blocks.0.0": "conv_in", "out.0": "conv_norm_out", "out.2": "conv_out",
}  # fmt: skip
_HINT = {"input_hint_block.0": "conv_in", "input_hint_block.14": "conv_out"}
_HINT |= {f"input_hint_block.{2 * i + 2}": f"blocks.{i}" for i in range(6)}
_CONTROL = {**_UNET, **{there: f"controlnet_cond_embedding.{ours}" for there, ours in _HINT.items()},
            "middle_block_out.0": "controlnet_mid_block"}  # fmt: skip
_RESNET = {"in_layers.0": "norm1", "in_layers.2": "conv1", "emb_layers.1": "time_emb_proj", "out_layers.0": "norm2",
           "out_layers.3": "conv2", "skip_connection": "conv_shortcut"}  # fmt: skip
_BLOCK = re.compile(r"(input|output)_blocks\.(\d+)\.\d+\.(.+)|middle_block\.([012])\.(.+)")


def unet(shapes: Shapes, config: Mapping[str, Any]) -> _Pairs:
    """A UNet2DConditionModel."""
    each = int(config["layers_per_block"]) + 1
    return _renamed(shapes, lambda name: _module(name, _UNET) or _block(name, each))


def control(shapes: Shapes, config: Mapping[str, Any]) -> _Pairs:
    """A ControlNetModel."""
    each = int(config["layers_per_block"]) + 1

    def rename(name: str) -> str | None:
        if zero := re.fullmatch(r"zero_convs\.(\d+)\.0\.(\w+)", name):
            return f"controlnet_down_blocks.{zero[1]}.{zero[2]}"
        return _module(name, _CONTROL) or _block(name, each)

    return _renamed(shapes, rename)


def _block(name: str, each: int) -> str | None:
    """A tensor of the blocks, of which `each` make one level."""
    match = _BLOCK.fullmatch(name)
    if match is None:
        return None
    if match[4]:
        rest, place, layer = match[5], "mid_block", int(match[4]) // 2
    else:
        index = int(match[2]) - (match[1] == "input")
        rest, layer = match[3], index % each
        place = f"{'down' if match[1] == 'input' else 'up'}_blocks.{index // each}"
        if rest.startswith("op."):
            return f"{place}.downsamplers.0.conv.{rest.removeprefix('op.')}"
        if rest.startswith("conv."):
            return f"{place}.upsamplers.0.{rest}"
    if resnet := _module(rest, _RESNET):
        return f"{place}.resnets.{layer}.{resnet}"
    return f"{place}.attentions.{layer}.{rest}" if re.match(r"norm\.|proj_|transformer_blocks\.", rest) else None


# --- autoencoder ------------------------------------------------------------------------------------------------------

_ENDS = {"norm_out": "conv_norm_out", "conv_in": "conv_in", "conv_out": "conv_out"}
_HALVES = {f"{half}.{there}": f"{half}.{ours}" for half in ("encoder", "decoder") for there, ours in _ENDS.items()}
_AUTOENCODER = {**_HALVES, "quant_conv": "quant_conv", "post_quant_conv": "post_quant_conv"}
_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
_LEVEL = re.compile(r"(encoder\.down|decoder\.up)\.(\d+)\.(?:block\.(\d+)|(down|up)sample)\.(.+)")
_MIDDLE = re.compile(r"(encoder|decoder)\.mid\.(?:block_([12])|attn_1)\.(.+)")


def autoencoder(shapes: Shapes, config: Mapping[str, Any]) -> _Pairs:
    """An AutoencoderKL."""
    levels = len(config["block_out_channels"])
    for name, shape in shapes.items():
        ours = _module(name, _AUTOENCODER)
        if level := _LEVEL.fullmatch(name):
            index = int(level[2]) if level[1] == "encoder.down" else levels - 1 - int(level[2])
            part = f"resnets.{level[3]}" if level[3] else f"{level[4]}samplers.0"
            ours = f"{level[1]}_blocks.{index}.{part}.{level[5].replace('nin_shortcut', 'conv_shortcut')}"
        elif middle := _MIDDLE.fullmatch(name):
            if middle[2]:
                rest = middle[3].replace("nin_shortcut", "conv_shortcut")
                ours = f"{middle[1]}.mid_block.resnets.{int(middle[2]) - 1}.{rest}"
            elif part_of := _module(middle[3], _ATTENTION):
                ours = f"{middle[1]}.mid_block.attentions.0.{part_of}"
                if len(shape) == 4:
                    yield ours, Flat(name)
                    continue
        if ours is not None:
            yield ours, name


# --- text encoders ----------------------------------------------------------------------------------------------------

_OPEN = {
    "token_embedding": "text_model.embeddings.token_embedding", "ln_final": "text_model.final_layer_norm",
}  # fmt: skip
_OPEN_LAYER = {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "attn.out_proj": "self_attn.out_proj",
               "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}  # fmt: skip


def clip(shapes: Shapes, config: Mapping[str, Any]) -> _Pairs:
    """A CLIPTextModel in the names of transformers, of which early files leave out the first."""
    for name in shapes:
        whole = name.startswith(("text_model.", "text_projection."))
        yield name if whole else f"text_model.{name}", name


def open_clip(shapes: Shapes, config: Mapping[str, Any]) -> _Pairs:
    """OpenCLIP's text tower, up to the layers that the configuration has; its projection only where that has one."""
    for name, shape in shapes.items():
        layer = re.fullmatch(r"transformer\.resblocks\.(\d+)\.(.+)", name)
        if name == "positional_embedding":
            yield "text_model.embeddings.position_embedding.weight", name
        elif name == "text_projection":
            yield "text_projection.weight", Turned(name)
        elif ours := _module(name, _OPEN):
            yield ours, name
        elif layer and int(layer[1]) < config["num_hidden_layers"]:
            place = f"text_model.encoder.layers.{layer[1]}"
            if fused := re.fullmatch(r"attn\.in_proj_(weight|bias)", layer[2]):
                yield from _thirds(name, shape, [f"{place}.self_attn.{part}_proj.{fused[1]}" for part in "qkv"])
            elif part_of := _module(layer[2], _OPEN_LAYER):
                yield f"{place}.{part_of}", name


def t5(shapes: Shapes, config: Mapping[str, Any]) -> _Pairs:
    """A T5EncoderModel, in the names of transformers."""
    return _renamed(shapes, lambda name: name)


def _thirds(name: str, shape: tuple[int, ...], ours: list[str]) -> _Pairs:
    rows = shape[0] // len(ours) if shape else 0
    for i, one in enumerate(ours):
        yield one, Rows(name, i * rows, (i + 1) * rows if i < len(ours) - 1 else shape[0] if shape else 0)


# --- transformers -----------------------------------------------------------------------------------------------------

_OUT = {"final_layer.linear": "proj_out"}
_SHIFTED = {"final_layer.adaLN_modulation.1": "norm_out.linear"}
_MMDIT = {
    "x_embedder.proj": "pos_embed.proj", "context_embedder": "context_embedder",
    "t_embedder.mlp.0": "time_text_embed.timestep_embedder.linear_1",
    "t_embedder.mlp.2": "time_text_embed.timestep_embedder.linear_2",
    "y_embedder.mlp.0": "time_text_embed.text_embedder.linear_1",
    "y_embedder.mlp.2": "time_text_embed.text_embedder.linear_2", **_OUT,
}  # fmt: skip
_STREAMS = {
    "x_block": {
        "attn.ln_q": "attn.norm_q", "attn.ln_k": "attn.norm_k", "attn.proj": "attn.to_out.0",
        "attn2.ln_q": "attn2.norm_q", "attn2.ln_k": "attn2.norm_k", "attn2.proj": "attn2.to_out.0",
        "adaLN_modulation.1": "norm1.linear", "mlp.fc1": "ff.net.0.proj", "mlp.fc2": "ff.net.2",
    },
    "context_block": {
        "attn.ln_q": "attn.norm_added_q", "attn.ln_k": "attn.norm_added_k", "attn.proj": "attn.to_add_out",
        "adaLN_modulation.1": "norm1_context.linear", "mlp.fc1": "ff_context.net.0.proj",
        "mlp.fc2": "ff_context.net.2",
    },
}  # fmt: skip


def mmdit(shapes: Shapes, config: Mapping[str, Any]) -> _Pairs:
    """An SD3Transformer2DModel. The text stream ends with a norm alone, whose halves are those of the final one."""
    last = int(config["num_layers"]) - 1
    for name, shape in shapes.items():
        block = re.fullmatch(r"joint_blocks\.(\d+)\.(x_block|context_block)\.(.+)", name)
        if name == "pos_embed":
            yield "pos_embed.pos_embed", name
        elif ours := _module(name, _MMDIT):
            yield ours, name
        elif ours := _module(name, _SHIFTED):
            yield ours, Swapped(name)
        elif block:
            place, stream = f"transformer_blocks.{block[1]}", block[2]
            if fused := re.fullmatch(r"(attn2?)\.qkv\.(weight|bias)", block[3]):
                one = f"{fused[1]}.to_{{}}" if stream == "x_block" else f"{fused[1]}.add_{{}}_proj"
                yield from _thirds(name, shape, [f"{place}.{one.format(part)}.{fused[2]}" for part in "qkv"])
            elif ours := _module(block[3], _STREAMS[stream]):
                swapped = int(block[1]) == last and ours.startswith("norm1_context")
                yield f"{place}.{ours}", Swapped(name) if swapped else name


_FLUX = {
    "img_in": "x_embedder", "txt_in": "context_embedder", **_OUT,
    **{
        f"{there}.{side}_layer": f"time_text_embed.{ours}.linear_{i}"
        for there, ours in (("time_in", "timestep_embedder"), ("vector_in", "text_embedder"),
                            ("guidance_in", "guidance_embedder"))
        for i, side in ((1, "in"), (2, "out"))
    },
}  # fmt: skip
_DOUBLE = {
    "img": {"mod.lin": "norm1.linear", "attn.proj": "attn.to_out.0", "mlp.0": "ff.net.0.proj", "mlp.2": "ff.net.2"},
    "txt": {"mod.lin": "norm1_context.linear", "attn.proj": "attn.to_add_out", "mlp.0": "ff_context.net.0.proj",
            "mlp.2": "ff_context.net.2"},
}  # fmt: skip
_NORM = re.compile(r"(?:attn\.)?norm\.(query|key)_norm\.scale")


def flux(shapes: Shapes, config: Mapping[str, Any]) -> _Pairs:
    """A FluxTransformer2DModel."""
    for name, shape in shapes.items():
        double = re.fullmatch(r"double_blocks\.(\d+)\.(img|txt)_(.+)", name)
        single = re.fullmatch(r"single_blocks\.(\d+)\.(.+)", name)
        if ours := _module(name, _FLUX):
            yield ours, name
        elif ours := _module(name, _SHIFTED):
            yield ours, Swapped(name)
        elif double:
            place, text = f"transformer_blocks.{double[1]}", double[2] == "txt"
            if fused := re.fullmatch(r"attn\.qkv\.(weight|bias)", double[3]):
                one = "attn.add_{}_proj" if text else "attn.to_{}"
                yield from _thirds(name, shape, [f"{place}.{one.format(part)}.{fused[1]}" for part in "qkv"])
            elif norm := _NORM.fullmatch(double[3]):
                yield f"{place}.attn.norm_{'added_' if text else ''}{norm[1][0]}.weight", name
            elif ours := _module(double[3], _DOUBLE[double[2]]):
                yield f"{place}.{ours}", name
        elif single:
            yield from _single(f"single_transformer_blocks.{single[1]}", single[2], name, shapes)


def _single(place: str, rest: str, name: str, shapes: Shapes) -> _Pairs:
    """A block of one stream: queries, keys, values and the feed-forward's first half are one matrix there."""
    modules = {"modulation.lin": "norm.linear", "linear2": "proj_out"}
    if fused := re.fullmatch(r"linear1\.(weight|bias)", rest):
        back = shapes.get(name.removesuffix(rest) + "linear2.bias", ())
        if back and shapes[name]:
            width = back[0]
            for i, part in enumerate("qkv"):
                yield f"{place}.attn.to_{part}.{fused[1]}", Rows(name, i * width, (i + 1) * width)
            yield f"{place}.proj_mlp.{fused[1]}", Rows(name, 3 * width, shapes[name][0])
    elif norm := _NORM.fullmatch(rest):
        yield f"{place}.attn.norm_{norm[1][0]}.weight", name
    elif ours := _module(rest, modules):
        yield f"{place}.{ours}", name
