"""The command line of `python -m raydis.arena`, as far as it goes without Ray."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from raydis.arena import run
from raydis.arena.__main__ import main
from raydis.arena.plan import estimate
from raydis.arena.result import ArenaResult, Entry
from raydis.arena.spec import load_arena
from raydis.errors import SWEEP_FAILED
from raydis.store import LocalStore
from tests.arena.conftest import final_rows, row, summary, write_sweep

CHECKOUT = Path(__file__).resolve().parents[2]
HEAVY = ("ray", "torch", "pyarrow", "optuna", "sklearn", "scipy", "matplotlib", "boto3", "h5py", "fastapi")


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["raydis.arena", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


@pytest.mark.parametrize("option", ["--dry-run", "--help"])
def test_a_plan_answers_within_a_second_of_cpu_and_imports_no_framework(path: Path, option: str) -> None:
    script = (
        f"import resource, runpy, sys; sys.argv = ['raydis.arena', {str(path)!r}, {option!r}]\n"
        "try: runpy.run_module('raydis.arena', run_name='__main__')\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "spent = resource.getrusage(resource.RUSAGE_SELF)\n"
        f"print(spent.ru_utime + spent.ru_stime, *sorted({set(HEAVY)!r} & set(sys.modules)))"
    )
    environment = {"PYTHONPATH": str(CHECKOUT), "PATH": ""}
    spent: list[float] = []
    while len(spent) < 3 and min(spent, default=1.0) >= 1.0:  # the first may compile the modules
        done = subprocess.run(
            [sys.executable, "-c", script],
            cwd=path.parent,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        seconds, *imported = done.stdout.splitlines()[-1].split()
        assert imported == []
        spent.append(float(seconds))
    assert min(spent) < 1.0


def test_a_dry_run_shows_the_plan_and_what_is_done_and_writes_nothing(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, str(path), "--dry-run") == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "studies 3 trials each by tpe, seed 0, the first as configured; search protocol" in lines
    assert "finals seeds 11, 12, 13; published protocol, estimator tree, draws of their own" in lines
    assert "tests Ours against each other entrant" in lines
    assert "in all 16 runs, 10240 images" in lines
    assert "ours dyga_sd 3 3 15 s num_gaussians, skip_dropout_rate, unit_dim" in lines
    assert "closed pca_ica 1 3 5 s nothing" in lines
    assert list(tmp_path.iterdir()) == [path]
    store = LocalStore(tmp_path / "runs")
    write_sweep(store, "ours", "study", 1, summary([row(0, 0.5)]))
    write_sweep(store, "ours", "final", 1, summary(final_rows("ours", {11: 0.5, 12: 0.5}), interrupted=True))
    assert call(monkeypatch, str(path), "--dry-run") == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "ours dyga_sd done 2 of 3 done 15 s num_gaussians, skip_dropout_rate, unit_dim" in lines


def test_the_estimate_counts_rounds_of_runs_that_fit_at_once(path: Path) -> None:
    spec = load_arena(path, [])
    # On 2 CPUs 3 trials and 3 seeds take 2 rounds each, of 640 / 64 + 5 = 15 s for ours and 5 s for the rival; the
    # closed form has 1 trial, and a run takes 5 s.
    assert estimate(spec, num_cpus=2).startswith("1 min 35 s on 2 CPUs")  # 4 * 15 + 4 * 5 + 3 * 5
    assert estimate(spec, num_cpus=16).startswith("50 s on 16 CPUs")
    assert estimate(spec.model_copy(update={"max_concurrent": 1}), num_cpus=16).startswith("2 min 20 s")
    on_gpu = load_arena(path, ["run.compute={device: cuda, num_gpus: 1}"])
    assert estimate(on_gpu, num_cpus=16).startswith("2 min 20 s on 16 CPUs, by the speeds in the file; 0.0 GPU-hours")
    assert estimate(load_arena(path, ["entrants.rival.speed=null"])) == "unknown: entrants.rival.speed is not given"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--set", "run.train.num_image=3"), "did you mean num_images?"),
        (("--set", "seeds=[0, 1]"), "the study of ours uses seed 0"),
        (("--name", "../elsewhere"), "arena name '../elsewhere' is not allowed"),
        (("--set", "entrants.ours=null", "--set", "entrants.rival=null"), "at least 2"),
    ],
)
def test_a_bad_arena_is_one_line_on_standard_error_and_exit_code_2(
    path: Path,
    arguments: tuple[str, ...],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(path.parent)
    assert call(monkeypatch, str(path), *arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("raydis: ")
    assert error.count("\n") == 1
    assert message in error
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(("state", "code"), [("pending", 130), ("failed", SWEEP_FAILED)])
def test_an_arena_that_is_not_complete_or_has_no_scores_says_so_by_its_exit_code(
    path: Path, state: str, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    entries = tuple(Entry(name, state, None, ()) for name in ("ours", "rival", "closed"))
    monkeypatch.setattr(run, "run_arena", lambda *_, **__: ArenaResult("duel", "/runs/arenas/duel", entries, ()))
    assert call(monkeypatch, str(path)) == code
    printed = capsys.readouterr()
    assert ("python -m raydis.arena" in printed.out) == (code == 130)
    assert ("no entrant has a final run with valid scores" in printed.err) == (code == SWEEP_FAILED)
