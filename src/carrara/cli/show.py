"""`carrara show`: what a model or a part of one is, what it was trained on, and what was measured."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from carrara.cli.voice import Voice, mebibytes, table

if TYPE_CHECKING:
    from carrara.types import Space

__all__ = ["show"]


def show(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL", help="A model folder, or the folder of one part.", show_default=False)
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Say it as JSON.")] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Compare every file with the hash it was saved with.")
    ] = False,
) -> None:
    """Say what a model is made of, what it was trained on, and what it measured."""
    from carrara.store import ROLES

    whole = (model / "model.json").is_file()
    if whole:
        from carrara.store import load

        load(model)  # says what does not fit
        parts = [_part(_folder(model, role), role, verify) for role in ROLES]
        parts += [_part(model / name, "control", verify) for name in _described(model).get("controls", ())]
    else:
        parts = [_part(model, None, verify)]
    voice = Voice(silent=as_json)
    if as_json:
        voice.json(
            {"path": model, "kind": "system" if whole else "component", "verified": verify or None, "parts": parts}
        )
        return
    if whole:
        total = sum(part["parameters"] for part in parts)
        voice.say(f"{model} is a whole model of {total:,} parameters: text encoder -> generator -> decoder.")
    for part in parts:
        voice.say()
        voice.say(_sentences(part))
    if verify:
        voice.say()
        voice.say("Every file is as it was saved.")


def _folder(model: Path, role: str) -> Path:
    return model / str(_described(model)[role])


def _described(model: Path) -> dict[str, Any]:
    from carrara.store.atomic import read_json

    return read_json(model / "model.json")


def _part(folder: Path, role: str | None, verify: bool) -> dict[str, Any]:
    from carrara.store import load_component, read_component

    component = read_component(folder, role)
    module = load_component(folder, component.role, verify=verify)
    spaces = {"space": module.space}
    for name in ("reads", "pictures"):
        if getattr(module, name, None) is not None:
            spaces[name] = getattr(module, name)
    return {
        "path": folder,
        "role": component.role,
        "kind": component.config.get("kind"),
        "parameters": sum(parameter.numel() for parameter in module.parameters()),
        "bytes": sum(int(entry["bytes"]) for entry in component.files.values()),
        "spaces": {name: _space(space) for name, space in spaces.items()},
        "networks": _networks(component.config),
        "settings": component.config.get("settings"),
        "names": component.config.get("names"),
        "inputs": _inputs(module),
        "facts": component.facts,
    }


def _inputs(module: Any) -> list[str]:
    """What it is told beside text."""
    own = getattr(module, "condition", None)  # a control's
    return [one.name for one in (getattr(module, "conditions", ()) if own is None else (own,))]


def _space(space: Space) -> dict[str, Any]:
    return {name: value for name, value in space._asdict().items() if value is not None}


def _networks(config: Mapping[str, Any]) -> dict[str, Any]:
    """The tables of a component's networks, however deep."""
    found: dict[str, Any] = {}
    for name, value in config.items():
        if name in ("network", "picture", "autoencoder", "quantizer") and isinstance(value, Mapping):
            found[name] = value
        elif isinstance(value, list) and name == "decoders":  # of a chain
            for number, part in enumerate(value, start=1):
                found |= {f"decoder {number}: {inner}": shown for inner, shown in _networks(part).items()}
        elif isinstance(value, Mapping) and name == "denoiser":
            found |= _networks(value)
            found |= {
                key: value[key]
                for key in ("parameterization", "process", "level")
                if isinstance(value.get(key), Mapping)
            }
    return found


_MATHEMATICS = ("process", "parameterization", "level")
_NAMES = {"text": "text encoder", "generator": "generator", "decoder": "decoder", "control": "control"}
_SPACES = {"space": "makes", "reads": "reads", "pictures": "pictures"}


def _sentences(part: Mapping[str, Any]) -> str:
    rows: list[tuple[str, object]] = [("parameters", f"{part['parameters']:,} ({mebibytes(part['bytes'])} on disk)")]
    for name, space in part["spaces"].items():
        label = "works in" if name == "space" and part["role"] != "text" else _SPACES[name]
        rows.append((label, _space_words(space)))
    if part["names"]:
        rows.append(("classes", ", ".join(part["names"][:20]) + (", ..." if len(part["names"]) > 20 else "")))
    if part["inputs"]:
        rows.append(("told of", ", ".join(part["inputs"])))
    rows += [(name, _inline(value)) for name, value in part["networks"].items()]
    if part["settings"]:
        rows += [(f"sampling: {name}", _inline(value)) for name, value in part["settings"].items()]
    facts = dict(part["facts"])
    if "trained_on" in facts:
        rows.append(("trained on", facts.pop("trained_on")))
    for name, value in facts.items():
        rows.append((name.replace("_", " "), _inline(value) if isinstance(value, Mapping | list) else value))
    return f"{_NAMES[part['role']]}: {part['kind']}, in {part['path']}\n{table(rows)}"


def _space_words(space: Mapping[str, Any]) -> str:
    shape = " x ".join(map(str, space.get("shape", ())))
    more = [f"vocabulary {space['vocabulary']}"] if "vocabulary" in space else []
    more += [f"fingerprint {space['fingerprint']}"] if "fingerprint" in space else []
    return " ".join(filter(None, (space["kind"], shape))) + (f" ({', '.join(more)})" if more else "")


def _inline(value: Any) -> str:
    if isinstance(value, Mapping):
        inside = ", ".join(f"{name} {_inline(item)}" for name, item in value.items() if name != "kind")
        kind = str(value.get("kind", ""))
        return f"{kind} ({inside})" if kind and inside else kind or inside
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_inline, value)) + "]"
    return f"{value:g}" if isinstance(value, float) else str(value)
