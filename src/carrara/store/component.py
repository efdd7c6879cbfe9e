"""Component folders and model folders: what a part is and its weights, readable by anybody, executable by nobody.

    component.json       format_version, role, kind and config (what `config.build` reads), files with size and SHA-256
    weights.safetensors  every parameter and buffer, by its name in the module
    tokenizer.json ...   files that the config names
    README.md            the model card

    model.json           names three component folders (text, generator, decoder) and those of `controls`, if any

Each component is complete alone. Weights are written first and component.json last, each by an atomic rename, so a
folder with a component.json is whole. Nothing in a file is ever executed: kinds come from a closed table.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from carrara.conditions import controlled
from carrara.config import Role, build, describe
from carrara.decoder.chain import Chain
from carrara.errors import CarraraError, RecipeError, StorageError
from carrara.store.atomic import new_directory, read_json, storage_errors, write_file
from carrara.store.diffusers.kept import KEPT
from carrara.store.kinds import kinds
from carrara.store.safetensors_io import load_tensors, save_tensors
from carrara.system import System

__all__ = [
    "Component",
    "ROLES",
    "assemble",
    "load",
    "load_component",
    "read_component",
    "save_component",
    "save_system",
]

ROLES = ("text", "generator", "decoder")
_WORDS = {"text": "text encoder", "generator": "generator", "decoder": "decoder", "control": "control"}
_FORMAT_VERSION = 1
_COMPONENT, _MODEL, _WEIGHTS, _CARD = "component.json", "model.json", "weights.safetensors", "README.md"
_LOG = "log.jsonl"  # of a run, which is a component when it is done
_SYSTEM = "system"  # where `carrara demo` and the commands that are suggested put a model, beside its parts


class Component(NamedTuple):
    """A component folder's description, without its weights."""

    path: Path
    role: str
    config: dict[str, Any]
    files: dict[str, dict[str, Any]]
    facts: dict[str, Any]


def save_component(
    folder: Path, role: str, module: nn.Module, *, facts: Mapping[str, Any] | None = None, card: str | None = None
) -> None:
    """Writes a component into `folder` (which may hold other things, such as a run's log).

    `facts` is whatever should be known of it: what it was trained on and how, what it measured.
    Raises NonFiniteError for weights that are not finite and StorageError when the disk refuses.
    """
    if role not in _WORDS:
        raise ValueError(f'"{role}" is no role of a component; roles are {", ".join(_WORDS)}')
    assets: dict[str, bytes] = {}
    config = describe(module, kinds(), assets)
    with storage_errors(f"{folder} cannot be written"):
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / f"{_WEIGHTS}.tmp"
        save_tensors(temporary, {name: tensor.detach().cpu() for name, tensor in module.state_dict().items()})
        temporary.replace(folder / _WEIGHTS)
        for name, data in assets.items():
            write_file(folder / name, data)
        if card is not None:
            write_file(folder / _CARD, card.encode())
        body = {
            "format_version": _FORMAT_VERSION,
            "role": role,
            "config": config,
            "files": {name: _measure(folder / name) for name in (_WEIGHTS, *sorted(assets))},
            "facts": dict(facts or {}),
        }
        write_file(folder / _COMPONENT, (json.dumps(body, indent=2, ensure_ascii=False) + "\n").encode())


def _measure(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _read_own(path: Path) -> dict[str, Any]:
    body = read_json(path)
    if not isinstance(version := body.get("format_version"), int):
        raise StorageError(f"{path} has no format_version; it is not one of Carrara's files")
    if version > _FORMAT_VERSION:
        raise StorageError(
            f"{path} has format version {version} and this Carrara reads up to {_FORMAT_VERSION}; update Carrara"
        )
    return body


def read_component(folder: Path, role: str | None = None) -> Component:
    """A component's description, its files checked for presence and size; StorageError or RecipeError if not right."""
    if not (folder / _COMPONENT).is_file():
        raise _no_component(folder, role)
    body = _read_own(folder / _COMPONENT)
    found, config, files = body.get("role"), body.get("config"), body.get("files")
    if found not in _WORDS or not isinstance(config, dict) or not isinstance(files, dict) or _WEIGHTS not in files:
        raise StorageError(f"{folder / _COMPONENT} lacks its role, config or files; the folder is damaged")
    if role is not None and found != role:
        raise RecipeError(f"{folder} is a {_WORDS[found]}; expected a {_WORDS[role]}")
    for name, measured in files.items():
        if Path(name).name != name or name in ("", ".", ".."):
            raise StorageError(f"{folder / _COMPONENT} names the file {name!r}; only plain file names are allowed")
        path = folder / name
        if not path.is_file() or path.is_symlink():
            raise StorageError(f"{path} is missing; copy the whole component folder")
        expected = measured.get("bytes") if isinstance(measured, dict) else None
        if path.stat().st_size != expected:
            raise StorageError(
                f"{path} has {path.stat().st_size} bytes instead of {expected}; it is damaged or cut off"
            )
    return Component(folder, found, config, files, body.get("facts") or {})


def _no_component(folder: Path, role: str | None) -> CarraraError:
    """Why a folder is no component, and what to give instead."""
    if (folder / _MODEL).is_file():
        part = f"its {_WORDS[role]} is {folder / role}" if role else "name one of its parts"
        return RecipeError(f"{folder} is a whole model; {part}")
    if (folder / "checkpoints").is_dir():
        return StorageError(
            f"{folder} has no component.json: its training has not finished; "
            "the same `carrara train` command goes on with it"
        )
    return _absent(folder, "component.json", "; a part is made by `carrara train` or `carrara import`")


def _absent(folder: Path, name: str, advice: str = "") -> StorageError:
    """For a folder that is not there, holds a model one level down, or lacks the file of that name."""
    if not folder.exists():
        return StorageError(f"{folder} does not exist")
    if (folder / _SYSTEM / _MODEL).is_file():
        return StorageError(f"{folder} has no {name}; the model is in {folder / _SYSTEM}")
    return StorageError(f"{folder} has no {name}{advice}")


_FILLS = frozenset({Tensor.fill_, Tensor.normal_, Tensor.uniform_, Tensor.zero_})


class _Unfilled(TorchFunctionMode):
    """Leaves parameters unfilled while a module is built whose weights then come from a file.

    Drawing them takes ten times as long as reading them, and every one is replaced: `load_state_dict` is strict. What
    is no `nn.Parameter`, such as a buffer that no file holds, is made as ever.
    """

    def __torch_function__(
        self, function: Any, types: Any, arguments: tuple[Any, ...] = (), keywords: dict[str, Any] | None = None
    ) -> Any:
        keywords = keywords or {}
        target = arguments[0] if arguments else keywords.get("tensor")
        fills = function in _FILLS or getattr(function, "__module__", None) == nn.init.__name__
        return target if fills and isinstance(target, nn.Parameter) else function(*arguments, **keywords)


def load_component(folder: str | Path, role: str | None = None, *, verify: bool = False) -> Any:
    """The module of a component folder, in eval mode; `verify` also compares every file's SHA-256.

    Raises StorageError for a damaged folder, RecipeError for another role or a config that does not build.
    """
    component = read_component(Path(folder), role)
    assets = {}
    for name, measured in component.files.items():
        if name != _WEIGHTS or verify:
            if _measure(component.path / name)["sha256"] != measured.get("sha256"):
                raise StorageError(
                    f"{component.path / name} has other contents than when it was written; it is damaged"
                )
            if name != _WEIGHTS:
                assets[name] = (component.path / name).read_bytes()
    try:
        with _Unfilled():
            module = build(Annotated[nn.Module, Role(component.role)], component.config, kinds(), assets=assets)
    except CarraraError as error:
        raise RecipeError(f"{component.path / _COMPONENT}: {error}") from error
    tensors = load_tensors(component.path / _WEIGHTS)
    try:
        module.load_state_dict(tensors, strict=True, assign=True)
    except RuntimeError as error:
        lines = str(error).splitlines()
        raise StorageError(
            f"{component.path / _WEIGHTS} does not fit its component.json: {' '.join(lines[1:4])}"
        ) from error
    return module.eval().requires_grad_(False)


def assemble(
    folder: Path,
    *,
    generator: Path,
    text: Path | None = None,
    decoder: Path | Sequence[Path] | None = None,
    controls: Sequence[Path] = (),
) -> System:
    """Copies three components into a model folder and returns the system. Parts that do not fit are refused first.

    `text` and `decoder` may be left out for a generator that was trained without them: its own folder has them then.
    Several decoders become a chain, the generator's first: a cascade. `controls` are components that were trained for
    this generator.
    """
    generator = Path(generator)
    read_component(generator, "generator")  # what is said below is true of a trained generator
    decoders = (Path(decoder),) if isinstance(decoder, str | Path) else tuple(map(Path, decoder or ()))
    sources: dict[str, tuple[Path, ...]] = {
        "text": (text or generator / "text",),
        "generator": (generator,),
        "decoder": decoders or (generator / "decoder",),
    }
    for role, given in (("text", text), ("decoder", decoders)):
        if not given and not (sources[role][0] / _COMPONENT).is_file():
            raise RecipeError(
                f"{generator} was trained with a {_WORDS[role]} that has a folder of its own; name it with --{role}"
            )
    parts = {
        role: _joined([load_component(path, role, verify=True) for path in paths]) for role, paths in sources.items()
    }
    system = _system(parts, controls)
    of_controls = {f"control-{load_component(path, 'control').condition.name}": (Path(path),) for path in controls}
    body: dict[str, Any] = {"controls": list(of_controls)} if of_controls else {}
    times = {role: [_training_seconds(path) for path in paths] for role, paths in sources.items()}
    if spent := {role: round(sum(s for s in some if s), 1) for role, some in times.items() if None not in some}:
        body["training_seconds"] = spent
    with _new_model(folder, body) as place:
        for part, paths in {**sources, **of_controls}.items():
            (place / part).mkdir()
            if len(paths) > 1:
                _save_chain(place / part, parts[part], paths)
            else:
                _copy(paths[0], place / part)
        others = {path.parent for role in ("text", "decoder") for path in sources[role]}
        if len(others) == 1 and (kept := others.pop() / KEPT).is_dir():  # what an imported model is written back with
            shutil.copytree(kept, place / KEPT)
    return system


@contextmanager
def _new_model(folder: Path, body: Mapping[str, Any]) -> Iterator[Path]:
    """Where a model folder is made: there whole afterwards, with `body` in its model.json, or not at all."""
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not (folder / _MODEL).is_file())):
        raise StorageError(f"{folder} exists and is no model folder; choose another")
    body = {"format_version": _FORMAT_VERSION, **{role: role for role in ROLES}, **body}
    with storage_errors(f"{folder} cannot be written"):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with new_directory(folder) as place:
            yield place
            (place / _MODEL).write_text(json.dumps(body, indent=2) + "\n", encoding="utf-8")


def save_system(
    folder: Path,
    system: System,
    *,
    facts: Mapping[str, Mapping[str, Any]] | None = None,
    cards: Mapping[str, str] | None = None,
    beside: Callable[[Path], None] = lambda place: None,
) -> None:
    """Writes a system as a model folder, with the facts and the card of each part by its role.

    `beside` writes whatever else belongs there. Raises NonFiniteError for weights that are not finite and StorageError
    for a folder that is something else, or when the disk refuses.
    """
    with _new_model(folder, {}) as place:
        for role in ROLES:
            part = getattr(system, role)
            save_component(place / role, role, part, facts=(facts or {}).get(role), card=(cards or {}).get(role))
        beside(place)


def _copy(source: Path, place: Path) -> None:
    for name in (*read_component(source).files, _COMPONENT, _CARD):
        if (source / name).is_file():
            shutil.copyfile(source / name, place / name)


def _joined(modules: Sequence[Any]) -> Any:
    """The part itself, or several decoders as one."""
    if len(modules) == 1:
        return modules[0]
    try:
        return Chain(tuple(modules)).eval()
    except ValueError as error:
        raise RecipeError(f"these decoders make no cascade: {error}") from error


def _save_chain(folder: Path, chain: nn.Module, sources: Sequence[Path]) -> None:
    """Writes decoders as one component, with all that is known of each."""
    facts: dict[str, Any] = {"parts": {path.resolve().name: read_component(path).facts for path in sources}}
    cards = [(path / _CARD).read_text(encoding="utf-8") for path in sources if (path / _CARD).is_file()]
    save_component(folder, "decoder", chain, facts=facts, card="\n".join(cards) or None)


def _training_seconds(folder: Path) -> float | None:
    """How long a run took, by the last line of its log; None where it has none, or did not come to its end."""
    try:
        *_, last = (folder / _LOG).read_text(encoding="utf-8").splitlines()
        event = json.loads(last)
        return round(float(event["seconds"]), 1) if event["event"] == "done" else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _system(parts: dict[str, Any], controls: Sequence[str | Path]) -> System:
    """The system of three parts, its generator with the controls of these folders."""
    if controls:
        found = [load_component(path, "control", verify=True) for path in controls]
        parts = {**parts, "generator": controlled(parts["generator"], found).eval()}
    return System(**parts)


def load(path: str | Path, *, controls: Sequence[str | Path] = ()) -> System:
    """The system of a model folder: `carrara.load(path).generate(["a red apple"], seeds=[0])`.

    `controls` are folders of controls that join those of the model. Raises StorageError when the folder is no whole
    model folder, RecipeError when its parts do not fit.
    """
    folder = Path(path)
    if not (folder / _MODEL).is_file():
        if (folder / _COMPONENT).is_file():
            role = read_component(folder).role
            raise RecipeError(f"{folder} is a single {_WORDS[role]}; put a system together with `carrara assemble`")
        raise _absent(folder, _MODEL, "; a model folder is made by `carrara assemble`")
    body = _read_own(folder / _MODEL)
    parts = {role: load_component(_inside(folder, body.get(role), role), role) for role in ROLES}
    own = body.get("controls", [])
    if not isinstance(own, list):
        raise StorageError(f"{folder / _MODEL} has {own!r} as its controls; expected a list of folders beside it")
    return _system(parts, [*(_inside(folder, name, "control") for name in own), *controls])


def _inside(folder: Path, name: object, role: str) -> Path:
    """The folder of a part of a model."""
    if not isinstance(name, str) or Path(name).name != name or name in ("", ".", ".."):
        raise StorageError(f"{folder / _MODEL} names {name!r} as its {role}; expected a folder beside it")
    return folder / name
