"""A task of a few parameters: a convolution learns to blur noise away, and a second phase to tell means apart."""

from __future__ import annotations

import multiprocessing
import multiprocessing.process
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from carrara.errors import CarraraError
from carrara.rng import Rng, keyed
from carrara.store.safetensors_io import save_tensors
from carrara.train import Loss, Phase, Training, fit
from carrara.types import Batch


class ToyTask:
    """Denoise 4x4 pictures; count the rows seen."""

    def __init__(self, seed: int = 0, *, phases: int = 2, separable: bool = True, dropout: float = 0.1) -> None:
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            body = nn.Sequential(
                nn.Conv2d(1, 4, 3, padding=1), nn.SiLU(), nn.Dropout(dropout), nn.Conv2d(4, 1, 3, padding=1)
            )
            critic = nn.Linear(16, 1)
        self.modules = nn.ModuleDict({"body": body, "critic": critic})
        self.seen = torch.zeros(1, dtype=torch.int64)
        self.phases = (
            Phase("body", tuple(body.parameters()), self.denoise, separable),
            Phase("critic", tuple(critic.parameters()), self.judge),
        )[:phases]
        self.poison: Callable[[Batch], float] | None = None

    def denoise(self, batch: Batch, rng: Rng) -> Loss:
        noise = rng.normal_like(batch.images)
        error = (self.modules["body"](batch.images + noise) - batch.images).float().square().mean((1, 2, 3))
        if self.modules["body"].training:
            self.seen += len(batch)
        if self.poison:
            error = error * self.poison(batch)
        return Loss(error, {"worst": error.detach().mean()})

    def judge(self, batch: Batch, rng: Rng) -> Loss:
        made = self.modules["body"](rng.normal_like(batch.images)).flatten(1)
        return Loss((self.modules["critic"](made) - self.modules["critic"](batch.images.flatten(1))).flatten())

    def state(self) -> dict[str, Tensor]:
        return {"seen": self.seen}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self.seen.copy_(state["seen"])

    def validate(self, batch: Batch, rng: Rng) -> dict[str, float]:
        return {"error": float(self.denoise(batch, rng).rows.mean())}

    def sample(self, rng_seed: int) -> Tensor | None:
        return self.modules["body"](Rng.seeds([rng_seed, rng_seed + 1, rng_seed + 2]).normal((1, 4, 4))).clamp(-1, 1)

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        save_tensors(folder / "weights.safetensors", self.modules.state_dict())


class ToyLoader:
    """Smooth random pictures, a pure function of the step."""

    fingerprint = "toy"

    def __init__(self, batch: int = 8, *, rank: int = 0, world: int = 1) -> None:
        self.size, self.rank, self.world = batch, rank, world

    def batch(self, step: int) -> Batch:
        mine = range(self.size)[self.rank * self.size // self.world : (self.rank + 1) * self.size // self.world]
        return self._rows(tuple(step * self.size + i for i in mine))

    def heldout(self, count: int) -> Batch:
        return self._rows(tuple(range(-5, 0)))

    def _rows(self, samples: tuple[int, ...]) -> Batch:
        index = tuple(sample % 64 for sample in samples)
        images = torch.stack([torch.full((1, 4, 4), float(keyed("picture", i).uniform(-1, 1))) for i in index])
        return Batch(images, ("",) * len(index), index, samples)


def settings(**changes: object) -> Training:
    """Settings for runs of milliseconds."""
    base: dict[str, object] = {
        "steps": 12, "batch": 8, "learning_rate": 1e-2, "warmup": 3, "decay": "cosine", "ema": 0.9, "seed": 5,
        "precision": "float32", "validate_every": 4, "sample_every": 6, "save_every": 3, "weight_decay": 0.01,
    }  # fmt: skip
    return Training(**(base | changes))  # type: ignore[arg-type]


def main(folder: str, steps: str, pause: str = "0") -> None:
    """A run for other processes: `toy.py folder steps [seconds a step]`; ends with the exit code of its error."""

    def slow(event: dict[str, object]) -> None:
        if event["event"] == "step":
            time.sleep(float(pause))

    torch.set_num_threads(1)
    try:
        fit(ToyTask(), ToyLoader(), settings(steps=int(steps)), folder, progress=False, on_event=slow)
    except CarraraError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)


def one_of_two(rank: int, port: int, folder: str) -> None:
    """A process of a pair, which compares its weights with its sibling's after the run."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    task = ToyTask(seed=rank, dropout=0.0)  # the first one's weights count
    fit(task, ToyLoader(rank=rank, world=2), settings(steps=6), folder, progress=False)
    flat = torch.cat([parameter.detach().flatten() for parameter in task.modules.parameters()])
    (Path(folder) / f"rank-{rank}").write_bytes(flat.numpy().tobytes())


def process(target: Callable[..., object], *words: object) -> multiprocessing.process.BaseProcess:
    """Starts a fresh process in which torch is loaded already (a fork of one that has done nothing else)."""
    # The server of forks does not inherit sys.path, only the environment.
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(path for path in sys.path if path))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["train.toy"])
    child = context.Process(target=target, args=words, daemon=True)
    child.start()
    return child


if __name__ == "__main__":
    main(*sys.argv[1:])
