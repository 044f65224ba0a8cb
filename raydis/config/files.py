"""Turn YAML files and `--set` assignments into a typed configuration. Errors name the key and the nearest valid key.

The order of the calls is the order of precedence: first `merge` files, then `apply_overrides`. The parser
`raydis.config.yamltext` is imported only when there is text to read, because training from a preset needs no YAML.
"""

from __future__ import annotations

import copy
import difflib
import re
import reprlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError

from raydis.config.former import former_keys
from raydis.config.tree import Tree, is_tree
from raydis.errors import ConfigError

M = TypeVar("M", bound=BaseModel)
_BOUNDS = {
    "greater_than": ("gt", "above"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "below"),
    "less_than_equal": ("le", "at most"),
    "multiple_of": ("multiple_of", "a multiple of"),
}


_EXPECTED = {
    "int": "an integer",
    "int_from_float": "an integer",
    "float": "a number",
    "finite_number": "a finite number",
    "bool": "true or false",
    "string": "text",
    "list": "a list",
    "tuple": "a list",
    "dict": "a mapping",
    "model": "a mapping",
    "model_attributes": "a mapping",  # of a section that is one of a union
    "none_required": "null",
}


def read_yaml(path: str | Path) -> Tree:
    """Return the mapping in a YAML file. An empty file is an empty mapping.

    Raises:
        ConfigError: unreadable file, bad YAML, a duplicate key (with both lines), or a top level that is no mapping.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise ConfigError(f"cannot read {path}: {reason}") from error
    from raydis.config.yamltext import load_yaml

    tree = load_yaml(text, str(path))
    if tree is None:
        return {}
    if not is_tree(tree):
        raise ConfigError(f"{path}: found {_show(tree)} at the top level, expected a mapping of keys to values")
    return tree


def merge(base: Tree, over: Tree) -> Tree:
    """Return a new tree: `over` on top of `base`. Mappings merge key by key; any other value (also null) replaces."""
    merged = copy.deepcopy(base)
    for key, value in over.items():
        below = merged.get(key)
        merged[key] = merge(below, value) if is_tree(below) and is_tree(value) else copy.deepcopy(value)
    return merged


def apply_overrides(tree: Tree, assignments: Sequence[str]) -> Tree:
    """Return a new tree with each `a.b.c=value` set in order. Values are YAML, so `[8, 4]` and `null` work too.

    Raises:
        ConfigError: no `=`, an empty name in the path, bad YAML, or a path through something that is no mapping.
    """
    from raydis.config.yamltext import load_yaml

    result = copy.deepcopy(tree)
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        names = path.strip().split(".")
        if not equals or not all(names):
            raise ConfigError(f"--set {assignment}: expected KEY=VALUE with a dotted key, as in train.batch_size=64")
        node = result
        for depth, name in enumerate(names[:-1], 1):
            if node.get(name) is None:
                node[name] = {}
            below = node[name]
            if not is_tree(below):
                raise ConfigError(
                    f"--set {assignment}: {'.'.join(names[:depth])} is {_show(below)}, not a mapping with keys below it"
                )
            node = below
        node[names[-1]] = load_yaml(text, f"--set {assignment}")
    return result


def parse(model: type[M], tree: Tree, *, source: str) -> M:
    """Validate a tree and return it as a `model`.

    Args:
        source: where the tree came from, the first word of the error.

    Raises:
        ConfigError: in one line, every problem by its dotted path: unknown keys with the nearest valid name, values
            out of range with what was found and the bound. Keys and values that only older versions of raydis know are
            reported first, without the other problems.
    """
    if renamed := former_keys(tree):
        raise ConfigError(f"{source}: {'; '.join(renamed)}")
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        problems: dict[str, str] = {}
        for detail in error.errors(include_url=False):
            path = _path(detail["loc"], tree, detail["type"])
            if detail["type"] == "too_short" and len(detail["input"]) >= detail.get("ctx", {})["min_length"]:
                continue  # pydantic counts the items that are right; those that are wrong have problems of their own
            message, where = _message(detail, path, model, tree), ".".join(str(part) for part in path)
            if where in problems:  # pydantic reports one error per member of a union, at the same path
                message = f"{problems[where]} or {message.rpartition(', expected ')[2]}"
            problems[where] = message
        lines = [f"{where}: {message}" if where else message for where, message in problems.items()]
        raise ConfigError(f"{source}: {'; '.join(lines)}") from error


def field_paths(model: type[BaseModel]) -> list[str]:
    """Return the dotted paths of all fields below `model`, sections included, and of all members of a union."""
    return list(dict.fromkeys(_walk(model, "")))


def _walk(model: type[BaseModel], prefix: str) -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield prefix + name
        for section in _sections(field.annotation):
            yield from _walk(section, f"{prefix}{name}.")


def _sections(annotation: Any) -> list[type[BaseModel]]:
    """Return the models inside an annotation: itself, or the members of a union, optional, list or mapping."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [section for part in get_args(annotation) for section in _sections(part)]


def _path(loc: tuple[Any, ...], tree: Any, kind: str) -> tuple[Any, ...]:
    """Return pydantic's location without the labels of union branches, which are not keys of the tree."""
    path: list[Any] = []
    node = tree
    for index, part in enumerate(loc):
        if _holds(node, part):
            node = node[part]
            path.append(part)
        elif kind == "missing" and index == len(loc) - 1:
            path.append(part)
    return tuple(path)


def _holds(node: object, part: object) -> bool:
    """Return whether a part of a location is a key of the mapping, or an index if the node is a list."""
    return part in node if is_tree(node) else isinstance(part, int) and isinstance(node, list)


def _message(detail: Any, path: tuple[Any, ...], model: type[BaseModel], tree: Tree) -> str:
    kind, found, context = detail["type"], detail["input"], detail.get("ctx", {})
    if kind == "extra_forbidden":
        return _unknown_key(path, model, tree)
    if kind == "missing":
        return "missing"
    if kind == "too_short":
        return f"found {_show(found)}, expected a list of at least {context['min_length']}"
    if kind in _BOUNDS:
        limit, words = _BOUNDS[kind]
        return f"found {_show(found)}, must be {words} {context[limit]}"
    if kind == "literal_error":
        near = difflib.get_close_matches(str(found), re.findall(r"'([^']*)'", context["expected"]), n=1)
        return f"found {_show(found)}, expected {context['expected']}" + (f"; did you mean {near[0]}?" if near else "")
    if kind == "union_tag_invalid":
        return f"{context['discriminator']} is {context['tag']!r}, expected one of {context['expected_tags']}"
    if kind == "union_tag_not_found":
        return f"needs the key {context['discriminator']}, which says what kind of section this is"
    if kind == "value_error":
        return str(context["error"])
    if expected := _EXPECTED.get(kind.removesuffix("_parsing").removesuffix("_type")):
        return f"found {_show(found)}, expected {expected}"
    message = detail["msg"].removeprefix("Input ")
    return f"found {_show(found)}, {message[:1].lower()}{message[1:]}"


def _unknown_key(path: tuple[Any, ...], model: type[BaseModel], tree: Tree) -> str:
    """Suggest the nearest key of the section; else the same key in another section; else all keys of the section."""
    sections: list[type[BaseModel]] = [model]
    node: Any = tree
    for part in path[:-1]:
        fields = [section.model_fields[part] for section in sections if part in section.model_fields]
        node = node[part]
        # An index, or a key of a plain mapping, is no field name. `sections` then already are those below it.
        sections = [below for field in fields for below in _sections(field.annotation)] if fields else sections
        sections = [section for section in sections if _fits(section, node)] or sections
    names = list(dict.fromkeys(name for section in sections for name in section.model_fields))
    key = str(path[-1])
    if near := difflib.get_close_matches(key, names, n=1):
        return f"unknown key; did you mean {near[0]}?"
    here = ".".join(
        part for part in path if isinstance(part, str)
    )  # the key may belong to another kind of this same section
    if elsewhere := [known for known in field_paths(model) if known.endswith(f".{key}") and known != here]:
        return f"unknown key; did you mean {elsewhere[0]}?"
    return f"unknown key; known here: {', '.join(names)}"


def _fits(section: type[BaseModel], node: Any) -> bool:
    """Return whether the node has the tags of this section. A tag is a field with a single allowed value, as `kind`."""
    tags = {
        name: get_args(field.annotation)
        for name, field in section.model_fields.items()
        if get_origin(field.annotation) is Literal and len(get_args(field.annotation)) == 1
    }
    return not is_tree(node) or all(node.get(name, values[0]) == values[0] for name, values in tags.items())


def _show(value: Any) -> str:
    short = reprlib.Repr()
    short.maxstring = short.maxother = 60
    return short.repr(value)
