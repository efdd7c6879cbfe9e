"""DreamBooth on emoji: five pictures of one thing that a model never saw, and what becomes of all others.

    python -m benchmarks.emoji --only diffusion-unet           the model, where it is not trained yet
    python -m benchmarks.dreambooth --data data/emoji --runs runs/emoji

A held-out emoji with five skin tones is the thing; its caption is the prompt. Prompt fidelity is the share of pictures
whose nearest real one carries the prompt: of the thing among its own five and all training pictures, and of others,
captions of the training pictures. Written to benchmarks/results/dreambooth.json; docs/fine-tuning.md shows it.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.facts import facts
from benchmarks.harness import rounded
from benchmarks.recipes import carrara

__all__ = ["BOUND", "METHODS", "main"]

ROOT = Path(__file__).resolve().parents[1]
THING, CODEPOINTS, CLASS = "sign of the horns", "1f918", "raised hand"
TONES = ("1f3fb", "1f3fc", "1f3fd", "1f3fe", "1f3ff")
BOUND = 0.05  # of others' prompt fidelity, that a run with a prior may cost
SEEDS, OTHERS = 50, 150
PICTURES = 100  # of a prior
_LOW_RANK = {"kind": "low-rank", "rank": 16, "layers": ["attention", "convolution"]}
METHODS: dict[str, tuple[dict[str, Any], str]] = {
    "low-rank": (_LOW_RANK, ""),
    "low-rank, prior of the class": (_LOW_RANK, "class"),
    "low-rank, prior of many captions": (_LOW_RANK, "captions"),
    "every weight": ({"kind": "fine-tuning"}, ""),
    "every weight, prior of many captions": ({"kind": "fine-tuning"}, "captions"),
}
_RATES = {"low-rank": 3e-4, "fine-tuning": 3e-5}


def write_thing(folder: Path) -> None:
    """Its five pictures."""
    from carrara.demo.twemoji import assets

    folder.mkdir(parents=True, exist_ok=True)
    for tone in TONES:
        name = f"{CODEPOINTS}-{tone}.png"
        (folder / name).write_bytes((assets() / "72x72" / name).read_bytes())


def trained(place: Path, name: str, model: Path, steps: int, captions: Sequence[str]) -> tuple[Path, float]:
    """The run of a method, and how long it took; `captions` are those of a prior of many."""
    from carrara.config import dump_toml

    method, prior = METHODS[name]
    task: dict[str, Any] = {**method, "model": str(model), "prompt": THING}
    if prior:
        task["prior"] = {"prompts": [CLASS] if prior == "class" else list(captions), "pictures": PICTURES}
    out = place / name.replace(",", "").replace(" ", "-")
    recipe = place / f"{out.name}.toml"
    train = {
        "steps": steps, "batch": 5, "learning_rate": _RATES[task["kind"]], "warmup": 10, "decay": "constant",
        "ema": 0.0, "validate_every": 0, "sample_every": 0, "save_every": 0,
    }  # fmt: skip
    data = {"folder": str(place / "pictures"), "size": 64, "heldout": 0.0}
    recipe.write_text(dump_toml({"out": str(out), "data": data, "task": task, "train": train}), encoding="utf-8")
    began = time.perf_counter()
    carrara("train", recipe, "--quiet")
    return out, time.perf_counter() - began


def measured(system: Any, references: Any, captions: Sequence[Sequence[str]], others: Sequence[str]) -> dict[str, Any]:
    """Prompt fidelity of the thing and of others, with intervals of 95 %; the first pictures of the thing."""
    import torch

    from carrara.evaluate.fidelity import fidelity, nearest
    from carrara.evaluate.figures import share_interval

    found: dict[str, Any] = {}
    for key, prompts in (("thing", [THING] * SEEDS), ("others", list(others))):
        made = []
        with torch.no_grad():
            for first in range(0, len(prompts), 25):
                some = prompts[first : first + 25]
                *_, last = system.generate(some, seeds=range(first, first + len(some)))
                made.append(last.images)
        images = torch.cat(made)
        share, _ = fidelity(prompts, nearest(images, references), captions)
        interval = share_interval(share, len(prompts))
        found[key] = {"fidelity": share, "low": interval.low, "high": interval.high, "n": len(prompts)}
        found.setdefault("images", images[:6])
    return found


def tuned(model: Path, run: Path, kind: str) -> Any:
    """The model with what a run has made of it."""
    from carrara.store import assemble, load
    from carrara.store.lora import apply_lora

    if kind == "low-rank":
        system = load(model)
        apply_lora(system, model, run / "lora.safetensors")
        return system
    whole = run.with_name(f"{run.name}-system")
    assemble(whole, generator=run, text=model / "text", decoder=model / "decoder")
    return load(whole)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.dreambooth", description="Five pictures of one thing.")
    parser.add_argument("--data", type=Path, default=Path("data/emoji"))
    parser.add_argument("--runs", type=Path, default=Path("runs/emoji"))
    parser.add_argument("--model", default="diffusion-unet-system")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "dreambooth.json")
    given = parser.parse_args(arguments)
    import torch

    from carrara.data import DataSettings, open_pictures, write_picture
    from carrara.image import to_pixels
    from carrara.rng import permutation
    from carrara.store import load

    model, place = given.runs / given.model, given.runs / "dreambooth"
    write_thing(place / "pictures")
    five = open_pictures(DataSettings(str(place / "pictures"), size=64, heldout=0.0))
    real = open_pictures(DataSettings(str(given.data), size=64))
    references = torch.cat([real.tensor(real.train), five.tensor(range(len(five)))])
    captions = [*(real.captions[i] for i in real.train), *([THING],) * len(five)]
    known = sorted({said[0] for said in captions[: len(real.train)] if said})
    order = [known[i] for i in permutation(len(known), 0, "others")]
    others, kept = order[:OTHERS], order[OTHERS : OTHERS + PICTURES]
    rows, shown = [], [torch.cat([five.tensor(range(5)), torch.ones(1, *references.shape[1:])])]
    for name in ("before", *METHODS):
        seconds, system = 0.0, None
        if name == "before":
            system = load(model)
        else:
            run, seconds = trained(place, name, model, given.steps, kept)
            system = tuned(model, run, METHODS[name][0]["kind"])
        found = measured(system, references, captions, others)
        shown.append(found.pop("images"))
        rows.append({"name": name, "seconds": seconds, **found})
        print(name, json.dumps(rounded(rows[-1])), flush=True)
    body = {
        "format_version": 1, "facts": facts("python -m benchmarks.dreambooth"), "thing": THING, "class": CLASS,
        "steps": given.steps, "bound": BOUND, "rows": rounded(rows),
    }  # fmt: skip
    given.out.write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")
    whole = torch.cat([torch.cat(list(row), 2) for row in shown], 1)
    write_picture(ROOT / "docs" / "images" / "dreambooth.png", to_pixels(whole[None], 8)[0])
    print(given.out)


if __name__ == "__main__":
    main()
