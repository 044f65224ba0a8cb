"""The GPU benchmark must run where little is installed, and without a GPU at hand nobody would notice that it broke."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.benchmarks import gpu
from tests.benchmarks.train_step import make_config

ROOT = Path(__file__).resolve().parents[1]
ABSENT = (
    *("ray", "optuna", "boto3", "botocore", "yaml", "PIL", "h5py", "diffusers", "transformers", "typer", "fastapi"),
    *("rich", "pyarrow", "matplotlib", "httpx", "pandas", "moto", "starlette"),
)


def test_the_gpu_benchmark_runs_with_six_packages_and_writes_what_it_found(tmp_path: Path) -> None:
    script = (
        f"import runpy, sys; sys.modules.update(dict.fromkeys({ABSENT!r}))\n"
        f"sys.argv = ['gpu', '--smoke', '--output', {str(tmp_path / 'gpu.json')!r}]\n"
        "runpy.run_module('tests.benchmarks.gpu', run_name='__main__', alter_sys=True)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads((tmp_path / "gpu.json").read_text())
    parts = result["parts"]
    assert list(parts) == list(gpu.PARTS)
    assert all(part["status"] == "finished" and part["rows"] for part in parts.values())
    assert "install diffusers" in parts["unet"]["rows"][0]["left_out"]
    assert [row["variant"] for row in parts["train_step"]["rows"]] == ["plain fp32", "raydis fp32"]
    *_, trained, votes, last = parts["training"]["rows"]
    assert trained["images_seen"] == 512
    assert "factor_vae" not in trained  # the published scores follow at once
    assert last["protocol"] == "published"
    assert votes["factor_vae"] == last["factor_vae"]
    assert 0.0 <= last["dci_disentanglement"] <= 1.0


def test_the_parts_before_it_leave_the_run_time_to_be_scored() -> None:
    before = sum(limit_s for name, (_, limit_s) in gpu.PARTS.items() if name != "training")
    assert 570 - before >= 220
    assert 570 - before - gpu.LAST_SCORES_S >= 40  # and to train


def test_the_run_is_launched_as_the_fastest_step_that_ended_without_error() -> None:
    config = make_config("reference", "cuda", 1)
    rows = [
        {"variant": "plain bf16", "batch_size": 512, "step_ms": 1.0},
        {"variant": "raydis bf16", "batch_size": 512, "step_ms": 9.0},
        {"variant": "raydis bf16 graph", "batch_size": 512, "step_ms": 5.0},
        {"variant": "raydis bf16 blocks", "batch_size": 128, "step_ms": 2.0},
        {"variant": "raydis bf16 full", "batch_size": 512, "error": "no compiler"},
    ]
    names = [variant.name for variant in gpu.fastest_first(config, rows)]
    assert names == ["raydis bf16 graph", "raydis bf16", gpu.AS_IT_IS]
    fallback = gpu.fastest_first(config, [])
    assert [(variant.name, variant.compile) for variant in fallback] == [(gpu.AS_IT_IS, "off")]


def alive(process: int) -> bool:
    """Whether a process runs; one that ended but was not collected does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_part_of_the_gpu_benchmark_that_takes_too_long_is_ended_and_its_rows_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "python"
    program.write_text(
        '#!/bin/sh\nwhile [ "$1" != --output ]; do shift; done\n'
        'printf \'{"a": 1}\\n{"b": 2}\\n{"cut\' > "$2"\necho begun\n'
        f"sleep 60 & echo $! > {tmp_path / 'child'}\nwait\n"
    )
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    shown: list[list[dict]] = []
    part = gpu.run_apart("unet", gpu.Given(2.0, []), shown.append)
    assert (part["status"], part["rows"], part["log"]) == ("out of time", [{"a": 1}, {"b": 2}], "begun\n")
    assert shown[-1] == part["rows"]
    child = int((tmp_path / "child").read_text())
    for _ in range(50):  # until whoever adopts orphans has seen its end
        if not alive(child):
            break
        time.sleep(0.1)
    assert not alive(child)  # or what it holds of a GPU would be lost to the parts that follow
    program.write_text("#!/bin/sh\necho no memory >&2\nexit 3\n")
    part = gpu.run_apart("unet", gpu.Given(2.0, []), shown.append)
    assert (part["status"], part["rows"], part["log"]) == ("failed", [], "no memory\n")
