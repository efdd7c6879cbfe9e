"""Pages that quote measurements: their numbers, tables and pictures are those of docs/data, none typed by hand."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest

DOCS = Path(__file__).parents[1] / "docs"
PAGES = ("why", "choosing", "results")


@pytest.fixture(scope="module")
def figures() -> Any:
    spec = importlib.util.spec_from_file_location("docs_figures", DOCS / "figures.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_pages_and_pictures_are_those_of_the_data(figures: Any) -> None:
    made = figures.made()
    assert len(made) > 10
    for path, text in made.items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name}: run python docs/figures.py"


@pytest.mark.parametrize("page", PAGES)
def test_a_page_shows_every_picture_and_table_of_its_own(page: str, figures: Any) -> None:
    text = (DOCS / f"{page}.md").read_text(encoding="utf-8")
    for name, _ in getattr(figures, f"{page}_charts")():
        assert f"images/{name}.svg" in text
    for name in figures.TABLES:
        assert (f"<!--table {name}-->" in text) == name.startswith(page)


@pytest.mark.parametrize("page", PAGES)
def test_no_number_begins_a_line(page: str) -> None:
    """Markdown takes a comment at the beginning of a line for a block of HTML."""
    text = (DOCS / f"{page}.md").read_text(encoding="utf-8")
    assert not re.findall(r"^\s*<!--[\w.-]+ [^>]*-->[^\n]", text, re.MULTILINE)


def test_other_data_changes_the_page(figures: Any) -> None:
    text = "a gap of <!--why.bound.0.gap .2f-->9.99<!--/--> nats"
    gap = json.loads((DOCS / "data" / "why.json").read_text())["bound"][0]["gap"]
    assert figures.filled(text) == f"a gap of <!--why.bound.0.gap .2f-->{gap:.2f}<!--/--> nats"
    table = "<!--table why-bound-->\nold\n<!--/table-->"
    assert figures.filled(figures.filled(table)) == figures.filled(table)
    assert "old" not in figures.filled(table)


def test_what_choosing_claims(figures: Any) -> None:
    """Its findings, from the data: after another measurement the sentences have to be read again."""

    def error(case: str, sampler: str, budget: int, grid: str = "uniform") -> float:
        measured = figures.data(f"samplers-{case}")["model"] if "guided" in case else None
        if measured is None:
            (measured,) = (each for each in figures.data("samplers")["mixture"] if each["case"] == case)
        wanted = (sampler, grid, budget)
        (found,) = (s for s in measured["solutions"] if (s["sampler"], s["grid"], s.get("budget")) == wanted)
        return float(found["error"])

    for sampler, budget in (("ddim", 20), ("heun", 50), ("unipc", 10)):
        both = [error(case, sampler, budget, "uniform-logsnr") for case in ("cosine", "flow")]
        assert both[0] == pytest.approx(both[1], rel=1e-3)
    assert error("linear-betas", "unipc", 20, "uniform-logsnr") < error("linear-betas", "unipc", 20) / 2
    assert error("EDM", "heun", 10, "karras") > 3 * error("EDM", "ddim", 10, "karras")
    guided = {
        name: [error("guided", name, budget) for budget in (5, 10, 20, 50)] for name in ("ddim", "unipc", "adams")
    }
    assert guided["ddim"][0] < guided["unipc"][0]
    assert guided["ddim"][1] == pytest.approx(guided["unipc"][1], rel=0.1)
    assert guided["unipc"][2] < guided["ddim"][2]
    assert guided["adams"][1] > figures.data("samplers-guided")["model"]["scale"]
    for budget, share in ((10, 0.7), (20, 0.55)):
        assert error("unguided", "unipc", budget) < share * error("unguided", "ddim", budget)
    kl = {name: sum(values) / len(values) for name, values in figures.data("target").items()}
    assert sorted(kl, key=lambda name: kl[name])[:3] == ["v, min-SNR", "v, sigmoid", "Karras, unit"]
    assert min(kl["v, bound"], kl["noise, bound"], kl["x, unit"]) > 2 * kl["noise, unit"]


def test_what_why_claims() -> None:
    """The sentences around the numbers: what is said to be smaller, or equal within its error, is."""
    why = json.loads((DOCS / "data" / "why.json").read_text())
    for row in why["bound"]:
        assert abs(row["gap"] - row["prior"] - row["steps"]) < 3 * row["error"]
    best, *trained = why["training"]
    for row in why["training"]:
        assert 0 < row["kl"] < row["gap"]
        assert row["mass"] == pytest.approx(1, abs=2e-3)
        assert abs(row["gap"] - row["prior"] - row["steps"]) < 3 * row["error"]
    for name in ("gap", "kl"):
        assert [row[name] for row in trained] == sorted((row[name] for row in trained), reverse=True)
        assert best[name] < trained[-1][name]
    lost = {name: why["correction"][f"waves {name}"]["nats"] for name in ("autoregressive", "ancestral")}
    late = why["shares"].index(0.75)
    assert max(lost["ancestral"][: late + 1]) < 0.5
    assert min(lost["autoregressive"][4:]) > 17
    for method, formula in why["known"].items():
        measured = why["correction"][f"normal {method}"]["distance"]
        assert measured == pytest.approx(formula, rel=2e-2 if method == "deterministic" else 1e-5)
