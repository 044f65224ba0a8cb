"""Make Ray Tune survive the errors of a trial that it does not expect, and say which error ended which trial.

Tune has no interface for either, so two classes here replace Tune's own while a sweep runs. They override one method
each. `tests/system/test_losses.py` fails if Tune no longer calls them.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from typing import Any

from ray.air.execution._internal.actor_manager import RayActorManager
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.tune.execution.tune_controller import TuneController

from raydis.sweep.searcher import StudySearcher


class _ProcessEnded(RayActorError):
    """The end of a trial's process by another error of Ray, which is the `cause`."""

    def __init__(self, cause: RayError) -> None:
        super().__init__(error_msg=str(cause))
        self.cause = cause


class _ActorManager(RayActorManager):
    """Treat every error of Ray as the end of the process that it came from.

    Tune knows two of them. Any other, such as the OutOfMemoryError by which Ray's memory monitor ends a process, ends
    the whole sweep.
    """

    def _actor_task_failed(self, tracked_actor_task: Any, exception: Exception) -> None:
        if isinstance(exception, RayError) and not isinstance(exception, RayActorError | RayTaskError):
            exception = _ProcessEnded(exception)
        super()._actor_task_failed(tracked_actor_task, exception)


class _Controller(TuneController):
    """Tell the searcher the error of a trial before it is told that the trial has failed."""

    def _process_trial_failure(self, trial: Any, exception: Any) -> None:
        searcher: Any = self._search_alg
        while (inner := getattr(searcher, "searcher", None)) is not None:  # Tune wraps it, more than once
            searcher = inner
        if isinstance(searcher, StudySearcher):
            searcher.blame(trial.trial_id, exception)
        super()._process_trial_failure(trial, exception)


@contextlib.contextmanager
def tolerant_tune() -> Iterator[None]:
    """Let Tune use these classes during a `with` block."""
    places = {
        "ray.tune.tune": ("TuneController", _Controller),
        "ray.tune.execution.tune_controller": ("RayActorManager", _ActorManager),
    }
    with contextlib.ExitStack() as stack:
        for module, (name, ours) in places.items():
            owner = importlib.import_module(module)
            stack.callback(setattr, owner, name, getattr(owner, name))
            setattr(owner, name, ours)
        yield
