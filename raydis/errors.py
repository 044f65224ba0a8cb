"""The errors of raydis, the exit codes of its commands, and `explain`, which describes any exception in one line.

The line says what failed, what was found and what to do. `raydis.edge` prints it when a command fails. The reason of a
failed trial and the log of a service replica contain the same text. This file recognises the exceptions of libraries
by the name of their class, so that it imports none of the libraries.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from typing import ClassVar

MAX_LINE = 600  # characters that are shown of the message of another library

OK, UNEXPECTED, USAGE = 0, 1, 2
SWEEP_FAILED = 3  # 4 is reserved for a sweep that ends because its budget is used up
DATA, STORAGE, RESOURCES, FIT, METRICS, CHECKPOINT, REGISTRY, OUTPUT = range(10, 18)
HUNG_UP, INTERRUPTED, CLOSED_PIPE, TERMINATED = 129, 130, 141, 143  # 128 + the signal's number, as shells count

EXIT_CODES = {
    OK: "The command did what was asked.",
    UNEXPECTED: "Unexpected: a fault in raydis, or an unknown error of a library.",
    USAGE: "The command line, a configuration or an edit is wrong.",
    SWEEP_FAILED: "The sweep ended without a trial to rank, or the best was not published.",
    DATA: "A data set or an image cannot be read.",
    STORAGE: "Storage or a disk is full, read-only, not permitted or unreachable.",
    RESOURCES: "Memory, CPUs, GPUs or nodes are lacking, or Ray does not work.",
    FIT: "The training failed.",
    METRICS: "Codes and factors cannot be scored.",
    CHECKPOINT: "A checkpoint is missing or damaged.",
    REGISTRY: "A model, version or alias does not exist, or may not move as asked.",
    OUTPUT: "The output file cannot be written.",
    HUNG_UP: "The terminal was closed (SIGHUP).",
    INTERRUPTED: "Interrupted from the keyboard (SIGINT).",
    CLOSED_PIPE: "The reader of the output closed its pipe (SIGPIPE).",
    TERMINATED: "Terminated (SIGTERM).",
}


class RaydisError(Exception):
    """The base class of all errors that raydis raises. A command prints the message and exits with `exit_code`."""

    exit_code: ClassVar[int] = UNEXPECTED


class ConfigError(RaydisError):
    """A configuration has an unknown key, a wrong type, or a value out of range."""

    exit_code = USAGE


class EditError(RaydisError):
    """An edit names something that does not exist, its image has the wrong shape, or a setting is out of range."""

    exit_code = USAGE


class DataError(RaydisError):
    """A file of a data set is missing, truncated, or does not have the official format."""

    exit_code = DATA


class PictureError(DataError):
    """A picture cannot be decoded. The message is the end of a sentence that begins with "the picture"."""


class UnknownPicture(PictureError):
    """The bytes have none of the allowed picture formats."""


class TooManyPixels(PictureError):
    """A picture of an allowed format has too many pixels to be decoded."""


class ImageError(RaydisError):
    """The bytes are not an image that the model can use."""

    exit_code = DATA


class ImageTooLarge(RaydisError):
    """An image of an allowed format has too many pixels to be decoded."""

    exit_code = DATA


class FitError(RaydisError):
    """Training or a mixture fit failed: a non-finite loss, or a state that cannot be continued."""

    exit_code = FIT


class SweepError(RaydisError):
    """A sweep ended without a trial that could be ranked, or without publishing the best one."""

    exit_code = SWEEP_FAILED


class MetricError(RaydisError):
    """Codes or factors cannot be scored: unequal lengths, factors that are floats, or no factor that varies."""

    exit_code = METRICS


class CheckpointError(RaydisError):
    """A checkpoint is missing, incomplete, or does not match its manifest."""

    exit_code = CHECKPOINT


class StoreError(RaydisError):
    """A request to the storage failed: a missing key, no permission, or an unmet condition of a write."""

    exit_code = STORAGE


class StoreMissing(StoreError):
    """Nothing is stored under the key."""


class StoreConflict(StoreError):
    """A conditional write failed because the key already exists, or because its tag is no longer the given one."""


class LeaseTaken(StoreError):
    """Another process holds the lease and keeps renewing it."""


class LeaseLost(StoreError):
    """The lease was taken over, because its holder did not renew it in time."""


class RegistryError(RaydisError):
    """A model name, version or alias does not exist, or may not move as asked."""

    exit_code = REGISTRY


class ResourceError(RaydisError):
    """The machine or cluster lacks what the configuration asks for."""

    exit_code = RESOURCES


class ClusterError(RaydisError):
    """The cluster lost the workers of a run, or failed to start them, too often. Starting the run again may help."""

    exit_code = RESOURCES


class OutputError(RaydisError):
    """The output file of a command cannot be written."""

    exit_code = OUTPUT


@dataclass(frozen=True)
class Explained:
    """A description of an exception for users.

    Attributes:
        line: what failed, what was found, what to do; one line.
        exit_code: the exit code of a command that fails with this exception, a key of EXIT_CODES.
    """

    line: str
    exit_code: int


_ADVICE = {
    errno.ENOSPC: "make room there, or choose another folder",
    errno.EDQUOT: "make room in your quota, or choose another folder",
    errno.EACCES: "change its permissions, or choose another path",
    errno.EPERM: "change its permissions, or choose another path",
    errno.EROFS: "choose a folder that can be written",
    errno.EMFILE: "raise the limit, e.g. with `ulimit -n 65536`",
    errno.ENFILE: "raise the machine's limit fs.file-max, or close programs",
    errno.ENAMETOOLONG: "choose a shorter one",
    errno.EISDIR: "name a file",
    errno.ENOTDIR: "a part of the path is a file where a folder is needed",
    errno.ENOENT: "correct the path",
    errno.EIO: "the disk or the connection to it may be failing",
    errno.ENOMEM: "use smaller batches, fewer processes, or a machine with more memory",
}
_REFUSALS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}
_CODES = {errno.EMFILE: RESOURCES, errno.ENFILE: RESOURCES, errno.ENOMEM: RESOURCES}
_LESS_MEMORY = "use a smaller train.batch_size or model, fewer runs at once, or a larger machine"
_NO_MEMORY = ("out of memory", "can't allocate memory", "bad_alloc")  # torch raises RuntimeError with these
_RAY_ADVICE = {
    "OutOfMemoryError": f"Ray's memory monitor ended a process because the node ran out of memory: {_LESS_MEMORY}",
    "OutOfDiskError": "the disk that Ray spills to is full: make room, or set RAY_TMPDIR to a folder with room",
    "ObjectStoreFullError": "Ray's object store is full: run fewer trials at once, or give the node more memory",
    "WorkerCrashedError": "a process of Ray died, often for lack of memory: see the node's logs, and start again",
    "NodeDiedError": "a node of the cluster died: start again",
    "LocalRayletDiedError": "Ray's process on this node died: start again",
    "GetTimeoutError": "the cluster did not answer in time: start again",
}


def os_reason(error: OSError) -> str:
    """Return the system's message and advice, such as `No space left on device: make room there, or ...`."""
    if advice := _ADVICE.get(error.errno or 0):
        return f"{os.strerror(error.errno or 0)}: {advice}"  # not the library's own text, which may be long (pyarrow)
    return error.strerror or str(error) or type(error).__name__


def final_error(error: BaseException) -> RaydisError | None:
    """Return the error as a RaydisError if trying again cannot help; else None.

    This holds for every RaydisError, and for a full or read-only disk, which becomes a StoreError.
    """
    if isinstance(error, RaydisError):
        return error
    if isinstance(error, OSError) and error.errno in _REFUSALS:
        return StoreError(explain(error).line)
    return None


def explain(error: BaseException) -> Explained:
    """Describe any exception in one line.

    A RaydisError keeps its message, well-known exceptions of libraries get advice, and others are described by type and
    message.
    """
    families = _families(error)
    if families & {"ray.RayError", "ray.TrainingFailedError", "ray.TuneError"}:  # may be of the cause's class, too
        return _explain_ray(error, families)
    if isinstance(error, RaydisError):
        return Explained(one_line(str(error), limit=None) or type(error).__name__, error.exit_code)
    text = one_line(str(error))
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and any(word in text for word in _NO_MEMORY)):
        found = ". ".join(text.split(". ")[:3])  # CUDA's goes on with a page about its allocator
        return Explained(f"out of memory ({found or 'no details'}): {_LESS_MEMORY}", RESOURCES)
    if isinstance(error, OSError) and error.errno in _ADVICE:
        path = error.filename2 or error.filename
        what = "a file operation failed" if path is None else f"cannot use {path}"
        return Explained(one_line(f"{what}: {os_reason(error)}"), _CODES.get(error.errno, STORAGE))
    if "pydantic_core.ValidationError" in families:
        return Explained(f"a stored file does not have the expected form: {text}", DATA)
    if "Traceback (most recent call last)" in text:  # from another process; its last line names the error
        return Explained(_last_line(error), UNEXPECTED)
    return Explained(f"{type(error).__name__}: {text}" if text else type(error).__name__, UNEXPECTED)


def one_line(text: str, *, limit: int | None = MAX_LINE) -> str:
    """Return the text without line breaks, cut to at most `limit` characters."""
    text = " ".join(text.split())
    return text if limit is None or len(text) <= limit else f"{text[: limit - 4]} ..."


def _explain_ray(error: BaseException, families: set[str]) -> Explained:
    """Describe the exception of the worker that Ray has wrapped; without one, describe Ray's error by its name."""
    failures = getattr(error, "worker_failures", None) or {}  # set by Ray Train; keys are ranks
    causes = [failures[rank] for rank in sorted(failures)]
    causes += [getattr(error, name, None) for name in ("controller_failure", "cause")]
    for cause in causes:
        if isinstance(cause, BaseException) and cause is not error:
            return explain(cause)
    for family in sorted(families):
        if advice := _RAY_ADVICE.get(family.removeprefix("ray.")):
            return Explained(advice, RESOURCES)
    return Explained(f"Ray failed with {type(error).__name__}: {_last_line(error)}", RESOURCES)


def _last_line(error: BaseException) -> str:
    return one_line(str(error).strip().rpartition("\n")[2])


def _families(error: BaseException) -> set[str]:
    """Return `library.Class` for the class of the exception and for all its base classes."""
    return {f"{kind.__module__.partition('.')[0]}.{kind.__name__}" for kind in type(error).__mro__}
