"""The shipped Serve config on real processes: HAProxy, replica, HTTP, and what is left when it ends.

The service is started once, as the README starts it, with ports and storage of its own.
"""

from __future__ import annotations

import concurrent.futures
import io
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from raydis.build import build_method
from raydis.checkpoint.open import open_checkpoint
from raydis.checkpoint.write import write_checkpoint
from raydis.config import RunConfig
from raydis.config.presets import expand
from raydis.registry import Registry
from raydis.store import open_store

pytestmark = pytest.mark.ray

ROOT = Path(__file__).resolve().parents[2]
START_S, END_S = 180, 60  # for a machine that is busy with other things; a quiet one takes 15 and 5


@dataclass
class Running:
    """A service that answers."""

    http: httpx.Client
    dashboard: httpx.Client
    config: dict[str, Any]
    registry: Registry
    mark: str  # stands in the environment of each of its processes

    def status(self) -> str | None:
        """Of the application; it is not listed for the moment in which it is built anew."""
        applications = self.dashboard.get("/api/serve/applications/").json()["applications"]
        return applications.get("raydis", {}).get("status")

    def state(self) -> dict[str, Any]:
        """Serve's own account of the deployment."""
        applications = self.dashboard.get("/api/serve/applications/").json()["applications"]
        return applications["raydis"]["deployments"]["raydis"]

    def deploy(self, model: str, *, min_replicas: int = 1) -> None:
        """What `serve deploy` does with the config, another `model` and another `min_replicas`."""
        [application] = self.config["applications"]
        application["args"]["model"] = model
        application["deployments"][0]["autoscaling_config"]["min_replicas"] = min_replicas
        self.dashboard.put("/api/serve/applications/", json=self.config).raise_for_status()

    def replicas(self) -> set[int]:
        """Process ids."""
        return {pid for pid, command in processes_with(self.mark).items() if "ServeReplica:raydis" in command}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("serve")
    registry = Registry(open_store(str(folder / "runs")))
    registry.set_alias(
        "quickstart", "best", registry.register(open_checkpoint(write_tiny(folder / "one", seed=1)), "quickstart")
    )
    config = yaml.safe_load((ROOT / "serve_configs" / "local.yaml").read_text())
    port, *others = free_ports(5)
    config["http_options"]["port"] = port
    (folder / "serve.yaml").write_text(yaml.safe_dump(config))
    mark = tempfile.mkdtemp(prefix="ray")  # Ray's sockets lie below it, and their paths must be short
    environment = environment_of_a_cluster(mark, others)
    environment.pop("RAYDIS_STORAGE", None)  # then it is ./runs
    log = folder / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [Path(sys.executable).with_name("serve"), "run", folder / "serve.yaml"],
            cwd=folder,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored below a shell's `&`
        )
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until(lambda: answers(f"{url}/healthz"), START_S, process, log)
        [dashboard] = set(re.findall(r"http://[\d.]+:\d+", log.read_text().partition("View the dashboard")[2]))
        with httpx.Client(base_url=url, timeout=60) as http, httpx.Client(base_url=dashboard, timeout=60) as rest:
            yield Running(http, rest, config, registry, mark)
    finally:
        try:
            end(process)
        finally:
            left = processes_that_stay(mark, END_S)
            shutil.rmtree(mark, ignore_errors=True)
    assert not left, f"these processes outlived the service: {left}"


def test_the_documented_curl_lines_encode_and_edit_a_picture(service: Running, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(picture(0))
    url = str(service.http.base_url).rstrip("/")
    documented = (ROOT / "serve_configs" / "local.yaml").read_text().replace("http://127.0.0.1:8000", url)
    lines = re.findall(r"^# +(curl .*)$", documented, re.MULTILINE)
    answers = [
        subprocess.run(f"{line} --silent --fail-with-body", shell=True, cwd=tmp_path, check=True, capture_output=True)
        for line in lines
    ]
    assert len(answers) == 3
    assert b'"version":1' in answers[0].stdout
    assert answers[1].stdout == service.http.post("/v1/encode", files={"image": picture(0)}).content
    drawn = (tmp_path / "out.png").read_bytes()
    assert Image.open(io.BytesIO(drawn)).size == (16, 16)
    assert drawn == edit(service, 0, unit=0, value=1.2, steps=20)


def test_haproxy_takes_the_requests(service: Running) -> None:
    assert any("haproxy" in command for command in processes_with(service.mark).values())


def test_concurrent_requests_get_the_bytes_they_get_alone(service: Running) -> None:
    alone = [edit(service, i) for i in range(12)]
    assert len(set(alone)) == 12
    with concurrent.futures.ThreadPoolExecutor(12) as clients:
        together = list(clients.map(lambda i: edit(service, i), range(12)))
    assert together == alone


def test_a_large_body_is_refused_and_the_service_goes_on(service: Running) -> None:
    response = service.http.post("/v1/edit", files={"image": bytes(11_000_000)})
    assert response.status_code == 413
    assert service.http.get("/healthz").status_code == 200


def test_autoscaling_and_back_pressure_are_on(service: Running) -> None:
    config = service.state()["deployment_config"]
    assert config["autoscaling_config"]["min_replicas"] == 1
    assert config["autoscaling_config"]["max_replicas"] == 2
    assert config["max_queued_requests"] == 128
    assert config["backpressure_config"] == {"status_code": 503, "retry_after_s": 1.0}


def test_all_replicas_serve_one_version_whatever_is_refused_dies_or_moves(service: Running, tmp_path: Path) -> None:
    def register(name: str, seed: int, **options: float) -> int:
        return service.registry.register(
            open_checkpoint(write_tiny(tmp_path / name, seed=seed, **options)), "quickstart"
        )

    service.deploy("quickstart@best", min_replicas=2)
    wait_until(lambda: len(service.replicas()) == 2 and service.status() == "RUNNING", START_S)

    broken = register("broken", 2, fill=float("nan"))
    service.deploy(f"quickstart@{broken}", min_replicas=2)
    wait_until(lambda: service.status() == "DEPLOY_FAILED", START_S)
    second = register("second", 3)
    service.registry.set_alias("quickstart", "best", second)
    assert versions_served(service) == {1}
    killed = min(service.replicas())
    os.kill(killed, signal.SIGKILL)
    wait_until(lambda: len(service.replicas() - {killed}) == 2, START_S)  # the new one starts after the alias has moved
    assert versions_served(service, 20) == {1}

    old = service.replicas()
    with Load(service) as load:  # the config as it was: only its alias has moved
        service.deploy("quickstart@best", min_replicas=2)
        wait_until(lambda: service.status() == "RUNNING" and not service.replicas() & old, START_S)
    assert load.answers == {1, second}
    assert versions_served(service) == {second}

    third = register("third", 4)
    service.registry.set_alias("quickstart", "best", third)
    service.deploy("quickstart@best", min_replicas=2)  # Serve has built this config already
    assert versions_served(service, 5) == {second}
    with Load(service) as load:
        service.deploy(f"quickstart@{third}", min_replicas=2)
        wait_until(lambda: service.status() == "RUNNING" and versions_served(service) == {third}, START_S)
    assert load.answers == {second, third}


class Load:
    """Clients that ask for edits, one after the other, while the block runs.

    Attributes:
        answers: the versions that drew them, and whatever else came back.
    """

    def __init__(self, service: Running, clients: int = 3) -> None:
        self.answers: set[int | str] = set()
        self._url = str(service.http.base_url)
        self._ended = threading.Event()
        self._clients = [threading.Thread(target=self._ask) for _ in range(clients)]

    def __enter__(self) -> Load:
        for client in self._clients:
            client.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for client in self._clients:
            client.join()

    def _ask(self) -> None:
        with httpx.Client(base_url=self._url, timeout=60) as http:
            while not self._ended.is_set():
                try:
                    response = http.post("/v1/edit", files={"image": picture(0)}, data={"steps": "2"})
                    model = response.headers.get("raydis-model", "")
                    self.answers.add(int(model.partition("@")[2]) if response.status_code == 200 else response.text)
                except httpx.HTTPError as error:
                    self.answers.add(repr(error))


def versions_served(service: Running, seconds: float = 0) -> set[int]:
    """Versions that answer over a time, each request with a connection of its own."""
    end = time.monotonic() + seconds
    url = service.http.base_url.join("/v1/model")
    found = {httpx.get(url, timeout=60).raise_for_status().json()["version"] for _ in range(20)}
    while time.monotonic() < end:
        found.add(httpx.get(url, timeout=60).raise_for_status().json()["version"])
    return found


def edit(service: Running, seed: int, *, unit: int = 0, value: float = 0.5, steps: int = 4) -> bytes:
    fields = {"set": f'{{"{unit}": {value}}}', "seed": str(seed), "steps": str(steps)}
    return service.http.post("/v1/edit", files={"image": picture(0)}, data=fields).raise_for_status().content


def picture(seed: int) -> bytes:
    """A PNG of another size than the model's."""
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 24, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def write_tiny(folder: Path, *, seed: int, fill: float | None = None) -> Path:
    """The checkpoint of an untrained `tiny` model that draws something: no layer of it is zero, or all of it `fill`."""
    config = RunConfig.model_validate(expand({"preset": "tiny"}))
    torch.manual_seed(seed)
    method = build_method(config, 3)
    for parameter in method.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
        if fill is not None:
            torch.nn.init.constant_(parameter, fill)
    method.first_stage.fit(torch.rand(64, 3, 16, 16) * 2 - 1)
    write_checkpoint(
        folder,
        config=config,
        weights=method.state_dict(),
        metrics={"scores": None},
        training=None,
        data_name="shapes3d_procedural",
        data_fingerprint="0" * 64,
        images_seen=0,
    )
    return folder


def environment_of_a_cluster(folder: str, ports: list[int]) -> dict[str, str]:
    """infra/ray.env, and what keeps this cluster apart from any other on the machine."""
    lines = (ROOT / "infra" / "ray.env").read_text().splitlines()
    shipped = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    names = ("FALLBACK_PROXY_HTTP", "FALLBACK_PROXY_GRPC", "HAPROXY_METRICS", "HAPROXY_STATS")
    return {
        **os.environ,
        **shipped,
        **{f"RAY_SERVE_{name}_PORT": str(port) for name, port in zip(names, ports, strict=True)},
        "RAY_AUTH_MODE": "disabled",
        "RAY_TMPDIR": folder,
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": f"{folder}/haproxy.cfg",
        "RAY_SERVE_HAPROXY_SOCKET_PATH": f"{folder}/admin.sock",
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": f"{folder}/metrics.sock",
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": folder,
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": f"{folder}/server-state",
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
        "RAY_worker_niceness": "0",
        "RAYDIS_CACHE": f"{folder}/cache",
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
    }


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=5).status_code == 200
    except httpx.TransportError:
        return False


def wait_until(
    condition: Callable[[], object], limit_s: float, process: subprocess.Popen | None = None, log: Path | None = None
) -> None:
    end = time.monotonic() + limit_s
    while not condition():
        said = log.read_text()[-3000:] if log else ""
        assert process is None or process.poll() is None, f"the service ended: {said}"
        assert time.monotonic() < end, f"not within {limit_s} s: {said}"
        time.sleep(0.2)


def end(process: subprocess.Popen) -> None:
    """Ends the service as Ctrl-C does: a mere SIGTERM sometimes leaves HAProxy behind."""
    process.send_signal(signal.SIGINT)
    try:
        process.wait(END_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise


def processes_that_stay(mark: str, limit_s: float) -> list[str]:
    """Command lines of processes with `mark` in their environment that outlive the limit; they are killed."""
    end = time.monotonic() + limit_s
    while (found := processes_with(mark)) and time.monotonic() < end:
        time.sleep(0.2)
    for pid in found:
        os.kill(pid, signal.SIGKILL)
    return list(found.values())


def processes_with(mark: str) -> dict[int, str]:
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (folder / "environ").read_bytes():
                found[int(folder.name)] = (folder / "cmdline").read_text().replace("\0", " ")[:100]
        except OSError:  # it ended meanwhile, or is not ours
            continue
    return found
