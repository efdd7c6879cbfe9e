"""Whole pipelines of diffusers beside ours: the same folder, the same noise, the same prompts, and how far apart z is.

    python -m benchmarks.parity                 everything: benchmarks/results/parity.json
    python -m benchmarks.parity --only sd1 flux --samplers ddim

Every folder is written by diffusers itself, of its own classes with random weights; ours is read from it. The figure is
the greatest difference of z in the whole batch, in parts of the greatest number in theirs, float32 on the CPU.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.facts import facts

__all__ = ["FAMILIES", "SAMPLERS", "TASKS", "Case", "main", "measured", "write"]

PROMPTS = ["a red apple", "two cats on a table, at night"]
NEGATIVE = ["blurry", "out of focus"]
SEEDS = [3, 11]
STRENGTHS = {4: 0.5, 11: 6 / 11}  # of which both make the same whole number of strides

# --- tiny models of the real classes --------------------------------------------------------------------------------

_UNET: dict[str, Any] = {
    "sample_size": 8, "block_out_channels": (8, 16, 16), "norm_num_groups": 4, "cross_attention_dim": 24,
    "layers_per_block": 1, "attention_head_dim": 2,
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
}  # fmt: skip
_XL: dict[str, Any] = {
    **_UNET, "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), "use_linear_projection": True,
    "transformer_layers_per_block": (1, 2, 2), "attention_head_dim": (2, 4, 4), "cross_attention_dim": 24 + 32,
    "addition_embed_type": "text_time", "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 32 + 6 * 8,
}  # fmt: skip
_VAE: dict[str, Any] = {
    "block_out_channels": (8, 16, 16), "norm_num_groups": 4, "layers_per_block": 1, "sample_size": 32,
    "down_block_types": ("DownEncoderBlock2D",) * 3, "up_block_types": ("UpDecoderBlock2D",) * 3,
}  # fmt: skip
_VAE16: dict[str, Any] = {
    **_VAE, "latent_channels": 16, "use_quant_conv": False, "use_post_quant_conv": False, "scaling_factor": 1.5305,
    "shift_factor": 0.0609,
}  # fmt: skip


def _moved(model: nn.Module, seed: int = 0) -> Any:
    """A model whose every parameter is random, what starts at zero included."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            wide = parameter.ndim > 1
            noise = torch.randn(parameter.shape, generator=generator)
            if wide:
                parameter.copy_(noise / parameter[0].numel() ** 0.5)
            else:
                parameter.copy_(0.1 * noise + float("norm" in name and name.endswith("weight")))
    return model.eval()


def _bytes() -> list[str]:
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return [*map(chr, printable), *(chr(256 + number) for number in range(len(others)))]


def _clip_tokenizer(folder: Path) -> Any:
    """CLIP's, with bytes and no merges."""
    from transformers import CLIPTokenizer

    marks = ("<|startoftext|>", "<|endoftext|>")
    letters = _bytes()
    words = [*letters, *(f"{letter}</w>" for letter in letters), *marks]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    said = {"pad_token": marks[1], "bos_token": marks[0], "eos_token": marks[1], "unk_token": marks[1]}
    (folder / "tokenizer_config.json").write_text(
        json.dumps({**said, "model_max_length": 77, "tokenizer_class": "CLIPTokenizer"})
    )
    (folder / "special_tokens_map.json").write_text(json.dumps(said))
    return CLIPTokenizer.from_pretrained(folder)


def _t5_tokenizer(folder: Path) -> Any:
    """T5's, with single letters."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import T5TokenizerFast

    letters = ["▁", *map(chr, range(33, 127))]
    marks = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    tokenizer = Tokenizer(models.Unigram([*marks, *((letter, -4.0) for letter in letters)], unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    said = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>", "extra_ids": 0}
    (folder / "tokenizer_config.json").write_text(
        json.dumps({**said, "model_max_length": 512, "tokenizer_class": "T5Tokenizer"})
    )
    return T5TokenizerFast.from_pretrained(folder)


def _clip(width: int, *, projected: bool, act: str = "quick_gelu") -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        hidden_size=width, projection_dim=width, hidden_act=act, vocab_size=514, num_hidden_layers=3,
        num_attention_heads=4, intermediate_size=40, max_position_embeddings=77, bos_token_id=512, eos_token_id=513,
    )  # fmt: skip
    return _moved((CLIPTextModelWithProjection if projected else CLIPTextModel)(config), seed=width)


def _t5(width: int) -> Any:
    from transformers import T5Config, T5EncoderModel

    config = T5Config(
        vocab_size=98, d_model=width, d_kv=8, d_ff=48, num_layers=2, num_heads=4, feed_forward_proj="gated-gelu"
    )
    return _moved(T5EncoderModel(config), seed=width)


def _stable_diffusion(
    kind: str, unet: Mapping[str, Any], act: str = "quick_gelu", **more: Any
) -> Callable[[Path], Any]:
    def made(folder: Path) -> Any:
        import diffusers

        return getattr(diffusers, kind)(
            vae=_moved(diffusers.AutoencoderKL(**_VAE)),
            unet=_moved(diffusers.UNet2DConditionModel(**unet)),
            text_encoder=_clip(24, projected=False, act=act),
            tokenizer=_clip_tokenizer(folder / "tokenizer"),
            scheduler=diffusers.DDIMScheduler(
                beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
                set_alpha_to_one=False, steps_offset=1, **more,
            ),
            safety_checker=None, feature_extractor=None, requires_safety_checker=False,
        )  # fmt: skip

    return made


def _xl(folder: Path) -> Any:
    import diffusers

    return diffusers.StableDiffusionXLPipeline(
        vae=_moved(diffusers.AutoencoderKL(**{**_VAE, "scaling_factor": 0.13025})),
        unet=_moved(diffusers.UNet2DConditionModel(**_XL)),
        text_encoder=_clip(24, projected=False),
        tokenizer=_clip_tokenizer(folder / "tokenizer"),
        text_encoder_2=_clip(32, projected=True, act="gelu"),
        tokenizer_2=_clip_tokenizer(folder / "tokenizer_2"),
        scheduler=diffusers.EulerDiscreteScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1,
            timestep_spacing="leading",
        ),
        add_watermarker=False,
    )  # fmt: skip


def _sd3(folder: Path) -> Any:
    import diffusers

    transformer = diffusers.SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=16, num_layers=2, attention_head_dim=8, num_attention_heads=4,
        joint_attention_dim=64, caption_projection_dim=32, pooled_projection_dim=56, out_channels=16,
        pos_embed_max_size=16,
    )  # fmt: skip
    return diffusers.StableDiffusion3Pipeline(
        vae=_moved(diffusers.AutoencoderKL(**_VAE16)),
        transformer=_moved(transformer),
        text_encoder=_clip(24, projected=True),
        tokenizer=_clip_tokenizer(folder / "tokenizer"),
        text_encoder_2=_clip(32, projected=True, act="gelu"),
        tokenizer_2=_clip_tokenizer(folder / "tokenizer_2"),
        text_encoder_3=_t5(64),
        tokenizer_3=_t5_tokenizer(folder / "tokenizer_3"),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    )


def _flux(folder: Path) -> Any:
    import diffusers

    transformer = diffusers.FluxTransformer2DModel(
        in_channels=64, num_layers=1, num_single_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=64, pooled_projection_dim=24, guidance_embeds=True, axes_dims_rope=(4, 6, 6),
    )  # fmt: skip
    return diffusers.FluxPipeline(
        vae=_moved(diffusers.AutoencoderKL(**{**_VAE16, "scaling_factor": 0.3611, "shift_factor": 0.1159})),
        transformer=_moved(transformer),
        text_encoder=_clip(24, projected=False),
        tokenizer=_clip_tokenizer(folder / "tokenizer"),
        text_encoder_2=_t5(64),
        tokenizer_2=_t5_tokenizer(folder / "tokenizer_2"),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(
            shift=3.0, use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15, base_image_seq_len=256,
            max_image_seq_len=4096,
        ),
    )  # fmt: skip


def _pixart(folder: Path) -> Any:
    import diffusers

    transformer = diffusers.PixArtTransformer2DModel(
        num_attention_heads=4, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=2,
        cross_attention_dim=32, sample_size=8, patch_size=2, caption_channels=64, use_additional_conditions=False,
    )  # fmt: skip
    return diffusers.PixArtAlphaPipeline(
        vae=_moved(diffusers.AutoencoderKL(**_VAE)),
        transformer=_moved(transformer),
        text_encoder=_t5(64),
        tokenizer=_t5_tokenizer(folder / "tokenizer"),
        scheduler=diffusers.DPMSolverMultistepScheduler(),
    )


FAMILIES: dict[str, Callable[[Path], Any]] = {
    "sd1": _stable_diffusion("StableDiffusionPipeline", _UNET),
    "sd1-inpainting": _stable_diffusion("StableDiffusionInpaintPipeline", {**_UNET, "in_channels": 9}),
    "sd2": _stable_diffusion(
        "StableDiffusionPipeline",
        {**_UNET, "use_linear_projection": True, "attention_head_dim": (2, 4, 4)},
        act="gelu",
        prediction_type="v_prediction",
    ),
    "sdxl": _xl,
    "sd3": _sd3,
    "flux": _flux,
    "pixart": _pixart,
}

_KARRAS = {"use_karras_sigmas": True}
SAMPLERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": ("DDIMScheduler", {"clip_sample": False, "timestep_spacing": "leading"}),  # others differ
    "euler": ("EulerDiscreteScheduler", {}),
    "euler-a": ("EulerAncestralDiscreteScheduler", {}),
    "dpmpp-2m": ("DPMSolverMultistepScheduler", {}),
    "dpmpp-2m-karras": ("DPMSolverMultistepScheduler", _KARRAS),
    "unipc": ("UniPCMultistepScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "lcm": ("LCMScheduler", {}),
    "flow-match-euler": ("FlowMatchEulerDiscreteScheduler", {}),
}
FLOWS = ("sd3", "flux")
TASKS = {
    "sd1": ("text-to-image", "rescaled", "image-to-image", "inpainting"),
    "sd1-inpainting": ("inpainting",),
    "sd2": ("text-to-image", "rescaled", "image-to-image", "inpainting"),
    "sdxl": ("text-to-image", "rescaled", "image-to-image", "inpainting"),
    "sd3": ("text-to-image", "image-to-image"),
    "flux": ("text-to-image",),
    "pixart": ("text-to-image",),
}
_STOCHASTIC = ("euler-a", "lcm")


@dataclass(frozen=True)
class Case:
    """One row of the table."""

    family: str
    task: str
    sampler: str
    steps: int


def cases(families: Sequence[str], samplers: Sequence[str]) -> Iterator[Case]:
    """Every row: flows by their own sampler, the others by all of theirs."""
    for family in families:
        own = ["flow-match-euler"] if family in FLOWS else [name for name in SAMPLERS if name != "flow-match-euler"]
        for task in TASKS[family]:
            for sampler in own:
                if sampler in samplers:
                    yield from (Case(family, task, sampler, steps) for steps in STRENGTHS)


def write(family: str, folder: Path) -> None:
    """The folder of a family, as diffusers writes it."""
    with tempfile.TemporaryDirectory() as place:
        FAMILIES[family](Path(place)).save_pretrained(folder)


# --- both sides -----------------------------------------------------------------------------------------------------


def scheduled(folder: Path, sampler: str) -> None:
    """Puts a sampler into the folder in place of the family's own, with all settings that it shares with that."""
    import diffusers

    if sampler == "flow-match-euler":
        return
    kept = folder.with_name(f"{folder.name}-scheduler.json")
    if not kept.exists():
        kept.write_bytes((folder / "scheduler" / "scheduler_config.json").read_bytes())
    kind, more = SAMPLERS[sampler]
    made = getattr(diffusers, kind).from_config(json.loads(kept.read_text()), **more)
    made.save_pretrained(folder / "scheduler")
    index = json.loads((folder / "model_index.json").read_text())
    index["scheduler"] = ["diffusers", kind]
    (folder / "model_index.json").write_text(json.dumps(index))


class _Noise:
    """Stands in for diffusers' random numbers: those that our sampler draws, in the order of its draws."""

    def __init__(self, rng: Any) -> None:
        self.rng = rng

    def __call__(self, shape: Sequence[int], **_: Any) -> Tensor:
        drawn: Tensor = self.rng.normal(tuple(shape[1:]))
        return drawn


def _picture(system: Any) -> tuple[Tensor, Tensor]:
    """A picture and a mask for both."""
    channels, height, width = system.decoder.pictures.shape
    generator = torch.Generator().manual_seed(5)
    picture = torch.rand((1, channels, height // 4, width // 4), generator=generator) * 2 - 1
    picture = nn.functional.interpolate(picture, size=(height, width), mode="bilinear")
    mask = torch.zeros(1, 1, height, width)
    mask[..., height // 4 : height // 2 + 4, width // 4 :] = 1
    return picture, mask


def measured(case: Case, folder: Path) -> float:
    """The greatest difference of z, in parts of the greatest number."""
    from carrara.store.diffusers.pipeline import read_system

    scheduled(folder, case.sampler)
    found = read_system(folder, dtype=torch.float32)
    ours, theirs = _ours(case, found), _theirs(case, folder, found)
    return float((ours - theirs).abs().max() / theirs.abs().max())


def _settings(case: Case, found: Any) -> Any:
    from carrara.diffusion import Editing, Rescale

    settings = found.settings(case.steps)
    if case.task == "rescaled":
        settings = replace(settings, guidance=Rescale(settings.guidance, 0.7))
    return replace(settings, editing=Editing(_strength(case), resamplings=0))


def _strength(case: Case) -> float:
    """The share of the strides that are made; a model for inpainting makes all."""
    edited = case.task in ("image-to-image", "inpainting") and case.family != "sd1-inpainting"
    return STRENGTHS[case.steps] if edited else 1.0


def _request(case: Case, found: Any) -> Any:
    from carrara.types import Request

    inputs: dict[str, Tensor] = {}
    if case.task in ("image-to-image", "inpainting"):
        picture, mask = _picture(found.system)
        inputs["image"] = picture.expand(len(SEEDS), -1, -1, -1)
        if case.task == "inpainting":
            inputs["mask"] = mask.expand(len(SEEDS), -1, -1, -1)
    return Request(tuple(PROMPTS), tuple(SEEDS), tuple(NEGATIVE), inputs=inputs, settings=_settings(case, found))


def _ours(case: Case, found: Any) -> Tensor:
    """z of our system, as its decoder is given it."""
    from carrara.run import finish

    system = found.system
    seen: list[Tensor] = []

    class Watched:
        def __getattr__(self, name: str) -> Any:
            return getattr(system.decoder, name)

        def start(self, z: Tensor, *given: Any) -> Any:
            seen.append(z)
            return system.decoder.start(z, *given)

    with torch.no_grad():
        finish(replace(system, decoder=Watched()).start(_request(case, found)))
    return seen[0]


def _theirs(case: Case, folder: Path, found: Any) -> Tensor:
    """z of diffusers' pipeline from the same noise."""
    import diffusers

    from carrara.rng import Rng

    tasks = {"image-to-image": "AutoPipelineForImage2Image", "inpainting": "AutoPipelineForInpainting"}
    pipeline = diffusers.DiffusionPipeline.from_pretrained(folder)
    if case.task in tasks and case.family != "sd1-inpainting":
        pipeline = getattr(diffusers, tasks[case.task]).from_pipe(pipeline)
    pipeline.set_progress_bar_config(disable=True)
    generator, settings = found.system.generator, _settings(case, found)
    rng = Rng.seeds(SEEDS).fork("generator")
    noise = rng.fork("prior").normal(generator.space.shape)
    guidance = settings.guidance
    while hasattr(guidance, "inner"):
        guidance = guidance.inner
    told: dict[str, Any] = {
        "prompt": PROMPTS, "num_inference_steps": case.steps, "output_type": "latent", "return_dict": False,
        "guidance_scale": getattr(guidance, "scale", 3.5),
    }  # fmt: skip
    if case.family != "flux":
        told["negative_prompt"] = NEGATIVE
    if case.task == "rescaled":
        told["guidance_rescale"] = 0.7
    if case.family == "pixart":
        told |= {"use_resolution_binning": False, "clean_caption": False}
    height, width = found.system.decoder.pictures.shape[1:]
    if case.task in ("text-to-image", "rescaled"):
        told |= {"height": height, "width": width, "latents": _packed(case, _begun(noise, found, case))}
        if case.family == "pixart":
            told["latents"] = _begun(noise, found, case)
        draws = _Noise(rng.fork("steps"))
    else:
        picture, mask = _picture(found.system)
        told["image"] = picture.expand(len(SEEDS), -1, -1, -1)
        told["strength"] = _strength(case)
        if case.task == "inpainting":
            told |= {"mask_image": mask.expand(len(SEEDS), -1, -1, -1), "height": height, "width": width}
        draws = _First(noise, rng.fork("steps"))
    with torch.no_grad(), _patched(draws):
        z: Tensor = pipeline(**told)[0]
    if case.family == "flux":
        z = z.unflatten(1, (height // 8, width // 8)).unflatten(3, (-1, 2, 2)).permute(0, 3, 1, 4, 2, 5)
        z = z.flatten(4).flatten(2, 3)
    return z


def _begun(noise: Tensor, found: Any, case: Case) -> Tensor:
    """The noise that makes diffusers begin where our sampling does: both differ by how wide the first x_t is."""
    generator, settings = found.system.generator, _settings(case, found)
    first = generator.times(settings)[0]
    ours = generator.denoiser.process.prior_std(first)
    alpha, sigma = generator.denoiser.process.schedule(first)
    theirs = found.scheduler.prior(alpha, sigma)
    return noise * (ours / theirs)


def _packed(case: Case, z: Tensor) -> Tensor:
    if case.family != "flux":
        return z
    return z.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


class _First(_Noise):
    """The first noise is that which is begun with."""

    def __init__(self, first: Tensor, rng: Any) -> None:
        super().__init__(rng)
        self.first: Tensor | None = first

    def __call__(self, shape: Sequence[int], **more: Any) -> Tensor:
        if self.first is not None:
            first, self.first = self.first, None
            return first
        return super().__call__(shape, **more)


class _patched:
    """diffusers' random numbers are ours inside, and its autoencoder's draws their means."""

    def __init__(self, draws: Callable[..., Tensor]) -> None:
        self.draws, self.before = draws, list[tuple[Any, str, Any]]()

    def __enter__(self) -> None:
        import sys

        from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

        for name, module in list(sys.modules.items()):
            if name.startswith(("diffusers.pipelines", "diffusers.schedulers")) and "randn_tensor" in vars(module):
                self._put(module, "randn_tensor", self.draws)
        self._put(DiagonalGaussianDistribution, "sample", lambda own, generator=None: own.mode())

    def _put(self, place: Any, name: str, value: Any) -> None:
        self.before.append((place, name, getattr(place, name)))
        setattr(place, name, value)

    def __exit__(self, *error: object) -> None:
        for place, name, value in self.before:
            setattr(place, name, value)


def quiet() -> None:
    """No bars and no warnings of diffusers and transformers."""
    import diffusers
    import transformers

    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.parity", description="Pipelines side by side.")
    parser.add_argument("--only", nargs="+", choices=FAMILIES, default=list(FAMILIES), help="families")
    parser.add_argument("--samplers", nargs="+", choices=SAMPLERS, default=list(SAMPLERS))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "parity.json")
    given = parser.parse_args(arguments)
    quiet()
    rows = []
    with tempfile.TemporaryDirectory() as place:
        for case in cases(given.only, given.samplers):
            folder = Path(place) / case.family
            if not folder.exists():
                write(case.family, folder)
            error = measured(case, folder)
            rows.append({**vars(case), "max_error": error})
            print(f"{case.family:15} {case.task:15} {case.sampler:17} {case.steps:3}  {error:.2e}", flush=True)
    body = {"format_version": 1, "facts": facts("python -m benchmarks.parity"), "rows": rows}
    given.out.write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")
    print(given.out)


if __name__ == "__main__":
    main()
