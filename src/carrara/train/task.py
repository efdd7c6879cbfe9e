"""What the loop trains. It sees rows, losses and parameters; what they mean is the task's affair."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple, Protocol

from torch import Tensor, nn

from carrara.rng import Rng
from carrara.types import Batch

__all__ = ["BatchSource", "Loss", "Phase", "Task"]

_NONE: Mapping[str, Tensor] = MappingProxyType({})


class Loss(NamedTuple):
    """What a phase makes of a batch.

    `rows` (B,) is every row's own loss, with gradient: the loop takes the mean over the whole batch, however it was
    cut into micro-batches or over processes. `parts` are detached numbers for the log.
    """

    rows: Tensor
    parts: Mapping[str, Tensor] = _NONE


class Phase(NamedTuple):
    """One loss and the parameters that follow it, with an optimiser of their own.

    Phases take their turns within a step, in order: an autoencoder and its discriminator are two.
    `separable=False` says that rows see each other (a contrastive loss): then a batch cannot be cut into micro-batches.
    One that is not `active` is passed over in that step, in all processes alike.
    """

    name: str
    parameters: tuple[nn.Parameter, ...]
    loss: Callable[[Batch, Rng], Loss]
    separable: bool = True
    active: Callable[[], bool] = lambda: True


class Task(Protocol):
    """Something that can be trained.

    A task may also have `networks: tuple[nn.Module, ...]`, the modules whose `forward` is worth compiling
    (otherwise the values of `modules` are), `after_step(world: World)`, called in every process when a step's
    optimisers have moved, `derived(figures) -> dict[str, float]`, figures that follow from the means over all held-out
    rows (a perplexity from a cross-entropy), `warnings(figures) -> Sequence[str]`, what of them a person should be
    warned of (a collapse, say), and `fully()`, a context in which everything takes part that would begin later: the
    cost of a step is measured in it. Modules keep the train or eval mode that the task gave them.
    """

    modules: nn.ModuleDict  # everything with parameters
    phases: tuple[Phase, ...]

    def state(self) -> dict[str, Tensor]:
        """Whatever else changes in training (the importance sampling of times, say): it is checkpointed."""
        ...

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Takes over what `state` gave."""
        ...

    def validate(self, batch: Batch, rng: Rng) -> dict[str, float]:
        """Held-out figures, each a mean over the rows; called with the EMA weights in place, without gradients."""
        ...

    def sample(self, rng_seed: int) -> Tensor | None:
        """Pictures (N, C, H, W) in [-1, 1] for the grid, the same ones for the same seed; None if there are none."""
        ...

    def save(self, folder: Path) -> None:
        """Writes the component folder from the weights as they are; the loop has put the EMA weights in place."""
        ...


class BatchSource(Protocol):
    """Where batches come from: random access, so that a run can go on from any step.

    A source may have `fingerprint: str`, a hash of its data: a resume on other data is then refused.
    """

    def batch(self, step: int) -> Batch:
        """The batch of a step (this process's share of it), the same one whenever it is asked for."""
        ...

    def heldout(self, count: int) -> Batch:
        """Up to `count` rows that are never trained on, always the same ones."""
        ...
