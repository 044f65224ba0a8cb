"""Score how far runs agree with each other, without factors: the metric UDR (see `raydis.metrics.udr`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from raydis.errors import MetricError
from raydis.evaluation.inputs import Codes
from raydis.evaluation.result import Estimate, Run
from raydis.metrics.udr import UDR, udr

NOTE = "UDR compares the runs with each other, so its values depend on each other and have no interval"


def with_udr(scored: Sequence[Run], runs: Sequence[Codes], *, seed: int) -> tuple[Run, ...]:
    """Return the scores of runs, with UDR behind the other estimates of each.

    Raises:
        MetricError: there is only one run.
    """
    if len(runs) < 2:
        raise MetricError(
            f"udr compares runs, and {runs[0].name} is the only one: give the codes of at least two training seeds"
        )
    found = udr([run.scalars for run in runs], rng=np.random.default_rng(seed))
    values = [None] * len(runs) if found.scores is None else found.scores.tolist()
    estimates = [Estimate(UDR.name, value, reason=found.reason) for value in values]
    return tuple(
        replace(run, estimates=(*run.estimates, estimate)) for run, estimate in zip(scored, estimates, strict=True)
    )
