"""Decoders: z becomes the picture. Each has `encode` too, which defines the space in which the generator is trained."""

from carrara.decoder.base import Decoder, Depth
from carrara.decoder.latents import Latents
from carrara.decoder.loss import AutoencoderLoss, psnr
from carrara.decoder.pixels import Pixels
from carrara.decoder.tokens import Tokens

__all__ = ["AutoencoderLoss", "Decoder", "Depth", "Latents", "Pixels", "Tokens", "psnr"]
