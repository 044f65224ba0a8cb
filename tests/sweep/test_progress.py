"""What a sweep shows while it runs, driven by a clock of our own."""

from __future__ import annotations

import io
import pickle
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from raydis.engine.record import RunRecord
from raydis.metrics.standing import DEFAULT_OBJECTIVES, Objective
from raydis.sweep.progress import SweepProgress, SweepState
from raydis.sweep.words import brief, describe, duration
from tests.records import finished, running


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def config(number: int, control: str | None = None) -> dict[str, Any]:
    settings = {"method.num_units": 10, "train.learning_rate": 0.00123456, "method.unet.multipliers": [1, 2]}
    return {"number": number, "control": control, "settings": settings}


def state_with(clock: Clock) -> SweepState:
    return SweepState(4, 1000, DEFAULT_OBJECTIVES, clock)


def scored(dci: float, factor_vae: float, **more: float) -> RunRecord:
    return finished(1000, dci_disentanglement=dci, factor_vae=factor_vae, **more)


def test_time_left_is_extrapolated_from_the_images_seen() -> None:
    clock = Clock()
    state = state_with(clock)
    assert state.left_s is None
    state.start(config(0))
    state.start(config(1))
    clock.now += 30.0
    state.update(config(0), running(500, loss=0.2))
    state.update(config(1), scored(0.5, 0.7))
    assert state.share == pytest.approx(0.375)  # one and a half of four trials
    assert state.left_s == pytest.approx(50.0)


def test_a_line_tells_counts_the_best_and_the_time_left() -> None:
    clock = Clock()
    state = state_with(clock)
    for number in range(3):
        state.start(config(number))
    state.update(config(0), scored(0.2, 0.9))
    state.update(config(1), scored(0.5, 0.7))
    clock.now += 100.0
    line = "1 min 40 s  2 of 4 trials done, 1 running, 1 min 40 s left, best 1: dci 0.50 fvae 0.70"
    assert state.line() == line
    state.fail(config(2))
    assert "2 of 4 trials done, 0 running, 1 failed, 33 s left, best 1" in state.line()


def test_invalid_scores_count_as_a_failed_trial_and_are_never_the_best() -> None:
    state = state_with(Clock())
    state.update(config(0), RunRecord(state="invalid", reason="all codes are constant"))
    assert state.count("failed") == 1
    assert state.best() is None


def test_a_line_names_the_lowest_where_low_is_better_and_none_that_failed() -> None:
    state = SweepState(4, 1000, [Objective(metric="mig", direction="min")], Clock())
    for number, value in enumerate((0.4, 0.2, 0.1, None, float("nan"))):
        state.update(config(number), finished(1000, mig=value))
    state.fail(config(2))
    assert state.line().endswith(", best 1: mig 0.20")
    assert (state.count("done"), state.count("failed")) == (2, 3)  # as the summary will count them


def test_a_line_fits_a_hundred_columns_in_a_long_sweep() -> None:
    clock = Clock()
    more = [Objective(metric="dci_completeness"), Objective(metric="dci_informativeness")]
    state = SweepState(1000, 10, [*DEFAULT_OBJECTIVES, *more], clock)
    for number in range(999):
        state.update(config(number), scored(0.5, 0.7, dci_completeness=0.5, dci_informativeness=0.25))
    state.fail(config(5))
    clock.now += 1e6
    assert len(state.line()) <= 100
    assert "999 of 1000" not in state.line()
    assert "998 of 1000 trials done, 0 running, 1 failed, 16 min 41 s left, best 0" in state.line()


def test_paused_and_stopped_trials_are_counted_apart_from_running_ones() -> None:
    state = state_with(Clock())
    for number in range(4):
        state.start(config(number))
    state.update(config(0), scored(0.5, 0.7))
    state.end(config(0))
    state.pause(config(1))
    state.end(config(2))
    assert "1 of 4 trials done, 1 running, 1 paused, 1 stopped" in state.line()
    state.start(config(1))
    assert "1 of 4 trials done, 2 running, 1 stopped" in state.line()
    state.pause(config(1))
    state.end(config(1))
    assert "1 of 4 trials done, 1 running, 2 stopped" in state.line()


def test_without_a_terminal_lines_come_at_most_every_ten_seconds() -> None:
    clock, out = Clock(), io.StringIO()
    state = state_with(clock)
    trial = SimpleNamespace(config=config(0))
    with SweepProgress(state, Console(file=out, width=100)) as progress:
        progress.on_trial_start(0, [], trial)
        for _ in range(250):  # 25 seconds
            clock.now += 0.1
            progress.on_trial_result(0, [], trial, running(100, loss=0.5).to_ray())
            progress.on_step_end(0, [])
    lines = out.getvalue().splitlines()
    assert len(lines) == 3  # two while it runs, one at its end
    assert all("0 of 4 trials done, 1 running" in line and len(line) <= 100 for line in lines)


def test_on_a_terminal_the_table_shows_settings_and_scores_within_its_width() -> None:
    state, out = state_with(Clock()), io.StringIO()
    for number in range(20):
        state.update(config(number), scored(0.5, 0.7))
    state.start(config(20, control="dyga_off"))
    console = Console(file=out, width=100, force_terminal=True, color_system=None)
    console.print(state.table())
    text = out.getvalue()
    assert max(map(len, text.splitlines())) <= 100
    assert "control dyga_off" in text
    assert "num_units=10 learning_rate=0.00123 multipliers=[1, 2]" in text
    assert len(text.splitlines()) <= 14


def test_tune_can_pickle_the_callback() -> None:
    progress = SweepProgress(state_with(Clock()), Console(file=io.StringIO()))
    assert isinstance(pickle.loads(pickle.dumps(progress)), SweepProgress)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.4, "59 s"), (200, "3 min 20 s"), (3599.9, "1 h 00 min"), (7500, "2 h 05 min"), (None, "?")],
)
def test_durations_read_as_people_say_them(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


def test_settings_are_described_by_the_last_part_of_their_keys() -> None:
    assert describe({"a.b.rate": 0.123456, "a.mode": "off"}) == "rate=0.123 mode=off"
    assert brief(1e-4) == "0.0001"
