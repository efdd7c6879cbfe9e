"""A page that stands alone: HTML with its style and charts inside, no script, nothing fetched, everything escaped."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Mapping, Sequence

from .findings import printable

__all__ = ["bars", "cards", "data_uri", "escape", "figures", "items", "page", "table"]


def escape(text: object) -> str:
    """Text from anywhere, safe inside an element or a quoted attribute."""
    return html.escape(printable(str(text), 2000), quote=True)


def data_uri(png: bytes) -> str:
    """A PNG as an address that holds it."""
    return "data:image/png;base64," + base64.b64encode(png).decode()


def items(texts: Iterable[str]) -> str:
    """A list, an item a text."""
    return "<ul>" + "".join(f'<li dir="auto">{escape(text)}</li>' for text in texts) + "</ul>"


def cards(values: Mapping[str, object]) -> str:
    """Key figures."""
    return (
        "<dl>"
        + "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in values.items())
        + "</dl>"
    )


def table(header: Sequence[str], rows: Sequence[Sequence[object]], most: int = 200) -> str:
    """A table of the first rows, and how many more there are."""
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in header)
    body = "".join("<tr>" + "".join(f'<td dir="auto">{escape(c)}</td>' for c in row) + "</tr>" for row in rows[:most])
    more = f"<p>and {len(rows) - most} more</p>" if len(rows) > most else ""
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>{more}'


def bars(title: str, counts: Mapping[str, int]) -> str:
    """A bar chart as SVG, a bar a name; empty bars at either end are left out."""
    filled = [i for i, number in enumerate(counts.values()) if number]
    counts = dict(list(counts.items())[filled[0] : filled[-1] + 1]) if filled else counts
    width, row, left = 460, 26, 140
    top = max([*counts.values(), 1])
    lines = []
    for i, (name, number) in enumerate(counts.items()):
        y, length = i * row, (width - left - 70) * number / top
        lines.append(
            f'<text x="{left - 10}" y="{y + 17}" text-anchor="end">{escape(name)}</text>'
            f'<rect x="{left}" y="{y + 4}" width="{max(length, 1 if number else 0):.1f}" height="{row - 8}" rx="3"/>'
            f'<text x="{left + length + 8:.1f}" y="{y + 17}" class="n">{number}</text>'
        )
    height = row * max(len(counts), 1)
    said = ", ".join(f"{name}: {number}" for name, number in counts.items())
    label = escape(f"{title}. {said}")
    return (
        f'<figure class="chart"><figcaption>{escape(title)}</figcaption>'
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{label}">{"".join(lines)}</svg></figure>'
    )


def figures(pictures: Sequence[tuple[bytes, str, str]]) -> str:
    """A contact sheet of (PNG, name, caption)."""
    return (
        '<div class="sheet">'
        + "".join(
            f'<figure><img src="{data_uri(png)}" alt="{escape(name)}" title="{escape(name)}" loading="lazy">'
            f'<figcaption dir="auto">{escape(said)}</figcaption></figure>'
            for png, name, said in pictures
        )
        + "</div>"
    )


def page(title: str, subtitle: str, sections: Sequence[tuple[str, str]]) -> str:
    """The whole document; `sections` are (heading, HTML), the headings and titles plain text."""
    body = "".join(f"<section><h2>{escape(heading)}</h2>{content}</section>" for heading, content in sections)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>"
        f'<header><p class="mark">Carrara</p><h1 dir="auto">{escape(title)}</h1>'
        f'<p class="lead">{escape(subtitle)}</p></header>'
        f"<main>{body}</main></body></html>\n"
    )


_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"

_STYLE = """
:root{--stone:#f1f2f2;--slab:#fcfcfb;--ink:#24282c;--muted:#5f676e;--vein:#d9dcdf;--accent:#a8501f;--wash:#f6ece5;
--good:#3f7350;--calm:#e8f0ea;
--serif:"Iowan Old Style",Palatino,"URW Palladio L",P052,Georgia,serif}
@media(prefers-color-scheme:dark){:root{--stone:#141618;--slab:#1c1f22;--ink:#e9eae8;--muted:#9fa7ad;--vein:#32373c;
--accent:#e39466;--wash:#2b221c;--good:#8fc7a0;--calm:#1c2820}}
*{box-sizing:border-box}
body{margin:0;background:var(--stone);color:var(--ink);
font:16px/1.6 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;overflow-wrap:anywhere}
header,main{max-width:1080px;margin:auto;padding:40px 24px 8px}main{padding-bottom:64px}
.mark{margin:0 0 16px;font:600 12px/1 var(--serif);letter-spacing:.34em;text-transform:uppercase;color:var(--accent)}
h1{margin:0;font:500 clamp(28px,4.6vw,46px)/1.1 var(--serif)}
h2{margin:44px 0 14px;font:500 26px/1.2 var(--serif)}
.lead{margin:12px 0 0;font-size:18px;color:var(--muted)}
.good,.bad{padding:12px 18px;border-left:3px solid var(--accent);border-radius:0 8px 8px 0;background:var(--wash)}
.good{border-left-color:var(--good);background:var(--calm)}
ul{margin:0;padding-left:22px}
dl{display:grid;grid-template-columns:repeat(auto-fill,minmax(160px,1fr));gap:14px;margin:0}
dl>div,.chart,.scroll{border:1px solid var(--vein);border-radius:12px;background:var(--slab)}
dl>div{padding:14px 18px}dt{font-size:13.5px;color:var(--muted)}
dd{margin:2px 0 0;font:500 30px/1.2 var(--serif)}
figure{margin:0}.charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(400px,100%),1fr));gap:14px;
margin:14px 0}.chart{padding:16px 18px}.chart figcaption{margin-bottom:8px;font-weight:600}
svg{display:block;width:100%;max-width:560px;height:auto;font-size:13px}
rect{fill:var(--accent)}text{fill:var(--ink)}text.n{fill:var(--muted)}
.sheet{display:grid;grid-template-columns:repeat(auto-fill,minmax(112px,1fr));gap:16px 12px}
.sheet img{display:block;width:100%;image-rendering:pixelated;border-radius:8px;box-shadow:0 0 0 1px var(--vein)}
.sheet figcaption{margin-top:6px;font-size:12.5px;line-height:1.4;color:var(--muted);max-height:5.6em;overflow:hidden}
.scroll{overflow-x:auto;margin:14px 0}table{border-collapse:collapse;width:100%;font-size:14px}
th,td{padding:9px 16px;text-align:left;vertical-align:top}td{border-top:1px solid var(--vein)}
th{color:var(--muted);font-size:13px}
pre{margin:0;padding:16px 18px;overflow-x:auto;border:1px solid var(--vein);border-radius:10px;background:var(--slab);
white-space:pre-wrap}
@media print{:root{--stone:#fff;--slab:#fff;--ink:#111;--muted:#444;--vein:#ccc}}
"""
