"""Methods without a diffusion model, from `python -m raydis train` to an answer of a served version."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml

from raydis.checkpoint.open import open_checkpoint
from raydis.config import RunConfig
from raydis.config.presets import expand
from raydis.errors import EditError
from raydis.registry import Registry
from raydis.serve.model import Drawing, open_model
from raydis.store import LocalStore

CHECKOUT = Path(__file__).resolve().parents[2]
TIMEOUT_S = 900  # for a machine that is busy with other things; a quiet one takes a minute
pytestmark = [pytest.mark.ray, pytest.mark.timeout(TIMEOUT_S)]

# Of each preset: what suits 324 images of 16 px. A VAE needs some 200 steps to use its units.
SHORTER = {
    "beta_vae_small": {"hidden_dim": 64},
    "factor_vae_small": {"hidden_dim": 64, "discriminator_dims": [32, 32]},
    "pca_ica_small": {"num_units": 6},
}


@pytest.fixture
def ray_folder() -> Iterator[Path]:
    """Where Ray puts its sockets, whose paths must be short."""
    with tempfile.TemporaryDirectory(prefix="rm-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@pytest.mark.parametrize("preset", SHORTER)
def test_a_method_is_trained_searched_scored_promoted_traversed_and_served(
    preset: str, tmp_path: Path, ray_folder: Path
) -> None:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "AWS_"))}
    settings = {"RAY_TMPDIR": str(ray_folder), "PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1"}

    def python(*arguments: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", *arguments],
            cwd=tmp_path,
            env=inherited | settings,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done

    run = {
        "preset": preset,
        "data": expand({"preset": "tiny"})["data"],
        "method": SHORTER[preset],
        "train": {"num_images": 6_400, "learning_rate": 2e-3, "ema_decay": 0.9, "report_images": 3_200},
        "evaluation": {"estimator": "tree"},
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(run))
    trained = python("raydis", "train", "run.yaml", "--name", "once")
    checkpoint, scores = trained.stdout.splitlines()
    assert json.loads(scores)["status"] == "valid"
    method = RunConfig.model_validate(expand(run)).method
    assert json.loads((Path(checkpoint.split()[1]) / "config.json").read_text())["method"]["kind"] == method.kind

    sweep = {"name": "rival", "run": run, "num_trials": 2, "promotion": {"protocol": "search", "estimator": "tree"}}
    (tmp_path / "rival.yaml").write_text(yaml.safe_dump(sweep))
    python("raydis.sweep", "rival.yaml", "--name", "first")
    summary = json.loads((tmp_path / "runs/sweeps/first/summary.json").read_text())
    assert len(summary["trials"]) == 2
    assert set(summary["trials"][0]["settings"]) == set(method.default_search_space())
    assert summary["promotion"]["promoted"] is True
    best = next(trial for trial in summary["trials"] if trial["number"] == summary["best"])
    assert best["state"] == "complete"
    assert open_checkpoint(Path(best["checkpoint"])).manifest.parent is not None

    python("raydis", "traverse", "rival@best", "--output", "grid.png")
    assert (tmp_path / "grid.png").read_bytes().startswith(b"\x89PNG")

    registry = Registry(LocalStore(tmp_path / "runs"))
    served = open_model(registry, registry.resolve("rival@best"), device="cpu")
    assert served.max_steps is None
    sampling = served.sampling(None, None, keep_details=False)
    picture = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    (codes,) = served.encode([picture])
    assert codes.facts == {}
    moved = served.edit_units(codes.units, {0: 2.0}, {1: -1.0})
    rows = (codes.units, moved, moved)
    drawn = served.draw([Drawing(units, codes.codes, seed, sampling) for seed, units in enumerate(rows)])
    assert [image.shape for image in drawn] == [(16, 16, 3)] * 3
    assert not np.array_equal(drawn[0], drawn[1])
    assert np.array_equal(drawn[1], drawn[2])  # no seed has a part in it
    with pytest.raises(EditError, match="draws in a single pass, without noise: leave steps out"):
        served.sampling(5, None, keep_details=False)
