"""The environment that Ray is given, and a Ray that does not start."""

from __future__ import annotations

import errno
import os
import signal
from datetime import datetime

import pytest
import ray

from raydis.cluster.connect import check_socket_paths, fetch_result, ray_cluster, set_environment
from raydis.errors import DataError, ResourceError


@pytest.fixture
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {"HOME": "/home/someone"})


@pytest.mark.ray
@pytest.mark.usefixtures("cluster")
@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_an_error_of_ours_in_a_task_comes_back_as_itself() -> None:
    def fail(error: Exception) -> None:
        raise error

    with pytest.raises(DataError, match=r"^no file x$"):
        fetch_result(ray.remote(fail).remote(DataError("no file x")))
    with pytest.raises(ValueError, match="boom"):
        fetch_result(ray.remote(fail).remote(ValueError("boom")))


@pytest.mark.usefixtures("clean_environment")
def test_s3_checksums_are_switched_off_only_for_servers_other_than_aws() -> None:
    assert "AWS_REQUEST_CHECKSUM_CALCULATION" not in set_environment()
    os.environ["AWS_ENDPOINT_URL"] = "http://127.0.0.1:9000"
    variables = set_environment()
    assert variables["AWS_REQUEST_CHECKSUM_CALCULATION"] == "when_required"
    assert variables["AWS_RESPONSE_CHECKSUM_VALIDATION"] == "when_required"
    assert variables["AWS_ENDPOINT_URL"] == "http://127.0.0.1:9000"


@pytest.mark.usefixtures("clean_environment")
def test_the_users_environment_wins_and_no_secret_is_handed_on() -> None:
    os.environ |= {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1", "AWS_SECRET_ACCESS_KEY": "hush"}
    variables = set_environment()
    assert variables["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] == "0.1"
    assert "hush" not in variables.values()


@pytest.mark.usefixtures("clean_environment")
@pytest.mark.parametrize("variable", ["RAY_TMPDIR", "TMPDIR"])
def test_a_temporary_folder_too_long_for_sockets_is_told_before_ray_starts(
    monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setattr("ray.init", lambda *_, **__: pytest.fail("Ray was started"))
    monkeypatch.setenv(variable, "/tmp/" + "x" * 100)
    told = rf"{variable}=/tmp/x+ is too long for Ray's sockets: it has 105 bytes, at most \d+ fit\. Set RAY_TMPDIR"
    with pytest.raises(ResourceError, match=told), ray_cluster():
        pass


@pytest.mark.usefixtures("clean_environment")
def test_the_longest_temporary_folder_that_is_allowed_is_the_longest_that_ray_takes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from ray._private.utils import validate_socket_filepath

    def socket(folder: str) -> str:
        return f"{folder}/ray/session_{datetime.now():%Y-%m-%d_%H-%M-%S_%f}_{os.getpid()}/sockets/plasma_store"

    longest = next(size for size in range(107, 0, -1) if len(socket("x" * size)) <= 107)
    validate_socket_filepath(socket("x" * longest))
    with pytest.raises(OSError, match="cannot exceed 107"):
        validate_socket_filepath(socket("x" * (longest + 1)))
    monkeypatch.setenv("RAY_TMPDIR", "x" * longest)
    check_socket_paths()
    monkeypatch.setenv("RAY_TMPDIR", "é" * (longest // 2 + 1))
    with pytest.raises(ResourceError, match=f"at most {longest} fit"):
        check_socket_paths()


@pytest.mark.usefixtures("clean_environment")
@pytest.mark.parametrize(
    ("error", "words"),
    [
        (Exception("The current node timed out during startup."), "The current node timed out during startup"),
        (OSError(errno.ENOSPC, "No space left on device", "/tmp/ray"), "cannot use /tmp/ray: No space left on device"),
        (ConnectionError("the GCS does not answer"), "the GCS does not answer"),
    ],
)
def test_a_ray_that_does_not_start_is_one_line(monkeypatch: pytest.MonkeyPatch, error: Exception, words: str) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setenv("RAY_TMPDIR", "/tmp/r")
    monkeypatch.setattr("ray.init", refuse)
    with pytest.raises(ResourceError, match="Ray did not start on this machine: ") as caught, ray_cluster():
        pass
    assert words in str(caught.value)
    assert "/tmp/r/ray/session_latest/logs" in str(caught.value)
    assert caught.value.__cause__ is error


@pytest.mark.usefixtures("clean_environment")
def test_a_caller_who_handles_sigterm_keeps_it_when_ray_takes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def take(*_: object, **__: object) -> None:
        signal.signal(signal.SIGTERM, lambda *_: None)

    def mine(number: int, frame: object) -> None: ...

    monkeypatch.setattr("ray.init", take)
    monkeypatch.setenv("RAY_TMPDIR", "/tmp/r")
    before = signal.signal(signal.SIGTERM, mine)
    try:
        with ray_cluster():
            assert signal.getsignal(signal.SIGTERM) is mine
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.usefixtures("clean_environment")
def test_a_signal_that_comes_while_ray_starts_is_the_callers_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: object, **__: object) -> None:
        raise SystemExit(15)  # what Ray's own handler does

    def mine(number: int, frame: object) -> None:
        raise KeyboardInterrupt(number)

    monkeypatch.setattr("ray.init", stopped)
    monkeypatch.setenv("RAY_TMPDIR", "/tmp/r")
    before = signal.signal(signal.SIGTERM, mine)
    try:
        with pytest.raises(KeyboardInterrupt) as caught, ray_cluster():
            pass
        assert caught.value.args == (signal.SIGTERM,)
        assert signal.getsignal(signal.SIGTERM) is mine
    finally:
        signal.signal(signal.SIGTERM, before)
