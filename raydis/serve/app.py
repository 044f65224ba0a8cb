"""The service on Ray Serve: `serve run serve_configs/local.yaml`, import path `raydis.serve.app:build`.

Routes and model live in one deployment: a second hop from an ingress to a model would cost more than encoding does.
A storage that does not answer, a model that is not there and damaged files are found in `build`, which runs once and
in a process of its own without torch. Weights that load but do not work are found in a replica's constructor; the
replicas that it was to replace go on serving.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field
from ray import serve
from ray.serve import Application
from ray.serve.config import AutoscalingConfig, BackpressureConfig

from raydis.config import Model
from raydis.configfile import parse
from raydis.errors import RaydisError
from raydis.registry import Registry, default_cache
from raydis.store import Location, open_store

if TYPE_CHECKING:
    from fastapi import FastAPI

    from raydis.serve.model import ServedModel

logger = logging.getLogger("ray.serve")


class ServeArgs(Model):
    """`args` of an application in a Serve config."""

    storage: str = Field(
        default_factory=lambda: os.environ.get("RAYDIS_STORAGE", "runs"),
        description="Folder or s3://bucket/prefix that holds the registry; default: $RAYDIS_STORAGE, else `runs`.",
    )
    model: str = Field("quickstart@best", description="What to serve: name@alias or name@version.")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="`auto`: a GPU where the replica has one.")
    encode_batch_size: int | None = Field(None, ge=1, le=1024, description="Images a batch; null: by device.")
    edit_batch_size: int | None = Field(None, ge=1, le=1024, description="Edits a batch; null: by device.")


class UserConfig(Model):
    """`user_config` of the deployment: changed on running replicas, without a restart."""

    model: str = Field(description="Replaces the model of `args`: name@version, so that all replicas agree.")


@serve.deployment(
    name="raydis",
    ray_actor_options={"num_cpus": 1},
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
    max_surge_percent=100,  # old replicas stay until new ones are ready: a model that does not start costs none
)
@serve.ingress()
class Raydis:
    """A replica: one model and its service.

    Args:
        args: of the application, with an absolute storage.
        version: what `args.model` meant when the application was built: all its replicas serve the same.
    """

    def __init__(self, args: ServeArgs, version: int) -> None:
        from raydis.serve.service import Service

        self.args = args
        self.service = Service(self._open(args.model, version), self._open)
        logger.info("serving %s", self.service.model.ref)

    def __serve_build_asgi_app__(self) -> FastAPI:
        from raydis.serve.api import create_app

        return create_app(self.service)

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Takes another model if it works. Raises nothing: Serve would count the replica as lost."""
        try:
            reference = parse(UserConfig, user_config, source="user_config").model
        except RaydisError as error:
            self.service.reject(str(user_config), str(error))
        else:
            await self.service.replace(reference)
        if rejected := self.service.rejected:
            logger.error(
                "serving %s still, %s was rejected: %s", self.service.model.ref, rejected.model, rejected.reason
            )
        else:
            logger.info("serving %s", self.service.model.ref)

    async def check_health(self) -> None:
        """Has Serve replace a replica whose model hangs."""
        self.service.check_health()

    def _open(self, reference: str, version: int | None = None) -> ServedModel:
        from raydis.serve.model import open_model

        return open_model(
            Registry(open_store(self.args.storage)),
            reference,
            version=version,
            device=self.args.device,
            encode_batch_size=self.args.encode_batch_size,
            edit_batch_size=self.args.edit_batch_size,
        )


def build(args: dict[str, Any]) -> Application:
    """The application of a Serve config, after a check that its model is there and undamaged.

    Args:
        args: see ServeArgs.

    Raises:
        RaydisError: unknown or wrong args, no such model, or one whose files do not match its manifest.
    """
    wanted = parse(ServeArgs, args, source="args")
    wanted = wanted.model_copy(update={"storage": str(Location.parse(wanted.storage))})  # replicas work elsewhere
    registry = Registry(open_store(wanted.storage))
    ref = registry.resolve(wanted.model)
    registry.fetch(ref, default_cache())
    return Raydis.bind(wanted, ref.version)
