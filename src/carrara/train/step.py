"""One step: for every phase in turn, the gradient of the mean loss over the batch, and one move of its optimiser."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from carrara.errors import NonFiniteError
from carrara.rng import Rng, keyed
from carrara.train.optim import learning_rate, set_learning_rate
from carrara.train.parallel import World
from carrara.train.precision import autocast
from carrara.train.state import State
from carrara.train.task import Loss, Phase
from carrara.types import Batch

__all__ = ["Measured", "gradients", "rows_of", "samples_hash", "seed_everything", "slices", "to_device", "train_step"]


@dataclass(frozen=True)
class Measured:
    """What a phase's step was: means over the whole batch, and the gradient's length before clipping."""

    loss: float
    grad_norm: float
    clipped: bool
    parts: dict[str, float] = field(default_factory=dict)


def train_step(state: State, batch: Batch, world: World) -> dict[str, Measured]:
    """Trains every phase on `batch`, then takes the weights into their average.

    Raises NonFiniteError before an optimiser would take a loss or gradient that is not finite.
    """
    training, step = state.training, state.step
    measured: dict[str, Measured] = {}
    for phase in state.task.phases:
        if not phase.active():
            continue
        loss, parts = gradients(state, phase, batch, slices(len(batch), training.accumulate), world)
        trained = [parameter for parameter in phase.parameters if parameter.requires_grad]
        world.sum_gradients(trained)
        grads = [parameter.grad for parameter in trained if parameter.grad is not None]
        norm = get_total_norm(grads)
        # one wait for the device a phase; a norm beyond 3e38 counts as infinite
        length = float(norm)
        if not (math.isfinite(loss) and math.isfinite(length)):
            _refuse(state, phase, loss, parts)
        clipped = training.clip is not None and length > training.clip
        if clipped:
            clip_grads_with_norm_(trained, float(training.clip or 0), norm)
        optimizer = state.optimizers[phase.name]
        set_learning_rate(optimizer, learning_rate(training, step))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        measured[phase.name] = Measured(loss, length, clipped, parts)
    if state.ema:
        state.ema.update(step)
    if after_step := getattr(state.task, "after_step", None):
        after_step(world)
    state.step += 1
    return measured


def gradients(
    state: State, phase: Phase, batch: Batch, cuts: Sequence[slice], world: World
) -> tuple[float, dict[str, float]]:
    """Leaves in the phase's parameters the gradient of the mean loss over the batch of all processes.

    The batch is taken in `cuts`; sums are divided by the rows of the whole batch, so that the cuts do not matter.
    Returns that mean and the means of the loss's parts.
    """
    (total,) = world.total(len(batch))
    trained = [parameter for parameter in phase.parameters if parameter.requires_grad]
    for parameter in trained:
        parameter.grad = None
    sums: dict[str, Tensor] = {}
    for cut in cuts:
        part = rows_of(batch, cut)
        loss = _loss(state, phase, part)
        mean = loss.rows.float().sum() / total if loss.rows.dtype != torch.float64 else loss.rows.sum() / total
        mean.backward(inputs=trained)
        found = {"": mean.detach()} | {k: v.detach().double() * (len(part) / total) for k, v in loss.parts.items()}
        for name, value in found.items():
            sums[name] = sums[name] + value if name in sums else value
    values = world.total(*torch.stack([value.double().reshape(()) for value in sums.values()]).tolist())
    parts = dict(zip(sums, values, strict=True))
    return parts.pop(""), parts


def _loss(state: State, phase: Phase, batch: Batch) -> Loss:
    seed = state.training.seed
    rng = Rng.samples(seed, batch.sample, "train", phase.name)
    seed_everything(seed, "dropout", phase.name, state.step, batch.sample[0] if batch.sample else 0)
    with autocast(state.device, state.precision):
        loss = phase.loss(batch, rng)
    if loss.rows.shape != (len(batch),):
        raise ValueError(
            f"phase `{phase.name}` gave a loss of shape {tuple(loss.rows.shape)} for {len(batch)} rows; "
            "give one number a row"
        )
    return loss


def _refuse(state: State, phase: Phase, loss: float, parts: dict[str, float]) -> None:
    bad_parts = [name for name, value in parts.items() if not math.isfinite(value)]
    bad_weights = _first_bad(state, ((p, p.detach()) for p in state.names))
    bad_grads = _first_bad(state, ((p, p.grad) for p in phase.parameters if p.grad is not None))
    state.task.modules.zero_grad(set_to_none=True)
    said = [f"at step {state.step + 1} the loss of phase `{phase.name}` is {loss:g}"]
    said += [f"its part `{bad_parts[0]}` is {parts[bad_parts[0]]:g}"] if bad_parts else []
    said += [f"weight {bad_weights} is not finite"] if bad_weights else []
    said += [f"the gradient of {bad_grads} is the first that is not finite"] if bad_grads else []
    if not (bad_parts or bad_weights or bad_grads) and math.isfinite(loss):
        said += ["the gradients are together too long for a float32"]
    raise NonFiniteError(
        "; ".join(said) + ". This step was not taken. Lower `learning_rate`, clip gradients, or train in float32"
    )


def _first_bad(state: State, tensors: Iterable[tuple[nn.Parameter, Tensor | None]]) -> str | None:
    for parameter, tensor in tensors:
        if tensor is not None and not bool(torch.isfinite(tensor).all()):
            return state.names[parameter]
    return None


def slices(rows: int, parts: int) -> tuple[slice, ...]:
    """Cuts `rows` into at most `parts` pieces of nearly one size."""
    edges = [rows * i // parts for i in range(parts + 1)]
    return tuple(slice(a, b) for a, b in pairwise(edges) if b > a)


def rows_of(batch: Batch, cut: slice) -> Batch:
    """Some rows of a batch."""
    if cut == slice(0, len(batch)):
        return batch
    return Batch(
        batch.images[cut],
        batch.captions[cut],
        batch.index[cut],
        batch.sample[cut],
        {name: value[cut] for name, value in batch.inputs.items()},
        batch.labels[cut],
    )


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch with its pictures on `device`."""
    if batch.images.device == device and not batch.inputs:
        return batch
    inputs = {name: value.to(device, non_blocking=True) for name, value in batch.inputs.items()}
    return replace(batch, images=batch.images.to(device, non_blocking=True), inputs=inputs)


def samples_hash(batch: Batch) -> str:
    """Which rows a step saw: a short hash of their numbers in the run and in the data."""
    words = f"{batch.sample}{batch.index}"
    return hashlib.blake2b(words.encode(), digest_size=8).hexdigest()


def seed_everything(*words: int | str) -> None:
    """Seeds torch's own generators (dropout, and whatever does not take an rng) from a keyed stream."""
    seed = int(keyed(*words).integers(2**63 - 1))
    torch.default_generator.manual_seed(seed)  # `torch.manual_seed` also formats a stack trace for GPUs not yet in use
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)
