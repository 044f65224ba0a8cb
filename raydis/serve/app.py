"""The deployment on Ray Serve: `serve run serve_configs/local.yaml` starts `raydis.serve.app:build`.

The routes and the model are in one deployment, because another hop between processes costs more than encoding an image.

All replicas of an application serve one version of a model. `build` runs once for a deployed config, in a process of
its own. It resolves the alias in `args.model`, tries the version out and binds it, so a replica that starts later
serves the same version even if the alias has moved. To change the version, deploy the config with another `model`:
Serve then starts new replicas, and stops the old ones when the new ones are ready. Serve does not build an unchanged
config again.

`build` fails, before Serve touches the running replicas, if the storage does not answer, the model does not exist, or
it cannot be served. If instead the constructors of new replicas failed, the old replicas would go on serving, but Serve
would not replace one that dies.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Any, Literal

import ray
from pydantic import Field
from ray import serve
from ray.serve import Application
from ray.serve.config import AutoscalingConfig, BackpressureConfig

from raydis.config import Model
from raydis.config.files import parse
from raydis.errors import ConfigError
from raydis.registry import ModelRef, Registry
from raydis.store import Location, open_store

if TYPE_CHECKING:
    from fastapi import FastAPI

    from raydis.serve.model import ServedModel

logger = logging.getLogger("ray.serve")

# A replica uses a whole core. It reserves half of one, for a change of version needs room for as many new replicas as
# there are old ones: without that room Serve waits for it, however long, and goes on with the old version.
ACTOR_OPTIONS = {"num_cpus": 0.5}


class ServeArgs(Model):
    """`args` of an application in a Serve config."""

    storage: str = Field(
        default_factory=lambda: os.environ.get("RAYDIS_STORAGE", "runs"),
        description="Folder or s3://bucket/prefix that holds the registry; default: $RAYDIS_STORAGE, else `runs`.",
    )
    model: str = Field(
        "quickstart@best",
        description="What to serve: name@version, or name@alias, which is resolved when the application is built.",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto",
        description="`auto`: a GPU where the replica has one. Answers differ in their last digits between devices: set "
        "`cpu` or `cuda` where only some nodes have a GPU.",
    )
    encode_batch_size: int | None = Field(None, ge=1, le=1024, description="Images a batch; null: by device.")
    edit_batch_size: int | None = Field(None, ge=1, le=1024, description="Edits a batch; null: by device.")


@serve.deployment(
    name="raydis",
    ray_actor_options=ACTOR_OPTIONS,
    autoscaling_config=AutoscalingConfig(
        min_replicas=1,
        max_replicas=4,
        target_ongoing_requests=8,
        look_back_period_s=15.0,
        upscale_delay_s=5.0,
        downscale_delay_s=120.0,
    ),
    max_ongoing_requests=64,  # a few batches: one computes while the next ones arrive and are decoded
    max_queued_requests=128,
    backpressure_config=BackpressureConfig(status_code=503, retry_after_s=1.0),
    health_check_period_s=10.0,
    health_check_timeout_s=30.0,
    graceful_shutdown_timeout_s=30.0,
    max_constructor_retry_count=3,
    max_surge_percent=100,  # old replicas stay until new ones are ready
)
@serve.ingress()
class Raydis:
    """One replica: a model and its service.

    Args:
        args: the args of the application, with an absolute storage.
        ref: the version that `args.model` named when the application was built.
    """

    def __init__(self, args: ServeArgs, ref: ModelRef) -> None:
        from raydis.engine.device import num_threads
        from raydis.serve.service import Service

        self.service = Service(_open(args, ref), num_threads=num_threads(_reserved_cpus()))
        logger.info("serving %s", ref)

    def __serve_build_asgi_app__(self) -> FastAPI:
        from raydis.serve.api import create_app

        return create_app(self.service)

    def reconfigure(self, user_config: Any) -> None:
        """Refuse any model but the one that the replica has opened.

        Serve calls this when a replica starts and when the `user_config` of its deployment changes, and replaces a
        replica in which it fails. `build` sets the `user_config`.

        Raises:
            ConfigError: the application was built for another version or, under the same number, another content.
        """
        served = {"model": self.service.model.identity}
        if user_config != served:
            raise ConfigError(
                f"this replica serves {served} and cannot change to {user_config}: set the version as `model` in the "
                "application's args, as in `args: {model: quickstart@4}`, and remove user_config from the deployment"
            )

    async def check_health(self) -> None:
        """Raise RuntimeError if the model hangs, upon which Serve replaces the replica."""
        self.service.check_health()


def build(args: dict[str, Any]) -> Application:
    """Return the application of a Serve config, after a check that its model can be served.

    Args:
        args: see ServeArgs.

    Raises:
        RaydisError: unknown or wrong args, no such model, or one that cannot be served.
    """
    wanted = parse(ServeArgs, args, source="args")
    wanted = wanted.model_copy(update={"storage": str(Location.parse(wanted.storage))})  # replicas work elsewhere
    ref = Registry(open_store(wanted.storage)).resolve(wanted.model)
    # One image a batch on the CPU: this process may lack the GPU that the replicas have.
    trial = wanted.model_copy(update={"device": "cpu", "encode_batch_size": 1, "edit_batch_size": 1})
    identity = _open(trial, ref).identity
    # Serve tells replicas of an older config from newer ones by their options and the config's text, in which an alias
    # reads the same after it has moved. Its version as an option, as a resource of which none is needed, has Serve
    # replace them; as the user_config, it is checked by each replica.
    options = {**ACTOR_OPTIONS, "resources": {identity: 0}}
    return Raydis.options(ray_actor_options=options, user_config={"model": identity}).bind(wanted, ref)


def _reserved_cpus() -> float:
    """Return the CPUs that Serve has reserved for this replica; 1 outside of Ray."""
    if not ray.is_initialized():
        return 1.0
    return ray.get_runtime_context().get_assigned_resources().get("CPU", 1.0)


def _open(args: ServeArgs, ref: ModelRef) -> ServedModel:
    from raydis.serve.model import open_model

    return open_model(
        Registry(open_store(args.storage)),
        ref,
        device=args.device,
        encode_batch_size=args.encode_batch_size,
        edit_batch_size=args.edit_batch_size,
    )
