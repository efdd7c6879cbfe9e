"""`carrara import`: what other programs have made becomes a model or a component that everything else here reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from carrara.cli.folders import require_writable
from carrara.cli.measuring import opened
from carrara.cli.voice import Voice, command, mebibytes
from carrara.errors import RecipeError, StorageError

if TYPE_CHECKING:
    from carrara.data.pictures import Pictures
    from carrara.decoder import Latents
    from carrara.nn.tiny_autoencoder import TinyAutoencoder

__all__ = ["import_"]

_TINY = 256 << 20  # bytes of a file above which it is no tiny autoencoder
_LOOKED_AT = 256  # pictures whose reconstruction is measured
_DECODERS = ("AutoencoderKL", "AutoencoderTiny")
Precision = Literal["float32", "bfloat16", "float16"]
Family = Literal["sd1", "sd2", "sdxl", "sdxl-refiner", "sd3", "flux"]
Prediction = Literal["epsilon", "v_prediction"]


def import_(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SOURCE",
            help="A pipeline's folder, a model in one file, or an autoencoder's folder or file.",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to make.", show_default=False)],
    size: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Side of the pictures in pixels.  [default: its own, or 64]")
    ] = None,
    precision: Annotated[
        Precision | None,
        typer.Option(help="Of the networks' weights.  [default: as they are stored]", show_default=False),
    ] = None,
    variant: Annotated[
        str | None, typer.Option(metavar="NAME", help="Of the weights in a folder, such as fp16.")
    ] = None,
    family: Annotated[
        Family | None, typer.Option(help="Of a model in one file, where its weights do not tell.", show_default=False)
    ] = None,
    prediction: Annotated[
        Prediction | None,
        typer.Option(help="Of a Stable Diffusion 2 in one file: what it predicts.", show_default=False),
    ] = None,
    tokenizers: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="For a model in one file: where its tokenizers' files are.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="For an autoencoder: pictures that its scale is measured on.")
    ] = None,
    cache: Annotated[
        Path | None, typer.Option(metavar="DIR", help="For the prepared pictures.  [default: ~/.cache/carrara]")
    ] = None,
) -> None:
    """Make a model of a Stable Diffusion pipeline or file, or a decoder of an autoencoder. Nothing is downloaded.

    A decoder's latents stay as they were published, which is what generators of other programs make; with --data they
    are brought to mean 0 and scale 1, which a generator that is trained on them wants.
    """
    voice = Voice()
    require_writable(out)
    if not source.exists():
        raise StorageError(f"{source} does not exist; name a folder or a file on this machine")
    if (out / "component.json").exists():
        raise StorageError(f"{out} is a component already; choose another folder")
    autoencoder = _autoencoder(source, size, precision, family)
    if autoencoder is None:
        if data is not None:
            raise RecipeError("--data is for an autoencoder alone; a whole model keeps the scale that it was made with")
        _import_model(source, out, size, precision, variant, family, prediction, tokenizers, voice)
        return
    for option, value in (("--variant", variant), ("--prediction", prediction), ("--tokenizers", tokenizers)):
        if value is not None:
            raise RecipeError(f"{option} is for a whole model, and {source} is an autoencoder; leave it out")
    _import_decoder(source, out, autoencoder, data, cache, voice)


def _import_model(
    source: Path,
    out: Path,
    size: int | None,
    precision: Precision | None,
    variant: str | None,
    family: Family | None,
    prediction: Prediction | None,
    tokenizers: Path | None,
    voice: Voice,
) -> None:
    import torch

    from carrara.store.diffusers.model import import_model

    found = import_model(
        source,
        out,
        variant=variant,
        dtype=getattr(torch, precision) if precision else None,
        size=size,
        family=family,
        prediction=prediction,
        tokenizers=tokenizers,
    )
    for note in found.notes:
        voice.warn(note)
    decoder: Any = found.system.decoder
    parts: Any = (found.system.text, found.system.generator, decoder)
    parameters = sum(tensor.numel() for part in parts for tensor in part.parameters())
    total = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    height, width = decoder.pictures.shape[-2:]
    voice.say(f"{out} is a whole model, {found.pipeline.kind}: {parameters:,} parameters, {mebibytes(total)},")
    voice.say(f"for pictures of {height} x {width} pixels. It is written back by:  {command('export', out, 'FOLDER')}")
    voice.say("Next:  " + command("sample", out, "a prompt"))


# --- an autoencoder alone ---------------------------------------------------------------------------------------------


def _autoencoder(source: Path, size: int | None, precision: Precision | None, family: Family | None) -> Latents | None:
    """The decoder that a folder or a file of an autoencoder is; None for anything else."""
    import torch

    from carrara.decoder import Latents
    from carrara.store.diffusers.folder import read_part
    from carrara.store.diffusers.pipeline import read_decoder
    from carrara.store.diffusers.single import read_single

    dtype = getattr(torch, precision) if precision else None
    if source.is_dir():
        try:
            kind = json.loads((source / "config.json").read_text(encoding="utf-8")).get("_class_name")
        except (OSError, ValueError, AttributeError):
            return None
        return read_decoder(read_part(source, "diffusers", kind), size=size, dtype=dtype) if kind in _DECODERS else None
    network = _tiny(source) if source.stat().st_size <= _TINY else "it is too large"
    if isinstance(network, str):
        try:
            pipeline = read_single(source, family=family)
        except (RecipeError, StorageError) as error:
            raise type(error)(f"{error}. It is no tiny autoencoder either: {network}") from error
        return read_decoder(pipeline.part("vae"), size=size, dtype=dtype) if set(pipeline.parts) == {"vae"} else None
    side = 64 if size is None else size
    if side % network.down:
        raise RecipeError(f"--size {side}: this autoencoder folds {network.down} pixels; give a multiple of them")
    return Latents(network, size=side).eval()


def _tiny(source: Path) -> TinyAutoencoder | str:
    """The tiny autoencoder of a file, or why it is none."""
    from carrara.nn.tiny_autoencoder import TinyAutoencoder
    from carrara.store.weights import read_tensors

    tensors = read_tensors(source)
    try:
        return TinyAutoencoder.of(tensors)
    except ValueError as error:
        return str(error)


def _import_decoder(
    source: Path, out: Path, latents: Latents, data: Path | None, cache: Path | None, voice: Voice
) -> None:
    from carrara.data import DataSettings
    from carrara.evaluate.card import card
    from carrara.store import save_component

    facts: dict[str, Any] = {"imported_from": source.resolve().name}
    if data is not None:
        channels, side, _ = latents.pictures.shape
        settings = DataSettings(str(data), size=side, channels=channels)
        facts |= _measured(latents, opened(settings, cache, voice))
    about: dict[str, Any] = {name: facts[name] for name in ("figures", "trained_on") if name in facts}
    about["what"] = f"An autoencoder, imported from {source.resolve().name}."
    save_component(out, "decoder", latents, facts=facts, card=card({"name": out.resolve().name, **about}))
    shape = " x ".join(map(str, latents.space.shape))
    voice.say(f"{out} is a decoder of latents {shape}, {sum(p.numel() for p in latents.parameters()):,} parameters.")
    for name, value in facts.get("figures", {}).items():
        voice.say(f"{name} {value:.4g}")
    voice.say(f'A generator\'s recipe names it, as task.decoder = "{out}".')
    voice.say("Next:  " + command("show", out))


def _measured(latents: Latents, pictures: Pictures) -> dict[str, Any]:
    """Measures the scale, and how near its reconstructions come; what is known after it."""
    import torch

    from carrara.train.tasks.autoencoder import measure_latents
    from carrara.train.tasks.pictures import likeness

    measure_latents(latents, pictures)
    rows = (pictures.heldout if len(pictures.heldout) else pictures.train)[:_LOOKED_AT]
    with torch.no_grad():
        images = pictures.tensor(rows)
        made = torch.cat([latents.decode(latents.encode(some)) for some in images.split(32)])
    scale = f"its latents were measured on {len(pictures.train)} pictures"
    return {"trained_on": f"unknown; {scale}", "figures": likeness(images, made)}
