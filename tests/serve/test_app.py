from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from ray.serve import Deployment
from ray.serve.schema import DeploymentSchema, ServeDeploySchema

from raydis.checkpoint.open import open_checkpoint
from raydis.errors import CheckpointError, ConfigError, RegistryError
from raydis.registry import Registry
from raydis.serve.app import ServeArgs, build

LOCAL = Path(__file__).resolve().parents[2] / "serve_configs" / "local.yaml"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RAYDIS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def built(registry: Registry, model: str, **args: object) -> Deployment:
    application = build({"storage": registry.store.uri, "model": model, **args})
    return application._bound_deployment  # all that Serve keeps of it


def replica_of(deployment: Deployment) -> Any:
    """What Serve makes in a replica's process, without its wrapper."""
    _, ours, *_ = deployment.func_or_class.__mro__
    return ours(*deployment.init_args)


def test_a_replica_that_starts_after_the_alias_moved_serves_the_version_of_the_others(
    registry: Registry, write_tiny: Callable[..., Path], tmp_path: Path
) -> None:
    deployment = built(registry, "tiny@best")
    registry.set_alias(
        "tiny", "best", registry.register(open_checkpoint(write_tiny(tmp_path / "second", seed=1)), "tiny")
    )
    late = replica_of(deployment)
    late.reconfigure(deployment.user_config)
    assert str(late.service.model.ref) == "tiny@1"
    assert str(replica_of(built(registry, "tiny@best")).service.model.ref) == "tiny@2"


def test_what_an_application_is_bound_to_fits_serves_schema(registry: Registry) -> None:
    """Serve's controller reads it whenever it is asked for its state, and stops working if it cannot."""
    deployment = built(registry, "tiny@best")
    options, user_config = deployment.ray_actor_options, deployment.user_config
    read = DeploymentSchema(name="raydis", ray_actor_options=options, user_config=user_config)
    assert read.user_config == user_config
    assert read.ray_actor_options.resources == options["resources"]


def test_serve_can_tell_a_moved_alias_from_the_unchanged_config(
    registry: Registry, write_tiny: Callable[..., Path], tmp_path: Path
) -> None:
    before, same = (built(registry, "tiny@best") for _ in range(2))
    registry.set_alias(
        "tiny", "best", registry.register(open_checkpoint(write_tiny(tmp_path / "second", seed=1)), "tiny")
    )
    after = built(registry, "tiny@best")
    assert same.ray_actor_options == before.ray_actor_options  # replicas stay
    assert after.ray_actor_options != before.ray_actor_options  # replicas are replaced


@pytest.mark.parametrize("user_config", [{"model": "tiny@2"}, {"model": "tiny@best"}, {"model": "tiny@1"}, {}])
def test_a_replica_refuses_a_user_config_and_says_what_to_write(registry: Registry, user_config: object) -> None:
    replica = replica_of(built(registry, "tiny@1"))
    with pytest.raises(ConfigError, match=r"serves .*tiny@1 .*`args: \{model: quickstart@4\}`, and remove user_config"):
        replica.reconfigure(user_config)


def test_a_replica_refuses_a_version_whose_files_were_replaced_since_the_application_was_built(
    registry: Registry, write_tiny: Callable[..., Path], tmp_path: Path
) -> None:
    deployment = built(registry, "tiny@1")
    shutil.rmtree(Path(registry.store.uri) / "registry")
    registry.register(open_checkpoint(write_tiny(tmp_path / "other", seed=1)), "tiny")
    replica = replica_of(deployment)
    with pytest.raises(ConfigError, match=r"this replica serves .*tiny@1 \w+.* and cannot change to .*tiny@1 \w+"):
        replica.reconfigure(deployment.user_config)


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


def test_a_version_with_weights_that_are_not_finite_stops_the_start(
    registry: Registry, write_tiny: Callable[..., Path], tmp_path: Path
) -> None:
    def spoil(weights: dict[str, torch.Tensor]) -> None:
        weights["encoder.convolutions.0.weight"][:] = torch.nan

    registry.register(open_checkpoint(write_tiny(tmp_path / "spoilt", spoil=spoil)), "tiny")
    with pytest.raises(CheckpointError, match=r"tiny@2 cannot be served: its weights .* are not finite"):
        build({"storage": registry.store.uri, "model": "tiny@2"})


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
