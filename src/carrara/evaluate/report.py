"""One page that says what was made and how good it is: self-contained HTML, opened from disk, mailed or printed.

    report = Report("Small pictures of food", "8 minutes on 2 cores")
    report.heading("What it makes").grid(images, prompts)
    report.write(path)

The page holds everything: pictures as data URIs, charts as SVG, no script, system fonts; a content security policy lets
it load nothing at all. It follows the reader's light or dark setting and the width of the window. Every text that comes
in is escaped, so a caption may say anything.
"""

from __future__ import annotations

import os
import random
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Self, TypeAlias

from carrara.errors import StorageError
from carrara.evaluate.grid import data_uri, pictures
from carrara.evaluate.plot import Chart, escape, number

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

__all__ = ["Blocks", "KeyFigure", "Report"]

Value: TypeAlias = "float | int | str | bool | None"

_TINY = 48  # px; smaller pictures are shown with their pixels, not blurred


@dataclass(frozen=True)
class KeyFigure:
    """A number to be seen first: its name, value, unit, and one line that says what it means."""

    label: str
    value: Value
    unit: str = ""
    note: str = ""


class Blocks:
    """A sequence of blocks. Every method adds one and returns the same object, so that calls chain."""

    def __init__(self) -> None:
        self._parts: list[str] = []

    def _add(self, part: str) -> Self:
        self._parts.append(part)
        return self

    def prose(self, text: str) -> Self:
        """Plain text; an empty line begins a new paragraph."""
        paragraphs = (" ".join(p.split()) for p in text.replace("\r\n", "\n").split("\n\n"))
        return self._add("".join(f'<p dir="auto">{escape(p)}</p>' for p in paragraphs if p))

    def note(self, text: str) -> Self:
        """A remark that must not be overlooked: a warning, a limit, an attribution."""
        return self._add(f'<p class="note" dir="auto">{escape(text)}</p>')

    def code(self, text: str) -> Self:
        """Commands or source, as they are."""
        return self._add(f'<pre tabindex="0"><code>{escape(text)}</code></pre>')

    def figures(self, *figures: KeyFigure) -> Self:
        """Key figures as cards."""
        return self._add(f'<dl class="keys">{"".join(map(_card, figures))}</dl>' if figures else "")

    def table(self, header: Sequence[str], rows: Sequence[Sequence[Value]], *, caption: str = "") -> Self:
        """A table; columns in which every value is a number are set to the right.

        Raises:
            ValueError: a row with another number of cells than the header.
        """
        for i, row in enumerate(rows):
            if len(row) != len(header):
                raise ValueError(f"row {i} of the table has {len(row)} cells; expected {len(header)}, as the header")
        right = [bool(rows) and all(_numeric(row[k]) for row in rows) for k in range(len(header))]
        marks = [' class="n"' if r else "" for r in right]
        cells = [[escape(number(v, 4)) for v in row] for row in rows]
        head = "".join(f'<th scope="col"{m}>{escape(h)}</th>' for h, m in zip(header, marks, strict=True))
        body = "".join(
            "<tr>" + "".join(f'<td dir="auto"{m}>{c}</td>' for c, m in zip(row, marks, strict=True)) + "</tr>"
            for row in cells
        )
        above = f"<caption>{escape(caption)}</caption>" if caption else ""
        table = f"<table>{above}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        return self._add(f'<div class="scroll" tabindex="0">{table}</div>')

    def grid(self, images: Tensor, captions: Sequence[str] = (), *, cell: int = 112) -> Self:
        """Captioned pictures, as many a row as fit.

        Args:
            images: (N, C, H, W) in [-1, 1].
            captions: N texts, or none.
            cell: a cell's least width in CSS pixels (a phone may show less).
        """
        return self._add(f'<div class="grid" style="--cell:{cell}px">{_cells({"": images}, captions)}</div>')

    def compare(self, rows: Mapping[str, Tensor], captions: Sequence[str] = (), *, cell: int = 112) -> Self:
        """Pictures that belong together, one above the other in each cell: {"original": x, "reconstruction": y}."""
        return self._add(
            f'{_key(rows)}<div class="grid" style="--cell:{cell}px">{_cells(rows, captions)}</div>' if rows else ""
        )

    def strip(self, rows: Mapping[str, Tensor], captions: Sequence[str] = (), *, title: str = "") -> Self:
        """A process from left to right: column i holds picture i of every row, the caption says its time."""
        columns = max((len(images) for images in rows.values()), default=0)
        if not columns:
            return self
        head = f'<p class="title" dir="auto">{escape(title)}</p>' if title else ""
        style = f"--columns:{columns};--half:{-(-columns // 2)}"
        cells = _cells(rows, captions)
        return self._add(f'<div class="strip">{head}{_key(rows)}<div style="{style}">{cells}</div></div>')

    def picture(self, image: Image.Image, alt: str, *, caption: str = "") -> Self:
        """One picture as large as the page allows, for instance a contact sheet."""
        below = f'<figcaption dir="auto">{escape(caption)}</figcaption>' if caption else ""
        return self._add(f'<figure class="picture">{_img(image, alt)}{below}</figure>')

    def plot(self, *charts: Chart) -> Self:
        """Charts: one takes the whole width, several stand side by side where there is room."""
        drawn = "".join(map(_chart, charts))
        return self._add(f'<div class="charts n{min(len(charts), 3)}">{drawn}</div>' if charts else "")

    def details(self, summary: str, inside: Blocks) -> Self:
        """A part that is closed until asked for; fill `inside` first: `Blocks().code(...)`."""
        return self._add(f"<details><summary>{escape(summary)}</summary><div>{inside._body()}</div></details>")

    def _body(self) -> str:
        return "\n".join(self._parts)


class Report(Blocks):
    """A page with a title. Blocks before the first heading stand in front."""

    def __init__(self, title: str, subtitle: str = "") -> None:
        super().__init__()
        self.title = title
        self.subtitle = subtitle
        self._headings: list[str] = []
        self._footer = ""

    def heading(self, text: str, lead: str = "") -> Self:
        """Begins a section; it appears in the contents. `lead` is one sentence on what is to be seen."""
        self._headings.append(text)
        below = f'<p class="lead" dir="auto">{escape(lead)}</p>' if lead else ""
        return self._add(f'</section><section id="s{len(self._headings)}"><h2 dir="auto">{escape(text)}</h2>{below}')

    def footer(self, text: str) -> Self:
        """The last line: versions, licence, attribution."""
        self._footer = text
        return self

    def html(self) -> str:
        """The page."""
        links = "".join(f'<li><a href="#s{i}">{escape(h)}</a></li>' for i, h in enumerate(self._headings, 1))
        contents = f'<nav aria-label="Contents"><ol>{links}</ol></nav>' if len(self._headings) > 1 else ""
        subtitle = f'<p class="subtitle" dir="auto">{escape(self.subtitle)}</p>' if self.subtitle else ""
        body = f"<section>{self._body()}</section>".replace("<section></section>", "", 1)
        foot = f"<p>{escape(self._footer)}</p>" if self._footer else ""
        return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="referrer" content="no-referrer">
<meta name="generator" content="Carrara">
<link rel="icon" href="data:,">
<title>{escape(self.title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<header>{_veins()}<div class="page">
<p class="mark">Carrara</p><h1 dir="auto">{escape(self.title)}</h1>{subtitle}{contents}
</div></header>
<main class="page">
{body}
</main>
<footer class="page">{foot}<p>Made with Carrara. This page holds everything it shows and loads nothing.</p></footer>
</body>
</html>
"""

    def write(self, path: str | Path) -> Path:
        """Writes the page beside `path` and renames it: a reader sees the old page or the new one.

        Raises:
            StorageError: the folder cannot be made or written.
        """
        path = Path(path)
        page = self.html().encode("utf-8")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(page)
                    file.flush()
                    os.fsync(file.fileno())
                mask = os.umask(0)
                os.umask(mask)
                os.chmod(name, 0o666 & ~mask)  # mkstemp's 0600 would hide the page from a web server
                os.replace(name, path)
            except BaseException:
                Path(name).unlink(missing_ok=True)
                raise
        except OSError as error:
            raise StorageError(f"the report could not be written to {path}: {error}") from error
        return path


def _known(value: object) -> bool:
    return value is None or isinstance(value, Real)


def _numeric(value: object) -> bool:
    return _known(value) and not isinstance(value, bool)


def _card(figure: KeyFigure) -> str:
    unit = f'<span class="unit">{escape(figure.unit)}</span>' if figure.unit else ""
    note = f'<dd class="why">{escape(figure.note)}</dd>' if figure.note else ""
    value = f'<dd class="value">{escape(number(figure.value))}{unit}</dd>'
    return f"<div><dt>{escape(figure.label)}</dt>{value}{note}</div>"


def _img(image: Image.Image, alt: str) -> str:
    tiny = ' class="tiny"' if max(image.size) < _TINY else ""
    return (
        f'<img{tiny} width="{image.width}" height="{image.height}" decoding="async" '
        f'alt="{escape(alt)}" src="{data_uri(image)}">'
    )


def _cells(rows: Mapping[str, Tensor], captions: Sequence[str]) -> str:
    """One figure a column of `rows`: its pictures one above the other, then the caption."""
    count = {len(images) for images in rows.values()}
    if len(count) > 1:
        given = ", ".join(f"{name!r}: {len(images)}" for name, images in rows.items())
        raise ValueError(f"rows of different lengths ({given}); expected as many pictures in each")
    n = count.pop()
    if captions and len(captions) != n:
        raise ValueError(f"{len(captions)} captions for {n} pictures; expected one for each, or none")
    columns = zip(*(pictures(images) for images in rows.values()), strict=True) if n else ()
    cells = []
    for i, column in enumerate(columns):
        caption = captions[i] if captions else ""
        alts = [": ".join(filter(None, (name, caption))) or f"picture {i + 1}" for name in rows]
        below = f'<figcaption dir="auto">{escape(caption)}</figcaption>' if caption else ""
        shown = "".join(_img(image, alt) for image, alt in zip(column, alts, strict=True))
        cells.append(f"<figure>{shown}{below}</figure>")
    return "".join(cells)


def _key(rows: Mapping[str, Tensor]) -> str:
    """What the rows of a cell are, when there are several."""
    names = [f"<b>{escape(name)}</b>" for name in rows if name]
    return f'<p class="key">{" above ".join(names)}</p>' if len(names) > 1 else ""


def _chart(chart: Chart) -> str:
    title = f"<b>{escape(chart.title)}</b>" if chart.title else ""
    note = f" <span>{escape(chart.note)}</span>" if chart.note else ""
    above = f'<figcaption dir="auto">{title}{note}</figcaption>' if title or note else ""
    wide, middle, narrow = chart.svg(960, 360), chart.svg(560, 300), chart.svg(340, 260)
    return (
        f'<figure class="chart">{above}<div class="wide">{wide}</div>'
        f'<div class="middle">{middle}</div><div class="narrow">{narrow}</div></figure>'
    )


def _veins(seed: int = 19) -> str:
    """The marble behind the title: random walks that drift one way and branch, once soft and once sharp."""
    rng = random.Random(seed)
    paths = []

    def vein(x: float, y: float, slope: float, length: int, width: float) -> None:
        points, bend = [f"M{x:.0f} {y:.0f}"], 0.0
        for _ in range(length):
            bend = 0.75 * bend + rng.gauss(0, 0.22)
            step = rng.uniform(14, 34)
            x, y = x + step, y + step * (slope + bend)
            points.append(f"L{x:.0f} {y:.0f}")
            if width > 0.6 and rng.random() < 0.09:
                vein(x, y, slope + rng.choice((-0.7, 0.7)) * rng.uniform(0.5, 1), rng.randint(5, 14), width * 0.45)
        line = "".join(points)
        if width > 0.8:
            paths.append(f'<path d="{line}" stroke-width="{width * 13:.1f}" opacity=".16" filter="url(#soft)"/>')
        paths.append(f'<path d="{line}" stroke-width="{width:.2f}" opacity="{0.2 + 0.22 * width:.2f}"/>')

    for _ in range(9):
        x, y = rng.uniform(-300, 1100), rng.uniform(-260, 240)
        vein(x, y, rng.gauss(0.42, 0.12), rng.randint(24, 46), rng.choice((0.5, 0.7, 1.0, 1.6)))
    return (
        '<svg class="veins" viewBox="0 0 1400 420" preserveAspectRatio="xMidYMid slice" aria-hidden="true" '
        'fill="none" stroke-linejoin="round"><defs><filter id="soft" x="-20%" y="-20%" width="140%" height="140%">'
        '<feGaussianBlur stdDeviation="14"/></filter></defs>' + "".join(paths) + "</svg>"
    )


_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"

_STYLE = """
:root{--stone:#f1f2f2;--slab:#fcfcfb;--ink:#24282c;--muted:#5f676e;--vein:#d9dcdf;--grain:#8b949c;--accent:#a8501f;
--edge:rgb(36 40 44/.22);--wash:#f6ece5;--shade:0 1px 2px rgb(36 40 44/.05),0 6px 24px -12px rgb(36 40 44/.16);
--series-1:#a8501f;--series-2:#37618e;--series-3:#5d7f47;--series-4:#b98a1e;--series-5:#7b5480;--series-6:#2f8583;
--serif:"Iowan Old Style","Palatino Linotype",Palatino,"URW Palladio L","Book Antiqua",P052,Georgia,
"Liberation Serif",serif}
@media(prefers-color-scheme:dark){:root{--stone:#141618;--slab:#1c1f22;--ink:#e9eae8;--muted:#9fa7ad;--vein:#32373c;
--grain:#7d868e;--edge:rgb(0 0 0/.7);
--accent:#e39466;--wash:#2b221c;--shade:none;
--series-1:#e39466;--series-2:#7fabd9;--series-3:#9cc283;--series-4:#dcb658;--series-5:#c39ac8;--series-6:#6fc3c0}}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%;scroll-behavior:smooth}
body{margin:0;background:var(--stone);color:var(--ink);font:16px/1.6 system-ui,-apple-system,"Segoe UI",Roboto,
"Noto Sans",
"Liberation Sans",sans-serif;overflow-wrap:anywhere}
.page{max-width:1120px;margin:0 auto;padding:0 28px}
header{position:relative;overflow:hidden;background:linear-gradient(160deg,var(--slab),var(--stone));
border-bottom:1px solid var(--vein)}
header .page{position:relative;padding-top:56px;padding-bottom:36px}
.veins{position:absolute;inset:0;width:100%;height:100%;stroke:var(--grain);
mask-image:linear-gradient(100deg,rgb(0 0 0/.22) 20%,#000 68%)}
.mark{margin:0 0 20px;font:600 12px/1 var(--serif);letter-spacing:.34em;text-transform:uppercase;color:var(--accent)}
h1{margin:0;max-width:22ch;font:500 clamp(32px,5.2vw,54px)/1.08 var(--serif);letter-spacing:-.012em;text-wrap:balance}
.subtitle{margin:16px 0 0;max-width:64ch;font-size:18px;color:var(--muted)}
nav ol{display:flex;flex-wrap:wrap;gap:8px;margin:30px 0 0;padding:0;list-style:none}
nav a{display:block;padding:5px 14px;border:1px solid var(--vein);border-radius:99px;background:var(--slab);
color:var(--ink);
font-size:14px;text-decoration:none}
nav a:hover,nav a:focus-visible{border-color:var(--accent);color:var(--accent)}
section{padding:52px 0 8px}
section:first-child{padding-top:40px}
section+section{border-top:1px solid var(--vein);margin-top:44px}
h2{margin:0 0 8px;font:500 30px/1.2 var(--serif);letter-spacing:-.008em}
h2::before{content:"";display:block;width:36px;height:3px;margin-bottom:16px;border-radius:2px;
background:var(--accent)}
p{max-width:70ch;margin:12px 0}
.lead{margin:0 0 24px;font-size:17px;color:var(--muted)}
.note{padding:12px 18px;border-left:3px solid var(--accent);border-radius:0 8px 8px 0;background:var(--wash)}
dl.keys{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(195px,100%),1fr));gap:14px;margin:24px 0}
dl.keys>div{padding:18px 20px 16px;border:1px solid var(--vein);border-radius:12px;background:var(--slab);
box-shadow:var(--shade)}
dl.keys dt{font-size:13.5px;color:var(--muted)}
dl.keys dd{margin:0}
dl.keys .value{margin-top:4px;font:500 38px/1.15 var(--serif);letter-spacing:-.01em;font-variant-numeric:lining-nums}
.unit{margin-left:.28em;font:400 17px system-ui,sans-serif;color:var(--muted)}
dl.keys .why{margin-top:6px;font-size:13.5px;line-height:1.45;color:var(--muted)}
figure{margin:0;min-width:0}
img{display:block;width:100%;height:auto;border-radius:8px;background:#fff;box-shadow:0 0 0 1px var(--vein)}
img+img{margin-top:6px}
img.tiny{image-rendering:pixelated}
figcaption{font-size:13px;line-height:1.4;color:var(--muted)}
.grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(var(--cell),20vw),1fr));gap:18px 14px;
margin:24px 0}
.grid figcaption,.strip figcaption{margin-top:7px;text-align:center}
.grid figcaption{display:-webkit-box;-webkit-box-orient:vertical;-webkit-line-clamp:4;overflow:hidden}
.strip{margin:26px 0}
.strip>div{display:grid;grid-template-columns:repeat(var(--columns),minmax(0,1fr));gap:12px 8px}
.strip .title{margin:0 0 4px;font-weight:600}
.strip .key,.key{margin:0 0 12px;font-size:13.5px;color:var(--muted)}
.key b{color:var(--ink);font-weight:600}
.picture{margin:24px 0}
.picture img{width:auto;max-width:100%}
.picture figcaption{margin-top:8px}
.charts{display:grid;gap:16px;margin:24px 0;grid-template-columns:minmax(0,1fr)}
.charts.n2{grid-template-columns:repeat(auto-fit,minmax(min(440px,100%),1fr))}
.charts.n3{grid-template-columns:repeat(auto-fit,minmax(min(310px,100%),1fr))}
.chart{padding:18px 20px 14px;border:1px solid var(--vein);border-radius:12px;background:var(--slab);
box-shadow:var(--shade);
container-type:inline-size}
.chart figcaption{margin-bottom:12px}
.chart figcaption b{color:var(--ink);font-size:15px;font-weight:650}
.chart svg{display:block;width:100%;height:auto}
.chart .middle,.chart .narrow{display:none}
@container(max-width:700px){.chart .wide,.chart .narrow{display:none}.chart .middle{display:block}}
@container(max-width:440px){.chart .wide,.chart .middle{display:none}.chart .narrow{display:block}}
.scroll{overflow-x:auto;margin:24px 0;border:1px solid var(--vein);border-radius:12px;box-shadow:var(--shade);
background:linear-gradient(90deg,var(--slab) 40%,transparent) left/44px 100% no-repeat local,
linear-gradient(270deg,var(--slab) 40%,transparent) right/44px 100% no-repeat local,
linear-gradient(90deg,var(--edge),transparent) left/14px 100% no-repeat scroll,
linear-gradient(270deg,var(--edge),transparent) right/14px 100% no-repeat scroll,var(--slab)}
table{width:100%;border-collapse:collapse;font-size:14.5px;font-variant-numeric:tabular-nums lining-nums}
caption{padding:12px 18px;text-align:left;color:var(--muted);font-size:13.5px}
th,td{padding:9px 18px;text-align:left;vertical-align:top;overflow-wrap:normal}
td{border-top:1px solid var(--vein)}
th{font-weight:600;color:var(--muted);font-size:13px;white-space:nowrap}
.n{text-align:right;white-space:nowrap}
details{margin:16px 0;border:1px solid var(--vein);border-radius:12px;background:var(--slab)}
summary{padding:13px 20px;cursor:pointer;font-weight:600}
summary:hover{color:var(--accent)}
details>div{padding:0 20px 12px}
pre{margin:18px 0;padding:16px 18px;overflow-x:auto;border:1px solid var(--vein);border-radius:10px;
background:var(--stone);
font:13.5px/1.55 ui-monospace,SFMono-Regular,Menlo,Consolas,"Liberation Mono",monospace;overflow-wrap:normal;
tab-size:4}
:focus-visible{outline:2px solid var(--accent);outline-offset:2px}
footer.page{margin-top:64px;padding-top:22px;padding-bottom:56px;font-size:13.5px;color:var(--muted)}
footer p{margin:4px 0}
@media(max-width:620px){.page{padding:0 18px}header .page{padding-top:38px;padding-bottom:26px}
.subtitle{font-size:16.5px}
section{padding:38px 0 4px}section+section{margin-top:30px}h2{font-size:26px}.grid{gap:14px 10px}
.chart{padding:14px 14px 10px}
dl.keys{grid-template-columns:1fr 1fr;gap:10px}dl.keys>div{padding:14px 14px 12px}
dl.keys>div:last-child:nth-child(odd){grid-column:1/-1}dl.keys .value{font-size:30px}
.unit{font-size:15px}
.strip>div{grid-template-columns:repeat(var(--half),minmax(0,1fr))}th,td{padding:8px 12px}}
@media(prefers-reduced-motion:reduce){html{scroll-behavior:auto}}
@media print{:root{--stone:#fff;--slab:#fff;--ink:#111;--muted:#444;--vein:#ccc;--accent:#8a3f16;--shade:none;
--wash:#f6f2ef}
body{font-size:11pt}nav,.veins{display:none}.page{max-width:none;padding:0}section{padding:20px 0 0}
figure,dl.keys>div,tr{break-inside:avoid}h2,.lead{break-after:avoid}
details::details-content{content-visibility:visible;height:auto}
*{print-color-adjust:exact;-webkit-print-color-adjust:exact}}
"""
