"""`carrara sample`: pictures from a model folder, each named by its number, its prompt and its seed."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from carrara.cli.folders import require_writable
from carrara.cli.inputs import Begun, Files, follow_settings, read_inputs
from carrara.cli.said import FORMAT_VERSION, PARAMETERS, RECORD, Said, a1111_sampler, read_said
from carrara.cli.sampling import (
    Guidance,
    SamplerName,
    Steps,
    Temperature,
    TopK,
    TopP,
    Truncation,
    decoding_settings,
    editing_settings,
    guidance_scale,
    sampling_settings,
)
from carrara.cli.voice import Counter, Voice, duration
from carrara.errors import CarraraError, NonFiniteError, RecipeError, StorageError

if TYPE_CHECKING:
    from torch import Tensor

    from carrara.decoder import Decoding
    from carrara.diffusion.generator import SamplingSettings
    from carrara.system import Frame, System
    from carrara.text import Reading
    from carrara.types import Step

__all__ = ["sample"]

_TRACED = 8  # times that a trace shows
_SHEET = 256  # pictures that a sheet shows at most
_NUMBERED = re.compile(r"(?:sheet-)?(\d{4,})[-.]")


@dataclasses.dataclass(frozen=True)
class _Wanted:
    """One picture that was asked for."""

    number: int  # in the folder
    prompt: str
    seed: int

    @property
    def stem(self) -> str:
        words = re.sub(r"[\W_]+", "-", self.prompt.lower()).strip("-")[:48].strip("-")
        return "-".join(part for part in (f"{self.number:04}", words, f"seed{self.seed}") if part)


@dataclasses.dataclass(frozen=True)
class _Asked:
    """What was asked for beside prompts, seeds and sampling settings."""

    model: Path
    negative: str | None
    size: tuple[int, int] | None
    out: Path
    metadata: bool
    trace: bool
    begun: Begun
    candidates: int
    decoding: Decoding | None
    reading: Reading | None


def sample(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A model folder.", show_default=False)],
    prompts: Annotated[list[str] | None, typer.Argument(metavar="PROMPT", help="What to show.")] = None,
    prompts_file: Annotated[Path | None, typer.Option("--prompts", metavar="FILE", help="Prompts, one a line.")] = None,
    seed: Annotated[
        int | None, typer.Option(metavar="N", min=0, help="Of the first picture, usually 0; the next ones count on.")
    ] = None,
    count: Annotated[int, typer.Option(metavar="N", min=1, help="Pictures of each prompt.")] = 1,
    steps: Steps = None,
    sampler: SamplerName = None,
    guidance: Guidance = None,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    truncation: Truncation = None,
    candidates: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Draws of each picture; the one that fits its prompt best is kept."),
    ] = None,
    negative: Annotated[str | None, typer.Option(metavar="TEXT", help="What to lead away from.")] = None,
    clip_skip: Annotated[
        int | None, typer.Option(metavar="N", min=0, help="Layers of CLIP that the prompt's tokens do not go through.")
    ] = None,
    size: Annotated[str | None, typer.Option(metavar="HxW", help="Height and width in pixels, such as 64x96.")] = None,
    image: Annotated[Path | None, typer.Option(metavar="FILE", help="A picture to begin from.")] = None,
    mask: Annotated[Path | None, typer.Option(metavar="FILE", help="Where it may change: white; black stays.")] = None,
    strength: Annotated[
        float | None, typer.Option(metavar="X", min=0, max=1, help="How much of it changes; 0.6, with a mask 1.")
    ] = None,
    inputs: Annotated[
        list[str] | None, typer.Option("--input", metavar="NAME=FILE", help="What the model is told beside the prompt.")
    ] = None,
    computed: Annotated[
        list[str] | None,
        typer.Option(
            "--from",
            metavar="[NAME=]FILE",
            help="The same, computed from a picture; or FILE's own prompt and settings.",
        ),
    ] = None,
    follow: Annotated[
        list[str] | None, typer.Option(metavar="NAME=X", help="How much an input counts; 1 is off.")
    ] = None,
    controls: Annotated[
        list[Path] | None, typer.Option("--control", metavar="FOLDER", help="A control trained for this generator.")
    ] = None,
    loras: Annotated[
        list[str] | None, typer.Option("--lora", metavar="FILE[:X]", help="Low-rank updates, X times; 1 is as trained.")
    ] = None,
    augmentation: Annotated[
        float | None,
        typer.Option(metavar="X", min=0, max=1, help="Of diffusion upsamplers: noise on the small picture."),
    ] = None,
    tile: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Decode in parts of N pixels a side, in the memory of one.")
    ] = None,
    trace: Annotated[bool, typer.Option("--trace", help="Also show each picture at 8 times on its way.")] = False,
    out: Annotated[Path, typer.Option(metavar="DIR", help="The folder for the pictures.")] = Path("samples"),
    batch: Annotated[int, typer.Option(metavar="N", min=1, help="Pictures at a time.")] = 16,
    device: Annotated[str, typer.Option(metavar="NAME", help="auto, cpu or cuda.")] = "auto",
    metadata: Annotated[
        bool, typer.Option("--metadata/--no-metadata", help="Write prompt, seed and settings into each PNG.")
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Say what was made as JSON.")] = False,
) -> None:
    """Make pictures with a model.

    With the same settings, a picture depends on its prompt and its seed alone. Nothing in the folder is overwritten:
    numbers count on from those that are there. With --image, each picture begins from that one. With --from PICTURE,
    what is not said is taken from what that picture says of itself.
    """
    from carrara.diffusion.generator import DiffusionGenerator
    from carrara.store import load
    from carrara.train.recipe import choose_device

    voice = Voice(silent=as_json)
    if guidance is not None and not math.isfinite(guidance):
        raise RecipeError(f"--guidance is {guidance}; give a finite number, such as 2.5")
    shape = _size(size)
    require_writable(out)
    words = [*(prompts or ()), *_read_prompts(prompts_file)]
    said, computed = _told_by(computed or ())
    where = choose_device(device)
    system = load(model, controls=controls or ())
    updates = [_updated(system, model, word, voice) for word in loras or ()]
    for part in (system.text, system.generator, system.decoder):
        part.to(where)  # type: ignore[union-attr]
    asked: dict[str, Any] = {
        "steps": steps,
        "sampler": sampler,
        "guidance": guidance,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "truncation": truncation,
    }
    own = None
    fingerprints = _fingerprints(system) if metadata or said is not None else {}
    if said is not None:
        beside = {"seed": seed, "negative": negative, "size": shape, "candidates": candidates}
        told = said.with_given({"prompt": words[0] if words else None, **asked, **beside}, voice)
        own = said.settings_of(system, voice)
        if said.settings is None and isinstance(system.generator, DiffusionGenerator):
            asked = {name: told[name] for name in asked}
        seed, negative, shape, candidates = (told[name] for name in beside)
        shape = None if shape == tuple(system.decoder.pictures.shape[-2:]) else shape
        words = words or ([told["prompt"]] if told["prompt"] else [])
        said.tell(fingerprints, voice)
        clip_skip = _further(said, system) if clip_skip is None else clip_skip
    candidates = candidates or 1
    wanted = _wanted(system, model, words, count, seed or 0, out)
    settings = sampling_settings(system, asked, negative, voice, own)
    begun = read_inputs(system, Files(image, mask, inputs or (), computed), shape, voice)
    if own is not None and "image" not in begun.inputs and hasattr(settings, "editing"):
        settings = dataclasses.replace(settings, editing=system.generator.settings.editing)  # type: ignore[attr-defined]
    if strength is not None and "image" in begun.inputs and "image" not in system.edits(begun.inputs):
        raise RecipeError("--strength has no effect: this model was trained to make what a mask covers; leave it out")
    settings = editing_settings(settings, strength, begun.inputs, voice)
    settings = follow_settings(settings, follow or (), begun, system)
    _tell_what_is_not_read(system, [picture.prompt for picture in wanted], negative, voice)

    _check_candidates(system, candidates, wanted)
    if trace and not isinstance(system.generator, DiffusionGenerator):
        raise RecipeError("--trace shows noise that comes off, and this generator is no diffusion model; leave it out")
    decoding = decoding_settings(system, augmentation, tile, voice)
    reading = _reading(system, clip_skip)
    asking = _Asked(model, negative, shape, out, metadata, trace, begun, candidates, decoding, reading)
    job = _Job(system, settings, asking, fingerprints)
    if updates:
        job.facts["lora"] = updates
    batch = max(1, batch // candidates)
    began = time.monotonic()
    with Counter(len(wanted), "pictures", silent=as_json) as counter:
        for first in range(0, len(wanted), batch):
            job.make(wanted[first : first + batch], lambda share, done=first: counter.at(done + share))
    seconds = time.monotonic() - began
    sheet = job.sheet() if len(wanted) > 1 else None
    if as_json:
        voice.json(
            {
                "model": model,
                "device": str(where),
                "settings": job.described,
                "lora": updates,
                "pictures": job.made,
                "sheet": sheet,
                "seconds": seconds,
                "warnings": voice.warnings,
            }
        )
        return
    for made in job.made[:20]:
        voice.say(f"{made['path']}")
    if len(job.made) > 20:
        voice.say(f"... and {len(job.made) - 20} more")
    for traced in job.traced[:5]:
        voice.say(f"{traced}")
    if sheet:
        voice.say(f"{sheet}")
    number = f"{len(job.made)} picture{'s' if len(job.made) > 1 else ''}"
    voice.say(f"{number} in {duration(seconds)} ({len(job.made) / max(seconds, 1e-9):.3g} a second) on {where}.")


def _updated(system: System, model: Path, word: str, voice: Voice) -> dict[str, Any]:
    """Puts low-rank updates into a system's weights; FILE, or FILE:X for X times as much. What is told of them."""
    from carrara.store.lora import apply_lora

    name, strength = word, 1.0
    if not Path(word).exists() and ":" in word:
        name, _, text = word.rpartition(":")
        try:
            strength = float(text)
        except ValueError:
            raise RecipeError(f'--lora {word}: "{text}" is no number; give FILE, or FILE:0.8') from None
        if not math.isfinite(strength):
            raise RecipeError(f"--lora {word}: give a finite number, such as 0.8")
    if Path(name).is_dir():
        name = str(Path(name) / "lora.safetensors")
    said = apply_lora(system, model, Path(name), strength=strength)
    if warning := said.pop("warning", None):
        voice.warn(warning)
    return said


def _told_by(words: Sequence[str]) -> tuple[Said | None, list[str]]:
    """What the picture of `--from PICTURE` says of itself, and the words that are NAME=FILE."""
    pictures = [word for word in words if "=" not in word or Path(word).is_file()]
    if len(pictures) > 1:
        raise RecipeError(f"--from {pictures[0]} and --from {pictures[1]}: settings are those of one picture; give one")
    said = read_said(Path(pictures[0])) if pictures else None
    return said, [word for word in words if word not in pictures]


def _further(said: Said, system: System) -> int | None:
    """How many layers are skipped for a picture like that, beside those that this text encoder always skips."""
    if said.skipped is None or not getattr(system.text, "skips", 0):
        return None
    further = max(0, said.skipped - int(getattr(system.text, "skipped", 0)))
    return further or None


def _reading(system: System, skip: int | None) -> Reading | None:
    from carrara.text import Reading

    if not skip:
        return None
    if skip > (most := getattr(system.text, "skips", 0)):
        raise RecipeError(f"--clip-skip {skip}: of this model's text encoder {most} layers can be skipped")
    return Reading(skip=skip)


def _size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    if not (found := re.fullmatch(r"([1-9]\d{0,4})(?:[xX×]([1-9]\d{0,4}))?", text.strip())):
        raise RecipeError(f'--size is "{text}"; give height and width in pixels, such as 64x96')
    height, width = found[1], found[2] or found[1]
    return int(height), int(width)


def _read_prompts(path: Path | None) -> list[str]:
    if path is None:
        return []
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError:
        raise RecipeError(f"{path} is not UTF-8 text; give a file with one prompt a line") from None
    found = [line.strip() for line in lines if line.strip()]
    if not found:
        raise RecipeError(f"{path} has no prompts; give a file with one prompt a line")
    return found


def _wanted(
    system: System, model: Path, prompts: Sequence[str], count: int, seed: int, out: Path
) -> tuple[_Wanted, ...]:
    from carrara.text import Labels, Unconditional

    if not prompts:
        if isinstance(system.text, Labels):
            raise RecipeError(
                f"name a class of this model, or several: {', '.join(system.text.names[:20])}"
                + (", ..." if len(system.text.names) > 20 else "")
            )
        if not isinstance(system.text, Unconditional):
            raise RecipeError(f'give a prompt, such as: carrara sample {model} "a red apple"')
        prompts = [""]
    number = _next_number(out)
    every = [prompt for prompt in prompts for _ in range(count)]
    return tuple(_Wanted(number + i, prompt, seed + i) for i, prompt in enumerate(every))


def _next_number(out: Path) -> int:
    try:
        names = [path.name for path in out.iterdir()] if out.is_dir() else []
    except OSError as error:
        raise StorageError(f"{out} cannot be read: {error.strerror or error}") from error
    found = [int(match[1]) for name in names if (match := _NUMBERED.match(name))]
    return max(found, default=-1) + 1


def _check_candidates(system: System, candidates: int, wanted: Sequence[_Wanted]) -> None:
    if candidates > 1 and not (hasattr(system.text, "match") and all(picture.prompt for picture in wanted)):
        raise RecipeError(
            f"--candidates {candidates}: they are told apart by how well they fit the prompt, for which this needs a "
            "prompt, and a text encoder that has learnt from pictures; leave it out"
        )


def _tell_what_is_not_read(system: System, prompts: Sequence[str], negative: str | None, voice: Voice) -> None:
    """Prompts that are cut, and those of which the text encoder has never read a word."""
    every = list(dict.fromkeys([*prompts, *([negative] if negative else [])]))
    shown = [prompt if len(prompt) < 60 else prompt[:57] + "..." for prompt in every]
    for cut in system.text.cuts(every) if hasattr(system.text, "cuts") else ():
        voice.warn(f'"{shown[cut.row]}" is longer than this model reads; not read: "{cut.lost}"')
    for strange in system.text.unknown(every) if hasattr(system.text, "unknown") else ():
        near = f"; words that it knows: {', '.join(strange.near)}" if strange.near else ""
        voice.warn(
            f'no word of "{shown[strange.row]}" was in the captions that this model learnt from, so that the picture '
            f"will have little to do with it{near}"
        )


# --- making them ------------------------------------------------------------------------------------------------------


def _guided(settings: SamplingSettings) -> bool:
    """Whether what was believed is another thing than the mean E[x | x_t] under the prompt."""
    from carrara.diffusion.guidance import Contrast, Plain

    guidance = settings.guidance
    return not (isinstance(guidance, Plain) or (isinstance(guidance, Contrast) and guidance.scale == 1))


class _Job:
    """The pictures of one command, made batch by batch."""

    def __init__(self, system: System, settings: Any, asked: _Asked, fingerprints: dict[str, str]) -> None:
        from carrara.config import describe
        from carrara.store import kinds

        self.system, self.settings, self.asked = system, settings, asked
        inputs = system.edits(asked.begun.inputs)
        strides = getattr(system.generator, "strides", None)
        self.strides = strides(settings, inputs) if strides else 1
        self.described: dict[str, Any] = describe(settings, kinds()) if settings is not None else {}
        if asked.negative:
            self.described["negative"] = asked.negative
        if asked.size:
            self.described["size"] = list(asked.size)
        if asked.candidates > 1:
            self.described["candidates"] = asked.candidates
        if asked.decoding is not None:
            self.described["decoding"] = describe(asked.decoding, kinds())
        if asked.reading is not None:
            self.described["reading"] = describe(asked.reading, kinds())
        self.described |= asked.begun.files
        self.brief = self._brief()
        self.facts: dict[str, Any] = {"model": asked.model.resolve().name, **_versions(), "components": fingerprints}
        self.made: list[dict[str, Any]] = []
        self.traced: list[Path] = []
        self._shown: list[Tensor] = []

    def make(self, wanted: Sequence[_Wanted], at: Any) -> None:
        """Makes the pictures of one batch and writes them; `at` is told how many are done, in parts of a picture."""
        kept: list[Step] = []
        chosen = {round(i * (self.strides - 1) / (_TRACED - 1)) + 1 for i in range(_TRACED)}
        for frame in self._frames(wanted):
            at(len(wanted) * min(frame.step, self.strides) / (self.strides + 1))
            if self.asked.trace and frame.trace is not None and frame.step in chosen:
                kept.append(frame.trace)
            if frame.final:
                self._write(wanted, frame)
        if kept:
            self._write_traces(wanted, kept)
        at(len(wanted))

    def _frames(self, wanted: Sequence[_Wanted]) -> Iterator[Frame]:
        frames = self.system.generate(
            [picture.prompt for picture in wanted],
            seeds=[picture.seed for picture in wanted],
            negative=[self.asked.negative or ""] * len(wanted),
            size=self.asked.size,
            inputs=self.asked.begun.inputs,
            settings=self.settings,
            candidates=self.asked.candidates,
            decoding=self.asked.decoding,
            reading=self.asked.reading,
        )
        try:
            yield from frames
        except ValueError as error:
            if self.asked.size is None or isinstance(error, CarraraError):
                raise
            height, width = self.asked.size
            raise RecipeError(f"--size {height}x{width}: {error}") from error

    def _write(self, wanted: Sequence[_Wanted], frame: Frame) -> None:
        from carrara.data import write_picture

        try:
            pixels = frame.pixels()
        except NonFiniteError as error:
            seeds = f"seeds {wanted[0].seed} to {wanted[-1].seed}" if len(wanted) > 1 else f"seed {wanted[0].seed}"
            diffusion = hasattr(self.settings, "sampler")
            other = "a lower --guidance, more --steps or another --sampler" if diffusion else "the model's own settings"
            raise NonFiniteError(f"{error} ({seeds}), and nothing of this batch was written; try {other}") from error
        ending = ".png" if pixels.shape[-1] <= 4 else ".tiff"
        for picture, one in zip(wanted, pixels, strict=True):
            text = self._texts(picture, one.shape[:2]) if self.asked.metadata else None
            path = self.asked.out / (picture.stem + ending)
            write_picture(path, one, text)
            self.made.append({**dataclasses.asdict(picture), "path": path})
        room = max(0, _SHEET - sum(map(len, self._shown)))
        if room:
            self._shown.append(frame.images[:room].detach().float().cpu())

    def _brief(self) -> dict[str, Any]:
        """The settings that other programs know, too."""
        brief: dict[str, Any] = {}
        if "sampler" in self.described and hasattr(self.settings, "guidance"):
            guidance = guidance_scale(self.settings.guidance)
            brief = {"steps": self.strides, "sampler": self.described["sampler"]["kind"], "guidance": guidance}
        if self.asked.reading is not None:
            brief["skipped"] = self.asked.reading.skip + int(getattr(self.system.text, "skipped", 0))
        return brief

    def _texts(self, picture: _Wanted, size: Sequence[int]) -> dict[str, str]:
        """What is written into a picture: A1111's parameters, which other programs read, and our own record."""
        from carrara.data.parameters import Parameters, write_parameters

        negative, brief = self.asked.negative or "", self.brief
        pairs: dict[str, Any] = {}
        if "steps" in brief:
            sampler = a1111_sampler(brief["sampler"])
            pairs = {"Steps": brief["steps"], "Sampler": sampler, "CFG scale": f"{brief['guidance']:g}"}
        pairs |= {"Seed": picture.seed, "Size": f"{size[1]}x{size[0]}"}
        pairs |= {"Model hash": self.facts["components"]["generator"], "Model": self.facts["model"]}
        if "skipped" in brief:
            pairs["Clip skip"] = brief["skipped"] + 1
        pairs["Version"] = f"carrara {self.facts['carrara']}"
        written = {name: str(value) for name, value in pairs.items()}
        record = {
            "format_version": FORMAT_VERSION,
            "prompt": picture.prompt,
            "negative": negative,
            "seed": picture.seed,
            "size": [int(side) for side in size],
            **brief,
            "settings": self.described,
            **self.facts,
        }
        return {
            PARAMETERS: write_parameters(Parameters(picture.prompt, negative, written)),
            RECORD: json.dumps(record, ensure_ascii=False),
        }

    def _write_traces(self, wanted: Sequence[_Wanted], steps: Sequence[Step]) -> None:
        """A strip for each picture: x_t above what was believed, from noise to data, and their times as JSON."""
        import torch

        from carrara.evaluate.grid import fit_scale, png_bytes, sheet
        from carrara.store.atomic import write_file

        @torch.no_grad()
        def seen(z: Tensor) -> Tensor:
            return self.system.decoder.preview(z).float().cpu().clamp(-1, 1)

        # x_t of processes whose noise grows without bound would be all white and black: shown at unit scale.
        noisy = [seen(step.x / step.x.std().clamp(min=1.0)) for step in steps]
        believed = [seen(step.estimate.mean) for step in steps]
        for i, picture in enumerate(wanted):
            rows = torch.stack([*(x[i] for x in noisy), *(x[i] for x in believed)])
            labels = [f"t = {step.t:.3f}" for step in steps] + [""] * len(steps)
            image = sheet(rows, len(steps), labels=labels, scale=fit_scale(rows.shape[-1]))
            path = self.asked.out / f"{picture.stem}-trace.png"
            write_file(path, png_bytes(image))
            facts = {
                "prompt": picture.prompt,
                "seed": picture.seed,
                "settings": self.described,
                "times": [step.t for step in steps],
                "rows": ["x_t", "guided estimate" if _guided(self.settings) else "E[x | x_t]"],
            }
            write_file(path.with_suffix(".json"), (json.dumps(facts, indent=2, ensure_ascii=False) + "\n").encode())
            self.traced.append(path)

    def sheet(self) -> Path:
        """All pictures (the first 256 of very many) on one sheet."""
        import torch

        from carrara.evaluate.grid import fit_scale, png_bytes, sheet
        from carrara.store.atomic import write_file

        images = torch.cat(self._shown)
        prompts = [made["prompt"] for made in self.made[: len(images)]]
        scale = fit_scale(images.shape[-1])
        columns = min(8, math.ceil(math.sqrt(len(images))))
        image = sheet(images, columns, labels=prompts if any(prompts) else None, scale=scale)
        path = self.asked.out / f"sheet-{self.made[0]['number']:04}.png"
        write_file(path, png_bytes(image))
        return path


def _fingerprints(system: System) -> dict[str, str]:
    from carrara.fingerprint import fingerprint

    parts: dict[str, Any] = {"text": system.text, "generator": system.generator, "decoder": system.decoder}
    return {role: fingerprint(part.state_dict()) for role, part in parts.items()}


def _versions() -> dict[str, str]:
    import torch

    from carrara import __version__

    return {"carrara": __version__, "torch": str(torch.__version__)}
