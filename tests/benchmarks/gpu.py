"""Every GPU figure in one command, within ten minutes.

    python -m tests.benchmarks.gpu [--output gpu.json] [--parts NAME ...] [--seconds 570] [--smoke]

Parts run in order of worth, each in a process and with a time limit of its own, so that what fails or hangs costs
nothing but itself: ceilings of the machine; the training step, plain and ours, launched in every way; several runs on
one GPU; our U-Net against diffusers' (where that is installed); the loader; a sampler's step; a refit of the anchors;
and, with the time that is left, the reference preset on rendered 3D Shapes with its scores, launched in the way that
the training step was fastest in. The other parts' limits leave it 230 of 570 seconds, 190 of them for the published
scores; `--parts training` alone gives it all the time. The JSON is written anew with every row. Needs torch, numpy,
scikit-learn, scipy, safetensors and pydantic; `--smoke` runs all of it in this process, on a CPU and at tiny sizes.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import itertools
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from raydis.config import EvaluationConfig, RunConfig
from raydis.config.presets import expand
from raydis.data import Loader
from raydis.data.dataset import ArrayDataset
from raydis.data.shapes3d import render_shapes3d
from raydis.engine.accelerate import WARMUP_CALLS, Captured, CudaGraph
from raydis.engine.breakdown import describe, measure_ceilings, seconds, take_apart
from raydis.engine.evaluate import encode_images, evaluate
from raydis.engine.fit import fit
from raydis.engine.state import Progress, Training
from raydis.engine.step import Step
from raydis.metrics.importance import Estimator
from raydis.metrics.protocol import PUBLISHED
from raydis.metrics.representation import per_unit_pca
from raydis.metrics.scores import Scores
from raydis.metrics.scoring import measure, score
from tests.benchmarks.loader import PerSample
from tests.benchmarks.packing import pack
from tests.benchmarks.train_step import (
    VARIANTS,
    Variant,
    config_of,
    endless_loader,
    make_config,
    make_dataset,
    release_memory,
    start,
)
from tests.benchmarks.unet import compare

ROOT = Path(__file__).resolve().parents[2]
SEED = 0
# Kept at the end of `training` for its process's start, a report, the codes of all images, FactorVAE, and DCI's
# reference classifier, which takes up to 150 s for the factor of 15 classes; the factors are fitted side by side.
LAST_SCORES_S = 190
NUM_JOBS = min(os.cpu_count() or 1, 6)
AS_IT_IS = "the preset as it is"
POLL_S = 1.0

Row = dict[str, Any]


@dataclass(frozen=True)
class Scale:
    """How large everything is."""

    device: str
    large: str  # preset of the training step and of the run
    small: str  # preset that is packed
    batch_sizes: tuple[int, ...]
    steps: int  # of a round of the training step
    rounds: int
    process_counts: tuple[int, ...]
    pack_s: float
    sampler_batch_sizes: tuple[int, ...]
    calls: int  # of the U-Net in a round
    loader_batches: int
    refit_levels: dict[str, int]
    run_levels: dict[str, int]
    report_images: int  # of the run
    scored_images: tuple[int, ...]  # of the run, when it is scored on its way
    last_estimator: Estimator  # of the run's published scores


FULL = Scale(
    device="cuda",
    large="reference",
    small="small",
    batch_sizes=(512, 128),  # the reference preset's own first
    steps=10,
    rounds=5,
    process_counts=(1, 2, 4, 8),
    pack_s=3.0,
    sampler_batch_sizes=(1, 64),
    calls=50,
    loader_batches=100,
    refit_levels={"floor_hue": 5, "wall_hue": 5, "object_hue": 5, "scale": 4, "orientation": 5},
    run_levels={},
    report_images=24_000,
    scored_images=(480_000, 960_000, 1_920_000, 3_840_000),
    last_estimator="reference",
)
SMOKE = Scale(
    device="cpu",
    large="tiny",
    small="tiny",
    batch_sizes=(8,),
    steps=1,
    rounds=1,
    process_counts=(1,),
    pack_s=0.1,
    sampler_batch_sizes=(1,),
    calls=1,
    loader_batches=2,
    refit_levels={"floor_hue": 2, "wall_hue": 2, "object_hue": 2, "scale": 2, "orientation": 2},
    run_levels={"floor_hue": 3, "wall_hue": 3, "object_hue": 3, "scale": 2, "shape": 2, "orientation": 3},
    report_images=128,
    scored_images=(256,),
    last_estimator="tree",
)


@dataclass(frozen=True)
class Given:
    """What a part is given beside the scale."""

    left_s: float
    steps: list[Row]  # what `train_step` found, where it ran before


def ceilings(scale: Scale, given: Given) -> Iterator[Row]:
    device = torch.device(scale.device)
    for precision in ("fp32", "bf16"):
        yield {"precision": precision, **asdict(measure_ceilings(device, precision))}
    for mode in ("off", "graph") if scale.device == "cuda" else ("off",):
        config = make_config(scale.large, scale.device, 1, precision="bf16", compile=mode)
        training = Training(config, make_dataset(config.data.image_size), device=device)
        found = take_apart(training, num_steps=scale.steps)
        print(describe(found), flush=True)
        yield {**asdict(found), "floors": found.floors, "flops_per_s": found.flops_per_s}


def train_step(scale: Scale, given: Given) -> Iterator[Row]:
    for batch_size in scale.batch_sizes:
        for variant in VARIANTS[scale.device]:
            yield race_variant(scale, variant, batch_size)
            release_memory()


def race_variant(scale: Scale, variant: Variant, batch_size: int) -> Row:
    config = config_of(variant, scale.large, scale.device, scale.steps, batch_size)
    device = torch.device(scale.device)
    row: Row = {"variant": variant.name, "preset": scale.large, "batch_size": batch_size}
    began = time.perf_counter()
    try:
        call = start(variant, config, scale.steps)
        call()
        first_s = time.perf_counter() - began
        step_s = [seconds(call, device) / scale.steps for _ in range(scale.rounds)]
    except Exception as error:  # one variant that fails is a finding, and the others still count
        return {**row, "error": summary(error)}
    return {
        **row,
        "step_ms": round(1e3 * statistics.median(step_s), 4),
        "step_ms_range": [round(1e3 * min(step_s), 4), round(1e3 * max(step_s), 4)],
        "images_per_s": round(batch_size / statistics.median(step_s), 1),
        "first_round_s": round(first_s, 1),  # building, warming up, compiling, capturing
    }


def summary(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:1000]


def packing(scale: Scale, given: Given) -> Iterator[Row]:
    """As a sweep trains by default, and from graphs."""
    for count in scale.process_counts:
        for compile in ("off", "graph") if scale.device == "cuda" else ("off",):
            yield pack(scale.small, scale.device, count, scale.pack_s, compile)


def unet(scale: Scale, given: Given) -> Iterator[Row]:
    device, repeats = torch.device(scale.device), scale.calls
    try:
        for batch_size, precision in itertools.product(scale.batch_sizes, ("fp32", "bf16")):
            yield from compare(scale.large, device, batch_size, scale.rounds, repeats, precision)
    except ModuleNotFoundError as error:
        yield {"left_out": f"{error}: install diffusers to compare with it"}


def loader(scale: Scale, given: Given) -> Iterator[Row]:
    """Batches on the device, from its own copy of the images and from torch's per-sample DataLoader."""
    dataset, device, batch_size = make_dataset(64), torch.device(scale.device), scale.batch_sizes[-1]
    ours = Loader(dataset, batch_size=batch_size, seed=SEED, device=device)
    theirs = endless_loader(PerSample(dataset.array), batch_size, device)
    steps = itertools.count()
    endless = (batch.to(device, non_blocking=True) for batch in theirs)
    for name, following in (("raydis", lambda: ours.batch(next(steps))), ("DataLoader", lambda: next(endless))):
        following()
        taken = [
            seconds(lambda following=following: [following() for _ in range(scale.loader_batches)], device)
            for _ in range(scale.rounds)
        ]
        rate = batch_size * scale.loader_batches / statistics.median(taken)
        yield {"loader": name, "batch_size": batch_size, "images_per_s": round(rate, 1)}


def sampler(scale: Scale, given: Given) -> Iterator[Row]:
    """One call of the U-Net with its tokens' share computed beforehand, as every step of a sampler makes."""
    device, config = torch.device(scale.device), RunConfig.model_validate(expand({"preset": scale.large}))
    training = Training(make_config(scale.large, scale.device, 1), make_dataset(config.data.image_size), device=device)
    network, units = training.average.unet, (config.method.num_units, config.method.unit_dim)
    for batch_size, precision in itertools.product(scale.sampler_batch_sizes, ("fp32", "bf16")):
        inputs = {
            "z": torch.randn(batch_size, *training.method.noise_shape, device=device),
            "t": torch.full((batch_size,), 500, device=device),
            "condition": network.condition(torch.randn(batch_size, *units, device=device)).detach(),
        }

        def eager(inputs: dict[str, Tensor], *, precision: str = precision) -> dict[str, Tensor]:
            with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
                return {"predicted": network(inputs["z"], inputs["t"], inputs["condition"])}

        calls = {"eager": eager} | ({"graph": Captured(eager, CudaGraph(device))} if scale.device == "cuda" else {})
        for name, call in calls.items():
            for _ in range(WARMUP_CALLS + 1):
                call(inputs)
            repeat = functools.partial(repeated, call, inputs, scale.calls)
            taken = [seconds(repeat, device) / scale.calls for _ in range(scale.rounds)]
            ms = round(1e3 * statistics.median(taken), 4)
            yield {"batch_size": batch_size, "precision": precision, "launched": name, "ms": ms}


def repeated(call: Callable[[dict[str, Tensor]], object], inputs: dict[str, Tensor], count: int) -> None:
    for _ in range(count):
        call(inputs)


def refit(scale: Scale, given: Given) -> Iterator[Row]:
    """Anchors of an untrained encoder, the hard case, against the steps between two fits."""
    config = make_config(scale.large, scale.device, 1, precision="bf16")
    training = Training(
        config, rendered(scale.refit_levels, config, scale.device)[0], device=torch.device(scale.device)
    )
    for _ in range(2):
        yield {"images": training.method.refit_samples, "refit_s": round(seconds(training.refit, training.device), 3)}
    step = Step(training)
    step_s = seconds(lambda: [step() for _ in range(scale.steps)], training.device)
    between = RunConfig.model_validate(expand({"preset": scale.large})).method.anchors.refit_images
    steps = between / config.train.batch_size
    yield {"images_between": between, "steps_between_s": round(steps * step_s / scale.steps, 3)}


def fastest_first(config: RunConfig, steps: list[Row]) -> list[Variant]:
    """Our variants that trained at the run's batch size without error, by time of a step; last, the preset as it is."""
    ours = {variant.name: variant for variant in VARIANTS[config.compute.device] if not variant.plain}
    timed = {
        row["variant"]: row["step_ms"]
        for row in steps
        if row["variant"] in ours and row["batch_size"] == config.train.batch_size and "error" not in row
    }
    return [*(ours[name] for name in sorted(timed, key=timed.__getitem__)), Variant(AS_IT_IS, config.train.precision)]


def training(scale: Scale, given: Given) -> Iterator[Row]:
    """The preset on rendered 3D Shapes, until its budget or the time is spent, with its scores on the way."""
    began = time.perf_counter()
    tree: Row = {
        "preset": scale.large,
        "compute": {"device": scale.device},
        "data": {"levels": scale.run_levels},
        "train": {"report_images": scale.report_images},
    }
    config = RunConfig.model_validate(expand(tree))
    dataset, render_s = rendered(scale.run_levels, config, scale.device)
    yield {"images": len(dataset), "render_s": round(render_s, 1)}
    for variant in fastest_first(config, given.steps):
        try:
            run, reports = begin(config, variant, dataset)
        except Exception as error:  # the next one is slower, and may run
            yield {"variant": variant.name, "error": summary(error)}
            release_memory()
        else:
            yield {"variant": variant.name}
            break
    else:
        raise RuntimeError("no variant trains")
    due = list(scale.scored_images)
    for progress in reports:
        last = progress.finished or time.perf_counter() - began > given.left_s - LAST_SCORES_S
        row = {
            "images_seen": progress.images_seen,
            "trained_minutes": round(progress.train_s / 60, 3),
            "images_per_s": round(progress.images_per_s, 1),
            "loss": progress.loss,
            "num_refits": progress.num_refits,
        }
        if due and progress.images_seen >= due[0] and not last:  # the published scores follow the last report
            due = [images for images in due if images > progress.images_seen]
            row |= scores(run, EvaluationConfig(estimator=config.evaluation.estimator))
        yield row
        if last:
            break
    yield from published_scores(run, scale.last_estimator)


def begin(config: RunConfig, variant: Variant, dataset: ArrayDataset) -> tuple[Training, Iterator[Progress]]:
    """A run that has made its first report, and its reports from that one on."""
    torch.set_float32_matmul_precision("high" if variant.tf32 else "highest")
    compute = config.compute.model_copy(update={"compile": variant.compile, "channels_last": variant.channels_last})
    train = config.train.model_copy(update={"precision": variant.precision})
    config = config.model_copy(update={"compute": compute, "train": train})
    run = Training(config, dataset, device=torch.device(config.compute.device))
    reports = fit(run)
    return run, itertools.chain([next(reports)], reports)


def scores(run: Training, config: EvaluationConfig) -> Row:
    """What an evaluation finds, and how long it takes."""
    began = time.perf_counter()
    found = evaluate(run.calibrated(), run.dataset, run.loader, config, num_draws=1, num_jobs=NUM_JOBS)
    assert found is not None
    return as_row(found, began)


def as_row(found: Scores, began: float) -> Row:
    """The numbers of an evaluation, and the seconds since it began."""
    terms = {"protocol": found.protocol, "estimator": found.estimator}
    return {**terms, **found.values, "scored_in_s": round(time.perf_counter() - began, 1)}


def published_scores(run: Training, estimator: Estimator) -> Iterator[Row]:
    """By the published protocol: FactorVAE's in a row of its own, for DCI takes long and may be cut."""
    began = time.perf_counter()
    codes = per_unit_pca(encode_images(run.calibrated(), run.loader, np.arange(len(run.dataset))))
    factors = run.dataset.factors(np.arange(len(run.dataset)))
    votes = measure("factor_vae", codes, factors, protocol=PUBLISHED, seed=SEED)
    taken_s = round(time.perf_counter() - began, 1)
    yield {"protocol": PUBLISHED.name, **votes.values, "scored_in_s": taken_s}
    found = score(
        codes,
        factors,
        protocol=PUBLISHED,
        data_fingerprint=run.dataset.fingerprint,
        estimator=estimator,
        seed=SEED,
        num_draws=1,
        num_jobs=NUM_JOBS,
    )
    yield as_row(found, began)


def rendered(levels: dict[str, int], config: RunConfig, device: str) -> tuple[ArrayDataset, float]:
    """Rendered 3D Shapes in memory, and the seconds that it took."""
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        size = config.data.image_size
        dataset = render_shapes3d(levels, size, cache_dir=Path(folder), device=device, ram_bytes=2**36)
    return dataset, time.perf_counter() - began


Part = Callable[[Scale, Given], Iterator[Row]]
PARTS: dict[str, tuple[Part, float]] = {  # and the most seconds that one may take: 340 before `training`
    "ceilings": (ceilings, 35),
    "train_step": (train_step, 130),
    "packing": (packing, 90),
    "unet": (unet, 25),
    "loader": (loader, 15),
    "sampler": (sampler, 20),
    "refit": (refit, 25),
    "training": (training, 3600),
}


def run_here(name: str, scale: Scale, given: Given, show: Callable[[list[Row]], None]) -> Row:
    """One part in this process."""
    rows: list[Row] = []
    for row in PARTS[name][0](scale, given):
        rows.append(row)
        show(rows)
    return {"status": "finished", "rows": rows}


def run_apart(name: str, given: Given, show: Callable[[list[Row]], None]) -> Row:
    """One part in a process of its own, killed with all that it started when its time is up; its rows so far count."""
    with tempfile.TemporaryDirectory() as folder:
        path, log = Path(folder, "rows"), Path(folder, "log")
        path.touch()
        steps = Path(folder, "steps")
        steps.write_text(json.dumps(given.steps))
        command = [sys.executable, "-m", "tests.benchmarks.gpu", "--part", name, "--output", str(path)]
        command += ["--seconds", str(given.left_s), "--steps", str(steps)]
        ends = time.monotonic() + given.left_s
        with log.open("wb") as output:
            process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=output, start_new_session=True)
        try:
            while process.poll() is None and time.monotonic() < ends:
                time.sleep(POLL_S)
                show(read_rows(path))
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # its session: packed runs outlive whoever started them
            process.wait()
        rows = read_rows(path)
        show(rows)
        if process.returncode == 0:
            return {"status": "finished", "rows": rows}
        status = "out of time" if time.monotonic() >= ends else "failed"
        return {"status": status, "rows": rows, "log": log.read_text(errors="replace")[-4000:]}


def read_rows(path: Path) -> list[Row]:
    """The whole lines of a part's file."""
    return [json.loads(line) for line in path.read_text().split("\n")[:-1]]


def write(path: Path, result: Row) -> None:
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(json.dumps(result, indent=1))
    temporary.replace(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("gpu.json"))
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--seconds", type=float, default=570.0, help="for all parts")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes on a CPU, to see that all of it runs")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)  # one part, a JSON line a row to --output
    parser.add_argument("--steps", type=Path, help=argparse.SUPPRESS)  # rows of `train_step`, for that one part
    options = parser.parse_args()
    scale = SMOKE if options.smoke else FULL
    torch.set_num_threads(1)
    if scale.device == "cuda" and not torch.cuda.is_available():
        sys.exit("torch sees no GPU, and this command measures one; --smoke runs it at tiny sizes on the CPU")
    if options.part:
        given = Given(options.seconds, json.loads(options.steps.read_text()))
        with options.output.open("a") as file:
            for row in PARTS[options.part][0](scale, given):
                print(json.dumps(row), file=file, flush=True)
        return
    began = time.monotonic()
    result: Row = {
        "benchmark": "gpu",
        "machine": torch.cuda.get_device_name() if scale.device == "cuda" else f"{platform.machine()}, smoke test",
        "torch": torch.__version__,
        "numpy": np.__version__,
        "seed": SEED,
        "parts": {},
    }
    for name in options.parts:
        limit_s = min(PARTS[name][1], options.seconds - (time.monotonic() - began))
        if limit_s <= 0:
            result["parts"][name] = {"status": "not begun: no time left", "rows": []}
            continue
        started, shown = time.monotonic(), 0

        def show(rows: list[Row], name: str = name) -> None:
            nonlocal shown
            for row in rows[shown:]:
                print(f"{name}: {json.dumps(row)}", flush=True)
            if len(rows) > shown:
                shown = len(rows)
                result["parts"][name] = {"status": "running", "rows": rows}
                write(options.output, result)

        given = Given(limit_s, result["parts"].get("train_step", {}).get("rows", []))
        part = run_here(name, scale, given, show) if options.smoke else run_apart(name, given, show)
        result["parts"][name] = {**part, "seconds": round(time.monotonic() - started, 1)}
        print(f"{name}: {part['status']} in {result['parts'][name]['seconds']} s", flush=True)
        write(options.output, result)


if __name__ == "__main__":
    main()
