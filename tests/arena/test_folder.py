"""What an arena's folder says about its past: which sweeps ended, and on which terms it was begun."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from raydis.arena.folder import check_spec, read_sweeps, write_spec
from raydis.arena.spec import ArenaSpec, load_arena
from raydis.engine.record import RunRecord
from raydis.errors import ConfigError, FitError
from raydis.store import LocalStore
from tests.arena.conftest import final_rows, row, summary, write_sweep
from tests.records import finished, running, scores_of

KEY = "arenas/duel"


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "runs")


def test_nothing_is_done_in_an_empty_folder(store: LocalStore) -> None:
    found = read_sweeps(store, KEY, "ours", "study")
    assert (found.num_begun, found.rows, found.summary) == (0, (), None)


def test_sweeps_that_were_interrupted_or_killed_count_and_their_ended_runs_stay(store: LocalStore) -> None:
    first, second, third = final_rows("ours", {11: 0.5, 12: 0.25, 13: 0.75})
    stopped = second | {"state": "interrupted", "reason": "stopped after 32 images", "scores": None}
    write_sweep(store, "ours", "final", 1, summary([first, stopped], interrupted=True))
    write_sweep(store, "ours", "final", 2, None)
    found = read_sweeps(store, KEY, "ours", "final")
    assert (found.num_begun, found.rows, found.summary) == (2, (first,), None)
    write_sweep(store, "ours", "final", 3, last := summary([second, third]))
    found = read_sweeps(store, KEY, "ours", "final")
    assert (found.num_begun, found.rows) == (3, (first, second, third))
    assert found.summary == last
    assert read_sweeps(store, KEY, "ours", "study").num_begun == 0
    assert read_sweeps(store, KEY, "our", "final").num_begun == 0


def test_the_runs_that_had_ended_in_a_killed_sweep_are_read_from_their_logs(store: LocalStore) -> None:
    write_sweep(store, "ours", "final", 1, None)
    folder = f"{KEY}/sweeps/ours.final.1"

    def log(number: int, *records: RunRecord, rest: bytes = b"", **more: Any) -> None:
        config = {"number": number, "control": f"ours/{11 + number}", "settings": {"seed": 11 + number}}
        rows = [json.dumps(each.to_ray() | {"config": config, "time_total_s": 2.5} | more) for each in records]
        store.write(f"{folder}/trial-{number:04d}/result.json", "\n".join(rows).encode() + rest)

    log(
        0,
        running(320),
        finished(640, dci_disentanglement=0.5, factor_vae=0.25),
        checkpoint_dir_name="checkpoint_000001",
    )
    log(1, running(320))
    log(2, RunRecord.of_failure(FitError("the loss became nan")))
    log(3, finished(640, dci_disentanglement=0.5), rest=b'\n{"step": 3')
    log(4, finished(640, factor_vae=0.5), checkpoint_uri="s3://lab/train/b")
    store.write(f"{folder}/trial-0005/result.json", b"")
    first, failed, last = read_sweeps(store, KEY, "ours", "final").rows
    assert first == {
        "number": 0,
        "control": "ours/11",
        "settings": {"seed": 11},
        "state": "complete",
        "reason": None,
        "scores": scores_of(dci_disentanglement=0.5, factor_vae=0.25).to_dict(),
        "images_seen": 640,
        "time_s": 2.5,
        "checkpoint": str(store.location / folder / "trial-0000/checkpoint_000001"),
    }
    assert (failed["state"], failed["reason"], failed["scores"]) == ("failed", "FitError: the loss became nan", None)
    assert (last["control"], last["checkpoint"]) == ("ours/15", "s3://lab/train/b")
    assert set(first) == set(row(0, 0.5))


def test_a_study_without_any_scored_trial_has_ended(store: LocalStore) -> None:
    write_sweep(store, "ours", "study", 1, summary([row(0, None)]))
    found = read_sweeps(store, KEY, "ours", "study")
    assert found.summary is not None
    assert found.summary["best"] is None


def test_an_arena_goes_on_with_equal_terms_other_machines_and_further_entrants(store: LocalStore, path: Path) -> None:
    two = load_arena(path, ["entrants.rival=null"])
    check_spec(store, KEY, two)
    write_spec(store, KEY, two)
    free = ["max_concurrent=1", "focus=null", "entrants.ours.title=We", "run.compute.num_cpus=2", "max_failures=0"]
    for overrides in (["entrants.rival=null"], [], free):
        check_spec(store, KEY, load_arena(path, overrides))
    write_spec(store, KEY, load_arena(path, []))
    write_spec(store, KEY, two)  # forgets none of those that took part before
    assert set(json.loads(store.read(f"{KEY}/arena.json"))["entrants"]) == {"ours", "rival", "closed"}
    with pytest.raises(ConfigError, match=r"entrants\.rival\.run\.method\.beta was 4\.0, is 8\.0"):
        check_spec(store, KEY, load_arena(path, ["entrants.rival.run.method.beta=8"]))


def test_an_arena_goes_on_after_raydis_has_got_a_new_setting_unless_it_is_used(store: LocalStore, path: Path) -> None:
    write_spec(store, KEY, load_arena(path, []))
    tree = json.loads(store.read(f"{KEY}/arena.json"))
    del tree["entrants"]["rival"]["run"]["method"]["beta"]
    store.write(f"{KEY}/arena.json", json.dumps(tree).encode())
    check_spec(store, KEY, load_arena(path, []))
    with pytest.raises(ConfigError, match=r"entrants\.rival\.run\.method\.beta was .*, is 8\.0"):
        check_spec(store, KEY, load_arena(path, ["entrants.rival.run.method.beta=8"]))


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("num_trials=4", "num_trials was 3, is 4"),
        ("seeds=[11, 12]", r"seeds was \[11, 12, 13\], is \[11, 12\]"),
        ("run.train.num_images=320", r"entrants\.ours\.run\.train\.num_images was 640, is 320"),
        ("estimator=hist", "estimator was tree, is hist"),
        ("entrants.closed.search=null", r"entrants\.closed\.search was \{\}, is None"),
        ("run.data.levels.scale=3", r"entrants\.ours\.run\.data\.levels was \{.*\"scale\": 2"),
    ],
)
def test_other_terms_under_a_used_name_are_refused_and_named(
    store: LocalStore, path: Path, override: str, words: str
) -> None:
    write_spec(store, KEY, load_arena(path, []))
    with pytest.raises(ConfigError, match=words) as refused:
        check_spec(store, KEY, load_arena(path, [override]))
    assert "Choose another --name" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_the_written_spec_is_the_spec(store: LocalStore, spec: ArenaSpec) -> None:
    write_spec(store, KEY, spec)
    assert ArenaSpec.model_validate(json.loads(store.read(f"{KEY}/arena.json"))) == spec
