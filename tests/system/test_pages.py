"""Every command of every page is executed as it stands there, in a fresh clone that was set up by the front page.

A page's commands run in order. A service that a page starts runs until the end of that page. Commands that would take
hours, or need what a test machine lacks, run in a shorter form, or are executed by another test.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

from raydis.registry import Registry
from raydis.store import LocalStore
from tests.markdown import ROOT, Page, Step, read_pages

PAGES = read_pages()
SET_UP = "python3 -m venv .venv && . .venv/bin/activate && pip install -c infra/constraints.txt -e '.[test]'"
FIRST = f"{SET_UP} && python -m raydis.sweep"
SERVE = "RAY_AUTH_MODE=disabled serve run serve_configs/local.yaml"
LEARNED_STAGE = (
    "first_stage={kind: vq, checkpoint: CHECKPOINT, stem_stride: 4, multipliers: [1, 2], num_blocks: 1, latent_dim: 4}"
)
STAGES = "python -m tests.benchmarks.first_stages --images 9000 --stage-images 60000 --seeds 1 2 3"

LEFT_OUT = (
    "encdiff",
    "disdiff",
    "flow",
    "annealed_vae",
    "dip_vae_i",
    "dip_vae_ii",
    "beta_tcvae",
    "proto_vae",
    "dot_vae",
    "cs_dismo",
    "ae_ica",
    "hlle_ica",
)
ARENA = " ".join(
    [
        "--set run.train.num_images=640 --set num_trials=1 --set seeds=[101,102] --set run.evaluation.rungs=[]",
        *(f"--set entrants.{name}=null" for name in LEFT_OUT),
    ]
)

# Appended to a command so that it takes minutes, and needs no GPU.
SHORTER = {
    "python -m raydis train --preset reference --set compute.device=cuda": (
        "--set compute.device=cpu --set train.num_images=8 --set train.batch_size=4 --set evaluation.protocol=none "
        "--set evaluation.rungs=[] --set 'data.levels={floor_hue: 2, wall_hue: 2, object_hue: 2, orientation: 3}'"
    ),
    "python -m raydis.sweep sweeps/controls.yaml": "--set run.train.num_images=320 --set run.evaluation.rungs=[]",
    "python -m raydis.sweep sweeps/objective.yaml": "--set run.train.num_images=320 --set run.evaluation.rungs=[]",
    # On Sprites the units of a shorter run vary so little that FactorVAE prunes all of them, and no trial is ranked.
    "python -m raydis.sweep sweeps/controls.yaml --name controls-sprites --set run.data.name=sprites --set "
    "run.data.path=Sprites": (
        "--set run.train.num_images=4800 --set run.train.warmup_images=320 --set run.evaluation.rungs=[] "
        "--set 'controls=[{name: constant-0.1}]'"
    ),
    "python -m raydis.sweep sweeps/sprites.yaml --set run.data.path=Sprites": (
        "--num-trials 1 --set run.train.num_images=4800 --set run.train.warmup_images=320 "
        "--set promotion.protocol=search --set promotion.estimator=tree"
    ),
    "python -m raydis.arena sweeps/arena_quick.yaml": ARENA,
    "python -m raydis.arena sweeps/arena_quick.yaml --name arena_sprites "
    "--set 'run.data={name: sprites, path: Sprites}'": ARENA,
    "python -m raydis.arena sweeps/arena_continuous.yaml": (
        "--set run.train.num_images=640 --set num_trials=1 --set seeds=[101,102] --set run.evaluation.rungs=[] "
        "--set entrants.iso_ae_ica=null --set entrants.ae_ica=null --set entrants.factor_vae=null "
        "--set entrants.beta_tcvae=null --set entrants.dyga_sd=null"
    ),
    "python -m raydis train --preset vq_small --name first": "--set train.num_images=640",
    f"python -m raydis train --preset small --set '{LEARNED_STAGE}'": "--set train.num_images=640",
    "python -m raydis train --preset diffusion_small --name diffusion": "--set train.num_images=640",
    "python -m raydis train --preset disdiff_small --set method.pretrained.checkpoint=CHECKPOINT": (
        "--set train.num_images=640"
    ),
    STAGES: "--images 640 --stage-images 640 --pixel-images 64 --seeds 0",
    "python -m tests.benchmarks.gpu --output gpu.json": "--smoke",
    "python -m tests.benchmarks.samplers CHECKPOINT": "--quick",
    "python -m raydis train --preset small --name sampled": (
        "--set train.num_images=640 --set evaluation.protocol=none"
    ),
    "pytest -q": "--collect-only",
    "pytest -q -m 'ray and not slow'": "--collect-only",
    "pytest -q -m slow": "--collect-only",
    "pytest -q -m gpu": "--collect-only",
}

# Executed by a test of its own.
JOBS = "tests/system/test_jobs.py::test_a_submitted_sweep_succeeds_and_shows_in_the_dashboard"
ELSEWHERE = {
    f"{SET_UP} && pytest -q": "tests/test_pages.py::test_ci_sets_up_and_tests_as_the_front_page_says",
    "ray start --head": JOBS,
    "ray job submit --address http://127.0.0.1:8265 --working-dir . -- python -m raydis.sweep --storage /tmp/raydis": (
        JOBS
    ),
    "RAY_AUTH_MODE=disabled serve deploy serve_configs/local.yaml": (
        "tests/system/test_serve.py::test_all_replicas_serve_one_version_whatever_is_refused_dies_or_moves"
    ),
}


@dataclass(frozen=True)
class Clone:
    """A fresh clone of this checkout's last commit, and the environment in which commands run there."""

    folder: Path
    environment: dict[str, str]

    def run(self, step: Step) -> str:
        """Execute a step; return what it printed."""
        command = [sys.executable, "-c", step.text] if step.language == "python" else ["bash", "-c", step.text]
        if step.language == "python":
            command[0] = str(self.folder / ".venv" / "bin" / "python")
        started = time.monotonic()
        done = subprocess.run(command, cwd=self.folder, env=self.environment, capture_output=True, text=True)
        print(f"$ {step.text}\n[{time.monotonic() - started:.0f} s]\n{done.stdout[-3000:]}")
        assert done.returncode == 0, f"{step.text}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done.stdout

    @contextlib.contextmanager
    def served(self) -> Iterator[None]:
        """The service of the pages, once it answers; ended as Ctrl-C ends it."""
        process = subprocess.Popen(
            ["bash", "-c", f"set -a; . infra/ray.env; set +a; exec env {SERVE}"],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored below a shell's `&`
        )
        try:
            deadline = time.monotonic() + 180
            while time.monotonic() < deadline:
                assert process.poll() is None, "the service ended"
                with contextlib.suppress(OSError):  # refused, or slower than that
                    urllib.request.urlopen("http://127.0.0.1:8000/healthz", timeout=5).close()
                    break
                time.sleep(0.5)
            else:
                pytest.fail("no answer from the service in 180 s")
            yield
        finally:
            os.kill(process.pid, signal.SIGINT)
            process.wait(90)


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clone]:
    """A clone in which the front page's first command has run: installed, with quickstart@best in runs/."""
    folder = tmp_path_factory.mktemp("clone") / "raydis"
    subprocess.run(["git", "clone", "--quiet", ROOT, folder], check=True)
    ray_folder = tempfile.mkdtemp(prefix="rr-", dir="/tmp")  # Ray's sockets lie below it, and their paths must be short
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "AWS_", "VIRTUAL"))}
    environment = inherited | {
        "PATH": f"{folder}/.venv/bin{os.pathsep}{os.environ['PATH']}",
        "RAY_TMPDIR": ray_folder,
        "RAYDIS_CACHE": str(folder / "cache"),
    }
    fresh = Clone(folder, environment)
    try:
        fresh.run(Step("bash", FIRST))
        yield fresh
    finally:
        shutil.rmtree(ray_folder, ignore_errors=True)


@pytest.fixture(scope="module")
def sprites(clone: Clone, shared_data: Path) -> None:
    """The sheets of Sprites, which are not ours to ship, where the pages say that a reader puts them."""
    (clone.folder / "Sprites").symlink_to(shared_data / "sprites" / "sheets")


def walked(page: Page) -> list[Step]:
    """The steps of a page that the walk executes, in order."""
    return [step for step in page.steps if step.text not in {*ELSEWHERE, FIRST}]


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(3 * 3600)
@pytest.mark.parametrize("path", [path for path, page in PAGES.items() if walked(page)])
def test_every_command_of_a_page_works(path: str, clone: Clone, request: pytest.FixtureRequest) -> None:
    page, checkpoint = PAGES[path], ""
    if "path=Sprites" in page.text:
        request.getfixturevalue("sprites")
    with contextlib.ExitStack() as serving:
        for step in walked(page):
            if step.text == SERVE:
                serving.enter_context(clone.served())
                continue
            assert checkpoint or "CHECKPOINT" not in step.text, f"no command of {path} before this one: {step.text}"
            text = f"{step.text} {SHORTER.get(step.text, '')}".rstrip()
            if text.startswith("curl"):
                text += " --silent --show-error --fail-with-body"
            printed = clone.run(Step(step.language, re.sub(r"\bCHECKPOINT\b", checkpoint, text)))
            if found := re.search(r"^checkpoint  (\S+)$", printed, re.MULTILINE):
                checkpoint = found[1]  # which a reader puts in the place of the word
    for name in re.findall(r"-o (\w+\.png)", page.text):
        assert Image.open(io.BytesIO((clone.folder / name).read_bytes())).width >= 64


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(3 * 3600)
def test_the_first_command_publishes_a_model(clone: Clone) -> None:
    assert Registry(LocalStore(clone.folder / "runs")).resolve("quickstart@best").version == 1
