"""Arenas that nobody ran: specs of tiny runs, and the summaries that their sweeps would have written."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from raydis.arena.folder import sweep_name
from raydis.arena.spec import ArenaSpec, load_arena
from raydis.store import LocalStore
from tests.records import scores_of

FILE = """
name: duel
focus: ours
num_trials: 3
seeds: [11, 12, 13]
estimator: tree
run:
  data:
    name: shapes3d_procedural
    image_size: 16
    levels: {floor_hue: 3, wall_hue: 3, object_hue: 3, scale: 2, shape: 2, orientation: 3}
  train: {num_images: 640}
  evaluation: {estimator: tree}
entrants:
  ours: {title: Ours, run: {preset: tiny}, speed: {images_per_s: 64, fixed_s: 5}}
  rival: {run: {preset: beta_vae_small}, note: <b>no</b> markup, speed: {images_per_s: 128}}
  closed: {run: {preset: pca_ica_small}, search: {}, speed: {images_per_s: 640, fixed_s: 4}}
"""

# An entrant whose runs borrow a model, which wants larger images.
BORROWER = (
    "entrants.ours={run: {preset: disdiff_small, data: {image_size: 64}}, "
    "pretraining: {run: {preset: diffusion_small}}}"
)
LARGE = (
    "run.data={name: shapes3d_procedural, image_size: 64}",
    "run.evaluation={estimator: tree, rungs: [160, 480]}",
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The file of an arena with three entrants, of which one has nothing to search."""
    file = tmp_path / "duel.yaml"
    file.write_text(FILE)
    return file


@pytest.fixture
def spec(path: Path) -> ArenaSpec:
    return load_arena(path, [])


def row(number: int, dci: float | None, **over: Any) -> dict[str, Any]:
    """A trial as summary.json holds it, with both objectives; without scores for None."""
    scores = None if dci is None else scores_of(dci_disentanglement=dci, factor_vae=dci / 2).to_dict()
    return {
        "number": number,
        "control": None,
        "settings": {"method.num_units": 4 + number},
        "state": "failed" if dci is None else "complete",
        "reason": "FitError: the loss became nan" if dci is None else None,
        "scores": scores,
        "images_seen": 640,
        "time_s": 2.5,
        "checkpoint": f"/runs/{number}",
    } | over


def summary(rows: Sequence[dict[str, Any]], *, interrupted: bool = False) -> dict[str, Any]:
    """The summary of a sweep with these trials, whose best is the first of those with the highest DCI."""
    ranked = [each for each in rows if each["state"] == "complete"]
    best = max(ranked, key=lambda each: each["scores"]["values"]["dci_disentanglement"], default=None)
    return {"interrupted": interrupted, "best": best and best["number"], "trials": list(rows)}


def final_rows(entrant: str, scores: dict[int, float | None]) -> list[dict[str, Any]]:
    """The trials of a final: seed -> DCI."""
    return [
        row(number, dci, control=f"{entrant}/{seed}", checkpoint=f"/runs/{entrant}/{seed}")
        for number, (seed, dci) in enumerate(scores.items())
    ]


def write_sweep(store: LocalStore, entrant: str, part: Any, number: int, found: dict[str, Any] | None) -> None:
    """Write what a sweep of the arena `duel` leaves behind: its spec, and its summary unless it was killed."""
    folder = f"arenas/duel/sweeps/{sweep_name(entrant, part, number)}"
    store.write(f"{folder}/spec.json", b"{}")
    if found is not None:
        store.write(f"{folder}/summary.json", json.dumps(found).encode())
