"""Configuration: strict, complete in its complaints, and the same there and back."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import pytest
from torch import nn

from carrara.config import (
    Configured,
    Kinds,
    Problem,
    Role,
    build,
    describe,
    dump_toml,
    locate,
    override,
    parameters,
    read_toml,
)
from carrara.errors import RecipeError
from carrara.types import Asset, Space

HERE = __name__


class Shape:
    """A role by its base class."""


@dataclasses.dataclass(frozen=True)
class Round(Shape):
    radius: float = 1.0
    name: str = "disc"


@dataclasses.dataclass(frozen=True)
class Square(Shape):
    side: int
    rounded: bool = False

    def __post_init__(self) -> None:
        if self.side < 1:
            raise ValueError(f"side = {self.side}; expected at least 1")


def grow(x: float, *, factor: float = 2.0, times: int = 1, rng: int) -> float:
    return x * factor**times + rng


def shrink(x: float, *, factor: float = 0.5, rng: int) -> float:
    return x * factor + rng


@dataclasses.dataclass(frozen=True)
class Plain:
    """Settings of one fixed class, which need no kind."""

    steps: int = 3
    rate: float = 0.1
    limit: float | None = None
    mode: Literal["fast", "good"] = "good"
    sizes: tuple[int, ...] = (1, 2)
    flag: bool = False
    title: str = ""


@dataclasses.dataclass(frozen=True)
class Whole:
    shape: Shape
    plain: Plain = Plain()
    grower: Annotated[Any, Role("grower")] = dataclasses.field(default=functools.partial(grow))
    maybe: Shape | None = None
    shapes: tuple[Shape, ...] = ()
    plains: tuple[Plain, ...] = ()


class Net(Configured, nn.Module):
    def __init__(self, *, width: int = 4, shape: Shape = Round(), words: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.layer = nn.Linear(width, width)


class Deeper(Net):
    def __init__(self, *, depth: int = 2) -> None:
        super().__init__(width=2 * depth)


class Holder(Configured, nn.Module):
    def __init__(
        self, network: Annotated[nn.Module, Role("network")], vocabulary: Asset, *, scale: float = 1.0
    ) -> None:
        super().__init__()
        self.network, self.vocabulary = network, vocabulary


KINDS = Kinds(
    {
        "shape": {"round": f"{HERE}:Round", "square": f"{HERE}:Square"},
        "grower": {"grow": f"{HERE}:grow", "shrink": f"{HERE}:shrink"},
        "network": {"net": f"{HERE}:Net", "deeper": f"{HERE}:Deeper"},
        "holder": {"holder": f"{HERE}:Holder"},
    },
    {f"{HERE}:Shape": "shape", f"{HERE}:Holder": "holder"},
)


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kinds are found by importing this module by its name."""
    import sys

    monkeypatch.setitem(sys.modules, HERE, sys.modules.get(HERE) or _this())


def _this() -> Any:
    import types

    module = types.ModuleType(HERE)
    module.__dict__.update(globals())
    return module


def problems(annotation: Any, table: Any) -> dict[str, str]:
    with pytest.raises(RecipeError) as caught:
        build(annotation, table, KINDS)
    found: list[Problem] = caught.value.problems  # type: ignore[attr-defined]
    assert all(".".join(p.path) in str(caught.value) and p.message in str(caught.value) for p in found)
    return {".".join(p.path): p.message for p in found}


# Building


def test_defaults_and_values() -> None:
    assert build(Plain, {}, KINDS) == Plain()
    table = {"steps": 7, "rate": 2, "limit": 0.5, "mode": "fast", "sizes": [3, 4, 5], "flag": True, "title": "a"}
    built = build(Plain, table, KINDS)
    assert built == Plain(7, 2.0, 0.5, "fast", (3, 4, 5), True, "a")
    assert isinstance(built.rate, float) and isinstance(built.sizes, tuple)


@pytest.mark.parametrize(
    "key, value",
    [
        ("steps", "3"),
        ("steps", 3.5),
        ("steps", True),
        ("steps", None),
        ("rate", "0.1"),
        ("rate", False),
        ("limit", "none"),
        ("mode", "slow"),
        ("mode", 1),
        ("sizes", 3),
        ("sizes", ["1"]),
        ("sizes", [1.5]),
        ("flag", 1),
        ("flag", "true"),
        ("title", 3),
    ],
)
def test_types_are_strict(key: str, value: Any) -> None:
    found = problems(Plain, {key: value})
    assert list(found) == [key]
    assert repr(value) in found[key] and "expected" in found[key]


def test_none_where_it_is_allowed() -> None:
    assert build(Plain, {"limit": None}, KINDS).limit is None
    assert build(Whole, {"shape": {"kind": "round"}, "maybe": None}, KINDS).maybe is None


def test_unknown_keys_name_the_nearest() -> None:
    found = problems(Plain, {"stpes": 3, "zzz": 1})
    assert 'did you mean "steps"?' in found["stpes"]
    assert "did you mean" not in found["zzz"] and "flag, limit, mode" in found["zzz"]


def test_all_problems_at_once() -> None:
    table = {
        "shape": {"kind": "sqare", "side": 1},
        "plain": {"steps": "x", "rat": 1.0},
        "grower": {"kind": "grow", "factor": "big"},
        "maybe": {"kind": "square"},
        "shapes": [{"kind": "round", "radius": 1}, {"kind": "round", "radius": "wide"}],
        "plains": [{}, {"stps": 1}],
        "extra": 1,
    }
    found = problems(Whole, table)
    assert set(found) == {
        "shape.kind",
        "plain.steps",
        "plain.rat",
        "grower.factor",
        "maybe.side",
        "shapes.1.radius",
        "plains.1.stps",
        "extra",
    }
    assert 'did you mean "square"' in found["shape.kind"]
    assert found["maybe.side"] == "missing; it has no default"


def test_kinds() -> None:
    built = build(Whole, {"shape": {"kind": "square", "side": 3}, "shapes": [{"kind": "round"}]}, KINDS)
    assert built.shape == Square(3) and built.shapes == (Round(),)
    assert KINDS.names("shape") == ("round", "square")
    for wrong in ({}, {"side": 3}, {"kind": 3}, "square", 3, None):
        assert (
            'expected a table with `kind = "..."`; kinds: round, square' in problems(Whole, {"shape": wrong})["shape"]
        )
    assert "expected a table" in problems(Whole, {"shape": {"kind": "round"}, "plain": 3})["plain"]
    assert "list of tables" in problems(Whole, {"shape": {"kind": "round"}, "shapes": {"kind": "round"}})["shapes"]


def test_what_a_constructor_refuses_is_a_problem_of_its_table() -> None:
    assert problems(Whole, {"shape": {"kind": "square", "side": 0}}) == {"shape": "side = 0; expected at least 1"}


def test_functions_take_their_settings_and_leave_the_rest() -> None:
    built = build(Annotated[Any, Role("grower")], {"kind": "grow", "factor": 3.0}, KINDS)
    assert built(2.0, rng=1) == 7.0
    assert list(parameters(grow)) == ["factor", "times"]
    found = problems(Annotated[Any, Role("grower")], {"kind": "grow", "rng": 1, "x": 2.0})
    assert set(found) == {"rng", "x"}  # what is handed in at run time is no setting


def test_assets_are_files_beside() -> None:
    table = {"network": {"kind": "net"}, "vocabulary": "words.json"}
    built = build(Holder, {"kind": "holder", **table}, KINDS, assets={"words.json": b"{}"})
    assert built.vocabulary == Asset("words.json", b"{}")
    with pytest.raises(RecipeError, match="name of a file beside"):
        build(Holder, {"kind": "holder", **table}, KINDS, assets={})


# Configured


def test_configured_remembers_its_arguments() -> None:
    assert Net().config == {"width": 4, "shape": Round(), "words": ()}
    assert Net(width=6).config["width"] == 6
    assert Deeper(depth=3).config == {"depth": 3}  # the outermost constructor's, not its base's
    net = Net()
    assert "config" not in net.state_dict() and list(net.children()) == [net.layer]
    with pytest.raises(TypeError):
        Net(4)  # type: ignore[misc]


# Describing


ROUND_TRIPS: list[Callable[[], Any]] = [
    lambda: Whole(Round(2.5)),
    lambda: Whole(
        Square(3, rounded=True), Plain(limit=0.5, sizes=(), mode="fast"), functools.partial(grow, factor=3.0)
    ),
    lambda: Whole(Round(), maybe=Square(1), shapes=(Round(), Square(2)), plains=(Plain(), Plain(9))),
    lambda: Whole(Round(math.inf), grower=functools.partial(shrink, factor=0.25)),
]


@pytest.mark.parametrize("make", ROUND_TRIPS)
def test_there_and_back(make: Callable[[], Any]) -> None:
    value = make()
    table = describe(value, KINDS)
    again = build(Whole, table, KINDS)
    assert dataclasses.replace(again, grower=None) == dataclasses.replace(value, grower=None)
    assert again.grower.func is value.grower.func
    assert again.grower(1.0, rng=0) == value.grower(1.0, rng=0)
    assert describe(again, KINDS) == {**table, "grower": {**describe(again.grower, KINDS)}}


@pytest.mark.parametrize("make", ROUND_TRIPS)
def test_there_and_back_through_toml(make: Callable[[], Any], tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(dump_toml(describe(make(), KINDS)), encoding="utf-8")
    table, text = read_toml(path)
    assert build(Whole, table, KINDS).shape == make().shape
    assert "kind" in text


def test_modules_there_and_back() -> None:
    holder = Holder(Deeper(depth=3), Asset("words.json", b"[1]"), scale=2.0)
    assets: dict[str, bytes] = {}
    table = describe(holder, KINDS, assets)
    assert table == {
        "kind": "holder",
        "network": {"kind": "deeper", "depth": 3},
        "vocabulary": "words.json",
        "scale": 2.0,
    }
    assert assets == {"words.json": b"[1]"}
    again = build(Holder, table, KINDS, assets=assets)
    assert describe(again, KINDS) == table and isinstance(again.network, Deeper)
    dump_toml(table)


def test_a_part_of_one_fixed_class_needs_no_kind() -> None:
    class Inside(Configured):
        def __init__(self, *, size: int = 1) -> None: ...

    class Outside(Configured):
        def __init__(self, inside: Inside, spare: Inside | None = None) -> None: ...

    Outside.__init__.__annotations__.update(inside=Inside, spare=Inside | None)
    own = Kinds({"outside": {"outside": f"{HERE}:{Outside.__qualname__}"}}, {})
    table = describe(Outside(Inside(size=3)), own)
    assert table == {"kind": "outside", "inside": {"size": 3}}
    again = build(Outside, {"inside": {"size": 3}, "spare": {}}, own)
    assert again.config["inside"].config == {"size": 3} and again.config["spare"].config == {"size": 1}
    with pytest.raises(RecipeError, match='did you mean "size"'):
        build(Outside, {"inside": {"sise": 3}}, own)


def test_a_plain_function_is_itself() -> None:
    assert describe(shrink, KINDS) == {"kind": "shrink"}
    assert describe(functools.partial(shrink), KINDS) == {"kind": "shrink"}


def test_named_tuples_leave_out_what_is_none() -> None:
    space = Space("latent", (4, 8, 8))
    table = describe(space, KINDS)
    assert table == {"kind": "latent", "shape": [4, 8, 8]}
    dump_toml({"space": table})
    assert build(Space, table, KINDS) == space
    full = Space("latent", (4, 8, 8), fingerprint="ab")
    assert build(Space, describe(full, KINDS), KINDS) == full
    assert "shap" in str(problems(Space, {"kind": "latent", "shap": [4]}))


def test_a_registered_class_may_stand_where_only_it_can() -> None:
    class Fixed(NamedTuple):
        square: Square

    @dataclasses.dataclass(frozen=True)
    class Owner:
        side: int = 1

    assert build(Square, describe(Square(3), KINDS), KINDS) == Square(3)
    assert "kind" in problems(Square, {"kind": "round", "side": 3})
    assert "kind" in problems(Owner, {"kind": "owner"})


def test_what_no_file_can_say_is_refused() -> None:
    class Unknown(Configured):
        def __init__(self) -> None: ...

    @dataclasses.dataclass(frozen=True)
    class Off:
        rate: float | None = 0.1

    with pytest.raises(ValueError, match="not a registered kind"):
        describe(Unknown(), KINDS)
    with pytest.raises(ValueError, match="cannot be written"):
        describe(object(), KINDS)
    with pytest.raises(ValueError, match="`rate` = None, which is not its default"):
        describe(Off(None), KINDS)
    assert describe(Off(), KINDS) == {"rate": 0.1}


# Files


@pytest.mark.parametrize("sampler", ["ancestral", "ddim", "dpmpp_2m", "heun"])
def test_the_real_kinds(sampler: str, tmp_path: Path) -> None:
    """A generator with everything in it, through TOML and back."""
    from carrara import diffusion as d
    from carrara.nn import UNet
    from carrara.store.kinds import kinds

    settings = d.SamplingSettings(
        functools.partial(getattr(d, sampler)),
        functools.partial(d.karras, steps=7, rho=5.0),
        d.Clip(d.ClassifierFree(3.0), limit=2.0),
    )
    network = UNet(in_channels=2, out_channels=2, channels=8, multipliers=(1,), blocks=1, attention=(), groups=4)
    denoiser = d.Denoiser(network, d.Process(d.CosineBetas(100)), d.Karras(0.4), d.IntegerStep(100))
    generator = d.DiffusionGenerator(denoiser, Space("pixels", (2, 8, 8)), settings=settings)
    path = tmp_path / "component.toml"
    path.write_text(dump_toml(describe(generator, kinds())), encoding="utf-8")
    table, _ = read_toml(path)
    again = build(Annotated[nn.Module, Role("generator")], table, kinds())
    assert describe(again, kinds()) == table
    assert again.denoiser.process == denoiser.process
    assert again.denoiser.parameterization == denoiser.parameterization
    assert again.settings.guidance == settings.guidance and again.times() == generator.times()


def test_read_toml_says_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_text("a = 1\nb = = 2\n", encoding="utf-8")
    with pytest.raises(RecipeError, match=r"bad\.toml.*line 2"):
        read_toml(path)
    with pytest.raises(RecipeError, match="cannot be read"):
        read_toml(tmp_path / "none.toml")
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(RecipeError, match="cannot be read as text"):
        read_toml(path)


def test_override() -> None:
    import datetime

    table = {"train": {"batch": 8, "when": datetime.date(2026, 1, 1)}, "name": "x"}
    changed = override(
        table,
        ["train.batch=32", "train.rate=1e-4", "name=a b", "new.deep.flag=true", "sizes=[1, 2]", "empty=", "t.x='3'"],
    )
    assert changed == {
        "train": {"batch": 32, "rate": 1e-4, "when": datetime.date(2026, 1, 1)},
        "name": "a b",
        "new": {"deep": {"flag": True}},
        "sizes": [1, 2],
        "empty": "",
        "t": {"x": "3"},
    }
    assert table["train"] == {"batch": 8, "when": datetime.date(2026, 1, 1)}  # the given one stays
    for wrong in ("train.batch", "=3", "a..b=3", ".a=1"):
        with pytest.raises(RecipeError, match=r"expected name\.of\.setting=value"):
            override(table, [wrong])
    with pytest.raises(RecipeError, match="`name` is a value, not a table"):
        override(table, ["name.first=3"])


TEXT = """\
# a recipe
name = "x"
matrix = [  # [[
  [1, 2],
  [3]
]
dotted.key = 1

[model]
kind = "unet"  # the network
"quoted key" = 3
schedule = { kind = "linear", stpes = 3 }

[model.level]
steps = 1000

[[parts]]
size = 1

[[parts]]
size = 2

[parts.inner]
deep = 1
"""


@pytest.mark.parametrize(
    "path, line",
    [
        (("name",), 2),
        (("matrix",), 3),
        (("dotted", "key"), 7),
        (("model",), 9),
        (("model", "kind"), 10),
        (("model", "quoted key"), 11),
        (("model", "schedule", "stpes"), 12),
        (("model", "missing"), 9),
        (("model", "level", "steps"), 15),
        (("parts", "0", "size"), 18),
        (("parts", "1", "size"), 21),
        (("parts", "1", "other"), 20),
        (("parts", "1", "inner", "deep"), 24),
        (("nowhere",), None),
    ],
)
def test_locate(path: tuple[str, ...], line: int | None) -> None:
    assert locate(TEXT, path) == line
