"""What every data set owes to training, metrics and editor. A new data set joins by one line of SETS."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from PIL import Image

from raydis.config import DataConfig
from raydis.data import FactorDataset
from raydis.data.celeba import read_celeba
from raydis.data.dsprites import render_dsprites
from raydis.data.files import read_cars3d, read_dsprites, read_mpi3d, read_shapes3d, read_sprites
from raydis.data.pictures import read_image_folder
from raydis.data.shapes3d import render_shapes3d
from raydis.data.smooth import render_arcs, render_blobs
from raydis.data.source import Source, load
from raydis.errors import DataError
from tests.data.official import (
    SMALL_DSPRITES,
    SMALL_SHAPES3D,
    noise,
    write_cars,
    write_celeba,
    write_dsprites,
    write_mpi3d,
    write_shapes3d,
    write_sprites,
)

Levels = Mapping[str, int | Sequence[int]]
SMALL = {"floor_hue": 2, "wall_hue": 2, "object_hue": 2, "scale": 2, "shape": 2, "orientation": 2}
FEW = {"shape": 3, "scale": 2, "orientation": 2, "position_x": 2, "position_y": 3}


@dataclass(frozen=True)
class Read:
    """A set of files: writes them in the official format and opens them.

    Args:
        write: writes content number `seed` to a path, whose name is the same for all contents.
        read: describes the file or folder, decoded at an image size where the format asks for one.
        levels: a sub-grid; empty for a set without factors.
        sizes: two image sizes, the first being that of the file where it has one.
    """

    write: Callable[[Path, int], object]
    read: Callable[[Path, int], Source]
    levels: Levels
    sizes: tuple[int, int] = (16, 8)

    def open(self, folder: Path, size: int, levels: Levels, content: int = 0) -> FactorDataset:
        path = folder / str(content) / "set"
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            self.write(path, content)
        return load(self.read(path, size), image_size=size, levels=levels, cache_dir=folder / "cache")


@dataclass(frozen=True)
class Rendered:
    """A set that is computed: a grid of its own takes the place of a file."""

    render: Callable[..., FactorDataset]
    whole: Levels
    levels: Levels
    sizes: tuple[int, int] = (16, 8)

    def open(self, folder: Path, size: int, levels: Levels) -> FactorDataset:
        return self.render({**self.whole, **levels}, size, cache_dir=folder / "cache")


def write_pictures(folder: Path, seed: int) -> None:
    folder.mkdir()
    for number, picture in enumerate(noise((5, 20, 24, 3), seed)):
        Image.fromarray(picture).save(folder / f"{number}.bmp")


SETS: dict[str, Read | Rendered] = {
    "shapes3d_procedural": Rendered(render_shapes3d, SMALL, {"floor_hue": (9,), "shape": (0, 3)}),
    "shapes3d_procedural, cached": Rendered(
        lambda *grid, **place: render_shapes3d(*grid, **place, ram_bytes=0), SMALL, {"floor_hue": (9,), "shape": (0, 3)}
    ),
    "dsprites_procedural": Rendered(render_dsprites, FEW, {"shape": (1,), "scale": (2, 5)}),
    "arcs": Rendered(render_arcs, {"first_arc": 4, "second_arc": 3, "third_arc": 2}, {"first_arc": (1, 5)}),
    "blobs": Rendered(render_blobs, {"left_x": 4, "left_y": 3, "right_y": 2}, {"left_x": (1, 5)}),
    "shapes3d": Read(
        lambda path, seed: write_shapes3d(path, size=16, seed=seed),
        lambda path, size: read_shapes3d(path, SMALL_SHAPES3D),
        {"shape": (1, 3), "orientation": 2},
    ),
    "dsprites": Read(
        lambda path, seed: write_dsprites(path, size=16, seed=seed),
        lambda path, size: read_dsprites(path, SMALL_DSPRITES),
        {"shape": (0, 2)},
    ),
    "mpi3d": Read(
        lambda path, seed: write_mpi3d(path, seed=seed),
        lambda path, size: read_mpi3d(path),
        {"object_color": (1, 3), "horizontal_axis": 2, "vertical_axis": 2},
        sizes=(2, 1),
    ),
    "cars3d": Read(
        lambda path, seed: write_cars(path, 2, seed=seed), read_cars3d, {"azimuth": (3, 20), "object": (1,)}
    ),
    "sprites": Read(
        lambda path, seed: write_sprites(path, seed=seed), lambda path, size: read_sprites(path), {"hair": (0, 2)}
    ),
    "celeba": Read(write_celeba, read_celeba, {}),
    "image_folder": Read(write_pictures, read_image_folder, {}),
}
WITH_GRID = [name for name, each in SETS.items() if each.levels]
WITH_FACTORS = [*WITH_GRID, "celeba"]
READ = {name: each for name, each in SETS.items() if isinstance(each, Read)}
GRIDS = [(name, part) for name in SETS for part in (["whole", "sub-grid"] if name in WITH_GRID else ["whole"])]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder a set, for its files and its cache."""
    return {name: tmp_path_factory.mktemp("set") for name in SETS}


def opened(name: str, part: str, folders: dict[str, Path]) -> FactorDataset:
    found = SETS[name]
    return found.open(folders[name], found.sizes[0], found.levels if part == "sub-grid" else {})


@pytest.fixture(scope="module", params=GRIDS, ids=" ".join)
def dataset(request: pytest.FixtureRequest, folders: dict[str, Path]) -> FactorDataset:
    """Every set, whole and as a sub-grid."""
    return opened(*request.param, folders)


@pytest.fixture(scope="module", params=[grid for grid in GRIDS if grid[0] in WITH_FACTORS], ids=" ".join)
def labelled(request: pytest.FixtureRequest, folders: dict[str, Path]) -> FactorDataset:
    """Every set with factors, whole and as a sub-grid."""
    return opened(*request.param, folders)


@pytest.fixture(scope="module", params=[grid for grid in GRIDS if grid[0] in WITH_GRID], ids=" ".join)
def gridded(request: pytest.FixtureRequest, folders: dict[str, Path]) -> FactorDataset:
    """Every set whose factors form a grid, whole and as a sub-grid."""
    return opened(*request.param, folders)


def some(dataset: FactorDataset, count: int = 30) -> np.ndarray:
    """Indices spread over the set, the first and the last among them."""
    return np.unique(np.linspace(0, len(dataset) - 1, count).astype(int))


def test_every_set_that_a_configuration_can_name_is_held_to_the_contract() -> None:
    assert {name.split(",")[0] for name in SETS} == set(get_args(DataConfig.model_fields["name"].annotation))


# ---- images


def test_images_are_uint8_of_the_shape_that_is_told(dataset: FactorDataset) -> None:
    height, width, channels = dataset.image_shape
    assert height == width
    assert channels in (1, 3)
    indices = some(dataset)
    images = dataset.images(indices)
    assert images.dtype == np.uint8
    assert images.shape == (len(indices), height, width, channels)


def test_images_do_not_depend_on_batch_order_or_repetition(dataset: FactorDataset) -> None:
    indices = some(dataset)
    images = dataset.images(indices)
    shuffled = np.random.default_rng(0).permutation(len(indices))
    np.testing.assert_array_equal(dataset.images(indices[shuffled]), images[shuffled])
    np.testing.assert_array_equal(
        np.concatenate([dataset.images(indices[i : i + 1]) for i in range(len(indices))]), images
    )
    np.testing.assert_array_equal(dataset.images(np.repeat(indices, 2)), images.repeat(2, axis=0))


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32, np.uint64])
def test_indices_may_be_integers_of_any_width(dataset: FactorDataset, dtype: type[np.generic]) -> None:
    indices = some(dataset)[:3] % 100
    np.testing.assert_array_equal(dataset.images(indices.astype(dtype)), dataset.images(indices))


def test_writing_to_a_batch_leaves_the_set_alone(dataset: FactorDataset) -> None:
    indices = np.array([0])
    before = dataset.images(indices).copy()
    dataset.images(indices)[...] ^= 255
    np.testing.assert_array_equal(dataset.images(indices), before)


def test_no_index_gives_no_image(dataset: FactorDataset) -> None:
    assert dataset.images(np.zeros(0, int)).shape == (0, *dataset.image_shape)
    assert dataset.images(np.zeros(0, int)).dtype == np.uint8


# ---- factors


def test_indices_and_factor_tuples_are_one_to_one(gridded: FactorDataset) -> None:
    space = gridded.space
    assert space is not None
    assert len(gridded) == len(space) == np.prod(space.sizes)
    every = np.arange(len(gridded))
    factors = gridded.factors(every)
    assert factors.dtype == np.int64
    assert factors.shape == (len(gridded), len(space.sizes))
    assert (factors.min(axis=0) == 0).all()
    assert (factors.max(axis=0) + 1 == space.sizes).all()
    np.testing.assert_array_equal(space.index(factors), every)  # so no two images have the same factors


def test_factors_do_not_depend_on_batch_order_or_repetition(labelled: FactorDataset) -> None:
    indices = some(labelled)
    factors = labelled.factors(indices)
    shuffled = np.random.default_rng(0).permutation(len(indices))
    np.testing.assert_array_equal(labelled.factors(indices[shuffled]), factors[shuffled])
    np.testing.assert_array_equal(labelled.factors(indices[-1:]), factors[-1:])
    np.testing.assert_array_equal(labelled.factors(np.repeat(indices, 2)), factors.repeat(2, axis=0))


def test_no_index_gives_no_factors(labelled: FactorDataset) -> None:
    none = labelled.factors(np.zeros(0, int))
    assert none.shape == (0, len(labelled.factor_names))
    assert none.dtype == np.int64


@pytest.mark.parametrize("name", WITH_GRID)
def test_a_sub_grid_has_the_images_and_levels_of_the_whole(name: str, folders: dict[str, Path]) -> None:
    part, found = opened(name, "sub-grid", folders), SETS[name]
    if isinstance(found, Rendered):  # levels count in the renderer's own grid: both are parts of one that holds them
        wider = {**found.whole, **{key: tuple(range(10))[: max(kept) + 1] for key, kept in found.levels.items()}}
        whole = found.render(wider, found.sizes[0], cache_dir=folders[name] / "cache")
    else:
        whole = opened(name, "whole", folders)
    assert whole.space is not None
    assert part.space == whole.space.subspace(found.levels)
    rows = whole.space.rows(found.levels)
    indices = some(part)
    np.testing.assert_array_equal(part.images(indices), whole.images(rows[indices]))
    kept = whole.space.kept_levels(found.levels)
    looked_up = np.stack([levels[column] for levels, column in zip(kept, part.factors(indices).T, strict=True)], axis=1)
    np.testing.assert_array_equal(looked_up, whole.factors(rows[indices]))


@pytest.mark.parametrize("name", [name for name in SETS if name not in WITH_FACTORS])
def test_a_set_without_factors_says_so(name: str, folders: dict[str, Path]) -> None:
    unlabelled = opened(name, "whole", folders)
    assert (unlabelled.space, unlabelled.factor_names) == (None, ())
    with pytest.raises(DataError, match=f"{name} has no factors: choose a set with a factor grid"):
        unlabelled.factors(np.array([0]))
    with pytest.raises(DataError, match=f"{name} has no grid of factors, so it has no sub-grid: remove data.levels"):
        SETS[name].open(folders[name], SETS[name].sizes[0], {"hair": 1})


@pytest.mark.parametrize("name", WITH_GRID)
def test_levels_that_a_set_does_not_have_are_refused(name: str, folders: dict[str, Path]) -> None:
    found = SETS[name]
    factor = next(iter(found.levels))
    for levels, message in (
        ({"no such factor": 1}, f"unknown factor no such factor: the factors are .*{factor}"),
        ({factor: 1000}, f"levels of {factor}: count 1000 is out of range, the factor has [0-9]+ levels"),
        ({factor: (0, 0)}, rf"levels of {factor}: \[0, 0\] must be distinct and in 0\.\."),
    ):
        with pytest.raises(DataError, match=message):
            found.open(folders[name], found.sizes[0], levels)


# ---- identity


@pytest.mark.parametrize(("name", "part"), GRIDS)
def test_opened_again_a_set_is_the_same(name: str, part: str, folders: dict[str, Path]) -> None:
    first, again = opened(name, part, folders), opened(name, part, folders)
    assert first.name == again.name == name.split(",")[0]
    assert first.fingerprint == again.fingerprint
    assert first.space == again.space
    np.testing.assert_array_equal(first.images(some(first)), again.images(some(first)))


@pytest.mark.parametrize("name", WITH_GRID)
def test_levels_in_another_order_are_the_same_set(name: str, folders: dict[str, Path]) -> None:
    part, found = opened(name, "sub-grid", folders), SETS[name]
    turned = {factor: kept if isinstance(kept, int) else kept[::-1] for factor, kept in found.levels.items()}
    assert any(not isinstance(kept, int) and len(kept) > 1 for kept in turned.values())
    same = found.open(folders[name], found.sizes[0], turned)
    assert same.fingerprint == part.fingerprint
    np.testing.assert_array_equal(same.images(some(same)), part.images(some(part)))


@pytest.mark.parametrize("name", SETS)
def test_a_fingerprint_tells_sizes_and_grids_apart(name: str, folders: dict[str, Path]) -> None:
    found = SETS[name]
    grids = [{}, found.levels] if found.levels else [{}]
    prints = [found.open(folders[name], size, levels).fingerprint for size in found.sizes for levels in grids]
    assert len(set(prints)) == len(prints)


@pytest.mark.parametrize("name", READ)
def test_a_fingerprint_follows_the_content_and_not_the_place(
    name: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    found, size = READ[name], READ[name].sizes[0]
    here = found.open(folders[name], size, {})
    assert found.open(folders[name], size, {}, content=1).fingerprint != here.fingerprint
    shutil.copytree(folders[name] / "0", tmp_path / "0")
    assert found.open(tmp_path, size, {}).fingerprint == here.fingerprint


# ---- refusals


WRONG_INDICES = pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda last: np.array([0, last + 1]), r"indices 0\.\.{after} are out of range: the data set has 0\.\.{last}"),
        (lambda last: np.array([-1]), r"indices -1\.\.-1 are out of range: the data set has 0\.\.{last}"),
        (lambda last: np.array([2**64 - 1], np.uint64), r"are out of range: the data set has 0\.\.{last}"),
        (lambda last: np.array([0.0]), "indices are float64, expected integers"),
        (lambda last: np.array([True]), "indices are bool, expected integers"),
        (lambda last: np.array([[0]]), r"indices have shape \(1, 1\), expected \(B,\)"),
        (lambda last: np.array(0), r"indices have shape \(\), expected \(B,\)"),
    ],
    ids=["out of range", "negative", "huge", "float", "bool", "2-D", "scalar"],
)


@WRONG_INDICES
def test_no_image_is_given_for_what_is_no_index(
    dataset: FactorDataset, wrong: Callable[[int], np.ndarray], message: str
) -> None:
    last = len(dataset) - 1
    with pytest.raises(DataError, match=message.format(last=last, after=last + 1)):
        dataset.images(wrong(last))


@WRONG_INDICES
def test_no_factors_are_given_for_what_is_no_index(
    labelled: FactorDataset, wrong: Callable[[int], np.ndarray], message: str
) -> None:
    last = len(labelled) - 1
    with pytest.raises(DataError, match=message.format(last=last, after=last + 1)):
        labelled.factors(wrong(last))
