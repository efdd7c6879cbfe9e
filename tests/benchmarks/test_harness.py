"""The arithmetic of measuring: orders, medians, ratios within rounds, and the record in its file."""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
from benchmarks.harness import Goal, Record, Spread, Table, Variant, measure, order, read, spread, write
from benchmarks.plot import main as plot
from benchmarks.plot import page


class Clock:
    """Time that passes only when somebody works."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def work(self, *seconds: float) -> object:
        turns = iter(seconds)

        def call() -> None:
            self.now += next(turns)

        return call


@pytest.mark.parametrize("count", range(1, 8))
def test_orders_are_balanced(count: int) -> None:
    """Over a cycle each variant takes every place, and follows every other, equally often."""
    cycle = [order(count, turn) for turn in range(count * (1 + count % 2))]
    assert all(sorted(row) == list(range(count)) for row in cycle)
    places = Counter(place for row in cycle for place in enumerate(row))
    assert set(places.values()) == {1 + count % 2}
    follows = Counter(pair for row in cycle for pair in pairwise(row))
    assert len(follows) == count * (count - 1)
    assert len(set(follows.values())) <= 1


def test_orders_of_a_warm_up_are_orders() -> None:
    assert sorted(order(5, -3)) == list(range(5))


def test_spread() -> None:
    assert spread([5.0]) == Spread(5, 5, 5)
    assert spread([4.0, 1.0, 3.0, 2.0, 5.0]) == Spread(3, 2, 4)
    assert spread([1.0, 2.0]) == Spread(1.5, 1.25, 1.75)


def test_times_and_ratios() -> None:
    """Two steps a call, in milliseconds; the ratio is within rounds, so a slow round moves both times and not it."""
    clock = Clock()
    ours = Variant("ours", clock.work(9.0, 0.002, 0.004, 0.2), steps=2, peer="theirs")
    theirs = Variant("theirs", clock.work(9.0, 0.004, 0.008, 0.4), steps=2)
    table = measure("work", [ours, theirs], rounds=3, warmup=1, clock=clock)
    assert [row.name for row in table.rows] == ["ours", "theirs"]
    assert table.rows[0].rounds == pytest.approx((1, 2, 100))  # the warm-up's 9 s are not there
    assert table.rows[0].time.median == pytest.approx(2)
    assert table.rows[1].time.median == pytest.approx(4)
    ratio = table.rows[0].ratio
    assert ratio is not None and (ratio.lower, ratio.median, ratio.upper) == pytest.approx((0.5, 0.5, 0.5))
    assert table.rows[1].ratio is None


def test_the_order_changes() -> None:
    called: list[str] = []
    variants = [Variant(name, lambda name=name: called.append(name)) for name in "abc"]
    measure("order", variants, rounds=6, warmup=0)
    rounds = ["".join(called[i : i + 3]) for i in range(0, 18, 3)]
    assert len(set(rounds)) == 6


def test_a_budget_ends_it_after_three_rounds() -> None:
    clock = Clock()
    table = measure(
        "slow", [Variant("a", clock.work(*[50.0] * 9))], rounds=9, warmup=0, budget=60, clock=clock, unit="s"
    )
    assert table.rows[0].rounds == (50.0,) * 3


def test_refuses_what_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match="share a name"):
        measure("twice", [Variant("a", int), Variant("a", int)])
    with pytest.raises(ValueError, match="not measured"):
        measure("alone", [Variant("a", int, peer="b")])


def record() -> Record:
    clock = Clock()
    variants = [Variant("a <&>", clock.work(1.0, 2.0), peer="b"), Variant("b", clock.work(1.0, 1.0))]
    table = measure("work", variants, rounds=2, warmup=0, clock=clock, checks={"difference": 1e-7})
    facts = {
        "command": "python -m benchmarks.run work",
        "date": "2025-01-01T00:00:00+00:00",
        "machine": {
            "processor": "x",
            "cores": 2,
            "memory_gib": 1.0,
            "flags": {"avx2": True},
            "load_before": 0.0,
            "busy_before": 0.0,
        },
        "threads": 1,
        "versions": {"python": "3"},
    }
    goal = Goal("it answers", 0.3, 0.1, "s")
    return Record("work", "Work", True, 2.0, facts, (table,), (goal,), ("a note",), {"c": "not installed"})


def test_a_record_comes_back(tmp_path: Path) -> None:
    path = write(record(), tmp_path / "deep" / "work.json")
    assert read(path) == record()
    assert [file.name for file in path.parent.iterdir()] == ["work.json"]


def test_what_is_in_the_file(tmp_path: Path) -> None:
    body = json.loads(write(record(), tmp_path / "work.json").read_text())
    assert body["format_version"] == 1
    assert {"benchmark", "about", "quick", "seconds", "facts", "tables", "goals", "notes", "skipped"} <= body.keys()
    (table,) = body["tables"]
    assert table["unit"] == "ms" and table["checks"] == {"difference": 1e-7}
    first = table["rows"][0]
    assert first.keys() == {"name", "time", "rounds", "peer", "ratio", "note"}
    assert first["ratio"] == {"median": 1.5, "lower": 1.25, "upper": 1.75}


@pytest.mark.parametrize("change", [{"format_version": 2}, {"tables": "none"}])
def test_another_file_is_refused(change: dict[str, object], tmp_path: Path) -> None:
    path = write(record(), tmp_path / "work.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError):
        read(path)


def test_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(record(), tmp_path / "work.json")
    plot([str(tmp_path)])
    assert capsys.readouterr().out.strip() == str(tmp_path / "index.html")
    html = (tmp_path / "index.html").read_text()
    assert html == page([record()]).html()
    assert "a &lt;&amp;&gt;" in html and "<script" not in html
    for said in ("python -m benchmarks.run work", "not installed", "a note", "rehearsal", "it answers"):
        assert said in html


def test_a_table_needs_no_peers() -> None:
    table = measure("alone", [Variant("a", lambda: None)], rounds=1)
    assert isinstance(table, Table) and table.rows[0].ratio is None
