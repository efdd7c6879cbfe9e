"""Small charts as SVG, drawn here so that a report needs no plotting library and no network.

A chart is a frozen value; `chart.svg(width, height)` draws it at that size in CSS pixels, so that a page may hold a
wide and a narrow drawing of the same chart, both with legible text. Colours are CSS variables with fallbacks (`--ink`,
`--muted`, `--vein`, `--series-1` ... `--series-6`), so one drawing serves light and dark pages.
Every chart has a title and a description for those who do not see it.

Values that cannot be drawn (not finite, or not positive on a logarithmic axis) are gaps in a line, and their number is
said under the chart. Smoothing is the exponential mean without start-up bias,

    m_i = (sum_k d^(i-k) y_k) / (sum_k d^(i-k)),    d = 1 - 2 / (window + 1)

with the raw values behind it.
"""

from __future__ import annotations

import html
import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np

__all__ = ["Axis", "Bars", "Chart", "Histogram", "Lines", "Sample", "Scatter", "Series", "escape", "number", "ticks"]

Numbers: TypeAlias = "Sequence[float] | np.ndarray"
Ends: TypeAlias = tuple[float, float]

_FALLBACK = ("#a8501f", "#37618e", "#5d7f47", "#b98a1e", "#7b5480", "#2f8583")
_BOX = "fill:none;stroke:var(--vein,#d9dcdf)"
_FONT = 12.5  # px
_MARKERS = 24  # series of at most so many points show each as a dot


def escape(text: object) -> str:
    """Text for HTML and SVG: markup and quotes escaped, what neither format may hold replaced."""
    return html.escape("".join(c if _allowed(ord(c)) else "\N{REPLACEMENT CHARACTER}" for c in str(text)), quote=True)


def _allowed(code: int) -> bool:
    """XML 1.0's characters, without the C1 controls."""
    return (
        code in (0x9, 0xA, 0xD)
        or 0x20 <= code < 0x7F
        or (0xA0 <= code <= 0xD7FF)
        or (0xE000 <= code <= 0xFFFD)
        or code >= 0x10000
    )


def number(value: float | int | str | bool | None, digits: int = 3) -> str:
    """A value as a person writes it: `digits` significant digits, thousands set apart, powers of ten where needed."""
    if value is None:
        return "\N{EN DASH}"
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return value
    if isinstance(value, int):
        return f"{value:,}".replace("-", "\N{MINUS SIGN}")
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "\N{INFINITY}" if value > 0 else "\N{MINUS SIGN}\N{INFINITY}"
    if value == 0:
        return "0"
    places = digits - 1 - math.floor(math.log10(abs(value)))
    text = _power(value, digits) if places > digits + 3 or abs(value) >= 1e9 else f"{value:,.{max(places, 0)}f}"
    return text.replace("-", "\N{MINUS SIGN}")


def _power(value: float, digits: int) -> str:
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    if "." in mantissa:
        mantissa = mantissa.rstrip("0").rstrip(".")
    raised = str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"10{raised}" if mantissa == "1" else f"{mantissa}\N{MIDDLE DOT}10{raised}"


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` multiples of 1, 2, 2.5 or 5 times a power of ten inside [low, high]."""
    if not (math.isfinite(low) and math.isfinite(high)) or low >= high:
        raise ValueError(f"ticks between {low} and {high}; expected finite ends, low < high")
    power = 10.0 ** math.floor(math.log10((high - low) / max(count, 1)))
    found = []
    for step in (power, 2 * power, 2.5 * power, 5 * power, 10 * power):
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        found.append([i * step for i in range(first, last + 1)])
    return min(found, key=lambda values: abs(len(values) - count))


@dataclass(frozen=True)
class Axis:
    """What an axis measures, and whether it is logarithmic."""

    label: str = ""
    log: bool = False


@dataclass(frozen=True, eq=False)
class Series:
    """A named line. `window` > 1 points: smoothed over about so many, the raw values faint behind."""

    name: str
    x: Numbers
    y: Numbers
    window: int = 0
    dashed: bool = False

    def __post_init__(self) -> None:
        x, y = np.shape(self.x), np.shape(self.y)
        if len(x) != 1 or x != y:
            raise ValueError(f"series {self.name!r} has x of shape {x} and y of shape {y}; expected two equal lengths")


@dataclass(frozen=True, eq=False)
class Sample:
    """A named heap of numbers, for a histogram."""

    name: str
    values: Numbers


class Chart(Protocol):
    """What a report can hold: `title` and `note` are set around the drawing by the page."""

    @property
    def title(self) -> str: ...
    @property
    def note(self) -> str: ...
    def svg(self, width: int = 720, height: int = 320) -> str:
        """One `<svg>` element, without a namespace: to be set into an HTML page."""
        ...


@dataclass(frozen=True)
class _Scale:
    """Values to pixels along one axis, linear or logarithmic."""

    low: float
    high: float
    start: float
    stop: float
    log: bool

    def __call__(self, values: Numbers | float) -> np.ndarray:
        v, low, high = np.asarray(values, dtype=np.float64), self.low, self.high
        if self.log:
            v, low, high = np.log(v), math.log(low), math.log(high)
        return self.start + (v - low) / (high - low) * (self.stop - self.start)

    def ticks(self, count: int) -> list[float]:
        if not self.log:
            return ticks(self.low, self.high, count)
        first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
        if last - first > 300:  # subnormal ends: the powers themselves would underflow
            return [self.low, self.high]
        stride = max(1, -(-(last - first) // count))
        for steps in ((1.0,), (1.0, 3.0), (1.0, 2.0, 5.0)):
            found = [m * 10.0**e for e in range(first, last + 1, stride) for m in steps]
            found = [v for v in found if self.low * (1 - 1e-9) <= v <= self.high * (1 + 1e-9)]
            if len(found) >= 3:
                return found
        return ticks(self.low, self.high, count)


def _drawable(values: np.ndarray, axis: Axis) -> np.ndarray:
    """Where a value has a place on the axis; float64 extremes whose differences overflow have none."""
    with np.errstate(invalid="ignore"):
        keep: np.ndarray = np.isfinite(values) & (np.abs(values) < 1e300)
        return keep & (values > 1e-300) if axis.log else keep


def _ends(values: np.ndarray, axis: Axis, *, padded: bool) -> tuple[float, float]:
    """The range shown: never empty, with some air, down to zero where zero is near."""
    low, high = float(values.min()), float(values.max())
    if axis.log:
        if low == high:
            return low / 2, high * 2
        air = (high / low) ** 0.05 if padded else 1.0
        return low / air, high * air
    if high - low <= 1e-12 * max(abs(low), abs(high)):
        air = 0.1 * abs(low) or 1.0
        return low - air, high + air
    if not padded:
        return low, high
    air = 0.06 * (high - low)
    return (0.0 if 0 <= low < 0.5 * high else low - air), high + air


def _labels(values: Sequence[float], axis: Axis) -> list[str]:
    """Tick labels, alike in their digits."""
    largest = max(map(abs, values), default=0.0)
    if axis.log and (largest >= 1e4 or min(values, default=1.0) < 1e-3):
        return [_power(v, 1) for v in values]
    if largest >= 1e9 or 0 < largest < 1e-3:
        return ["0" if v == 0 else number(v) for v in values]
    unit, letter = (1e6, "M") if largest >= 1e6 else (1e3, "k") if largest >= 1e4 else (1.0, "")
    return [f"{round(v / unit, 6):g}{letter if v else ''}".replace("-", "\N{MINUS SIGN}") for v in values]


def _wide(text: str, size: float = _FONT) -> float:
    """About how many pixels a text takes."""
    return sum(1.0 if ord(c) > 0x2E80 else 0.56 for c in text) * size


def _fit(text: str, width: float) -> str:
    """The text, or as much as takes `width` pixels and an ellipsis."""
    text = " ".join(text.split())
    if _wide(text) <= width:
        return text
    while text and _wide(text) > width - _FONT:
        text = text[:-1]
    return text.rstrip() + "\N{HORIZONTAL ELLIPSIS}"


def _colour(i: int) -> str:
    k = i % len(_FALLBACK)
    return f"var(--series-{k + 1},{_FALLBACK[k]})"


def _write(x: float, y: float, text: str, anchor: str = "start", *, ink: str = "muted") -> str:
    colour = {"muted": "var(--muted,#5f676e)", "ink": "var(--ink,#24282c)"}[ink]
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" style="fill:{colour};'
        f'font:{_FONT}px system-ui,sans-serif;font-variant-numeric:tabular-nums">{escape(text)}</text>'
    )


def _rule(x1: float, y1: float, x2: float, y2: float, *, strong: bool = False) -> str:
    colour = "var(--muted,#5f676e)" if strong else "var(--vein,#d9dcdf)"
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" style="stroke:{colour};stroke-width:1"/>'


def _svg(width: int, height: float, title: str, about: Iterable[str], body: Iterable[str]) -> str:
    if width < 120 or height < 20:
        raise ValueError(f"a chart of {width} x {height:.0f} pixels; expected at least 120 wide")
    said = escape(". ".join(s for s in about if s))
    return (
        f'<svg viewBox="0 0 {width} {height:.0f}" width="{width}" height="{height:.0f}" role="img" '
        f'aria-label="{escape(title or "chart")}"><title>{escape(title or "chart")}</title><desc>{said}</desc>'
        + "".join(body)
        + "</svg>"
    )


_BROKEN = "stroke-dasharray:6 4"


@dataclass(frozen=True)
class _Frame:
    """The room of a chart with two numeric axes: legend on top, ticks left and below."""

    x: _Scale
    y: _Scale
    width: int
    height: int
    furniture: tuple[str, ...]


def _frame(
    width: int,
    height: int,
    ends: tuple[Ends, Ends],
    x: Axis,
    y: Axis,
    names: Sequence[str],
    dashed: Collection[str] = (),
) -> _Frame:
    legend, top = _legend(width, y.label, names, dashed)
    bottom = height - (42 if x.label else 24)
    rows = _Scale(*ends[1], bottom, top, y.log)
    marks = rows.ticks(max(2, (bottom - int(top)) // 46))
    texts = _labels(marks, y)
    left = 10 + max((_wide(t) for t in texts), default=20.0)
    columns = _Scale(*ends[0], left, width - 12, x.log)
    parts = list(legend)
    for text, place in zip(texts, rows(marks), strict=True):
        parts += [_rule(left, place, width - 12, place), _write(left - 7, place + 4.3, text, "end")]
    marks = columns.ticks(max(2, int(width - left) // 84))
    for text, place in zip(_labels(marks, x), columns(marks), strict=True):
        half = _wide(text) / 2
        parts += [_rule(place, bottom, place, bottom + 4, strong=True)]
        parts += [_write(min(place, width - half), bottom + 18, text, "middle")]
    parts.append(_rule(left, bottom, width - 12, bottom, strong=True))
    if x.label:
        parts.append(_write((left + width - 12) / 2, height - 5, _fit(x.label, width - left), "middle"))
    return _Frame(columns, rows, width, height, tuple(parts))


def _legend(width: int, label: str, names: Sequence[str], dashed: Collection[str] = ()) -> tuple[list[str], float]:
    """The y axis's label and the series' names; returns what to draw and where the plot may begin."""
    parts = [_write(2, 14, _fit(label, width - 4))] if label else []
    broken = [name in dashed for name in names]
    names = [_fit(name, width - 40) for name in names]
    sizes = [26 + _wide(name) + 14 for name in names]
    room = width - (_wide(label) + 24 if label else 0)
    shown = [(i, name) for i, name in enumerate(names) if name]
    if not shown:
        return parts, 26.0 if label else 12.0
    beside = sum(sizes[i] for i, _ in shown) <= room
    place, line = (width - sum(sizes[i] for i, _ in shown) + 10.0, 14.0) if beside else (2.0, 34.0 if label else 14.0)
    for i, name in shown:
        if place > 2 and place + sizes[i] - 14 > width:
            place, line = 2.0, line + 19
        parts.append(
            f'<line x1="{place:.1f}" y1="{line - 4.5:.1f}" x2="{place + 18:.1f}" y2="{line - 4.5:.1f}" '
            f'style="stroke:{_colour(i)};stroke-width:3;{_BROKEN if broken[i] else "stroke-linecap:round"}"/>'
        )
        parts.append(_write(place + 25, line, name, ink="ink"))
        place += sizes[i]
    return parts, line + 14


def _nothing(width: int, height: int, title: str) -> str:
    frame = f'<rect x="1" y="1" width="{width - 2}" height="{height - 2}" rx="6" style="{_BOX}"/>'
    return _svg(width, height, title, ["no data"], [frame, _write(width / 2, height / 2 + 4, "no data", "middle")])


def _left_out(count: int, axis: Axis) -> str:
    if not count:
        return ""
    why = "not finite or not positive" if axis.log else "not finite"
    return f"{count} value{'s' if count > 1 else ''} not drawn: {why}"


def _smooth(y: np.ndarray, window: int) -> np.ndarray:
    """The exponential mean over drawable values; a gap stays a gap and is skipped."""
    decay, total, weight = 1 - 2 / (window + 1), 0.0, 0.0
    mean = np.full(len(y), np.nan)
    for i, value in enumerate(y):
        if not math.isnan(value):
            total, weight = decay * total + value, decay * weight + 1
            mean[i] = total / weight
    return mean


def _thin(x: np.ndarray, y: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """At most about `most` points: each stretch keeps its lowest and highest, and gaps stay gaps."""
    if len(x) <= most:
        return x, y
    keep: list[int] = []
    for part in np.array_split(np.arange(len(x)), most // 2):
        gaps = np.isnan(y[part])
        if gaps.all():
            keep.append(int(part[0]))
            continue
        ends = {int(part[np.nanargmin(y[part])]), int(part[np.nanargmax(y[part])])}
        keep += sorted(ends | ({int(part[np.argmax(gaps)])} if gaps.any() else set()))
    return x[keep], y[keep]


def _line(frame: _Frame, x: np.ndarray, y: np.ndarray, style: str) -> str:
    """One path with gaps, and a dot where a point stands alone."""
    x, y = _thin(x, y, 2 * frame.width)
    open_ = np.isnan(y)
    path, dots = [], []
    for run in np.split(np.arange(len(y)), np.flatnonzero(open_[1:] != open_[:-1]) + 1):
        if len(run) == 0 or open_[run[0]]:
            continue
        places = [f"{a:.1f} {b:.1f}" for a, b in zip(frame.x(x[run]), frame.y(y[run]), strict=True)]
        if len(places) == 1:
            a, b = places[0].split()
            dots.append(f'<circle cx="{a}" cy="{b}" r="2.6" style="{style};stroke-width:1.5"/>')
        else:
            path.append("M" + "L".join(places))
    drawn = f'<path d="{"".join(path)}" style="fill:none;{style};stroke-linejoin:round"/>' if path else ""
    return drawn + "".join(dots)


def _dots(frame: _Frame, x: np.ndarray, y: np.ndarray, name: str, colour: str) -> str:
    """A dot for each point, which says its value when pointed at."""
    keep = ~np.isnan(y)
    x, y = x[keep], y[keep]
    return "".join(
        f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3" style="fill:{colour}"><title>'
        f"{escape(f'{name}: {number(v)} at {number(u)}')}</title></circle>"
        for a, b, u, v in zip(frame.x(x), frame.y(y), x.tolist(), y.tolist(), strict=True)
    )


@dataclass(frozen=True, eq=False)
class Lines:
    """Several named lines over one numeric axis."""

    title: str
    series: Sequence[Series]
    x: Axis = Axis()
    y: Axis = Axis()
    note: str = ""

    def svg(self, width: int = 720, height: int = 320) -> str:
        """One `<svg>` element of this size in CSS pixels; gaps and single points are drawn as such."""
        xs = [np.asarray(s.x, dtype=np.float64) for s in self.series]
        ys = [np.asarray(s.y, dtype=np.float64) for s in self.series]
        good = [_drawable(x, self.x) & _drawable(y, self.y) for x, y in zip(xs, ys, strict=True)]
        lost = sum(int((~g).sum()) for g in good)
        if not any(g.any() for g in good):
            return _nothing(width, height, self.title)
        every_x = np.concatenate([x[g] for x, g in zip(xs, good, strict=True)])
        every_y = np.concatenate([y[g] for y, g in zip(ys, good, strict=True)])
        ends = _ends(every_x, self.x, padded=False), _ends(every_y, self.y, padded=True)
        missing = _left_out(lost, self.y)
        tall = height - 18 if missing else height
        dashed = [s.name for s in self.series if s.dashed]
        frame = _frame(width, tall, ends, self.x, self.y, [s.name for s in self.series] if len(xs) > 1 else [], dashed)
        body = list(frame.furniture)
        about = []
        for i, (s, x, y, g) in enumerate(zip(self.series, xs, ys, good, strict=True)):
            placed = np.isfinite(x)  # a point without a place in x is left out, without one in y it is a gap
            x, y = x[placed], np.where(g, y, np.nan)[placed]
            body += self._draw(frame, i, s, x, y)
            seen = y[~np.isnan(y)]
            if len(seen):
                about.append(f"{s.name}: {len(seen)} points from {number(seen[0])} to {number(seen[-1])}")
        if missing:
            body.append(_write(2, height - 4, missing))
        return _svg(width, height, self.title, [*about, missing], body)

    @staticmethod
    def _draw(frame: _Frame, i: int, s: Series, x: np.ndarray, y: np.ndarray) -> list[str]:
        colour, dash = _colour(i), f";{_BROKEN}" if s.dashed else ""
        if s.window > 1 and len(x) > 1:
            faint = _line(frame, x, y, f"stroke:{colour};fill:none;stroke-width:1;opacity:.28")
            return [faint, _line(frame, x, _smooth(y, s.window), f"stroke:{colour};fill:none;stroke-width:2.2{dash}")]
        drawn = [_line(frame, x, y, f"stroke:{colour};fill:none;stroke-width:2{dash}")]
        return [*drawn, _dots(frame, x, y, s.name, colour)] if len(x) <= _MARKERS else drawn


@dataclass(frozen=True, eq=False)
class Scatter:
    """Named points between two numeric axes, each with its name beside it."""

    title: str
    names: Sequence[str]
    x_values: Numbers
    y_values: Numbers
    x: Axis = Axis()
    y: Axis = Axis()
    note: str = ""

    def __post_init__(self) -> None:
        shapes = np.shape(self.x_values), np.shape(self.y_values)
        if set(shapes) != {(len(self.names),)}:
            raise ValueError(f"{len(self.names)} names for points of shapes {shapes}; expected one of each")

    def svg(self, width: int = 720, height: int = 320) -> str:
        """One `<svg>` element of this size in CSS pixels; a point without a place is left out and counted."""
        xs, ys = (np.asarray(values, dtype=np.float64) for values in (self.x_values, self.y_values))
        good = _drawable(xs, self.x) & _drawable(ys, self.y)
        if not good.any():
            return _nothing(width, height, self.title)
        missing = _left_out(int((~good).sum()), self.y if self.y.log else self.x)
        ends = _ends(xs[good], self.x, padded=True), _ends(ys[good], self.y, padded=True)
        frame = _frame(width, height - 18 if missing else height, ends, self.x, self.y, [])
        names = [name for name, ok in zip(self.names, good, strict=True) if ok]
        places = list(zip(frame.x(xs[good]).tolist(), frame.y(ys[good]).tolist(), strict=True))
        body = [*frame.furniture, *self._labels(names, places, width)]
        about = []
        for i, (name, (a, b), u, v) in enumerate(zip(names, places, xs[good], ys[good], strict=True)):
            said = f"{name}: {number(float(v))} at {number(float(u))}"
            about.append(said)
            body.append(
                f'<circle cx="{a:.1f}" cy="{b:.1f}" r="4.5" style="fill:{_colour(i)}"><title>{escape(said)}</title>'
                "</circle>"
            )
        if missing:
            body.append(_write(2, height - 4, missing))
        return _svg(width, height, self.title, [*about, missing], body)

    @staticmethod
    def _labels(names: Sequence[str], places: Sequence[tuple[float, float]], width: int) -> list[str]:
        """Each name right of its point, or left where there is no room; one that would cover another goes below it."""
        taken: list[tuple[float, float, float]] = []  # from, to, baseline
        parts = []
        for name, (a, b) in sorted(zip(names, places, strict=True), key=lambda pair: pair[1][1]):
            text = _fit(name, width / 3)
            right = a + 9 + _wide(text) < width
            start = a + 9 if right else a - 9 - _wide(text)
            line = b + 4.3
            while any(f < start + _wide(text) and start < t and abs(line - other) < 14 for f, t, other in taken):
                line += 4
            taken.append((start, start + _wide(text), line))
            parts.append(_write(a + 9 if right else a - 9, line, text, "start" if right else "end", ink="ink"))
        return parts


@dataclass(frozen=True, eq=False)
class Histogram:
    """How often values occur. One sample is counted; several lie over one another, each as shares of its own size."""

    title: str
    samples: Sequence[Sample]
    x: Axis = Axis()
    bins: int = 30
    note: str = ""

    def svg(self, width: int = 720, height: int = 320) -> str:
        """One `<svg>` element of this size in CSS pixels."""
        if self.bins < 1 or self.x.log:
            raise ValueError(f"a histogram of {self.bins} bins, log={self.x.log}; expected bins >= 1, a linear axis")
        heaps = [np.asarray(s.values, dtype=np.float64).ravel() for s in self.samples]
        kept = [h[_drawable(h, self.x)] for h in heaps]
        lost = sum(map(len, heaps)) - sum(map(len, kept))
        if not any(map(len, kept)):
            return _nothing(width, height, self.title)
        together = np.concatenate(kept)
        ends = _ends(together, self.x, padded=False)
        several = len(heaps) > 1
        bins = [np.histogram(k, bins=self.bins, range=ends) for k in kept]
        tall = [c * (100 / max(1, len(k))) if several else c for (c, _), k in zip(bins, kept, strict=True)]
        missing = _left_out(lost, self.x)
        y, top = Axis("share, %" if several else "count"), max(float(t.max()) for t in tall)
        names = [s.name for s in self.samples] if several else []
        frame = _frame(width, height - 18 if missing else height, (ends, (0.0, top * 1.06)), self.x, y, names)
        body = list(frame.furniture)
        for i, (t, (_, edges)) in enumerate(zip(tall, bins, strict=True)):
            body += self._draw(frame, i, t, edges, 0.55 if several else 0.85)
        if missing:
            body.append(_write(2, height - 4, missing))
        about = [
            f"{s.name}: {len(k)} values from {number(k.min())} to {number(k.max())}, median {number(np.median(k))}"
            for s, k in zip(self.samples, kept, strict=True)
            if len(k)
        ]
        return _svg(width, height, self.title, [*about, missing], body)

    @staticmethod
    def _draw(frame: _Frame, i: int, tall: np.ndarray, edges: np.ndarray, opacity: float) -> list[str]:
        places, tops, floor = frame.x(edges), frame.y(tall), float(frame.y(0.0))
        return [
            f'<rect x="{a + 0.5:.1f}" y="{t:.1f}" width="{max(b - a - 1, 0.5):.1f}" height="{floor - t:.1f}" '
            f'style="fill:{_colour(i)};opacity:{opacity}"><title>'
            f"{escape(f'{number(u)} to {number(v)}: {number(n)}')}</title></rect>"
            for a, b, t, n, u, v in zip(
                places, places[1:], tops, tall.tolist(), edges.tolist(), edges[1:].tolist(), strict=False
            )
            if n > 0
        ]


@dataclass(frozen=True, eq=False)
class Bars:
    """Named amounts as lying bars, in the order given; room for long names, readable on a phone."""

    title: str
    names: Sequence[str]
    values: Numbers
    unit: str = ""
    note: str = ""

    def __post_init__(self) -> None:
        if np.shape(self.values) != (len(self.names),):
            raise ValueError(f"{len(self.names)} names for values of shape {np.shape(self.values)}; expected one each")

    def svg(self, width: int = 720, height: int = 0) -> str:
        """One `<svg>` element; its height follows from the number of bars, which are wider where `height` allows."""
        if not len(self.names):
            return _nothing(width, max(height, 120), self.title)
        values = np.asarray(self.values, dtype=np.float64)
        good = _drawable(values, Axis())
        texts = [f"{number(v)} {self.unit}".strip() for v in values.tolist()]
        left = min(0.42 * width, 12 + max(_wide(n) for n in self.names))
        right = 12 + max(_wide(t) for t in texts)
        low, high = min(0.0, values[good].min(initial=0)), max(0.0, values[good].max(initial=0))
        scale = _Scale(low, high if high > low else low + 1, left, max(width - right, left + 20), False)
        zero, row = float(scale(0.0)), min(44, max(28, (height - 10) // len(self.names)))
        body = []
        for i, (name, text) in enumerate(zip(self.names, texts, strict=True)):
            middle, end = 5 + row / 2 + i * row, float(scale(values[i])) if good[i] else zero
            start, size = min(zero, end), abs(end - zero)
            body += [
                _write(left - 9, middle + 4.3, _fit(name, left - 10), "end", ink="ink"),
                f'<rect x="{start:.1f}" y="{middle - 0.32 * row:.1f}" width="{size:.1f}" height="{0.64 * row:.1f}" '
                f'rx="3" style="fill:{_colour(0)}"><title>{escape(name)}: {escape(text)}</title></rect>',
                _write(max(zero, end) + 7, middle + 4.3, text),
            ]
        tall = 10 + row * len(self.names)
        body.append(_rule(zero, 2, zero, tall - 4, strong=True))
        said = [f"{n}: {t}" for n, t in zip(self.names, texts, strict=True)]
        return _svg(width, tall, self.title, said, body)
