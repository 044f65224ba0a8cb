"""A checkpoint is never written from weights that are not finite, whatever the loss says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from raydis.checkpoint.open import open_checkpoint
from raydis.config import RunConfig
from raydis.config.presets import expand
from raydis.data import FactorDataset, open_dataset
from raydis.engine.finite import check_finite, not_finite
from raydis.engine.group import Workers
from raydis.engine.session import run_session
from raydis.engine.state import Training
from raydis.engine.step import Step, ema_update
from raydis.errors import FitError

CPU = torch.device("cpu")
Tiny = Callable[..., RunConfig]
TWICE = {"num_images": 128, "report_images": 64, "checkpoint_images": 64}


def start(config: RunConfig, dataset: FactorDataset) -> Training:
    training = Training(config, dataset, device=CPU)
    Step(training)()  # so that there are moments
    return training


def raw_weight(training: Training) -> Tensor:
    return next(training.method.unet.parameters()).data


def averaged_weight(training: Training) -> Tensor:
    return next(training.average.encoder.parameters()).data


def moment(training: Training) -> Tensor:
    return training.optimizers["denoise"].state_dict()["state"][3]["exp_avg_sq"]


def averaged_statistics(training: Training) -> Tensor:
    return next(tensor for name, tensor in training.average.named_buffers() if name.endswith("running_var"))


def quantiles(training: Training) -> Tensor:
    return training.average.unit_quantiles


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize(
    ("tensor", "said"),
    [
        (raw_weight, r"raw weight unet\."),
        (averaged_weight, r"averaged weight encoder\."),
        (moment, r"optimiser moment denoise\.3\.exp_avg_sq"),
        (averaged_statistics, r"averaged weight encoder\.\S+running_var"),
    ],
)
def test_one_number_that_is_not_finite_is_found_and_its_tensor_named(
    tiny: Tiny, unlabelled: FactorDataset, tensor: Callable[[Training], Tensor], said: str, value: float
) -> None:
    training = start(tiny(method={"encoder": {"norm": "batch"}}), unlabelled)
    check_finite(training)
    tensor(training).view(-1)[-1] = value
    with pytest.raises(
        FitError, match=rf"^{said}\S* holds values that are not finite after step 1 \(32 images\): lower"
    ):
        check_finite(training)


def test_an_absent_component_of_a_mixture_is_no_fault_but_a_nan_in_it_is(tiny: Tiny, unlabelled: FactorDataset) -> None:
    training = start(tiny(), unlabelled)
    weights = training.method.anchors.log_weights
    assert bool(weights.isinf().all())
    weights.view(-1)[0] = torch.nan
    with pytest.raises(FitError, match=r"^raw buffer anchors\.log_weights holds"):
        check_finite(training)


def test_large_finite_numbers_whose_sum_overflows_are_finite() -> None:
    tensors = {"large": torch.full((4,), 3e38), "empty": torch.zeros(0), "half": torch.full((3,), 6e4).half()}
    assert not_finite(tensors) == []
    assert not_finite(tensors | {"bad": torch.tensor([1.0, torch.nan])}) == ["bad"]
    assert not_finite({}) == []


def break_after(monkeypatch: pytest.MonkeyPatch, step: int, tensor: Callable[[Training], Tensor]) -> None:
    """Put a NaN into a tensor at the end of a step, as an overflow in the optimiser would."""

    def then_break(training: Training) -> None:
        ema_update(training)
        if training.step == step:
            tensor(training).view(-1)[0] = torch.nan

    monkeypatch.setattr("raydis.engine.step.ema_update", then_break)


@pytest.mark.parametrize("tensor", [raw_weight, averaged_weight, moment])
def test_the_last_good_checkpoint_stays_where_weights_break_behind_a_finite_loss(
    tiny: Tiny,
    dataset: FactorDataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tensor: Callable[[Training], Tensor],
) -> None:
    """At the last step before a report the loss that is reported was computed by weights that were still sound."""
    training = Training(tiny(train=TWICE), dataset, device=CPU)
    break_after(monkeypatch, 4, tensor)
    session = run_session(training, tmp_path)
    good = next(session).checkpoint
    assert good is not None
    with pytest.raises(FitError, match=r"not finite after step 4 \(128 images\)"):
        next(session)
    assert list(tmp_path.iterdir()) == [good]
    assert not not_finite(open_checkpoint(good).training().tensors | {"method.anchors.log_weights": torch.zeros(1)})


def test_a_rung_is_not_scored_with_weights_that_are_not_finite(
    tiny: Tiny, dataset: FactorDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny(train={**TWICE, "checkpoint_images": 1000}, evaluation={"rungs": [64]})
    training = Training(config, dataset, device=CPU)
    break_after(monkeypatch, 2, averaged_weight)
    with pytest.raises(FitError, match="averaged weight encoder"):
        next(run_session(training, tmp_path))


def test_a_loss_that_is_nan_in_one_step_between_two_reports_ends_the_run(
    tiny: Tiny, dataset: FactorDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = Training(tiny(train={**TWICE, "report_images": 128}), dataset, device=CPU)
    take = Step.__call__

    def once_nan(step: Step) -> dict[str, Tensor]:
        losses = take(step)
        return {"loss": losses["loss"] * torch.nan} if training.step == 2 else losses

    monkeypatch.setattr(Step, "__call__", once_nan)
    with pytest.raises(FitError, match="the loss became nan by step 4"):
        next(run_session(training, tmp_path))
    assert not list(tmp_path.iterdir())


# ---- on two workers: see `run_in_two_workers`


def break_the_second(rank: int) -> dict[str, Tensor]:
    """Which errors the two workers end with where the weights of the second alone are not finite."""
    config = RunConfig.model_validate(expand({"preset": "tiny", "train": TWICE}))
    training = Training(config, open_dataset(config.data), device=CPU, workers=Workers(rank, 2))
    if rank == 1:
        averaged_weight(training).view(-1)[0] = torch.nan
    try:
        check_finite(training)
    except FitError as error:
        named = "another worker has weights that are not finite" in str(error)
        return {"raised": torch.tensor(1), "another": torch.tensor(int(named))}
    return {"raised": torch.tensor(0), "another": torch.tensor(0)}


def test_weights_that_break_on_one_worker_end_the_run_on_all(run_in_two_workers: Callable[..., Any]) -> None:
    first, second = run_in_two_workers(__file__, "break_the_second")
    assert [first["raised"].item(), second["raised"].item()] == [1, 1]
    assert [first["another"].item(), second["another"].item()] == [1, 0]
