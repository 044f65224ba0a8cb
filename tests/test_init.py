"""`import raydis` is quick, and hands out its public classes when they are first asked for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import raydis
from raydis.config import RunConfig
from raydis.editor.editor import Editor
from raydis.evaluation import evaluate


def test_the_package_hands_out_its_public_classes() -> None:
    assert raydis.Editor is Editor
    assert raydis.RunConfig is RunConfig
    assert raydis.evaluate is evaluate
    assert {"Editor", "RunConfig", "__version__", "evaluate"} == set(raydis.__all__) <= set(dir(raydis))


def test_importing_the_package_imports_no_framework() -> None:
    script = (
        "import raydis, sys; print([name for name in ('torch', 'ray', 'numpy', 'pydantic') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=Path(__file__).parents[1], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


def test_a_name_that_the_package_does_not_have_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'raydis' has no attribute 'Edtior'"):
        _ = raydis.Edtior
