"""Whole pipelines beside diffusers' own: some rows of benchmarks/parity.py each time, all of them behind the marker."""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmarks.parity import FAMILIES, SAMPLERS, Case, cases, measured, write

MOST = 1e-4
FEW = (
    Case("sd1", "text-to-image", "euler-a", 4),
    Case("sd1", "image-to-image", "ddim", 11),
    Case("sd1", "inpainting", "euler", 4),
    Case("sd1-inpainting", "inpainting", "dpmpp-2m-karras", 4),
    Case("sd2", "rescaled", "dpmpp-2m", 4),
    Case("sd2", "text-to-image", "lcm", 4),
    Case("sdxl", "text-to-image", "unipc", 4),
    Case("sdxl", "inpainting", "heun", 4),
    Case("sd3", "text-to-image", "flow-match-euler", 4),
    Case("flux", "text-to-image", "flow-match-euler", 4),
    Case("pixart", "text-to-image", "ddim", 4),
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pipelines")


def folder(place: Path, family: str) -> Path:
    if not (place / family).exists():
        write(family, place / family)
    return place / family


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", FEW, ids=lambda case: f"{case.family}-{case.task}-{case.sampler}")
def test_some_pipelines(case: Case, place: Path) -> None:
    assert measured(case, folder(place, case.family)) <= MOST


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", FAMILIES)
def test_all_pipelines(family: str, place: Path) -> None:
    errors = {case: measured(case, folder(place, family)) for case in cases([family], list(SAMPLERS))}
    assert errors and max(errors.values()) <= MOST, {case: error for case, error in errors.items() if error > MOST}
