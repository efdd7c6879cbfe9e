"""Charts: well-formed SVG for whatever numbers come, nothing unescaped, points where they belong."""

import itertools
import math
import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from carrara.evaluate.plot import Axis, Bars, Histogram, Lines, Sample, Scatter, Series, escape, number, ticks

NAN, INF = math.nan, math.inf
HOSTILE = "</title><script>alert('x')</script>&\"' \x00\x1b\ud800"
VALUES = {
    "empty": [],
    "one": [2.0],
    "constant": [0.5] * 5,
    "zeros": [0.0] * 5,
    "gaps": [NAN, 1.0, 2.0, NAN, 3.0, NAN, INF, 4.0, 5.0],
    "all nan": [NAN] * 3,
    "negative": [-3.0, -1.0, -2.0],
    "tiny": [1e-12, 3e-12],
    "huge": [1e30, -1e30, 1.0],
    "extreme": [1.7e308, -1.7e308, 5e-324],
    "near": [1.0, 1.0 + 1e-15],
    "decades": [1e-8, 1.0, 1e8],
}


def parse(svg: str) -> ET.Element:
    """Well-formed, every coordinate finite, nothing that a page would fetch or run."""
    root = ET.fromstring(svg)
    assert root.tag == "svg"
    assert root.find("title") is not None
    assert root.get("role") == "img"
    assert root.get("aria-label")
    for element in root.iter():
        for key, value in element.attrib.items():
            if key not in ("aria-label", "style"):
                assert not re.search(r"nan|inf", value), (element.tag, key, value)
    assert "<script" not in svg
    assert "http" not in svg
    return root


@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)
@pytest.mark.parametrize("log", [False, True])
def test_any_values_draw(values, log):
    x = np.arange(len(values))
    for window in (0, 5):
        chart = Lines("loss", [Series("a", x, values, window), Series("b", x, values, dashed=True)], y=Axis("y", log))
        for size in ((720, 320), (340, 260)):
            parse(chart.svg(*size))
    parse(Lines("turned", [Series("a", values, x)], x=Axis("x", log)).svg())
    parse(Histogram("h", [Sample("a", values), Sample("b", values[:1])]).svg())
    parse(Bars("b", [str(i) for i in x], values).svg())
    names = [HOSTILE + str(i) for i in x]
    parse(Scatter("s", names, values, x, Axis("x", log)).svg())
    parse(Scatter("s", names, x, values, y=Axis("y", log)).svg(340, 260))


def test_no_series_says_so():
    for chart in (Lines("t", []), Histogram("t", []), Bars("t", [], [])):
        assert "no data" in "".join(parse(chart.svg()).itertext())


def test_gaps_break_the_line_and_are_counted():
    root = parse(Lines("t", [Series("a", range(30), [NAN if i in (10, 20, 21) else i for i in range(30)])]).svg())
    path = next(e.get("d", "") for e in root.iter("path"))
    assert path.count("M") == 3
    assert len(re.findall(r"[ML]", path)) == 27
    assert "3 values not drawn: not finite" in "".join(root.itertext())


def test_lonely_points_are_dots():
    root = parse(Lines("t", [Series("a", range(40), [1.0 if i % 2 else NAN for i in range(40)])]).svg())
    assert len(list(root.iter("circle"))) == 20


def test_log_axis_leaves_out_what_it_cannot_show():
    svg = Lines("t", [Series("a", range(4), [0.0, 1.0, -1.0, 10.0])], y=Axis("loss", log=True)).svg()
    assert "2 values not drawn: not finite or not positive" in svg


def test_a_straight_line_is_straight_on_its_own_axes():
    x = np.arange(1, 30)
    for y, axis in ((3.0 * x + 2, Axis()), (np.exp(-0.5 * x), Axis(log=True))):
        root = parse(Lines("t", [Series("a", x, y)], y=axis).svg())
        points = re.findall(r"([\d.]+) ([\d.]+)", next(e.get("d", "") for e in root.iter("path")))
        px, py = np.array(points, dtype=float).T
        fitted = np.polyval(np.polyfit(px, py, 1), px)
        assert np.abs(fitted - py).max() < 0.11  # coordinates are written to 0.1 pixels


def test_long_series_are_thinned_but_keep_their_extremes():
    y = np.sin(np.arange(200_000) / 50)
    y[123_457], y[77_777] = 9.0, -9.0
    svg = Lines("t", [Series("a", np.arange(len(y)), y)]).svg()
    assert len(svg) < 60_000
    calm = Lines("t", [Series("a", [0, 1], [9.0, -9.0])]).svg()
    heights = [[float(v) for v in re.findall(r"[ML][\d.]+ ([\d.]+)", s)] for s in (svg, calm)]
    assert (min(heights[0]), max(heights[0])) == (min(heights[1]), max(heights[1]))


def test_smoothing_has_no_start_up_bias():
    root = parse(Lines("t", [Series("a", range(50), [0.5] * 50, window=20)]).svg())
    raw, smooth = (re.findall(r"[ML][\d.]+ ([\d.]+)", e.get("d", "")) for e in root.iter("path"))
    assert raw == smooth


def test_text_is_escaped():
    chart = Lines(HOSTILE, [Series(HOSTILE, [1, 2], [1, 2]), Series("b", [1], [1])], Axis(HOSTILE), Axis(HOSTILE))
    for drawn in (chart, Histogram(HOSTILE, [Sample(HOSTILE, [1, 2])]), Bars(HOSTILE, [HOSTILE], [1.0], unit=HOSTILE)):
        parse(drawn.svg())
        drawn.svg().encode("utf-8")


def test_histogram_counts_and_shares():
    root = parse(Histogram("t", [Sample("a", [1, 1, 1, 2])], bins=2).svg())
    assert [t for e in root.iter("rect") for t in e.itertext()] == ["1.00 to 1.50: 3", "1.50 to 2.00: 1"]
    several = parse(Histogram("t", [Sample("a", [1, 1, 1, 2]), Sample("b", [1])], bins=2).svg())
    said = [t.rsplit(": ", 1)[1] for e in several.iter("rect") for t in e.itertext()]
    assert said == ["75.0", "25.0", "100"]


def test_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match="two equal lengths"):
        Series("a", [1, 2], [1])
    with pytest.raises(ValueError, match="names for values"):
        Bars("t", ["a"], [1, 2])
    with pytest.raises(ValueError, match="bins"):
        Histogram("t", [Sample("a", [1])], bins=0).svg()
    with pytest.raises(ValueError, match="at least 120"):
        Lines("t", [Series("a", [1], [1])]).svg(10, 10)


@pytest.mark.parametrize("low,high", [(0, 1), (-1, 1), (0.02, 0.98), (1e-9, 5e-9), (-1e6, 3e7), (99.5, 100.5)])
@pytest.mark.parametrize("count", [3, 5, 8])
def test_ticks_are_nice_inside_and_about_as_many_as_asked(low, high, count):
    found = ticks(low, high, count)
    step = found[1] - found[0]
    mantissa = step / 10 ** math.floor(math.log10(step) + 1e-9)
    assert min(abs(mantissa - m) for m in (1, 2, 2.5, 5)) < 1e-6
    assert np.allclose(np.diff(found), step)
    assert low - 1e-9 * step <= found[0]
    assert found[-1] <= high + 1e-9 * step
    assert count / 2 <= len(found) <= 2 * count


def test_ticks_refuse_an_empty_range():
    with pytest.raises(ValueError, match="low < high"):
        ticks(1, 1)


@pytest.mark.parametrize(
    "value,text",
    [
        (0, "0"), (0.0, "0"), (97.04, "97.0"), (478.3, "478"), (12345.6, "12,346"), (1_200_000, "1,200,000"),
        (-0.5, "−0.500"), (1.2e-7, "1.2·10⁻⁷"), (NAN, "NaN"), (INF, "∞"), (None, "–"), (True, "yes"),
        ("as is", "as is"),
        (np.float32(0.25), "0.250"), (np.int64(7), "7"),
    ],
)  # fmt: skip
def test_number(value, text):
    assert number(value) == text


def test_escape_leaves_other_scripts_alone():
    assert escape("ärger 日本語 🍎") == "ärger 日本語 🍎"


def test_the_legend_shows_which_lines_are_dashed() -> None:
    x = [1.0, 2.0]
    root = parse(Lines("loss", [Series("training", x, x), Series("held out", x, x, dashed=True)]).svg())
    styles = [element.get("style", "") for element in root.iter("line") if "var(--series" in element.get("style", "")]
    assert ["dasharray" in style for style in styles] == [False, True]


def test_points_have_their_names_beside_them():
    """Each with a label; labels of points at one place do not cover one another, and stay inside."""
    names = ["vae", "gan", "flow", "diffusion with a long name"]
    chart = Scatter("Quality against cost", names, [1.0, 1.0, 1.0, 40.0], [5.0, 5.0, 5.01, 9.0], Axis("s", log=True))
    root = parse(chart.svg(560, 300))
    texts = {element.text: element for element in root.iter("text")}
    assert set(names) <= set(texts)
    lines = sorted(float(texts[name].get("y", "nan")) for name in names[:3])
    assert all(b - a >= 13.9 for a, b in itertools.pairwise(lines))
    assert texts[names[3]].get("text-anchor") == "end"
    assert len(list(root.iter("circle"))) == 4
    assert "flow: 5.01 at 1" in ET.tostring(root, encoding="unicode")


def test_points_without_a_place_are_counted():
    svg = Scatter("s", ["a", "b"], [1.0, NAN], [2.0, 3.0]).svg()
    assert "1 value not drawn" in svg
    assert len(list(parse(svg).iter("circle"))) == 1
    with pytest.raises(ValueError, match="2 names for points"):
        Scatter("s", ["a", "b"], [1.0], [2.0])
