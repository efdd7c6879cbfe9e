"""`carrara import`: a published file of weights becomes a component that everything else here reads."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from carrara.cli.folders import require_writable
from carrara.cli.measuring import opened
from carrara.cli.voice import Voice, command
from carrara.errors import RecipeError, StorageError

if TYPE_CHECKING:
    from carrara.data.pictures import Pictures
    from carrara.decoder import Latents

__all__ = ["import_"]

_LOOKED_AT = 256  # pictures whose reconstruction is measured


def import_(
    source: Annotated[Path, typer.Argument(metavar="FILE", help="A file of weights.", show_default=False)],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The component folder to make.", show_default=False)],
    size: Annotated[int, typer.Option(metavar="N", min=1, help="Side of the pictures it is for, in pixels.")] = 64,
    data: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Pictures on which its latents' scale is measured.")
    ] = None,
    cache: Annotated[
        Path | None, typer.Option(metavar="DIR", help="For the prepared pictures.  [default: ~/.cache/carrara]")
    ] = None,
) -> None:
    """Make a decoder of a tiny autoencoder in TAESD's layout, as safetensors or as torch.save writes it.

    With --data its latents are brought to mean 0 and scale 1, which a generator that is trained on them wants; without,
    they stay as they were published, which those of other programs make.
    """
    from carrara.data import DataSettings
    from carrara.decoder import Latents
    from carrara.evaluate.card import card
    from carrara.nn.tiny_autoencoder import TinyAutoencoder
    from carrara.store import save_component
    from carrara.store.weights import read_tensors

    voice = Voice()
    require_writable(out)
    if (out / "component.json").exists():
        raise StorageError(f"{out} is a component already; choose another folder")
    tensors = read_tensors(source)
    try:
        network = TinyAutoencoder.of(tensors)
    except ValueError as error:
        raise RecipeError(f"{source}: {error}") from error
    if size % network.down:
        raise RecipeError(f"--size {size}: this autoencoder folds {network.down} pixels; give a multiple of them")
    latents = Latents(network, size=size).eval()
    facts: dict[str, Any] = {"imported_from": source.name}
    if data is not None:
        settings = DataSettings(str(data), size=size, channels=network.channels)
        facts |= _measured(latents, opened(settings, cache, voice))
    about: dict[str, Any] = {name: facts[name] for name in ("figures", "trained_on") if name in facts}
    about["what"] = f"A tiny autoencoder in TAESD's layout, imported from {source.name}."
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
