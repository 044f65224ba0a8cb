"""The diagnosis of anchors, on methods whose anchors are known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from raydis.build import build_method
from raydis.config import RunConfig
from raydis.config.presets import expand
from raydis.data import open_dataset
from raydis.methods.contract import FactorTable
from raydis.methods.dyga_sd import DygaSd
from raydis.methods.dyga_sd.anchoring import Anchoring, UnitAnchoring, diagnose_anchors
from raydis.methods.dyga_sd.diagnosis import lay_out, read_version_1
from raydis.metrics.telling import UnitLabel


class Told(torch.nn.Module):
    """In place of an encoder: unit 0 tells the floor hue, unit 1 the scale, unit 2 nothing, unit 3 is constant."""

    def __init__(self, factors: np.ndarray) -> None:
        super().__init__()
        self.factors = torch.from_numpy(factors).float()
        self.position = 0
        self.collapsed = torch.zeros(4, dtype=torch.bool)

    def units(self, images: Tensor) -> Tensor:
        rows = self.factors[self.position : self.position + len(images)]
        self.position += len(images)
        noise = torch.randn(len(rows), generator=torch.Generator().manual_seed(self.position))
        units = torch.stack([rows[:, 0], rows[:, 3], noise, torch.zeros(len(rows))], dim=1)
        return torch.where(self.collapsed, 0.3 + 1e-7 * units, units)  # constant but for rounding

    def tokens(self, units: Tensor) -> Tensor:
        return units[..., None] * torch.linspace(0.5, 1.5, 8)


LABELS = (
    UnitLabel("factor", (("floor_hue", 1.0),)),
    UnitLabel("mixed", (("scale", 1.0), ("shape", 0.6))),
    UnitLabel("none"),
    UnitLabel("inactive"),
)


def diagnosis(*, collapsed: int | None = None, labels: Sequence[UnitLabel] = LABELS, **anchors: object) -> Anchoring:
    """Of anchors fitted to what `Told` tells, whose unit `collapsed` has become constant since."""
    tree = expand({"preset": "tiny", "method": {"anchors": {"max_gaussians": 8, **anchors}}})
    config = RunConfig.model_validate(tree)
    dataset = open_dataset(config.data)
    rows = np.arange(len(dataset))
    method = build_method(config, 3).eval()
    assert isinstance(method, DygaSd)
    told = Told(dataset.factors(rows))
    method.encoder = told
    method.anchors.fit(
        told.tokens(told.units(torch.zeros(len(rows)))),
        num_gaussians=6,
        num_splits=0,
        split_spread=0.5,
        min_count=5,
        em_steps=30,
        generator=torch.Generator().manual_seed(0),
    )
    told.position = 0
    if collapsed is not None:
        told.collapsed[collapsed] = True
    assert dataset.space is not None
    table = FactorTable(dataset.space.names, dataset.factors(rows))
    parts = torch.zeros(len(rows)).tensor_split(3)  # `Told` looks at their number alone
    with torch.no_grad():
        return diagnose_anchors(method.anchors, (told.tokens(told.units(part)) for part in parts), table, labels)


def test_anchors_on_the_levels_of_a_factor_hold_all_of_it() -> None:
    hue, scale, noise, constant = diagnosis(mode="constant", shift_rate=0.5).units
    assert (hue.factor, hue.num_levels, hue.num_components) == ("floor_hue", 3, 3)
    assert hue.factor_share == pytest.approx(1.0)
    assert hue.component_share == pytest.approx(1.0)
    assert (scale.factor, scale.num_levels, scale.num_components) == ("scale", 2, 2)
    assert hue.distance_to_anchor == pytest.approx(0.0, abs=1e-4)  # every token lies on its anchor,
    assert hue.moved_share == 0.0  # so none has anywhere to go
    # No factor is sought for Gaussians whose unit tells none.
    assert (noise.factor, noise.num_levels, noise.factor_share, noise.component_share) == (None, None, None, None)
    assert constant == UnitAnchoring(3, num_components=0, spread=0.0, collapsed=True)


def test_what_moves_is_the_shift_rate_of_the_way() -> None:
    found = diagnosis(mode="ramp", shift_rate=0.5)
    assert found.units[2].moved_share == 0.0  # the ramp stands at 0
    noise = diagnosis(mode="constant", shift_rate=0.5).units[2]
    assert noise.moved_share is not None
    assert noise.distance_moved is not None
    assert noise.distance_to_anchor is not None
    assert noise.moved_share > 0.9
    assert noise.distance_moved == pytest.approx(0.5 * noise.distance_to_anchor)


def test_means_are_over_the_units_that_have_anchors() -> None:
    found = diagnosis(mode="constant")
    anchored = [unit for unit in found.units if unit.num_components]
    assert found.num_anchored_units == len(anchored) == 3
    assert found.means["num_components"] == np.mean([unit.num_components for unit in anchored])
    assert found.to_dict()["units"][0]["factor"] == "floor_hue"


@pytest.mark.parametrize("mode", ["constant", "ramp"])
def test_a_unit_that_collapsed_after_the_fit_has_no_numbers_and_no_part_in_the_means(mode: str) -> None:
    sound, found = diagnosis(mode=mode), diagnosis(mode=mode, collapsed=2)
    unit = found.units[2]
    assert unit.num_components == sound.units[2].num_components > 1
    assert unit == UnitAnchoring(2, num_components=unit.num_components, spread=unit.spread, collapsed=True)
    assert 0 < unit.spread < 1e-6
    assert (found.num_anchored_units, found.num_collapsed_units) == (2, 1)
    assert (sound.num_anchored_units, sound.num_collapsed_units) == (3, 0)
    for name, mean in found.means.items():
        assert mean == pytest.approx(np.mean([getattr(sound.units[i], name) for i in (0, 1)])), name


def test_gaussians_are_asked_for_the_units_factor_and_not_for_the_one_they_tell_most_of() -> None:
    swapped = (UnitLabel("factor", (("scale", 0.9),)), UnitLabel("unknown"), *LABELS[2:])
    hue, scale, *_ = diagnosis(labels=swapped).units
    assert (hue.factor, hue.num_levels) == ("scale", 2)
    assert hue.factor_share == pytest.approx(0.0, abs=1e-6)  # its Gaussians tell the floor hue alone
    assert scale.factor is None
    assert scale.moved_share is not None


def test_the_table_has_a_row_a_unit_and_a_dash_for_what_was_not_measured() -> None:
    found = diagnosis(mode="constant", shift_rate=0.5)
    table = lay_out(found.to_dict(), LABELS)
    hue, scale, noise, constant = table.rows
    assert table.columns[0] == "Gaussians"
    assert table.columns[-3:] == ("levels of the factor", "factor told", "Gaussians told")
    assert (hue[0], hue[-3:]) == (3, (3, pytest.approx(1.0), pytest.approx(1.0)))
    assert (scale[0], scale[-3]) == (2, 2)
    assert noise[-3:] == (None, None, None)
    assert constant == (0, *[None] * 7)
    assert table.panels[:2] == ("3 Gaussians for 3 values", "2 Gaussians for 2 values")
    assert table.panels[2].endswith(" Gaussians")
    assert table.panels[3] == "0 Gaussians"
    assert table.details == found.to_dict()


def test_without_labels_the_table_does_not_speak_of_factors() -> None:
    unknown = (UnitLabel("unknown"),) * 4
    table = lay_out(diagnosis(labels=unknown).to_dict(), unknown)
    assert table.columns == ("Gaussians", "tokens moved", "by", "way to anchor", "responsibility")
    assert [len(row) for row in table.rows] == [5] * 4


@pytest.mark.parametrize("name", ["num_gaussians", "num_components"])
def test_what_format_version_1_stored_gives_the_same_table(name: str) -> None:
    found = diagnosis(mode="constant").to_dict()

    def older(counts: dict[str, Any]) -> dict[str, Any]:
        return {name if key == "num_components" else key: value for key, value in counts.items()}

    stored = found | {"means": older(found["means"]), "units": [older(unit) for unit in found["units"]]}
    assert read_version_1(stored, LABELS) == lay_out(found, LABELS)
    other = (UnitLabel("factor", (("shape", 0.9),)), *LABELS[1:])  # the numbers are about the floor hue
    table = read_version_1(stored, other)
    assert table.rows[0][-3:] == (None, None, None)
    assert table.panels[0] == "3 Gaussians"
