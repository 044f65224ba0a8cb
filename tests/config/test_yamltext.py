from __future__ import annotations

import itertools
import time
from pathlib import Path
from typing import Any

import pytest

from raydis.config.files import apply_overrides, read_yaml
from raydis.config.yamltext import MAX_DEPTH, MAX_VALUES, load_yaml
from raydis.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1E5", 1e5),
        ("+1.5e3", 1500.0),
        (".5", 0.5),
        ("-1.", -1.0),
        ("480_000", 480_000),
        ("1_0.5", 10.5),
        ("1_", "1_"),
        ("1__0", "1__0"),
        ("0x1F", 31),
        ("0o17", 15),
        ("0o9", "0o9"),
        ("0b11", "0b11"),
        ("-7", -7),
        ("+5", 5),
        ("0", 0),
        ("true", True),
        ("FALSE", False),
        ("null", None),
        ("~", None),
        ("", None),
        (".inf", float("inf")),
        ("-.INF", float("-inf")),
        ("off", "off"),
        ("no", "no"),
        ("y", "y"),
        ("010", "010"),
        ("1:30", "1:30"),
        ("2024-01-31", "2024-01-31"),
        ("2024-01-31T10:00:00Z", "2024-01-31T10:00:00Z"),
        ("1e", "1e"),
        ("=", "="),
        ("<<", "<<"),
        ("'12'", "12"),
        ('"a\\x07b"', "a\x07b"),
        ("!!str 12", "12"),
        ("[8, 4.5, a]", [8, 4.5, "a"]),
    ],
)
def test_scalars_are_those_of_yaml_1_2(tmp_path: Path, text: str, value: Any) -> None:
    (tmp_path / "x.yaml").write_text(f"key: {text}")
    found = read_yaml(tmp_path / "x.yaml")["key"]
    assert (found, type(found)) == (value, type(value))
    assert apply_overrides({}, [f"key={text}"]) == {"key": value}


def test_not_a_number_is_read() -> None:
    found = load_yaml(".nan", "x")
    assert isinstance(found, float)
    assert found != found


def test_a_directive_does_not_bring_yaml_1_1_back() -> None:
    assert load_yaml("%YAML 1.1\n---\n{a: off, b: 1e-4, c: 010}\n", "x") == {"a": "off", "b": 1e-4, "c": "010"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", "x.yaml: line 3: duplicate key a, first given on line 1"),
        ("o: {a: 1, a: 1}\n", "x.yaml: line 1: duplicate key a, first given on line 1"),
        ("x:\n  a: 1\n  b:\n    c: 1\n  a: 2\n", "x.yaml: line 5: duplicate key a, first given on line 2"),
        ("a:\n- {x: 1,\n   y: 2,\n   'y': 3}\n", "x.yaml: line 4: duplicate key y, first given on line 3"),
        (
            "a: &a {x: 1}\nb: &b {y: 1}\nc:\n  <<: *a\n  <<: *b\n",
            "x.yaml: line 5: duplicate key <<, first given on line 4",
        ),
        ("a: [1\nb: 2\n", "x.yaml: line 2: not YAML: expected ',' or ']', but got ':'"),
        ("a: 1\n\tb: 2\n", "x.yaml: line 2: not YAML: found character '\\t' that cannot start any token"),
        ("a: b: c\n", "x.yaml: line 1: not YAML: mapping values are not allowed here"),
        ("a: *b\n", "x.yaml: line 1: not YAML: found undefined alias 'b'"),
        (
            "--- {a: 1}\n--- {b: 2}\n",
            "x.yaml: line 2: not YAML: expected a single document in the stream, but found another document",
        ),
        ("%YAML 3.0\n--- a\n", "x.yaml: line 1: not YAML: found incompatible YAML document (version 1.* is required)"),
        ("a: 1\nb: c\x00\n", "x.yaml: line 2: not YAML: the character U+0000 is not allowed"),
        ("a: \ud800\n", "x.yaml: line 1: not YAML: the character U+D800 is not allowed"),
    ],
)
def test_what_is_not_yaml_is_told_with_file_and_line(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_yaml(text, "x.yaml")
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\n1: a\n", "line 2: found 1 as a key, expected text: put it in quotes"),
        ("true: a", "line 1: found true as a key, expected text: put it in quotes"),
        ("{~: a}", "line 1: found ~ as a key, expected text: put it in quotes"),
        ("[1]: 2", "line 1: found a list or mapping as a key, expected text: put it in quotes"),
        ("{a: 1}: 2", "line 1: found a list or mapping as a key, expected text: put it in quotes"),
        ("c: {<<: 3}", "line 1: the merge key << needs a mapping or a list of mappings"),
        (
            "a: !!python/object/apply:os.getcwd []",
            "line 1: the tag !!python/object/apply:os.getcwd is not known here: remove it",
        ),
        ("a: !mine 1", "line 1: the tag !mine is not known here: remove it"),
        ("a: !!timestamp x", "line 1: the tag !!timestamp is not known here: remove it"),
        ("a: !!set {b}", "line 1: the tag !!set is not known here: remove it"),
        ("a: !!bool yes", "line 1: 'yes' does not look like a !!bool: remove the tag"),
        ("a: " + "9" * 5000, "line 1: 99999999999999999999... has too many digits for a number"),
        ("a: &a [*a]", "line 1: an alias lies inside the value that it stands for: write the values out"),
        ("a: &a {<<: *a, x: 1}", "line 1: an alias lies inside the value that it stands for: write the values out"),
    ],
)
def test_what_no_tree_can_hold_is_refused_with_its_line(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_yaml(text, "x.yaml")
    assert str(caught.value) == f"x.yaml: {message}"


@pytest.mark.parametrize("num_levels", [MAX_DEPTH + 2, 5_000])
@pytest.mark.parametrize(("opened", "closed"), [("[", "]"), ("{a: ", "}")])
def test_very_deep_nesting_is_refused(num_levels: int, opened: str, closed: str) -> None:
    with pytest.raises(ConfigError, match=rf"x: .*nested too deeply: use at most {MAX_DEPTH} levels$"):
        load_yaml(f"{opened * num_levels}1{closed * num_levels}", "x")


def test_nesting_up_to_the_limit_is_read() -> None:
    assert load_yaml("[" * MAX_DEPTH + "]" * MAX_DEPTH, "x") is not None


def test_aliases_that_grow_without_limit_are_refused_at_once() -> None:
    lists = [f"{above}: &{above} [{', '.join([f'*{below}'] * 9)}]" for below, above in itertools.pairwise("abcdefghi")]
    started = time.process_time()
    with pytest.raises(ConfigError, match=rf"line \d: more than {MAX_VALUES} values, counted with aliases"):
        load_yaml("\n".join(["a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1]", *lists]), "x")
    assert time.process_time() - started < 1.0


def test_an_alias_stands_for_its_value() -> None:
    assert load_yaml("a: &a {x: [1]}\nb: *a\n", "x") == {"a": {"x": [1]}, "b": {"x": [1]}}


@pytest.mark.parametrize(
    ("text", "tree"),
    [
        (
            "p: {b: &b {<<: &a {x: 1, y: 2}, x: 3}}\nc: {<<: *b, y: 4}\n",
            {"p": {"b": {"x": 3, "y": 2}}, "c": {"x": 3, "y": 4}},
        ),
        (
            "a: &a {x: 1}\nb: &b {x: 2, y: 3}\nc: {<<: [*a, *b]}\n",
            {"a": {"x": 1}, "b": {"x": 2, "y": 3}, "c": {"x": 1, "y": 3}},
        ),
    ],
)
def test_a_merge_key_may_be_overridden_and_is_no_duplicate(text: str, tree: dict[str, Any]) -> None:
    assert load_yaml(text, "x") == tree


@pytest.mark.parametrize("text", ["\ufeffa: 1\n", "a: 1\r\n", "--- {a: 1}\n...\n"])
def test_what_editors_add_to_a_text_changes_nothing(text: str) -> None:
    assert load_yaml(text, "x") == {"a": 1}


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n"])
def test_a_text_without_a_value_is_none(text: str) -> None:
    assert load_yaml(text, "x") is None
