from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch._dynamo.utils import counters

from raydis.config import ComputeConfig, RunConfig
from raydis.data import FactorDataset
from raydis.engine.accelerate import WARMUP_CALLS, Captured, compile_blocks, naming_compiler_errors, resolve_mode
from raydis.engine.checkpoint import open_checkpoint
from raydis.engine.fit import fit
from raydis.engine.session import run_session
from raydis.engine.state import Training
from raydis.errors import FitError, ResourceError
from raydis.models.blocks import ResBlock, TokenTransformer

CPU, GPU = torch.device("cpu"), torch.device("cuda")
Tiny = Callable[..., RunConfig]


class Tape:
    """A graph's stand-in without a GPU: a capture runs nothing, a replay runs what was captured on the same tensors."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def warm_up(self, call: Callable[[], Tensor]) -> Tensor:
        self.events.append("warm up")
        return call()

    def capture(self, call: Callable[[], Tensor]) -> Tensor:
        self.events.append("capture")
        self.call, self.output = call, torch.full((), torch.nan)
        return self.output

    def replay(self) -> None:
        self.events.append("replay")
        self.output.copy_(self.call())


# ---- what is asked for


@pytest.mark.parametrize(
    ("compute", "device", "expected"),
    [
        ({}, CPU, "off"),
        ({}, GPU, "off"),
        ({"compile": "graph"}, GPU, "graph"),
        ({"compile": "blocks", "num_workers": 2}, GPU, "blocks"),
        ({"compile": "blocks"}, CPU, "blocks"),
        ({"compile": "full"}, GPU, "full"),
    ],
)
def test_a_step_is_launched_as_asked_for(compute: dict, device: torch.device, expected: str) -> None:
    assert resolve_mode(ComputeConfig(**compute), device) == expected


@pytest.mark.parametrize("mode", ["graph", "full"])
def test_a_graph_without_a_gpu_or_of_several_workers_is_refused(mode: str) -> None:
    with pytest.raises(ResourceError, match=rf"compute.compile={mode} captures a CUDA graph.*computes on cpu: set"):
        resolve_mode(ComputeConfig(compile=mode), CPU)
    with pytest.raises(ValidationError, match=rf"compile={mode} captures the step of one worker, not of num_workers=2"):
        ComputeConfig(compile=mode, num_workers=2)


def test_a_graph_without_a_gpu_is_refused_before_any_work_on_the_data(tiny: Tiny) -> None:
    dataset = None  # is not asked for anything
    with pytest.raises(ResourceError, match=r"compute\.compile=graph captures a CUDA graph"):
        Training(tiny(compute={"compile": "graph"}), dataset, device=CPU)  # type: ignore[arg-type]


# ---- compiled blocks


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # torch asks for it, and hides the warning
def test_compiled_blocks_train_alike_and_share_code_where_their_shapes_are_equal(
    tiny: Tiny, unlabelled: FactorDataset
) -> None:
    """By a backend that runs the captured operations as they are, so that results are equal to the bit."""
    finals, blocks = [], []
    for compiled in (False, True):
        training = Training(tiny(train={"num_images": 160}), unlabelled, device=CPU)
        if compiled:
            counters.clear()
            torch._dynamo.reset()
            compile_blocks(training.method, backend="eager")
            blocks = [m for m in training.method.modules() if isinstance(m, ResBlock | TokenTransformer)]
        losses = [progress.loss for progress in fit(training)]
        finals.append((losses, training.method.state_dict()))
    assert training.num_refits == 1
    assert finals[0][0] == finals[1][0]
    assert finals[0][1].keys() == finals[1][1].keys()  # checkpoints know nothing of it
    assert all(torch.equal(tensor, finals[1][1][name]) for name, tensor in finals[0][1].items())
    assert 0 < counters["stats"]["unique_graphs"] < len(blocks) == 14


@pytest.mark.slow
@pytest.mark.timeout(1800)  # minutes of C++
@pytest.mark.filterwarnings("ignore")  # the compiler's own deprecations, which it would report as failures
def test_code_of_the_default_compiler_trains_alike_within_rounding(tiny: Tiny, unlabelled: FactorDataset) -> None:
    losses = []
    for mode in ("off", "blocks"):
        training = Training(tiny(train={"num_images": 160}, compute={"compile": mode}), unlabelled, device=CPU)
        losses.append([progress.loss for progress in fit(training)])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_what_the_compiler_refuses_is_told_with_the_way_round_it() -> None:
    def split(x: Tensor) -> Tensor:
        torch._dynamo.graph_break()
        return x

    step = torch.compile(split, fullgraph=True, backend="eager")
    with pytest.raises(FitError, match=r"torch.compile cannot compile .*: set compute.compile=off or compute"):
        naming_compiler_errors(step)(torch.ones(2))
    with pytest.raises(ZeroDivisionError):
        naming_compiler_errors(lambda: torch.tensor(1 / 0))()


# ---- captured steps


def test_a_function_is_warmed_up_then_captured_once_then_replayed_on_each_calls_tensors() -> None:
    tape = Tape()
    captured = Captured(lambda a, b: (a * b).sum(), tape)
    found = [captured(torch.full((3,), float(i)), torch.full((3,), 2.0)).item() for i in range(WARMUP_CALLS + 3)]
    assert found == [6.0 * i for i in range(WARMUP_CALLS + 3)]
    assert tape.events == ["warm up"] * WARMUP_CALLS + ["capture"] + ["replay"] * 3


def test_other_shapes_than_those_captured_are_refused() -> None:
    captured = Captured(lambda a: a.sum(), Tape())
    captured(torch.ones(4, 3))
    with pytest.raises(ValueError, match=r"captured function of \(4, 3\) was called with \(1, 3\)"):
        captured(torch.ones(1, 3))  # copy_ alone would repeat it


def test_a_step_that_cannot_be_captured_is_told_with_the_way_round_it() -> None:
    class Refuses(Tape):
        def capture(self, call: Callable[[], Tensor]) -> Tensor:
            raise RuntimeError("operation not permitted when stream is\ncapturing")

    captured = Captured(lambda a: a.sum(), Refuses())
    for _ in range(WARMUP_CALLS):
        captured(torch.ones(1))
    with pytest.raises(FitError, match=r"\(RuntimeError: operation not .* capturing\): set compute.compile=off or"):
        captured(torch.ones(1))


PLAN = {
    "method": {"unet": {"dropout_rate": 0.1}, "anchors": {"mode": "ramp", "refit_images": 96}},
    "train": {
        "num_images": 480,
        "report_images": 96,
        "checkpoint_images": 192,
        "learning_rate_schedule": "cosine",
        "max_grad_norm": 1.0,
    },
    "evaluation": {"protocol": "none"},
}


def on_tape(training: Training) -> Tape:
    """Replay the training's steps as on a GPU: its rate a tensor, its update a captured function."""
    tape = Tape()
    for group in training.optimizer.param_groups:
        group["lr"] = torch.tensor(group["lr"], dtype=torch.float64)  # as exact as the number
    captured = Captured(lambda *inputs: training.update(training.method, *inputs), tape)
    training._update = lambda network, *inputs: captured(*inputs)
    return tape


def test_a_replayed_run_is_the_plain_run_through_refits_and_a_resumed_half(
    tiny: Tiny, unlabelled: FactorDataset, tmp_path: Path
) -> None:
    """Ramp, mixtures, learning rate and dropout all change after the capture, at the tensors that it holds."""
    plain = Training(tiny(**PLAN), unlabelled, device=CPU)
    reports = list(run_session(plain, tmp_path))
    runs = {"whole": Training(tiny(**PLAN), unlabelled, device=CPU)}
    resumed = runs["resumed"] = Training(tiny(**PLAN), unlabelled, device=CPU)
    folder = reports[1].checkpoint
    assert folder is not None
    resumed.resume(open_checkpoint(folder))
    for training in runs.values():
        tape = on_tape(training)
        losses = [progress.loss for progress in fit(training)]
        assert losses == [report.progress.loss for report in reports[:-1]][-len(losses) :]  # the last only scores
        assert tape.events.count("capture") == 1
        assert all(torch.equal(a, b) for a, b in zip(training._trained, plain._trained, strict=True))
        assert all(torch.equal(a, b) for a, b in zip(training._averaged, plain._averaged, strict=True))
    assert plain.num_refits == 4


# ---- layout


def layouts(tensors: Iterable[Tensor]) -> set[bool]:
    """Whether maps' weights have their channels innermost; 1x1 convolutions have both layouts at once."""
    wide = [tensor for tensor in tensors if tensor.ndim == 4 and tensor.shape[1] > 1 and tensor.shape[2] > 1]
    return {tensor.is_contiguous(memory_format=torch.channels_last) for tensor in wide}


@pytest.mark.parametrize("before", [False, True])
def test_the_layout_changes_a_run_by_rounding_alone_and_a_checkpoint_opens_in_both(
    tiny: Tiny, unlabelled: FactorDataset, tmp_path: Path, before: bool
) -> None:
    method = {"unet": {"skip_dropout_rate": 0.0}, "anchors": {"mode": "off"}}  # drops are drawn in the layout's order
    configs = {
        layout: tiny(**{**PLAN, "method": method}, compute={"channels_last": layout}) for layout in (False, True)
    }
    written = Training(configs[before], unlabelled, device=CPU)
    reports = list(run_session(written, tmp_path))
    assert reports[1].checkpoint is not None
    checkpoint = open_checkpoint(reports[1].checkpoint)
    for layout, config in configs.items():
        resumed = Training(config, unlabelled, device=CPU)
        resumed.resume(checkpoint)
        assert layouts(resumed._trained) == layouts(resumed._averaged) == {layout}
        saved = {**resumed.state().tensors, **resumed.average.state_dict()}
        wanted = {**checkpoint.training().tensors, **checkpoint.weights()}
        assert saved.keys() == wanted.keys()
        assert all(torch.equal(tensor, wanted[name]) for name, tensor in saved.items())
        losses = [progress.loss for progress in fit(resumed)]
        expected = [report.progress.loss for report in reports[2:-1]]  # the last only scores
        assert losses == (expected if layout == before else pytest.approx(expected, rel=1e-4))
        assert layouts(resumed.state().tensors[f"optimizer.{i}.exp_avg"] for i in range(len(resumed._trained))) == {
            layout
        }


# ---- on a GPU


@pytest.mark.gpu
@pytest.mark.parametrize("mode", ["off", "graph", "full"])
@pytest.mark.filterwarnings("ignore")  # the debug mode's own warning, and the compiler's
def test_a_step_on_a_gpu_never_makes_the_host_wait(tiny: Tiny, unlabelled: FactorDataset, mode: str) -> None:
    config = tiny(**{**PLAN, "method": {"anchors": {"refit_images": 10**6}}}, compute={"compile": mode})
    training = Training(config, unlabelled, device=GPU)
    losses = torch.zeros((), device=GPU)
    for _ in range(WARMUP_CALLS + 1):
        losses += training.advance(training.method)
    try:
        torch.cuda.set_sync_debug_mode("error")
        for _ in range(12):  # crosses an epoch's end
            losses += training.advance(training.method)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.isfinite(losses)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.filterwarnings("ignore")  # torch's own, which differ from one build for GPUs to the next
def test_a_captured_run_on_a_gpu_is_the_plain_run(tiny: Tiny, unlabelled: FactorDataset, precision: str) -> None:
    losses = {}
    for mode in ("off", "graph"):
        config = tiny(**{**PLAN, "train": {**PLAN["train"], "precision": precision}}, compute={"compile": mode})
        training = Training(config, unlabelled, device=GPU)
        losses[mode] = [progress.loss for progress in fit(training)]
        assert training.num_refits == 4
    assert losses["graph"] == pytest.approx(losses["off"], rel=1e-2 if precision == "bf16" else 1e-3)
