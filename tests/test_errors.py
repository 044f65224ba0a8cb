"""What becomes of any exception: its line and its exit code."""

from __future__ import annotations

import ast
import errno
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import BaseModel, ValidationError
from ray.exceptions import NodeDiedError, OutOfMemoryError, RayTaskError
from ray.train import ControllerError, WorkerGroupError

from raydis import errors
from raydis.errors import EXIT_CODES, DataError, RaydisError, StoreError, StoreMissing, explain, final_error, os_reason

PACKAGE = Path(errors.__file__).parent
CLASSES = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, RaydisError)]
SIGNALS = {129, 130, 141, 143}


class Count(BaseModel):
    """A stored number."""

    number: int


def from_worker(cause: Exception) -> RayTaskError:
    text = f"ray::work() (pid=1)\n  File 'a.py', line 1, in work\n{type(cause).__name__}: {cause}"
    return RayTaskError("work", text, cause).as_instanceof_cause()


# ---- exit codes


def test_every_exit_code_of_the_table_is_used_and_every_one_that_is_used_stands_in_it() -> None:
    assert {kind.exit_code for kind in CLASSES} | {0, 1} | SIGNALS == set(EXIT_CODES)


def test_scripts_may_rely_on_these_codes() -> None:
    names = ("ConfigError", "SweepError", "DataError", "StoreError", "ResourceError", "FitError", "MetricError")
    names = (*names, "CheckpointError", "RegistryError", "OutputError")
    assert {name: getattr(errors, name).exit_code for name in names} == {
        "ConfigError": 2,
        "SweepError": 3,
        "DataError": 10,
        "StoreError": 11,
        "ResourceError": 12,
        "FitError": 13,
        "MetricError": 14,
        "CheckpointError": 15,
        "RegistryError": 16,
        "OutputError": 17,
    }
    assert StoreMissing.exit_code == StoreError.exit_code


def test_every_error_class_stands_in_one_file() -> None:
    known = {kind.__name__ for kind in CLASSES}
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef) and path != Path(errors.__file__):
                parents = {ast.unparse(base).rpartition(".")[2] for base in node.bases}
                assert not parents & known, f"{path} defines {node.name}"


# ---- lines


def test_an_error_of_ours_is_its_own_message_in_one_line() -> None:
    long = "a" * 5000
    assert explain(DataError(f"{long} is\n  truncated")) == errors.Explained(f"{long} is truncated", 10)


@pytest.mark.parametrize(
    ("number", "words", "code"),
    [
        (errno.ENOSPC, "No space left on device: make room", 11),
        (errno.EDQUOT, "Disk quota exceeded: make room in your quota", 11),
        (errno.EACCES, "Permission denied: change its permissions", 11),
        (errno.EROFS, "Read-only file system: choose a folder that can be written", 11),
        (errno.ENAMETOOLONG, "File name too long: choose a shorter one", 11),
        (errno.EISDIR, "Is a directory: name a file", 11),
        (errno.ENOTDIR, "Not a directory: a part of the path is a file", 11),
        (errno.EMFILE, "Too many open files: raise the limit", 12),
    ],
)
def test_what_the_system_refused_is_told_with_the_path_and_what_helps(number: int, words: str, code: int) -> None:
    told = explain(OSError(number, os.strerror(number), "/mnt/a b/c"))
    assert told.line.startswith("cannot use /mnt/a b/c: ")
    assert words in told.line
    assert told.exit_code == code
    assert (
        explain(OSError(number, os.strerror(number))).line
        == f"a file operation failed: {os_reason(OSError(number, os.strerror(number)))}"
    )


def test_a_librarys_words_for_a_full_disk_are_the_systems() -> None:
    pyarrow = OSError(errno.ENOSPC, "Error writing bytes to file. Detail: [errno 28] No space left on device")
    assert explain(pyarrow).line.startswith("a file operation failed: No space left on device: make room there")


def test_of_a_rename_the_new_name_is_told(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="File name too long") as caught:
        os.replace(__file__, tmp_path / ("x" * 300))
    assert f"{tmp_path}/xxx" in explain(caught.value).line


def test_memory_that_numpy_python_and_torch_do_not_get_is_told_alike() -> None:
    with pytest.raises(MemoryError) as of_numpy:
        np.empty(1 << 60, np.uint8)
    with pytest.raises(RuntimeError) as of_torch:
        torch.empty(1 << 60, dtype=torch.uint8)
    cuda = torch.cuda.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 15.78 GiB of which 4.75 MiB is "
        "free. Process 7 has 15.77 GiB memory in use. See documentation for PYTORCH_CUDA_ALLOC_CONF"
    )
    told = [explain(error) for error in (of_numpy.value, of_torch.value, cuda, MemoryError())]
    assert all(one.line.startswith("out of memory (") and one.exit_code == 12 for one in told)
    assert all("train.batch_size" in one.line for one in told)
    assert "1.00 EiB" in told[0].line
    assert str(1 << 60) in told[1].line
    assert "15.78 GiB" in told[2].line
    assert "PYTORCH_CUDA_ALLOC_CONF" not in told[2].line


def test_a_runtime_error_about_anything_else_is_unexpected() -> None:
    assert explain(RuntimeError("mat1 and mat2\nshapes")) == errors.Explained("RuntimeError: mat1 and mat2 shapes", 1)
    assert explain(KeyError("a")) == errors.Explained("KeyError: 'a'", 1)
    assert explain(ZeroDivisionError()) == errors.Explained("ZeroDivisionError", 1)
    assert len(explain(ValueError("a" * 5000)).line) < 700
    remote = RuntimeError("it said\nTraceback (most recent call last):\n  File 'a.py', line 1\nValueError: boom")
    assert explain(remote) == errors.Explained("ValueError: boom", 1)


def test_a_stored_file_of_another_form_is_told_by_its_field() -> None:
    with pytest.raises(ValidationError) as caught:
        Count.model_validate({"number": "many"})
    told = explain(caught.value)
    assert told.exit_code == 10
    assert "number" in told.line
    assert "\n" not in told.line


def test_what_a_worker_raised_is_told_instead_of_rays_wrapper() -> None:
    full = OSError(errno.ENOSPC, "No space left on device", "/a")
    assert explain(from_worker(full)) == explain(full)
    assert explain(from_worker(DataError("a.npz is damaged"))) == errors.Explained("a.npz is damaged", 10)
    assert explain(from_worker(KeyError("a"))).line == "KeyError: 'a'"
    group = WorkerGroupError("Training failed", {1: KeyError("b"), 0: DataError("of rank 0")})
    assert explain(group).line == "of rank 0"
    assert explain(ControllerError(TimeoutError("no start"))).line == "TimeoutError: no start"


def test_a_dead_node_and_rays_memory_monitor_are_told_without_its_page_of_text() -> None:
    node = explain(NodeDiedError("node 5 died\nand a page"))
    assert node == errors.Explained("a node of the cluster died: start again", 12)
    memory = explain(OutOfMemoryError("Task was killed due to the node running low on memory.\na page"))
    assert memory.exit_code == 12
    assert "the node ran out of memory" in memory.line


def test_errors_are_known_without_importing_the_libraries_that_raise_them() -> None:
    imported = {
        name.name
        for node in ast.walk(ast.parse(Path(errors.__file__).read_text()))
        if isinstance(node, ast.Import)
        for name in node.names
    }
    assert imported == {"errno", "os"}


def test_only_what_a_repetition_would_meet_again_is_final() -> None:
    ours = DataError("a.npz is damaged")
    assert final_error(ours) is ours
    full = final_error(OSError(errno.ENOSPC, "No space left on device", "/a"))
    assert isinstance(full, StoreError)
    assert str(full).startswith("cannot use /a: No space left on device: make room")
    for error in (OSError(errno.ECONNRESET, "reset"), OSError("no number"), RuntimeError(), MemoryError()):
        assert final_error(error) is None
