"""Units that are vectors of unequal width: their positions, what an edit moves, and what a swap exchanges."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from raydis.editor.editor import Editor
from raydis.engine.information import effects_of
from raydis.errors import EditError
from raydis.methods.vector_units import VectorUnitMethod
from raydis.metrics.representation import per_unit_pca
from raydis.serve.model import Drawing, ServedModel
from tests.double import double_precision

WIDTHS = (3, 1, 2)
SIZE = 4


class Rows(VectorUnitMethod):
    """An image of 4 x 4 grey pixels whose first pixels are the vectors of three units, and whose rest is empty."""

    def __init__(self) -> None:
        super().__init__()
        self.register_units(WIDTHS)

    @property
    def moves(self) -> list[Any]:
        return []

    def encode(self, images: Tensor) -> Tensor:
        return self.pad(list(images.flatten(1)[:, : sum(WIDTHS)].split(WIDTHS, dim=1)))

    def decode(self, codes: Tensor, noise: Any = None, steps: Any = None, sampler: Any = None) -> Tensor:
        pixels = torch.cat(self.cut(codes), dim=1)
        return torch.nn.functional.pad(pixels, (0, SIZE * SIZE - pixels.shape[1])).view(-1, 1, SIZE, SIZE)


def images_of(vectors: np.ndarray) -> Tensor:
    """Images (M, 1, 4, 4) with these vectors (M, 6)."""
    return Rows().decode(Rows().pad(list(torch.as_tensor(vectors).split(WIDTHS, dim=1))))


def known(count: int = 200) -> Tensor:
    """Images whose units vary most along (0.6, -0.8, 0), (1) and (0, 1)."""
    rng = np.random.default_rng(0)
    far, near = rng.normal(size=(count, 3)), 0.1 * rng.normal(size=(count, 6))
    axes = np.zeros((3, 6))
    axes[0, :2], axes[1, 3], axes[2, 5] = (0.6, -0.8), 1.0, 1.0
    return images_of(0.2 + far @ axes + near)


@pytest.fixture
def calibrated() -> Rows:
    method = Rows()
    method.calibrate(known().float().split(64))
    return method


def test_narrow_units_are_filled_up_with_zeros_and_cut_again() -> None:
    vectors = torch.arange(12.0).view(2, 6) + 1
    method = Rows()
    codes = method.encode(images_of(vectors.numpy()))
    assert (method.num_units, method.unit_dim, method.unit_widths) == (3, 3, WIDTHS)
    assert codes[0].tolist() == [[1, 2, 3], [4, 0, 0], [5, 6, 0]]
    assert torch.equal(torch.cat(method.cut(codes), dim=1), vectors)


def test_before_calibration_a_unit_is_the_first_entry_of_its_vector() -> None:
    images = known(5)
    assert torch.equal(Rows().units(images.float()), Rows().encode(images.float())[:, :, 0])


def test_the_axes_are_those_along_which_vectors_vary_most_with_the_largest_loading_positive() -> None:
    with double_precision():
        method = Rows()
        method.calibrate(known(20_000).split(64))
        expected = torch.tensor([[-0.6, 0.8, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
        torch.testing.assert_close(method.unit_axes, expected, rtol=0, atol=0.01)
        assert not method.unit_axes[1, 1:].any()
        assert not method.unit_axes[2, 2:].any()
        torch.testing.assert_close(method.unit_axes.norm(dim=1), torch.ones(3))


def test_a_position_is_the_scalar_to_which_the_evaluation_reduces_a_vector() -> None:
    with double_precision():
        method, images = Rows(), known()
        method.calibrate(images.split(64))
        expected = per_unit_pca(method.encode(images).numpy())
        np.testing.assert_allclose(method.units(images).numpy(), expected, rtol=0, atol=1e-12)
        ranks = np.linspace(0, 1, method.unit_quantiles.shape[1])
        np.testing.assert_allclose(method.unit_quantiles.numpy(), np.quantile(expected, ranks, axis=0).T, atol=1e-12)


def test_a_constant_unit_keeps_the_axis_of_its_first_entry() -> None:
    images = known()
    images.flatten(1)[:, 4:6] = 0.25
    method = Rows()
    method.calibrate([images.float()])
    assert method.unit_axes[2].tolist() == [1, 0, 0]
    assert not method.units(images.float())[:, 2].any()
    assert bool(method.unit_axes.isfinite().all())


def test_writing_a_scalar_moves_the_vector_along_its_axis_and_keeps_the_rest() -> None:
    with double_precision():
        method, images = Rows(), known()
        method.calibrate([images])
        units, codes = method.represent(images)
        assert torch.equal(method.write(codes, units), codes)
        moved = units.clone()
        moved[:, 0] += 2.0
        written = method.write(codes, moved)
        torch.testing.assert_close(written - codes, 2.0 * method.unit_axes * torch.eye(3)[:, :1].expand(200, 3, 1))
        assert torch.equal(written[:, 1:], codes[:, 1:])
        torch.testing.assert_close(method.write(written, units), codes)
        on_axis = method.lift(units)
        torch.testing.assert_close(method.write(on_axis, moved), method.lift(moved))
        assert not torch.allclose(on_axis, codes)  # what lies beside the axes is lost


@pytest.fixture
def editor(calibrated: Rows) -> Editor:
    config: Any = SimpleNamespace()
    return Editor(calibrated, config, config, {}, image_shape=(SIZE, SIZE, 1))


def pictures(seed: int = 0, count: int = 3) -> np.ndarray:
    """Images (B, 4, 4, 1) that the method draws again to the byte."""
    rng = np.random.default_rng(seed)
    found = np.full((count, SIZE * SIZE), 128, np.uint8)
    found[:, : sum(WIDTHS)] = rng.integers(60, 200, size=(count, sum(WIDTHS)))
    return found.reshape(count, SIZE, SIZE, 1)


def vectors_of(images: np.ndarray) -> list[np.ndarray]:
    """The vector of each unit, as grey levels."""
    return np.split(images.reshape(*images.shape[:-3], -1)[..., : sum(WIDTHS)], np.cumsum(WIDTHS)[:-1], axis=-1)


def test_a_swap_exchanges_whole_vectors_to_the_byte(editor: Editor) -> None:
    source, target = pictures(0), pictures(1)
    swapped = editor.swap(source, target, [0, 2])
    found, ours, theirs = vectors_of(swapped), vectors_of(source), vectors_of(target)
    for unit, donor in enumerate((theirs, ours, theirs)):
        assert np.array_equal(found[unit], donor[unit])
    each = editor.swap_each(source[0], target[0])
    for row in range(3):
        found, ours, theirs = (vectors_of(images) for images in (each[row], source[0], target[0]))
        for unit in range(3):
            assert np.array_equal(found[unit], (theirs if unit == row else ours)[unit])


def test_setting_and_shifting_move_one_vector_along_its_axis(editor: Editor) -> None:
    source = pictures()
    moved = editor.edit(source, shift={0: 0.2}, set={1: 0.0})
    before, after = vectors_of(source), vectors_of(moved)
    axis = editor.method.unit_axes[0].numpy()
    np.testing.assert_allclose(after[0].astype(int) - before[0].astype(int), [0.2 * 127.5 * axis] * 3, atol=1.0)
    assert len(np.unique(after[1])) == 1
    assert np.array_equal(after[2], before[2])
    rows = editor.traverse(source[0], num_values=3)
    assert rows.shape == (3, 3, SIZE, SIZE, 1)
    for row, other in ((0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1)):
        assert np.array_equal(vectors_of(rows[row])[other], np.repeat(vectors_of(source[:1])[other], 3, axis=0))


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (None, "the units of this model are vectors, of which units hold one number each: give the codes of `encode`"),
        (np.zeros((2, 3, 2)), r"codes have shape \(2, 3, 2\): give shape \(2, 3, 3\)"),
        (np.zeros((1, 3, 3)), r"codes have shape \(1, 3, 3\): give shape \(2, 3, 3\)"),
        (np.full((2, 3, 3), np.nan), "codes hold NaN or infinity: give finite values"),
    ],
)
def test_scalars_without_fitting_codes_are_refused(editor: Editor, codes: Any, message: str) -> None:
    with pytest.raises(EditError, match=message):
        editor.decode(np.zeros((2, 3)), codes=codes)


def test_the_service_edits_from_the_vectors_of_the_image(editor: Editor) -> None:
    served = ServedModel(editor, SimpleNamespace())  # pyright: ignore[reportArgumentType]
    served.try_out()
    source = pictures()
    encoded = served.encode(list(source))
    sampling = served.sampling(None, None, keep_details=False)
    drawings = [
        Drawing(served.edit_units(each.units, {}, {0: 0.2}), each.codes, seed=0, sampling=sampling) for each in encoded
    ]
    assert np.array_equal(np.stack(served.draw(drawings)), editor.edit(source, shift={0: 0.2}))


def test_the_effect_of_a_unit_is_that_of_exchanging_its_whole_vector(calibrated: Rows) -> None:
    ours, theirs = (images_of(np.full((1, 6), value)).float() for value in (0.0, 0.1))
    pairs = [calibrated.represent(images) for images in (ours, theirs)]
    found = effects_of(calibrated, *pairs, seed=0, at_once=2)
    # `width` of the 16 pixels change by 0.1.
    np.testing.assert_allclose(found, [12.75 * np.sqrt(width / 16) for width in WIDTHS], rtol=1e-5)
