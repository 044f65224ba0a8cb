"""What each metric costs: ours against its plain definition, and the whole suite against the published DCI, in one run.

    python -m tests.benchmarks.metrics [--quick]

Codes are the synthetic `perfect` ones on the 480,000 cells of 3D Shapes: 10 units, 6 factors, 57 levels. TAD has 40
random binary attributes instead. CPU-seconds are those of this process, which computes on one thread. Of a plain
definition they leave out the drawing of its rows. `--quick` takes a tenth of the published sizes.
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import sklearn
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingClassifier
from threadpoolctl import threadpool_limits

from raydis.metrics.protocol import SEARCH, Protocol
from raydis.metrics.scoring import fitting_metrics, measure, score
from raydis.metrics.table import METRICS, sizes_of
from tests.metrics import plain
from tests.metrics.conftest import SHAPES3D_SIZES, synthetic_codes

SEED = 0
KEPT = {"batch_size", "prune_threshold", "num_bins", "quantile", "num_neighbors", "num_few"}  # not numbers of samples
Table = tuple[NDArray[np.float64], NDArray[np.int64]]


@dataclass(frozen=True)
class Row:
    name: str
    values: str
    cpu_s: float
    plain_values: str
    plain_s: float | None


def timed(function: Callable[[], Any]) -> tuple[Any, float]:
    start = time.process_time()
    return function(), time.process_time() - start


def shrunk(part: int) -> Protocol:
    """The search protocol with the sizes of all metrics divided by `part`."""
    every = sizes_of(replace(SEARCH, metrics="all"))
    overrides = {
        name: {size: value if size in KEPT else value // part for size, value in sizes.items()}
        for name, sizes in every.items()
    }
    return replace(SEARCH, overrides=overrides, metrics="all")


def definitions(codes: NDArray[np.float64], factors: NDArray[np.int64], part: int) -> Mapping[str, Callable[[], Any]]:
    """The plain definition of each metric, with the same sizes. That of `dci` is the published one."""
    rng = np.random.default_rng(SEED)
    many, fewer = 10_000 // part, 5_000 // part
    train, test = ((codes[rows], factors[rows]) for rows in (rng.integers(len(codes), size=n) for n in (many, fewer)))
    units, attributes = _binary(len(codes))
    first = np.random.default_rng(SEED).permutation(len(codes))[:many]
    boosting = partial(HistGradientBoostingClassifier, max_depth=3, min_samples_leaf=1, early_stopping=False)
    few = (train[0][:100], train[1][:100])
    return {
        "factor_vae": partial(
            plain.factor_vae, codes, SHAPES3D_SIZES, num_variance=many, num_train=many, num_eval=fewer
        ),
        "dci": partial(plain.dci, train, test),
        "mig": partial(plain.mig, *train),
        "sap": partial(plain.sap, train, test),
        "sap_continuous": partial(plain.sap_continuous, *train),
        "modularity_explicitness": partial(plain.modularity_explicitness, train, test),
        "beta_vae": partial(plain.beta_vae, codes, SHAPES3D_SIZES, num_train=many, num_eval=fewer),
        "irs": partial(plain.irs, *train),
        "infomec": partial(plain.infomec, codes[first], factors[first], seed=SEED),
        "med": partial(plain.med, train, test),
        "dci_es": partial(plain.dci_es, train, test),
        "tad": partial(plain.tad, units[first], attributes[first]),
        "self_mig": partial(plain.self_mig, train[0]),
        "sample_efficiency": partial(plain.sample_efficiency, few, train, test, boosting),
    }


def _binary(num_rows: int) -> Table:
    """Ten units that tell of one of 40 attributes each."""
    rng = np.random.default_rng(SEED)
    attributes = rng.integers(2, size=(num_rows, 40))
    return attributes[:, :10] + 0.3 * rng.normal(size=(num_rows, 10)), attributes


def rows_of(codes: NDArray[np.float64], factors: NDArray[np.int64], part: int) -> Iterator[Row]:
    protocol, known = shrunk(part), definitions(codes, factors, part)
    for name, metric in METRICS.items():
        table = _binary(len(codes)) if "binary_factors" in metric.needs else (codes, factors)
        measured = partial(measure, name, *table, protocol=protocol, seed=SEED)
        outcome, cpu_s = timed(measured)
        values, plain_s = timed(known[name]) if name in known else (None, None)
        told = [] if values is None else np.atleast_1d(values).tolist()
        yield Row(name, _brief(outcome.values.values()), cpu_s, _brief(told), plain_s)


def _brief(values: Any) -> str:
    return " ".join(f"{value:.3f}" for value in values)


def report(row: Row) -> None:
    line = f"{row.name:<24} {row.values:<20} {row.cpu_s:7.2f}   {row.plain_values:<20}"
    print(line if row.plain_s is None else f"{line} {row.plain_s:7.2f}   {row.plain_s / row.cpu_s:6.1f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tenth of the published sizes")
    part = 10 if parser.parse_args().quick else 1
    print(f"Python {platform.python_version()}, NumPy {np.__version__}, scikit-learn {sklearn.__version__}")
    print(f"{platform.machine()}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}, seed {SEED}")
    codes, factors = synthetic_codes("perfect", seed=SEED)
    fitting_metrics(codes, factors)  # warm up: the libraries are imported at their first use
    measure("dci", codes[:100], factors[:100], protocol=shrunk(100), seed=SEED)
    suite = partial(score, codes, factors, protocol=shrunk(part), num_draws=1, data_fingerprint="benchmark")
    _, suite_s = timed(suite)
    print(f"the whole suite, one draw, DCI by {SEARCH.estimator}: {suite_s:.1f} CPU-s")
    print(
        f"{'metric':<24} {'ours':<20} {'CPU-s':>7}   {'plain definition':<20} {'CPU-s':>7}   times as fast", flush=True
    )
    for row in rows_of(codes, factors, part):
        report(row)
        if row.name == "dci" and row.plain_s is not None:
            print(f"the published DCI alone costs {row.plain_s / suite_s:.1f} times the whole suite")


if __name__ == "__main__":
    with threadpool_limits(limits=1):
        main()
