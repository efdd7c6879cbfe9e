"""Trains recipes and measures what came of them, as a user would: `carrara train`, `assemble`, `likelihood`, `sample`.

    python -m benchmarks.recipes vdm-mnist-cpu ... --data data --out runs

`--data` holds the folders that the recipes name (`python recipes/prepare.py` writes them). Every step goes on where it
was. Per recipe a docs/data/results/NAME.json and a picture docs/images/results-NAME.png are written; docs/results.md is
made of them by docs/figures.py.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.facts import facts
from carrara import load
from carrara.diffusion import Tabulated

__all__ = ["main", "measure"]

ROOT = Path(__file__).resolve().parents[1]
RESULTS, PICTURES = ROOT / "docs" / "data" / "results", ROOT / "docs" / "images"
TERMS, ALL_TERMS = 20, 256  # terms a picture; all terms for so many pictures,
CONTINUOUS_TERMS = 200  # which in continuous time are this many
ODE = 16  # pictures, the first of those of the bound: what counts is the difference on each
TOLERANCE = 1e-4  # of a step along the flow
GRID = 40  # pictures of the grid


def carrara(*arguments: object, **environment: str) -> str:
    """What the command says on standard output; its own words go to the terminal."""
    command = [sys.executable, "-m", "carrara", *map(str, arguments)]
    return subprocess.run(
        command, check=True, stdout=subprocess.PIPE, text=True, env={**os.environ, **environment}
    ).stdout


def measure(name: str, data: Path, out: Path, count: int, tolerance: float) -> dict[str, Any]:
    """Trains a recipe, measures it, and returns what docs/results.md shows of it."""
    from carrara.train.recipe import read_recipe

    recipe = read_recipe(ROOT / "recipes" / f"{name}.toml")
    pictures, run, model = data / Path(recipe.data.folder).name, out / name, out / f"{name}-model"
    options = f"--n {count}" + (f" --tolerance {tolerance:g}" if tolerance != TOLERANCE else "")
    described = facts(f"python -m benchmarks.recipes {name} {options}")
    carrara("train", ROOT / "recipes" / f"{name}.toml", "--set", f"data.folder={pictures}", "--out", run, "--quiet")
    if not model.exists():
        carrara("assemble", model, "--generator", run)
    found = _measured(model, pictures, out, name, count, tolerance)
    began = time.perf_counter()
    made = out / f"{name}-samples"
    if not made.exists():
        carrara("sample", model, "--count", GRID, "--batch", GRID, "--out", made)
    return {
        "name": name,
        "minutes": recipe.minutes,
        "training": _training(run),
        "likelihood": found,
        "sampling_seconds": time.perf_counter() - began,
        "facts": described,
        "samples": str(made),
    }


def _measured(model: Path, pictures: Path, out: Path, name: str, count: int, tolerance: float) -> dict[str, Any]:
    """Every measure by a process of one thread, two at a time: small networks leave cores idle that they share."""
    table = isinstance(load(model).generator.denoiser.process.schedule, Tabulated)
    options: dict[str, tuple[object, ...]] = {
        "bound_all_terms": ("--bound", "--terms", 1000 if table else CONTINUOUS_TERMS, "--n", ALL_TERMS),
        "bound": ("--bound", "--terms", TERMS, "--n", count),
        "ode": ("--ode", "--tolerance", tolerance, "--n", ODE),
        "ode_uniform": ("--ode", "--tolerance", tolerance, "--dequantise", "uniform", "--n", ODE),
    }
    with ThreadPoolExecutor(2) as pool:
        jobs = {
            which: pool.submit(_likelihood, model, pictures, out / f"{name}-{which}", *given)
            for which, given in options.items()
        }
        found = {which: job.result() for which, job in jobs.items()}
    for which in ("ode", "ode_uniform"):
        found[which]["ode"]["less_bound"] = _less_bound(out / f"{name}-{which}", out / f"{name}-bound_all_terms")
    return found


def _less_bound(ode: Path, bound: Path) -> dict[str, float]:
    """Mean and standard error of what the flow finds less the bound, in bits a dimension, over the flow's pictures."""
    exact, above = (
        {row["key"]: row["bits_per_dim"] for row in map(json.loads, file.read_text(encoding="utf-8").splitlines()[1:])}
        for file in (ode / "ode.jsonl", bound / "bound.jsonl")
    )
    gaps = [value - above[key] for key, value in exact.items()]
    return {"mean": statistics.fmean(gaps), "std_error": statistics.stdev(gaps) / len(gaps) ** 0.5}


def _likelihood(model: Path, pictures: Path, out: Path, *options: object) -> dict[str, Any]:
    said = carrara(
        "likelihood", model, "--data", pictures, "--out", out, "--batch", 16, "--json", *options, OMP_NUM_THREADS="1"
    )
    table: dict[str, Any] = json.loads(said)
    return {key: value for key, value in table.items() if key not in ("model", "data", "report")}


def _training(run: Path) -> dict[str, Any]:
    """The last words of a run's log, and what its network is."""
    events = [json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    done = next(event for event in reversed(events) if event["event"] == "done")
    component = json.loads((run / "component.json").read_text(encoding="utf-8"))
    return {"done": done, "facts": component.get("facts", {})}


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.recipes", description="Train and measure recipes.")
    parser.add_argument("names", nargs="+", metavar="NAME", help="a recipe of recipes/, without .toml")
    parser.add_argument("--data", type=Path, default=Path("data"), help="holds the folders that recipes name")
    parser.add_argument("--out", type=Path, default=Path("runs"), help="for run folders, models and samples")
    parser.add_argument("--n", type=int, default=10_000, help="test pictures for the bound by 20 terms a picture")
    parser.add_argument(
        "--tolerance", type=float, default=TOLERANCE, help="of a step along the flow; 1e-5 for rough networks"
    )
    given = parser.parse_args(arguments)
    RESULTS.mkdir(parents=True, exist_ok=True)
    for name in given.names:
        found = measure(name, given.data, given.out, given.n, given.tolerance)
        _grid(Path(found.pop("samples"))).save(PICTURES / f"results-{name}.png")
        (RESULTS / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        print(name, json.dumps(found["likelihood"]["bound"])[:400])


def _grid(folder: Path) -> Any:
    """The first pictures of a folder, ten a row."""
    import numpy as np
    import torch
    from PIL import Image

    from carrara.evaluate.grid import sheet

    files = sorted(file for file in folder.glob("*.png") if not file.name.startswith("grid"))[:GRID]
    pixels = [np.asarray(Image.open(file).convert("RGB"), dtype=np.float32) / 127.5 - 1 for file in files]
    return sheet(torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2), 10, scale=2)


if __name__ == "__main__":
    main()
