"""Show the progress of a sweep: on a terminal as a table that updates in place, otherwise as a line every 10 s."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from optuna.trial import TrialState
from ray import tune
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from raydis.engine.record import RunRecord
from raydis.metrics.standing import Objective, best_of
from raydis.sweep.scheduler import ParetoHalvingScheduler
from raydis.sweep.searcher import trial_state
from raydis.sweep.summary import TrialRecord
from raydis.sweep.words import describe, duration, short

LINE_INTERVAL_S = 10.0
MAX_ROWS = 12


@dataclass
class TrialView:
    """The state and last report of a trial that has started."""

    number: int
    control: str | None
    settings: dict[str, Any]
    state: str = "running"  # or paused; later done, stopped or failed
    images_seen: int = 0
    loss: float | None = None
    scores: dict[str, float] = field(default_factory=dict)


class SweepState:
    """The trials of a running sweep by number, their counts, and the time left.

    Args:
        num_trials: number of trials of the sweep.
        num_images: training budget of one trial.
        objectives: the scores to show, which also decide the best trial so far.
        earlier: the trials of earlier sessions of the sweep; those that have ended count.
        clock: returns the time in seconds; it must not go back.
    """

    def __init__(
        self,
        num_trials: int,
        num_images: int,
        objectives: Sequence[Objective],
        clock: Callable[[], float] = time.monotonic,
        *,
        earlier: Sequence[TrialRecord] = (),
    ) -> None:
        self.num_trials, self.num_images, self.objectives = num_trials, num_images, objectives
        self.metrics = [goal.metric for goal in objectives]
        self.trials: dict[int, TrialView] = {}
        for record in earlier:
            if record.ended:
                self._add(record)
        self._share_before = self.share
        self._clock = clock
        self._started = clock()

    def _add(self, record: TrialRecord) -> None:
        values = record.run.values()
        self.trials[record.number] = TrialView(
            number=record.number,
            control=record.control,
            settings=record.settings,
            state="done" if record.state == "complete" else record.state,
            images_seen=record.run.images_seen or 0,
            loss=record.run.loss,
            scores={name: value for name in self.metrics if (value := values.get(name)) is not None},
        )

    def start(self, config: dict[str, Any]) -> TrialView:
        """Record that a trial has started or restarted."""
        number = config["number"]
        view = self.trials.setdefault(number, TrialView(number, config["control"], config["settings"]))
        view.state = "running"
        return view

    def update(self, config: dict[str, Any], record: RunRecord) -> None:
        """Record a report of a trial."""
        view = self.trials.get(config["number"]) or self.start(config)
        view.images_seen = record.images_seen or view.images_seen
        view.loss = record.loss
        if record.finished:
            state, _ = trial_state(record, False, self.objectives)
            view.state = "done" if state is TrialState.COMPLETE else "failed"
            values = record.values()
            view.scores = {name: value for name in self.metrics if (value := values.get(name)) is not None}

    def pause(self, config: dict[str, Any]) -> None:
        """Record that a trial has been paused after its last report."""
        self.start(config).state = "paused"

    def end(self, config: dict[str, Any]) -> None:
        """Record that a trial has ended. If its last report did not say so, it was stopped early."""
        view = self.trials.get(config["number"]) or self.start(config)
        if view.state in ("running", "paused"):
            view.state = "stopped"

    def fail(self, config: dict[str, Any]) -> None:
        """Record that a trial has raised an error, or that its process has died."""
        self.start(config).state = "failed"

    def count(self, state: str) -> int:
        """Return the number of trials in a state."""
        return sum(view.state == state for view in self.trials.values())

    @property
    def elapsed_s(self) -> float:
        return self._clock() - self._started

    @property
    def share(self) -> float:
        """The fraction of the sweep's images that have been used, in [0, 1].

        An ended or paused trial counts as a whole, because most paused trials do not go on.
        """
        seen = sum(
            min(view.images_seen / self.num_images, 1.0) if view.state == "running" else 1.0
            for view in self.trials.values()
        )
        return min(seen / self.num_trials, 1.0)

    @property
    def left_s(self) -> float | None:
        """The estimated time left in seconds, at the speed so far; None during the first percent of what is left."""
        done, left = self.share - self._share_before, 1.0 - self.share
        return self.elapsed_s * left / done if done > 0.01 * (done + left) else None

    def best(self) -> TrialView | None:
        """Return the best trial so far, which may be a control, as at the end of the sweep."""
        done = {number: view.scores for number, view in sorted(self.trials.items()) if view.state == "done"}
        number = best_of(done, self.objectives)
        return None if number is None else self.trials[number]

    def line(self) -> str:
        """Return the progress of the sweep in one line of at most 100 columns."""
        failed = self.count("failed")
        parts = [f"{self.count('done')} of {self.num_trials} trials done", f"{self.count('running')} running"]
        parts += [f"{failed} failed"] if failed else []
        parts += [f"{number} {state}" for state in ("paused", "stopped") if (number := self.count(state))]
        parts += [f"{duration(self.left_s)} left"] if self.left_s is not None else []
        if best := self.best():
            parts.append(f"best {best.number}: " + " ".join(f"{short(k)} {v:.2f}" for k, v in best.scores.items()))
        return f"{duration(self.elapsed_s):>7}  {', '.join(parts)}"[:100]

    def table(self) -> Table:
        """Return a table of the running trials and the last ones that have ended."""
        table = Table(box=None, pad_edge=False, header_style="bold")
        for heading in ("trial", "images", "loss", *map(short, self.metrics), "settings"):
            table.add_column(heading, justify="left" if heading == "settings" else "right", overflow="ellipsis")
        table.columns[-1].no_wrap = True
        running = [view for view in self.trials.values() if view.state == "running"]
        ended = [view for view in self.trials.values() if view.state != "running"]
        for view in sorted([*ended[-max(MAX_ROWS - len(running), 3) :], *running], key=lambda view: view.number):
            images = f"{100 * view.images_seen / self.num_images:.0f} %" if view.state == "running" else view.state
            loss = "" if view.loss is None else f"{view.loss:.4f}"
            scores = [f"{view.scores[name]:.3f}" if name in view.scores else "" for name in self.metrics]
            table.add_row(str(view.number), images, loss, *scores, describe(view.settings, view.control))
        return table


class SweepProgress(tune.Callback):
    """A Tune callback that updates a SweepState and shows it on a console.

    Args:
        scheduler: that of the sweep if it stops trials early; Tune calls it before this callback.
    """

    def __init__(self, state: SweepState, console: Console, scheduler: ParetoHalvingScheduler | None = None) -> None:
        self.state = state
        self._scheduler = scheduler
        self._console = console
        self._live: Live | None = None
        self._last_line_s = state.elapsed_s

    def __enter__(self) -> SweepProgress:
        if self._console.is_terminal:
            self._live = Live(console=self._console, auto_refresh=True, refresh_per_second=2, transient=True)
            self._live.get_renderable = lambda: Group(Text(self.state.line()), self.state.table())
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None
        else:
            self._console.print(self.state.line(), highlight=False, soft_wrap=True)

    def __getstate__(self) -> dict[str, Any]:
        return {
            "state": None,
            "_console": None,
            "_live": None,
            "_scheduler": None,
        }  # Tune pickles its callbacks, which a console prevents

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.state.start(trial.config)

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **i: Any) -> None:
        self.state.update(trial.config, RunRecord.from_ray(result))
        if self._scheduler is not None and self._scheduler.is_paused(trial):
            self.state.pause(trial.config)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.state.end(trial.config)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.state.fail(trial.config)

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        if self._live is None and self.state.elapsed_s - self._last_line_s >= LINE_INTERVAL_S:
            self._last_line_s = self.state.elapsed_s
            self._console.print(self.state.line(), highlight=False, soft_wrap=True)
