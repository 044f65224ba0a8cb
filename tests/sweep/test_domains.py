from __future__ import annotations

from raydis.sweep.domains import MAX_CORNERS, Choice, IntRange, corners

UNITS = IntRange(kind="int", low=4, high=6)


def test_corners_of_a_small_space_are_all_of_them() -> None:
    space = {"method.num_units": UNITS, "method.unit_dim": Choice(kind="choice", values=(4, 8, 16))}
    found = [tuple(corner.values()) for corner in corners(space)]
    assert sorted(found) == [(units, dim) for units in (4, 6) for dim in (4, 8, 16)]


def test_corners_of_a_large_space_are_bounded_and_hold_every_end() -> None:
    names = ("num_timesteps", "x", "y", "z", "v", "w")
    space = dict.fromkeys(names, Choice(kind="choice", values=tuple(range(1, 6))))  # 5^6 corners
    found = list(corners(space))
    assert len(found) == MAX_CORNERS
    assert all({corner[name] for corner in found} == {1, 2, 3, 4, 5} for name in names)
