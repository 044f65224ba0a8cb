"""The page of the methods shows how to add one: the example passes the contract suite in a copy of the package."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from tests.markdown import FENCE, ROOT

PAGE = ROOT / "raydis" / "methods" / "README.md"
NAME = "linear_autoencoder"


def insert(path: Path, before: str, text: str) -> None:
    """Insert text in front of the only place in a file that begins with `before`."""
    source = path.read_text()
    assert source.count(before) == 1, f"{path} holds {before!r} {source.count(before)} times"
    path.write_text(source.replace(before, text + before))


def test_the_example_of_a_method_passes_the_contract_suite(tmp_path: Path) -> None:
    section = PAGE.read_text().partition("\n## Add a method\n")[2]
    method, config, case, line = (text for language, text in FENCE.findall(section) if language == "py")
    for name in ("raydis", "tests"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    package = tmp_path / "raydis"

    (package / "methods" / f"{NAME}.py").write_text(method)
    (package / "config" / f"{NAME}.py").write_text(config)
    imported = f"from raydis.config.{NAME} import LinearAutoencoderConfig\n"
    insert(package / "config" / "run.py", "from raydis.config.dyga_sd import", imported)
    insert(package / "config" / "run.py", "DygaSdConfig\n        | ", "LinearAutoencoderConfig\n        | ")
    insert(package / "build.py", "from raydis.config.dyga_sd import", imported)
    insert(
        package / "build.py",
        "from raydis.methods.dyga_sd import",
        f"from raydis.methods.{NAME} import LinearAutoencoder\n",
    )
    insert(package / "build.py", "        case DygaSdConfig() as method:", case)
    insert(tmp_path / "tests" / "contracts" / "test_method.py", '    "dyga_sd": {', line)

    tests = ["tests/contracts/test_method.py", "-k", f"{NAME} and not two_workers"]  # those train all methods once more
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None
    assert int(passed[1]) > 10
