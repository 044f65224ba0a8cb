"""What the pages say can be followed: links lead somewhere, and every command is one that the program understands.

tests/system/test_pages.py executes the commands; what is checked here takes seconds and needs no Ray.
"""

from __future__ import annotations

import ast
import doctest
import importlib.util
import io
import itertools
import re
import shlex
import tomllib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import ray.scripts.scripts
import ray.serve.scripts
import torch
import typer
from PIL import Image

import raydis.arena.__main__ as arena
import raydis.cli
import raydis.sweep.__main__ as sweep
from raydis.arena.spec import load_arena
from raydis.checkpoint.open import open_checkpoint
from raydis.config import RunConfig
from raydis.config.files import apply_overrides, parse
from raydis.config.presets import expand
from raydis.data import open_dataset
from raydis.engine.session import run_session
from raydis.engine.state import Training
from raydis.errors import EXIT_CODES, ConfigError
from raydis.registry import Registry
from raydis.serve.api import router
from raydis.serve.schemas import EditForm
from raydis.store import LocalStore
from raydis.sweep.spec import load_spec
from tests.markdown import ROOT, Page, read_pages
from tests.system.test_pages import ELSEWHERE, SET_UP, SHORTER

PAGES = read_pages()
COMMANDS = sorted({command for page in PAGES.values() for command in page.commands})
SHORTENED = [f"{command} {more}" for command, more in SHORTER.items() if command.startswith("python")]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
HOSTS = {"127.0.0.1", "arxiv.org", "semver.org", "www.ray.io"}
MAX_README_LINES = 130
REFUSALS = (
    AssertionError,
    ConfigError,
    click.UsageError,
    *typer.BadParameter.__bases__,
)  # typer has a click of its own

paged = pytest.mark.parametrize("page", PAGES.values(), ids=PAGES)


# ---- text


def test_every_folder_has_its_page() -> None:
    folders = {str(Path(path).parent) for path in PAGES}
    assert {".", "infra", "k8s", "raydis", "serve_configs", "sweeps", "tests"} <= folders
    assert {"raydis/methods", "raydis/metrics", "tests/benchmarks"} <= folders


def test_the_page_of_the_package_describes_every_room() -> None:
    first_cells = " ".join(row.split("|")[1] for row in PAGES["raydis/README.md"].rows)
    described = set(re.findall(r"`(raydis/\w+/)`", first_cells))
    assert described == {f"raydis/{file.parent.name}/" for file in (ROOT / "raydis").glob("*/__init__.py")}


def test_the_front_page_is_read_in_three_minutes() -> None:
    assert PAGES["README.md"].text.count("\n") <= MAX_README_LINES


def test_the_front_page_leads_to_every_other_page() -> None:
    assert set(PAGES) - {"README.md"} <= {link.partition("#")[0] for link in PAGES["README.md"].links}


@paged
def test_no_command_stands_where_the_tests_do_not_look(page: Page) -> None:
    assert page.escapes == []


@paged
def test_links_lead_somewhere(page: Page) -> None:
    for link in page.links:
        if "://" in link:
            continue
        target, _, anchor = link.partition("#")
        path = (ROOT / page.path.parent / target).resolve() if target else ROOT / page.path
        assert path.exists(), link
        if anchor:
            assert anchor in PAGES[str(path.relative_to(ROOT))].anchors, link


@paged
def test_pictures_are_large_enough_to_be_read(page: Page) -> None:
    for picture in re.findall(r"!\[[^]]*\]\(([^)]+)\)", page.text):
        with Image.open(ROOT / page.path.parent / picture) as image:
            assert image.width > 400


@paged
def test_files_and_keys_that_a_page_names_exist(page: Page) -> None:
    for path in re.findall(r"`((?:sweeps|serve_configs|infra|k8s|raydis|tests)/[\w./]*)`", page.prose):
        assert (ROOT / path).exists(), path
    for file in re.findall(r"^\| `([\w./]+\.yaml)` \|", page.prose, re.MULTILINE):
        assert (ROOT / file).exists() or (ROOT / page.path.parent / file).exists(), file


def test_the_page_of_the_package_has_every_exit_code() -> None:
    rows = [tuple(row.strip("| ").split(" | ")) for row in PAGES["raydis/README.md"].rows]
    assert [row for row in rows if row[0].isdigit()] == [(str(code), text) for code, text in EXIT_CODES.items()]


@paged
def test_a_page_names_public_hosts_and_no_place_of_one_machine(page: Page) -> None:
    assert set(re.findall(r"https?://([\w.-]+)", page.text)) <= HOSTS
    assert not re.findall(r"(?<![\w.:])/(?:etc|home|mnt|opt|root|srv|usr|var|work|Users)\b", page.text)


def test_no_row_stands_on_two_pages() -> None:
    count = Counter(row for page in PAGES.values() for row in page.rows)
    assert [row for row, times in count.items() if times > 1] == []


# ---- commands


def test_every_command_is_run_by_the_walk_or_by_a_test_that_exists() -> None:
    assert set(ELSEWHERE) | set(SHORTER) <= set(COMMANDS)
    assert not set(ELSEWHERE) & set(SHORTER)
    for place in ELSEWHERE.values():
        file, _, name = place.partition("::")
        assert f"def {name}(" in (ROOT / file).read_text(), place


def test_the_front_page_sets_up_trains_and_tests_in_one_command_each() -> None:
    marked = re.findall(r"<!-- command ([AB]) -->\n```bash\n(.*)\n```", PAGES["README.md"].text)
    assert marked == [("A", f"{SET_UP} && python -m raydis.sweep"), ("B", f"{SET_UP} && pytest -q")]


def test_ci_sets_up_and_tests_as_the_front_page_says() -> None:
    script = (ROOT / ".ci" / "run").read_text()
    assert "pip install --quiet -c infra/constraints.txt -e '.[test]'\npytest -q\n" in script


def test_requests_of_the_serve_config_are_those_of_the_pages() -> None:
    shown = (ROOT / "serve_configs" / "local.yaml").read_text()
    requests = re.findall(r"^#   (curl .*)$", shown, re.MULTILINE)
    assert len(requests) == 3
    assert set(requests) <= set(COMMANDS)


@pytest.mark.parametrize("command", [*COMMANDS, *SHORTENED])
def test_the_program_understands_every_command(command: str) -> None:
    for words in simple_commands(command):
        understand(words)


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ("python -m raydis trian --preset small", "No such command 'trian'"),
        ("python -m raydis train --presett small", "No such option: --presett"),
        ("python -m raydis train --preset smal", "unknown preset 'smal'"),
        ("python -m raydis train --preset small --set train.num_image=3", "num_image: unknown key"),
        ("python -m raydis.sweep sweeps/quickstart.yaml --dryrun", "No such option: --dryrun"),
        ("python -m raydis.sweep sweeps/absent.yaml", "cannot read .*absent.yaml"),
        ("python -m raydis.sweep sweeps/quickstart.yaml --set run.train.num_image=3", "num_image: unknown key"),
        ("python -m raydis.arena", "Missing parameter: spec"),
        ("python -m raydis.arena sweeps/arena_quick.yaml --set entrants.dyga_sd.run.methd=3", "methd: unknown key"),
        ("python -m tests.benchmarks.samplers --quickly", "--quickly"),
        ("python -m tests.benchmarks.absent", "assert None is not None"),
        ("pytest -q -m fast", "fast"),
        ("pytest -q tests/absent", "assert False"),
        ("serve run serve_configs/absent.yaml", "absent.yaml"),
        ("serve deploy serve_configs/absent.yaml", "absent.yaml"),
        ("pre-commit instal", "no test knows pre-commit instal"),
        ("ray start --haed", "No such option:? '?--haed"),
        ("ray job submit -- python -m raydis.sweep --dryrun", "No such option: --dryrun"),
        ("curl -F image=@a.png -F sampel=1 http://127.0.0.1:8000/v1/edit", "sampel"),
        ("curl http://127.0.0.1:8000/v1/absent", "/v1/absent"),
        ("pip install -c infra/absent.txt -e '.[test]'", "absent.txt"),
        (". infra/absent.env", "absent.env"),
        ("frobnicate --all", "no test knows frobnicate --all"),
    ],
)
def test_a_command_that_would_fail_is_found(wrong: str, reason: str) -> None:
    with pytest.raises(REFUSALS, match=reason):
        test_the_program_understands_every_command(wrong)


def simple_commands(line: str) -> Iterator[list[str]]:
    """The words of each command of a line, without comments and without settings of the environment before it."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=";&")
    lexer.whitespace_split = True
    words: list[str] = []
    for word in [*lexer, ";"]:
        if word not in (";", "&&"):
            words.append(word)
            continue
        while words and re.fullmatch(r"\w+=\S*", words[0]):
            del words[0]
        if words:
            yield words
        words = []


def understand(words: Sequence[str]) -> None:
    """Fail where a program would not know what one of our commands asks for."""
    match list(words):
        case ["python3", "-m", "venv", _] | [".", ".venv/bin/activate"] | ["set", "-a" | "+a"] | ["export", _]:
            pass
        case ["ruff", "format" | "check", *_] | ["pyright"]:
            pass
        case [".", file]:
            assert (ROOT / file).is_file()
        case ["pip", "install", "-c", file, "-e", package]:
            assert (ROOT / file).is_file()
            extras = PROJECT["project"]["optional-dependencies"]
            assert package in {f".[{extra}]" for extra in extras}
        case ["pip", "install", "pre-commit"] | ["pre-commit", "install"]:
            assert (ROOT / ".pre-commit-config.yaml").is_file()
        case ["python", "-m", "raydis", *arguments]:
            verb, options = click_options(typer.main.get_command(raydis.cli.app), arguments)
            if verb == "train":
                tree = apply_overrides({"preset": options["preset"]}, options["overrides"] or [])
                parse(RunConfig, expand(tree), source="command")
        case ["python", "-m", "raydis.sweep", *arguments]:
            _, options = click_options(typer.main.get_command(sweep.app), arguments)
            load_spec(ROOT / (options["spec"] or sweep.QUICKSTART), options["overrides"] or [])
        case ["python", "-m", "raydis.arena", *arguments]:
            _, options = click_options(typer.main.get_command(arena.app), arguments)
            load_arena(ROOT / options["spec"], options["overrides"] or [])
        case ["python", "-m", module, *arguments] if module.startswith("tests.benchmarks."):
            assert set(re.findall(r"--[\w-]+", " ".join(arguments))) <= benchmark_options(module)
        case ["pytest", "-q", *arguments] | ["pytest", *arguments]:
            markers = {marker.partition(":")[0] for marker in PROJECT["tool"]["pytest"]["ini_options"]["markers"]}
            if arguments[:1] == ["-m"]:
                assert set(re.findall(r"\w+", arguments[1])) <= markers | {"and", "not"}
            else:
                assert all((ROOT / path).exists() for path in arguments)
        case ["serve", *arguments]:
            _, options = click_options(ray.serve.scripts.cli, arguments)
            assert (ROOT / options["config_or_import_path"]).is_file()
        case ["ray", *arguments]:
            verb, options = click_options(ray.scripts.scripts.cli, arguments)
            if verb == "submit":
                understand(options["entrypoint"])
        case ["curl", *arguments]:
            understand_request(arguments)
        case _:
            raise AssertionError(f"no test knows {shlex.join(words)}")


def click_options(command: Any, arguments: list[str]) -> tuple[str, dict[str, Any]]:
    """The verb that a command line ends up at, and its options as the program's own parser reads them."""
    name, context = "", None
    while hasattr(command, "resolve_command"):
        context = type(command.make_context(name, list(arguments)))(command, parent=context)
        name, command, arguments = command.resolve_command(context, list(arguments))
    return name, command.make_context(name, list(arguments), parent=context).params


def benchmark_options(module: str) -> set[str]:
    """Options that a benchmark's parser is given, without importing it."""
    spec = importlib.util.find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    strings = (
        node.value for node in ast.walk(ast.parse(Path(spec.origin).read_text())) if isinstance(node, ast.Constant)
    )
    return {string for string in strings if isinstance(string, str) and string.startswith("--")}


def understand_request(arguments: list[str]) -> None:
    """A request of our service: its route exists, and so do the fields of its form."""
    (url,) = [word for word in arguments if word.startswith("http://")]
    assert url.partition(":8000")[2] in {route.path for route in router.routes}
    fields = [value.partition("=")[0] for flag, value in itertools.pairwise(arguments) if flag == "-F"]
    assert set(fields) <= set(EditForm.model_fields)


# ---- Python


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like that of a reader who ran the sweep: quickstart@best in runs/, of a tiny model, and a.png."""
    folder = tmp_path_factory.mktemp("home")
    config = RunConfig.model_validate(expand({"preset": "tiny", "train": {"num_images": 32}}))
    dataset = open_dataset(config.data)
    *_, report = run_session(Training(config, dataset, device=torch.device("cpu")), folder / "run")
    assert report.checkpoint is not None
    registry = Registry(LocalStore(folder / "runs"))
    registry.set_alias("quickstart", "best", registry.register(open_checkpoint(report.checkpoint), "quickstart"))
    Image.fromarray(dataset.images(np.array([7]))[0]).save(folder / "a.png")
    return folder


def test_the_example_of_the_package_is_a_doctest(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    assert doctest.testmod(raydis) == (0, 3)


PYTHON = [(path, step.text) for path, page in PAGES.items() for step in page.steps if step.language == "python"]


@pytest.mark.parametrize(("path", "code"), PYTHON, ids=[path for path, _ in PYTHON])
def test_python_on_a_page_runs(
    path: str, code: str, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(home)
    exec(compile(code, path, "exec"), {})
    assert capsys.readouterr().out
    if path == "README.md":
        edited = Image.open(io.BytesIO((home / "edited.png").read_bytes()))
        assert edited.size == (16, 16)
