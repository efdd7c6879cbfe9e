"""What can be trained, one task a part: a text encoder, a decoder, a generator of any family.

Each is a recipe (a frozen object that a file can say) whose `create` makes the task for a data set. The loop sees only
`Task`; all of noise is in `carrara.diffusion`, all of text in `carrara.text`, all of latents in `carrara.decoder`.
"""

from carrara.train.tasks.autoencoder import AutoencoderRecipe, AutoencoderTask
from carrara.train.tasks.autoregressive import AutoregressiveRecipe, AutoregressiveTask
from carrara.train.tasks.contrastive import ContrastiveRecipe, ContrastiveTask
from carrara.train.tasks.control import ControlRecipe, ControlTask
from carrara.train.tasks.diffusion import DiffusionRecipe, DiffusionTask
from carrara.train.tasks.diffusion_upsample import DiffusionUpsampleRecipe, DiffusionUpsampleTask
from carrara.train.tasks.fine_tuning import FineTuningRecipe, FineTuningTask, Prior, TunedRecipe
from carrara.train.tasks.gan import GanRecipe, GanTask
from carrara.train.tasks.generator import GeneratorRecipe, GeneratorTask
from carrara.train.tasks.low_rank import LowRankRecipe, LowRankTask
from carrara.train.tasks.part import PartTask, TaskRecipe
from carrara.train.tasks.tokens import TokensRecipe, TokensTask
from carrara.train.tasks.upsample import UpsampleRecipe, UpsampleTask
from carrara.train.tasks.vae import VaeRecipe, VaeTask

__all__ = [
    "AutoencoderRecipe",
    "AutoencoderTask",
    "AutoregressiveRecipe",
    "AutoregressiveTask",
    "ContrastiveRecipe",
    "ContrastiveTask",
    "ControlRecipe",
    "ControlTask",
    "DiffusionRecipe",
    "DiffusionTask",
    "DiffusionUpsampleRecipe",
    "DiffusionUpsampleTask",
    "FineTuningRecipe",
    "FineTuningTask",
    "GanRecipe",
    "GanTask",
    "GeneratorRecipe",
    "GeneratorTask",
    "LowRankRecipe",
    "LowRankTask",
    "PartTask",
    "Prior",
    "TaskRecipe",
    "TokensRecipe",
    "TokensTask",
    "TunedRecipe",
    "UpsampleRecipe",
    "UpsampleTask",
    "VaeRecipe",
    "VaeTask",
]
