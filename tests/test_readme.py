"""The README's commands are run as they stand there: by the walk below, by other tests, or by `.ci/run`."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
import tomllib
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from raydis.presets import PRESETS
from raydis.registry import Registry
from raydis.store import LocalStore

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = [block.splitlines() for block in re.findall(r"^```bash\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)]
SET_UP = "python3 -m venv .venv && . .venv/bin/activate && pip install -c infra/constraints.txt -e '.[test]'"
SERVE = "RAY_AUTH_MODE=disabled serve run serve_configs/local.yaml"
ELSEWHERE = {
    f"{SET_UP} && pytest -q": ".ci/run",
    "export RAY_AUTH_MODE=disabled   # a cluster of one's own; infra/ray.env explains `token`": "system/test_jobs.py",
    "ray start --head": "system/test_jobs.py",
    "ray job submit --address http://127.0.0.1:8265 --working-dir . -- python -m raydis.sweep --storage /tmp/raydis": (
        "system/test_jobs.py"
    ),
    "python -m raydis models register CHECKPOINT mine": "test_cli.py",
    "python -m raydis.sweep sweeps/controls.yaml": "test_shipped_configs.py; its runs are those of the quickstart",
    "python -m raydis train --preset vq_small --name first": "engine/test_latents.py, with less training",
    (
        "python -m raydis train --preset small --set 'first_stage={kind: vq, checkpoint: CHECKPOINT, stem_stride: 4, "
        "multipliers: [1, 2], num_blocks: 1, latent_dim: 4}'"
    ): "engine/test_latents.py",
    "python -m tests.benchmarks.gpu --output gpu.json": "test_benchmarks.py, in its smallest form; it needs a GPU",
    (
        "python -m raydis.sweep sweeps/controls.yaml "
        "--set run.data.name=sprites --set run.data.path=sprites_walk_6x6x6x6x3x8.npz"
    ): "test_shipped_configs.py; it needs a file that is not ours to ship",
    "python -m raydis.sweep sweeps/sprites.yaml --set run.data.path=sprites_walk_6x6x6x6x3x8.npz": (
        "test_shipped_configs.py; it needs a file that is not ours to ship"
    ),
}
BENCHMARKS = re.findall(r"^\| `(python -m tests\.benchmarks\.[^`]+)`", README, re.MULTILINE)


def walked() -> list[str]:
    """The lines that the walk runs, in order."""
    return [line for block in BLOCKS for line in block if line not in ELSEWHERE]


def test_every_line_that_is_tested_elsewhere_is_in_the_readme() -> None:
    lines = [line for block in BLOCKS for line in block]
    assert set(ELSEWHERE) <= set(lines)
    assert f"{SET_UP} && python -m raydis.sweep" in walked()
    assert SERVE in walked()


def test_ci_sets_up_and_tests_as_the_readme_says() -> None:
    script = (ROOT / ".ci" / "run").read_text()
    assert "pip install --quiet -c infra/constraints.txt -e '.[test]'\npytest -q\n" in script


def test_requests_are_those_of_the_serve_config() -> None:
    shown = (ROOT / "serve_configs" / "local.yaml").read_text()
    requests = [line for line in walked() if line.startswith("curl")]
    assert len(requests) == 3
    assert all(f"#   {line}\n" in shown for line in requests)


def test_what_the_readme_names_exists() -> None:
    assert len(BENCHMARKS) == 10
    for command in BENCHMARKS:
        assert importlib.util.find_spec(command.split()[2]) is not None
    for path in re.findall(r"`((?:sweeps|serve_configs|infra|k8s|raydis|tests)/[\w./]*)`", README):
        assert (ROOT / path).exists(), path
    for picture in re.findall(r"!\[[^]]*\]\(([^)]+)\)", README):
        with Image.open(ROOT / picture) as image:
            assert image.width > 400
    for preset in re.findall(r"--preset (\w+)", README):
        assert preset in PRESETS
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]["markers"]
    assert set(re.findall(r"pytest -q -m '?(\w+)", README)) <= {marker.partition(":")[0] for marker in declared}


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A fresh clone of this checkout's last commit."""
    subprocess.run(["git", "clone", "--quiet", ROOT, tmp_path / "raydis"], check=True)
    return tmp_path / "raydis"


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(3 * 3600)
def test_the_readme_from_its_first_line_to_its_last(clone: Path) -> None:
    ray_folder = tempfile.mkdtemp(prefix="rr-", dir="/tmp")  # Ray's sockets lie below it, and their paths must be short
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "AWS_", "VIRTUAL"))}
    environment = inherited | {
        "PATH": f"{clone}/.venv/bin{os.pathsep}{os.environ['PATH']}",
        "RAY_TMPDIR": ray_folder,
        "RAYDIS_CACHE": str(clone / "cache"),
    }
    lines = walked()
    first_request = next(row for row, line in enumerate(lines) if line.startswith("curl"))
    last_request = max(row for row, line in enumerate(lines) if line.startswith("curl"))
    serving = contextlib.ExitStack()
    try:
        for row, line in enumerate([*lines, *BENCHMARKS]):
            if line == SERVE:
                serving.enter_context(served(clone, environment))
                continue
            follow = " --silent --show-error --fail-with-body" if first_request <= row <= last_request else ""
            started = time.monotonic()
            done = subprocess.run(
                ["bash", "-c", f"{line}{follow}"], cwd=clone, env=environment, capture_output=True, text=True
            )
            print(f"$ {line}\n[{time.monotonic() - started:.0f} s]\n{done.stdout[-3000:]}")
            assert done.returncode == 0, f"{line}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
            if row == last_request:
                serving.close()
    finally:
        serving.close()
        shutil.rmtree(ray_folder, ignore_errors=True)

    assert Registry(LocalStore(clone / "runs")).resolve("quickstart@best").version == 1
    for name, least_px in (("traversal.png", 500), ("swap.png", 500), ("a.png", 64), ("out.png", 64)):
        assert Image.open(io.BytesIO((clone / name).read_bytes())).width >= least_px


@contextlib.contextmanager
def served(folder: Path, environment: dict[str, str]) -> Iterator[None]:
    """The README's service, once it answers; ended as Ctrl-C ends it."""
    script = f"set -a; . infra/ray.env; set +a; exec env {SERVE}"
    process = subprocess.Popen(
        ["bash", "-c", script],
        cwd=folder,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored below a shell's `&`
    )
    try:
        deadline = time.monotonic() + 180
        while time.monotonic() < deadline:
            assert process.poll() is None, "the service ended"
            with contextlib.suppress(OSError):  # refused, or slower than that
                urllib.request.urlopen("http://127.0.0.1:8000/healthz", timeout=5).close()
                break
            time.sleep(0.5)
        else:
            pytest.fail("no answer from the service in 180 s")
        yield
    finally:
        os.kill(process.pid, signal.SIGINT)
        process.wait(90)
