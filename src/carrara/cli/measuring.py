"""What `evaluate` and `compare` share: their options, and how a yardstick is made of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from carrara.cli.voice import Counter, Voice, duration, table
from carrara.errors import RecipeError

if TYPE_CHECKING:
    from carrara.data import DataSettings, Pictures
    from carrara.evaluate.extractor import Extractor
    from carrara.evaluate.measure import Say
    from carrara.evaluate.model import Model
    from carrara.evaluate.report import Report
    from carrara.evaluate.yardstick import Yardstick

__all__ = [
    "Batch",
    "Bits",
    "Cache",
    "Clip",
    "Count",
    "Data",
    "Device",
    "ExtractorName",
    "Json",
    "Judge",
    "PerPrompt",
    "Reference",
    "Repeats",
    "Ruler",
    "Seed",
    "Share",
    "counted",
    "opened",
    "share_of",
    "write_report",
]

Data = Annotated[Path, typer.Option(metavar="FOLDER", help="The pictures to compare with.", show_default=False)]
Count = Annotated[int, typer.Option("--n", metavar="N", min=1, help="Samples that are made and measured.")]
Repeats = Annotated[int, typer.Option(metavar="N", min=1, help="Sets of so many samples, for intervals.")]
Seed = Annotated[int, typer.Option(metavar="N", min=0, help="Of the first sample; it also draws the prompts.")]
Reference = Annotated[
    Literal["train", "heldout", "all"],
    typer.Option(help="Which of the pictures are compared with; prompts are their captions."),
]
ExtractorName = Annotated[
    str,
    typer.Option(
        "--extractor",
        metavar="NAME",
        help="efficientnet-lite0, a file of Inception-v3, a folder of DINOv2, CLIP or our text encoder.",
    ),
]
Judge = Annotated[
    Path | None,
    typer.Option(metavar="FOLDER", help="A contrastive text encoder that tells what fits.  [default: the model's own]"),
]
Clip = Annotated[
    str | None, typer.Option(metavar="FOLDER", help="A CLIP in the layout of transformers, for CLIP score and CMMD.")
]
PerPrompt = Annotated[
    int, typer.Option("--per-prompt", metavar="N", min=1, help="Samples of one prompt, for diversity; 1: none.")
]
Bits = Annotated[int, typer.Option(metavar="N", min=0, help="Held-out pictures for bits a dimension; 0: none.")]
Share = Annotated[
    str | None,
    typer.Option("--shard", metavar="I/N", help="Only make this part of the samples, of N that are made elsewhere."),
]
Batch = Annotated[int, typer.Option(metavar="N", min=1, help="Pictures at a time.")]
Device = Annotated[str, typer.Option(metavar="NAME", help="auto, cpu or cuda.")]
Cache = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="For prepared pictures and their features.  [default: ~/.cache/carrara]"),
]
Json = Annotated[bool, typer.Option("--json", help="Say the figures as JSON.")]


@dataclass(frozen=True)
class Ruler:
    """What was asked for, of all that makes a yardstick."""

    data: Path
    count: int
    repeats: int
    seed: int
    reference: Literal["train", "heldout", "all"]
    extractor: str
    judge: Path | None
    clip: str | None
    each: int
    bits: int
    batch: int
    cache: Path | None

    def yardstick(self, models: Sequence[Model], device: Any, voice: Voice) -> Yardstick:
        """One for all these models, at the size of the smallest pictures. Raises as its parts do."""
        from carrara.data.cache import default_cache
        from carrara.evaluate.yardstick import Yardstick

        for model in models:
            if untold := ", ".join(one.name for one in model.system.conditions):
                voice.warn(f"{model.name} is measured under prompts alone, without {untold}, which it can go without")
        size = min((model.size for model in models), key=lambda size: size[0] * size[1])
        pictures = self._pictures(models[0], size, voice)
        return Yardstick(
            pictures=pictures,
            reference=self.reference,
            extractor=_found("--extractor", self.extractor, device),
            cache=self.cache or default_cache(),
            judge=self._judge(models, device),
            clip=self._clip(device),
            count=self.count,
            repeats=self.repeats,
            each=self.each,
            bits=self.bits,
            seed=self.seed,
            batch=self.batch,
        )

    def _pictures(self, model: Model, size: tuple[int, int], voice: Voice) -> Pictures:
        return opened(model.data(self.data, size), self.cache, voice)

    def _clip(self, device: Any) -> Extractor | None:
        if not self.clip:
            return None
        found = _found("--clip", self.clip, device)
        if found.read is None:
            raise RecipeError(f"--clip {self.clip} is {found.name}, which reads no prompts; give the folder of a CLIP")
        return found

    def _judge(self, models: Sequence[Model], device: Any) -> Extractor | None:
        """The one that was asked for, else that of the first model whose text encoder has learnt from pictures."""
        from carrara.evaluate.extractor import contrastive_extractor
        from carrara.text import ContrastiveText

        if self.judge is not None:
            found = _found("--judge", str(self.judge), device)
            if found.read is None:
                raise RecipeError(f"--judge {self.judge} reads no prompts; give a contrastive text encoder")
            return found
        own = next((m.system.text for m in models if isinstance(m.system.text, ContrastiveText)), None)
        return contrastive_extractor(own) if own is not None else None


def _found(option: str, given: str, device: Any) -> Extractor:
    """The extractor that an option names; what is wrong with it is told with the option."""
    from carrara.errors import CarraraError
    from carrara.evaluate.extractor import find_extractor

    try:
        return find_extractor(given, device)
    except CarraraError as error:
        raise type(error)(f"{option}: {error}") from error


def opened(settings: DataSettings, cache: Path | None, voice: Voice) -> Pictures:
    """The pictures of a folder, prepared; how far that is, is shown."""
    from carrara.data import open_pictures

    with Counter(1, "pictures", silent=voice.silent) as counter:

        def reading(done: int, total: int) -> None:
            counter.total = total
            counter.at(done)

        return open_pictures(settings, cache, progress=reading)


def counted(voice: Voice) -> Say:
    """Progress of one kind of work after the other."""

    def begin(thing: str, total: int) -> Callable[[float], None]:
        counter = Counter(total, thing, silent=voice.silent)
        counter.__enter__()

        def at(done: float) -> None:
            counter.at(done)
            if done >= total:
                counter.__exit__()

        return at

    return begin


def share_of(text: str | None) -> tuple[int, int] | None:
    """`--shard 2/3` as (2, 3)."""
    if text is None:
        return None
    found = re.fullmatch(r"([1-9]\d{0,3})/([1-9]\d{0,3})", text.strip())
    if not found or int(found[1]) > int(found[2]):
        raise RecipeError(f'--shard is "{text}"; give which part of how many, such as 1/4, 2/4, 3/4 and 4/4')
    return int(found[1]), int(found[2])


def write_report(facts: dict[str, Any], page: Report, out: Path, what: str, voice: Voice, *, as_json: bool) -> None:
    """Writes report.html and report.json, and says what they say; `what` is what was measured, and how."""
    from carrara.store.atomic import storage_errors, write_json

    facts |= {"warnings": voice.warnings, "report": str(out / "report.html")}
    with storage_errors(f"cannot use {out}"):
        out.mkdir(parents=True, exist_ok=True)
    write_json(out / "report.json", facts)
    page.write(out / "report.html")
    if as_json:
        voice.json(facts)
        return
    _tell(facts, what, voice)


def _tell(facts: Mapping[str, Any], what: str, voice: Voice) -> None:
    from carrara.evaluate.words import ordered, value_words, word

    extractor = facts["extractor"]["name"]
    names = ordered(list(facts["figures"]))
    voice.say(f"{facts['name']}: {what}")
    voice.say(table([(word(name, extractor).label, value_words(name, facts)) for name in names]))
    for name, mark in facts["marks"].items():
        voice.say(f"{word(name, extractor).label}: {mark}.")
    for name, why in facts["missing"].items():
        voice.say(f"Not measured: {word(name, extractor).label} ({why}).")
    voice.say(f"{duration(facts['seconds'])}; the report is {facts['report']}")
