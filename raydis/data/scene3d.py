"""An analytic ray caster for the scene of 3D Shapes: an object in a room with walls, without textures.

O orientations (camera positions), S rays per pixel, P pixels, V channel values, H W image.

Vectors are tensors (3, ...): x to the right and y away from the camera at orientation 0, z up. Lengths are in units of
half the height of the walls. The numbers in Scene were fitted to the 25 images of 3D Shapes with which the tests
compare (shown at github.com/deepmind/3d-shapes). The original was drawn by a rasteriser that lights vertices, so no
single lamp explains shadows, floor and objects. Here each of them has a lamp of its own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

SUPERSAMPLING = 3  # rays per pixel along each axis
CUBE, CYLINDER, SPHERE, CAPSULE = range(4)
FLOOR, WALL, OBJECT, SKY = range(4)
VALUES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)  # all channel values of the ten hues
UNIT_BITS = 7
UNIT = 1 << UNIT_BITS  # maps count in 1/128 of a grey level, so that the maps of a pixel add up to less than 2**15
EPSILON = 1e-4  # distance below which a ray has not left its origin


@dataclass(frozen=True)
class Scene:
    """Geometry and light. The sizes of objects are those at scale 1."""

    camera_radius: float = 2.5  # the camera circles the room's centre at this distance
    camera_height: float = 0.75
    target_height: float = 0.72
    field_of_view_degrees: float = 50.0
    room_half_side: float = 3.5
    wall_height: float = 2.0
    cube_half_side: float = 0.35
    cylinder_radius: float = 0.375
    cylinder_half_height: float = 0.375
    sphere_radius: float = 0.425
    capsule_radius: float = 0.325
    capsule_half_length: float = 0.325  # half length of the part between the caps
    shadow_lamp: tuple[float, float, float] = (-1.13, 0.3, 6.22)
    floor_lamp: tuple[float, float, float] = (-0.65, 0.29, 3.67)
    floor_lamp_axis: tuple[float, float, float] = (-0.26, 0.06, -1.0)
    floor_lamp_exponent: float = 1.91  # exponent of the cosine of the angle to its axis
    floor_ambient: float = 0.334
    floor_diffuse: float = 0.979
    floor_shadow: float = 0.348
    wall_ambient: float = 0.285
    wall_head: float = 0.598  # light parallel to the axis of the camera
    wall_diffuse: float = 0.177
    object_lamp: tuple[float, float, float] = (-1.07, 0.26, 4.13)
    object_ambient: float = 0.353
    object_head: float = 0.594
    object_diffuse: float = 0.751
    object_gloss: float = 0.117  # white, wherever the lamp reaches: the original's highlight has exponent 0
    sky: tuple[float, float, float] = (153 / 255, 226 / 255, 249 / 255)


SCENE = Scene()


class Room(NamedTuple):
    """The result of casting rays into the empty room: tensors (O, S, P) or (3, O, S, P), except for the camera's."""

    size: int  # H = W, P = H*W
    origin: Tensor  # (3, O, 1, 1)
    forward: Tensor  # (3, O, 1, 1), unit
    direction: Tensor  # unit
    point: Tensor  # where the ray ends
    material: Tensor  # uint8: FLOOR, WALL or SKY
    intensity: Tensor  # of the light at `point`, without the shadow of the object; 1 for the sky


def cast_room(degrees: Tensor, size: int, scene: Scene = SCENE) -> Room:
    """Cast rays from the cameras at the given orientations into the empty room.

    Args:
        degrees: (O,) float. Everything is computed on its device.
        size: H = W of the image, px.
    """
    origin, forward, direction = _rays(degrees, size, scene)
    to_walls = (direction.sign() * scene.room_half_side - origin)[:2] / direction[:2]
    to_wall, axis = to_walls.min(dim=0)
    height = origin[2] + to_wall * direction[2]
    is_floor = height < 0
    point = origin + torch.where(is_floor, -origin[2] / direction[2], to_wall) * direction
    material = torch.where(is_floor, FLOOR, torch.where(height > scene.wall_height, SKY, WALL)).to(torch.uint8)

    lamp = _unit(_vector(scene.floor_lamp, point) - point)
    to_axis = -(lamp * _unit(_vector(scene.floor_lamp_axis, point))).sum(0)
    floor = scene.floor_ambient + scene.floor_diffuse * lamp[2] * to_axis.clamp_min(0) ** scene.floor_lamp_exponent

    facing = torch.where(axis == 0, (direction[0].sign() * forward[0]), direction[1].sign() * forward[1])
    lit = -torch.where(axis == 0, direction[0].sign() * lamp[0], direction[1].sign() * lamp[1])
    wall = scene.wall_ambient + scene.wall_head * facing.clamp_min(0) + scene.wall_diffuse * lit.clamp_min(0)

    intensity = torch.where(material == FLOOR, floor, torch.where(material == WALL, wall, 1.0))
    return Room(size, origin, forward, direction, point, material, intensity)


def material_maps(room: Room, shape: int, scale: float, scene: Scene = SCENE) -> tuple[Tensor, Tensor]:
    """Return how much each material adds to a colour channel, for each value of the channel in the material's hue.

    Args:
        room: from `cast_room`.
        shape: CUBE, CYLINDER, SPHERE or CAPSULE; it stands on the floor at the room's centre.
        scale: factor of the object's size.

    Returns:
        Maps of FLOOR, WALL and OBJECT, (3, V, O, H, W) int16: mean over a pixel's rays of min(1, intensity*value) where
        the ray sees the material, else 0. And the sky's part of the image, (O, H, W, 3) int16. Both in units of
        1/(255*UNIT).
    """
    distance, normal = hit(shape, scale, room.origin, room.direction, scene)
    is_object = distance.isfinite()
    point = room.origin + torch.where(is_object, distance, 0.0) * room.direction
    lit = (normal * _unit(_vector(scene.object_lamp, point) - point)).sum(0)
    head = -(normal * room.forward).sum(0)
    shade = scene.object_ambient + scene.object_head * head.clamp_min(0) + scene.object_diffuse * lit.clamp_min(0)
    gloss = torch.where(is_object & (lit > 0), scene.object_gloss, 0.0)

    is_floor = (room.material == FLOOR) & ~is_object
    to_lamp = _unit(_vector(scene.shadow_lamp, room.point) - room.point)
    shadow = hit(shape, scale, room.point, to_lamp, scene)[0].isfinite() & is_floor
    intensity = torch.where(is_object, shade, torch.where(shadow, scene.floor_shadow, room.intensity))

    seen = torch.stack([is_floor, (room.material == WALL) & ~is_object, is_object]).float()  # (3, O, S, P)
    seen *= 255 * UNIT / intensity.shape[1]
    maps = [(seen * (intensity * value + gloss).clamp_max(1.0)).sum(2).round().to(torch.int16) for value in VALUES]
    sky = ((room.material == SKY) & ~is_object).float().mean(1)  # (O, P)
    sky_colour = 255 * UNIT * torch.tensor(scene.sky, device=sky.device)
    size = (room.size, room.size)
    return (
        torch.stack(maps, dim=1).unflatten(-1, size),
        (sky[..., None] * sky_colour).round().to(torch.int16).unflatten(1, size),
    )


def hit(shape: int, scale: float, origin: Tensor, direction: Tensor, scene: Scene = SCENE) -> tuple[Tensor, Tensor]:
    """Return where rays first hit an object from outside.

    Args:
        shape, scale: as in `material_maps`.
        origin, direction: (3, ...), which broadcast against each other. Directions are unit vectors.

    Returns:
        Distance (...), which is infinite where a ray misses, and the outward normal (3, ...), undefined there.
    """
    if shape == CUBE:
        return _hit_box(scene.cube_half_side * scale, origin, direction)
    if shape == CYLINDER:
        return _hit_cylinder(scene.cylinder_radius * scale, 2 * scene.cylinder_half_height * scale, origin, direction)
    if shape == SPHERE:
        return _hit_ball(scene.sphere_radius * scale, scene.sphere_radius * scale, origin, direction)
    return _hit_capsule(scene.capsule_radius * scale, scene.capsule_half_length * scale, origin, direction)


def _rays(degrees: Tensor, size: int, scene: Scene) -> tuple[Tensor, Tensor, Tensor]:
    """Return camera positions and axes, (3, O, 1, 1), and the unit directions of the rays, (3, O, S, P)."""
    angle = torch.deg2rad(degrees)
    zero = torch.zeros_like(angle)
    height = torch.full_like(angle, scene.camera_height)
    origin = torch.stack([scene.camera_radius * angle.sin(), -scene.camera_radius * angle.cos(), height])
    forward = _unit(torch.stack([-origin[0], -origin[1], scene.target_height - height]))
    right = torch.stack([angle.cos(), angle.sin(), zero])
    up = torch.linalg.cross(right, forward, dim=0)

    side = size * SUPERSAMPLING
    steps = (torch.arange(side, device=degrees.device) + 0.5) / side * 2 - 1
    steps = (steps * math.tan(math.radians(scene.field_of_view_degrees) / 2)).view(size, SUPERSAMPLING)
    columns = steps.T[None, :, None, :].expand(SUPERSAMPLING, -1, size, -1).reshape(SUPERSAMPLING**2, -1)  # (S, P)
    lines = steps.T[:, None, :, None].expand(-1, SUPERSAMPLING, -1, size).reshape(SUPERSAMPLING**2, -1)
    origin, forward, right, up = (vector[..., None, None] for vector in (origin, forward, right, up))
    return origin, forward, _unit(forward + right * columns - up * lines)


def _hit_box(half_side: float, origin: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
    """Intersect rays with a cube that stands on z = 0, by the slab method."""
    centre = _vector((0.0, 0.0, half_side), origin)
    middle, reach = (centre - origin) / direction, half_side / direction.abs()
    near, axis = (middle - reach).max(dim=0)
    far = (middle + reach).amin(dim=0)
    normal = torch.stack([torch.where(axis == i, -direction[i].sign(), 0.0) for i in range(3)])
    return _where_hit((near < far) & (near > EPSILON), near), normal


def _hit_cylinder(radius: float, height: float, origin: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
    """Intersect rays with an upright cylinder that stands on z = 0: an infinite cylinder cut by two planes."""
    side_near, side_far = _round_slab(radius, origin, direction)
    bottom, top = -origin[2] / direction[2], (height - origin[2]) / direction[2]
    flat_near, flat_far = torch.minimum(bottom, top), torch.maximum(bottom, top)
    near, far = torch.maximum(side_near, flat_near), torch.minimum(side_far, flat_far)
    on_side = side_near > flat_near
    x, y = ((origin[i] + near * direction[i]) / radius for i in range(2))
    normal = torch.stack(
        [torch.where(on_side, x, 0.0), torch.where(on_side, y, 0.0), torch.where(on_side, 0.0, -direction[2].sign())]
    )
    return _where_hit((near < far) & (near > EPSILON), near), normal


def _hit_ball(radius: float, height: float, origin: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
    """Intersect rays with a ball whose centre is at (0, 0, height)."""
    from_centre = origin - _vector((0.0, 0.0, height), origin)
    half = (from_centre * direction).sum(0)
    square = half**2 - (from_centre**2).sum(0) + radius**2
    near = -half - square.clamp_min(0).sqrt()
    return _where_hit((square > 0) & (near > EPSILON), near), (from_centre + near * direction) / radius


def _hit_capsule(radius: float, half_length: float, origin: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
    """Intersect rays with an upright capsule that stands on z = 0: the side of a cylinder between two balls."""
    low, high = radius, radius + 2 * half_length
    side, _ = _round_slab(radius, origin, direction)
    height = origin[2] + side * direction[2]
    near = _where_hit(side.isfinite() & (side > EPSILON) & (height > low) & (height < high), side)
    for centre in (low, high):
        near = torch.minimum(near, _hit_ball(radius, centre, origin, direction)[0])
    x, y, z = origin + torch.where(near.isfinite(), near, 0.0) * direction
    return near, torch.stack([x, y, z - z.clamp(low, high)]) / radius


def _round_slab(radius: float, origin: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
    """Return where rays enter and leave an infinite upright cylinder; (inf, -inf) where they miss."""
    square_speed = direction[0] ** 2 + direction[1] ** 2
    half = origin[0] * direction[0] + origin[1] * direction[1]
    square = half**2 - square_speed * (origin[0] ** 2 + origin[1] ** 2 - radius**2)
    root = square.clamp_min(0).sqrt()
    inside = square > 0
    return _where_hit(inside, (-half - root) / square_speed), -_where_hit(inside, -(-half + root) / square_speed)


def _where_hit(is_hit: Tensor, distance: Tensor) -> Tensor:
    return torch.where(is_hit, distance, math.inf)


def _unit(vector: Tensor) -> Tensor:
    return vector / (vector * vector).sum(0).sqrt()  # Tensor.norm(dim=0) takes ten times as long on a CPU


def _vector(values: tuple[float, float, float], like: Tensor) -> Tensor:
    """Return a constant vector that broadcasts against (3, ...)."""
    return torch.tensor(values, dtype=like.dtype, device=like.device).view(3, *[1] * (like.ndim - 1))
