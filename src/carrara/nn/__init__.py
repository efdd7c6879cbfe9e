"""Networks: tensors in, tensors out. None of them sees a schedule, a file or a loop."""

from carrara.nn.autoencoder import KLAutoencoder
from carrara.nn.causal import CausalTransformer
from carrara.nn.dit import DiT
from carrara.nn.embed import Embedding, Fourier, Sinusoidal
from carrara.nn.image_encoder import ImageEncoder
from carrara.nn.quantize import FSQ, VectorQuantizer
from carrara.nn.transformer import TextTransformer
from carrara.nn.unet import UNet
from carrara.nn.vae import LadderNetwork

__all__ = [
    "CausalTransformer",
    "DiT",
    "Embedding",
    "FSQ",
    "Fourier",
    "ImageEncoder",
    "KLAutoencoder",
    "LadderNetwork",
    "Sinusoidal",
    "TextTransformer",
    "UNet",
    "VectorQuantizer",
]
