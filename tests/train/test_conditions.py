"""Training under conditions other than text, and of controls: what is told, what is dropped, and that models obey."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from carrara.conditions import Control, Layout, controlled, edge_overlap, edges, relief
from carrara.config import dump_toml
from carrara.diffusion import ClassifierFree, Follow, Plain, SamplingSettings, uniform
from carrara.errors import CarraraError, RecipeError
from carrara.evaluate.model import open_model
from carrara.rng import Rng
from carrara.store import assemble, load, load_component, read_component
from carrara.system import System
from carrara.train.recipe import Run, read_recipe
from carrara.train.tasks.generator import GeneratorTask
from carrara.types import Batch

SIDE = 16
COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (40, 60, 230), "yellow": (240, 220, 30)}
TOLERANCE = 2e-5  # of float32, between network calls of different numbers of rows
RECIPES = sorted((Path(__file__).parents[2] / "recipes" / "conditions").glob("*.toml"))

INPUTS: dict[str, Any] = {
    "edges": {"kind": "edges", "drop": 0.2},
    "small": {"kind": "small", "side": 4, "drop": 0.2},
    "layout": {"kind": "layout", "colours": 5, "cell": 2, "drop": 0.2},
    "mask": {"kind": "mask", "drop": 0.2},
    "relief": {"kind": "relief", "drop": 0.2},
}
UNET: dict[str, Any] = {
    "kind": "unet",
    "channels": 16,
    "multipliers": [1, 2],
    "blocks": 1,
    "attention": [],
    "groups": 4,
}
TRAIN: dict[str, Any] = {"batch": 16, "learning_rate": 4e-3, "warmup": 10, "precision": "float32", "validate_every": 0,
                         "sample_every": 0, "save_every": 0, "ema": 0.9}  # fmt: skip


def picture(number: int) -> np.ndarray:
    """A disc or a square of one of four colours on white."""
    rng = np.random.default_rng(number)
    y, x = np.mgrid[:SIDE, :SIDE] - (SIDE * (0.35 + 0.3 * rng.random(2))).reshape(2, 1, 1)
    radius = SIDE * (0.2 + 0.15 * rng.random())
    pixels = np.full((SIDE, SIDE, 3), 255, np.uint8)
    inside = np.hypot(x, y) < radius if number // 4 % 2 else np.maximum(abs(x), abs(y)) < radius
    pixels[inside] = list(COLOURS.values())[number % 4]
    return pixels


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures in class folders."""
    place = tmp_path_factory.mktemp("conditions")
    for number in range(72):
        folder = place / "pics" / list(COLOURS)[number % 4]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(number)).save(folder / f"{number:02}.png")
    return place


def run_of(
    place: Path,
    name: str,
    task: Mapping[str, Any],
    *,
    steps: int,
    data: Mapping[str, Any] | None = None,
    **train: Any,
) -> Run:
    table: dict[str, Any] = {
        "out": str(place / name),
        "data": {"folder": str(place / "pics"), "size": SIDE, "heldout": 0.12, **(data or {})},
        "task": {"kind": "diffusion", "network": UNET, "settings": {"times": {"kind": "uniform", "steps": 8}}, **task},
        "train": {**TRAIN, "steps": steps, **train},
    }
    if table["task"]["kind"] == "control":
        table["task"] = dict(task)
    path = place / f"{name}.toml"
    path.write_text(dump_toml(table))
    return Run(read_recipe(path), cache=place / "cache")


class Told(NamedTuple):
    """A model that is told four things, its task, and what held-out pictures give it."""

    run: Run
    system: System
    folder: Path
    given: dict[str, Tensor]

    @property
    def task(self) -> GeneratorTask:
        assert isinstance(self.run.task, GeneratorTask)
        return self.run.task

    def make(self, *names: str, settings: SamplingSettings | None = None) -> Tensor:
        given = {name: self.given[name] for name in names}
        return pictures(self.system, given, settings)


def pictures(system: System, given: Mapping[str, Tensor], settings: SamplingSettings | None = None) -> Tensor:
    seeds = list(range(8))
    *_, last = system.generate([""], seeds=seeds, inputs=given, settings=settings)
    return last.images


@pytest.fixture(scope="module")
def told(place: Path) -> Told:
    run = run_of(place, "told", {"inputs": INPUTS}, steps=120)
    run.train(progress=False, rehearsal=False)
    assemble(place / "told-system", generator=place / "told")
    assert isinstance(run.task, GeneratorTask)
    given, _ = run.task.inputs(run.pictures.heldout[:8], Rng.seeds(range(8)))
    return Told(run, load(place / "told-system"), place / "told-system", given)


# --- a model obeys ----------------------------------------------------------------------------------------------------


def test_the_output_obeys_each_condition(told: Told) -> None:
    """Held-out pictures' conditions, against what is made without: the same seeds, the same model."""
    layout = next(one for one in told.system.conditions if isinstance(one, Layout))
    given = told.given

    def figures(images: Tensor) -> dict[str, float]:
        small = F.adaptive_avg_pool2d(images, 4) - given["small"]
        labels = layout.labels(images) == layout.labels(given["layout"])
        overlap = edge_overlap(edges(images), given["edges"])
        return {
            "edges": float(overlap.mean()),
            "small": -float(small.square().mean()),
            "layout": float(labels.float().mean()),
            "relief": -float((relief(images, tolerance=0.5) - given["relief"]).square().mean()),
        }

    without = figures(told.make())
    with_each = {name: figures(told.make(name))[name] for name in without}
    assert with_each["edges"] > without["edges"] + 0.15, (with_each, without)
    assert with_each["small"] > 0.25 * without["small"], (with_each, without)
    assert with_each["layout"] > without["layout"] + 0.1, (with_each, without)
    assert with_each["relief"] > 0.6 * without["relief"], (with_each, without)


def test_what_a_mask_leaves_is_untouched_and_continued(told: Told) -> None:
    given = told.given
    kept = (given["mask"] == 0).expand_as(given["image"])
    made = told.make("image", "mask")
    assert torch.equal(made[kept], given["image"][kept])
    known, blind = ((x - given["image"])[~kept].square().mean() for x in (made, told.make()))
    assert known < blind
    steps = list(told.system.generate([""], seeds=range(8), inputs={n: given[n] for n in ("image", "mask")}))
    assert len(steps) == 8 + 1  # the network reads the mask: nothing is resampled


def test_an_image_alone_is_edited_as_ever(told: Told) -> None:
    half = told.make("image")
    assert half.shape == told.given["image"].shape
    assert (half - told.given["image"]).square().mean() < (told.make() - told.given["image"]).square().mean()


def test_scales_of_inputs(told: Told) -> None:
    settings = told.system.generator.settings
    plain = told.make("edges", "layout")
    for scales, equal in (({"edges": 1.0, "layout": 1.0}, True), ({"edges": 2.0}, False), ({"layout": 0.0}, False)):
        made = told.make("edges", "layout", settings=replace(settings, guidance=Follow(Plain(), scales)))
        assert torch.equal(made, plain) == equal
    none = told.make("edges", settings=replace(settings, guidance=Follow(Plain(), {"edges": 0.0})))
    torch.testing.assert_close(none, told.make(), rtol=0, atol=1e-4)


def test_classes_are_obeyed(place: Path, parts: Path) -> None:
    """Labels, as our own encoder classifies what is made: it is right about held-out pictures, too."""
    judge = load_component(parts / "text", "text")
    run = run_of(place, "classes", {"text": "labels"}, steps=70)
    run.train(progress=False, rehearsal=False)
    system = assemble(place / "classes-system", generator=place / "classes")
    classes = run.pictures.classes

    def right(images: Tensor, labels: list[str]) -> float:
        likeness = judge.picture_features(images) @ judge.text_features(classes).T
        return sum(classes[i] == label for i, label in zip(likeness.argmax(1), labels, strict=True)) / len(labels)

    heldout = run.pictures.heldout
    assert right(run.pictures.tensor(heldout), [run.pictures.labels[i] for i in heldout]) == 1
    prompts = [name for name in classes for _ in range(8)]
    settings = SamplingSettings(times=partial(uniform, steps=8), guidance=ClassifierFree(2.0))
    *_, last = system.generate(prompts, seeds=range(32), settings=settings)
    assert right(last.images, prompts) > 0.8


# --- what is told in training -----------------------------------------------------------------------------------------


def test_rows_are_dropped_one_by_one(told: Told) -> None:
    """A dropped row is the null, the others are as they are, in the recipe's share, and the same in any batch."""
    task, loader = told.task, told.run.loader
    whole = [loader.batch(step) for step in range(20)]
    dropped: dict[str, list[Tensor]] = {name: [] for name in INPUTS}
    for batch in whole:
        rng = Rng.samples(0, batch.sample)
        taught = task.taught(batch, rng)
        assert set(taught.controls) == set(INPUTS)
        for one in task.conditions:
            encoding = taught.controls[one.name]
            assert encoding.shape == (16, one.channels, SIDE, SIDE)
            gone = ~encoding.flatten(1).any(1)
            dropped[one.name].append(gone)
            assert torch.equal(encoding[gone], one.null(int(gone.sum()), (SIDE, SIDE)))
            expected = one.encode(*one.of(batch.images, batch.inputs, rng.fork("inputs").fork(one.name)))
            assert torch.equal(encoding[~gone], expected[~gone])
    rows = {name: torch.cat(gone) for name, gone in dropped.items()}
    assert all(0.12 < gone.float().mean() < 0.28 for gone in rows.values())
    assert 0 < (rows["edges"] & rows["small"]).float().mean() < 0.1  # independently
    some = Batch(**{name: getattr(whole[0], name)[3:5] for name in ("images", "captions", "index", "sample", "labels")})
    again, both = task.taught(some, Rng.samples(0, some.sample)), task.taught(whole[0], Rng.samples(0, whole[0].sample))
    assert all(torch.equal(again.controls[name], both.controls[name][3:5]) for name in INPUTS)


def test_without_a_caption_half_of_the_rows_are_told_nothing(place: Path) -> None:
    task = run_of(
        place,
        "half",
        {
            "text": "labels",
            "drop": 0.4,
            "inputs": {
                "edges": {"kind": "edges", "drop": 0.0 + 1e-9},
                "small": {"kind": "small", "side": 4, "drop": 0.0},
            },
        },
        steps=1,
    ).task
    assert isinstance(task, GeneratorTask)
    loader = run_of(place, "half", {"text": "labels"}, steps=1).loader
    counts = torch.zeros(2, 2)
    for step in range(30):
        batch = loader.batch(step)
        taught = task.taught(batch, Rng.samples(0, batch.sample))
        assert taught.vector is not None
        silent, bare = taught.vector[:, -1] == 1, ~taught.controls["edges"].flatten(1).any(1)
        assert taught.controls["small"].flatten(1).any(1).all()
        for a, b in zip(silent.tolist(), bare.tolist(), strict=True):
            counts[int(a), int(b)] += 1
    assert counts[0, 1] == 0
    assert 0.35 < counts[1, 1] / counts[1].sum() < 0.65


def test_a_resumed_run_is_the_same(place: Path) -> None:
    settings = {"decay": "constant", "ema": 0.9}
    task = {"inputs": {"mask": INPUTS["mask"], "layout": INPUTS["layout"]}}
    run_of(place, "straight", task, steps=6, **settings).train(progress=False, rehearsal=False)
    run_of(place, "resumed", task, steps=3, **settings).train(progress=False, rehearsal=False)
    outcome = run_of(place, "resumed", task, steps=6, **settings).train(progress=False, rehearsal=False)
    assert outcome.resumed_from == 3
    a, b = ((place / name / "weights.safetensors").read_bytes() for name in ("straight", "resumed"))
    assert a == b


def test_saved_and_loaded_it_makes_the_same(told: Told) -> None:
    """What the task makes under its averaged weights, and the palette that was learnt from the pictures."""
    facts = read_component(told.folder / "generator").config["conditions"]
    assert [one["name"] for one in facts] == list(INPUTS)
    ours = next(one for one in told.task.conditions if isinstance(one, Layout))
    theirs = next(one for one in told.system.conditions if isinstance(one, Layout))
    assert torch.equal(ours.palette, theirs.palette)
    again = load(told.folder)
    assert torch.equal(pictures(again, told.given), pictures(told.system, told.given))


def test_a_picture_depends_on_its_own_inputs(told: Told) -> None:
    whole = told.make(*told.given)
    for row in (0, 5):
        given = {name: x[row : row + 1] for name, x in told.given.items()}
        *_, last = told.system.generate([""], seeds=[row], inputs=given)
        torch.testing.assert_close(last.images[0], whole[row], rtol=0, atol=TOLERANCE)


def test_the_grid_shows_what_was_told(told: Told) -> None:
    grid = told.task.sample(0)
    assert grid is not None
    assert grid.shape == (8 * (len(INPUTS) + 1), 3, SIDE, SIDE)
    heldout = told.run.pictures.tensor(told.run.pictures.heldout[:8])
    small = F.interpolate(F.adaptive_avg_pool2d(heldout, 4), size=(SIDE, SIDE), mode="nearest")
    torch.testing.assert_close(grid[1 :: len(INPUTS) + 1], small)


# --- requests that make no sense --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given, says",
    [
        ({"depth": (1, SIDE, 0)}, "inputs .'depth'. were given, and this system reads image and mask and edges"),
        ({"edges": (3, SIDE, 0)}, r"edges is .*expected floating-point \(8, 1, height, width\)"),
        ({"edges": (1, 8, 0)}, "edges has 8 x 8 pixels, expected 16 x 16"),
        ({"edges": (1, SIDE, -1)}, r"edges has values from .*expected \[0, 1\]"),
        ({"small": (3, SIDE, 0)}, "small has 16 x 16 pixels, expected 4 x 4"),
        ({"mask": (1, SIDE, 0)}, "a mask was given without an image"),
    ],
)
def test_wrong_inputs(told: Told, given: dict[str, tuple[int, int, int]], says: str) -> None:
    made = {name: torch.full((1, planes, side, side), float(value)) for name, (planes, side, value) in given.items()}
    with pytest.raises(ValueError, match=says):
        pictures(told.system, made)


def test_a_model_that_was_never_without_needs_it(place: Path) -> None:
    run = run_of(place, "needs", {"inputs": {"edges": {"kind": "edges", "drop": 0.0}}}, steps=1)
    run.train(progress=False, rehearsal=False)
    system = assemble(place / "needs-system", generator=place / "needs")
    with pytest.raises(ValueError, match=r"never without edges and needs edges"):
        pictures(system, {})
    with pytest.raises(RecipeError, match="never without edges, and is measured under prompts alone"):
        open_model(place / "needs-system")


@pytest.mark.parametrize(
    "inputs, says",
    [
        ({"edges": {}}, "task.inputs.edges: no kind; kinds are edges"),
        ({"edges": {"kind": "edge"}}, 'task.inputs.edges.kind: "edge" is no kind of input; did you mean "edges"'),
        ({"edges": {"kind": "edges", "sigmas": 2.0}}, "task.inputs.edges.sigmas: no such setting"),
        ({"edges": {"kind": "edges", "drop": 1.0}}, "task.inputs.edges: drop = 1.0"),
        ({"edges": {"kind": "edges", "down": 2}}, "task.inputs.edges.down: given 2, but data and parts make it 1"),
        ({"image": {"kind": "edges"}}, 'task.inputs.image: an input cannot be named "image"'),
        ({"hole": {"kind": "mask"}}, "task.inputs.hole: an input of kind .mask."),
        ({"depth": {"kind": "map"}}, "task.inputs.depth: no picture has one beside it; .*depth_file_name.*none"),
        ({"seen": {"kind": "embedding"}}, "task.inputs.seen.encoder: missing"),
        ({"small": {"kind": "small", "side": 99}}, "task.inputs.small: side = 99"),
    ],
)
def test_recipes_are_strict(place: Path, inputs: dict[str, Any], says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        run_of(place, "strict", {"inputs": inputs}, steps=1)


# --- pictures beside the pictures -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def beside(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures with maps of depth, of labels and of holes beside them, named in the metadata."""
    place = tmp_path_factory.mktemp("beside")
    for folder in ("pics", "pics/depth", "pics/labels", "pics/holes"):
        (place / folder).mkdir()
    lines = []
    for number in range(12):
        name, pixels = f"{number}.png", picture(number)
        shape = (pixels != 255).any(2)
        depth = np.where(shape, 200 - 10 * number, 20).astype(np.uint8)
        hole = np.zeros((SIDE, SIDE), np.uint8)
        hole[:, : SIDE // 2] = 255
        for folder, values in (
            (".", pixels),
            ("depth", depth),
            ("labels", shape.astype(np.uint8) * 7),
            ("holes", hole),
        ):
            Image.fromarray(values).save(place / "pics" / folder / name)
        row = {
            "file_name": name,
            "depth_file_name": f"depth/{name}",
            "layout_file_name": f"labels/{name}",
            "mask_file_name": f"holes/{name}",
        }
        lines.append(json.dumps(row))
    (place / "pics" / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return place


def test_files_take_the_place_of_what_is_computed(beside: Path) -> None:
    inputs = {"depth": {"kind": "map"}, "layout": {"kind": "layout", "colours": 2}, "mask": {"kind": "mask"}}
    data = {"nearest": ["mask", "layout"]}
    run = run_of(beside, "files", {"inputs": inputs}, steps=2, data=data, batch=4, warmup=1)
    task = run.task
    assert isinstance(task, GeneratorTask)
    batch = run.loader.batch(0)
    told = task.told(batch)
    assert torch.equal(told.controls["depth"][:, :1], batch.inputs["depth"])
    shape = (batch.images != 1).any(1)
    assert torch.equal(told.controls["layout"][:, :2].argmax(1), shape.long())
    assert torch.equal(told.controls["mask"][:, 0], (torch.arange(SIDE) < SIDE // 2).float().expand(4, SIDE, SIDE))
    run.train(progress=False, rehearsal=False)
    system = assemble(beside / "system", generator=beside / "files")
    depth = next(one for one in system.conditions if one.name == "depth")
    assert (depth.planes, depth.channels, depth.computable) == (1, 2, False)
    with pytest.raises(CarraraError, match=r"more than 2 colours.*colours to their number"):
        blended = {"layout": {"kind": "layout", "colours": 2}, "depth": {"kind": "layout", "colours": 2}}
        run_of(beside, "blended", {"inputs": blended}, steps=1, data=data)


def test_a_map_is_obeyed(tmp_path: Path) -> None:
    """Held-out maps of depth say where the shape is; whatever has no colour is near to white."""
    rows = []
    (tmp_path / "pics" / "depth").mkdir(parents=True)
    for number in range(64):
        name, pixels = f"{number:02}.png", picture(number)
        depth = np.where((pixels != 255).any(2), np.linspace(255, 120, SIDE)[:, None], 0).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / "pics" / name)
        Image.fromarray(depth).save(tmp_path / "pics" / "depth" / name)
        rows.append(json.dumps({"file_name": name, "depth_file_name": f"depth/{name}"}))
    (tmp_path / "pics" / "metadata.jsonl").write_text("\n".join(rows) + "\n")
    run = run_of(tmp_path, "map", {"inputs": {"depth": {"kind": "map", "drop": 0.2}}}, steps=240)
    run.train(progress=False, rehearsal=False)
    system = assemble(tmp_path / "system", generator=tmp_path / "map")
    assert isinstance(run.task, GeneratorTask)
    given, _ = run.task.inputs(run.pictures.heldout[:8], Rng.seeds(range(8)))
    near = given["depth"][:, 0] > -0.5

    def overlap(images: Tensor) -> float:
        shape = images.amin(1) < 0.3
        return float(((shape & near).sum((1, 2)) / (shape | near).sum((1, 2))).mean())

    told, free = overlap(pictures(system, given)), overlap(pictures(system, {}))
    assert told > 0.7 and told > free + 0.25, (told, free)


# --- embeddings and latents -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def parts(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures captioned by their colours, a text encoder that tells these apart, and a decoder, hardly trained."""
    shutil.copytree(place / "pics", (there := tmp_path_factory.mktemp("parts")) / "pics")
    place = there
    for path in (place / "pics").glob("*/*.png"):
        path.with_suffix(".txt").write_text(path.parent.name)
    text = {"kind": "contrastive", "vocabulary": 300, "length": 8,
            "network": {"kind": "transformer", "width": 16, "depth": 1, "heads": 2},
            "picture": {"kind": "convolutional", "patch": 4, "widths": [8], "blocks": [1]}}  # fmt: skip
    decoder = {
        "kind": "autoencoder",
        "autoencoder": {
            "kind": "kl",
            "latent": 4,
            "down": 4,
            "widths": [8, 8],
            "encoder_blocks": [0, 1],
            "decoder_blocks": [0, 1],
        },
    }
    for name, task, steps in (("text", text, 60), ("decoder", decoder, 3)):
        table = {
            "out": str(place / name),
            "data": {"folder": str(place / "pics"), "size": SIDE},
            "task": task,
            "train": {**TRAIN, "steps": steps},
        }
        (place / f"{name}.toml").write_text(dump_toml(table))
        Run(read_recipe(place / f"{name}.toml"), cache=place / "cache").train(progress=False, rehearsal=False)
    return place


def test_another_pictures_embedding_is_obeyed(parts: Path) -> None:
    """What is made looks to the tower like the picture that was given, more so than what is made without."""
    judge = load_component(parts / "text", "text")
    run = run_of(parts, "seen", {"inputs": {"seen": {"kind": "embedding", "encoder": str(parts / "text")}}}, steps=60)
    run.train(progress=False, rehearsal=False)
    system = assemble(parts / "seen-system", generator=parts / "seen")
    assert isinstance(run.task, GeneratorTask)
    given, _ = run.task.inputs(run.pictures.heldout[:8], Rng.seeds(range(8)))
    wanted = judge.picture_features(given["seen"])
    alike, blind = ((judge.picture_features(pictures(system, told)) * wanted).sum(1).mean() for told in (given, {}))
    assert alike > blind + 0.2, (alike, blind)


def test_embeddings_and_latents(parts: Path) -> None:
    """A DiT in latents, told a text, edges, a mask and another picture; saved, loaded and sampled."""
    inputs = {
        "edges": {"kind": "edges"},
        "mask": {"kind": "mask"},
        "seen": {"kind": "embedding", "encoder": str(parts / "text")},
    }
    network = {"kind": "dit", "patch": 1, "width": 16, "depth": 2, "heads": 2}
    task = {"text": str(parts / "text"), "decoder": str(parts / "decoder"), "network": network, "inputs": inputs}
    run = run_of(parts, "latent", task, steps=3)
    assert isinstance(run.task, GeneratorTask)
    tower = [p for name, p in run.task.modules.named_parameters() if ".conditions." in name]
    assert tower and not any(p.requires_grad for p in tower)
    edges_, mask, seen = run.task.conditions
    assert (edges_.channels, mask.channels, seen.channels) == (1 * 16 + 1, 4 * 16 + 1, 16 + 1)
    run.train(progress=False, rehearsal=False)
    system = assemble(
        parts / "latent-system", generator=parts / "latent", text=parts / "text", decoder=parts / "decoder"
    )
    given, _ = run.task.inputs(run.pictures.heldout[:8], Rng.seeds(range(8)))
    theirs = next(one for one in system.conditions if one.name == "seen")
    assert torch.equal(theirs.encode(given["seen"]), seen.encode(given["seen"]))
    made = pictures(system, given)
    kept = (given["mask"] == 0).expand_as(made)
    assert torch.equal(made[kept], given["image"][kept])
    assert torch.equal(made, pictures(load(parts / "latent-system"), given))
    other = pictures(system, {**given, "seen": given["seen"].flip(0)})
    assert not torch.equal(other, made)


def test_joint_attention(parts: Path) -> None:
    """An MM-DiT is trained and sampled under words and edges; what has no words is refused, and so is a control."""
    network = {"kind": "mmdit", "patch": 4, "width": 16, "depth": 2, "heads": 2}
    task = {"text": str(parts / "text"), "network": network, "inputs": {"edges": {"kind": "edges"}}}
    run = run_of(parts, "joint", task, steps=6)
    run.train(progress=False, rehearsal=False)
    system = assemble(parts / "joint-system", generator=parts / "joint", text=parts / "text")
    made = []
    for prompt in ("red", "blue", "red"):
        *_, last = system.generate([prompt], seeds=[0])
        made.append(last.images)
    assert torch.equal(made[0], made[2])
    assert not torch.equal(made[0], made[1])
    for text in ("labels", "unconditional"):
        with pytest.raises(RecipeError, match=r"an mmdit reads words .* this text encoder has none"):
            run_of(parts, "wordless", {"text": text, "network": network}, steps=1)
    with pytest.raises(RecipeError, match="a MMDiT cannot be controlled; UNets and DiTs can"):
        control_of(parts, parts / "joint-system", "joint-control", 1)


# --- controls ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def frozen(place: Path) -> Path:
    """A model that is told nothing."""
    run_of(place, "frozen", {}, steps=50).train(progress=False, rehearsal=False)
    assemble(place / "frozen-system", generator=place / "frozen")
    return place / "frozen-system"


def control_of(place: Path, frozen: Path, name: str, steps: int, **more: Any) -> Run:
    task = {"kind": "control", "model": str(frozen), "inputs": {"edges": {"kind": "edges"}}, **more}
    return run_of(place, name, task, steps=steps)


def test_a_control_before_and_after_training(place: Path, frozen: Path, told: Told) -> None:
    """Bit-equal to the frozen generator at first, and without a picture always; obeying after a while."""
    plain, given = load(frozen), {"edges": told.given["edges"]}
    without = pictures(plain, {})
    before = (frozen / "generator" / "weights.safetensors").read_bytes()
    run = control_of(place, frozen, "control", 100)
    assert isinstance(run.task, GeneratorTask)
    assert torch.equal(pictures(run.task.system, given), without)
    run.train(progress=False, rehearsal=False)
    assert (frozen / "generator" / "weights.safetensors").read_bytes() == before
    assert read_component(place / "control").role == "control"
    system = load(frozen, controls=[place / "control"])
    assert torch.equal(pictures(system, {}), without)
    follow = replace(system.generator.settings, guidance=Follow(Plain(), {"edges": 0.0}))
    torch.testing.assert_close(pictures(system, given, follow), without, rtol=0, atol=1e-4)
    made = pictures(system, given)
    overlap, blind = (edge_overlap(edges(x), given["edges"]).mean() for x in (made, without))
    assert overlap > blind + 0.1, (overlap, blind)
    whole = assemble(
        place / "controlled",
        generator=frozen / "generator",
        text=frozen / "text",
        decoder=frozen / "decoder",
        controls=[place / "control"],
    )
    assert torch.equal(pictures(whole, given), made)
    assert torch.equal(pictures(load(place / "controlled"), given), made)
    assert json.loads((place / "controlled" / "model.json").read_text())["controls"] == ["control-edges"]


def test_a_control_is_for_its_generator_alone(place: Path, frozen: Path, told: Told) -> None:
    control_of(place, frozen, "young", 1).train(progress=False, rehearsal=False)
    young = load_component(place / "young", "control")
    with pytest.raises(
        RecipeError, match=r'control "edges" was trained for the generator with fingerprint \w{16}, and this'
    ):
        load(told.folder, controls=[place / "young"])
    plain = load(frozen)
    with pytest.raises(RecipeError, match="two inputs are named edges"):
        controlled(plain.generator, [young, load_component(place / "young", "control")])
    with pytest.raises(RecipeError, match="for a diffusion generator"):
        controlled(torch.nn.Linear(1, 1), [young])
    with pytest.raises(RecipeError, match="is a control; expected a generator"):
        assemble(place / "wrong", generator=place / "young")
    with pytest.raises(ValueError, match="told a picture"):
        Control(young.network, torch.nn.Linear(1, 1), young.space, generator="x")


def test_a_control_resumes_and_refuses_another_generator(place: Path, frozen: Path) -> None:
    for name, steps in (("whole", [4]), ("parts", [2, 4])):
        for count in steps:
            task = {"kind": "control", "model": str(frozen), "inputs": {"edges": {"kind": "edges"}}}
            run = run_of(place, f"control-{name}", task, steps=count, decay="constant")
            run.train(progress=False, rehearsal=False)
    a, b = ((place / f"control-{name}" / "weights.safetensors").read_bytes() for name in ("whole", "parts"))
    assert a == b
    run_of(place, "other", {}, steps=1).train(progress=False, rehearsal=False)
    assemble(place / "other-system", generator=place / "other")
    with pytest.raises(RecipeError, match="another text encoder or decoder than those of"):
        control_of(place, place / "other-system", "control-parts", 6).train(progress=False, rehearsal=False)


@pytest.mark.parametrize(
    "more, says",
    [
        ({"inputs": {}}, "task.inputs: 0 tables"),
        ({"inputs": {"edges": {"kind": "edges", "drop": 0.5}}}, "task.inputs.edges.drop: given 0.5"),
        ({"model": "nowhere"}, "task.model: nowhere does not exist"),
        ({"drop": 2.0}, "drop = 2.0; expected a share of rows"),
    ],
)
def test_control_recipes_are_strict(place: Path, frozen: Path, more: dict[str, Any], says: str) -> None:
    with pytest.raises(CarraraError, match=says):
        control_of(place, frozen, "strict-control", 1, **more)


def test_a_dit_is_controlled_too(place: Path) -> None:
    network = {"kind": "dit", "patch": 2, "width": 16, "depth": 2, "heads": 2}
    run_of(place, "dit", {"network": network}, steps=2).train(progress=False, rehearsal=False)
    assemble(place / "dit-system", generator=place / "dit")
    run = control_of(place, place / "dit-system", "dit-control", 3)
    run.train(progress=False, rehearsal=False)
    given, _ = run.task.inputs(run.pictures.heldout[:8], Rng.seeds(range(8)))
    system = load(place / "dit-system", controls=[place / "dit-control"])
    assert torch.equal(pictures(system, {}), pictures(load(place / "dit-system"), {}))
    assert not torch.equal(pictures(system, given), pictures(system, {}))


# --- the recipes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_is_a_recipe(path: Path) -> None:
    recipe = read_recipe(path)
    assert recipe.out == f"runs/conditions/{path.stem}"
    assert 0 < recipe.minutes <= 25
    assert path.read_text(encoding="utf-8").startswith("# ")


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_trains(path: Path, parts: Path, frozen: Path, tmp_path: Path) -> None:
    name = path.stem
    small = [f"data.folder={parts / 'pics'}", f"data.size={SIDE}", f"out={tmp_path / 'run'}", "minutes=0"]
    small += ["train.steps=1", "train.batch=4", "train.warmup=0", "train.precision=float32"]
    words = path.read_text()
    small += [f"task.model={frozen}"] if name.startswith("control") else []
    small += ["task.network.channels=8"] if 'kind = "unet"' in words else []
    small += [f"task.text={parts / 'text'}"] if 'text = "runs' in words else []
    small += [f"task.inputs.embedding.encoder={parts / 'text'}"] if name == "embedding" else []
    assert Run(read_recipe(path, small), cache=tmp_path / "cache").train(progress=False, rehearsal=False).steps == 1
    assert (tmp_path / "run" / "weights.safetensors").is_file()
