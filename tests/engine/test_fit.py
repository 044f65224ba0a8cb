from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed
from torch import Tensor

from raydis.checkpoint.open import Checkpoint, open_checkpoint
from raydis.checkpoint.state import TrainingState
from raydis.checkpoint.write import write_checkpoint
from raydis.config import RunConfig, TrainConfig
from raydis.data import FactorDataset, Loader
from raydis.data.dataset import ArrayDataset
from raydis.engine.evaluate import encode_images
from raydis.engine.fit import fit
from raydis.engine.group import Workers
from raydis.engine.plan import learning_rate
from raydis.engine.session import run_session
from raydis.engine.state import Progress, Training
from raydis.engine.step import ema_update
from raydis.engine.streams import seed_of
from raydis.errors import CheckpointError, ConfigError, FitError
from raydis.models.anchors import Anchors
from raydis.models.mixture import joint_log_density

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")
Tiny = Callable[..., RunConfig]


def start(config: RunConfig, dataset: FactorDataset, **place: int) -> Training:
    return Training(config, dataset, device=CPU, workers=Workers(**place))


def everything(training: Training) -> dict[str, Tensor]:
    """All tensors that a run has made so far."""
    average = {f"average.{name}": tensor for name, tensor in training.calibrated().state_dict().items()}
    return {name: tensor.clone() for name, tensor in (training.state().tensors | average).items()}


def differing(found: dict[str, Tensor], expected: dict[str, Tensor]) -> list[str]:
    """Names of tensors that are not equal to the bit."""
    assert found.keys() == expected.keys()
    return [name for name, tensor in expected.items() if not torch.equal(found[name], tensor)]


# ---- schedules: known values


@pytest.mark.parametrize(
    ("images_seen", "expected"), [(0, 0.25), (100, 0.5), (200, 0.75), (300, 1.0), (800, 0.5), (1300, 0.0), (1400, 0.0)]
)
def test_the_learning_rate_rises_linearly_and_falls_along_a_cosine(images_seen: int, expected: float) -> None:
    config = TrainConfig(
        num_images=1300, batch_size=100, learning_rate=1.0, learning_rate_schedule="cosine", warmup_images=300
    )
    assert learning_rate(config, images_seen) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("images_seen", [0, 512, 10**9])
def test_a_constant_learning_rate_without_warm_up_is_constant_from_the_first_step(images_seen: int) -> None:
    assert learning_rate(TrainConfig(learning_rate=3e-4), images_seen) == 3e-4


def test_the_average_follows_with_the_published_decays(tiny: Tiny, unlabelled: FactorDataset) -> None:
    """Reference values of latent-diffusion's LitEma after n steps, and the cap."""
    training = start(tiny(train={"ema_decay": 0.9999}), unlabelled)
    ours, theirs = training.average.unet.parameters(), training.method.unet.parameters()
    average, weight = next(iter(ours)), next(iter(theirs))
    weight.data.fill_(1.0)
    decays = {}
    for step in (1, 10, 100, 1000, 10_000, 10_000_000):
        average.data.fill_(0.0)
        training.step = step
        ema_update(training)
        decays[step] = 1.0 - average.data.mean().item()
    expected = {1: 0.1818, 10: 0.55, 100: 0.9182, 1000: 0.99109, 10_000: 0.99910, 10_000_000: 0.9999}
    assert decays == pytest.approx(expected, abs=5e-5)


def test_the_first_step_counts_as_one_for_the_average(tiny: Tiny, unlabelled: FactorDataset) -> None:
    training = start(tiny(train={"num_images": 32}), unlabelled)
    before = [weight.detach().clone() for weight in training.average.unet.parameters()]
    assert [progress.step for progress in fit(training)] == [1]
    for old, new, average in zip(
        before, training.method.unet.parameters(), training.average.unet.parameters(), strict=True
    ):
        torch.testing.assert_close(average, old * 2 / 11 + new.detach() * 9 / 11)


def test_seeds_of_streams_differ_where_one_is_another_followed_by_zeros() -> None:
    """The weights' seed (5) was that of the first step's draws (5, 0, 0)."""
    streams = [(5,), (5, 0), (5, 0, 0), (5, 1, 0), (5, 1, 0, 0), (0,), ()]
    assert len({seed_of(*parts) for parts in streams}) == len(streams)
    assert seed_of(5, 1) == seed_of(5, 1) >= 0


# ---- one run, whole and in parts

PLAN = {
    "method": {
        "encoder": {"norm": "batch"},  # running statistics are state as well
        "unet": {"dropout_rate": 0.1, "skip_dropout_rate": 0.2},
        "anchors": {"mode": "ramp", "refit_images": 96},  # so that 192 lies between two refits and 384 on one
    },
    "train": {
        "num_images": 480,
        "report_images": 96,
        "checkpoint_images": 192,
        "learning_rate_schedule": "cosine",
        "warmup_images": 64,
        "max_grad_norm": 1.0,
    },
    "evaluation": {"protocol": "none"},
}


class Whole:
    """A run that was never interrupted, with the checkpoints that it wrote on its way."""

    def __init__(self, config: RunConfig, dataset: FactorDataset, workdir: Path) -> None:
        self.config = config
        self.training = start(config, dataset)
        self.reports = list(run_session(self.training, workdir))
        self.checkpoints = {report.progress.images_seen: report.checkpoint for report in self.reports}
        self.final = everything(self.training)


@pytest.fixture(scope="module")
def whole(tiny: Tiny, unlabelled: FactorDataset, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    return Whole(tiny(**PLAN), unlabelled, tmp_path_factory.mktemp("whole"))


def without_speed(progress: Progress) -> Progress:
    return replace(progress, images_per_s=0.0, train_s=0.0, refit_s=0.0)


def test_a_run_reports_at_its_intervals_and_at_the_end(whole: Whole) -> None:
    seen = [report.progress.images_seen for report in whole.reports]
    assert seen == [96, 192, 288, 384, 480, 480]
    assert [report.progress.step for report in whole.reports] == [3, 6, 9, 12, 15, 15]
    assert [report.progress.checkpoint_due for report in whole.reports] == [False, True, False, True, True, True]
    assert [report.progress.finished for report in whole.reports] == [False] * 5 + [True]
    assert [report.progress.num_refits for report in whole.reports] == [0, 1, 2, 3, 4, 4]
    losses = [report.progress.loss for report in whole.reports]
    assert all(loss is not None and 0.0 < loss < 1.5 for loss in losses)


@pytest.mark.parametrize("images_seen", [192, 384])
def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(
    whole: Whole, unlabelled: FactorDataset, images_seen: int
) -> None:
    training = start(whole.config, unlabelled)
    torch.manual_seed(12345)  # another process has another global generator
    folder = whole.checkpoints[images_seen]
    assert folder is not None
    training.resume(open_checkpoint(folder))
    assert (training.images_seen, training.num_refits) == (images_seen, images_seen // 96 - 1)
    rest = {progress.images_seen: without_speed(progress) for progress in fit(training)}
    assert rest == {
        report.progress.images_seen: without_speed(report.progress)
        for report in whole.reports
        if report.progress.images_seen > images_seen
    }
    assert differing(everything(training), whole.final) == []
    assert training.num_refits == whole.training.num_refits


def as_older_code_wrote_it(folder: Path, target: Path, *, format_version: int = 1) -> Checkpoint:
    """The same checkpoint with the one optimiser, the one loss and the one count of failures that there once were."""
    opened = open_checkpoint(folder)
    tensors, values = (state := opened.training()).tensors, state.values
    if unscored := values["unscored"]:
        unscored["loss"] = unscored.pop("losses")["loss"]
        unscored["num_unanchored_units"] = unscored.pop("health")["num_unanchored_units"]
    tensors = {name.replace("optimizer.denoise.", "optimizer."): tensor for name, tensor in tensors.items()}
    assert "optimizer.0.exp_avg" in tensors
    write_checkpoint(
        target,
        config=opened.config,
        weights=opened.weights(),
        metrics=opened.metrics,
        training=TrainingState(tensors, values),
        data_name=opened.manifest.data_name,
        data_fingerprint=opened.manifest.data_fingerprint,
        images_seen=opened.manifest.images_seen,
    )
    manifest = json.loads((target / "manifest.json").read_text())
    (target / "manifest.json").write_text(json.dumps(manifest | {"format_version": format_version}))
    return open_checkpoint(target)


def test_a_checkpoint_of_older_code_goes_on_as_if_nothing_had_happened(
    whole: Whole, unlabelled: FactorDataset, tmp_path: Path
) -> None:
    folder = whole.checkpoints[384]
    assert folder is not None
    training = start(whole.config, unlabelled)
    training.resume(as_older_code_wrote_it(folder, tmp_path / "older"))
    (progress,) = fit(training)
    assert without_speed(progress) == without_speed(whole.reports[-1].progress)
    assert differing(everything(training), whole.final) == []


def test_moments_of_no_move_are_refused_instead_of_starting_without_them(
    whole: Whole, unlabelled: FactorDataset, tmp_path: Path
) -> None:
    folder = whole.checkpoints[384]
    assert folder is not None
    training = start(whole.config, unlabelled)
    before = everything(training)
    with pytest.raises(
        CheckpointError, match=r"holds optimizer\.\d+\.\w+, but this run has the moves denoise: resume it"
    ):
        training.resume(as_older_code_wrote_it(folder, tmp_path / "older", format_version=2))
    assert differing(everything(training), before) == []
    assert not training.resumed


def test_a_run_of_older_code_that_waits_for_its_scores_is_finished_without_a_step(
    whole: Whole, unlabelled: FactorDataset, tmp_path: Path
) -> None:
    waiting = start(whole.config, unlabelled)
    folder = next(r.checkpoint for r in run_session(waiting, tmp_path) if r.progress.images_seen == 480)
    assert folder is not None
    training = start(whole.config, unlabelled)
    training.resume(as_older_code_wrote_it(folder, tmp_path / "older"))
    assert training.unscored == waiting.unscored
    (report,) = run_session(training, tmp_path)
    assert without_speed(report.progress) == without_speed(whole.reports[-1].progress)
    assert differing(everything(training), whole.final) == []


def test_a_unit_that_collapsed_is_reported_and_left_without_anchors(
    tiny: Tiny, unlabelled: FactorDataset, caplog: pytest.LogCaptureFixture
) -> None:
    training = start(tiny(train={"num_images": 64}), unlabelled)
    assert training.method.health() == {"num_unanchored_units": 0}  # before any fit there is nothing to miss
    with torch.no_grad():
        for weights in training.method.encoder.tokens.weights:
            weights[2] = 0.0  # unit 2 says the same of every image
    training.refit()
    assert training.method.health() == {"num_unanchored_units": 1}
    assert training.method.anchors.active.tolist() == [True, True, False, True]
    assert "refit 0 failed for unit 2: collapsed" in caplog.text


def test_equal_seeds_make_equal_runs_and_other_seeds_do_not(tiny: Tiny, unlabelled: FactorDataset) -> None:
    finals = []
    for seed in (0, 0, 1):
        training = start(tiny(seed=seed, train={"num_images": 160}), unlabelled)
        list(fit(training))
        finals.append(everything(training))
    assert differing(finals[0], finals[1]) == []
    assert bool(finals[0]["average.anchors.fitted"])
    assert "average.anchors.means" in differing(finals[0], finals[2])


def log_density(anchors: Anchors, tokens: Tensor) -> Tensor:
    """The log-density (S, active units) of tokens (S, N, D) in their own scale, under the mixtures of their units."""
    normalised = (tokens - anchors.offset[:, None]) / anchors.scale[:, None]
    joint = joint_log_density(normalised, anchors.log_weights, anchors.means, anchors.precision_cholesky)
    return (joint.logsumexp(-1) - tokens.shape[-1] * anchors.scale.log())[:, anchors.active]


def test_what_is_saved_has_the_ramp_of_the_training_and_mixtures_of_its_own_tokens(whole: Whole) -> None:
    trained, method = whole.training.method.anchors, whole.training.calibrated()
    saved = method.anchors
    assert bool(saved.fitted)
    assert saved.ramp.item() == pytest.approx(448 / 480)  # of the last step; the last refit was before, at 384
    with torch.no_grad():
        parts = whole.training.loader.gather_in_parts(np.arange(len(whole.training.dataset)))
        tokens = torch.cat([method.encoder(images) for images in parts])
        own, other = (log_density(each, tokens) for each in (saved, trained))
    assert own.mean() > other.mean() + 1  # nats of a token in its own scale


def test_resuming_with_another_configuration_is_refused_but_may_change_where_it_computes(
    whole: Whole, tiny: Tiny, unlabelled: FactorDataset
) -> None:
    folder = whole.checkpoints[192]
    assert folder is not None
    other = start(tiny(**PLAN, seed=1), unlabelled)
    with pytest.raises(
        CheckpointError, match=r"another configuration: seed was 0, is 1\. Resume with its config\.json"
    ):
        other.resume(open_checkpoint(folder))
    less_exact = start(tiny(**{**PLAN, "train": {**PLAN["train"], "precision": "bf16"}}), unlabelled)
    with pytest.raises(
        CheckpointError, match=r'another configuration: train\.precision was "fp32", is "bf16"\. Resume'
    ):
        less_exact.resume(open_checkpoint(folder))
    elsewhere = start(tiny(**PLAN, compute={"num_workers": 4, "num_cpus": 2}), unlabelled)
    elsewhere.resume(open_checkpoint(folder))
    assert elsewhere.images_seen == 192


def test_resuming_on_other_images_is_refused(whole: Whole, unlabelled: ArrayDataset) -> None:
    folder = whole.checkpoints[192]
    assert folder is not None
    other = ArrayDataset(unlabelled.name, unlabelled.array, unlabelled.space, fingerprint="other")
    with pytest.raises(CheckpointError, match=r"was trained on other images than shapes3d_procedural holds now"):
        start(whole.config, other).resume(open_checkpoint(folder))


def test_precision_decides_the_forward_pass(tiny: Tiny, unlabelled: FactorDataset) -> None:
    losses = []
    for precision in ("fp32", "bf16"):
        (progress,) = fit(start(tiny(train={"num_images": 64, "precision": precision}), unlabelled))
        losses.append(progress.loss)
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.01)


def test_a_checkpoint_is_due_at_the_first_report_after_its_interval(tiny: Tiny, unlabelled: FactorDataset) -> None:
    plan = {"num_images": 256, "report_images": 96, "checkpoint_images": 64}
    due = {progress.images_seen: progress.checkpoint_due for progress in fit(start(tiny(train=plan), unlabelled))}
    assert due == {96: True, 192: True, 256: True}


def test_a_refit_is_timed_from_the_end_of_what_was_queued_to_its_own_on_a_gpu(
    tiny: Tiny, unlabelled: FactorDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    training, events = start(tiny(), unlabelled), list[str]()
    training.device, training.workers.rank = torch.device("cuda"), 1  # another rank than the one that computes

    def clock() -> float:
        events.append("clock")
        return 0.0

    monkeypatch.setattr("torch.cuda.synchronize", lambda device: events.append(f"wait for {device}"))
    monkeypatch.setattr("raydis.engine.state.time.perf_counter", clock)
    training.refit()
    assert events == ["wait for cuda", "clock"] * 2


def test_running_statistics_are_averaged_as_the_weights_are(tiny: Tiny, unlabelled: FactorDataset) -> None:
    training = start(tiny(method={"encoder": {"norm": "batch"}}, train={"ema_decay": 0.25}), unlabelled)
    raw, average = (dict(method.encoder.named_buffers()) for method in (training.method, training.average))
    name = next(name for name in raw if name.endswith("running_mean"))
    count = name.replace("running_mean", "num_batches_tracked")
    average[name].fill_(1.0)
    for step, value in ((1, 8.0), (2, 4.0)):  # decays 2/11 and 1/4, the cap
        training.step = step
        raw[name].fill_(value)
        raw[count].fill_(step)
        ema_update(training)
    expected = 0.25 * (2 / 11 * 1.0 + 9 / 11 * 8.0) + 0.75 * 4.0
    torch.testing.assert_close(average[name], torch.full_like(average[name], expected))
    assert average[count].item() == 2


@pytest.mark.parametrize(
    ("over", "said"),
    [
        (
            {
                "method": {"anchors": {"refit_images": 64}},
                "evaluation": {"rungs": [96]},
                "train": {"warmup_images": 95},
            },
            "",
        ),
        (
            {"method": {"anchors": {"refit_images": 65}}},
            "refit_images=65 is not reached within train.num_images=96: the",
        ),
        ({"method": {"anchors": {"refit_images": 65, "mode": "off"}}}, ""),
        ({"method": {"anchors": {"refit_images": 65, "shift_rate": 0.0}}}, ""),
        ({"evaluation": {"rungs": [32, 97]}}, "rungs=[32, 97] has [97] beyond train.num_images=96, which are never"),
        (
            {"train": {"warmup_images": 96}},
            "warmup_images=96 is not over within train.num_images=96: the learning rate",
        ),
    ],
)
def test_what_a_run_is_too_short_to_reach_is_told_once_at_its_start(
    tiny: Tiny, unlabelled: FactorDataset, caplog: pytest.LogCaptureFixture, over: dict[str, Any], said: str
) -> None:
    """Steps start after 0, 32 and 64 images, so that the last refit can be at 64."""
    short = {"num_images": 96, "batch_size": 32, **over.get("train", {})}
    config = tiny(**{"method": {"anchors": {"refit_images": 64}}, **over, "train": short})
    training = start(config, unlabelled)
    list(fit(training))
    assert [said in record.message for record in caplog.records] == ([True] if said else [])
    assert training.num_refits == int(training.method.refit_images == 64)


@pytest.mark.parametrize(("image_size", "fitted", "largest"), [(64, 4096, 512), (128, 1024, 128)])
def test_larger_images_are_taken_fewer_at_a_time(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, image_size: int, fitted: int, largest: int
) -> None:
    taken: list[int] = []

    def record(loader: Loader, indices: np.ndarray) -> Tensor:
        taken.append(len(indices))
        return gather(loader, indices)

    gather = Loader.gather
    monkeypatch.setattr(Loader, "gather", record)
    blank = np.broadcast_to(np.uint8(0), (5000, image_size, image_size, 3))
    method = {
        "encoder": {"stem_stride": 16},
        "unet": {"attention_sizes": [], "skip_dropout_sizes": []},
        "anchors": {"fit_samples": 600},
    }
    config = tiny(data={"image_size": image_size, "levels": {}}, first_stage={"kind": "pixel"}, method=method)
    training = start(config, ArrayDataset("blank", blank, None, fingerprint="blank"))
    assert sum(taken) == fitted
    assert largest / 2 < max(taken) <= largest
    for work, images in (
        (training.calibrated, 4096),
        (training.refit, 600),
        (lambda: encode_images(training.average, training.loader, np.arange(600)), 600),
    ):
        taken.clear()
        work()
        assert sum(taken) == images
        assert largest / 2 < max(taken) <= largest


def test_more_components_than_a_patch_has_values_are_refused(tiny: Tiny, unlabelled: FactorDataset) -> None:
    with pytest.raises(
        ConfigError, match=r"first_stage\.latent_dim=49 must not exceed the 48 values of a patch: lower it or raise"
    ):
        start(tiny(first_stage={"latent_dim": 49}), unlabelled)


def test_a_loss_that_is_not_finite_ends_the_run(tiny: Tiny, unlabelled: FactorDataset) -> None:
    training = start(tiny(), unlabelled)
    next(training.method.unet.parameters()).data.fill_(torch.nan)
    with pytest.raises(FitError, match=r"loss became nan by step 4 \(128 images\): lower train\.learning_rate"):
        list(fit(training))


# ---- several workers


def test_a_batch_that_workers_cannot_share_is_refused(tiny: Tiny, unlabelled: FactorDataset) -> None:
    with pytest.raises(ConfigError, match=r"batch_size=32 must be a multiple of the number of workers 3"):
        start(tiny(), unlabelled, rank=0, world_size=3)
