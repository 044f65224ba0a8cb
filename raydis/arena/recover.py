"""Read the trials that had ended in a sweep whose driver was killed before it could write its summary."""

from __future__ import annotations

import json
from typing import Any

from raydis.engine.record import RunRecord
from raydis.errors import MetricError
from raydis.store import Store

RESULT_FILE = "result.json"  # Tune's log of a trial: a JSON object in each line, the last report in the last


def ended_trials(store: Store, folder: str) -> list[dict[str, Any]]:
    """Return the rows that summary.json would hold of the trials that have ended, in order.

    Args:
        folder: key of the sweep's folder.
    """
    keys = sorted(key for key in store.list(f"{folder}/trial-") if key.endswith(f"/{RESULT_FILE}"))
    rows = (_row(store, key) for key in keys)
    return [row for row in rows if row is not None]


def _row(store: Store, key: str) -> dict[str, Any] | None:
    """Return the row of one trial; None if its last report is not that of its end, or was not written to its end."""
    lines = store.read(key).splitlines()
    try:
        last = json.loads(lines[-1])
        record = RunRecord.from_ray(last)
    except (IndexError, json.JSONDecodeError, MetricError):
        return None
    config = last.get("config") or {}
    if not record.finished or "number" not in config:
        return None
    folder = key.rpartition("/")[0]
    checkpoint = last.get("checkpoint_uri")
    if checkpoint is None and last.get("checkpoint_dir_name"):
        checkpoint = str(store.location / folder / last["checkpoint_dir_name"])
    complete = record.state == "valid"
    return {
        "number": config["number"],
        "control": config["control"],
        "settings": config["settings"],
        "state": "complete" if complete else "failed",
        "reason": None if complete else record.reason or record.state,
        "scores": record.scores.to_dict() if record.scores else None,
        "images_seen": record.images_seen or 0,
        "time_s": last.get("time_total_s"),
        "checkpoint": checkpoint,
    }
