"""The memory of a sweep: its journal, what its trials leave behind, and results that are known."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.trial import TrialState
from ray.tune.search import Searcher

from raydis.config.presets import expand
from raydis.errors import ConfigError, StoreError
from raydis.store import LocalStore
from raydis.sweep.domains import MAX_POINTS, points
from raydis.sweep.journal import StoreJournal, cut_to_lines, study_storage
from raydis.sweep.left import Left, elapsed, forget, last_index, left_behind
from raydis.sweep.searcher import StudySearcher
from raydis.sweep.signals import stopped_like_ctrl_c
from raydis.sweep.stopping import SweepScheduler
from raydis.sweep.study import num_left, open_study, read_records, read_reports
from tests.records import finished, running, scores_of
from tests.sweep.test_difference import spec_of

FINITE = {
    "method.unet.skip_dropout_rate": {"kind": "choice", "values": [0.1, 0.2]},
    "method.num_units": {"kind": "int", "low": 4, "high": 5},
}
GOOD = finished(dci_disentanglement=0.4, factor_vae=0.7).to_ray()


@pytest.mark.parametrize(
    ("text", "left"), [(b"", b""), (b"ab", b""), (b"a\n", b"a\n"), (b"a\nb", b"a\n"), (b"a\n" + b"b" * 70_000, b"a\n")]
)
def test_a_line_that_was_not_written_to_its_end_is_removed(text: bytes, left: bytes, tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(text)
    cut_to_lines(tmp_path / "log")
    assert (tmp_path / "log").read_bytes() == left


def test_a_journal_in_a_store_lasts_from_flush_to_flush(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    journal = StoreJournal(store, "sweeps/s")
    study = optuna.create_study(study_name="s", storage=JournalStorage(journal))
    trial = study.ask()
    value = trial.suggest_float("x", 0, 1)
    journal.flush()
    study.tell(trial, 0.1)  # lost with its process
    again = StoreJournal(store, "sweeps/s")
    (kept,) = optuna.load_study(study_name="s", storage=JournalStorage(again)).trials
    assert (kept.params, kept.state.name) == ({"x": value}, "RUNNING")
    journal.flush()
    journal.flush()
    assert len(list(store.list("sweeps/s/"))) == 2
    journal.write_whole()
    storage, _ = study_storage(store, "sweeps/s")  # as optuna-dashboard reads it
    assert optuna.load_study(study_name="s", storage=storage).trials[0].state.name == "COMPLETE"


def test_the_study_names_its_objectives(tmp_path: Path) -> None:
    study = open_study(spec_of(), "s", None)
    assert study.metric_names == ["dci_disentanglement", "factor_vae"]


@pytest.mark.parametrize("state", [TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING])
def test_a_study_of_an_older_raydis_is_refused(state: TrialState, tmp_path: Path) -> None:
    storage, _ = study_storage(LocalStore(tmp_path), "sweeps/s")
    study = optuna.create_study(study_name="s", storage=storage, directions=["maximize"] * 2)
    trial = study.ask()
    if state.is_finished():
        study.tell(trial, [0.1, 0.2] if state is TrialState.COMPLETE else None, state=state)
    with pytest.raises(ConfigError, match="sweep s was begun by an older raydis and cannot go on: begin another one"):
        open_study(spec_of(), "s", storage)


def test_a_trial_leaves_behind_its_checkpoints_and_its_time(tmp_path: Path) -> None:
    store, folder = LocalStore(tmp_path), tmp_path / "t"
    assert left_behind(store, "t") == Left()
    for number in (0, 2, 10):
        (folder / f"checkpoint_{number:06d}").mkdir(parents=True)
        if number != 10:  # without a manifest: not complete
            (folder / f"checkpoint_{number:06d}/manifest.json").write_text("{}")
    (folder / "result.json").write_text('{"time_total_s": 2.0}\n{"time_total_s": 3.5}\n')
    left = left_behind(store, "t")
    assert left == Left((str(folder / "checkpoint_000002"), str(folder / "checkpoint_000000")), 3.5)
    assert last_index(left.checkpoints) == 2
    assert last_index(()) == -1
    forget(left.checkpoints)
    assert {path.name for path in folder.iterdir()} == {"checkpoint_000010", "result.json"}


def test_the_clock_of_each_session_counts() -> None:
    assert elapsed(b"") == 0.0
    lines = [b'{"time_total_s": 1}', b'{"time_total_s": 4}', b'{"time_total_s": 2}', b"{}", b'{"time_total_s": 2.5}']
    assert elapsed(b"\n".join([*lines, b'{"time_tot'])) == 6.5


def test_the_points_of_a_space_can_be_listed_unless_they_are_many() -> None:
    assert points(spec_of().search) == [{"method.num_units": number} for number in (4, 5, 6)]
    assert len(points(spec_of(search=FINITE).search) or []) == 4
    line = {"train.learning_rate": {"kind": "float", "low": 0.1, "high": 0.2}}
    assert points(spec_of(search=line).search) is None
    many = {"seed": {"kind": "int", "low": 0, "high": MAX_POINTS}}
    assert points(spec_of(search=many).search) is None


@pytest.mark.parametrize("at_once", [1, 3])
def test_a_finite_space_is_searched_once_and_the_sampler_is_told_what_is_known(at_once: int) -> None:
    spec = spec_of(search=FINITE, num_trials=8, controls=[])
    searcher = StudySearcher(spec, study_name="s")
    assert num_left(searcher.study, spec) == 4
    asked, running = [], []
    for number in range(20):
        suggestion = searcher.suggest(str(number))
        if suggestion == "FINISHED":
            break
        assert isinstance(suggestion, dict)
        asked.append(suggestion["settings"])
        running.append(str(number))
        if len(running) == at_once:
            searcher.on_trial_complete(running.pop(0), GOOD)
    for trial_id in running:
        searcher.on_trial_complete(trial_id, GOOD)
    assert len(asked) == 4
    assert all(asked.count(point) == 1 for point in asked)
    assert num_left(searcher.study, spec) == 0
    assert [record.state for record in read_records(searcher.study)] == ["complete"] * 4
    assert {trial.state.name for trial in searcher.study.trials} <= {"COMPLETE", "FAIL"}


def test_a_point_whose_trials_died_is_not_tried_again_and_the_space_is_searched(tmp_path: Path) -> None:
    spec = spec_of(search=FINITE, num_trials=8, controls=[])
    searcher = StudySearcher(spec, study_name="s")
    for number in range(4):
        assert num_left(searcher.study, spec) == 4 - number
        assert isinstance(searcher.suggest(str(number)), dict)
        died = number == 0
        searcher.on_trial_complete(str(number), None if died else GOOD, error=died)
    assert num_left(searcher.study, spec) == 0
    assert searcher.suggest("5") == Searcher.FINISHED
    assert [record.state for record in read_records(searcher.study)] == ["failed", *["complete"] * 3]


def test_an_interrupted_trial_is_asked_again_with_its_settings_and_what_it_left(tmp_path: Path) -> None:
    line = {"train.learning_rate": {"kind": "float", "low": 0.1, "high": 0.2}}

    def begin() -> StudySearcher:
        left = Left(("/c/checkpoint_000001",), 4.0)
        storage, _ = study_storage(LocalStore(tmp_path), "sweeps/s", mend=True)
        return StudySearcher(spec_of(search=line), study_name="s", storage=storage, left=lambda number: left)

    first = begin()
    one, two = first.suggest("a"), first.suggest("b")
    first.on_trial_complete("a", GOOD)
    second = begin()  # the first was killed
    again: Any = second.suggest("c")
    assert again == two | {"checkpoints": ["/c/checkpoint_000001"]}
    second.on_trial_complete("c", GOOD | {"time_total_s": 2.0})
    assert read_records(second.study)[1].time_s == 6.0
    assert one["control"] == "off"
    fresh: Any = second.suggest("d")
    assert fresh["number"] == 2
    assert "checkpoints" not in fresh


HALVING: dict[str, Any] = {
    "run": expand({"preset": "tiny", "evaluation": {"rungs": [64, 128]}}),
    "search": {"train.learning_rate": {"kind": "float", "low": 0.1, "high": 0.2}},
    "stopping": {"reduction_factor": 3},
    "controls": [],
}


def at_rung(images_seen: int, value: float) -> dict[str, Any]:
    scores = scores_of(dci_disentanglement=value, factor_vae=value)
    return running(images_seen, scores=scores).to_ray() | {"time_total_s": 2.0}


def test_the_study_keeps_what_trials_reported_at_the_rungs_when_its_driver_is_killed(tmp_path: Path) -> None:
    spec = spec_of(**HALVING)
    assert spec.stopping is not None

    def begin() -> StudySearcher:
        storage, _ = study_storage(LocalStore(tmp_path), "sweeps/s", mend=True)
        left = Left(("/c/checkpoint_000001",), 4.0)
        place = "/c/checkpoint_000001"
        return StudySearcher(spec, study_name="s", storage=storage, left=lambda _: left, checkpoint_of=lambda *_: place)

    first = begin()
    for number in range(3):
        first.suggest(f"a{number}")
        first.on_trial_result(f"a{number}", at_rung(64, 0.9 - 0.1 * number))
    first.on_trial_result("a0", at_rung(128, 0.95))
    first.on_trial_result("a0", running(192).to_ray())
    first.on_trial_complete("a1", at_rung(64, 0.8))  # the scheduler has stopped it, and Tune repeats its last report

    second = begin()
    reports = read_reports(second.study)
    assert {number: [row["images_seen"] for row in rows] for number, rows in reports.items()} == {
        0: [64, 128, 128],
        1: [64, 64],
        2: [64, 64],
    }
    scheduler = SweepScheduler(spec, spec.stopping)
    for number, rows in reports.items():
        scheduler.replay(number, rows)
    assert [scheduler.halving.going_on(rung) for rung in (64, 128)] == [{0}, {0}]
    assert num_left(second.study, spec) == spec.num_trials - 1

    for name in ("b0", "b2"):
        second.suggest(name)
    second.on_trial_result("b0", at_rung(128, 0.95))  # again, from the checkpoint before
    second.on_trial_complete("b2")  # paused since the sweep went on: Tune has no report of it in this session
    assert [(trial.state, trial.checkpoint, trial.run.images_seen) for trial in read_records(second.study)] == [
        ("running", "/c/checkpoint_000001", 128),
        ("stopped", "/c/checkpoint_000001", 64),
        ("stopped", "/c/checkpoint_000001", 64),
    ]
    assert [record.time_s for record in read_records(second.study)] == [6.0, 2.0, 4.0]
    assert [row["images_seen"] for row in second.study.trials[0].user_attrs["rungs"]] == [64, 128]


def test_without_early_stopping_nothing_is_written_at_a_rung(tmp_path: Path) -> None:
    searcher = StudySearcher(spec_of(**HALVING | {"stopping": None}), study_name="s")
    searcher.suggest("a")
    searcher.on_trial_result("a", at_rung(64, 0.5))
    assert read_reports(searcher.study) == {}


def test_a_rung_that_the_study_cannot_keep_ends_the_sweep_and_not_the_trial() -> None:
    room = [True]

    def saved() -> None:
        if not room[0]:
            raise StoreError("no space left")

    searcher = StudySearcher(spec_of(**HALVING), study_name="s", saved=saved)
    searcher.suggest("a")
    room[0] = False
    with pytest.raises(StoreError, match="no space left"):
        searcher.on_trial_result("a", at_rung(64, 0.5))
    room[0] = True
    with pytest.raises(StoreError, match="no space left"):  # Tune takes the error for one of the trial
        searcher.on_trial_complete("a", error=True)
    searcher.close()
    assert [(record.state, record.run.images_seen) for record in read_records(searcher.study)] == [("interrupted", 64)]


def test_settings_that_were_stopped_early_are_known() -> None:
    point = {"train.learning_rate": {"kind": "choice", "values": [0.1, 0.2]}}
    spec = spec_of(**HALVING | {"search": point, "num_trials": 8})
    searcher = StudySearcher(spec, study_name="s")
    for name in ("a", "b"):
        searcher.suggest(name)
        searcher.on_trial_complete(name, at_rung(64, 0.5))
    assert num_left(searcher.study, spec) == 0
    assert searcher.suggest("c") == Searcher.FINISHED


def test_sigterm_does_in_a_search_what_ctrl_c_does_and_its_own_handler_hears_it() -> None:
    heard, stopped = [], []

    def of_the_edge(number: int, frame: Any) -> None:
        heard.append(number)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, of_the_edge)
    on_interrupt = signal.getsignal(signal.SIGINT)
    try:
        with stopped_like_ctrl_c():
            signal.signal(signal.SIGINT, lambda *_: stopped.append("by Tune"))
            os.kill(os.getpid(), signal.SIGTERM)
        assert (heard, stopped) == ([signal.SIGTERM], ["by Tune"])
        assert signal.getsignal(signal.SIGTERM) is of_the_edge
        assert signal.getsignal(signal.SIGINT) is on_interrupt
        with pytest.raises(KeyboardInterrupt), stopped_like_ctrl_c():  # before Tune has its handler
            os.kill(os.getpid(), signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
