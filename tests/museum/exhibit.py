"""What the museum shows: a bug that was seen in public, and the small change of our own code that would be that bug."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Absent", "Bug", "Exhibit"]


@dataclass(frozen=True, kw_only=True)
class Bug:
    """A silent bug: one that made plausible pictures or figures, and was found late."""

    number: int
    title: str
    seen: str  # repository#number, of issues and pull requests in public; or the paper that tells of it


@dataclass(frozen=True, kw_only=True)
class Exhibit:
    """A bug as a change of one place in our code, and the tests that must fail when the change is made.

    `text` is found exactly once in `file` (below src/carrara); the museum complains where it is not. `tests` are pytest
    node ids from the root of the repository. They fail by an assertion (or by an error that was not raised), or with an
    exception of the name in `raises`; anything else, such as a module that no longer can be imported, proves nothing.
    """

    name: str
    bug: int
    file: str
    text: str
    replacement: str
    tests: tuple[str, ...]
    raises: str = "AssertionError"
    note: str = ""  # what the change does, where the lines do not say it

    def mutated(self, source: str) -> str:
        """The source with the bug in it; ValueError where the text is not found exactly once."""
        found = source.count(self.text)
        if found != 1:
            raise ValueError(
                f'the exhibit "{self.name}" (bug {self.bug}) looks for a text in src/carrara/{self.file} that is there '
                f"{found} times instead of once; the code has changed: bring the exhibit up to date\n{self.text}"
            )
        return source.replace(self.text, self.replacement)


@dataclass(frozen=True, kw_only=True)
class Absent:
    """Why a bug of the catalogue is not shown."""

    bug: int
    reason: str
