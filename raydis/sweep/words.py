"""Settings, names and times in the few characters that a table or a line has for them."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.text import Text

from raydis.metrics.table import number_named


def print_facts(console: Console, facts: dict[str, str]) -> None:
    """Print one fact a line, the names in a column of their own."""
    width = max(map(len, facts))
    for name, fact in facts.items():
        console.print(Text(f"{name:{width}}  {fact}"), soft_wrap=True)


def describe(settings: dict[str, Any], control: str | None = None) -> str:
    """Settings in short: the last part of each key, three digits; a control by its name."""
    if control is not None:
        return f"control {control}"
    return " ".join(f"{key.rpartition('.')[2]}={brief(value)}" for key, value in settings.items())


def brief(value: Any) -> str:
    """A setting in a few characters."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def short(metric: str) -> str:
    """A score's name for a narrow column."""
    return number_named(metric).short


def duration(seconds: float | None) -> str:
    """`45 s`, `3 min 20 s`, `2 h 05 min`."""
    if seconds is None:
        return "?"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
