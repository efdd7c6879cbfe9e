"""Configuration: an object is configured by its constructor, and a file says the same as a table with a `kind`.

The constructor's signature is the one definition: names, types and defaults are read from it, strictly (a string is
never a number, an unknown key is never ignored), and every problem of a file is reported at once with file, line,
dotted path, what was given, what is allowed and the nearest name.

    frozen dataclasses        configurable as they are
    nn.Modules                inherit `Configured`, which remembers the constructor's arguments
    functions (samplers)      their keyword-only parameters with a default; built as functools.partial

What a `kind` may be is a literal table (store/kinds.py) handed in as `Kinds`; files never name code.
"""

from __future__ import annotations

import copy
import dataclasses
import difflib
import functools
import importlib
import inspect
import json
import re
import tomllib
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin

from carrara.errors import RecipeError
from carrara.types import Asset

__all__ = [
    "Configured",
    "Kinds",
    "Problem",
    "Role",
    "build",
    "describe",
    "dump_toml",
    "locate",
    "override",
    "parameters",
    "read_toml",
]


class Configured:
    """Remembers its constructor's arguments, defaults included, in `config`; for classes that are not dataclasses."""

    config: dict[str, Any]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "__init__" not in cls.__dict__:
            return
        init = cls.__dict__["__init__"]
        signature = inspect.signature(init)

        @functools.wraps(init)
        def recording(self: Any, *args: Any, **kwargs: Any) -> None:
            if "config" not in self.__dict__:  # the outermost constructor's call is the configuration
                bound = signature.bind(self, *args, **kwargs)
                bound.apply_defaults()
                self.__dict__["config"] = dict(list(bound.arguments.items())[1:])
            init(self, *args, **kwargs)

        cls.__init__ = recording  # type: ignore[method-assign]


@dataclasses.dataclass(frozen=True)
class Role:
    """Marks a parameter's type as one of the registered roles: `Annotated[nn.Module, Role("network")]`."""

    name: str


class Problem(NamedTuple):
    """One thing that is wrong in a table: where (a dotted path) and what, in one sentence."""

    path: tuple[str, ...]
    message: str


class Kinds:
    """What may stand behind a `kind`: role -> {kind: "module:name"}, and which base class means which role."""

    def __init__(self, tables: Mapping[str, Mapping[str, str]], bases: Mapping[str, str]) -> None:
        self._tables = {role: dict(table) for role, table in tables.items()}
        self._bases = dict(bases)

    def names(self, role: str) -> tuple[str, ...]:
        """The kinds of a role, sorted."""
        return tuple(sorted(self._tables[role]))

    def resolve(self, role: str, kind: str) -> Callable[..., Any]:
        """The class or function of a kind; ValueError naming the nearest kind when there is none."""
        table = self._tables[role]
        if kind not in table:
            raise ValueError(f'"{kind}" is no kind of {role}; {_allowed(kind, table)}')
        module, _, name = table[kind].partition(":")
        return typing.cast(Callable[..., Any], getattr(importlib.import_module(module), name))

    def kind_of(self, target: object) -> tuple[str, str]:
        """The (role, kind) of a class or function."""
        where = _address(target)
        for role, table in self._tables.items():
            for kind, address in table.items():
                if address == where:
                    return role, kind
        raise ValueError(
            f"{where} is not a registered kind, so no file can name it; register it as a `carrara.kinds` entry point"
        )

    def role_of(self, annotation: Any) -> str | None:
        """The role that an annotation asks for, or None for a plain value."""
        for mark in getattr(annotation, "__metadata__", ()):
            if isinstance(mark, Role):
                return mark.name
        return self._bases.get(_address(annotation)) if isinstance(annotation, type) else None


def _address(target: object) -> str:
    return f"{getattr(target, '__module__', '?')}:{getattr(target, '__qualname__', '?')}"


def _allowed(given: str, names: Sequence[str] | Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(given, list(names), n=1, cutoff=0.5)
    listed = ", ".join(sorted(names)) or "none"
    return f'did you mean "{near[0]}"? allowed: {listed}' if near else f"allowed: {listed}"


class Parameter(NamedTuple):
    """One configurable parameter of a constructor."""

    annotation: Any
    default: Any  # inspect.Parameter.empty when it must be given

    @property
    def required(self) -> bool:
        return self.default is inspect.Parameter.empty


@functools.cache
def parameters(target: Callable[..., Any]) -> Mapping[str, Parameter]:
    """The configurable parameters of a class or function, by name, in order."""
    # a dataclass's own hints: those of its fields are read where each base says them
    own = isinstance(target, type) and not dataclasses.is_dataclass(target)
    hints = typing.get_type_hints(target.__init__ if own else target, include_extras=True)
    found = {}
    for name, parameter in inspect.signature(target).parameters.items():
        runtime = not isinstance(target, type) and (
            parameter.kind is not parameter.KEYWORD_ONLY or parameter.default is parameter.empty
        )
        if not runtime and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            found[name] = Parameter(hints.get(name, Any), parameter.default)
    return types.MappingProxyType(found)


def build(annotation: Any, table: Any, kinds: Kinds, *, assets: Mapping[str, bytes] | None = None) -> Any:
    """The object that a table describes; `assets` are the files that it may name.

    Raises RecipeError (with all problems, in `.problems`) when anything in the table is wrong.
    """
    problems: list[Problem] = []
    value = _build(annotation, table, kinds, assets or {}, (), problems)
    if problems:
        error = RecipeError("\n".join(f"{'.'.join(p.path) or 'recipe'}: {p.message}" for p in problems))
        error.problems = problems  # type: ignore[attr-defined]
        raise error
    return value


_BAD = object()


def _build(
    annotation: Any,
    value: Any,
    kinds: Kinds,
    assets: Mapping[str, bytes],
    path: tuple[str, ...],
    problems: list[Problem],
) -> Any:
    inner, optional = _optional(annotation)
    if value is None and optional:
        return None
    role = kinds.role_of(inner)
    plain = get_args(inner)[0] if get_origin(inner) is Annotated else inner
    if role is not None:
        target = _target(role, value, kinds, path, problems)
        return _BAD if target is None else _construct(target, value, kinds, assets, path, problems, skip=("kind",))
    if isinstance(plain, type) and (dataclasses.is_dataclass(plain) or issubclass(plain, Configured)):
        if not isinstance(value, Mapping):
            problems.append(Problem(path, f"given {value!r}, expected a table"))
            return _BAD
        named = "kind" in value and _kind_line(plain, kinds).get("kind") == value["kind"]
        return _construct(plain, value, kinds, assets, path, problems, skip=("kind",) if named else ())
    if plain is Asset:
        if not isinstance(value, str) or value not in assets:
            problems.append(Problem(path, f"given {value!r}, expected the name of a file beside this one"))
            return _BAD
        return Asset(value, assets[value])
    items = get_args(plain)
    if get_origin(plain) is tuple and len(items) == 2 and items[1] is ... and _tabular(items[0], kinds):
        if not isinstance(value, list | tuple):
            problems.append(Problem(path, f"given {value!r}, expected a list of tables"))
            return _BAD
        each = [_build(items[0], v, kinds, assets, (*path, str(i)), problems) for i, v in enumerate(value)]
        return tuple(each)
    return _plain(plain, value, path, problems)


def _tabular(annotation: Any, kinds: Kinds) -> bool:
    return kinds.role_of(annotation) is not None or dataclasses.is_dataclass(annotation)


def _optional(annotation: Any) -> tuple[Any, bool]:
    if get_origin(annotation) in (typing.Union, types.UnionType):
        rest = [a for a in get_args(annotation) if a is not type(None)]
        if len(rest) < len(get_args(annotation)) and len(rest) == 1:
            return rest[0], True
    return annotation, False


def _target(
    role: str, value: Any, kinds: Kinds, path: tuple[str, ...], problems: list[Problem]
) -> Callable[..., Any] | None:
    if not isinstance(value, Mapping) or not isinstance(value.get("kind"), str):
        allowed = ", ".join(kinds.names(role))
        problems.append(Problem(path, f'given {value!r}, expected a table with `kind = "..."`; kinds: {allowed}'))
        return None
    try:
        return kinds.resolve(role, value["kind"])
    except ValueError as error:
        problems.append(Problem((*path, "kind"), str(error)))
        return None


def _construct(
    target: Callable[..., Any],
    table: Mapping[str, Any],
    kinds: Kinds,
    assets: Mapping[str, bytes],
    path: tuple[str, ...],
    problems: list[Problem],
    skip: tuple[str, ...] = (),
) -> Any:
    known = parameters(target)
    before = len(problems)
    for key in table:
        if key not in known and key not in skip:
            problems.append(Problem((*path, key), f"no such setting; {_allowed(key, known)}"))
    arguments = {}
    for name, parameter in known.items():
        if name in table:
            arguments[name] = _build(parameter.annotation, table[name], kinds, assets, (*path, name), problems)
        elif parameter.required:
            problems.append(Problem((*path, name), "missing; it has no default"))
    if len(problems) > before:
        return _BAD
    try:
        if isinstance(target, type):
            return target(**arguments)
        return functools.partial(target, **arguments)
    except ValueError as error:
        problems.append(Problem(path, str(error)))
        return _BAD


@functools.cache
def _adapter(annotation: Any) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(annotation)


def _exact(annotation: Any, value: Any) -> Any:
    """The value where it is of the annotated type beyond doubt, else _BAD: pydantic then judges, and words the error.

    Most files are right, and importing pydantic takes longer than loading a network.
    """
    annotation, optional = _optional(annotation)
    items = get_args(annotation)
    if value is None:
        return None if optional else _BAD
    if annotation in (bool, float, int, str):
        return value if type(value) is annotation else _BAD
    if get_origin(annotation) is Literal:
        return next((item for item in items if type(item) is type(value) and item == value), _BAD)
    if get_origin(annotation) is tuple and isinstance(value, list | tuple):
        each = items[:1] * len(value) if items[1:] == (...,) else items
        exact = [_exact(*pair) for pair in zip(each, value, strict=True)] if len(each) == len(value) else [_BAD]
        return _BAD if _BAD in exact else tuple(exact)
    if isinstance(value, Mapping) and hasattr(annotation, "_field_defaults"):  # a NamedTuple
        hints = typing.get_type_hints(annotation)
        given = {name: _exact(hints.get(name), item) for name, item in value.items()}
        whole = given.keys() | annotation._field_defaults.keys() == hints.keys() and _BAD not in given.values()
        return annotation(**given) if whole else _BAD
    return _BAD


def _plain(annotation: Any, value: Any, path: tuple[str, ...], problems: list[Problem]) -> Any:
    if (exact := _exact(annotation, value)) is not _BAD:
        return exact
    from pydantic import ValidationError

    try:
        # JSON mode is strict about types and yet reads a list as a tuple, which is what a file can say.
        return _adapter(annotation).validate_json(json.dumps(value), strict=True)
    except (ValidationError, TypeError) as error:
        expected = getattr(annotation, "__name__", None) if isinstance(annotation, type) else None
        if isinstance(error, ValidationError):
            detail = "; ".join(dict.fromkeys(e["msg"][0].lower() + e["msg"][1:] for e in error.errors()))
        else:
            detail = str(error)
        problems.append(Problem(path, f"given {value!r}, expected {expected or str(annotation)} ({detail})"))
        return _BAD


def describe(value: Any, kinds: Kinds, assets: dict[str, bytes] | None = None) -> Any:
    """The table that `build` would make `value` from; files that it holds are put into `assets`.

    Raises ValueError for an object whose class is no registered kind.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Asset):
        return value.name if assets is None else _kept(value, assets)
    if isinstance(value, Mapping):
        return {str(key): describe(item, kinds, assets) for key, item in value.items()}
    if isinstance(value, functools.partial):
        return {"kind": kinds.kind_of(value.func)[1], **_described(value.func, value.keywords, kinds, assets)}
    if inspect.isfunction(value):
        return {"kind": kinds.kind_of(value)[1]}
    if isinstance(value, Configured):
        return {"kind": kinds.kind_of(type(value))[1], **_described(type(value), value.config, kinds, assets)}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        arguments = {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.init}
        return {**_kind_line(type(value), kinds), **_described(type(value), arguments, kinds, assets)}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        named = zip(value._fields, value, strict=True)
        return {name: describe(item, kinds, assets) for name, item in named if item is not None}
    if isinstance(value, list | tuple):
        return [describe(item, kinds, assets) for item in value]
    raise ValueError(f"{type(value).__name__} cannot be written to a file: {value!r}")


def _kept(asset: Asset, assets: dict[str, bytes]) -> str:
    """The name that a file is kept under: its own, or where another file has that one, with a number."""
    stem, dot, ending = asset.name.partition(".")
    names = (asset.name, *(f"{stem}-{number}{dot}{ending}" for number in range(2, len(assets) + 3)))
    name = next(name for name in names if assets.get(name, asset.data) == asset.data)
    assets[name] = asset.data
    return name


def _kind_line(cls: type, kinds: Kinds) -> dict[str, str]:
    try:
        return {"kind": kinds.kind_of(cls)[1]}
    except ValueError:
        return {}  # settings of one fixed class need no kind


def _described(
    target: Callable[..., Any], arguments: Mapping[str, Any], kinds: Kinds, assets: dict[str, bytes] | None
) -> dict[str, Any]:
    table = {}
    for name, parameter in parameters(target).items():
        if name not in arguments:
            continue
        if arguments[name] is not None:
            table[name] = _described_as(parameter.annotation, arguments[name], kinds, assets)
        elif parameter.default is not None:  # TOML has no null: leaving it out would say something else
            raise ValueError(f"{_address(target)}: a file cannot say `{name}` = None, which is not its default")
    return table


def _described_as(annotation: Any, value: Any, kinds: Kinds, assets: dict[str, bytes] | None) -> Any:
    inner, _ = _optional(annotation)
    if isinstance(value, Configured) and type(value) is inner and kinds.role_of(inner) is None:
        return _described(inner, value.config, kinds, assets)  # only this class can stand here: no kind
    return describe(value, kinds, assets)


def read_toml(path: Path) -> tuple[dict[str, Any], str]:
    """A TOML file's table and its text; RecipeError with file and line when it cannot be read."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: cannot be read as text: {error}") from error
    try:
        return tomllib.loads(text), text
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"{path}: not valid TOML: {error}") from error


def dump_toml(table: Mapping[str, Any]) -> str:
    """The table as TOML."""
    import tomli_w

    return tomli_w.dumps(table)


def override(table: dict[str, Any], settings: Sequence[str]) -> dict[str, Any]:
    """The table with `a.b=c` settings put in; values are TOML, and what is no TOML is a string."""
    changed = copy.deepcopy(table)
    for setting in settings:
        dotted, equals, text = setting.partition("=")
        keys = [key.strip() for key in dotted.split(".")]
        if not equals or not all(keys):
            raise RecipeError(f"--set {setting}: expected name.of.setting=value, such as train.batch=32")
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            value = text
        place = changed
        for key in keys[:-1]:
            place = place.setdefault(key, {})
            if not isinstance(place, dict):
                raise RecipeError(f"--set {setting}: `{key}` is a value, not a table")
        place[keys[-1]] = value
    return changed


_NAME = r"""(?:"[^"]*"|'[^']*'|[\w-]+)"""
_NAMES = rf"{_NAME}(?:\s*\.\s*{_NAME})*"
_KEY = re.compile(rf"^\s*({_NAMES})\s*=")
_HEADER = re.compile(rf"^\s*(\[\[?)\s*({_NAMES})\s*\]\]?\s*(?:#.*)?$")


def locate(text: str, path: Sequence[str]) -> int | None:
    """The line (from 1) where a TOML text says the dotted path, or the nearest table above it; None if nowhere."""
    best: tuple[int, int] | None = None
    table: tuple[str, ...] = ()
    arrays: dict[tuple[str, ...], int] = {}  # the place of each array of tables -> its entries so far
    depth = 0
    for number, line in enumerate(text.splitlines(), start=1):
        inside, depth = depth > 0, depth + _opened(line)
        if inside:  # the lines of an array
            continue
        if header := _HEADER.match(line):
            table = _numbered(_keys(header[2]), arrays, new=header[1] == "[[")
            here = table
        elif key := _KEY.match(line):
            here = (*table, *_keys(key[1]))
        else:
            continue
        if tuple(path[: len(here)]) == here and (best is None or len(here) > best[0]):
            best = (len(here), number)
    return best[1] if best else None


def _opened(line: str) -> int:
    """How many more brackets a line opens than it closes, strings and comments apart."""
    bare = re.sub(r"""#.*|"(?:[^"\\]|\\.)*"|'[^']*'""", "", line)
    return bare.count("[") - bare.count("]")


def _numbered(keys: tuple[str, ...], arrays: dict[tuple[str, ...], int], *, new: bool) -> tuple[str, ...]:
    """The path of a header, with the index of every array of tables that it goes through."""
    here: tuple[str, ...] = ()
    for depth, key in enumerate(keys, start=1):
        here = (*here, key)
        if new and depth == len(keys):
            arrays[here] = arrays.get(here, 0) + 1
        if here in arrays:
            here = (*here, str(arrays[here] - 1))
    return here


def _keys(dotted: str) -> tuple[str, ...]:
    return tuple(part.strip().strip("\"'") for part in dotted.split("."))
