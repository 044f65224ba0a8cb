from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch._dynamo.utils import counters

from raydis.checkpoint.open import open_checkpoint
from raydis.config import ComputeConfig, RunConfig
from raydis.data import FactorDataset
from raydis.engine.accelerate import WARMUP_CALLS, Captured, compile_blocks, naming_compiler_errors, resolve_mode
from raydis.engine.fit import fit
from raydis.engine.session import run_session
from raydis.engine.state import Training
from raydis.engine.step import Step
from raydis.errors import FitError, ResourceError
from raydis.methods.contract import Method
from raydis.models.blocks import ResBlock, TokenTransformer

CPU, GPU = torch.device("cpu"), torch.device("cuda")
Tiny = Callable[..., RunConfig]
Tensors = dict[str, Tensor]


class Tape:
    """A graph's stand-in without a GPU: a capture runs nothing, a replay runs what was captured on the same tensors."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def warm_up(self, call: Callable[[], Tensors]) -> Tensors:
        self.events.append("warm up")
        return call()

    def capture(self, call: Callable[[], Tensors]) -> Tensors:
        self.events.append("capture")
        self.call, self.output = call, {"loss": torch.full((), torch.nan)}
        return self.output

    def replay(self) -> None:
        self.events.append("replay")
        result = self.call()
        assert result.keys() == self.output.keys()
        for name, tensor in result.items():
            self.output[name].copy_(tensor)


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
        Training(tiny(compute={"compile": "graph"}), dataset, device=CPU)


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
    def split(tensors: Tensors) -> Tensors:
        torch._dynamo.graph_break()
        return tensors

    step = torch.compile(split, fullgraph=True, backend="eager")
    with pytest.raises(FitError, match=r"torch.compile cannot compile .*: set compute.compile=off or compute"):
        naming_compiler_errors(step)({"x": torch.ones(2)})
    with pytest.raises(ZeroDivisionError):
        naming_compiler_errors(lambda tensors: {"x": tensors["x"] * (1 / 0)})({"x": torch.ones(2)})


# ---- captured steps


def test_a_function_is_warmed_up_then_captured_once_then_replayed_on_each_calls_tensors() -> None:
    tape = Tape()
    captured = Captured(lambda given: {"loss": (given["a"] * given["b"]).sum()}, tape)
    called = [{"a": torch.full((3,), float(i)), "b": torch.full((3,), 2.0)} for i in range(WARMUP_CALLS + 3)]
    found = [captured(tensors)["loss"].item() for tensors in called]
    assert found == [6.0 * i for i in range(WARMUP_CALLS + 3)]
    assert tape.events == ["warm up"] * WARMUP_CALLS + ["capture"] + ["replay"] * 3


def summed(given: Tensors) -> Tensors:
    return {"loss": given["a"].sum()}


def test_other_shapes_or_names_than_those_captured_are_refused() -> None:
    captured = Captured(summed, Tape())
    captured({"a": torch.ones(4, 3)})
    with pytest.raises(ValueError, match=r"captured function of \{'a': \(4, 3\)\} was called with \{'a': \(1, 3\)\}"):
        captured({"a": torch.ones(1, 3)})  # copy_ alone would repeat it
    with pytest.raises(ValueError, match=r"of \{'a': \(4, 3\)\} was called with \{'b': \(4, 3\)\}"):
        captured({"b": torch.ones(4, 3)})


def test_a_step_that_cannot_be_captured_is_told_with_the_way_round_it() -> None:
    class Refuses(Tape):
        def capture(self, call: Callable[[], Tensors]) -> Tensors:
            raise RuntimeError("operation not permitted when stream is\ncapturing")

    captured = Captured(summed, Refuses())
    for _ in range(WARMUP_CALLS):
        captured({"a": torch.ones(1)})
    with pytest.raises(FitError, match=r"\(RuntimeError: operation not .* capturing\): set compute.compile=off or"):
        captured({"a": torch.ones(1)})


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


def on_tape(training: Training, tape: Tape) -> Step:
    """A step that is replayed as on a GPU: its rate a tensor, its moves a captured function."""
    for optimizer in training.optimizers.values():
        for group in optimizer.param_groups:
            group["lr"] = torch.tensor(group["lr"], dtype=torch.float64)  # as exact as the number
    return Step(training, graph=lambda: tape)


def trained_weights(method: Method) -> list[Tensor]:
    return [weight for move in method.moves for weight in move.weights]


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
        tape = Tape()
        losses = [progress.loss for progress in fit(training, step=on_tape(training, tape))]
        assert losses == [report.progress.loss for report in reports[:-1]][-len(losses) :]  # the last only scores
        assert tape.events.count("capture") == 1
        for ours, theirs in ((training.method, plain.method), (training.average, plain.average)):
            pairs = list(zip(trained_weights(ours), trained_weights(theirs), strict=True))
            assert pairs
            assert all(torch.equal(a, b) for a, b in pairs)
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
        assert layouts(trained_weights(resumed.method)) == layouts(trained_weights(resumed.average)) == {layout}
        saved = {**resumed.state().tensors, **resumed.average.state_dict()}
        wanted = {**checkpoint.training().tensors, **checkpoint.weights()}
        assert saved.keys() == wanted.keys()
        assert all(torch.equal(tensor, wanted[name]) for name, tensor in saved.items())
        losses = [progress.loss for progress in fit(resumed)]
        expected = [report.progress.loss for report in reports[2:-1]]  # the last only scores
        assert losses == (expected if layout == before else pytest.approx(expected, rel=1e-4))
        moments, num_weights = resumed.state().tensors, len(trained_weights(resumed.method))
        assert layouts(moments[f"optimizer.denoise.{i}.exp_avg"] for i in range(num_weights)) == {layout}


# ---- on a GPU


@pytest.mark.gpu
@pytest.mark.parametrize("mode", ["off", "graph", "full"])
@pytest.mark.filterwarnings("ignore")  # the debug mode's own warning, and the compiler's
def test_a_step_on_a_gpu_never_makes_the_host_wait(tiny: Tiny, unlabelled: FactorDataset, mode: str) -> None:
    config = tiny(**{**PLAN, "method": {"anchors": {"refit_images": 10**6}}}, compute={"compile": mode})
    training = Training(config, unlabelled, device=GPU)
    step, losses = Step(training), torch.zeros((), device=GPU)
    for _ in range(WARMUP_CALLS + 1):
        losses += step()["loss"]
    try:
        torch.cuda.set_sync_debug_mode("error")
        for _ in range(12):  # crosses an epoch's end
            losses += step()["loss"]
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
