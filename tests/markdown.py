"""The project's pages as tests read them: blocks, commands, tables, links and headings."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMAND_CELL = re.compile(r"^\| `((?:python|pytest) [^`]+)` \|", re.MULTILINE)
LINK = re.compile(r"\[[^]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


class Step(NamedTuple):
    """Something that a page shows and a reader may run: one line of bash, or a whole block of Python."""

    language: str
    text: str


@dataclass(frozen=True)
class Page:
    """A Markdown file of the project.

    Attributes:
        path: from the project's top folder.
    """

    path: Path

    @cached_property
    def text(self) -> str:
        return (ROOT / self.path).read_text()

    @cached_property
    def prose(self) -> str:
        """The text without its fenced blocks."""
        return FENCE.sub("", self.text)

    @cached_property
    def steps(self) -> list[Step]:
        """Lines of bash blocks, blocks of Python and commands in the first column of a table, in order."""
        found: list[tuple[int, Step]] = []
        for block in FENCE.finditer(self.text):
            language, text = block.groups()
            parts = text.splitlines() if language == "bash" else [text] if language == "python" else []
            found += [(block.start(), Step(language, part)) for part in parts]
        found += [(cell.start(), Step("bash", cell[1])) for cell in COMMAND_CELL.finditer(self.text)]
        return [step for _, step in sorted(found, key=lambda item: item[0])]

    @property
    def commands(self) -> list[str]:
        return [step.text for step in self.steps if step.language == "bash"]

    @property
    def mentions(self) -> list[str]:
        """Commands in running text: a reader may copy them, though they are not run."""
        return [text for text in re.findall(r"`([^`]+)`", self.prose) if text.startswith("python -m ")]

    @property
    def rows(self) -> list[str]:
        """Rows of its tables below their headings, with single spaces."""
        lines = self.prose.splitlines()
        is_heading = [bool(re.fullmatch(r"\|(-+\|)+", below)) for below in [*lines[1:], ""]]
        return [
            " ".join(line.split())
            for line, heading in zip(lines, is_heading, strict=True)
            if line.startswith("|") and not heading and not re.fullmatch(r"\|(-+\|)+", line)
        ]

    @property
    def links(self) -> list[str]:
        return LINK.findall(self.prose)

    @property
    def anchors(self) -> set[str]:
        """What links to a part of the page may name, as GitHub makes it from the headings."""
        plain = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in HEADING.findall(self.prose))
        return {heading.replace(" ", "-") for heading in plain}


def read_pages() -> dict[str, Page]:
    """Every page, by its path."""
    folders = (".github", "infra", "k8s", "raydis", "serve_configs", "sweeps", "tests")
    files = [ROOT / "README.md", *(file for folder in folders for file in sorted((ROOT / folder).rglob("*.md")))]
    return {str(file.relative_to(ROOT)): Page(file.relative_to(ROOT)) for file in files}
