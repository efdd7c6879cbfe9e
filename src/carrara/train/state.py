"""Everything that a training step changes: weights, their average, the optimisers, the task's own state."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from carrara.errors import RecipeError
from carrara.train.ema import Ema
from carrara.train.optim import adamw
from carrara.train.precision import Precision
from carrara.train.settings import Training
from carrara.train.task import Phase, Task

__all__ = ["State"]

Tables = dict[str, dict[str, Tensor]]


class State:
    """The state of a run, with one optimiser a phase. Raises RecipeError for a task that cannot be trained so."""

    def __init__(self, task: Task, training: Training, device: torch.device, precision: Precision) -> None:
        self.task = task
        self.training = training
        self.device = device
        self.precision: Precision = precision
        self.step = 0  # steps done
        task.modules.to(device)
        self.names = {parameter: name for name, parameter in task.modules.named_parameters()}
        _check(task.phases, self.names, training)
        trained = {name: p for p, name in self.names.items() if p.requires_grad and p.is_floating_point()}
        self.ema = Ema(trained, training.ema) if training.ema else None
        self.optimizers = {phase.name: adamw(phase.parameters, training) for phase in task.phases}

    def tables(self) -> Tables:
        """All tensors, by file and name: weights, ema, optimizer and task; the tensors themselves, not copies."""
        tables: Tables = {"weights": dict(self.task.modules.state_dict())}
        if self.ema:
            tables["ema"] = dict(self.ema.average)
        tables["optimizer"] = {
            f"{phase}/{self.names[cast(nn.Parameter, parameter)]}/{key}": value
            for phase, optimizer in self.optimizers.items()
            for parameter, values in optimizer.state.items()
            for key, value in values.items()
        }
        tables["task"] = dict(self.task.state())
        return {name: table for name, table in tables.items() if table or name == "weights"}

    @torch.no_grad()
    def load(self, tables: Mapping[str, Mapping[str, Tensor]], step: int) -> None:
        """Takes over what `tables` gave. Raises RecipeError when it belongs to another architecture."""
        weights = tables["weights"]
        mine = self.task.modules.state_dict()
        wrong = sorted(set(mine) ^ set(weights)) + sorted(
            name for name in set(mine) & set(weights) if mine[name].shape != weights[name].shape
        )
        if self.ema:
            wrong += sorted(set(self.ema.average) ^ set(tables.get("ema", {})))
        if wrong:
            raise RecipeError(
                f"the checkpoint is of another architecture: {wrong[0]}"
                + (f" and {len(wrong) - 1} more weights differ" if len(wrong) > 1 else " differs")
                + "; train into a new folder, or give back the architecture it was trained with"
            )
        self.task.modules.load_state_dict(weights)
        if self.ema:
            self.ema.load(tables["ema"])
        self._load_optimizers(tables.get("optimizer", {}))
        self.task.load_state(dict(tables.get("task", {})))
        self.step = step

    def _load_optimizers(self, table: Mapping[str, Tensor]) -> None:
        parameters = {name: parameter for parameter, name in self.names.items()}
        for optimizer in self.optimizers.values():
            optimizer.state.clear()
        for label, value in table.items():
            phase, rest = label.split("/", 1)
            name, key = rest.rsplit("/", 1)
            parameter = parameters[name]
            # Moments lie in memory as their parameter does; counters stay the scalars they are.
            stored = torch.empty_like(parameter) if value.shape == parameter.shape else torch.empty_like(value)
            stored = stored.to(device=parameter.device, dtype=value.dtype).copy_(value)
            self.optimizers[phase].state[parameter][key] = stored

    def snapshot(self) -> dict[str, Any]:
        """A copy of everything, in main memory, for `restore`."""
        tables = {
            name: {key: value.detach().to("cpu", copy=True) for key, value in table.items()}
            for name, table in self.tables().items()
        }
        buffers = {key: value.detach().to("cpu", copy=True) for key, value in self.task.modules.named_buffers()}
        return {"tables": tables, "buffers": buffers, "step": self.step}

    @torch.no_grad()
    def restore(self, snapshot: Mapping[str, Any]) -> None:
        """Puts back, bit for bit, what `snapshot` copied."""
        self.load(snapshot["tables"], snapshot["step"])
        for name, buffer in self.task.modules.named_buffers():
            buffer.copy_(snapshot["buffers"][name])
        self.task.modules.zero_grad(set_to_none=True)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The weights to judge and keep: averaged ones where there are, every module in eval mode, no gradients."""
        modes = {module: module.training for module in self.task.modules.modules()}
        self.task.modules.eval()
        try:
            with ExitStack() as stack:
                if self.ema:
                    stack.enter_context(self.ema.swapped())
                stack.enter_context(torch.no_grad())
                yield
        finally:
            for module, mode in modes.items():
                module.training = mode

    def checkpoint_bytes(self) -> int:
        """About how many bytes a checkpoint takes, two moments a parameter included."""
        tables = {name: table for name, table in self.tables().items() if name != "optimizer"}
        sizes = [value.nbytes for table in tables.values() for value in table.values()]
        trained = {p for phase in self.task.phases for p in phase.parameters if p.requires_grad}
        return sum(sizes) + 2 * sum(parameter.nbytes for parameter in trained) + 2**16


def _check(phases: tuple[Phase, ...], names: Mapping[nn.Parameter, str], training: Training) -> None:
    if not phases:
        raise RecipeError("the task has no phases, so there is nothing to train")
    if len({phase.name for phase in phases}) < len(phases) or any("/" in phase.name for phase in phases):
        raise RecipeError(f"phases need different names without a slash; given {[phase.name for phase in phases]}")
    for phase in phases:
        trained = [parameter for parameter in phase.parameters if parameter.requires_grad]
        if not trained:
            raise RecipeError(f"phase `{phase.name}` has no parameter to train")
        if len(set(trained)) < len(trained):
            raise RecipeError(f"phase `{phase.name}` names a parameter twice")
        if any(parameter not in names for parameter in trained):
            raise RecipeError(f"phase `{phase.name}` trains a parameter that is not in the task's modules")
        if training.accumulate > 1 and not phase.separable:
            raise RecipeError(
                f"phase `{phase.name}` compares the rows of a batch with one another, so that the batch cannot be cut "
                f"into `accumulate` = {training.accumulate} parts; set it to 1 and lower `batch` to save memory"
            )
