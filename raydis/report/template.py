"""Render HTML pages from the Jinja2 templates of this package.

A page is one file that opens offline, because it contains its style and its pictures. Every value is escaped, so that
no text from a data set can act as markup. A name that a template uses but is not given is an error.
"""

from __future__ import annotations

import base64
import functools
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined


def render(template: str, **values: Any) -> str:
    """Return the HTML of a template in `templates/`, filled with values by name."""
    return _environment().get_template(template).render(values)


def number(value: float | str | None) -> str:
    """Format a cell of a table: floats to three digits, words without underscores, and a dash for None."""
    if value is None:
        return "–"
    return f"{value:.3g}" if isinstance(value, float) else words(value)


def words(name: object) -> str:
    """Return a name as words: `floor_hue` becomes `floor hue`."""
    return str(name).replace("_", " ")


def data_uri(picture: bytes) -> str:
    """Return a PNG or WebP picture as a data URI, which a page can contain."""
    kind = "webp" if picture[8:12] == b"WEBP" else "png"
    return f"data:image/{kind};base64,{base64.b64encode(picture).decode()}"


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
