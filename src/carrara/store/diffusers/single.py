"""A whole model in one file, as Stable Diffusion, SDXL, SD3 and FLUX were published: read as a pipeline of diffusers.

    names and shapes -> which family -> the configurations that its models were published with (published.json)
                     -> where each tensor of diffusers' layout is in the file (original.py), read when it is asked for

What the weights cannot tell is decided by an option, else by what is usual, and noted. Every tensor of the file is
used, known to be of no use (schedules' tables, averaged copies), or listed as unread.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from carrara.errors import RecipeError, StorageError
from carrara.store.diffusers import original
from carrara.store.diffusers.foreign import ForeignPart, ForeignPipeline
from carrara.store.diffusers.original import Layout, Original, Place, Shapes, Unit
from carrara.store.weights import TensorFile, open_tensors

__all__ = ["Family", "Prediction", "read_single", "recognise"]

Family = Literal["sd1", "sd2", "sdxl", "sdxl-refiner", "sd3", "flux"]
Prediction = Literal["epsilon", "v_prediction"]
_Function = Callable[[Shapes, Mapping[str, Any]], Iterator[tuple[str, Place]]]

_DENOISER = "model.diffusion_model."
_WIDTHS: dict[int, Family] = {768: "sd1", 1024: "sd2", 2048: "sdxl", 1280: "sdxl-refiner"}  # of what is attended to
_UNET = {"unet": ((_DENOISER,), original.unet), "controlnet": (("control_model.", ""), original.control)}
_VAE = {"vae": (("first_stage_model.", "vae.", ""), original.autoencoder)}
_TRANSFORMERS = "text_encoders.{}.transformer."
_CLIP_L = ((_TRANSFORMERS.format("clip_l"),), original.clip)
_T5 = ((_TRANSFORMERS.format("t5xxl"),), original.t5)
_PLACES: dict[Family, dict[str, tuple[tuple[str, ...], _Function]]] = {
    "sd1": {**_UNET, **_VAE, "text_encoder": (("cond_stage_model.transformer.",), original.clip)},
    "sd2": {**_UNET, **_VAE, "text_encoder": (("cond_stage_model.model.",), original.open_clip)},
    "sdxl": {**_UNET, **_VAE, "text_encoder": (("conditioner.embedders.0.transformer.",), original.clip),
             "text_encoder_2": (("conditioner.embedders.1.model.",), original.open_clip)},
    "sdxl-refiner": {**_UNET, **_VAE, "text_encoder_2": (("conditioner.embedders.0.model.",), original.open_clip)},
    "sd3": {"transformer": ((_DENOISER, ""), original.mmdit), **_VAE, "text_encoder": _CLIP_L,
            "text_encoder_2": ((_TRANSFORMERS.format("clip_g"),), original.clip), "text_encoder_3": _T5},
    "flux": {"transformer": ((_DENOISER, ""), original.flux), **_VAE, "text_encoder": _CLIP_L, "text_encoder_2": _T5},
}  # fmt: skip
_USELESS = re.compile(
    r"(model\.)?(betas|logvar|lvlb_weights|scale_factor|(sqrt_|log_)?(one_minus_|recip_|recipm1_)?alphas_cumprod\w*"
    r"|posterior_\w+)|model_ema\..+|((first_stage_model|vae)\.)?loss\..+|denoiser\.(sigmas|log_sigmas)|v_pred|ztsnr"
    r"|.*\b(position_ids|logit_scale|attn_mask)|(cond_stage_model|conditioner\.embedders\.\d)\.model\.visual\..+"
)
_INPAINTING = {"StableDiffusionPipeline": "StableDiffusionInpaintPipeline",
               "StableDiffusionXLPipeline": "StableDiffusionXLInpaintPipeline"}  # fmt: skip
_CHANNELS = {5: "a depth-to-image model", 7: "an upscaler", 8: "an InstructPix2Pix model"}  # that the UNet reads
_OF_CONTROL = ("out_channels", "up_block_types", "center_input_sample", "sample_size")  # which a ControlNet has not


class _Found(NamedTuple):
    """The names of one network in the file, without their prefix."""

    prefix: str
    shapes: Shapes


def read_single(
    path: Path,
    *,
    family: Family | None = None,
    prediction: Prediction | None = None,
    configs: Mapping[str, Mapping[str, Any]] | None = None,
) -> ForeignPipeline:
    """The pipeline of one file.

    `family` and `prediction` are for what the weights do not tell; `configs` replaces the published configuration of a
    component by its name, for a model of another size. Raises StorageError for a file that is damaged or no such model,
    RecipeError for an option that does not fit.
    """
    if family is not None and family not in get_args(Family):
        raise RecipeError(f"the family is {family!r}; those that are read: {', '.join(get_args(Family))}")
    source = open_tensors(path)
    shapes = {name: source.shape(name) for name in source.names}
    found, notes = (family, []) if family else recognise(shapes, title=source.title)
    published = _published()
    told = published["families"][found]
    parts: dict[str, ForeignPart] = {}
    used: set[str] = set()
    for name, (prefixes, function) in _PLACES[found].items():
        network = _network(shapes, prefixes, name, found)
        if network is not None:
            library, kind_of, config = published["parts"][told["parts"]["unet" if name == "controlnet" else name]]
            if name == "controlnet":
                kind_of, config = "ControlNetModel", _of_control(config)
            config = _fitting(name, found, dict((configs or {}).get(name, config)), network.shapes, configs)
            layout = _layout(network, function, config, kind_of)
            used |= {
                place if isinstance(place, str) else place.name
                for place in layout.values()
                if not isinstance(place, Unit)
            }
            if library == "diffusers":
                config["_class_name"] = kind_of
            parts[name] = ForeignPart(library, kind_of, config, Original(source, layout))
    if not parts:
        raise StorageError(f"{source.title} holds nothing of a model of the family {found}")
    _beside(parts, told["parts"], published["parts"])
    notes += _scheduled(parts, found, prediction, shapes, source)
    kind = told["kind"]
    if "unet" in parts and parts["unet"].config["in_channels"] == 9:
        kind = _INPAINTING.get(kind, kind)
    if any(name.startswith("model_ema.") for name in shapes):
        notes.append("it also has averaged weights (model_ema), which are not read")
    if any(name.startswith("tokenizer") for name in parts):
        notes.append("it has no vocabulary, which no such file has: give the tokenizers' files")
    absent = tuple(name for name in (*told["parts"], *told["absent"]) if name not in parts)
    projections = {name for name in shapes if re.search(r"\btext_projection(\.weight)?$", name)}
    rest = shapes.keys() - used - projections - _beyond(shapes, parts)
    unread = tuple(sorted(name for name in rest if not _USELESS.fullmatch(name)))
    return ForeignPipeline(source.title, kind, parts, absent, told["options"], unread, tuple(notes))


def recognise(shapes: Shapes, *, title: str = "the file") -> tuple[Family, list[str]]:
    """The family of a file with tensors of these names and shapes, and what had to be assumed.

    Raises StorageError, which opens with `title`, for what is no whole model: a LoRA, an embedding, another network.
    """
    for pattern, what in _OTHERS.items():
        if any(re.search(pattern, name) for name in shapes):
            raise StorageError(f"{title} is {what}")
    names = {name.removeprefix(_DENOISER) for name in shapes}
    if "joint_blocks.0.x_block.attn.qkv.weight" in names:
        return "sd3", []
    if "double_blocks.0.img_attn.qkv.weight" in names:
        return "flux", []
    for name, shape in shapes.items():
        if name.endswith("attn2.to_k.weight") and re.search(r"\b(in|out)put_blocks\.|\bmiddle_block\.", name):
            if len(shape) != 2 or shape[1] not in _WIDTHS:
                raise StorageError(
                    f"{title} is a UNet that attends to {shape[-1:]}, and those that are read to {[*_WIDTHS]}"
                )
            return _WIDTHS[shape[1]], []
    latent = next((shape for name, shape in shapes.items() if name.endswith("decoder.conv_in.weight")), ())
    if len(latent) == 4 and latent[1] in (4, 16):
        found, other = ("sd1", "sdxl") if latent[1] == 4 else ("flux", "sd3")
        return found, [f"it is an autoencoder alone, whose scale its weights do not tell: taken as that of {found}; "
                       f"say the family if it is another's, such as {other}"]  # type: ignore[return-value]  # fmt: skip
    raise StorageError(f"{title} is no model in a published layout of Stable Diffusion, SDXL, SD3 or FLUX")


_LORA = "a LoRA ({} layout), no whole model; add it to one"
_OTHERS = {
    r"^lora_(unet|te|te1|te2|transformer)_|\.lora_(down|up)\.|\.hada_w1_a$|\.lokr_w1$": _LORA.format("kohya's"),
    r"\.lora_[AB]\.|\.lora\.(down|up)\.|\.lora_embedding_[AB]$": _LORA.format("diffusers' or PEFT's"),
    r"^(emb_params|string_to_param|clip_[lg]$)": "an embedding of textual inversion, no model; add it to one",
    r"^edm_(mean|std)$": "a Playground model, whose parameterization no file of these families has",
    r"^(down_blocks|mid_block|up_blocks|transformer_blocks)\.\d*\.?|^(encoder|decoder)\.(down|up)_blocks\.": "one "
    "component in diffusers' own names; put it into a folder with its config.json",
    r"^(text_model|vision_model|shared)\.": "a text or image encoder alone; put it into a folder with its config.json",
    r"^(model\.diffusion_model\.)?distilled_guidance_layer\.": "a Chroma model, which is not read",
}


def _network(shapes: Shapes, prefixes: tuple[str, ...], part: str, family: Family) -> _Found | None:
    """The tensors of a part; None where the file has none of it."""
    markers = {
        "unet": "input_blocks.0.0.weight", "controlnet": "input_hint_block.0.weight", "vae": "decoder.conv_in.weight",
        "transformer": f"{'joint_blocks.0.x_block.' if family == 'sd3' else 'double_blocks.0.img_'}attn.qkv.weight",
    }  # fmt: skip
    for prefix in prefixes:
        if prefix + markers[part] in shapes if part in markers else any(name.startswith(prefix) for name in shapes):
            inner = {
                name.removeprefix(prefix): shape
                for name, shape in shapes.items()
                if name.startswith(prefix) and not _USELESS.fullmatch(name)
            }
            return _Found(prefix, inner)
    return None


def _layout(network: _Found, function: _Function, config: Mapping[str, Any], kind: str) -> Layout:
    layout: dict[str, Place] = {}
    for ours, place in function(network.shapes, config):
        if isinstance(place, str):
            layout[ours] = network.prefix + place
        else:
            layout[ours] = place if isinstance(place, Unit) else place._replace(name=network.prefix + place.name)
    if kind == "CLIPTextModelWithProjection":  # SD3 was published without CLIP-L's, and runs as if it were 1
        layout.setdefault("text_projection.weight", Unit(config["hidden_size"]))
    elif kind == "CLIPTextModel":
        layout.pop("text_projection.weight", None)
    return layout


def _fitting(
    part: str, family: Family, config: dict[str, Any], shapes: Shapes, configs: Mapping[str, Any] | None
) -> dict[str, Any]:
    """The published configuration with what shapes tell better: variants differ in it, such as inpainting's."""
    if part in (configs or {}):
        return config
    if part in ("unet", "controlnet"):
        config["in_channels"] = channels = shapes["input_blocks.0.0.weight"][1]
        if channels in _CHANNELS:
            raise StorageError(
                f"the file is {_CHANNELS[channels]} (its UNet reads {channels} channels), which is not read"
            )
    elif part == "transformer" and family == "flux":
        config |= {
            "in_channels": shapes["img_in.weight"][1],
            "out_channels": shapes["final_layer.linear.weight"][0],
            "guidance_embeds": "guidance_in.in_layer.weight" in shapes,
            "num_layers": _count(shapes, "double_blocks"),
            "num_single_layers": _count(shapes, "single_blocks"),
        }
    elif part == "transformer":
        width = shapes["x_embedder.proj.weight"][0]
        layers = [
            i for i in range(_count(shapes, "joint_blocks")) if f"joint_blocks.{i}.x_block.attn2.qkv.weight" in shapes
        ]
        config |= {
            "num_layers": _count(shapes, "joint_blocks"),
            "num_attention_heads": width // config["attention_head_dim"],
            "caption_projection_dim": width,
            "pos_embed_max_size": round(shapes["pos_embed"][1] ** 0.5) if "pos_embed" in shapes else 192,
            "dual_attention_layers": layers,
            "qk_norm": "rms_norm" if "joint_blocks.0.x_block.attn.ln_q.weight" in shapes else None,
        }
    return config


def _count(shapes: Shapes, blocks: str) -> int:
    found = {int(match[1]) for name in shapes if (match := re.match(rf"{blocks}\.(\d+)\.", name))}
    return max(found) + 1 if found else 0


def _of_control(unet: Mapping[str, Any]) -> dict[str, Any]:
    own = {"conditioning_embedding_out_channels": [16, 32, 96, 256], "controlnet_conditioning_channel_order": "rgb"}
    return {key: value for key, value in unet.items() if key not in _OF_CONTROL} | own


def _beside(parts: dict[str, ForeignPart], names: Mapping[str, str], published: Mapping[str, Any]) -> None:
    """Adds what has no weights: tokenizers of the text encoders that are there, the scheduler of the denoiser."""
    for name, part in names.items():
        of = name.replace("tokenizer", "text_encoder") if name.startswith("tokenizer") else "unet"
        wanted = of in parts or "transformer" in parts if name == "scheduler" else of in parts
        if wanted and (name == "scheduler" or name.startswith("tokenizer")):
            library, kind, config = published[part]
            parts[name] = ForeignPart(library, kind, dict(config))


def _beyond(shapes: Shapes, parts: Mapping[str, ForeignPart]) -> set[str]:
    """The tensors of OpenCLIP's layers that nobody reads: SD 2 takes what comes out of the last but one."""
    if "text_encoder" not in parts:
        return set()
    first = parts["text_encoder"].config["num_hidden_layers"]
    layer = re.compile(r"cond_stage_model\.model\.transformer\.resblocks\.(\d+)\..+")
    return {name for name in shapes if (match := layer.fullmatch(name)) and int(match[1]) >= first}


def _scheduled(
    parts: dict[str, ForeignPart], family: Family, prediction: Prediction | None, shapes: Shapes, source: TensorFile
) -> list[str]:
    """Says in the scheduler what the denoiser predicts; the notes on what was assumed."""
    if prediction is not None and (family in ("sd3", "flux") or prediction not in get_args(Prediction)):
        raise RecipeError(f"prediction = {prediction!r} is not for the family {family}; leave it out")
    if "scheduler" not in parts or family == "sd3":
        return []
    config: dict[str, Any] = dict(parts["scheduler"].config)
    notes = []
    if family == "flux":
        if not parts["transformer"].config["guidance_embeds"]:  # "schnell", which is distilled to few steps
            config |= {"shift": 1.0, "use_dynamic_shifting": False}
    else:
        metadata = getattr(source, "metadata", {})
        said = {"epsilon": "epsilon", "v": "v_prediction"}.get(metadata.get("modelspec.prediction_type", ""))
        said = prediction or ("v_prediction" if "v_pred" in shapes else said)
        if said is None and family == "sd2" and parts["unet"].config["in_channels"] == 4:
            said = "v_prediction"
            notes.append(
                "whether it predicts v, as the models of 768 pixels do, or the noise, as those of 512, is not in its "
                "weights: taken as v_prediction; say the prediction if it is epsilon"
            )
        config["prediction_type"] = said or "epsilon"
        if "ztsnr" in shapes:
            config["rescale_betas_zero_snr"] = True
        if family == "sd2" and config["prediction_type"] == "epsilon":
            unet = parts["unet"]
            parts["unet"] = ForeignPart(unet.library, unet.kind, {**unet.config, "sample_size": 64}, unet.tensors)
    parts["scheduler"] = ForeignPart("diffusers", parts["scheduler"].kind, config)
    return notes


def _published() -> dict[str, Any]:
    text = (resources.files("carrara.store.diffusers") / "published.json").read_text(encoding="utf-8")
    body: dict[str, Any] = json.loads(text)
    return body
