"""The training loop and what it stands on. It knows batches, gradients and processes; nothing of noise."""

from carrara.train.loop import Outcome, fit
from carrara.train.preflight import Preflight, StepTime, measure_step_seconds, preflight
from carrara.train.settings import Training
from carrara.train.task import BatchSource, Loss, Phase, Task

__all__ = [
    "BatchSource",
    "Loss",
    "Outcome",
    "Phase",
    "Preflight",
    "StepTime",
    "Task",
    "Training",
    "fit",
    "measure_step_seconds",
    "preflight",
]
