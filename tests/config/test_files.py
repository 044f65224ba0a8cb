from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field

from raydis.config import RunConfig
from raydis.config.files import apply_overrides, field_paths, merge, parse, read_yaml
from raydis.errors import ConfigError


class Circle(BaseModel):
    model_config = ConfigDict(extra="forbid")
    kind: Literal["circle"] = "circle"
    radius: float = Field(1.0, gt=0.0, le=10.0)


class Square(BaseModel):
    model_config = ConfigDict(extra="forbid")
    kind: Literal["square"] = "square"
    side: float


class Drawing(BaseModel):
    model_config = ConfigDict(extra="forbid")
    run: RunConfig = RunConfig()
    shapes: list[Annotated[Circle | Square, Field(discriminator="kind")]] = []
    named: dict[str, Circle] = {}


def yaml_file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "x.yaml"
    path.write_text(text)
    return path


def problems(tree: dict[str, Any], model: type[BaseModel] = Drawing) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(model, tree, source="x.yaml")
    return str(caught.value)


def test_a_run_config_written_as_people_write_it_is_read(tmp_path: Path) -> None:
    text = """
    method:
      anchors: {mode: off}
      unet: {skip_dropout_rate: 0}
    train: {learning_rate: 1e-4, num_images: 480_000}
    """
    config = parse(RunConfig, read_yaml(yaml_file(tmp_path, text)), source="x.yaml")
    assert config.method.anchors.mode == "off"
    assert (config.train.learning_rate, config.train.num_images) == (1e-4, 480_000)


def test_an_empty_file_is_an_empty_tree(tmp_path: Path) -> None:
    assert read_yaml(yaml_file(tmp_path, "# nothing but a comment\n")) == {}


def test_a_file_that_cannot_be_read_says_why(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read .*absent\.yaml: No such file"):
        read_yaml(tmp_path / "absent.yaml")
    (tmp_path / "x.yaml").write_bytes(b"a: \xff")
    with pytest.raises(ConfigError, match=r"cannot read .*x\.yaml: not UTF-8 text"):
        read_yaml(tmp_path / "x.yaml")


def test_merging_goes_into_mappings_and_replaces_the_rest() -> None:
    base = {"a": {"b": 1, "c": [1, 2]}, "d": {"e": 1}, "f": 1}
    over = {"a": {"c": [3]}, "d": None, "f": {"g": 1}}
    assert merge(base, over) == {"a": {"b": 1, "c": [3]}, "d": None, "f": {"g": 1}}


def test_merging_and_overriding_leave_their_arguments_alone() -> None:
    base, over = {"a": {"b": [1]}}, {"a": {"c": [2]}}
    merged = merge(base, over)
    merged["a"]["b"].append(9)
    merged["a"]["c"].append(9)
    apply_overrides(base, ["a.b=3", "a.d=4"])
    assert (base, over) == ({"a": {"b": [1]}}, {"a": {"c": [2]}})


def test_overrides_apply_in_order_and_make_the_sections_they_need() -> None:
    tree = {"train": {"batch_size": 512}, "empty": None}
    assignments = ["train.batch_size=64", "method.unet.attention_sizes=[8, 4]", "empty.x=a=b", "train.batch_size=32"]
    assert apply_overrides(tree, assignments) == {
        "train": {"batch_size": 32},
        "method": {"unet": {"attention_sizes": [8, 4]}},
        "empty": {"x": "a=b"},
    }


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("train.batch_size", r"--set train\.batch_size: expected KEY=VALUE with a dotted key"),
        ("=1", "expected KEY=VALUE"),
        ("train..batch_size=1", "expected KEY=VALUE"),
        ("seed.x.y=1", r"--set seed\.x\.y=1: seed is 3, not a mapping with keys below it"),
        ("a=[1", r"--set a=\[1: line 1: not YAML"),
        ("a={b: 1, b: 2}", "duplicate key b"),
    ],
)
def test_an_override_that_cannot_be_applied_is_quoted(assignment: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        apply_overrides({"seed": 3}, [assignment])


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        (
            {"run": {"train": {"learning_rat": 1e-4}}},
            "x.yaml: run.train.learning_rat: unknown key; did you mean learning_rate?",
        ),
        ({"rnu": {}}, "x.yaml: rnu: unknown key; did you mean run?"),
        (
            {"run": {"batch_size": 1}},
            "x.yaml: run.batch_size: unknown key; did you mean run.train.batch_size?",
        ),
        ({"zzz": 1}, "x.yaml: zzz: unknown key; known here: run, shapes, named"),
        (
            {"shapes": [{"kind": "square", "side": 1, "sid": 1}]},
            "x.yaml: shapes.0.sid: unknown key; did you mean side?",
        ),
        (
            {"shapes": [{"kind": "circle", "side": 1}]},
            "x.yaml: shapes.0.side: unknown key; known here: kind, radius",
        ),
        ({"named": {"a": {"radios": 1}}}, "x.yaml: named.a.radios: unknown key; did you mean radius?"),
        (
            {"run": {"first_stage": {"kind": "patch_pca", "patch_sze": 4}}},
            "x.yaml: run.first_stage.patch_sze: unknown key; did you mean patch_size?",
        ),
    ],
)
def test_an_unknown_key_names_the_nearest_valid_one(tree: dict[str, Any], message: str) -> None:
    assert problems(tree) == message


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"run": {"train": {"batch_size": 0}}}, "run.train.batch_size: found 0, must be at least 1"),
        ({"run": {"train": {"ema_decay": 1}}}, "run.train.ema_decay: found 1, must be below 1.0"),
        ({"named": {"a": {"radius": 0}}}, "named.a.radius: found 0, must be above 0.0"),
        ({"shapes": [{"kind": "circle", "radius": 11}]}, "shapes.0.radius: found 11, must be at most 10.0"),
        ({"shapes": [{"kind": "square"}]}, "shapes.0.side: missing"),
        ({"run": {"train": {"batch_size": 1.5}}}, "run.train.batch_size: found 1.5, expected an integer"),
        ({"run": {"train": {"learning_rate": "fast"}}}, "run.train.learning_rate: found 'fast', expected a number"),
        ({"run": {"compute": {"num_cpus": float("nan")}}}, "run.compute.num_cpus: found nan, expected a finite number"),
        ({"run": {"train": None}}, "run.train: found None, expected a mapping"),
        (
            {"run": {"data": {"levels": {"scale": "x"}}}},
            "run.data.levels.scale: found 'x', expected an integer or a list",
        ),
        (
            {"run": {"evaluation": {"estimator": "his"}}},
            "run.evaluation.estimator: found 'his', expected 'reference', 'hist' or 'tree'; did you mean hist?",
        ),
        ({"shapes": [{"kind": "squar"}]}, "shapes.0: 'kind' is 'squar', expected one of 'circle', 'square'"),
        ({"shapes": [{}]}, "shapes.0: needs the key 'kind', which says what kind of section this is"),
        (
            {"run": {"method": {"anchors": {"num_gaussians": 40}}}},
            "run.method.anchors: num_gaussians=40 must not exceed max_gaussians=32",
        ),
    ],
)
def test_a_value_out_of_range_or_of_a_wrong_type_says_what_was_found(tree: dict[str, Any], message: str) -> None:
    assert problems(tree) == f"x.yaml: {message}"


def test_all_problems_come_in_one_line(tmp_path: Path) -> None:
    text = problems({"train": {"batch_size": 0, "learning_rat": 1}, "seed": -1}, RunConfig)
    assert text == (
        "x.yaml: train.batch_size: found 0, must be at least 1; "
        "train.learning_rat: unknown key; did you mean learning_rate?; seed: found -1, must be at least 0"
    )


def test_a_long_value_is_cut_short() -> None:
    assert len(problems({"run": {"seed": "x" * 1000}})) < 150


def test_field_paths_reach_through_optional_lists_mappings_and_unions() -> None:
    paths = field_paths(Drawing)
    expected = {"run.train.batch_size", "run.first_stage.patch_size", "shapes.radius", "shapes.side", "named.radius"}
    assert expected <= set(paths)
    assert len(paths) == len(set(paths))
