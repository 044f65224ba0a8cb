from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from raydis.data.smooth import ARC_ANGLE, ARC_CONTRAST, ARCS, BLOBS, draw_arcs, draw_blobs, render_arcs, render_blobs

STEP = 1e-4


def jacobians(draw: object, values: np.ndarray, size: int) -> np.ndarray:
    """J'J of the map from factors to images at factors (B, F): (B, F, F)."""
    assert callable(draw)
    slopes = [
        (draw(values + step, size) - draw(values - step, size)).reshape(len(values), -1) / (2 * STEP)
        for step in STEP * np.eye(values.shape[1])
    ]
    stacked = np.stack(slopes, axis=1)
    return stacked @ stacked.transpose(0, 2, 1)


@pytest.mark.parametrize("num_factors", [1, 2, 3])
@pytest.mark.parametrize("size", [8, 32])
def test_arcs_are_exactly_isometric(num_factors: int, size: int) -> None:
    """Each factor moves a point of weight 1 along an arc, and all patterns have a mean square of 1."""
    values = np.random.default_rng(0).random((50, num_factors))
    expected = (ARC_ANGLE * ARC_CONTRAST * size) ** 2 * np.eye(num_factors)
    np.testing.assert_allclose(
        jacobians(draw_arcs, values, size), np.broadcast_to(expected, (50, num_factors, num_factors)), rtol=1e-6, atol=1
    )


def test_arcs_are_curved() -> None:
    """Ends of an arc of 270 degrees are nearer to each other than the arc is long, by 2 sin(135 degrees) to 3/2 pi."""
    first, last = draw_arcs(np.array([[0.0, 0.5, 0.5], [1.0, 0.5, 0.5]]), 16).reshape(2, -1)
    assert np.linalg.norm(last - first) / (16 * ARC_CONTRAST) == pytest.approx(2 * np.sin(ARC_ANGLE / 2))


def test_each_step_of_a_blob_changes_the_image_by_the_same_amount_whatever_the_others_do() -> None:
    found = jacobians(draw_blobs, np.random.default_rng(0).random((200, 3)), 32)
    sizes = np.diagonal(found, axis1=1, axis2=2)
    assert (sizes.std(0) / sizes.mean(0)).max() < 0.01
    np.testing.assert_allclose(
        found / np.sqrt(sizes[:, :, None] * sizes[:, None]), np.tile(np.eye(3), (200, 1, 1)), atol=0.02
    )


@pytest.mark.parametrize(
    ("render", "draw", "space"), [(render_arcs, draw_arcs, ARCS), (render_blobs, draw_blobs, BLOBS)]
)
def test_images_are_those_of_their_factors_rounded_to_grey_levels(
    render: object, draw: object, space: object, tmp_path: Path
) -> None:
    assert callable(render)
    assert callable(draw)
    dataset = render({}, 16, cache_dir=tmp_path)
    assert dataset.space == space
    assert len(dataset) == 24**3
    indices = np.random.default_rng(0).integers(0, len(dataset), 40)
    exact = draw(dataset.factors(indices) / 23, 16)
    assert exact.min() >= 0.0
    assert exact.max() <= 255.0
    assert np.abs(dataset.images(indices)[..., 0] - exact).max() <= 0.5
    part = render({"left_x" if space is BLOBS else "first_arc": (3, 23)}, 16, cache_dir=tmp_path)
    assert len(part) == 2 * 24**2
