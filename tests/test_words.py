"""One word for one concept, from configuration to HTTP, as far as a test can hold the words of the design."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from raydis.cli import app
from raydis.config import RunConfig
from raydis.editor.editor import Editor
from raydis.editor.sampling import Sampling, choose_sampling
from raydis.methods.contract import UnitMethod
from raydis.report.grids import draw_swaps, draw_traversal
from raydis.serve.app import ServeArgs
from raydis.serve.model import ServedModel
from raydis.serve.schemas import Edit, EditForm
from raydis.serve.service import Service
from raydis.sweep.spec import SweepSpec

PACKAGE = Path(__file__).parents[1] / "raydis"
DRAWING = {"seed", "steps", "sampler", "keep_details"}
EDITING = DRAWING | {"set", "shift"}

# Other words for what the table has one word for, and words of a private dialect, in names of functions and arguments.
OTHER_WORDS = re.compile(
    r"n_\w+|\w*_(?:seconds|secs|sec|ms|mb|gb|kb|prob|p)|(?:sampling|diffusion|inference|ddim)_steps"
    r"|(?:set|shift|swap)_units|\w*latent_codes?|codes?_\w+|random_state|optimi[sz]e_step|denormali[sz]e_\w+"
    r"|(?:_?agree|_?follow|_?descend|_?hear|_?told|pass_share)(?:_\w+)?"
)
PROGRAM_TEXT = {"code_revision"}  # "code" is also the standard term for the text of a program


def keywords(function: Callable[..., Any]) -> set[str]:
    """Names of the arguments that are given by keyword alone."""
    parameters = inspect.signature(function).parameters.values()
    return {each.name for each in parameters if each.kind is each.KEYWORD_ONLY}


def options(verb: str) -> dict[str, list[str]]:
    """The options of a command: parameter -> names on the command line."""
    command = typer.main.get_command(app).commands[verb]
    return {
        each.name: [*each.opts, *each.secondary_opts] for each in command.params if each.param_type_name == "option"
    }


def test_an_edit_has_the_same_arguments_in_python_and_http() -> None:
    assert keywords(Editor.edit) == keywords(Service.edit) == EDITING
    assert set(EditForm.model_fields) == EDITING | {"image"}
    assert set(Edit.model_fields) >= DRAWING
    assert keywords(Editor.edit_units) == {"set", "shift"} <= set(inspect.signature(ServedModel.edit_units).parameters)


@pytest.mark.parametrize("function", [Editor.swap, Editor.swap_each, Editor.traverse, draw_swaps, draw_traversal])
def test_whatever_draws_is_told_the_same_way_how(function: Callable[..., Any]) -> None:
    assert keywords(function) >= DRAWING


def test_steps_and_sampler_have_these_names_down_to_the_method() -> None:
    assert Sampling._fields == ("steps", "sampler")
    for function in (Editor.decode, Editor.sampling, ServedModel.sampling, choose_sampling, UnitMethod.decode):
        assert set(inspect.signature(function).parameters) >= {"steps", "sampler"}
    assert "steps" in inspect.signature(Editor.details).parameters
    assert "steps" in inspect.signature(UnitMethod.invert).parameters


@pytest.mark.parametrize("verb", ["traverse", "swap"])
def test_commands_have_options_of_the_same_names(verb: str) -> None:
    found = options(verb)
    for name in DRAWING:
        assert found[name][0] == f"--{name.replace('_', '-')}"
    assert callable(getattr(Editor, verb))


@pytest.mark.parametrize("verb", ["train", "evaluate", "traverse", "swap", "image", "report"])
def test_an_option_is_called_as_its_parameter(verb: str) -> None:
    for name, (option, *_) in options(verb).items():
        if name not in ("overrides", "help"):  # --set, which may be given many times
            assert option == f"--{name.replace('_', '-')}"


# ---- keys of configuration files


def fields(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every field below a model by its dotted key; of a union, the fields of all its members."""
    for name, field in model.model_fields.items():
        yield prefix + name, field
        for section in sections(field.annotation):
            yield from fields(section, f"{prefix}{name}.")


def sections(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [section for part in get_args(annotation) for section in sections(part)]


def numbers(annotation: Any) -> set[type]:
    """The types of numbers in an annotation."""
    parts = get_args(annotation)
    return set().union(*(numbers(part) for part in parts)) if parts else {annotation} & {int, float}


def bounds(field: FieldInfo) -> dict[str, float]:
    """The bounds of a field, also of one that may be null."""
    inner = [each for part in get_args(field.annotation) for each in getattr(part, "__metadata__", ())]
    return {
        name: value
        for each in (*field.metadata, *inner)
        for name in ("ge", "gt", "lt", "le")
        if (value := getattr(each, name, None)) is not None
    }


FIELDS = {key: field for model in (RunConfig, SweepSpec, ServeArgs) for key, field in fields(model)}
RATES_UP_TO_1 = {"learning_rate", "shift_rate"}  # all others lie below 1
IN_FRACTIONS = {"num_cpus", "num_gpus"}  # Ray shares a processor out in fractions


def named(pattern: str) -> list[tuple[str, str, FieldInfo]]:
    """The fields whose last name matches a pattern: key, last name and field."""
    split = [(key, key.rpartition(".")[2], field) for key, field in FIELDS.items()]
    found = [each for each in split if re.fullmatch(pattern, each[1])]
    assert found
    return found


def test_counts_dimensions_and_sizes_are_whole_numbers_with_a_least_one() -> None:
    for key, name, field in named(r"num_\w+|\w+_steps|\w+_dims?|\w+_sizes?"):
        assert numbers(field.annotation) == ({float} if name in IN_FRACTIONS else {int}), key
        if get_origin(field.annotation) is not tuple:
            assert {"ge", "gt"} & bounds(field).keys(), key


def test_rates_are_shares() -> None:
    for key, name, field in named(r"\w+_rate"):
        assert numbers(field.annotation) == {float}, key
        found = bounds(field)
        assert (found.get("le") if name in RATES_UP_TO_1 else found.get("lt")) == 1.0, key
        assert 0.0 in (found.get("ge"), found.get("gt")), key


def test_what_is_in_pixels_is_a_size_and_what_is_in_seconds_ends_in_s() -> None:
    for key, name, field in named(r"\w+"):
        said, is_size = field.description or "", bool(re.fullmatch(r"\w+_sizes?", name))
        assert bool(re.search(r"\bpx\b", said)) == (is_size and not name.endswith("batch_size")), key
        if numbers(field.annotation) and re.search(r"\bseconds\b", said):
            assert name.endswith("_s"), key
        assert not OTHER_WORDS.fullmatch(name), key


def test_every_union_of_sections_is_told_apart_by_its_kind() -> None:
    for key, name, field in named(r"\w+"):
        if get_origin(field.annotation) is Literal and len(get_args(field.annotation)) == 1:
            assert name == "kind", key
        members = sections(field.annotation)
        assert len(members) < 2 or all("kind" in member.model_fields for member in members), key


# ---- the code

# A metric's `codes` are its whole table. A message that counts or names columns of it calls them units.
COLUMNS_AS_CODES = re.compile(r"\bcodes? (?:\{\}|\d|\[)|(?:\{\}|\d|\b(?:one|two|all|every|each|best|no)) codes?\b")


def names_in(path: Path) -> Iterator[str]:
    """Functions and arguments that a file defines."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name
        elif isinstance(node, ast.arg):
            yield node.arg


def test_no_file_has_another_word_for_what_the_table_names() -> None:
    found = {
        (str(path.relative_to(PACKAGE)), name)
        for path in PACKAGE.rglob("*.py")
        for name in set(names_in(path)) - PROGRAM_TEXT
        if OTHER_WORDS.fullmatch(name)
    }
    assert found == set()


def texts_in(path: Path) -> Iterator[str]:
    """The texts of a file that are not docstrings, with `{}` for each value that is filled in."""
    tree = ast.parse(path.read_text())
    filled = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr | ast.Expr) for part in parts(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(each.value) if isinstance(each, ast.Constant) else "{}" for each in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in filled:
            yield node.value


def parts(node: ast.JoinedStr | ast.Expr) -> list[ast.expr]:
    return [node.value] if isinstance(node, ast.Expr) else node.values


def test_a_message_of_a_metric_calls_a_column_of_codes_a_unit() -> None:
    examples = ("codes {} of {} hold NaN", "all {} codes are constant", "give at least two codes", "every code has")
    assert all(map(COLUMNS_AS_CODES.search, examples))
    texts = [text for path in sorted((PACKAGE / "metrics").glob("*.py")) for text in texts_in(path)]
    assert any(text.startswith("all {} units are constant") for text in texts)
    assert [text for text in texts if COLUMNS_AS_CODES.search(text)] == []


def test_the_count_of_sampling_steps_is_called_steps_wherever_images_are_drawn() -> None:
    """`raydis.diffusion` alone counts `num_steps`, because its `steps` are the steps themselves."""
    for folder in ("cli", "editor", "methods", "report", "serve"):
        for path in (PACKAGE / folder).rglob("*.py"):
            assert "num_steps" not in names_in(path), path


def test_a_sweep_alone_has_objectives() -> None:
    for folder in ("models", "diffusion", "methods", "data", "engine", "editor", "serve"):
        for path in (PACKAGE / folder).rglob("*.py"):
            assert not re.search(r"\bobjectives?\b", path.read_text(), re.IGNORECASE), path
