"""What the metrics cost: DCI by estimator, and FactorVAE by look-up against a loop over votes, in one run.

    python -m tests.benchmarks.metrics [--quick]

Codes are the synthetic `perfect` and `mixed30` ones on the 480,000 cells of 3D Shapes. CPU-seconds are those of this
process, which computes on one thread; `ratio` is the first row's cost over the row's, within one kind of codes.
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import sklearn
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from raydis.metrics.dci import dci
from raydis.metrics.factor_vae import factor_vae
from tests.metrics.conftest import SHAPES3D_SIZES, synthetic_codes

SEED = 0


def factor_vae_loop(
    codes: NDArray[np.float64], *, num_variance: int, num_train: int, num_eval: int, batch_size: int = 64
) -> float:
    """The published procedure on a full grid, one vote at a time."""
    rng = np.random.default_rng(SEED)
    strides = np.append(np.cumprod(SHAPES3D_SIZES[:0:-1])[::-1], 1)
    variance = codes[rng.integers(len(codes), size=num_variance)].var(axis=0, ddof=1)
    active = np.flatnonzero(np.sqrt(variance) >= 0.05)
    train, evaluation = np.zeros((2, len(SHAPES3D_SIZES), codes.shape[1]), int)
    for votes, number in ((train, num_train), (evaluation, num_eval)):
        for _ in range(number):
            k = rng.integers(len(SHAPES3D_SIZES))
            vectors = rng.integers(SHAPES3D_SIZES, size=(batch_size, len(SHAPES3D_SIZES)))
            vectors[:, k] = vectors[0, k]
            local = codes[vectors @ strides][:, active].var(axis=0, ddof=1)
            votes[k, active[(local / variance[active]).argmin()]] += 1
    return evaluation[train.argmax(axis=0), np.arange(codes.shape[1])].sum() / num_eval


def timed(measure: Callable[[], Any]) -> tuple[Any, float]:
    start = time.process_time()
    return measure(), time.process_time() - start


def report(title: str, rows: list[tuple[str, str, float]]) -> None:
    print(title)
    for name, value, cpu_s in rows:
        print(f"  {name:<18} {value:<36} {cpu_s:9.2f} CPU-s {rows[0][2] / cpu_s:8.1f} x")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tenth of the published sizes")
    part = 10 if parser.parse_args().quick else 1
    points = {"num_train": 10_000 // part, "num_test": 5_000 // part}
    votes = {"num_variance": 10_000 // part, "num_train": 10_000 // part, "num_eval": 5_000 // part}
    print(f"Python {platform.python_version()}, NumPy {np.__version__}, scikit-learn {sklearn.__version__}")
    print(f"{platform.machine()}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}, seed {SEED}")
    print(f"DCI {points}, FactorVAE {votes}")
    for kind in ("perfect", "mixed30"):
        codes, factors = synthetic_codes(kind, seed=SEED)
        rows = []
        for estimator in ("reference", "hist", "tree"):
            result, cpu_s = timed(  # `timed` calls the function at once, before the loop's variables change
                lambda: dci(codes, factors, rng=np.random.default_rng(SEED), estimator=estimator, **points)  # noqa: B023
            )
            value = f"D {result.disentanglement:.3f} C {result.completeness:.3f} I {result.informativeness:.3f}"
            rows.append((f"DCI {estimator}", value, cpu_s))
        report(f"{kind}: DCI", rows)
        # As above, `timed` calls the functions at once.
        loop, loop_s = timed(lambda: factor_vae_loop(codes, **votes))  # noqa: B023
        fast, fast_s = timed(lambda: factor_vae(codes, factors, rng=np.random.default_rng(SEED), **votes))  # noqa: B023
        report(f"{kind}: FactorVAE", [("loop", f"{loop:.4f}", loop_s), ("look-up", f"{fast.score:.4f}", fast_s)])


if __name__ == "__main__":
    with threadpool_limits(limits=1):
        main()
