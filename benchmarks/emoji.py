"""Seven generators of emoji side by side: trains what is not yet trained, and measures all by one measure.

    python recipes/prepare.py twemoji data/emoji
    python -m benchmarks.emoji --data data/emoji --runs runs/emoji
    python -m benchmarks.emoji --only gan vae         trains these and what they need, and measures nothing

Everything is done by the commands that a user has: `carrara train`, `assemble`, `compare`, `evaluate`. Every step goes
on where it was. benchmarks/results/compare-emoji.json and docs/images/emoji-NAME.png are written; docs/results.md is
made of them by docs/figures.py.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.facts import facts
from benchmarks.harness import rounded
from benchmarks.recipes import carrara

__all__ = ["FAMILIES", "PARTS", "Workshop", "main"]

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("text", "decoder", "tokens", "cascade-upsample")
FAMILIES = ("diffusion-unet", "diffusion-dit", "flow", "vae", "gan", "autoregressive", "cascade")
RANKED, CANDIDATES = "autoregressive", 8  # the family whose candidates are ranked, and how many
ENLARGED, DECIBELS = "cascade-upsample", 2.0  # what has to beat bicubic enlargement, and by how much
WORST = "vae"  # the family that all others should beat in prompt fidelity
SHOWN = 12  # pictures of each


@dataclass(frozen=True)
class Workshop:
    """Where recipes, pictures and runs are, and how many samples are measured."""

    data: Path
    runs: Path
    recipes: Path = ROOT / "recipes" / "emoji"
    count: int = 1000

    @property
    def comparison(self) -> Path:
        """The folder of `carrara compare`."""
        return self.runs / "comparison"

    def needed(self, name: str) -> dict[str, str]:
        """The parts that a recipe names, by role: what is trained before it."""
        from carrara.train.recipe import read_recipe

        task = read_recipe(self.recipes / f"{name}.toml").task
        told = {role: getattr(task, role, None) for role in ("text", "decoder")}
        return {role: Path(path).name for role, path in told.items() if isinstance(path, str) and "/" in path}

    def order(self, names: Sequence[str]) -> list[str]:
        """The recipes with all that they need, in the order of training."""
        wanted: dict[str, None] = {}

        def want(name: str) -> None:
            for part in self.needed(name).values():
                want(part)
            wanted[name] = None

        for name in names:
            want(name)
        return list(wanted)

    def done(self, name: str) -> dict[str, Any] | None:
        """The last words of a finished run's log; None for one that is not finished."""
        log = self.runs / name / "log.jsonl"
        if not log.is_file() or not (self.runs / name / "component.json").is_file():
            return None
        events = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
        return next((event for event in reversed(events) if event.get("event") == "done"), None)

    def train(self, name: str) -> None:
        """Trains a recipe, or goes on with it, unless that is done."""
        if self.done(name) is not None:
            print(f"{name}: is trained", flush=True)
            return
        print(f"{name}: training", flush=True)
        parts = [
            word
            for role, part in self.needed(name).items()
            for word in ("--set", f"task.{role}={json.dumps(str(self.runs / part))}")
        ]
        recipe, folder = self.recipes / f"{name}.toml", f"data.folder={json.dumps(str(self.data))}"
        carrara("train", recipe, "--set", folder, *parts, "--out", self.runs / name, "--quiet")

    def assemble(self, name: str) -> Path:
        """The model of a generator and its parts; made anew, and measured anew, where a part is newer."""
        parts = {"generator": name, **self.needed(name)}
        model = self.runs / f"{name}-system"
        newest = max((self.runs / part / "component.json").stat().st_mtime for part in parts.values())
        made = model / "model.json"
        if not made.is_file() or made.stat().st_mtime < newest:
            for folder in (self.comparison / name, self.runs / "candidates" / name):
                shutil.rmtree(folder, ignore_errors=True)
            carrara("assemble", *(w for role, part in parts.items() for w in (f"--{role}", self.runs / part)), model)
        return model

    def compare(self, models: Mapping[str, Path]) -> dict[str, Any]:
        """The report of `carrara compare`."""
        named = [f"{name}={model}" for name, model in models.items()]
        carrara("compare", *named, "--data", self.data, "--n", self.count, "--out", self.comparison)
        return _read(self.comparison / "report.json")

    def ranked(self, name: str, model: Path) -> dict[str, Any]:
        """The figures of a model of whose draws of a picture the best is kept."""
        out = self.runs / "candidates" / name
        words = ("--data", self.data, "--n", self.count, "--candidates", CANDIDATES, "--per-prompt", 1, "--bits", 0)
        carrara("evaluate", model, *words, "--out", out, "--no-card")
        return _read(out / "report.json")

    def tried(self, name: str) -> dict[str, Any]:
        """What becomes of held-out pictures in a decoder."""
        out = self.runs / "decoders" / name
        carrara("evaluate", self.runs / name, "--data", self.data, "--out", out, "--no-card")
        found = _read(out / "report.json")
        about = {key: found[key] for key in ("intervals", "marks")}
        return {"name": name, **found["figures"], **about, "pictures": found["reference"]["pictures"]}


def measured(shop: Workshop, families: Sequence[str]) -> dict[str, Any]:
    """Everything that is found of models which are trained."""
    described = facts("python -m benchmarks.emoji")  # before the work begins
    began = time.perf_counter()
    models = {name: shop.assemble(name) for name in families}
    found = shop.compare(models)
    decoders = [shop.tried(name) for name in shop.order(families) if name in PARTS and name != "text"]
    candidates = shop.ranked(RANKED, models[RANKED]) if RANKED in models else None
    rows = [{**_row(row), "training": _training(shop, row["name"])} for row in found["rows"]]
    body = {
        "format_version": 1,
        "facts": described,
        "seconds": time.perf_counter() - began,
        "samples": found["samples"],
        "reference": {**found["reference"], "folder": Path(found["reference"]["folder"]).name},
        "extractor": found["extractor"],
        "judge": found["judge"],
        "rows": rows,
        "decoders": decoders,
        "candidates": _candidates(rows, candidates),
    }
    return {**body, "goals": goals(body)}


def _row(row: Mapping[str, Any]) -> dict[str, Any]:
    """A model's figures without the folder that it lay in."""
    return {key: value for key, value in row.items() if key != "model"}


def _training(shop: Workshop, name: str) -> dict[str, Any]:
    """Of the generator alone: steps, seconds, what it found on held-out pictures."""
    done = shop.done(name) or {}
    return {key: done[key] for key in ("step", "seconds", "images_per_second", "figures") if key in done}


_SHARES = ("prompt_fidelity_top1", "prompt_fidelity_top1_contrastive", "prompt_fidelity_top1_efficientnet_lite0")


def _candidates(rows: Sequence[Mapping[str, Any]], best: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """Prompt fidelity of one draw of each picture, and of the best of several."""
    if best is None:
        return []
    one = next(row for row in rows if row["name"] == RANKED)
    found = []
    for count, figures, intervals in ((1, one, one["intervals"]), (CANDIDATES, best["figures"], best["intervals"])):
        names = [name for name in (*_SHARES, "seconds_per_picture") if name in figures]
        given = {name: intervals[name] for name in names if name in intervals}
        found.append({"name": RANKED, "candidates": count, **{n: figures[n] for n in names}, "intervals": given})
    return found


def goals(body: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What was aimed at, what was reached, and whether that is more than the limit."""
    rows = {row["name"]: row["prompt_fidelity_top1"] for row in body["rows"]}
    found: list[dict[str, Any]] = []

    def goal(what: str, reached: float, limit: float, met: bool) -> None:
        found.append({"what": what, "reached": reached, "limit": limit, "met": met})

    if WORST in rows:
        for name in rows:
            if name != WORST:
                what = f"prompt fidelity of {name} above that of {WORST}"
                goal(what, rows[name], rows[WORST], rows[name] > rows[WORST])
    for row in body["decoders"]:
        if row["name"] == ENLARGED:
            gain = row["above_bicubic_db"]
            goal(f"dB of {ENLARGED} above bicubic, on held-out pictures", gain, DECIBELS, gain >= DECIBELS)
    if body["candidates"]:
        one, best = (row["prompt_fidelity_top1"] for row in body["candidates"])
        goal(f"prompt fidelity of the best of {CANDIDATES} above that of one", best, one, best > one)
    return found


def show(shop: Workshop, models: Mapping[str, Path], pictures: Path) -> list[str]:
    """Writes the first samples of every model, and the data's own pictures of these prompts; gives the prompts."""
    import torch

    from carrara.data import open_pictures
    from carrara.evaluate.grid import strip
    from carrara.evaluate.model import open_model, said
    from carrara.evaluate.samples import Series
    from carrara.store.safetensors_io import load_tensors

    first = open_model(next(iter(models.values())))
    data = open_pictures(first.data(shop.data))
    rows = data.train.tolist()
    told = said(first.system.text, data, rows)
    prompts = Series.drawn("set0", 0, told, SHOWN, 0).prompts
    own = dict(zip(reversed(told), reversed(rows), strict=True))  # of each prompt the first picture
    pictures.mkdir(parents=True, exist_ok=True)
    strip(data.tensor([own[prompt] for prompt in prompts])).save(pictures / "emoji-data.png", optimize=True)
    for name in models:
        pixels = load_tensors(shop.comparison / name / "samples" / "set0-000000.safetensors")["pixels"][:SHOWN]
        images = pixels.permute(0, 3, 1, 2).to(torch.float32) / 127.5 - 1
        strip(images).save(pictures / f"emoji-{name}.png", optimize=True)
    return prompts


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.emoji", description="Seven generators side by side.")
    parser.add_argument("--data", type=Path, default=Path("data/emoji"), help="the pictures")
    parser.add_argument("--runs", type=Path, default=Path("runs/emoji"), help="for run folders, models and samples")
    parser.add_argument("--recipes", type=Path, default=ROOT / "recipes" / "emoji", help="a NAME.toml of each")
    parser.add_argument("--n", type=int, default=1000, help="samples of each model")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="train these and what they need, and no more")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "compare-emoji.json")
    parser.add_argument("--pictures", type=Path, default=ROOT / "docs" / "images", help="for emoji-NAME.png")
    given = parser.parse_args(arguments)
    shop = Workshop(given.data, given.runs, given.recipes, given.n)
    if unknown := [name for name in given.only or () if not (shop.recipes / f"{name}.toml").is_file()]:
        parser.error(f"--only: no recipe is called {unknown[0]}; known are {', '.join((*PARTS, *FAMILIES))}")
    for name in shop.order(given.only or (*PARTS, *FAMILIES)):
        shop.train(name)
    if given.only:
        return
    body = measured(shop, FAMILIES)
    body["prompts"] = show(shop, {name: shop.runs / f"{name}-system" for name in FAMILIES}, given.pictures)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(rounded(body), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    for goal in body["goals"]:
        word = "met" if goal["met"] else "missed"
        print(f"{word}: {goal['what']}: {goal['reached']:.4g} against {goal['limit']:.4g}")
    print(given.out)


if __name__ == "__main__":
    main()
