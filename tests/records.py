"""Records of runs that nobody trained."""

from __future__ import annotations

from typing import Any

from raydis.engine.record import RunRecord
from raydis.metrics.protocol import SEARCH
from raydis.metrics.scores import Scores, unscored


def scores_of(**values: float) -> Scores:
    """Valid scores of the `search` protocol with these numbers, by name."""
    empty = unscored("invalid", "-", protocol=SEARCH, num_images=324, data_fingerprint="shapes").to_dict()
    return Scores.from_dict(empty | {"status": "valid", "reason": None, "values": values})


def running(images_seen: int | None = None, **numbers: Any) -> RunRecord:
    """Return the record of a run that goes on."""
    return RunRecord(state="running", images_seen=images_seen, **numbers)


def finished(images_seen: int = 512, **values: float) -> RunRecord:
    """Return the last record of a run with these scores."""
    return RunRecord(state="valid", images_seen=images_seen, loss=0.1, scores=scores_of(**values))
