from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from raydis.serve.batcher import Batcher


class Recorder:
    """Squares numbers, notes its batches, and waits with each until told to go on."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.go = threading.Event()

    def __call__(self, jobs: Sequence[int]) -> list[int]:
        self.batches.append(list(jobs))
        assert self.go.wait(10)
        if 13 in jobs:
            raise ArithmeticError("unlucky")
        return [job * job for job in jobs]


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


def batcher(recorder: Recorder, **options: object) -> Batcher[int, int]:
    return Batcher(recorder, **{"max_size": 4, "key": lambda job: 0, "executor": ThreadPoolExecutor(1), **options})


async def submit_behind_a_running_batch(
    batching: Batcher[int, int], recorder: Recorder, jobs: Sequence[int]
) -> list[asyncio.Task[int]]:
    """Tasks of the first job, which computes alone, and of those that came while it did."""
    tasks = [asyncio.create_task(batching.submit(jobs[0]))]
    while not recorder.batches:
        await asyncio.sleep(0.001)
    tasks += [asyncio.create_task(batching.submit(job)) for job in jobs[1:]]
    await asyncio.sleep(0)
    return tasks


def test_jobs_that_come_while_a_batch_computes_share_the_next_one(recorder: Recorder) -> None:
    async def scenario() -> list[int]:
        tasks = await submit_behind_a_running_batch(batcher(recorder), recorder, range(7))
        recorder.go.set()
        return await asyncio.gather(*tasks)

    assert asyncio.run(scenario()) == [0, 1, 4, 9, 16, 25, 36]
    assert recorder.batches == [[0], [1, 2, 3, 4], [5, 6]]


def test_jobs_of_different_keys_never_share_a_batch_and_the_oldest_goes_first(recorder: Recorder) -> None:
    async def scenario() -> None:
        parity = batcher(recorder, key=lambda job: job % 2)
        tasks = await submit_behind_a_running_batch(parity, recorder, [0, 1, 2, 3, 4])
        recorder.go.set()
        await asyncio.gather(*tasks)

    asyncio.run(scenario())
    assert recorder.batches == [[0], [1, 3], [2, 4]]


def test_a_job_whose_caller_left_is_not_computed(recorder: Recorder) -> None:
    async def scenario() -> None:
        tasks = await submit_behind_a_running_batch(batcher(recorder), recorder, [0, 1, 2])
        tasks[1].cancel()
        recorder.go.set()
        assert await tasks[2] == 4

    asyncio.run(scenario())
    assert recorder.batches == [[0], [2]]


def test_an_error_reaches_every_caller_of_its_batch_and_the_next_batch_runs(recorder: Recorder) -> None:
    async def scenario() -> list[int | BaseException]:
        batching = batcher(recorder)
        tasks = await submit_behind_a_running_batch(batching, recorder, [1, 12, 13])
        recorder.go.set()
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        return [*answers, await batching.submit(5)]

    first, second, third, last = asyncio.run(scenario())
    assert (first, last) == (1, 25)
    assert str(second) == str(third) == "unlucky"


def test_a_run_that_loses_a_result_is_an_error_not_a_hanging_caller() -> None:
    async def scenario() -> None:
        losing: Batcher[int, int] = Batcher(lambda jobs: [], max_size=4, key=hash, executor=ThreadPoolExecutor(1))
        await losing.submit(1)

    with pytest.raises(RuntimeError, match="1 jobs gave 0 results"):
        asyncio.run(scenario())


def test_busy_time_counts_only_while_a_batch_computes(recorder: Recorder) -> None:
    async def scenario() -> None:
        batching = batcher(recorder)
        assert batching.busy_s == 0
        tasks = await submit_behind_a_running_batch(batching, recorder, [1])
        await asyncio.sleep(0.02)
        assert batching.busy_s >= 0.02
        recorder.go.set()
        await asyncio.gather(*tasks)
        assert batching.busy_s == 0

    asyncio.run(scenario())
