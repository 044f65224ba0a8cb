"""Check the structure of the package: imports, frameworks, names of methods, and the lengths of files and functions."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest

from raydis.config import FirstStageConfig, MethodConfig
from raydis.metrics.table import numbers

PACKAGE = Path(__file__).resolve().parents[1] / "raydis"
RANKS = {
    "errors": 0,
    "version": 0,
    "edge": 0,
    "config": 0,
    "store": 1,
    "models": 1,
    "diffusion": 1,
    "metrics": 1,
    "data": 2,
    "evaluation": 2,
    "checkpoint": 2,
    "registry": 3,
    "methods": 3,
    "build": 4,
    "engine": 5,
    "editor": 6,
    "cluster": 6,
    "report": 7,
    "train": 7,
    "serve": 7,
    "sweep": 8,
    "arena": 9,
    "cli": 9,
    "__main__": 10,
    "__init__": 10,  # hands out `Editor` and `RunConfig` at their first use; importing the package reads none of them
}
ONLY_IN = {
    "ray": {"cluster", "train", "sweep", "serve", "arena"},
    "optuna": {"sweep"},
    "boto3": {"store/s3_client.py"},
    "botocore": {"store/s3.py", "store/s3_client.py", "store/s3_conditions.py", "store/s3_errors.py"},
    "s3transfer": {"store/s3_errors.py"},
    "fastapi": {"serve"},
    "matplotlib": {"report"},
    "jinja2": {"report"},
    "yaml": {"config/yamltext.py"},
}
NEVER_IN = {"torch": {"metrics", "evaluation", "store", "registry", "config", "errors", "edge"}}
KNOW_METHODS = {"methods", "config", "build"}
METHOD_CONFIGS = get_args(get_args(MethodConfig)[0])
STAGE_CONFIGS = get_args(get_args(FirstStageConfig)[0])
KINDS = {config.model_fields["kind"].default for config in METHOD_CONFIGS}
# A metric or a first stage may have the name of a method: such a name is looked for only where a kind stands.
SHARED = KINDS & {*numbers(), *(config.model_fields["kind"].default for config in STAGE_CONFIGS)}
MODULES = sorted(PACKAGE.rglob("*.py"))
MAX_FILE_LINES = 300
MAX_FUNCTION_LINES = 60  # from `def` to the last line, docstring included
TOO_LONG: dict[str, str] = {}  # "folder/file.py" or "folder/file.py:function" that may be longer, and the reason


def room(path: Path) -> str:
    """`engine` for raydis/engine/fit.py, `build` for raydis/build.py."""
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def imports(path: Path) -> set[str]:
    """Dotted names that a file imports, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_every_room_has_a_rank() -> None:
    assert {room(path) for path in MODULES} <= set(RANKS)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_only_lower_ranks_or_its_own_room(path: Path) -> None:
    mine = room(path)
    for name in imports(path):
        parts = name.split(".")
        if parts[0] != "raydis":
            continue
        theirs = parts[1] if parts[1:2] and parts[1] in RANKS else "__init__"
        assert theirs == mine or RANKS[theirs] < RANKS[mine] or RANKS[theirs] == RANKS[mine] == 0, f"imports {name}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_frameworks_stay_in_their_rooms(path: Path) -> None:
    places = {room(path), str(path.relative_to(PACKAGE))}
    for name in imports(path):
        top = name.split(".")[0]
        assert top not in ONLY_IN or places & ONLY_IN[top], f"{top} belongs to {sorted(ONLY_IN[top])}"
        assert not places & NEVER_IN.get(top, set()), f"{top} does not belong here"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_the_store_takes_uris_apart(path: Path) -> None:
    texts = {node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)}
    assert room(path) == "store" or not texts & {"s3:", "s3://", "file:", "file://", "://"}


def classes_of_methods() -> set[str]:
    """Names of the classes in raydis/methods that inherit from the contract's, directly or through each other."""
    files = [path for path in (PACKAGE / "methods").rglob("*.py") if path.name != "contract.py"]
    nodes = [node for path in files for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ClassDef)]
    bases = {node.name: {base.id for base in node.bases if isinstance(base, ast.Name)} for node in nodes}
    found: set[str] = set()
    while more := {name for name, above in bases.items() if above & (found | {"Method", "UnitMethod"})} - found:
        found |= more
    return found


NAMES = classes_of_methods() | {config.__name__ for config in METHOD_CONFIGS} | (KINDS - SHARED)
SAID = re.compile(rf"method\.kind\W{{1,3}}(?:{'|'.join(sorted(SHARED))})\b")


def names_of_methods(source: str) -> Iterator[str]:
    """What a file says that only a file which knows the methods may say.

    These are a method's module, its class or its kind, as an identifier or within a text. A kind that is also the name
    of a metric or of a first stage counts where a text assigns it to `method.kind`, or code compares any kind with it.
    """
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Name(id=name) | ast.Attribute(attr=name) | ast.alias(name=name):
                yield from set(name.split(".")) & NAMES
            case ast.Constant(value=str(text)):
                yield from set(re.findall(r"\w+", text)) & NAMES
                yield from SAID.findall(text)
            case ast.Compare() | ast.Match() if any(is_kind(below) for below in ast.walk(node)):
                values = (below.value for below in ast.walk(node) if isinstance(below, ast.Constant))
                yield from {value for value in values if isinstance(value, str)} & SHARED
            case ast.ImportFrom(module=str(module)) if re.match(r"raydis\.methods\.(?!contract$)", module):
                yield module


def is_kind(node: ast.AST) -> bool:
    """Whether an expression is the kind of a method, of a first stage or of anything else."""
    return isinstance(node, ast.Attribute) and node.attr == "kind"


@pytest.mark.parametrize(
    "path",
    [path for path in MODULES if room(path) not in KNOW_METHODS],
    ids=lambda path: str(path.relative_to(PACKAGE)),
)
def test_only_methods_their_configuration_and_build_name_a_method(path: Path) -> None:
    assert sorted(names_of_methods(path.read_text())) == []


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("from raydis.methods.dyga_sd import DygaSd", {"DygaSd", "raydis.methods.dyga_sd"}),
        ("from raydis.methods.contract import Method, UnitMethod", set()),
        ("from raydis.config.vae import FactorVaeConfig", {"FactorVaeConfig"}),
        ("isinstance(method, models.PcaIca)", {"PcaIca"}),
        ("raise ValueError(f'{name} is no AutoencoderMethod')", {"AutoencoderMethod"}),
        ("'As published for DyGA+SD, FactorVAE and beta-VAE.'", set()),
        ("'Only `dyga_sd` has anchors.'", {"dyga_sd"}),
        ("scores['factor_vae'] = factor_vae(codes, factors)", set()),
        ("'set method.kind=factor_vae'", {"method.kind=factor_vae"}),
        ("if run.method.kind in ('vq', 'kl'): pass", {"vq", "kl"}),
        ("match method.kind:\n    case 'factor_vae': pass", {"factor_vae"}),
        ("if stage.kind == 'vq': pass", {"vq"}),
    ],
)
def test_a_method_that_is_named_is_found(source: str, found: set[str]) -> None:
    assert set(names_of_methods(source)) == found


def sizes(name: str, source: str) -> Iterator[tuple[str, int, int]]:
    """Yield the name, the number of lines and the allowed number of a file and of each of its functions."""
    yield name, len(source.splitlines()), MAX_FILE_LINES
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            yield f"{name}:{node.name}", node.end_lineno - node.lineno + 1, MAX_FUNCTION_LINES


def test_files_and_functions_can_be_read_in_one_sitting() -> None:
    found = [size for path in MODULES for size in sizes(str(path.relative_to(PACKAGE)), path.read_text())]
    too_long = {name: lines for name, lines, allowed in found if lines > allowed}
    assert {name: lines for name, lines in too_long.items() if name not in TOO_LONG} == {}
    assert set(TOO_LONG) - set(too_long) == set(), "these are short enough by now: remove them from TOO_LONG"


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("x = 1\n" * 300, set()),
        ("x = 1\n" * 301, {"a.py"}),
        ("def f():\n" + "    x = 1\n" * 59, set()),
        ("def f():\n" + "    x = 1\n" * 60, {"a.py:f"}),
        ("class A:\n    async def f(self):\n" + "        x = 1\n" * 60, {"a.py:f"}),
        ("class A:\n" + "    x = 1\n" * 60, set()),
    ],
)
def test_what_is_too_long_is_found(source: str, found: set[str]) -> None:
    assert {name for name, lines, allowed in sizes("a.py", source) if lines > allowed} == found
