from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from raydis.data import ArrayDataset, FactorSpace, Loader, normalise
from raydis.data.loader import images_at_once, share_of_memory
from raydis.errors import ConfigError, DataError


def numbered(length: int, array: np.ndarray | None = None) -> ArrayDataset:
    """Image i holds i in its first pixel and 255-i elsewhere."""
    if array is None:
        array = np.empty((length, 4, 4, 3), np.uint8)
    array[...] = 255 - np.arange(length).reshape(-1, 1, 1, 1) % 256
    array[:, 0, 0] = np.arange(length)[:, None] % 256
    return ArrayDataset("numbered", array, FactorSpace(("n",), (length,)), fingerprint="f")


def numbers(batch: torch.Tensor) -> list[int]:
    return ((batch[:, 0, 0, 0] + 1) * 127.5).round().long().tolist()


@pytest.mark.parametrize(("size", "count"), [(16, 512), (64, 512), (65, 496), (128, 128), (512, 8)])
def test_as_many_images_are_taken_at_once_as_512_of_64_px_have_pixels(size: int, count: int) -> None:
    assert images_at_once(size) == count


@pytest.mark.parametrize(("length", "parts"), [(0, [0]), (512, [512]), (1025, [342, 342, 341])])
def test_images_gathered_in_parts_are_those_gathered_at_once(length: int, parts: list[int]) -> None:
    loader = Loader(numbered(1100), batch_size=4, seed=0)
    indices = np.random.default_rng(0).permutation(1100)[:length]
    gathered = loader.gather_in_parts(indices)
    found = list(gathered)
    assert [len(part) for part in found] == parts
    assert all(map(torch.equal, gathered, found))  # a second time
    assert torch.equal(torch.cat(found), loader.gather(indices))


def test_normalise_maps_black_to_minus_one_and_white_to_one_with_channels_first() -> None:
    images = torch.zeros(2, 3, 5, 4, dtype=torch.uint8)
    images[1, 2, 4, 3] = 255
    out = normalise(images)
    assert out.shape == (2, 4, 3, 5)
    assert out.dtype == torch.float32
    assert out.is_contiguous()
    assert out[1, 3, 2, 4] == 1.0
    assert out.sum() == -(out.numel() - 1) + 1


def test_normalise_is_exact_at_every_grey_level() -> None:
    levels = torch.arange(256, dtype=torch.uint8).reshape(256, 1, 1, 1)
    assert np.abs(normalise(levels).flatten().numpy() - (np.arange(256) / 127.5 - 1)).max() < 1e-7
    assert torch.equal(((normalise(levels) + 1) * 127.5).round().flatten(), torch.arange(256.0))


def test_gather_returns_the_images_asked_for_in_their_order() -> None:
    loader = Loader(numbered(20), batch_size=4, seed=0)
    batch = loader.gather(np.array([7, 3, 7]))
    assert numbers(batch) == [7, 3, 7]
    assert batch.shape == (3, 3, 4, 4)
    expected = torch.tensor([248.0, 252.0, 248.0])[:, None].expand(3, 3) / 127.5 - 1
    assert (batch[:, :, 1, 1] - expected).abs().max() < 1e-6


def test_an_epoch_shows_every_image_once_even_where_batches_cross_its_end() -> None:
    loader = Loader(numbered(10), batch_size=4, seed=0)
    seen = [number for step in range(10) for number in numbers(loader.batch(step))]  # 40 images: 4 epochs
    for epoch in range(4):
        assert sorted(seen[10 * epoch : 10 * epoch + 10]) == list(range(10))
    assert seen[:10] != seen[10:20]


def test_a_batch_larger_than_the_set_runs_through_several_epochs() -> None:
    batch = numbers(Loader(numbered(3), batch_size=10, seed=0).batch(0))
    assert [sorted(batch[start : start + 3]) for start in (0, 3, 6)] == [[0, 1, 2]] * 3


def test_a_step_gives_the_same_batch_whatever_was_read_before() -> None:
    straight = Loader(numbered(30), batch_size=8, seed=3)
    batches = [straight.batch(step) for step in range(9)]
    resumed = Loader(numbered(30), batch_size=8, seed=3)
    for step in (8, 0, 5):
        assert torch.equal(resumed.batch(step), batches[step])


def test_the_seed_decides_the_order() -> None:
    orders = [numbers(Loader(numbered(50), batch_size=50, seed=seed).batch(0)) for seed in (0, 0, 1)]
    assert orders[0] == orders[1]
    assert orders[0] != orders[2]


@pytest.mark.parametrize("world_size", [2, 3, 6])
def test_workers_share_the_global_batch_in_slices(world_size: int) -> None:
    alone = Loader(numbered(20), batch_size=12, seed=5)
    workers = [
        Loader(numbered(20), batch_size=12, seed=5, rank=rank, world_size=world_size) for rank in range(world_size)
    ]
    for step in range(5):
        together = torch.cat([worker.batch(step) for worker in workers])
        assert torch.equal(together, alone.batch(step))


def test_a_sub_grid_loads_its_own_images() -> None:
    sub = numbered(20).subgrid({"n": (3, 8, 15)})
    assert sorted(numbers(Loader(sub, batch_size=3, seed=0).batch(0))) == [3, 8, 15]


def test_memory_mapped_and_read_only_images_load_like_those_in_memory(tmp_path: Path) -> None:
    mapped = np.lib.format.open_memmap(tmp_path / "images.npy", mode="w+", dtype=np.uint8, shape=(20, 4, 4, 3))
    frozen = np.empty((20, 4, 4, 3), np.uint8)
    datasets = [numbered(20), numbered(20, mapped), numbered(20, frozen)]
    frozen.flags.writeable = False
    batches = [Loader(dataset, batch_size=7, seed=1).batch(4) for dataset in datasets]
    assert torch.equal(batches[0], batches[1])
    assert torch.equal(batches[0], batches[2])


def test_images_in_memory_are_not_copied() -> None:
    dataset = numbered(10)
    loader = Loader(dataset, batch_size=2, seed=0)
    dataset.array[3, 0, 0] = 200
    assert numbers(loader.gather(np.array([3]))) == [200]


def test_a_batch_that_workers_cannot_share_equally_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"train.batch_size=10 must be a multiple of the number of workers 4"):
        Loader(numbered(20), batch_size=10, seed=0, world_size=4)
    with pytest.raises(ConfigError, match=r"rank=2 must lie in 0\.\.1"):
        Loader(numbered(20), batch_size=10, seed=0, rank=2, world_size=2)


def test_gathering_an_index_out_of_range_is_refused() -> None:
    with pytest.raises(DataError, match=r"indices 20\.\.20 are out of range"):
        Loader(numbered(20), batch_size=2, seed=0).gather(np.array([20]))


def test_a_copy_on_the_device_serves_the_same_batches_and_follows_no_later_change() -> None:
    dataset = numbered(5000).subgrid({"n": 4500})  # more than one copy moves
    size = 4500 * 4 * 4 * 3
    batches = []
    for resident_bytes in (size, size - 1):
        loader = Loader(dataset, batch_size=64, seed=0, resident_bytes=resident_bytes)
        dataset.array[...] += 1
        batches.append(loader.batch(3))
        dataset.array[...] -= 1
    assert torch.equal(batches[0], Loader(dataset, batch_size=64, seed=0).batch(3))
    assert not torch.equal(batches[1], batches[0])  # too large by a byte: not copied


def test_a_copy_on_the_device_is_indexed_there_by_the_same_order() -> None:
    """13 images and batches of 8 shared by two: shares that end an epoch, cross its end and begin one."""
    for rank in (0, 1):
        loader = Loader(numbered(13), batch_size=8, seed=2, rank=rank, world_size=2, resident_bytes=10**6)
        for step in range(14):
            assert loader.device_indices(step).tolist() == loader.indices(step).tolist() == numbers(loader.batch(step))


GIB = 2**30


@pytest.mark.parametrize(
    ("total", "free", "num_gpus", "share"),
    [
        (80, 80, 1.0, 40),
        (80, 80, 0.0, 40),  # outside of Ray nobody reserves
        (80, 80, 2.0, 40),  # a worker computes on one
        (80, 80, 0.25, 10),
        (80, 20, 0.25, 10),  # three more fill their parts already
        (80, 20, 1.0, 10),  # somebody whom Ray does not know is there
        (80, 0, 0.5, 0),
    ],
)
def test_a_workers_data_may_take_half_of_the_part_of_a_gpu_that_it_reserved(
    total: int, free: int, num_gpus: float, share: int
) -> None:
    assert share_of_memory(total * GIB, free * GIB, num_gpus) == share * GIB


@pytest.mark.parametrize("packed", [2, 3, 4, 8])
def test_packed_runs_that_ask_at_the_same_moment_fit_together_and_get_what_later_ones_get(packed: int) -> None:
    total = 24 * GIB
    at_once = [share_of_memory(total, total, 1 / packed)] * packed
    assert sum(at_once) <= total // 2
    taken = 0
    for share in at_once:  # one after the other each sees less that is free, and all that the others may still take
        assert share_of_memory(total, total - taken, 1 / packed) == share
        taken += 2 * share


def test_what_the_images_leave_is_told_and_is_all_of_it_where_they_do_not_fit() -> None:
    size = 20 * 4 * 4 * 3
    assert Loader(numbered(20), batch_size=4, seed=0, resident_bytes=size + 5).spare_bytes == 5
    assert Loader(numbered(20), batch_size=4, seed=0, resident_bytes=size - 1).spare_bytes == size - 1
    assert Loader(numbered(20), batch_size=4, seed=0).spare_bytes == 0


@pytest.mark.gpu
@pytest.mark.parametrize("resident_bytes", [None, 0])
def test_a_gpu_gets_the_batches_of_a_cpu_whether_images_fit_it_or_not(resident_bytes: int | None) -> None:
    on_cpu = Loader(numbered(20), batch_size=8, seed=0)
    on_gpu = Loader(numbered(20), batch_size=8, seed=0, device="cuda", resident_bytes=resident_bytes)
    for step in range(4):
        assert torch.equal(on_gpu.batch(step).cpu(), on_cpu.batch(step))
