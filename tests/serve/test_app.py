from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from ray.serve import Application
from ray.serve.schema import ServeDeploySchema

from raydis.errors import CheckpointError, ConfigError, RegistryError
from raydis.registry import Registry
from raydis.serve.app import ServeArgs, build

LOCAL = Path(__file__).resolve().parents[2] / "serve_configs" / "local.yaml"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RAYDIS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_an_application_is_built_for_a_model_that_is_there(registry: Registry) -> None:
    assert isinstance(build({"storage": registry.store.uri, "model": "tiny@best"}), Application)


def test_the_storage_comes_from_the_environment_unless_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAYDIS_STORAGE", raising=False)
    assert ServeArgs().storage == "runs"
    monkeypatch.setenv("RAYDIS_STORAGE", "s3://bucket/raydis")
    assert ServeArgs().storage == "s3://bucket/raydis"
    assert ServeArgs(storage="elsewhere").storage == "elsewhere"


def test_a_registry_without_the_model_stops_the_start_and_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match=rf"no model quickstart@best in {tmp_path}; found no models"):
        build({"storage": str(tmp_path)})


def test_a_registry_without_the_alias_stops_the_start_and_says_what_there_is(registry: Registry) -> None:
    with pytest.raises(RegistryError, match=r"no model tiny@canary in .*; found version 1 "):
        build({"storage": registry.store.uri, "model": "tiny@canary"})


def test_a_damaged_version_stops_the_start(registry: Registry) -> None:
    registry.store.write("registry/tiny/versions/1/weights.safetensors", b"damaged")
    with pytest.raises(CheckpointError, match=r"weights\.safetensors is damaged: expected sha256"):
        build({"storage": registry.store.uri, "model": "tiny@best"})


def test_a_misspelt_argument_stops_the_start_and_names_the_nearest(registry: Registry) -> None:
    with pytest.raises(ConfigError, match=r"args: .*modle.*model"):
        build({"storage": registry.store.uri, "modle": "tiny@best"})


def test_the_shipped_config_is_valid_listens_on_this_machine_only_and_scales_from_one() -> None:
    config = ServeDeploySchema.model_validate(yaml.safe_load(LOCAL.read_text()))
    assert (config.http_options.host, config.http_options.port) == ("127.0.0.1", 8000)
    [application] = config.applications
    assert application.import_path == "raydis.serve.app:build"
    assert ServeArgs.model_validate(application.args).model == "quickstart@best"
    [deployment] = application.deployments
    assert deployment.name == "raydis"
    assert deployment.autoscaling_config["min_replicas"] == 1
    assert deployment.autoscaling_config["max_replicas"] > 1
