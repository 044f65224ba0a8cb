"""Scores as an object: what they keep, how they are stored, and when two of them compare."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from raydis.errors import MetricError
from raydis.metrics.protocol import PUBLISHED, SEARCH
from raydis.metrics.scores import Scores, differences, unscored
from raydis.metrics.table import METRICS, sizes_of

VALID = replace(
    unscored("invalid", None, protocol=SEARCH, num_images=24, data_fingerprint="grid-a", seed=3),
    status="valid",
    values={"factor_vae": 0.5, "dci_disentanglement": 0.25, "mig": 0.125},
    details={"num_active_units": 2, "importance": [[0.75, 0.0], [0.25, 1.0]]},
    num_draws=3,
    spread={"factor_vae": 0.01, "dci_disentanglement": 0.02, "mig": 0.0},
)
# Scores in a checkpoint of the code before the table of metrics.
FORMER: dict[str, Any] = {
    "protocol": "search",
    "sizes": {
        "factor_vae_num_variance": 10000,
        "factor_vae_num_train": 10000,
        "factor_vae_num_eval": 5000,
        "factor_vae_batch_size": 64,
        "prune_threshold": 0.05,
        "dci_num_train": 10000,
        "dci_num_test": 5000,
        "mig_num_samples": 10000,
        "mig_num_bins": 20,
    },
    "estimator": "hist",
    "seed": 3,
    "num_images": 24,
    "data_fingerprint": "grid-a",
    "status": "valid",
    "reason": None,
    "factor_vae": 0.5,
    "dci_disentanglement": 0.25,
    "dci_completeness": 0.75,
    "dci_informativeness": 1.0,
    "mig": 0.125,
    "num_active_units": 2,
    "importance": [[0.75, 0.0], [0.25, 1.0]],
    "num_draws": 3,
    "spread": {"factor_vae": 0.01, "dci_disentanglement": 0.02, "mig": 0.0},
}


@pytest.mark.parametrize(
    "scores",
    [
        VALID,
        unscored("no_factors", "mnist has no factors", protocol=SEARCH, num_images=9, data_fingerprint="mnist"),
        unscored("not_ready", "no unit is open yet", protocol=PUBLISHED, num_images=9, data_fingerprint="a"),
    ],
)
def test_scores_survive_json(scores: Scores) -> None:
    assert Scores.from_dict(json.loads(json.dumps(scores.to_dict(), allow_nan=False))) == scores


def test_scores_that_an_earlier_raydis_stored_load_with_all_their_numbers_and_compare_with_todays() -> None:
    scores = Scores.from_dict(json.loads(json.dumps(FORMER)))
    assert scores.values == {
        "factor_vae": 0.5,
        "dci_disentanglement": 0.25,
        "dci_completeness": 0.75,
        "dci_informativeness": 1.0,
        "mig": 0.125,
    }
    assert scores.details == VALID.details
    assert (scores.status, scores.num_draws, scores.spread) == ("valid", 3, VALID.spread)
    assert scores.sizes == sizes_of(SEARCH)
    assert not differences(scores, VALID)
    assert Scores.from_dict(scores.to_dict()) == scores


def test_scores_from_before_spreads_were_kept_load_with_an_unknown_one() -> None:
    scores = Scores.from_dict({name: value for name, value in FORMER.items() if name not in ("spread", "num_draws")})
    assert (scores.num_draws, scores.spread) == (1, None)


def test_former_scores_without_numbers_load_without_numbers() -> None:
    numbers = dict.fromkeys(("factor_vae", "dci_disentanglement", "mig", "num_active_units", "importance", "spread"))
    scores = Scores.from_dict(FORMER | numbers | {"status": "invalid", "reason": "units [1] of 2 hold NaN"})
    assert (scores.status, scores.values["dci_completeness"]) == ("invalid", 0.75)
    assert "factor_vae" not in scores.values
    assert scores.details == {}


@pytest.mark.parametrize("former", [True, False])
@pytest.mark.parametrize("change", [{"dci": 0.9}, {"seed": None}])
def test_a_dict_with_other_fields_is_refused(change: dict[str, Any], former: bool) -> None:
    values = (FORMER if former else VALID.to_dict()) | change
    values = {name: value for name, value in values.items() if value is not None or name == "reason"}
    with pytest.raises(MetricError, match=r"these are not scores: .*(dci|seed).*the fields are protocol, sizes"):
        Scores.from_dict(values)


def test_only_equal_protocol_sizes_estimator_and_data_compare() -> None:
    assert not differences(VALID, replace(VALID, seed=9, values={}))
    for change in (
        {"estimator": "tree"},
        {"num_images": 23},
        {"protocol": "published"},
        {"data_fingerprint": "grid-b"},
        {"sizes": {**VALID.sizes, "dci": {"num_train": 500, "num_test": 5000}}},
        {"sizes": {**VALID.sizes, "mig": {"num_samples": 10_000, "bins": 20}}},
    ):
        assert differences(VALID, replace(VALID, **change))
    changed = replace(
        VALID, sizes={**VALID.sizes, "dci": {"num_train": 500, "num_test": 5000}}, data_fingerprint="grid-b"
    )
    assert differences(VALID, changed) == ["data_fingerprint is grid-a, not grid-b", "dci_num_train is 10000, not 500"]


def test_a_metric_that_was_added_since_does_not_keep_older_scores_from_being_compared(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(METRICS, "toy", replace(METRICS["mig"], sizes={"num_samples": 7}))
    newer = unscored("invalid", None, protocol=SEARCH, num_images=24, data_fingerprint="grid-a")
    assert newer.sizes == {**VALID.sizes, "toy": {"num_samples": 7}}
    assert not differences(VALID, newer)
    assert not differences(newer, VALID)
    assert differences(VALID, replace(newer, sizes={**newer.sizes, "mig": {"num_samples": 10_000, "num_bins": 10}}))


def test_published_scores_of_another_estimator_keep_its_name_and_do_not_compare_with_the_reference() -> None:
    reference = unscored("invalid", "", protocol=PUBLISHED, num_images=9, data_fingerprint="a")
    hist = unscored("invalid", "", protocol=PUBLISHED, estimator="hist", num_images=9, data_fingerprint="a")
    assert (reference.estimator, hist.estimator) == ("reference", "hist")
    assert differences(reference, hist)
