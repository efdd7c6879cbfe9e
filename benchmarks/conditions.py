"""Every condition on real pictures: trains recipes/conditions, and measures how far what is made obeys.

    python recipes/prepare.py twemoji data/emoji
    python recipes/prepare.py fashion_mnist.npz data/fashion_mnist
    python -m benchmarks.conditions                      in the folder that holds data/ and runs/
    python -m benchmarks.conditions --only edges mask    trains these and what they need, and measures nothing

Held-out pictures say what is asked for, and their captions the rest; the same model makes the same seeds under the
caption alone, for comparison. Training and assembling are the commands that a user has, and go on where they were.
benchmarks/results/conditions.json and docs/images/condition-NAME.png are written; docs/conditions.md is made of them by
docs/figures.py.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.facts import facts
from benchmarks.harness import rounded
from benchmarks.recipes import carrara

if TYPE_CHECKING:
    from torch import Tensor

    from carrara import System
    from carrara.conditions import Input
    from carrara.data import Pictures
    from carrara.text import ContrastiveText
    from carrara.train.recipe import Recipe

__all__ = ["NAMES", "Bench", "main"]

ROOT = Path(__file__).resolve().parents[1]
TOLD = ("edges", "mask", "layout", "relief", "small-image", "embedding", "several", "control-edges")
NAMES = (*TOLD, "classes")
JUDGES = {"embedding": Path("runs/emoji/text"), "classes": Path("runs/conditions/classifier")}
COUNT = 80  # held-out pictures at most, and samples of classes
SHOWN = 8


def recipe_of(recipes: Path, name: str) -> Recipe:
    """The recipe of a condition."""
    from carrara.train.recipe import read_recipe

    return read_recipe(recipes / f"{name}.toml")


def needed(recipes: Path, name: str) -> list[Path]:
    """The run folders that have to be there before a recipe is trained."""
    task = recipe_of(recipes, name).task
    told = [getattr(task, "text", ""), getattr(task, "model", "")]
    found = [Path(path) for path in told if isinstance(path, str) and "/" in path]
    if name in JUDGES:
        found.append(JUDGES[name])
    return [path.with_name(path.name.removesuffix("-system")) for path in dict.fromkeys(found)]


def train(recipes: Path, name: str) -> None:
    """Trains a recipe and what it needs; what is done stays as it is."""
    for path in needed(recipes, name):
        at = recipes if path.parent.name == "conditions" else recipes.with_name(path.parent.name)
        train(at, path.name)
    print(f"{name}: training", flush=True)
    carrara("train", recipes / f"{name}.toml", "--quiet")
    recipe = recipe_of(recipes, name)
    component = json.loads((Path(recipe.out) / "component.json").read_text(encoding="utf-8"))
    if component["role"] == "generator" and not (_model(recipe) / "model.json").is_file():
        text = getattr(recipe.task, "text", "")
        parts = ["--text", text] if isinstance(text, str) and "/" in text else []
        carrara("assemble", "--generator", recipe.out, *parts, _model(recipe))


def _model(recipe: Recipe) -> Path:
    """Where the model of a generator's recipe is assembled."""
    return Path(f"{recipe.out}-system")


@dataclass(frozen=True)
class Bench:
    """A model, the held-out pictures, and what it is told of them."""

    system: System
    conditions: Sequence[Input]
    pictures: Pictures
    rows: Sequence[int]

    @property
    def images(self) -> Tensor:
        """The held-out pictures (N, C, H, W)."""
        return self.pictures.tensor(self.rows)

    def given(self) -> dict[str, Tensor]:
        """What a person would give: computed from the held-out pictures."""
        from carrara import Rng

        rng, found = Rng.seeds(range(len(self.rows))), {}
        for one in self.conditions:
            values = one.of(self.images, {}, rng.fork(one.name))
            found |= dict(zip(one.needs, values, strict=True))
        return found

    def made(self, given: Mapping[str, Tensor]) -> Tensor:
        """One picture of each caption, with the model's own settings."""
        from carrara.evaluate.model import said

        prompts = said(self.system.text, self.pictures, self.rows)
        *_, last = self.system.generate(prompts, seeds=range(len(prompts)), inputs=dict(given))
        return last.images.cpu()


def opened(recipes: Path, name: str) -> Bench:
    """The model of a recipe, or the controlled one with its control, beside its own held-out pictures."""
    from carrara import load
    from carrara.data import open_pictures

    recipe = recipe_of(recipes, name)
    control = getattr(recipe.task, "model", None)
    system = load(control, controls=[recipe.out]) if control else load(_model(recipe))
    pictures = open_pictures(recipe.data)
    return Bench(system, system.conditions, pictures, pictures.heldout.tolist()[:COUNT])


def obeyed(one: Input, x: Tensor, given: Mapping[str, Tensor], judge: ContrastiveText | None) -> dict[str, list[float]]:
    """How far pictures x show what was given, by the measures of this kind of condition; a figure a picture."""
    import torch.nn.functional as F

    from carrara.conditions import Edges, Embedding, Layout, Mask, Relief, SmallImage, edge_overlap, edges, relief

    mine = given[one.name]
    match one:
        case Edges():
            return {"edge_overlap": edge_overlap(edges(x), mine).tolist()}
        case Layout():
            return {"layout_agreement": (one.labels(x) == one.labels(mine)).float().mean((1, 2)).tolist()}
        case Relief():
            return {"relief_error": (relief(x) - mine).abs().mean((1, 2, 3)).tolist()}
        case SmallImage():
            small = F.adaptive_avg_pool2d(x, mine.shape[-2:])
            return {"small_image_rms": (small - mine).square().mean((1, 2, 3)).sqrt().tolist()}
        case Embedding() if judge is not None:
            return {"likeness": (judge.picture_features(x) * judge.picture_features(mine)).sum(1).tolist()}
        case Mask():
            hole, apart = (mine > 0).expand_as(x), x - given["image"]
            inside = (apart.square() * hole).sum((1, 2, 3)) / hole.sum((1, 2, 3))
            changed = ((apart != 0) & ~hole).flatten(1).any(1)
            return {"hole_rms": inside.sqrt().tolist(), "changed_outside": changed.float().tolist()}
    raise ValueError(f"nothing measures a {type(one).__name__}")


def measured(recipes: Path, name: str, images: Path) -> dict[str, Any]:
    """How far a model obeys, against the same seeds under the caption alone; writes what it made."""
    import torch

    from carrara.store import load_component

    bench = opened(recipes, name)
    judge: Any = load_component(JUDGES[name], "text") if name in JUDGES else None
    with torch.no_grad():
        if name == "classes":
            figures, rows = _classes(bench, judge)
        else:
            given = bench.given()
            told, alone = bench.made(given), bench.made({})
            figures = {}
            for one in bench.conditions:
                both = [obeyed(one, x, given, judge) for x in (told, alone)]
                figures |= {what: {"told": _mean(both[0][what]), "alone": _mean(both[1][what])} for what in both[0]}
            shown = [one.shown(*(given[need] for need in one.needs)) for one in bench.conditions]
            rows = [*shown, told, alone, bench.images]
    _sheet(rows).save(images / f"condition-{name}.png", optimize=True)
    done = _done(Path(recipe_of(recipes, name).out))
    return {"name": name, "pictures": len(rows[0]), "figures": figures, "training": done}


def _mean(values: Sequence[float]) -> dict[str, float]:
    return {"mean": statistics.fmean(values), "std_error": statistics.stdev(values) / len(values) ** 0.5}


def _classes(bench: Bench, judge: ContrastiveText) -> tuple[dict[str, Any], list[Tensor]]:
    """Labels as our own encoder reads them: of what was made under them, and of held-out pictures."""
    classes = list(bench.pictures.classes)
    each = COUNT // len(classes)
    prompts = [name for name in classes for _ in range(each)]
    *_, last = bench.system.generate(prompts, seeds=range(len(prompts)))

    def right(images: Tensor, labels: Sequence[str]) -> list[float]:
        likeness = judge.picture_features(images) @ judge.text_features(classes).T
        return [float(classes[i] == label) for i, label in zip(likeness.argmax(1).tolist(), labels, strict=True)]

    made = last.images.cpu()
    heldout = bench.pictures.heldout.tolist()[:1000]
    real = right(bench.pictures.tensor(heldout), [bench.pictures.labels[i] or "" for i in heldout])
    figures = {"label_accuracy": {"told": _mean(right(made, prompts)), "real": _mean(real)}}
    return figures, [made.unflatten(0, (len(classes), each))[:SHOWN, k] for k in range(min(each, 4))]


def _sheet(rows: Sequence[Tensor]) -> Any:
    """Rows of the first pictures: what was given, what was made, without it, and where it came from."""
    import torch
    import torch.nn.functional as F

    from carrara.evaluate.grid import sheet

    size = rows[-1].shape[-2:]
    colour = any(row.shape[1] == 3 for row in rows)
    alike = [
        F.interpolate(row[:SHOWN].float().cpu(), size=size, mode="nearest").expand(-1, 3 if colour else 1, -1, -1)
        for row in rows
    ]
    return sheet(torch.cat(alike), SHOWN)


def _done(run: Path) -> dict[str, Any]:
    events = [json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    done = next(event for event in reversed(events) if event.get("event") == "done")
    return {key: done[key] for key in ("step", "seconds", "images_per_second", "figures") if key in done}


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.conditions", description="Does it obey?")
    parser.add_argument("--place", type=Path, default=Path("."), help="holds data/ and runs/")
    parser.add_argument("--recipes", type=Path, default=ROOT / "recipes" / "conditions", help="a NAME.toml of each")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="train these and what they need, and no more")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "conditions.json")
    parser.add_argument("--pictures", type=Path, default=ROOT / "docs" / "images", help="for condition-NAME.png")
    given = parser.parse_args(arguments)
    recipes, out, images = (path.resolve() for path in (given.recipes, given.out, given.pictures))
    if unknown := [name for name in given.only or () if not (recipes / f"{name}.toml").is_file()]:
        parser.error(f"--only: no recipe is called {unknown[0]}; known are {', '.join(NAMES)}")
    os.chdir(given.place)  # the recipes' folders begin here
    for name in given.only or NAMES:
        train(recipes, name)
    if given.only:
        return
    described = facts("python -m benchmarks.conditions")
    for folder in (images, out.parent):
        folder.mkdir(parents=True, exist_ok=True)
    rows = [measured(recipes, name, images) for name in NAMES]
    body = {"format_version": 1, "facts": described, "rows": rows}
    out.write_text(json.dumps(rounded(body), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    for row in rows:
        print(row["name"], json.dumps(rounded(row["figures"])))
    print(out)


if __name__ == "__main__":
    main()
