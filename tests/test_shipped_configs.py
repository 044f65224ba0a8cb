"""Every configuration file that is shipped can be used as it is."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import yaml
from ray.serve.config import AutoscalingConfig
from ray.serve.schema import ServeDeploySchema

from raydis.arena.spec import load_arena
from raydis.config.files import parse
from raydis.config.presets import PRESETS
from raydis.data.shapes3d import SHAPES3D
from raydis.serve.app import ServeArgs
from raydis.sweep.spec import load_spec

ROOT = Path(__file__).resolve().parents[1]
ARENAS = sorted((ROOT / "sweeps").glob("arena*.yaml"))
SWEEPS = sorted({*(ROOT / "sweeps").glob("*.yaml")} - {*ARENAS})
SERVE_CONFIGS = sorted((ROOT / "serve_configs").glob("*.yaml"))


def header(path: Path) -> str:
    """The comment that a file opens with."""
    lines = path.read_text().splitlines()
    end = next(number for number, line in enumerate(lines) if not line.startswith("#"))
    return "\n".join(lines[:end])


def test_there_are_sweeps_and_serve_configs() -> None:
    assert {"quickstart.yaml", "shapes3d.yaml"} <= {path.name for path in SWEEPS}
    assert {"arena.yaml", "arena_quick.yaml"} <= {path.name for path in ARENAS}
    assert "local.yaml" in {path.name for path in SERVE_CONFIGS}


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.name)
def test_a_sweep_is_a_valid_spec_with_its_card(path: Path) -> None:
    """Keys, types, ranges and the corners of the space; a set that is read from files gives a stand-in path."""
    spec = load_spec(path, [])
    assert spec.name == path.stem
    words = [line[2:].split()[0] for line in header(path).splitlines() if line[2:3].strip()]
    assert words[:2] == ["Question", "Command"]
    command = f"python -m raydis.sweep sweeps/{path.name}" if path.stem != "quickstart" else "python -m raydis.sweep"
    assert command in header(path)
    if spec.run.data.path is not None:
        assert "--set run.data.path=" in header(path)
    if spec.run.data.name == "shapes3d_procedural":
        SHAPES3D.subspace(spec.run.data.levels)  # raises for levels that the grid does not have


@pytest.mark.parametrize("path", ARENAS, ids=lambda path: path.name)
def test_an_arena_is_a_valid_spec_with_its_card(path: Path) -> None:
    spec = load_arena(path, [])
    assert spec.name == path.stem
    words = [line[2:].split()[0] for line in header(path).splitlines() if line[2:3].strip()]
    assert words[:2] == ["Question", "Command"]
    assert f"python -m raydis.arena sweeps/{path.name}" in header(path)
    for entrant in spec.entrants.values():
        data = entrant.run.data
        if data.name == "shapes3d_procedural":
            SHAPES3D.subspace(data.levels)


def test_the_quick_arena_compares_methods_on_the_images_of_the_quickstart() -> None:
    """An arena's `run` is common to all entrants and so takes no preset. The file repeats the levels of flow_small."""
    data = PRESETS["flow_small"].data
    assert load_spec(ROOT / "sweeps/quickstart.yaml", []).run.data == data
    for entrant in load_arena(ROOT / "sweeps/arena_quick.yaml", []).entrants.values():
        assert entrant.run.data == data
        assert entrant.pretraining is None or entrant.pretraining.run.data == data


@pytest.mark.parametrize("path", SERVE_CONFIGS, ids=lambda path: path.name)
def test_a_serve_config_fits_ray_serves_schema_and_our_arguments(path: Path) -> None:
    tree = yaml.safe_load(path.read_text())
    config = ServeDeploySchema.model_validate(tree)
    assert f"serve run {path.relative_to(ROOT)}" in header(path)
    for application in config.applications:
        module, _, builder = application.import_path.partition(":")
        app = importlib.import_module(module)
        assert callable(getattr(app, builder))
        arguments = parse(ServeArgs, application.args, source=path.name)
        assert all(arguments.model.partition("@"))
        for deployment in application.deployments:
            assert deployment.name == app.Raydis.name
    for application in tree["applications"]:
        for deployment in application.get("deployments", []):
            AutoscalingConfig(**deployment.get("autoscaling_config", {}))  # stricter than the schema: min <= max


@pytest.mark.parametrize("path", SERVE_CONFIGS, ids=lambda path: path.name)
def test_a_serve_config_listens_on_this_machine_alone(path: Path) -> None:
    assert yaml.safe_load(path.read_text())["http_options"]["host"] == "127.0.0.1"
