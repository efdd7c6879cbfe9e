"""What a `kind` in a file may be: literal tables, role -> {kind: "module:name"}. Files never name code.

Kinds of one's own come from installed packages, by an entry point in the group `carrara.kinds` whose name is
"role.kind" and whose value is "module:name"; see docs/extending.md. A kind of Carrara's own cannot be replaced.
"""

from __future__ import annotations

import functools
from importlib import metadata

from carrara.config import Kinds
from carrara.errors import RecipeError

__all__ = ["BASES", "TABLES", "kinds"]

_D = "carrara.diffusion"
_F = "carrara.store.diffusers"  # conventions of other programs

TABLES: dict[str, dict[str, str]] = {
    "schedule": {
        "cosine": f"{_D}.schedule:Cosine",
        "cosine-betas": f"{_D}.schedule:CosineBetas",
        "given-betas": f"{_D}.schedule:GivenBetas",
        "learned": f"{_D}.learned:LearnedLogSNR",
        "linear": f"{_D}.schedule:Linear",
        "linear-betas": f"{_D}.schedule:LinearBetas",
        "linear-sigma": f"{_F}.schedule:LinearSigma",
        "linear-vp": f"{_D}.schedule:LinearVP",
        "near-zero-terminal": f"{_F}.schedule:NearZeroTerminal",
        "scaled-linear-betas": f"{_D}.schedule:ScaledLinearBetas",
        "sigmoid": f"{_D}.schedule:Sigmoid",
        "sigmoid-betas": f"{_D}.schedule:SigmoidBetas",
        "variance-exploding": f"{_D}.schedule:VarianceExploding",
    },
    "parameterization": {
        "epsilon": f"{_D}.parameterization:Epsilon",
        "flow": f"{_D}.parameterization:Flow",
        "karras": f"{_D}.parameterization:Karras",
        "negative-karras": f"{_F}.parameterization:NegativeKarras",
        "v": f"{_D}.parameterization:V",
        "x0": f"{_D}.parameterization:X0",
    },
    "level": {
        "integer-step": f"{_D}.parameterization:IntegerStep",
        "log-sigma": f"{_D}.parameterization:LogSigma",
        "rounded": f"{_F}.level:Rounded",
        "scaled-time": f"{_D}.parameterization:ScaledTime",
        "truncated": f"{_F}.level:Truncated",
    },
    "variance": {
        "learned": f"{_D}.process:Learned",
        "posterior": f"{_D}.process:Posterior",
        "transition": f"{_D}.process:Transition",
    },
    "draw": {
        "importance": f"{_D}.draw:Importance",
        "log-normal": f"{_D}.draw:LogNormal",
        "logit-normal": f"{_D}.draw:LogitNormal",
        "low-discrepancy": f"{_D}.draw:LowDiscrepancy",
        "mode": f"{_D}.draw:Mode",
        "steps": f"{_D}.draw:Steps",
        "uniform": f"{_D}.draw:Uniform",
    },
    "weight": {
        "edm": f"{_D}.weight:EDMWeight",
        "min-snr": f"{_D}.weight:MinSNR",
        "p2": f"{_D}.weight:P2",
        "per-logsnr": f"{_D}.weight:PerLogSNR",
        "sigmoid": f"{_D}.weight:SigmoidWeight",
        "truncated-snr": f"{_D}.weight:TruncatedSNR",
        "uncertainty": f"{_D}.weight:Uncertainty",
        "unit": f"{_D}.weight:Unit",
    },
    "objective": {
        "bound": f"{_D}.bound:BoundLoss",
        "continuous-bound": f"{_D}.bound:ContinuousBoundLoss",
        "denoising": f"{_D}.loss:DenoisingLoss",
        "hybrid": f"{_D}.bound:HybridLoss",
        "least-variance": f"{_D}.bound:LeastVariance",
    },
    "times": {
        "begun": f"{_F}.times:begun",
        "beta": f"{_D}.times:beta",
        "beta-levels": f"{_F}.times:beta_levels",
        "consistency": f"{_F}.times:consistency",
        "exponential": f"{_D}.times:exponential",
        "exponential-levels": f"{_F}.times:exponential_levels",
        "full": f"{_D}.times:full",
        "given": f"{_D}.times:given",
        "karras": f"{_D}.times:karras",
        "karras-levels": f"{_F}.times:karras_levels",
        "leading": f"{_D}.times:leading",
        "leading-open": f"{_F}.times:leading_open",
        "linspace": f"{_D}.times:linspace",
        "linspace-open": f"{_F}.times:linspace_open",
        "shift": f"{_D}.times:shift",
        "straight": f"{_F}.times:straight",
        "straight-open": f"{_F}.times:straight_open",
        "stretched": f"{_F}.times:stretched",
        "trailing": f"{_D}.times:trailing",
        "uniform": f"{_D}.times:uniform",
        "uniform-logsnr": f"{_D}.times:uniform_logsnr",
    },
    "sampler": {
        "adams": f"{_D}.multistep:adams",
        "ancestral": f"{_D}.sampler:ancestral",
        "ddim": f"{_D}.sampler:ddim",
        "dopri": f"{_D}.adaptive:dopri",
        "dpmpp-2m": f"{_D}.dpm:dpmpp_2m",
        "dpmpp-2m-sde": f"{_D}.dpm:dpmpp_2m_sde",
        "dpmpp-2s": f"{_D}.dpm:dpmpp_2s",
        "dpmpp-3m": f"{_D}.dpm:dpmpp_3m",
        "dpmpp-3m-sde": f"{_D}.dpm:dpmpp_3m_sde",
        "dpmpp-sde": f"{_D}.dpm:dpmpp_sde",
        "ending": f"{_F}.sampler:ending",
        "euler-ancestral": f"{_D}.sampler:euler_ancestral",
        "heun": f"{_D}.sampler:heun",
        "lcm": f"{_D}.sampler:lcm",
        "plms": f"{_D}.multistep:plms",
        "pndm": f"{_D}.multistep:pndm",
        "predictor-corrector": f"{_D}.sampler:predictor_corrector",
        "singlestep": f"{_F}.sampler:singlestep",
        "unipc": f"{_D}.unipc:unipc",
    },
    "coordinate": {
        "alpha": f"{_D}.sampler:alpha_coordinate",
        "total": f"{_D}.sampler:total_coordinate",
    },
    "bh": {
        "bh1": f"{_D}.unipc:bh1",
        "bh2": f"{_D}.unipc:bh2",
    },
    "guidance": {
        "bounded-threshold": f"{_F}.threshold:BoundedThreshold",
        "classifier-free": f"{_D}.guidance:ClassifierFree",
        "clip": f"{_D}.limits:Clip",
        "follow": f"{_D}.follow:Follow",
        "plain": f"{_D}.guidance:Plain",
        "projected": f"{_D}.projection:Projected",
        "rescale": f"{_D}.limits:Rescale",
        "threshold": f"{_D}.limits:Threshold",
    },
    "network": {
        "dit": "carrara.nn.dit:DiT",
        "flux": "carrara.nn.flux:Flux",
        "mmdit": "carrara.nn.mmdit:MMDiT",
        "pixart": "carrara.nn.pixart:PixArt",
        "unet": "carrara.nn.unet:UNet",
    },
    "autoencoder": {
        "kl": "carrara.nn.autoencoder:KLAutoencoder",
        "stable-diffusion": "carrara.nn.image_autoencoder:ImageAutoencoder",
        "tiny": "carrara.nn.tiny_autoencoder:TinyAutoencoder",
    },
    "quantizer": {
        "fsq": "carrara.nn.quantize:FSQ",
        "vq": "carrara.nn.quantize:VectorQuantizer",
    },
    "token_network": {
        "causal": "carrara.nn.causal:CausalTransformer",
    },
    "patch_discriminator": {
        "patch": "carrara.nn.patch_discriminator:PatchDiscriminator",
    },
    "upsampler": {
        "residual": "carrara.nn.upsampler:ResidualUpsampler",
    },
    "text_network": {
        "bert": "carrara.nn.bert_text:BertTextEncoder",
        "clip": "carrara.nn.clip_text:CLIPTextTower",
        "t5": "carrara.nn.t5_text:T5TextEncoder",
        "transformer": "carrara.nn.transformer:TextTransformer",
    },
    "picture_network": {
        "convolutional": "carrara.nn.image_encoder:ImageEncoder",
    },
    "gan_network": {
        "convolutional": "carrara.nn.gan_generator:ConvGenerator",
    },
    "discriminator": {
        "convolutional": "carrara.nn.discriminator:Discriminator",
    },
    "vae_network": {
        "ladder": "carrara.nn.vae:LadderNetwork",
    },
    "likelihood": {
        "discretised-logistic": "carrara.vae:DiscretisedLogistic",
        "discretised-normal": "carrara.vae:DiscretisedNormal",
        "normal": "carrara.vae:Normal",
    },
    "input": {
        "edges": "carrara.conditions.edges:Edges",
        "embedding": "carrara.conditions.embedding:Embedding",
        "latent-mask": "carrara.conditions.latent_mask:LatentMask",
        "layout": "carrara.conditions.layout:Layout",
        "map": "carrara.conditions.map:Map",
        "mask": "carrara.conditions.mask:Mask",
        "relief": "carrara.conditions.relief:Relief",
        "small": "carrara.conditions.small:SmallImage",
    },
    "control_network": {
        "dit": "carrara.nn.control:DiTControl",
        "unet": "carrara.nn.control:UNetControl",
        "unet-adapter": "carrara.nn.unet_adapter:UNetAdapter",
    },
    "control": {
        "control": "carrara.conditions.control:Control",
    },
    "embedding": {
        "fourier": "carrara.nn.embed:Fourier",
        "sinusoidal": "carrara.nn.embed:Sinusoidal",
    },
    "text": {
        "absent": "carrara.text.absent:Absent",
        "contrastive": "carrara.text.contrastive:ContrastiveText",
        "joined": "carrara.text.joined:Joined",
        "labels": "carrara.text.labels:Labels",
        "pretrained": "carrara.text.pretrained:PretrainedText",
        "unconditional": "carrara.text.unconditional:Unconditional",
    },
    "generator": {
        "autoregressive": "carrara.autoregressive:AutoregressiveGenerator",
        "diffusion": f"{_D}.generator:DiffusionGenerator",
        "gan": "carrara.gan:GanGenerator",
        "vae": "carrara.vae:VaeGenerator",
    },
    "decoder": {
        "chain": "carrara.decoder.chain:Chain",
        "diffusion-upsample": "carrara.decoder.diffusion_upsample:DiffusionUpsample",
        "latents": "carrara.decoder.latents:Latents",
        "pixels": "carrara.decoder.pixels:Pixels",
        "tokens": "carrara.decoder.tokens:Tokens",
        "upsample": "carrara.decoder.upsample:Upsample",
    },
    "task": {
        "autoencoder": "carrara.train.tasks.autoencoder:AutoencoderRecipe",
        "autoregressive": "carrara.train.tasks.autoregressive:AutoregressiveRecipe",
        "contrastive": "carrara.train.tasks.contrastive:ContrastiveRecipe",
        "control": "carrara.train.tasks.control:ControlRecipe",
        "diffusion": "carrara.train.tasks.diffusion:DiffusionRecipe",
        "diffusion-upsample": "carrara.train.tasks.diffusion_upsample:DiffusionUpsampleRecipe",
        "fine-tuning": "carrara.train.tasks.fine_tuning:FineTuningRecipe",
        "gan": "carrara.train.tasks.gan:GanRecipe",
        "low-rank": "carrara.train.tasks.low_rank:LowRankRecipe",
        "tokens": "carrara.train.tasks.tokens:TokensRecipe",
        "upsample": "carrara.train.tasks.upsample:UpsampleRecipe",
        "vae": "carrara.train.tasks.vae:VaeRecipe",
    },
}

BASES: dict[str, str] = {
    f"{_D}.schedule:Schedule": "schedule",
    f"{_D}.parameterization:Parameterization": "parameterization",
    f"{_D}.parameterization:Level": "level",
    f"{_D}.process:Variance": "variance",
    f"{_D}.draw:TimeDistribution": "draw",
    f"{_D}.weight:Weight": "weight",
    f"{_D}.guidance:Guidance": "guidance",
    f"{_D}.loss:Objective": "objective",
    "carrara.nn.embed:Embedding": "embedding",
    "carrara.vae:Likelihood": "likelihood",
}


@functools.lru_cache(maxsize=1)
def kinds() -> Kinds:
    """All kinds of this environment: Carrara's own and those that installed packages register."""
    tables = {role: dict(table) for role, table in TABLES.items()}
    for point in metadata.entry_points(group="carrara.kinds"):
        role, dot, kind = point.name.partition(".")
        if not dot or role not in tables:
            raise RecipeError(
                f'the entry point "{point.name}" of {point.value} is not named "role.kind"; roles are '
                + ", ".join(sorted(tables))
            )
        if kind in tables[role]:
            raise RecipeError(
                f'the entry point "{point.name}" of {point.value} names a kind that exists; choose another'
            )
        tables[role][kind] = point.value
    return Kinds(tables, BASES)
