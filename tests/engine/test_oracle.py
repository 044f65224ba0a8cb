"""Codes that are the true factors score 1.0 on every data set, along the very path that scores models.

The stand-in for a method reads the factors off the pixels that the loader hands it, or looks the picture up among
pictures whose factors are known from elsewhere. So an index that meets the wrong image or the wrong label anywhere
between file and score lowers it; the last tests show that.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import h5py
import numpy as np
import pytest
import scipy.io
import torch
from torch import Tensor

from raydis.config import DataConfig, EvaluationConfig
from raydis.data import FactorDataset, Loader, open_dataset
from raydis.data.dataset import ArrayDataset
from raydis.data.files import read_dsprites, read_mpi3d, read_shapes3d
from raydis.data.source import load
from raydis.data.space import FactorSpace
from raydis.engine.evaluate import evaluate
from raydis.methods.contract import Move, UnitMethod
from raydis.metrics.scores import Scores

Factors = Callable[[np.ndarray], np.ndarray]  # uint8 (B, H, W, C) -> (B, F)


class Oracle(UnitMethod):
    """A method whose unit f is factor f; D = 2, so that scoring reduces its codes as it does a model's."""

    def __init__(self, factors: Factors) -> None:
        super().__init__()
        self.factors = factors

    @property
    def moves(self) -> Sequence[Move]:
        return []

    def units(self, images: Tensor) -> Tensor:
        pixels = ((images + 1.0) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
        return torch.from_numpy(self.factors(pixels)).float()

    def lift(self, units: Tensor) -> Tensor:
        return torch.stack([units, -0.5 * units], dim=2)

    def decode(self, codes: Tensor, noise: object, steps: object, sampler: object) -> Tensor:
        raise AssertionError("scoring drew an image")


def known(images: np.ndarray, factors: np.ndarray) -> Factors:
    """Looks pictures up by their bytes; every picture must be unlike the others."""
    table = {image.tobytes(): row for image, row in zip(images, factors, strict=True)}
    assert len(table) == len(images)
    return lambda pixels: np.stack([table[np.ascontiguousarray(image).tobytes()] for image in pixels])


def scores_of(factors: Factors, dataset: FactorDataset, *, max_images: int = 10_000, loader: type = Loader) -> Scores:
    config = EvaluationConfig(protocol="search", estimator="tree", max_images=max_images)
    found = evaluate(Oracle(factors), dataset, loader(dataset, batch_size=1, seed=0), config)
    assert found is not None
    return found


def assert_perfect(scores: Scores, num_factors: int) -> None:
    assert (scores.status, scores.details["num_active_units"]) == ("valid", num_factors)
    assert scores.values["factor_vae"] == 1.0
    assert scores.values["dci_disentanglement"] > 0.99


def drawn_one_by_one(config: DataConfig, levels: Mapping[str, list[int]]) -> Factors:
    """Every image of a rendered grid, rendered alone, under the levels that were asked for."""
    images, factors = [], []
    for row in itertools.product(*(range(len(kept)) for kept in levels.values())):
        single = {name: [kept[level]] for (name, kept), level in zip(levels.items(), row, strict=True)}
        images.append(open_dataset(config.model_copy(update={"levels": single})).images(np.array([0]))[0])
        factors.append(row)
    return known(np.stack(images), np.array(factors))


SHAPES3D_LEVELS = {
    "floor_hue": [0, 3, 8],
    "wall_hue": [2, 6],
    "object_hue": [1, 9],
    "scale": [0, 4, 7],
    "shape": [0, 2],
    "orientation": [3, 11],
}
DSPRITES_LEVELS = {  # without level 39 of the orientation, which repeats level 0
    "shape": [0, 1, 2],
    "scale": [1, 5],
    "orientation": [0, 3, 7],
    "position_x": [4, 20, 31],
    "position_y": [9, 25],
}


@pytest.mark.parametrize(
    ("name", "levels"), [("shapes3d_procedural", SHAPES3D_LEVELS), ("dsprites_procedural", DSPRITES_LEVELS)]
)
def test_rendered_sets_give_true_factors_a_perfect_score(name: str, levels: dict[str, list[int]]) -> None:
    config = DataConfig.model_validate({"name": name, "image_size": 32, "levels": levels})
    dataset = open_dataset(config)
    assert dataset.space is not None
    assert dataset.space.names == tuple(levels)
    assert_perfect(scores_of(drawn_one_by_one(config, levels), dataset), len(levels))


def test_the_real_sprites_give_true_factors_a_perfect_score(shared_data: Path) -> None:
    path = shared_data / "sprites" / "sprites_walk_6x6x6x6x3x8.npz"
    levels = {"body": [0, 3, 5], "bottomwear": [1, 4], "topwear": [2, 3], "hair": [0, 5], "frame": [0, 2, 3, 6]}
    dataset = open_dataset(DataConfig(name="sprites", path=str(path), levels=levels))
    with np.load(path) as file:
        labels, names = file["labels"], list(file["factor_names"])
        kept = np.ones(len(labels), bool)
        for name, wanted in levels.items():
            kept &= np.isin(labels[:, names.index(name)], wanted)
        factors = known(file["images"][kept], labels[kept])
    assert_perfect(scores_of(factors, dataset, max_images=200), 6)


# ---- official files, small: each image's factors are in its pixels

GREY = 6  # a level's step, so that 40 levels fit a byte


def grid(*sizes: int) -> np.ndarray:
    """All factor rows, the last factor fastest, as the official files order them."""
    return np.ascontiguousarray(np.indices(sizes).reshape(len(sizes), -1).T)


def coloured(factors: np.ndarray) -> np.ndarray:
    """RGB images of 3 x 3 pixels: factor f is channel f % 3 of row f // 3."""
    images = np.zeros((len(factors), 3, 3, 3), np.uint8)
    for f, column in enumerate(factors.T):
        images[:, f // 3, :, f % 3] = GREY * column[:, None]
    return images


def read_colours(num_factors: int) -> Factors:
    return lambda pixels: np.stack([pixels[:, f // 3, 0, f % 3] // GREY for f in range(num_factors)], axis=1)


def test_a_3dshapes_file_gives_true_factors_a_perfect_score(tmp_path: Path) -> None:
    sizes = (3, 2, 4, 2, 2, 3)
    factors = grid(*sizes)
    values = [np.arange(3) / 10, np.arange(2) / 10, np.arange(4) / 10, [0.75, 1.25], [0, 1], [-30, 0, 30]]
    labels = np.stack([np.asarray(column)[factors[:, f]] for f, column in enumerate(values)], axis=1)
    path = tmp_path / "3dshapes.h5"
    with h5py.File(path, "w") as file:
        file["images"], file["labels"] = coloured(factors), labels
    space = FactorSpace(("floor_hue", "wall_hue", "object_hue", "scale", "shape", "orientation"), sizes)
    dataset = load(read_shapes3d(path, space), image_size=3, levels={}, cache_dir=tmp_path)
    assert_perfect(scores_of(read_colours(6), dataset), 6)
    part = load(read_shapes3d(path, space), image_size=3, levels={"object_hue": [1, 3]}, cache_dir=tmp_path)
    assert len(part) == len(factors) // 2
    assert_perfect(scores_of(read_colours(6), part), 6)


def test_a_dsprites_file_gives_true_factors_a_perfect_score(tmp_path: Path) -> None:
    sizes = (3, 2, 4, 3, 5)
    factors = grid(*sizes)
    bits = (factors[:, :, None] >> np.arange(3)) & 1  # pixels are 0 or 1: row f holds three bits of factor f
    path = tmp_path / "dsprites.npz"
    classes = np.concatenate([np.zeros((len(factors), 1), int), factors], axis=1)
    np.savez_compressed(path, imgs=np.pad(bits, ((0, 0), (0, 0), (0, 2))).astype(np.uint8), latents_classes=classes)
    space = FactorSpace(("shape", "scale", "orientation", "position_x", "position_y"), sizes)
    dataset = load(read_dsprites(path, space), image_size=5, levels={}, cache_dir=tmp_path)

    def read_bits(pixels: np.ndarray) -> np.ndarray:
        return (pixels[:, :, :3, 0] // 255 << np.arange(3)).sum(2)

    assert_perfect(scores_of(read_bits, dataset), 5)


def test_an_mpi3d_file_gives_true_factors_a_perfect_score(tmp_path: Path) -> None:
    path = tmp_path / "mpi3d_real_complex.npz"
    np.savez(path, images=coloured(grid(4, 4, 2, 3, 3, 40, 40)))  # uncompressed: it is mapped, never read as a whole
    levels = {"horizontal_axis": [0, 7, 21, 39], "vertical_axis": 5, "object_shape": 3}
    dataset = load(read_mpi3d(path), image_size=3, levels=levels, cache_dir=tmp_path)
    assert isinstance(dataset.array, np.memmap)
    assert_perfect(scores_of(read_colours(7), dataset, max_images=500), 7)


def test_a_cars3d_folder_gives_true_factors_a_perfect_score(tmp_path: Path) -> None:
    elevation, azimuth = np.meshgrid(np.arange(4), np.arange(24), indexing="ij")
    for car in range(3):
        views = np.stack([60 * elevation, 10 * azimuth, np.full_like(azimuth, 100 * car)])  # (3, 4, 24): plain colours
        im = np.broadcast_to(views.transpose(0, 2, 1).astype(np.uint8), (128, 128, 3, 24, 4))
        scipy.io.savemat(tmp_path / f"car_{car:03}.mat", {"im": im}, do_compression=True)
    config = DataConfig.model_validate(
        {"name": "cars3d", "path": str(tmp_path), "image_size": 8, "levels": {"azimuth": 6}}
    )
    scores = scores_of(lambda pixels: pixels[:, 4, 4] // np.array([60, 40, 100]), open_dataset(config))
    assert_perfect(scores, 3)


# ---- the oracle sees mistakes

SMALL = FactorSpace(("a", "b", "c", "d"), (2, 3, 4, 5))


class Shuffled(Loader):
    """Hands out the right images in another order than it was asked for."""

    def gather(self, indices: np.ndarray) -> Tensor:
        return super().gather(np.random.default_rng(0).permutation(indices))


class Shifted(Loader):
    """Hands out the next image."""

    def gather(self, indices: np.ndarray) -> Tensor:
        return super().gather((indices + 1) % len(self.dataset))


class FirstFastest(ArrayDataset):
    """Labels as if the first factor varied fastest."""

    def factors(self, indices: np.ndarray) -> np.ndarray:
        assert self.space is not None
        return np.stack(np.unravel_index(indices, self.space.sizes, order="F"), axis=1)


def small(dataset_type: type[ArrayDataset]) -> ArrayDataset:
    return dataset_type("small", coloured(grid(*SMALL.sizes)), SMALL, fingerprint="small")


def test_the_order_of_a_correct_set_and_loader_costs_nothing() -> None:
    assert_perfect(scores_of(read_colours(4), small(ArrayDataset)), 4)


@pytest.mark.parametrize(
    ("dataset_type", "loader"), [(ArrayDataset, Shuffled), (ArrayDataset, Shifted), (FirstFastest, Loader)]
)
def test_a_loader_or_a_label_table_in_another_order_costs_the_oracle_its_score(
    dataset_type: type[ArrayDataset], loader: type[Loader]
) -> None:
    scores = scores_of(read_colours(4), small(dataset_type), loader=loader)
    assert scores.values["factor_vae"] < 0.97  # shifted by one image only one factor is wrong: seen 0.95 and 0.71
    assert scores.values["dci_disentanglement"] < 0.8
