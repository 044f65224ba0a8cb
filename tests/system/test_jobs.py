"""A sweep submitted as a Ray job to a cluster started with `ray start --head`, as the README shows."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from raydis.registry import Registry
from raydis.store import LocalStore

CHECKOUT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
START_S, JOB_S = 300, 1200  # for a machine that is busy with other things; a quiet one takes 6 and 40
pytestmark = [pytest.mark.ray, pytest.mark.timeout(START_S + JOB_S)]
PORTS = (
    "port",
    "dashboard-port",
    "dashboard-agent-listen-port",
    "dashboard-agent-grpc-port",
    "metrics-export-port",
    "node-manager-port",
    "object-manager-port",
    "ray-client-server-port",
    "runtime-env-agent-port",
)
SPEC = """
name: smoke
run: {preset: tiny}
search:
  method.num_units: {kind: int, low: 4, high: 6}
num_trials: 1
promotion: {estimator: tree}
"""


@dataclass
class Head:
    """A running head node."""

    url: str
    address: str
    environment: dict[str, str]


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    """`ray start --head` on ports of its own; every process of it is ended by its id afterwards."""
    folder = tempfile.mkdtemp(prefix="rj-", dir="/tmp")  # Ray's sockets lie below it, and their paths must be short
    ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "AWS_"))}
    environment = inherited | {
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",  # a job's `python` is the one that tests run with
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_TMPDIR": folder,
        "RAY_worker_niceness": "0",  # at Ray's 15 they would wait for whatever else the machine does
        "OMP_NUM_THREADS": "1",
    }
    options = [f"--{name}={port}" for name, port in ports.items()]
    process = subprocess.Popen(
        [BIN / "ray", "start", "--head", "--block", "--num-cpus=2", "--node-ip-address=127.0.0.1", *options],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    url = f"http://127.0.0.1:{ports['dashboard-port']}"
    try:
        wait_for(url, process)
        yield Head(url, f"127.0.0.1:{ports['port']}", environment)
    finally:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(20)
        for left in processes_with(f"RAY_TMPDIR={folder}"):
            with contextlib.suppress(ProcessLookupError):
                os.kill(left, signal.SIGKILL)
        process.wait(10)
        shutil.rmtree(folder, ignore_errors=True)


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on, all different."""
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    """Until the jobs API answers."""
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        assert process.poll() is None, f"ray start ended with {process.returncode}"
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{url}/api/jobs/").status_code == 200:
                return
        time.sleep(0.2)
    pytest.fail(f"no answer from {url} in {START_S} s")


def processes_with(variable: str) -> list[int]:
    """Processes that have NAME=VALUE in their environment."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if variable.encode() in (entry / "environ").read_bytes().split(b"\0") and int(entry.name) != os.getpid():
                found.append(int(entry.name))
    return found


def test_a_submitted_sweep_succeeds_and_shows_in_the_dashboard(head: Head, tmp_path: Path) -> None:
    (tmp_path / "smoke.yaml").write_text(SPEC)
    options = ("--name", "job", "--storage", str(tmp_path / "runs"))
    job = ("python", "-m", "raydis.sweep", str(tmp_path / "smoke.yaml"), *options)
    own = '{"env_vars": {"RAY_AIR_NEW_OUTPUT": "0", "AWS_ENDPOINT_URL": "http://127.0.0.1:9"}}'  # as raydis sets too
    submit = ("job", "submit", "--address", head.url, "--submission-id", "smoke-sweep", "--runtime-env-json", own)
    submit = (*submit, "--working-dir", ".", "--")
    submitted = subprocess.run(
        [BIN / "ray", *submit, *job], cwd=CHECKOUT, env=head.environment, capture_output=True, text=True, timeout=JOB_S
    )
    log = submitted.stdout + submitted.stderr
    assert submitted.returncode == 0, log
    for line in ("sweep job: 1 trials of", "smoke@1 promoted", "Job 'smoke-sweep' succeeded"):
        assert line in log
    assert "\x1b[?25l" not in log  # no live display where there is no terminal

    listed = httpx.get(f"{head.url}/api/jobs/smoke-sweep").json()
    assert listed["status"] == "SUCCEEDED"
    assert listed["entrypoint"].startswith("python -m raydis.sweep")
    page = httpx.get(f"{head.url}/")
    assert page.status_code == 200
    assert "Ray Dashboard" in page.text
    assert Registry(LocalStore(tmp_path / "runs")).resolve("smoke@best").version == 1


def test_a_sweep_that_the_cluster_at_ray_address_cannot_hold_is_refused_at_once(head: Head, tmp_path: Path) -> None:
    (tmp_path / "smoke.yaml").write_text(SPEC)
    refused = subprocess.run(
        [sys.executable, "-m", "raydis.sweep", "smoke.yaml", "--set", "run.compute.device=cuda"],
        cwd=tmp_path,
        env=head.environment | {"RAY_ADDRESS": head.address, "PYTHONPATH": str(CHECKOUT)},
        capture_output=True,
        text=True,
        timeout=JOB_S,
    )
    assert refused.returncode == 12, refused.stdout + refused.stderr
    assert "1 CPUs and 1 GPUs, but the cluster has nodes with 2 CPUs and 0 GPUs" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
    assert not (tmp_path / "runs").exists()
