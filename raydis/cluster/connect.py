"""Connect a command to Ray: to the cluster that it runs on, or to a local one that it starts.

This module also sets the environment variables that Ray and S3 clients read, and turns Ray's errors into ours.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

import ray
from ray.exceptions import AuthenticationError, RayTaskError

from raydis.errors import RaydisError, ResourceError, explain

MAX_SOCKET_BYTES = 103 if sys.platform == "darwin" else 107  # longest path of a Unix socket
OBJECT_STORE_BYTES = 128 * 2**20  # raydis sends only configurations and pictures through the object store
ENDPOINT_VARIABLES = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
DEFAULTS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # with the default of 2 s, every report waits that long
    "RAY_AIR_NEW_OUTPUT": "0",  # Tune's own progress display
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # a relative data.path then means the same in the command and its workers
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",  # Tune warns of every checkpoint that is kept
}
LOCAL_DEFAULTS = {"RAY_worker_niceness": "0"}
CHECKSUMS = ("AWS_REQUEST_CHECKSUM_CALCULATION", "AWS_RESPONSE_CHECKSUM_VALIDATION")


def set_environment() -> dict[str, str]:
    """Set the environment variables of Ray, Tune, Train and S3 clients that the user has not set; return all of them.

    S3 servers other than AWS refuse the checksums that pyarrow sends by default, or store them with the data.
    """
    wanted = dict(DEFAULTS)
    endpoints = {name: os.environ[name] for name in ENDPOINT_VARIABLES if os.environ.get(name)}
    if endpoints:
        wanted |= dict.fromkeys(CHECKSUMS, "when_required")
    for name, value in wanted.items():
        os.environ.setdefault(name, value)
    return {name: os.environ[name] for name in wanted} | endpoints


@contextlib.contextmanager
def ray_cluster() -> Iterator[None]:
    """Connect to Ray for the duration of a `with` block.

    In a Ray job, or if RAY_ADDRESS is set, connect to that cluster. Otherwise start a local cluster with a token of its
    own, which ends with the block. If a connection exists already, use it and leave it open.

    Raises:
        ResourceError: there is no cluster at RAY_ADDRESS, it refuses our token, or the local one does not start.
    """
    if ray.is_initialized():
        yield
        return
    variables = set_environment()
    os.environ.setdefault("RAY_OVERRIDE_JOB_RUNTIME_ENV", "1")  # else Ray refuses variables that a job has set, too
    address = os.environ.get("RAY_ADDRESS")
    try:
        with _keep_sigterm():
            if address:
                ray.init(address, runtime_env={"env_vars": variables}, log_to_driver=False, logging_level=logging.ERROR)
            else:
                _start_local()
    except (ConnectionError, AuthenticationError) as error:
        raise ResourceError(
            f"no Ray cluster at RAY_ADDRESS={address}: {' '.join(str(error).split())[:300]}. Unset RAY_ADDRESS to run "
            "on this machine alone; if the cluster asks for a token, set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _keep_sigterm() -> Iterator[None]:
    """Restore the caller's handler of SIGTERM, as Ray's own handler ends the process with 1 and prints C++ stacks."""
    handler = signal.getsignal(signal.SIGTERM)
    if not callable(handler) or threading.current_thread() is not threading.main_thread():
        yield
        return
    try:
        yield
    except SystemExit:  # raised by Ray's handler, after a signal in the meantime
        handler(signal.SIGTERM, None)
        raise
    finally:
        signal.signal(signal.SIGTERM, handler)


def check_socket_paths() -> None:
    """Check that the paths of Ray's sockets, which lie below RAY_TMPDIR, TMPDIR or /tmp, are not too long.

    Raises:
        ResourceError: they are longer than the system allows. The message names the variable.
    """
    variable = next((name for name in ("RAY_TMPDIR", "TMPDIR") if name in os.environ), None)
    folder = os.environ[variable] if variable else "/tmp"
    below = f"/ray/session_2026-01-31_23-59-59_999999_{os.getpid()}/sockets/plasma_store"
    found, allowed = len(os.fsencode(folder)), MAX_SOCKET_BYTES - len(below)
    if found > allowed:
        raise ResourceError(
            f"the temporary folder {variable}={folder} is too long for Ray's sockets: it has {found} bytes, at most "
            f"{allowed} fit. Set RAY_TMPDIR to a shorter folder, e.g. RAY_TMPDIR=/tmp"
        )


def _start_local() -> None:
    check_socket_paths()
    for name, value in LOCAL_DEFAULTS.items():
        os.environ.setdefault(name, value)
    if os.environ.get("RAY_AUTH_MODE", "token") == "token" and "RAY_AUTH_TOKEN_PATH" not in os.environ:
        # By default, Ray protects a new cluster by a token. It would read the token of the home folder, or write one.
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    try:
        ray.init(
            "local",
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            object_store_memory=OBJECT_STORE_BYTES,
        )
    except Exception as error:  # Ray raises OSError, RuntimeError or a bare Exception, for all kinds of reasons
        ray.shutdown()  # ends what has started already
        raise ResourceError(
            f"Ray did not start on this machine: {explain(error).line}. A busy machine may need another try; Ray's "
            f"logs lie in {os.environ.get('RAY_TMPDIR') or os.environ.get('TMPDIR') or '/tmp'}/ray/session_latest/logs"
        ) from error


def fetch_result(reference: Any) -> Any:
    """Return the value of an object reference, as `ray.get` does, but raise our own errors unwrapped.

    Raises:
        RaydisError: the task raised it.
        ResourceError: the workers of the cluster cannot import raydis.
    """
    try:
        return ray.get(reference)
    except RayTaskError as error:
        if isinstance(error.cause, RaydisError):
            raise error.cause from None
        if "No module named 'raydis'" in str(error):
            raise ResourceError(
                "the cluster's workers cannot import raydis: install it on every node, or submit the command as a job "
                "with `ray job submit --working-dir .`"
            ) from error
        raise
