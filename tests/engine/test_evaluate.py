from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from raydis.config import EvaluationConfig
from raydis.data import FactorDataset, Loader
from raydis.data.dataset import ArrayDataset
from raydis.engine.evaluate import evaluate, scored_indices
from raydis.methods.contract import Move, UnitMethod
from raydis.metrics.protocol import PUBLISHED, SEARCH


def test_the_published_protocol_looks_at_every_image_and_search_at_a_product_sub_grid(dataset: FactorDataset) -> None:
    everything = np.arange(324)
    assert (scored_indices(dataset, protocol=PUBLISHED, max_images=64) == everything).all()
    assert (scored_indices(dataset, protocol=SEARCH, max_images=324) == everything).all()
    some = scored_indices(dataset, protocol=SEARCH, max_images=100)
    levels = [np.unique(column) for column in dataset.factors(some).T]
    assert [len(kept) for kept in levels] == [2, 2, 2, 2, 2, 3]
    assert len(some) == len(np.unique(some)) == 96


@pytest.mark.parametrize(("value", "reason"), [(1.0, "constant: the representation has collapsed"), (np.nan, "NaN")])
def test_codes_that_cannot_be_scored_come_with_advice(dataset: FactorDataset, value: float, reason: str) -> None:
    class Broken(UnitMethod):
        @property
        def moves(self) -> Sequence[Move]:
            return []

        def units(self, images: Tensor) -> Tensor:
            return torch.full((len(images), 3), value)

        def lift(self, units: Tensor) -> Tensor:
            return units[..., None].expand(-1, -1, 2)

        def decode(self, codes: Tensor, noise: object, steps: object, sampler: object) -> Tensor:
            raise AssertionError("scoring drew an image")

    loader = Loader(dataset, batch_size=1, seed=0)
    scores = evaluate(Broken(), dataset, loader, EvaluationConfig())
    assert scores is not None
    assert (scores.status, scores.values) == ("invalid", {})
    assert reason in str(scores.reason)
    assert str(scores.reason).endswith("; lower train.learning_rate or raise train.warmup_images")


def test_no_protocol_gives_no_scores_and_no_factors_a_reason(dataset: ArrayDataset) -> None:
    pictures = ArrayDataset("image_folder", dataset.array, None, fingerprint="abc")
    method, loader = None, None  # neither is asked for anything
    assert evaluate(method, pictures, loader, EvaluationConfig(protocol="none")) is None  # type: ignore[arg-type]
    scores = evaluate(method, pictures, loader, EvaluationConfig())  # type: ignore[arg-type]
    assert scores is not None
    assert (scores.status, scores.reason) == ("no_factors", "data set image_folder has no factors")
    assert (scores.num_images, scores.data_fingerprint, scores.values) == (0, "abc", {})
