"""Data -> HTML page, by the Jinja2 templates of this package.

A page is one file that opens offline: style and pictures are part of it. Every value is escaped, so that no name or
reason from a data set can be markup, and a name that a template does not get is an error.
"""

from __future__ import annotations

import base64
import functools
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined


def render(template: str, **values: Any) -> str:
    """Return the page that a template of `templates/` makes of the values that it names."""
    return _environment().get_template(template).render(values)


def number(value: float | str | None) -> str:
    """Write a table's cell: floats to three digits, words without underscores, and a dash for None."""
    if value is None:
        return "–"
    return f"{value:.3g}" if isinstance(value, float) else words(value)


def words(name: object) -> str:
    """Write a name as words: `floor_hue` becomes `floor hue`."""
    return str(name).replace("_", " ")


def data_uri(png: bytes) -> str:
    """Return a PNG as an address that holds it."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


@functools.cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("raydis.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "words": words, "data_uri": data_uri}
    return environment
