"""Run a session, and send its records and checkpoints to Ray Train or Ray Tune."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from raydis.checkpoint.open import Checkpoint, open_checkpoint
from raydis.engine.session import run_session
from raydis.engine.state import Training


def report_session(
    library: ModuleType,
    training: Training,
    *,
    parent: dict[str, str] | None,
    before_checkpoint: Callable[[], None] = lambda: None,
    earlier: Callable[[Path], Checkpoint | None] = lambda work: None,
) -> int:
    """Run a session, from Ray's last checkpoint of it if there is one, and report it to Ray.

    Returns:
        The number of reports: 0 if the run had ended already, and its model was scored.

    Args:
        library: `ray.train` or `ray.tune`. Each has its own functions for reports and its own Checkpoint class.
        training: a fresh state.
        parent: see `run_session`.
        before_checkpoint: called before Ray stores a checkpoint. If it raises an exception, nothing is stored.
        earlier: returns the checkpoint to start from if Ray knows none; it may use the folder that it is given.

    Raises:
        RaydisError: of the session; see `run_session`.
    """
    if latest := library.get_checkpoint():
        with latest.as_directory() as folder:
            training.resume(open_checkpoint(Path(folder)))
    num_reports = 0
    with tempfile.TemporaryDirectory(prefix="raydis-") as workdir:
        if latest is None and (checkpoint := earlier(Path(workdir, "earlier"))):
            training.resume(checkpoint)
        for report in run_session(training, Path(workdir), parent=parent):
            folder = report.checkpoint
            if folder:
                before_checkpoint()
            kept = library.Checkpoint.from_directory(folder) if folder else None
            library.report(report.record.to_ray(), checkpoint=kept)
            num_reports += 1
            if folder:
                shutil.rmtree(folder)  # Ray has copied it to the storage
    return num_reports
