"""Which recipes a folder of pictures needs, as commented TOML. The numbers are `carrara.train.presets`'s."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from carrara.cli.voice import command
from carrara.errors import RecipeError

if TYPE_CHECKING:
    from carrara.data import Findings

__all__ = ["PartRecipe", "Shape", "check_size", "recipes"]

_ROLES = {"text": "text encoder", "decoder": "decoder", "generator": "generator"}


@dataclass(frozen=True)
class Shape:
    """What decides the recipes of a folder."""

    folder: str
    pictures: int
    size: int
    channels: int
    convert: Mapping[str, int]  # data settings that make pictures alike
    captions: int  # different ones; 0 where pictures have none
    words: int  # of a long caption
    classes: tuple[str, ...]
    example: str  # a prompt that it would know
    allowances: Mapping[str, str] = field(default_factory=dict)  # settings that training would ask for -> why

    @property
    def text(self) -> str:
        """What the generator is told: "captions", "labels" or "unconditional"."""
        return "captions" if self.captions else "labels" if self.classes else "unconditional"

    @classmethod
    def of(
        cls,
        findings: Findings,
        *,
        folder: str,
        size: int,
        kinds: Mapping[tuple[int, int], int],
        said: Sequence[str],
        allowances: Mapping[str, str],
    ) -> Shape:
        """From what was found; `kinds` counts (channels, bits), `said` are all captions."""
        from carrara.train.presets import conversions

        labelled = set(findings.captions) == {"class"}
        told = bool(findings.captions) and not labelled
        lengths = sorted(len(caption.split()) for caption in said) or [8]
        convert = conversions(kinds)
        usual = max(kinds, key=lambda kind: kinds[kind])[0]
        return cls(
            folder=folder,
            pictures=findings.pictures,
            size=size,
            channels=convert.get("channels", usual),
            convert=convert,
            captions=len(set(said)) if told else 0,
            words=lengths[int(0.98 * (len(lengths) - 1))],
            classes=findings.classes,
            example=said[0] if told and said else findings.classes[0] if findings.classes else "",
            allowances=allowances,
        )


def check_size(size: int) -> None:
    """Refuses a side that the networks of the presets cannot halve often enough."""
    from carrara.train.presets import PIXELS

    multiple = 4 if size <= PIXELS else 8
    if size % multiple or size < 8:
        near = max(8, round(size / multiple) * multiple)
        raise RecipeError(f"--size is {size}; give a multiple of {multiple}, such as {near}")


@dataclass(frozen=True)
class PartRecipe:
    """One part's recipe, still without an estimate; `text()` writes it."""

    role: str
    path: Path
    table: dict[str, Any]
    estimate: str = ""
    steps: int = 0  # that are estimated to fit

    def data(self) -> dict[str, Any]:
        """The settings of its `[data]`."""
        return {name: value for name, value in self.table["data"].items() if not isinstance(value, _Off)}

    def text(self) -> str:
        """The file's contents: TOML with a comment on every line worth one."""
        head = [f"The {_ROLES[self.role]}: {_WHAT[self.role]}"]
        head += [self.estimate] if self.estimate else []
        head += ["Train it with:  " + command("train", self.path)]
        head += [
            "Paths are relative to the folder in which that is run. Any line may be left out: a default takes over."
        ]
        lines = [f"# {line}" for line in head]
        return "\n".join([*lines, "", *_toml(self.table, _comments(self.table))]) + "\n"


_WHAT = {
    "text": "reads captions, and learns by telling which caption goes with which picture.",
    "decoder": "an autoencoder. Its latents are what the generator makes, and it turns them into pictures.",
    "generator": "makes pictures from noise.",
}


def recipes(
    shape: Shape, folder: Path, *, minutes: float, text: str | dict[str, Any] | None = None
) -> list[PartRecipe]:
    """The recipes of the parts that this data needs, in the order of their training; they take `minutes` together.

    `text` names an encoder that is trained already, as a recipe does.
    """
    from carrara.train import presets

    check_size(shape.size)
    sides = {"size": shape.size, "channels": shape.channels, "pictures": shape.pictures}
    pixels = shape.size <= presets.PIXELS
    tables: dict[str, dict[str, Any]] = {}
    if shape.captions and not text:
        tables["text"] = presets.text_table(**sides, captions=shape.captions, words=shape.words)
    if not pixels:
        tables["decoder"] = presets.decoder_table(**sides)
    tables["generator"] = presets.generator_table(
        **sides,
        text=text or (str(folder / "text") if shape.captions else shape.text),
        decoder="pixels" if pixels else str(folder / "decoder"),
    )
    share = presets.shares(*tables)
    data = {
        "folder": shape.folder,
        "size": shape.size,
        **shape.convert,
        "flip": False,
        "heldout": presets.heldout_share(shape.pictures),
    }
    return [
        PartRecipe(
            role,
            folder / f"{role}.toml",
            {
                "out": str(folder / role),
                "minutes": _rounded(share[role] * minutes),
                "data": {**data, **{name: _Off(why) for name, why in shape.allowances.items()}},
                **table,
            },
        )
        for role, table in tables.items()
    ]


def _rounded(minutes: float) -> float:
    return float(f"{minutes:.3g}") if minutes < 100 else float(math.floor(minutes))


# --- commented TOML ---------------------------------------------------------------------------------------------------


class _Off:
    """A setting that is named but not set: its line is commented out."""

    def __init__(self, why: str) -> None:
        self.why = why


_COMMENTS = {
    "out": "the run folder, which becomes the component",
    "minutes": "for its steps; how many fit is measured when it begins. 0: train.steps decides",
    "data.folder": "as `carrara data check` reports on it",
    "data.size": 'side in pixels; other shapes are cut to a square, fit = "pad" keeps all of them',
    "data.channels": "3 makes grey pictures RGB, 1 all of them grey",
    "data.depth": "bits a channel; pictures of another depth are converted",
    "data.flip": "true mirrors half of the pictures; wrong where left and right matter",
    "data.heldout": "share of the pictures that is never trained on, but measured",
    "task.vocabulary": "tokens, learnt from the captions",
    "task.length": "tokens that are read of a prompt, two marks included; the rest is cut off",
    "task.network.width": "numbers a token, layer or patch; more is stronger and slower",
    "task.network.depth": "layers",
    "task.network.patch": "latent pixels a side that become one token",
    "task.network.channels": "at full size; more is stronger and slower",
    "task.network.multipliers": "of the channels, each at half the size of the one before",
    "task.network.attention": "the sizes, counted from 0, at which places look at each other",
    "task.picture.patch": "pixels a side that are folded before the first convolution",
    "task.augment.shift": "pictures are moved by up to this share of the side",
    "task.augment.scale": "and scaled by up to 2 to the power of this",
    "task.autoencoder.latent": "channels of a latent; fewer is easier to generate, more is sharper",
    "task.autoencoder.down": "pixels of the picture a side of one latent pixel",
    "task.loss.edges": "keeps outlines crisp",
    "task.loss.kl": "pulls latents towards a normal distribution",
    "task.text": 'the trained text encoder; or "labels" (class folders), or "unconditional"',
    "task.text.path": "of a pretrained encoder, which stays as it is; see docs/text-encoders.md",
    "task.text.length": "tokens that are read of a prompt, marks included; the rest is cut off",
    "task.decoder": 'the trained decoder; or "pixels" for pictures that are generated as they are',
    "task.drop": "share of the pictures that is shown without its prompt, which guidance needs",
    "task.schedule.kind": "how data turns into noise: a straight path",
    "task.parameterization.kind": "the network's input and target are scaled to unit variance at every t",
    "task.parameterization.sigma_data": "standard deviation of what is generated: latents 1, pixels about 0.5",
    "task.objective.draw.kind": "which times are trained on: most often the middle ones",
    "task.settings.sampler.kind": "ddim, heun, dpmpp-2m or ancestral",
    "task.settings.times.steps": "network calls a picture (twice as many with heun)",
    "task.settings.times.shift": "above 1: more steps at high noise",
    "task.settings.guidance.scale": "how much the prompt counts; 1 is off",
    "task.settings.guidance.inner.scale": "how much the prompt counts; 1 is off",
    "train.batch": "pictures a step; less needs less memory",
    "train.learning_rate": "at its highest",
    "train.decay": 'of the learning rate: half a cosine down to 0, or "constant"',
    "train.warmup": "steps over which the learning rate rises",
    "train.ema": "decay of the averaged weights, which are what is kept",
    "train.validate_every": "steps between held-out figures",
    "train.sample_every": "steps between pictures in samples/",
    "train.save_every": "steps between checkpoints; 0: by time alone",
    "train.save_seconds": "seconds between checkpoints, which are what an interrupted run goes on from",
}


def _comments(table: Mapping[str, Any]) -> dict[str, str]:
    comments = dict(_COMMENTS)
    if table["task"].get("text") == "labels":
        comments["task.text"] = "the names of the class folders are the prompts"
    elif str(table["task"].get("text")).startswith("pretrained:"):
        comments["task.text"] = "a pretrained encoder, which stays as it is"
    elif table["task"].get("text") == "unconditional":
        comments["task.text"] = "no captions and no class folders were found"
        comments["task.drop"] = "nothing to leave out"
    if table["task"].get("decoder") == "pixels":
        comments["task.decoder"] = "pictures this small are generated as they are"
    return comments


def _toml(table: Mapping[str, Any], comments: Mapping[str, str], path: tuple[str, ...] = ()) -> list[str]:
    """The table as lines, values before tables, each value with its comment."""
    from carrara.config import dump_toml

    values = {name: value for name, value in table.items() if not isinstance(value, Mapping)}
    lines = []
    for name, value in values.items():
        if isinstance(value, _Off):
            lines.append((f"# {name} = {value.why}", ""))
        else:
            line = " ".join(dump_toml({name: value}).split()).replace("[ ", "[").replace(", ]", "]")
            lines.append((line, comments.get(_dotted(path, name), "")))
    width = min(44, max((len(line) for line, said in lines if said), default=0))
    found = [f"{line:<{width}}  # {said}" if said else line for line, said in lines]
    if path and values:
        found = ["", f"[{'.'.join(path)}]", *found]
    for name, value in table.items():
        if isinstance(value, Mapping):
            found += _toml(value, comments, (*path, name))
    return found


def _dotted(path: tuple[str, ...], name: str) -> str:
    return ".".join((*path, name))
