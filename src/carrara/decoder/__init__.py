"""Decoders: z becomes the picture. Each has `encode` too, which defines the space in which the generator is trained."""

from carrara.decoder.base import Decoder, Decoding, Depth
from carrara.decoder.chain import Chain
from carrara.decoder.degradation import Degradation
from carrara.decoder.diffusion_upsample import DiffusionUpsample
from carrara.decoder.latents import Latents
from carrara.decoder.loss import AutoencoderLoss, PictureLoss, psnr, ssim
from carrara.decoder.pixels import Pixels
from carrara.decoder.tiling import Tiling
from carrara.decoder.tokens import Tokens
from carrara.decoder.upsample import Upsample

__all__ = [
    "AutoencoderLoss",
    "Chain",
    "Decoder",
    "Decoding",
    "Degradation",
    "Depth",
    "DiffusionUpsample",
    "Latents",
    "PictureLoss",
    "Pixels",
    "Tiling",
    "Tokens",
    "Upsample",
    "psnr",
    "ssim",
]
