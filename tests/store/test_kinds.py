"""Kinds: every one resolves, objects go to a table and back, a user's own enter by entry point (docs/extending.md)."""

from __future__ import annotations

import functools
import re
import subprocess
import sys
from pathlib import Path

import pytest

from carrara.config import build, describe
from carrara.diffusion import Schedule
from carrara.store.kinds import BASES, TABLES, kinds

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("role", "kind"), [(role, kind) for role, table in TABLES.items() for kind in table])
def test_every_kind_resolves_and_is_known_by_its_name(role: str, kind: str) -> None:
    target = kinds().resolve(role, kind)
    assert kinds().kind_of(target) == (role, kind)
    assert kind == kind.lower() and "_" not in kind


def test_every_base_is_a_class_of_its_role() -> None:
    import importlib

    for address, role in BASES.items():
        module, name = address.split(":")
        base = getattr(importlib.import_module(module), name)
        for kind in kinds().names(role):
            assert issubclass(kinds().resolve(role, kind), base)  # type: ignore[arg-type]


def test_schedules_go_to_a_table_and_back() -> None:
    for kind in kinds().names("schedule"):
        table = {"kind": kind} | ({"values": [0.1, 0.2]} if kind == "given-betas" else {})
        schedule = build(Schedule, table, kinds())
        again = build(Schedule, describe(schedule, kinds()), kinds())
        assert describe(again, kinds()) == describe(schedule, kinds())


def test_the_page_on_extending_is_true(tmp_path: Path) -> None:
    """Its snippets as a package with entry points: found, configured, described, sampled with."""
    page = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    package = tmp_path / "my_package"
    package.mkdir()
    (package / "__init__.py").touch()
    for text in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        name = re.match(r"# my_package/(\w+\.py)", text)
        assert name is not None
        (package / name[1]).write_text(text)
        assert len(text.splitlines()) < 40
    (toml,) = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    info = tmp_path / "my_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1.0\n")
    points = re.findall(r'^"(.+?)" = "(.+?)"$', toml, re.MULTILINE)
    assert len(points) == 2
    (info / "entry_points.txt").write_text("[carrara.kinds]\n" + "".join(f"{a} = {b}\n" for a, b in points))
    program = """
import torch
from typing import Annotated
from carrara.config import Role, build, describe
from carrara.diffusion import *
from carrara.diffusion.generator import SamplingSettings
from carrara.errors import RecipeError
from carrara.rng import Rng
from carrara.run import finish
from carrara.store import kinds
from carrara.types import Condition, Space
table = {"sampler": {"kind": "churned", "churn": 0.3}, "times": {"kind": "uniform", "steps": 5}}
settings = build(SamplingSettings, table, kinds())
assert describe(settings, kinds())["sampler"] == {"kind": "churned", "churn": 0.3}
network = build(Annotated[object, Role("network")],
                {"kind": "plain", "in_channels": 3, "out_channels": 3, "width": 8}, kinds())
denoiser = Denoiser(network, Process(Linear()), Flow(), ScaledTime())
generator = DiffusionGenerator(denoiser, Space("pixels", (3, 8, 8)), settings=settings)
picture = finish(generator.start((3, 8, 8), Condition(), Condition(), Rng.seeds([0])))
assert picture.shape == (1, 3, 8, 8) and bool(picture.isfinite().all())
try:
    build(SamplingSettings, {"sampler": {"kind": "churned", "chrun": 0.3}}, kinds())
except RecipeError as error:
    assert 'did you mean "churn"' in str(error), error
else:
    raise SystemExit("a wrong setting was accepted")
print("right")
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=_environment(tmp_path), check=False
    )
    assert done.stdout.strip() == "right", done.stderr
    (info / "entry_points.txt").write_text("[carrara.kinds]\nsampler.ddim = my_package.samplers:churned\n")
    done = subprocess.run(
        [sys.executable, "-c", "from carrara.store import kinds; kinds()"],
        capture_output=True,
        text=True,
        env=_environment(tmp_path),
        check=False,
    )
    assert "names a kind that exists" in done.stderr


def _environment(path: Path) -> dict[str, str]:
    import os

    return {**os.environ, "PYTHONPATH": str(path), "OMP_NUM_THREADS": "1"}


def test_functions_are_described_with_their_settings() -> None:
    ddim = kinds().resolve("sampler", "ddim")
    assert describe(functools.partial(ddim, eta=0.5), kinds()) == {"kind": "ddim", "eta": 0.5}
    assert describe(ddim, kinds()) == {"kind": "ddim"}
