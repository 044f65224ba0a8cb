"""What units tell, on codes whose answers are known beforehand."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import product

import numpy as np
import pytest

from raydis.errors import MetricError
from raydis.metrics import telling
from raydis.metrics.dci import dci
from raydis.metrics.telling import Information, UnitLabel, label_units, measure_information, reading_order

NAMES = ("hue", "size", "shape", "side")
SIZES = (8, 4, 6, 2)
GRID = np.array(list(product(*map(range, SIZES))))  # (384, 4), every combination once
FACTORS = np.vstack([GRID] * 4)  # images that differ in what no factor describes
M = len(FACTORS)


def noise(seed: int, scale: float = 1.0) -> np.ndarray:
    return scale * np.random.default_rng(seed).normal(size=M)


def standard(column: np.ndarray) -> np.ndarray:
    return (column - column.mean()) / column.std()


HUE, SIZE, SHAPE, SIDE = (standard(column.astype(float)) for column in FACTORS.T)


def labels_of(*units: np.ndarray, factors: np.ndarray = FACTORS, seed: int = 0) -> tuple[UnitLabel, ...]:
    scalars = np.stack(units, axis=1)
    found = measure_information(scalars, factors, effects=drawn(scalars), rng=np.random.default_rng(seed))
    return label_units(found, NAMES, len(units))


def drawn(scalars: np.ndarray) -> np.ndarray:
    """Effects of units on pictures that they are the pixels of, of ten grey levels a unit."""
    return 10.0 * np.sqrt(2.0) * scalars.std(axis=0)


def told(label: UnitLabel) -> tuple[str, ...]:
    return (label.kind, *(name for name, _ in label.factors))


def test_perfect_units_tell_all_of_their_factor_and_nothing_else() -> None:
    for label, name in zip(labels_of(HUE, SIZE, SHAPE, SIDE), NAMES, strict=True):
        assert told(label) == ("factor", name)
        assert label.factors[0][1] == pytest.approx(1.0, abs=1e-9)


def test_permuted_units_take_their_labels_along() -> None:
    assert [told(label) for label in labels_of(SIDE, HUE, SIZE, SHAPE)] == [
        ("factor", name) for name in ("side", "hue", "size", "shape")
    ]


@pytest.mark.parametrize("bend", [lambda x: -x, np.exp, lambda x: x**3, lambda x: 5 * x + 100.0, np.arctan], ids=str)
def test_a_monotone_curve_changes_no_share(bend: Callable) -> None:
    unit = HUE + 0.3 * noise(1)
    straight, bent = (
        measure_information(u[:, None], FACTORS, effects=[10.0], rng=np.random.default_rng(0))
        for u in (unit, bend(unit))
    )
    assert straight is not None
    assert bent is not None
    np.testing.assert_allclose(straight.share, bent.share, atol=0.01)  # up to ties and equal counts from above or below


def test_an_outlier_changes_no_label() -> None:
    unit = HUE + 0.1 * noise(1)
    unit[7] = 1e6
    scalars = np.stack([unit, SIZE], axis=1)
    found = measure_information(scalars, FACTORS, effects=[10.0, 10.0], rng=np.random.default_rng(0))
    assert told(label_units(found, NAMES, 2)[0]) == ("factor", "hue")


@pytest.mark.parametrize(("degrees", "expected"), [(0, 1), (10, 1), (45, 2)])
def test_a_rotated_pair_is_mixed_and_a_hardly_rotated_one_is_not(degrees: int, expected: int) -> None:
    """Two factors of equal sizes, as a 45 degrees' rotation prefers neither."""
    first, second = (standard(FACTORS[:, j] % 4 + 0.0) for j in (0, 1))
    factors = np.stack([FACTORS[:, 0] % 4, FACTORS[:, 1], FACTORS[:, 2], FACTORS[:, 3]], axis=1)
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    one, other, *_ = labels_of(
        c * first - s * second + noise(5, 0.1), s * first + c * second + noise(6, 0.1), SHAPE, factors=factors
    )
    assert len(one.factors) == len(other.factors) == expected
    assert {name for name, _ in one.factors} | {name for name, _ in other.factors} == {"hue", "size"}
    assert (one.kind == "mixed") == (expected == 2)


def test_a_unit_that_tells_two_factors_of_unequal_sizes_is_mixed() -> None:
    both = standard(FACTORS[:, 0] * 2.0 + FACTORS[:, 3])  # 16 values, fewer than bins: it tells both wholly
    label = labels_of(both, SIZE)[0]
    assert told(label)[0] == "mixed"
    assert dict(label.factors) == pytest.approx({"hue": 1.0, "side": 1.0}, abs=1e-9)


def test_a_constant_unit_is_inactive_and_one_that_is_constant_but_for_rounding_too() -> None:
    constant, rounded, _ = labels_of(np.full(M, 0.3), 0.3 + 1e-7 * HUE, SIZE)
    assert constant == rounded == UnitLabel("inactive")


@pytest.mark.parametrize(("effect", "kind"), [(0.0, "inactive"), (0.99, "inactive"), (1.0, "factor"), (80.0, "factor")])
def test_a_unit_that_changes_no_picture_is_inactive_whatever_it_tells(effect: float, kind: str) -> None:
    scalars = np.stack([HUE, 1e-3 * SIZE], axis=1)  # what a unit's scalar spans says nothing of its effect
    found = measure_information(scalars, FACTORS, effects=[effect, 50.0], rng=np.random.default_rng(0))
    assert [label.kind for label in label_units(found, NAMES, 2)] == [kind, "factor"]


def test_units_that_all_collapsed_are_all_inactive() -> None:
    assert labels_of(np.zeros(M), np.ones(M)) == (UnitLabel("inactive"),) * 2


@pytest.mark.parametrize("seed", range(5))
def test_a_unit_of_noise_varies_and_tells_no_factor(seed: int) -> None:
    *quiet, _ = labels_of(*(noise(100 * seed + unit) for unit in range(6)), HUE, seed=seed)
    assert quiet == [UnitLabel("none")] * 6


def test_noise_gets_no_factor_by_few_images_and_many_levels() -> None:
    factors = np.random.default_rng(3).integers(30, size=(120, 4))
    units = np.random.default_rng(4).normal(size=(120, 5))
    found = measure_information(units, factors, effects=drawn(units), rng=np.random.default_rng(0))
    assert [label.kind for label in label_units(found, NAMES, 5)] == ["none"] * 5


def test_a_factor_that_nobody_can_predict_is_told_by_no_unit_unlike_by_dcis_importances() -> None:
    """The units know three factors and are blind to the fourth."""
    units = (HUE + noise(1, 0.05), SIZE + noise(2, 0.05), SIDE + noise(3, 0.05), noise(4))
    found = labels_of(*units)
    assert [told(label) for label in found] == [("factor", "hue"), ("factor", "size"), ("factor", "side"), ("none",)]
    fits = dci(
        np.stack(units, axis=1), FACTORS, rng=np.random.default_rng(0), estimator="tree", num_train=1000, num_test=500
    )
    assert fits.importance is not None
    assert fits.importance[:, 2].sum() == pytest.approx(1.0)
    assert NAMES[fits.importance[3].argmax()] == "shape"  # what the pictures once said of the noise


def test_redundant_units_have_one_label() -> None:
    first, copy, mirrored, _ = labels_of(HUE + noise(1, 0.1), HUE + noise(2, 0.1), -HUE, SIZE)
    assert told(first) == told(copy) == told(mirrored) == ("factor", "hue")


def test_a_folded_curve_tells_what_its_values_tell() -> None:
    """|x - 3.5| pairs up the eight hues: of log 8 it tells log 4."""
    label = labels_of(standard(np.abs(FACTORS[:, 0] - 3.5)), SIZE)[0]
    assert told(label) == ("factor", "hue")
    assert label.factors[0][1] == pytest.approx(2 / 3, abs=0.01)


def test_a_factor_that_does_not_vary_is_told_by_nobody() -> None:
    factors = FACTORS.copy()
    factors[:, 2] = 5
    label, other = labels_of(SHAPE, HUE, factors=factors)
    assert (label.kind, told(other)) == ("none", ("factor", "hue"))


def test_an_exclusive_or_varies_and_tells_neither_of_its_factors() -> None:
    parity = standard((FACTORS[:, 0] % 2) ^ FACTORS[:, 3])
    assert labels_of(parity, SIZE)[0] == UnitLabel("none")


def test_a_weak_relation_counts_where_chance_does_not_explain_it() -> None:
    weak, *_ = labels_of(0.3 * SIZE + noise(8), HUE)
    assert told(weak) == ("factor", "size")
    assert weak.factors[0][1] < 0.1


def test_more_images_than_the_bound_are_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telling, "MAX_IMAGES", 500)
    label = labels_of(HUE, SIZE)[0]
    assert told(label) == ("factor", "hue")
    assert label.factors[0][1] == pytest.approx(1.0, abs=1e-9)


def test_the_same_generator_gives_the_same_information() -> None:
    assert labels_of(HUE + noise(1), SIZE, seed=3) == labels_of(HUE + noise(1), SIZE, seed=3)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_not_measured(bad: float) -> None:
    units = np.stack([HUE, SIZE], axis=1)
    broken = units.copy()
    broken[3, 1] = bad
    for scalars, effects in ((broken, [1.0, 1.0]), (units, [1.0, bad])):
        assert measure_information(scalars, FACTORS, effects=effects, rng=np.random.default_rng(0)) is None


def test_tables_that_do_not_fit_are_refused() -> None:
    units = np.stack([HUE, SIZE], axis=1)
    for scalars, effects in ((units[1:], [1.0, 1.0]), (units, [1.0]), (HUE, [1.0])):
        with pytest.raises(MetricError, match="must be of the same images"):
            measure_information(scalars, FACTORS, effects=effects, rng=np.random.default_rng(0))


def test_information_survives_json() -> None:
    units = np.stack([HUE, SIZE + noise(2)], axis=1)
    found = measure_information(units, FACTORS, effects=drawn(units), rng=np.random.default_rng(0))
    assert found is not None
    assert label_units(json.loads(json.dumps(found.to_dict())), NAMES, 2) == label_units(found, NAMES, 2)


def test_what_was_not_measured_is_unknown() -> None:
    assert label_units(None, NAMES, 3) == (UnitLabel("unknown"),) * 3


def of(*share: float, effect: float = 10.0) -> UnitLabel:
    found = Information(share=(share,), chance=(0.02,) * len(share), effect=(effect,))
    return label_units(found, NAMES, 1)[0]


@pytest.mark.parametrize(
    ("label", "words"),
    [
        (of(0.8, 0.39, 0.0, 0.0), "hue 80 %"),
        (of(0.8, 0.4, 0.0, 0.41), "mixed: hue 80 %, side 41 %, size 40 %"),
        (of(0.02, 0.02, 0.0, 0.0), "no factor"),
        (of(0.03, 0.0, 0.0, 0.0), "hue 3 %"),
        (of(0.9, 0.0, 0.0, 0.0, effect=0.5), "inactive"),
        (UnitLabel("unknown"), ""),
        (UnitLabel("factor", (("floor_hue", 0.501),)), "floor hue 50 %"),
    ],
)
def test_the_words_of_a_label(label: UnitLabel, words: str) -> None:
    assert str(label) == words


@pytest.mark.parametrize(
    ("width", "lines"),
    [
        (40, ["mixed: floor hue 80 %,", "side 41 %"]),
        (12, ["mixed: floor", "hue 80 %,", "side 41 %"]),
        (6, ["mixed:", "floor", "hue", "80 %,", "side", "41 %"]),
    ],
)
def test_lines_hold_one_factor_or_less_and_never_part_number_and_sign(width: int, lines: list[str]) -> None:
    label = UnitLabel("mixed", (("floor_hue", 0.8), ("side", 0.41)))
    assert label.lines(width).split("\n") == lines


def test_a_reader_sees_factors_in_their_order_then_mixtures_and_last_what_is_inactive() -> None:
    labels = [
        UnitLabel("inactive"),
        UnitLabel("none"),
        UnitLabel("mixed", (("hue", 0.5), ("side", 0.4))),
        UnitLabel("factor", (("side", 0.9),)),
        UnitLabel("factor", (("hue", 0.5),)),
        UnitLabel("factor", (("hue", 0.7),)),
        UnitLabel("mixed", (("hue", 0.5), ("size", 0.4))),
        UnitLabel("inactive"),
    ]
    assert reading_order(labels, NAMES) == [5, 4, 3, 6, 2, 1, 0, 7]
    assert reading_order(label_units(None, (), 3), ()) == [0, 1, 2]
