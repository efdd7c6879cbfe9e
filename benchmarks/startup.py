"""How long until something happens: imports, `carrara --help`, and a model of 35.7 million parameters ready to use.

Every figure is the time of a whole fresh process, from its start to its end, with the files in the page cache.
diffusers loads the same weights from its own folder layout.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmarks.harness import Goal, Options, Table, Variant, measure
from benchmarks.outcome import Outcome

__all__ = ["ABOUT", "run"]

ABOUT = "Fresh processes: imports, help, and loading a model of 35.7 million parameters"
NOTES = (
    "Whole processes, start to end, page cache warm. The weights are the same in both layouts (143 MB, float32).",
    "diffusers imports what it finds, so packages beside it (transformers, say) make its start longer.",
)
LOAD = "carrara: import and load"
HELP = "carrara --help"
TORCH = "import torch"

# Run by a process of its own, so that this one stays small: starting a child takes longer for a large parent.
_SAVE = """
import sys, pathlib
from benchmarks import peers
from carrara.diffusion import Denoiser, DiffusionGenerator, Epsilon, IntegerStep, LinearBetas, Process
from carrara.store import save_component
from carrara.types import Space
folder, shape = pathlib.Path(sys.argv[1]), getattr(peers, sys.argv[2])
ours, theirs = peers.pair(shape) if sys.argv[3:] == ["diffusers"] else (peers.unet(shape), None)
denoiser = Denoiser(ours, Process(LinearBetas()), Epsilon(), IntegerStep())
space = Space("pixels", (3, shape.size, shape.size))
save_component(folder / "carrara", "generator", DiffusionGenerator(denoiser, space))
if theirs is not None:
    package = peers.diffusers()
    package.DDPMPipeline(theirs, package.DDPMScheduler()).save_pretrained(folder / "diffusers")
"""
_LOAD = "from carrara.store import load_component; load_component({folder!r}, 'generator')"
_PIPELINE = "from diffusers import DDPMPipeline; DDPMPipeline.from_pretrained({folder!r})"


def run(options: Options) -> Outcome:
    """Measures the table."""
    outcome = Outcome(notes=NOTES)
    diffusers = importlib.util.find_spec("diffusers") is not None and not options.quick
    if not diffusers:
        outcome.skip("diffusers", "a rehearsal leaves out its start" if options.quick else "not installed")
    with tempfile.TemporaryDirectory() as folder:
        words = [folder, "TINY" if options.quick else "FULL", *(["diffusers"] if diffusers else [])]
        _process("-c", _SAVE, *words)()
        rounds = options.rounds or (1 if options.quick else 9)
        table = measure(
            "a fresh process",
            _variants(Path(folder), diffusers),
            unit="s",
            rounds=rounds,
            warmup=0 if options.quick else 1,
            budget=150,
        )
    outcome.tables.append(table)
    if not options.quick:
        outcome.goals += _goals(table)
    return outcome


def _variants(folder: Path, diffusers: bool) -> list[Variant]:
    variants = [
        Variant("python", _process("-c", "pass")),
        Variant(TORCH, _process("-c", "import torch")),
        Variant("import carrara", _process("-c", "import carrara")),
        Variant(HELP, _command("--help")),
        Variant(LOAD, _process("-c", _LOAD.format(folder=str(folder / "carrara"))), peer=TORCH),
    ]
    if diffusers:
        theirs = "diffusers: import and load"
        load = _process("-c", _PIPELINE.format(folder=str(folder / "diffusers")))
        variants[-1] = Variant(LOAD, variants[-1].call, peer=theirs)
        variants += [
            Variant("from diffusers import DDPMPipeline", _process("-c", "from diffusers import DDPMPipeline")),
            Variant(theirs, load),
        ]
    return variants


def _goals(table: Table) -> list[Goal]:
    rounds = {row.name: row.rounds for row in table.rows}
    beyond = [ours - torch for ours, torch in zip(rounds[LOAD], rounds[TORCH], strict=True)]
    return [
        Goal(f"{HELP} answers", 0.3, statistics.median(rounds[HELP]), "s"),
        Goal("import and load a model, beyond importing torch", 0.2, statistics.median(beyond), "s"),
    ]


def _command(*words: str) -> Callable[[], None]:
    """The installed command, or the module where there is none."""
    script = shutil.which("carrara", path=str(Path(sys.executable).parent))
    return _process("-m", "carrara", *words) if script is None else _child([script, *words])


def _process(*words: str) -> Callable[[], None]:
    return _child([sys.executable, *words])


def _child(command: list[str]) -> Callable[[], None]:
    root = str(Path(__file__).resolve().parent.parent)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))}
    environment |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}

    def call() -> None:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{command} ended with {done.returncode}:\n{done.stderr}")

    return call
