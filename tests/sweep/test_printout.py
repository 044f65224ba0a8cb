"""What a finished sweep prints, and that the commands it names are the right ones."""

from __future__ import annotations

import dataclasses
import io
import shlex
from typing import Any

import pytest
from rich.console import Console

from raydis.config.files import parse
from raydis.config.presets import expand
from raydis.engine.record import RunRecord
from raydis.metrics.protocol import PUBLISHED, SEARCH, Protocol
from raydis.metrics.scores import Scores, unscored
from raydis.registry import ModelRef
from raydis.registry.promotion import Decision, Promotion
from raydis.sweep.printout import print_result
from raydis.sweep.publish import Published
from raydis.sweep.result import SweepResult
from raydis.sweep.spec import SweepSpec
from raydis.sweep.summary import Replicates, TrialRecord

SEARCHED = {"method.num_units": {"kind": "int", "low": 4, "high": 8}}


def scores(dci: float, factor_vae: float, protocol: Protocol = SEARCH) -> Scores:
    empty = unscored("invalid", "-", protocol=protocol, num_images=324, data_fingerprint="shapes").to_dict()
    values = {"dci_disentanglement": dci, "factor_vae": factor_vae, "mig": 0.125}
    spread = {"dci_disentanglement": 0.0123, "factor_vae": 0.004, "mig": 0.002}
    return Scores.from_dict(
        {**empty, "status": "valid", "reason": None, "values": values, "num_draws": 3, "spread": spread}
    )


def spec_of(**over: Any) -> SweepSpec:
    tree = {"name": "quickstart", "run": expand({"preset": "tiny"}), "search": SEARCHED, "num_trials": 1}
    return parse(SweepSpec, tree | over, source="test")


@pytest.fixture
def result() -> SweepResult:
    """One trial, promoted."""
    best = TrialRecord(
        number=0,
        control=None,
        settings={"method.num_units": 6},
        state="complete",
        reason=None,
        run=RunRecord("valid", images_seen=512, loss=0.25, scores=scores(0.3, 0.5)),
        time_s=65.0,
        checkpoint="/runs/trial-0000/checkpoint",
    )
    promotion = Promotion(ModelRef("quickstart", 1), Decision(True, "quickstart@1 is the first best"))
    published = Published(scores(0.4, 0.6, PUBLISHED), promotion, "sweeps/s/traversal.png")
    return SweepResult("s", "/runs/sweeps/s", [best], {0}, [], best, published, interrupted=False)


def printed(result: SweepResult, spec: SweepSpec, storage: str = "runs") -> str:
    text = io.StringIO()
    print_result(result, spec, storage, Console(file=text, width=100))
    return text.getvalue()


def test_a_promoted_quickstart_can_be_looked_at_and_served(result: SweepResult) -> None:
    text = printed(result, spec_of())
    assert "best       trial 0, dci 0.300 ± 0.012, fvae 0.500 ± 0.004 (search protocol" in text
    assert "published  dci 0.400 ± 0.012, fvae 0.600 ± 0.004 (published protocol" in text
    assert "\nnext       python -m raydis traverse quickstart@1 -o traversal.png\n" in text
    assert "\n           serve run serve_configs/local.yaml\n" in text


def test_the_scores_shown_are_those_that_decide(result: SweepResult) -> None:
    text = printed(result, spec_of(objectives=[{"metric": "mig", "direction": "min"}]))
    assert "best       trial 0, mig 0.125 ± 0.002 (search protocol" in text
    assert "published  mig 0.125 ± 0.002 (published protocol" in text


def test_scores_of_one_draw_are_shown_without_a_spread(result: SweepResult) -> None:
    assert result.best is not None
    assert result.best.run.scores is not None
    single = dataclasses.replace(result.best.run.scores, num_draws=1, spread=None)
    best = dataclasses.replace(result.best, run=RunRecord("valid", scores=single), time_s=None)
    text = printed(dataclasses.replace(result, records=[best], best=best), spec_of())
    assert "best       trial 0, dci 0.300, fvae 0.500 (search protocol" in text


def test_another_storage_is_named_in_every_command(result: SweepResult) -> None:
    text = printed(result, spec_of(), storage="s3://lab/team")
    assert "python -m raydis traverse quickstart@1 --storage s3://lab/team -o traversal.png" in text
    assert "RAYDIS_STORAGE=s3://lab/team serve run serve_configs/local.yaml" in text


def test_places_with_spaces_and_quotes_are_printed_as_a_shell_reads_them(result: SweepResult) -> None:
    assert result.best is not None
    storage = "s3://lab/it's #1"
    best = dataclasses.replace(result.best, checkpoint=f"{storage}/sweeps/s/trial-0000/checkpoint")
    alone = dataclasses.replace(result, folder=f"{storage}/sweeps/s", best=best, published=None)
    text = printed(alone, spec_of(), storage=storage)
    (command,) = [line.removeprefix("next") for line in text.splitlines() if line.startswith("next ")]
    assert shlex.split(command)[3:5] == ["traverse", best.checkpoint]
    text = printed(dataclasses.replace(alone, unpublished="StoreError: x"), spec_of(), storage=storage)
    (command,) = [line.removeprefix("next") for line in text.splitlines() if line.startswith("next ")]
    assert shlex.split(command)[3:] == ["models", "register", best.checkpoint, "quickstart", "--storage", storage]


def test_a_model_that_the_shipped_service_does_not_serve_is_not_said_to_be_served(result: SweepResult) -> None:
    assert "serve run" not in printed(result, spec_of(name="sprites"))


def test_a_failed_publication_leaves_the_table_and_the_command_that_registers_the_best(result: SweepResult) -> None:
    failed = dataclasses.replace(result, published=None, unpublished="StoreError: no answer from the store")
    text = printed(failed, spec_of(), storage="elsewhere")
    assert "best         trial 0" in text
    assert "unpublished  StoreError: no answer from the store" in text
    command = "python -m raydis models register /runs/trial-0000/checkpoint quickstart --storage elsewhere"
    assert f"next         {command}\n" in text


def test_controls_with_seeds_have_a_table_of_means(result: SweepResult) -> None:
    mean, std = {"dci_disentanglement": 0.3, "factor_vae": 0.5}, {"dci_disentanglement": 0.02, "factor_vae": 0.04}
    rows = [Replicates("dyga-off", 3, 2, mean, std), Replicates("dead", 3, 0, {}, {})]
    text = printed(dataclasses.replace(result, replicates=rows), spec_of())
    [off] = [line for line in text.splitlines() if line.startswith("dyga-off")]
    assert off.split() == ["dyga-off", "2", "of", "3", "0.300", "±", "0.020", "0.500", "±", "0.040"]
    [dead] = [line for line in text.splitlines() if line.startswith("dead")]
    assert dead.split() == ["dead", "0", "of", "3"]
