"""What `sampler_bench` measured, as tables and charts: of the report, and of docs/choosing.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from carrara.evaluate.plot import Axis, Lines, Series, number
from carrara.evaluate.report import KeyFigure, Report

__all__ = ["best_grids", "different", "distance_chart", "error_chart", "page", "rows_of"]

Found = Mapping[str, Any]

_LINES = 6  # as many as there are colours


def rows_of(found: Sequence[Found], budgets: Sequence[int], *, grids: bool = True) -> list[tuple[str, ...]]:
    """A row a sampler and grid: its error at each budget; adaptive ones say what they took."""
    kept: dict[tuple[str, str], dict[int | None, Found]] = {}
    for solved in found:
        kept.setdefault((solved["sampler"], solved["grid"]), {})[solved.get("budget")] = solved
    rows = []
    for (sampler, grid), by_budget in kept.items():
        names = (sampler, grid) if grids else (sampler,)
        if None in by_budget:
            took = by_budget[None]
            last = f"{number(took['error'], 2)} ({took['evaluations']} evaluations)"
            rows.append((*names, *[""] * (len(budgets) - 1), last))
        else:
            rows.append((*names, *(_cell(by_budget.get(budget)) for budget in budgets)))
    return rows


def _cell(solved: Found | None) -> str:
    if solved is None:
        return ""
    bar = f" ± {number(solved['bar'], 1)}" if "bar" in solved else ""
    return number(solved["error"], 2) + bar


def best_grids(found: Sequence[Found], budget: int) -> dict[str, Found]:
    """Of each sampler the measurement with the least error at a budget, the best sampler first."""
    best: dict[str, Found] = {}
    for solved in found:
        name = solved["sampler"]
        if solved.get("budget") == budget and (name not in best or solved["error"] < best[name]["error"]):
            best[name] = solved
    return dict(sorted(best.items(), key=lambda item: item[1]["error"]))


def different(found: Sequence[Found]) -> list[Found]:
    """One of those that are the same method under two names, or with settings that make no difference."""
    seen: dict[Any, Found] = {}
    for solved in found:
        seen.setdefault((solved["grid"], solved.get("budget"), solved["error"]), solved)
    return list(seen.values())


def error_chart(measured: Found, budgets: Sequence[int], title: str) -> Lines:
    """Error against evaluations of the best samplers and ddim, each on its best grid (by the last budget but one)."""
    judged = budgets[-2] if len(budgets) > 1 else budgets[0]
    best = best_grids(different(measured["solutions"]), judged)
    chosen = [name for name in best if name != "ddim"][: _LINES - 1] + [name for name in best if name == "ddim"]
    series = [
        Series(f"{name} ({grid})", *_curve(measured["solutions"], name, grid), dashed=name == "ddim")
        for name, grid in ((name, best[name]["grid"]) for name in chosen)
    ]
    note = f"Each on its best grid at {judged} evaluations: the best there, and ddim."
    return Lines(title, series, Axis("evaluations", log=True), Axis("error, rms", log=True), note)


def distance_chart(measured: Found, budgets: Sequence[int], title: str) -> Lines:
    """Sliced distance against evaluations: the best of both kinds of samplers, ddim, and what exact samples reach."""
    found, stochastic = measured["distributions"], measured["stochastic"]
    best = list(best_grids(different(found), budgets[-1]))
    chosen = [name for name in best if name not in stochastic and name != "ddim"][:2]
    chosen += [name for name in best if name == "ddim"] + [name for name in best if name in stochastic][:2]
    series = [Series(name, *_curve(found, name, found[0]["grid"])) for name in chosen]
    floor = Series("exact samples", budgets, [measured["floor"]] * len(budgets), dashed=True)
    note = f"On the {found[0]['grid']} grid."
    return Lines(title, [*series, floor], Axis("evaluations", log=True), Axis("distance to the data", log=True), note)


def _curve(found: Sequence[Found], sampler: str, grid: str) -> tuple[list[float], list[float]]:
    own = [solved for solved in found if (solved["sampler"], solved["grid"]) == (sampler, grid)]
    return [solved["evaluations"] for solved in own], [solved["error"] for solved in own]


def page(record: Found) -> Report:
    """The report: a section a case, and one for the model where there was one."""
    budgets = record["budgets"]
    report = Report("Samplers", "How near to the exact solution, for how many evaluations of the denoiser")
    report.prose(
        "A deterministic sampler is compared with the fine solution of the probability-flow ODE from the same noise: "
        "root mean square of the difference. Evaluations are counted, not strides: a method of two evaluations a "
        "stride makes half as many. Blank cells cannot be had for so few evaluations."
    )
    if "model" in record:
        _model(report, record["model"], budgets)
    for measured in record["mixture"]:
        _case(report, measured, budgets)
    return report.footer(", ".join(f"{name} {version}" for name, version in record["versions"].items()))


def _model(report: Report, measured: Found, budgets: Sequence[int]) -> None:
    prompts = ", ".join(prompt for prompt in measured["prompts"] if prompt)
    report.heading(
        measured["path"], f"A trained model, {measured['rows']} pictures" + (f" of {prompts}" if prompts else "")
    )
    _solved(report, measured, budgets)


def _case(report: Report, measured: Found, budgets: Sequence[int]) -> None:
    report.heading(
        measured["case"], f"Known data: eight normals in eight dimensions, {measured['rows']} draws of noise."
    )
    _solved(report, measured, budgets)
    report.plot(distance_chart(measured, budgets, "Distance to the data"))
    floor = f"{number(measured['floor'], 2)} ± {number(measured['floor_bar'], 1)}"
    about = f"Sliced distance of the results to the data, with its standard error; exact samples have {floor}."
    header = ("sampler", *(f"{budget} evaluations" for budget in budgets))
    report.table(header, rows_of(measured["distributions"], budgets, grids=False), caption=about)


def _solved(report: Report, measured: Found, budgets: Sequence[int]) -> None:
    best = next(iter(best_grids(measured["solutions"], budgets[-1]).values()), None)
    figures = [
        KeyFigure("root mean square of the results", measured["scale"]),
        KeyFigure("error of the fine solution", measured["reference_error"]),
    ]
    if best is not None:
        label = f"least error with {budgets[-1]} evaluations"
        figures.insert(0, KeyFigure(label, best["error"], note=f"{best['sampler']}, {best['grid']}"))
    report.figures(*figures)
    report.plot(error_chart(measured, budgets, "Error against evaluations"))
    header = ("sampler", "grid", *(f"{budget} evaluations" for budget in budgets))
    about = "Root mean square of the difference to the fine solution."
    report.table(header, rows_of(measured["solutions"], budgets), caption=about)
