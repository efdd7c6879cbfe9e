"""The demo's time: counted over interruptions, given out by deadlines, and left alone once the demo is finished."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from carrara.demo import clock as clocks
from carrara.demo import pipeline
from carrara.demo.clock import Clock
from carrara.errors import RecipeError, StorageError
from carrara.train.loop import Outcome


class Watch:
    """time.monotonic under the test's control."""

    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    found = Watch()
    monkeypatch.setattr(clocks, "time", found)
    return found


def test_seconds_survive_a_kill(watch: Watch, tmp_path: Path) -> None:
    """What was noted last is where the next call goes on, in the same stage and in others."""
    clock = Clock(tmp_path / "demo.json", 8, 0, began=97.0)
    watch.now += 2
    clock.turn("text")
    for _ in range(10):
        watch.now += 1
        clock.tick()
    watch.now += 1.5  # lost: nothing was noted since
    again = Clock(tmp_path / "demo.json", 8, 0, began=watch.now)
    assert again.seconds == pytest.approx(5 + 10, abs=1.01)
    again.turn("text")
    watch.now += 4
    assert again.counted()["text"] == pytest.approx(10 + 4, abs=1.01)
    assert again.seconds == pytest.approx(sum(again.counted().values()))


def test_a_stage_may_be_counted_anew(watch: Watch, tmp_path: Path) -> None:
    clock = Clock(tmp_path / "demo.json", 8, 0, began=watch.now)
    for _ in range(2):
        clock.turn("report", anew=True)
        watch.now += 9
    assert clock.seconds == 9


def test_stages_are_told_in_the_order_of_the_work(watch: Watch, tmp_path: Path) -> None:
    """Also where they were read from a file, in which they are sorted by name."""
    names = ["start", "data", "text", "decoder", "generator", "report"]
    clock = Clock(tmp_path / "demo.json", 8, 0, began=watch.now)
    for name in names[1:]:
        clock.turn(name)
    assert list(clock.counted()) == names
    assert list(Clock(tmp_path / "demo.json", 8, 0, began=watch.now).counted()) == names


@pytest.mark.parametrize("text", ["", "[]", '{"minutes": 8, "seed": 0}', '{"minutes": 8, "seed": 0, "stages": 3}'])
def test_a_damaged_file_is_a_sentence(text: str, tmp_path: Path) -> None:
    (tmp_path / "demo.json").write_text(text)
    with pytest.raises(StorageError, match="is damaged"):
        Clock(tmp_path / "demo.json", 8, 0, began=0.0)


def test_another_budget_or_seed_is_refused(tmp_path: Path) -> None:
    Clock(tmp_path / "demo.json", 8, 0, began=0.0).note()
    for minutes, seed in ((4, 0), (8, 1)):
        with pytest.raises(RecipeError, match="8 minutes with seed 0"):
            Clock(tmp_path / "demo.json", minutes, seed, began=0.0)


def test_parts_have_deadlines_in_order_and_leave_time_for_the_report() -> None:
    for total in (60.0, 480.0):
        times = [pipeline._until(name, total) for name in pipeline._PARTS]
        assert times == sorted(times)
        assert times[-1] + pipeline._REPORT == total


def test_a_part_has_the_time_until_its_deadline_and_never_nothing(watch: Watch, tmp_path: Path) -> None:
    """What one part leaves or overruns is the next one's."""
    for used in (80.0, 100.0, 130.0):
        clock = Clock(tmp_path / "demo.json", 8, 0, began=watch.now - used)
        seconds = pipeline._seconds("decoder", clock) / pipeline._STEPS
        assert used + seconds + pipeline._ENDING["decoder"] == pytest.approx(pipeline._until("decoder", 480))
    late = Clock(tmp_path / "demo.json", 8, 0, began=watch.now - 1000)
    assert pipeline._seconds("decoder", late) > 30


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Demos that only leave what they would; whether each was another go at a finished one."""
    made: list[bool] = []

    def run(out: Path, clock: Clock, say: Callable[[str], None], progress: bool, again: bool) -> Path:
        made.append(again)
        for folder in (out, out / "system"):
            for name in pipeline._PARTS:
                (folder / name).mkdir(parents=True, exist_ok=True)
                (folder / name / "component.json").write_text("{}")
                (folder / name / "weights.safetensors").write_text("")
        (out / pipeline.DATA).mkdir(exist_ok=True)
        (out / pipeline.DATA / "metadata.jsonl").write_text("")
        (out / "report.html").write_text("")
        (out / "report.json").write_text("")
        return out / "report.html"

    monkeypatch.setattr(pipeline, "_run", run)
    return made


def test_a_finished_demo_is_left_as_it_is(runs: list[bool], tmp_path: Path) -> None:
    said: list[str] = []

    def demo() -> Path:
        return pipeline.demo(1, tmp_path, 0, said.append, progress=False)

    assert demo() == demo() == tmp_path / "report.html"
    assert runs == [False]
    assert said == [
        f"This demo is finished: the report is {tmp_path / 'report.html'}, the system is in {tmp_path / 'system'}"
    ]
    noted = (tmp_path / "demo.json").read_bytes()
    assert demo() and (tmp_path / "demo.json").read_bytes() == noted


@pytest.mark.parametrize(
    "change",
    [
        "report.html",
        "twemoji/new.png",
        "decoder/component.json",
        "decoder/weights.safetensors",
        "system/text/component.json",
    ],
)
def test_a_finished_demo_of_which_something_changed_is_made_again(
    change: str, runs: list[bool], tmp_path: Path
) -> None:
    pipeline.demo(1, tmp_path, 0, lambda _: None, progress=False)
    if change == "report.html":
        (tmp_path / change).unlink()
    else:
        (tmp_path / change).write_text("another")
    pipeline.demo(1, tmp_path, 0, lambda _: None, progress=False)
    assert runs == [False, True]


def test_an_interrupted_demo_is_not_finished(runs: list[bool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finish = pipeline._run

    def interrupted(*_: object) -> Path:
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "_run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pipeline.demo(1, tmp_path, 0, lambda _: None, progress=False)
    assert json.loads((tmp_path / "demo.json").read_text())["finished"] == ""
    monkeypatch.setattr(pipeline, "_run", finish)
    pipeline.demo(1, tmp_path, 0, lambda _: None, progress=False)
    assert runs == [False]


def test_a_copy_elsewhere_and_later_is_as_finished(runs: list[bool], tmp_path: Path) -> None:
    pipeline.demo(1, tmp_path / "here", 0, lambda _: None, progress=False)
    shutil.copytree(tmp_path / "here", tmp_path / "there" / "copy")
    for path in (tmp_path / "there").rglob("*"):
        os.utime(path, (1e9, 1e9))
    assert pipeline.demo(1, tmp_path / "there" / "copy", 0, lambda _: None, progress=False)
    assert runs == [False]


def test_a_folder_of_other_files_is_refused_and_left_as_it_is(runs: list[bool], tmp_path: Path) -> None:
    (tmp_path / "holiday.txt").write_text("mine")
    with pytest.raises(StorageError, match="holds other files and no demo; choose another --out"):
        pipeline.demo(1, tmp_path, 0, lambda _: None, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["holiday.txt"] and not runs


def test_an_empty_folder_and_one_of_a_demo_are_taken(runs: list[bool], tmp_path: Path) -> None:
    (tmp_path / "demo.json.tmp").write_text("")  # of a demo killed in its first moment
    pipeline.demo(1, tmp_path, 0, lambda _: None, progress=False)
    (tmp_path / "note.txt").write_text("mine")
    pipeline.demo(1, tmp_path, 0, lambda _: None, progress=False)
    assert runs == [False]


def test_a_part_that_was_finished_before_keeps_the_figures_of_its_own_training() -> None:
    now = Outcome(9, 70.0, 5.0, 999, 0.1, {}, "float32", 0.0, 9, Path())
    events = [
        {"event": "start", "step": 0},
        {"event": "step", "step": 3, "memory": 50},
        {"event": "resume", "step": 3},
        {"event": "step", "step": 9, "memory": 40},
        {"event": "done", "step": 9, "seconds": 60.0, "images_per_second": 8.0, "memory": 40},
        {"event": "resume", "step": 9},
    ]
    found = pipeline._recorded(now, events)
    assert found == now._replace(seconds=60.0, images_per_second=8.0, peak_memory_bytes=50, resumed_from=3)
    assert pipeline._recorded(now, events[:4]) == now
