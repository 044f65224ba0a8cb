from __future__ import annotations

import numpy as np
import pytest
import torch

from raydis.data.scene3d import (
    CAPSULE,
    CUBE,
    CYLINDER,
    FLOOR,
    OBJECT,
    SCENE,
    SKY,
    SPHERE,
    UNIT,
    VALUES,
    WALL,
    Scene,
    cast_room,
    hit,
    material_maps,
)

SCALE = 1.1
SHAPES = (CUBE, CYLINDER, SPHERE, CAPSULE)


def distance_to(shape: int, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Signed distance to an object's surface, negative inside: the textbook formula of each shape."""
    if shape == CUBE:
        half = SCENE.cube_half_side * SCALE
        q = np.abs(np.stack([x, y, z - half])) - half
        return np.linalg.norm(np.maximum(q, 0), axis=0) + np.minimum(q.max(axis=0), 0)
    if shape == CYLINDER:
        half = SCENE.cylinder_half_height * SCALE
        q = np.stack([np.hypot(x, y) - SCENE.cylinder_radius * SCALE, np.abs(z - half) - half])
        return np.linalg.norm(np.maximum(q, 0), axis=0) + np.minimum(q.max(axis=0), 0)
    if shape == SPHERE:
        radius = SCENE.sphere_radius * SCALE
        return np.sqrt(x**2 + y**2 + (z - radius) ** 2) - radius
    radius, half = SCENE.capsule_radius * SCALE, SCENE.capsule_half_length * SCALE
    return np.sqrt(x**2 + y**2 + (z - np.clip(z, radius, radius + 2 * half)) ** 2) - radius


def random_rays(seed: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """From points around the object to points near it, so that about half of them hit."""
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(3, count, generator=generator, dtype=torch.float64)
    start = 2.0 * start / start.pow(2).sum(0).sqrt() + torch.tensor([0, 0, 0.4]).unsqueeze(1)
    target = torch.rand(3, count, generator=generator, dtype=torch.float64) * 1.2 - 0.6
    target[2] += 0.4
    direction = target - start
    return start, direction / direction.pow(2).sum(0).sqrt()


@pytest.mark.parametrize("shape", SHAPES)
def test_a_hit_is_the_first_point_of_the_ray_on_the_surface(shape: int) -> None:
    origin, direction = random_rays(shape, 2000)
    distance, _ = hit(shape, SCALE, origin, direction)
    hits = distance.isfinite().numpy()
    assert 0.2 < hits.mean() < 0.95
    on_surface = (origin + distance * direction).numpy()[:, hits]
    np.testing.assert_allclose(distance_to(shape, *on_surface), 0, atol=1e-9)
    steps = np.linspace(0, 0.999, 400)[:, None]  # of the way to the hit
    before = origin.numpy()[:, None, hits] + steps * (distance * direction).numpy()[:, None, hits]
    assert distance_to(shape, *before).min() > 0


@pytest.mark.parametrize("shape", SHAPES)
def test_a_ray_that_misses_never_enters_the_object(shape: int) -> None:
    origin, direction = random_rays(shape, 2000)
    misses = ~hit(shape, SCALE, origin, direction)[0].isfinite().numpy()
    path = origin.numpy()[:, None, misses] + np.linspace(0, 4, 2000)[:, None] * direction.numpy()[:, None, misses]
    assert distance_to(shape, *path).min() > -1e-4


@pytest.mark.parametrize("shape", SHAPES)
def test_normals_are_the_gradient_of_the_distance(shape: int) -> None:
    origin, direction = random_rays(shape, 2000)
    distance, normal = hit(shape, SCALE, origin, direction)
    hits = distance.isfinite()
    point = (origin + distance * direction)[:, hits].numpy()
    step = 1e-5 * np.eye(3)[:, :, None]
    slope = [(distance_to(shape, *(point + e)) - distance_to(shape, *(point - e))) / 2e-5 for e in step]
    smooth = np.abs(np.linalg.norm(slope, axis=0) - 1) < 1e-6  # not on an edge
    assert smooth.mean() > 0.98
    np.testing.assert_allclose(normal[:, hits].numpy()[:, smooth], np.array(slope)[:, smooth], atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_ray_that_leaves_the_object_does_not_hit_it(shape: int) -> None:
    origin = torch.tensor([[0.0], [0.0], [3.0]])
    upwards = torch.tensor([[0.0], [0.05], [1.0]])
    assert hit(shape, SCALE, origin, upwards / upwards.norm())[0].isinf().all()


def test_the_camera_sees_sky_above_walls_above_floor() -> None:
    room = cast_room(torch.tensor([0.0, -30.0]), 16)
    materials = room.material.unflatten(-1, (16, 16))[:, 4]  # the middle ray of each pixel
    middle = materials[0, :, 8].tolist()
    assert middle == sorted(middle, key=[SKY, WALL, FLOOR].index)
    assert {SKY, WALL, FLOOR} == set(middle)
    assert (materials[0] == materials[0].flip(1)).all()  # straight ahead the room is symmetric
    assert not (materials[1] == materials[1].flip(1)).all()


def test_rays_end_on_the_floor_or_on_a_wall() -> None:
    room = cast_room(torch.tensor([12.0]), 16)
    x, y, z = room.point
    assert z[room.material == FLOOR].abs().max() < 1e-5
    sideways = torch.maximum(x.abs(), y.abs())
    assert (sideways[room.material == WALL] - 3.5).abs().max() < 1e-5
    assert sideways[room.material == FLOOR].max() <= 3.5 + 1e-5


@pytest.mark.parametrize("shape", SHAPES)
def test_white_materials_and_sky_cover_every_pixel_once(shape: int) -> None:
    """In glaring light, what materials add to a channel of value 1 is their coverage."""
    room = cast_room(torch.tensor([-10.0, 20.0]), 24)
    glaring = Scene(object_ambient=9.0, floor_shadow=9.0, sky=(1.0, 1.0, 1.0))
    maps, sky = material_maps(room._replace(intensity=torch.full_like(room.intensity, 9.0)), shape, 1.0, glaring)
    assert maps.dtype == sky.dtype == torch.int16
    total = maps[:, VALUES.index(1.0)].sum(0) + sky[..., 0]
    assert (total - 255 * UNIT).abs().max() <= 2  # rounding of each part


def test_a_larger_object_covers_what_a_smaller_one_does() -> None:
    room = cast_room(torch.tensor([0.0]), 24)
    for shape in SHAPES:
        small, large = (material_maps(room, shape, scale)[0][OBJECT, -1, 0] for scale in (0.75, 1.25))
        assert ((small > 0) <= (large > 0)).all()
        assert (large > 0).sum() > 1.5 * (small > 0).sum()


def test_an_object_casts_a_shadow_on_the_floor_to_its_right() -> None:
    room = cast_room(torch.tensor([0.0]), 48)
    maps, _ = material_maps(room, CUBE, 1.0)
    without = room.intensity.clamp(max=1.0).mul(255 * UNIT).mean(1).unflatten(-1, (48, 48))[0]
    floor = maps[FLOOR, -1, 0].float()
    covered = (room.material == FLOOR).all(1).unflatten(-1, (48, 48))[0] & (maps[OBJECT, :, 0].sum(0) == 0)
    darker = covered & (floor < 0.7 * without)
    columns = darker.nonzero()[:, 1]
    assert len(columns) > 10
    assert columns.float().mean() > 24 + 3
