from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import numpy as np
import pytest

from raydis.errors import EditError
from raydis.serve.model import ServedModel
from raydis.serve.service import Service

FileOf = Callable[..., bytes]


def test_concurrent_requests_get_the_bytes_they_get_alone(
    served: ServedModel, pictures: np.ndarray, file_of: FileOf
) -> None:
    files = [file_of(picture) for picture in pictures]

    def edit(service: Service, i: int):
        return service.edit(
            files[i],
            set={i % 4: 0.5},
            shift={},
            seed=i,
            steps=3 + i % 2,
            sampler=("ddim", None, "unipc")[i % 3] if i < 6 else None,
            keep_details=i >= 6,
        )

    async def together() -> list[bytes]:
        service = Service(served)
        return [edited.png for edited in await asyncio.gather(*(edit(service, i) for i in range(9)))]

    async def alone() -> list[bytes]:
        service = Service(served)
        return [(await edit(service, i)).png for i in range(9)]

    assert asyncio.run(together()) == asyncio.run(alone())


def test_an_edit_draws_what_the_editor_draws_from_the_same_units(
    served: ServedModel, pictures: np.ndarray, file_of: FileOf
) -> None:
    async def scenario() -> tuple[np.ndarray, np.ndarray]:
        service = Service(served)
        codes = await service.encode(file_of(pictures[0]))
        edited = await service.edit(file_of(pictures[0]), set={1: 2.0}, shift={2: -0.25}, seed=7, steps=4)
        return codes.units, edited.units

    before, after = asyncio.run(scenario())
    assert after[0] == before[0]
    assert after[1] == 2.0
    assert after[2] == before[2] - np.float32(0.25)
    assert after[3] == before[3]


def test_an_edit_of_an_unknown_unit_names_the_units_there_are(
    served: ServedModel, pictures: np.ndarray, file_of: FileOf
) -> None:
    async def scenario() -> None:
        service = Service(served)
        await service.edit(file_of(pictures[0]), set={4: 0.0}, shift={}, seed=0, steps=2)

    with pytest.raises(EditError, match="no unit 4: this model has units 0 to 3"):
        asyncio.run(scenario())


def test_a_batch_that_hangs_makes_the_service_unhealthy(
    served: ServedModel, pictures: np.ndarray, file_of: FileOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    hang = threading.Event()
    monkeypatch.setattr(served, "encode", lambda images: [hang.wait(10)] * len(images))
    monkeypatch.setattr("raydis.serve.service.STALLED_S", 0.02)

    async def scenario() -> None:
        service = Service(served)
        service.check_health()
        request = asyncio.create_task(service.encode(file_of(pictures[0])))
        await asyncio.sleep(0.2)
        try:
            service.check_health()
        finally:
            hang.set()
            await request

    with pytest.raises(RuntimeError, match="a batch has been computing for"):
        asyncio.run(scenario())
