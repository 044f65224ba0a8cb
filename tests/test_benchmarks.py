"""The GPU benchmark must run where little is installed, and without a GPU at hand nobody would notice that it broke."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.benchmarks import gpu

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
    last = parts["training"]["rows"][-1]
    assert last["images_seen"] == 512
    assert 0.0 <= last["dci_disentanglement"] <= 1.0


def test_a_part_of_the_gpu_benchmark_that_takes_too_long_is_ended_and_its_rows_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "python"
    program.write_text(
        '#!/bin/sh\nwhile [ "$1" != --output ]; do shift; done\n'
        'printf \'{"a": 1}\\n{"b": 2}\\n{"cut\' > "$2"\necho begun\nexec sleep 60\n'
    )
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    shown: list[list[dict]] = []
    part = gpu.run_apart("unet", True, 2.0, shown.append)
    assert (part["status"], part["rows"], part["log"]) == ("out of time", [{"a": 1}, {"b": 2}], "begun\n")
    assert shown[-1] == part["rows"]
    program.write_text("#!/bin/sh\necho no memory >&2\nexit 3\n")
    part = gpu.run_apart("unet", True, 2.0, shown.append)
    assert (part["status"], part["rows"], part["log"]) == ("failed", [], "no memory\n")
