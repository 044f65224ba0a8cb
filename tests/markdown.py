"""The project's pages as tests read them: blocks, commands, tables, links and headings."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LANGUAGES = {"bash", "python", "py", ""}  # run line by line; run as a whole; a part of a file; what a program prints
SPAN = re.compile(r"`([^`]+)`")
SETTING = re.compile(r"(?:\w+=\S* )*")  # of the environment, before a command
PROGRAMS = {
    *("bash", "curl", "docker", "export", "git", "kubectl", "pip", "pre-commit", "pyright", "pytest", "python"),
    *("python3", "ray", "raydis", "ruff", "serve", "set", "sh", "source", "uv"),
}
NAMES = {"python -m raydis", "ray start", "serve run"}  # commands that a page speaks of and asks nobody to type
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
        """The text with spaces in the place of its fenced blocks: what follows a block keeps its position."""
        return FENCE.sub(lambda block: re.sub(r"[^\n]", " ", block[0]), self.text)

    @cached_property
    def steps(self) -> list[Step]:
        """Lines of bash blocks, blocks of Python, and commands in tables and in running text, in order."""
        found: list[tuple[int, Step]] = []
        for block in FENCE.finditer(self.text):
            language, text = block.groups()
            parts = text.splitlines() if language == "bash" else [text] if language == "python" else []
            found += [(block.start(), Step(language, part)) for part in parts]
        spans = [(span.start(), " ".join(span[1].split())) for span in SPAN.finditer(self.prose)]
        found += [(start, Step("bash", text)) for start, text in spans if is_command(text)]
        return [step for _, step in sorted(found, key=lambda item: item[0])]

    @property
    def commands(self) -> list[str]:
        return [step.text for step in self.steps if step.language == "bash"]

    @property
    def escapes(self) -> list[str]:
        """Return what a reader may take for a command, but which is in none of the places where `steps` looks."""
        languages = [f"language {block[1]}" for block in FENCE.finditer(self.text) if block[1] not in LANGUAGES]
        shown = "".join(block[2] for block in FENCE.finditer(self.text) if not block[1])
        printed = [line for line in shown.splitlines() if is_command(line.removeprefix("$ "))]
        other_code = re.findall(r"^(?: {4}|\t)[ \t]*\S.*|^.*(?:``|~~~|<pre|<code).*", self.prose, re.MULTILINE)
        bare = re.findall(r"(?:python3? -m|pip install) .*", SPAN.sub("", self.prose))
        return [*languages, *printed, *other_code, *bare]

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


def is_command(text: str) -> bool:
    """Return whether a reader may type this: a program that our pages use, with arguments."""
    text = SETTING.sub("", text, count=1)
    program, _, arguments = text.partition(" ")
    return program in PROGRAMS and bool(arguments) and text not in NAMES


def read_pages() -> dict[str, Page]:
    """Every page, by its path."""
    folders = (".github", "infra", "k8s", "raydis", "serve_configs", "sweeps", "tests")
    files = [ROOT / "README.md", *(file for folder in folders for file in sorted((ROOT / folder).rglob("*.md")))]
    return {str(file.relative_to(ROOT)): Page(file.relative_to(ROOT)) for file in files}
