"""Networks: tensors in, tensors out. None of them sees a schedule, a file or a loop."""

from carrara.nn.autoencoder import KLAutoencoder
from carrara.nn.causal import CausalTransformer
from carrara.nn.control import Controlled, DiTControl, UNetControl, control_of
from carrara.nn.dit import DiT
from carrara.nn.embed import Embedding, Fourier, Sinusoidal
from carrara.nn.flux import Flux
from carrara.nn.image_autoencoder import ImageAutoencoder
from carrara.nn.image_encoder import ImageEncoder
from carrara.nn.mmdit import MMDiT
from carrara.nn.packed import packed
from carrara.nn.pixart import PixArt
from carrara.nn.quantize import FSQ, VectorQuantizer
from carrara.nn.transformer import TextTransformer
from carrara.nn.unet import Transformers, UNet
from carrara.nn.unet_adapter import UNetAdapter
from carrara.nn.vae import LadderNetwork

__all__ = [
    "CausalTransformer",
    "Controlled",
    "DiT",
    "DiTControl",
    "Embedding",
    "FSQ",
    "Flux",
    "Fourier",
    "ImageAutoencoder",
    "ImageEncoder",
    "KLAutoencoder",
    "LadderNetwork",
    "MMDiT",
    "PixArt",
    "Sinusoidal",
    "TextTransformer",
    "Transformers",
    "UNet",
    "UNetAdapter",
    "UNetControl",
    "VectorQuantizer",
    "control_of",
    "packed",
]
