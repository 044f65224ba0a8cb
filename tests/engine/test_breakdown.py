from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from raydis.config import RunConfig
from raydis.data import FactorDataset
from raydis.engine.breakdown import PHASES, Breakdown, Ceilings, Phase, describe, take_apart
from raydis.engine.counters import OpCounter
from raydis.engine.state import Training
from raydis.engine.step import forward, make_moves, next_batch
from raydis.methods.contract import Batch, Losses, Move


def counted(call: Callable[[], object]) -> tuple[int, int]:
    with OpCounter() as counter:
        call()
    return counter.num_ops, counter.num_bytes


def test_operations_and_bytes_are_counted_by_what_they_read_and_write() -> None:
    a, b = torch.ones(10, 20), torch.ones(20, 30)
    assert counted(lambda: a @ b) == (1, 4 * (200 + 600 + 300))
    assert counted(lambda: a.t()) == (0, 0)  # a view starts nothing
    assert counted(lambda: a.add_(1.0)) == (1, 4 * 2 * 200)
    assert counted(lambda: torch.empty(1000)) == (0, 0)
    assert counted(lambda: a.copy_(torch.zeros(20))) == (2, 4 * 20 + 4 * (200 + 20 + 200))  # a target counts as read


def test_adamw_reads_four_tensors_a_weight_and_writes_three() -> None:
    weight = nn.Parameter(torch.ones(1000))
    optimizer = torch.optim.AdamW([weight], fused=True)
    for _ in range(2):
        weight.grad = torch.ones(1000)
        num_ops, num_bytes = counted(optimizer.step)
    assert (num_ops, num_bytes) == (2, 28 * 1000 + 4 + 8)  # and the number of steps, read twice, written once


def test_floors_are_work_over_ceilings_and_a_graph_has_none_of_launches() -> None:
    phases = {name: Phase(seconds=0.1, num_ops=100, num_flops=10**9, num_bytes=10**8) for name in PHASES}
    ceilings = Ceilings(flops_per_s=1e11, bytes_per_s=1e10, op_s=1e-5)
    found = Breakdown(8, "fp32", "cpu", "off", phases, 0.2, ceilings)
    assert found.floors == pytest.approx({"matrix products": 0.04, "bytes, were none cached": 0.04, "launches": 0.004})
    assert found.flops_per_s == pytest.approx(2e10)
    held = {mode: set(replace(found, mode=mode).floors) for mode in ("blocks", "graph", "full")}
    compiled = {"matrix products"}
    assert held == {"blocks": compiled, "graph": {*compiled, "bytes, were none cached"}, "full": compiled}
    text = describe(found)
    assert "40 images/s, 0.500 GFLOP an image" in text
    assert "achieved 20.0 GFLOP/s, 20.0 % of the 100.0 of a large matrix product here" in text
    assert "predicted floor 40.000 ms a step, were all of it matrix products at that rate; measured 200.000 ms" in text
    assert text.count(" 25.0 ") == 4


def test_a_step_is_taken_apart_without_leaving_the_run(
    tiny: Callable[..., RunConfig], unlabelled: FactorDataset
) -> None:
    training = Training(tiny(), unlabelled, device=torch.device("cpu"))
    averaged = training.average.moves[0].weights[0]
    before = averaged.clone()
    found = take_apart(training, num_steps=2)
    assert tuple(found.phases) == PHASES
    assert all(phase.seconds > 0 and phase.num_ops > 0 and phase.num_bytes > 0 for phase in found.phases.values())
    assert found.phases["data"].num_flops == found.phases["optimiser"].num_flops == 0
    with FlopCounterMode(display=False) as counter:
        forward(training, training.method.moves[0], next_batch(training))
    # Without the attention of a CPU, that counter's sum is a little less.
    assert counter.get_total_flops() <= found.phases["forward"].num_flops < 1.05 * counter.get_total_flops()
    assert 1.7 < found.phases["backward"].num_flops / found.phases["forward"].num_flops < 2.1
    assert found.step_s > 0
    assert training.step == 3 + 2 + 2 + 4 + 2  # warm-up, timed, counted, warm-up, timed
    assert not torch.equal(before, averaged)


def test_parts_of_a_batch_are_those_of_the_run_and_time_bounds_the_steps(
    tiny: Callable[..., RunConfig], unlabelled: FactorDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = Training(tiny(compute={"max_batch_size": 8}), unlabelled, device=torch.device("cpu"))
    sizes: list[int] = []

    def record(training: Training, move: Move, part: Batch) -> Losses:
        sizes.append(len(part.images))
        return forward(training, move, part)

    monkeypatch.setattr("raydis.engine.step.forward", record)
    found = take_apart(training, num_steps=100, limit_s=0.0)
    assert training.step == 3 + 3 + 2 + 4 + 3
    assert sizes == [8] * 4 * training.step
    assert found.phases["forward"].num_flops > found.phases["optimiser"].num_flops == 0


def test_each_move_ends_with_the_time_of_its_own_optimiser(
    tiny: Callable[..., RunConfig], unlabelled: FactorDataset
) -> None:
    config = tiny(method={"kind": "factor_vae", "discriminator_dims": [8]})
    training, marks = Training(config, unlabelled, device=torch.device("cpu")), list[str]()
    make_moves(training, next_batch(training), marks.append)
    assert marks == ["forward", "backward", "optimiser"] * 2
