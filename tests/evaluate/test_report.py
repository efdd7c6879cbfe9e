"""The page and the card: self-contained, well-formed, and deaf to what captions say."""

import html.parser
import json
import re
import xml.etree.ElementTree as ET

import pytest
import torch

from carrara.errors import NonFiniteError, StorageError
from carrara.evaluate import Axis, Bars, Blocks, Histogram, KeyFigure, Lines, Report, Sample, Series, card, sheet

HOSTILE = "\"><script>alert(1)</script><img src=x onerror=alert(1)> </style> ' & \x00\x1b\u202e\ud800"
VOID = {"meta", "link", "img"}


class Checker(html.parser.HTMLParser):
    """Tags that open must close in order; collects attributes, tags and text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(page)
        self.close()
        assert not self.open, self.open

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]


def full(text: str) -> Report:
    """A report that says `text` in every place that takes text."""
    x = torch.rand(4, 3, 8, 8) * 2 - 1
    report = Report(text, text)
    report.prose(text).figures(KeyFigure(text, text, text, text), KeyFigure("n", 3.14159))
    report.heading(text, text).note(text).code(text)
    report.table([text, "b"], [[text, 1.5], ["c", None]], caption=text)
    report.grid(x, [text] * 4).compare({text: x, "b": x}, [text] * 4).strip({text: x, "b": x}, [text] * 4, title=text)
    report.picture(sheet(x, 2, labels=[text] * 4), text, caption=text)
    line = Lines(text, [Series(text, [1, 2], [1, 2]), Series("b", [1], [1])], Axis(text), Axis(text), note=text)
    report.plot(line, Histogram(text, [Sample(text, [1, 2])]), Bars(text, [text], [1], unit=text))
    report.heading("second").details(text, Blocks().prose(text).code(text))
    return report.footer(text)


@pytest.mark.parametrize("text", ["plain words", HOSTILE])
def test_page_is_well_formed_and_loads_nothing(text):
    page = full(text).html()
    page.encode("utf-8")
    checked = Checker(page)
    assert not checked.named("script")
    assert "<script" not in page
    assert not re.search(r"https?://|@import|url\((?!#)", page)
    for tag, attrs in checked.tags:
        assert not any(name.startswith("on") for name in attrs), (tag, attrs)
    assert all((a["src"] or "").startswith("data:image/png;base64,") for a in checked.named("img"))
    assert all(a.get("alt") for a in checked.named("img"))
    assert all((a["href"] or "").startswith(("#", "data:")) for a in checked.named("a") + checked.named("link"))
    policy = next(a["content"] for a in checked.named("meta") if "http-equiv" in a)
    assert "default-src 'none'" in (policy or "")
    assert len(checked.named("img")) == 4 + 8 + 8 + 1
    for svg in re.findall(r"<svg.*?</svg>", page, flags=re.S):
        ET.fromstring(svg)


def test_hostile_text_is_shown_as_text():
    checked = Checker(Report("t").grid(torch.zeros(1, 1, 4, 4), ["<b>a & b</b>"]).html())
    assert "<b>a & b</b>" in checked.text
    assert not checked.named("b")


def test_contents_lead_to_sections():
    checked = Checker(Report("t").heading("one").heading("two").html())
    ids = {a.get("id") for a in checked.named("section")}
    assert [a["href"] for a in checked.named("a")] == ["#s1", "#s2"]
    assert {"s1", "s2"} <= ids


def test_nothing_is_a_page_too():
    Checker(Report("").html())
    empty = Report("t").figures().plot().table([], []).grid(torch.zeros(0, 3, 4, 4)).strip({}).compare({}).prose("")
    Checker(empty.html())


def test_the_same_report_gives_the_same_page():
    torch.manual_seed(0)
    first = full("a").html()
    torch.manual_seed(0)
    assert full("a").html() == first


def test_charts_come_in_three_widths():
    page = Report("t").plot(Lines("loss", [Series("a", [1, 2], [1, 2])])).html()
    assert [a["width"] for a in Checker(page).named("svg")[1:]] == ["960", "560", "340"]


def test_numbers_stand_to_the_right():
    cells = Checker(Report("t").table(["a", "b"], [["x", 1.0], ["y", None]]).html()).named("td")
    assert [c.get("class") for c in cells] == [None, "n", None, "n"]


def test_wrong_blocks_are_refused():
    x = torch.zeros(2, 1, 4, 4)
    with pytest.raises(ValueError, match="1 captions for 2"):
        Report("t").grid(x, ["a"])
    with pytest.raises(ValueError, match="different lengths"):
        Report("t").compare({"a": x, "b": x[:1]})
    with pytest.raises(ValueError, match=r"row 0 .* 1 cells"):
        Report("t").table(["a", "b"], [["x"]])
    with pytest.raises(NonFiniteError):
        Report("t").grid(x / 0)


def test_write_replaces_whole_files(tmp_path):
    path = tmp_path / "new" / "report.html"
    Report("first").write(path)
    assert Report("second ä").write(str(path)) == path
    assert "second ä" in path.read_text("utf-8")
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]


def test_write_says_where_it_failed(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="report could not be written"):
        Report("t").write(tmp_path / "file" / "report.html")
    (tmp_path / "folder").mkdir()
    with pytest.raises(StorageError):
        Report("t").write(tmp_path / "folder")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"]


FACTS = {
    "name": "Small pictures",
    "what": "A generator.\n\nOf emoji.",
    "license": "apache-2.0",
    "tags": ["text-to-image", "yes", "a: b"],
    "trained_on": "450 pictures",
    "training": {"steps": 6000, "rate": 3e-4},
    "figures": {"decoder_psnr_heldout_db": 28.41, "prompt_fidelity_top1": 0.97},
    "load": "runs/demo/system",
    "limits": ["No hands."],
    "attribution": [("Twemoji", "https://example.org/a_b"), "CC-BY 4.0"],
}


def test_card_says_everything():
    text = card(FACTS)
    assert text.startswith("---\nlicense: apache-2.0\nlibrary_name: carrara\ntags:\n- carrara\n- diffusion\n")
    assert '- "yes"' in text
    assert '- "a: b"' in text
    assert r"| decoder\_psnr\_heldout\_db | 28.41 |" in text
    assert "carrara.load('runs/demo/system')" in text
    assert "[Twemoji](<https://example.org/a_b>)" in text
    assert len(re.search(r"```python\n(.*?)\n```", text, re.S)[1].splitlines()) == 3


def test_card_head_is_yaml():
    yaml = pytest.importorskip("yaml")
    tags = ["a: b", "yes", "1.5", "- x", "#", "'", '"\\', "line\nbreak\u2028\x85", "🍎", "\ufeff", "~", "---", ""]
    head = card({**FACTS, "license": "other: x\n---\n# y", "tags": tags}).split("---\n", 2)[1]
    read = yaml.safe_load(head)
    assert read["tags"] == ["carrara", "diffusion", *tags]
    assert read["license"] == "other: x\n---\n# y"


def test_card_survives_hostile_facts():
    text = "# h\n\n- l\n\n1. n | `c` ![i](javascript:x) <script>x</script> [a](b)\n---\n```"
    made = card(
        {
            "name": text,
            "what": text,
            "trained_on": text,
            "figures": {text: text},
            "limits": [text],
            "load": "a'\n```\nimport os\nb",
            "attribution": [(text, "javascript:alert(1)"), (text, "https://x> <script>")],
        }
    )
    body = made.split("---\n", 2)[2]
    headings = [line for line in body.splitlines() if line.startswith("#")]
    assert headings[1:] == ["## Use", "## Figures", "## Trained on", "## Limits", "## Licence", "## Attribution"]
    assert not re.search(r"(?<!\\)<script|(?<!\\)\]\(", body)
    assert not re.search(r"^(1\.|```$(?!\n))", body.replace("\n```\n\n", "\n"), flags=re.M)
    assert "None has been stated." in body
    code = re.search(r"^(`{3,})python\n(.*?)\n\1$", body, re.S | re.M)
    assert code
    assert len(code[2].splitlines()) == 3
    assert "\\n```\\nimport os" in code[2]


def test_card_refuses_what_it_does_not_know():
    with pytest.raises(ValueError, match="did you mean 'figures'"):
        card({"name": "x", "figure": {}})
    with pytest.raises(ValueError, match="needs 'name'"):
        card({"what": "x"})


def test_facts_may_come_from_json():
    assert card(json.loads(json.dumps(FACTS))) == card(FACTS)
