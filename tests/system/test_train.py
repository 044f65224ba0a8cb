"""`python -m raydis train` as a user types it, from a folder of their own pictures to a version in the registry."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

CHECKOUT = Path(__file__).resolve().parents[2]
STORAGE = "läufe [x]* #1/50%20?a=b&'c'\""
TIMEOUT_S = 600  # for a machine that is busy with other things; a quiet one takes half a minute
pytestmark = [pytest.mark.ray, pytest.mark.timeout(TIMEOUT_S)]


def test_a_folder_of_pictures_at_a_relative_path_becomes_a_version(tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number, pixels in enumerate(np.random.default_rng(0).integers(0, 256, (64, 20, 24, 3), dtype=np.uint8)):
        Image.fromarray(pixels).save(pictures / f"{number}.png")
    with tempfile.TemporaryDirectory(prefix="rf-", dir="/tmp", ignore_cleanup_errors=True) as ray_folder:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "AWS_"))}
        environment = inherited | {"RAY_TMPDIR": ray_folder, "PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1"}

        def raydis(*arguments: str) -> subprocess.CompletedProcess[str]:
            command = [sys.executable, "-m", "raydis", *arguments]
            return subprocess.run(
                command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S
            )

        data = ("--set", "data.name=image_folder", "--set", "data.path=pictures", "--storage", STORAGE)
        trained = raydis("train", "--preset", "tiny", "--set", "train.num_images=256", "--name", "mine #1%20", *data)
        assert trained.returncode == 0, trained.stderr
        assert "256 of 256 images  loss 0." in trained.stderr
        label, _, checkpoint = trained.stdout.splitlines()[0].partition("  ")
        assert label == "checkpoint"
        assert checkpoint.startswith(f"{tmp_path / STORAGE}/train/mine #1%20/checkpoint_")
        assert {path.name for path in tmp_path.iterdir()} == {"pictures", Path(STORAGE).parts[0]}
        assert json.loads(trained.stdout.splitlines()[1])["status"] == "no_factors"
        registered = raydis("models", "register", checkpoint, "mine", "--storage", STORAGE)
        assert registered.stdout == "registered mine@1\n", registered.stderr
        again = raydis("train", "--preset", "tiny", "--set", "train.num_images=256", "--name", "mine #1%20", *data)
        assert again.stdout.splitlines()[0] == trained.stdout.splitlines()[0]  # there was nothing left to do
