"""Format settings, names and times in few characters, for tables and lines on the terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.text import Text

from raydis.metrics.table import number_named


def print_facts(console: Console, facts: dict[str, str]) -> None:
    """Print one fact on each line, after its name in a column of its own."""
    width = max(map(len, facts))
    for name, fact in facts.items():
        console.print(Text(f"{name:{width}}  {fact}"), soft_wrap=True)


def describe(settings: dict[str, Any], control: str | None = None) -> str:
    """Return settings in short: the last part of each key, and three digits of a value; a control by its name."""
    if control is not None:
        return f"control {control}"
    return " ".join(f"{key.rpartition('.')[2]}={brief(value)}" for key, value in settings.items())


def brief(value: Any) -> str:
    """Return the value of a setting in few characters."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def short(metric: str) -> str:
    """Return a score's name for a narrow column."""
    return number_named(metric).short


def duration(seconds: float | None) -> str:
    """Return a time as `45 s`, `3 min 20 s` or `2 h 05 min`; `?` for None."""
    if seconds is None:
        return "?"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
