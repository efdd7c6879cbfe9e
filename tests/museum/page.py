"""docs/museum.md, written from the collection."""

from __future__ import annotations

from museum.catalogue import ABSENT, BUGS
from museum.collection import EXHIBITS
from museum.exhibit import Bug, Exhibit

__all__ = ["page"]

_HEAD = """\
# The museum of bugs

Bugs of diffusion code rarely crash. They make pictures that are a little worse, figures that are a little wrong, runs
that cannot be repeated, and they stay for months. Here are {bugs} of them that were seen in public, each as a small
change of our own code, {exhibits} in all, and the test that fails when the change is made.

```bash
make museum                                    # every exhibit; a few minutes
python tests/museum first-level-squared 15 -v  # some of them, by name or by the bug's number
python tests/museum --list
```

The command copies the package, makes one change in the copy, and runs the listed tests against it; the working tree
stays as it is. A change counts as caught when one of its tests fails by an assertion (or by the error that is named),
not when a module can no longer be imported. First all of these tests run without any change, and have to pass.
Continuous integration does this with every change; the last line is `museum: {exhibits} of {exhibits} killed`.

An exhibit names the text that it changes. When that text is gone, the museum says so and fails: the exhibit is brought
up to date with the code that replaced it. A bug that was found here, or elsewhere, is a new exhibit in `tests/museum`.

This page is written by `python tests/museum --page`.
"""


def page() -> str:
    """The page as MyST Markdown."""
    shown = {exhibit.bug for exhibit in EXHIBITS}
    head = _HEAD.format(bugs=len(shown), exhibits=len(EXHIBITS))
    blocks = [block for bug in BUGS for block in _bug(bug)]
    return "\n\n".join([head.strip(), *blocks]) + "\n"


def _bug(bug: Bug) -> list[str]:
    exhibits = [exhibit for exhibit in EXHIBITS if exhibit.bug == bug.number]
    reasons = [absent.reason for absent in ABSENT if absent.bug == bug.number]
    head = [f"## {bug.number}. {bug.title}", f"Seen in {bug.seen}."]
    return [*head, *(f"Not shown. {reason}" for reason in reasons), *(b for e in exhibits for b in _exhibit(e))]


def _exhibit(exhibit: Exhibit) -> list[str]:
    lost, made = exhibit.text.strip("\n").split("\n"), exhibit.replacement.strip("\n").split("\n")
    if made == [""]:
        made = []
    before = _shared(lost, made)
    after = _shared(lost[before:][::-1], made[before:][::-1])
    change = [
        *(f" {line}" for line in lost[:before]),
        *(f"-{line}" for line in lost[before : len(lost) - after]),
        *(f"+{line}" for line in made[before : len(made) - after]),
        *(f" {line}" for line in lost[len(lost) - after :]),
    ]
    tests = ", ".join(f"`{test.removeprefix('tests/')}`" for test in exhibit.tests)
    said = f" {exhibit.note}" if exhibit.note else ""
    return [
        f"**{exhibit.name}** in `{exhibit.file}`.{said}",
        "\n".join(["```diff", *change, "```"]),
        f"Caught by {tests}.",
    ]


def _shared(a: list[str], b: list[str]) -> int:
    """How many lines are the same from the beginning."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
