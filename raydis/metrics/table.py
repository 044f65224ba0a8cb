"""The table METRICS of all metrics of codes and factors that raydis computes.

Scores, objectives of a sweep, tables, reports and promotion take the names, titles and ranges of numbers from it. To
add a metric, write its function in a file of its own and add one entry to METRICS; `tests/contracts/test_metric.py`
then tests it.

Metrics are computed and shown in the order of the table. The evaluation stops at the first metric that cannot score the
codes, so cheap metrics come before expensive ones.
"""

from __future__ import annotations

import difflib

import numpy as np
from numpy.typing import ArrayLike

from raydis.errors import MetricError
from raydis.metrics.beta_vae import beta_vae
from raydis.metrics.checks import check_table
from raydis.metrics.dci import dci
from raydis.metrics.dci_es import dci_es
from raydis.metrics.entry import Metric, Number
from raydis.metrics.factor_vae import factor_vae
from raydis.metrics.grouped import grouped_dci, leakage
from raydis.metrics.infomec import infomec
from raydis.metrics.irs import irs
from raydis.metrics.mcc import mcc
from raydis.metrics.med import med
from raydis.metrics.mig import mig
from raydis.metrics.modularity import modularity_explicitness
from raydis.metrics.protocol import Protocol
from raydis.metrics.sample_efficiency import sample_efficiency
from raydis.metrics.sap import sap, sap_continuous
from raydis.metrics.self_mig import self_mig
from raydis.metrics.tad import check_binary, tad

METRICS: dict[str, Metric] = {
    "factor_vae": Metric(
        function=factor_vae,
        numbers=(Number("factor_vae", field="score", short="fvae", title="FactorVAE score"),),
        sizes={
            "num_variance": 10_000,
            "num_train": 10_000,
            "num_eval": 5_000,
            "batch_size": 64,
            "prune_threshold": 0.05,  # standard deviation, in raw code values, below which a unit is left out
        },
        options=("index",),
        details={"num_active_units": "num_active"},
        default=True,
    ),
    "dci": Metric(
        function=dci,
        numbers=(
            Number("dci_disentanglement", field="disentanglement", short="dci", title="DCI disentanglement"),
            Number("dci_completeness", field="completeness", short="completeness", title="DCI completeness"),
            Number(
                "dci_informativeness", field="informativeness", short="informativeness", title="DCI informativeness"
            ),
        ),
        sizes={"num_train": 10_000, "num_test": 5_000},
        options=("estimator", "num_jobs", "known_fits"),
        details={"importance": "importance"},
        default=True,
    ),
    "mig": Metric(
        function=mig,
        numbers=(Number("mig", field="score", short="mig", title="MIG"),),
        sizes={"num_samples": 10_000, "num_bins": 20},
        needs=("discrete_factors", "two_units"),
        default=True,
    ),
    "sap": Metric(
        function=sap,
        numbers=(Number("sap", field="score", short="sap", title="SAP"),),
        sizes={"num_train": 10_000, "num_test": 5_000},
        needs=("discrete_factors", "two_units"),
    ),
    "sap_continuous": Metric(
        function=sap_continuous,
        numbers=(Number("sap_continuous", field="score", short="sap cont", title="SAP, continuous"),),
        sizes={"num_samples": 10_000},
        needs=("discrete_factors", "two_units"),
    ),
    "modularity_explicitness": Metric(
        function=modularity_explicitness,
        numbers=(
            Number("modularity", field="modularity", short="modularity", title="Modularity"),
            Number("explicitness", field="explicitness", short="explicitness", title="Explicitness"),
        ),
        sizes={"num_train": 10_000, "num_test": 5_000, "num_bins": 20},
    ),
    "beta_vae": Metric(
        function=beta_vae,
        numbers=(Number("beta_vae", field="score", short="bvae", title="BetaVAE score"),),
        sizes={"num_train": 10_000, "num_eval": 5_000, "batch_size": 64},
        options=("index",),
    ),
    "irs": Metric(
        function=irs,
        numbers=(Number("irs", field="score", short="irs", title="IRS"),),
        sizes={"num_samples": 10_000, "quantile": 0.99},
    ),
    "infomec": Metric(
        function=infomec,
        numbers=(
            Number("info_modularity", field="modularity", short="infom", title="InfoM"),
            Number("info_compactness", field="compactness", short="infoc", title="InfoC"),
            Number("info_explicitness", field="explicitness", short="infoe", title="InfoE"),
        ),
        sizes={"max_samples": 10_000, "num_neighbors": 10},
        needs=("discrete_factors", "two_units"),
    ),
    "med": Metric(
        function=med,
        numbers=(
            Number("med_disentanglement", field="disentanglement", short="med", title="MED disentanglement"),
            Number("med_completeness", field="completeness", short="med compl", title="MED completeness"),
            Number("med_informativeness", field="informativeness", short="med inf", title="MED informativeness"),
        ),
        sizes={"num_train": 10_000, "num_test": 5_000, "num_bins": 20},
    ),
    "dci_es": Metric(
        function=dci_es,
        numbers=(
            Number("dci_explicitness", field="explicitness", short="dci e", title="DCI-ES explicitness", low=-1.0),
            Number("dci_size", field="size", short="dci s", title="DCI-ES size"),
        ),
        sizes={"num_train": 10_000, "num_test": 5_000},
    ),
    "tad": Metric(
        function=tad,
        numbers=(Number("tad", field="score", short="tad", title="TAD", high=20.0),),
        sizes={"num_samples": 10_000},
        needs=("discrete_factors", "binary_factors", "two_units"),
        details={"num_captured_attributes": "num_captured"},
    ),
    "self_mig": Metric(
        function=self_mig,
        numbers=(Number("self_mig", field="score", short="self-mig", title="Self-MIG"),),
        sizes={"num_samples": 10_000, "num_bins": 20},
        needs=("two_units",),
    ),
    "sample_efficiency": Metric(
        function=sample_efficiency,
        numbers=(Number("sample_efficiency", field="score", short="efficiency", title="Sample efficiency"),),
        sizes={"num_few": 100, "num_many": 10_000, "num_test": 5_000},
        options=("estimator", "num_jobs", "known_fits"),
        details={"few_labels_accuracy": "few_accuracy", "many_labels_accuracy": "many_accuracy"},
    ),
    "mcc": Metric(
        function=mcc,
        numbers=(Number("mcc", field="score", short="mcc", title="Mean correlation coefficient (MCC)"),),
        needs=(),
    ),
    "scalar_factor_vae": Metric(
        function=factor_vae,
        numbers=(Number("scalar_factor_vae", field="score", short="fvae*", title="FactorVAE score of all scalars"),),
        sizes={
            "num_variance": 10_000,
            "num_train": 10_000,
            "num_eval": 5_000,
            "batch_size": 64,
            "prune_threshold": 0.05,  # the scalars of a unit have a mean variance of 1, see `all_scalars`
        },
        options=("index",),
        needs=("discrete_factors", "vectors"),
        details={"num_active_scalars": "num_active"},
    ),
    "grouped_dci": Metric(
        function=grouped_dci,
        numbers=(
            Number("grouped_disentanglement", field="disentanglement", short="gdci", title="Grouped disentanglement"),
            Number("grouped_completeness", field="completeness", short="gcompl", title="Grouped completeness"),
            Number("scalar_disentanglement", field="scalar_disentanglement", short="dci*", title="DCI of all scalars"),
            Number(
                "scalar_completeness",
                field="scalar_completeness",
                short="compl*",
                title="DCI completeness of all scalars",
            ),
            Number(
                "scalar_informativeness",
                field="informativeness",
                short="inf*",
                title="DCI informativeness of all scalars",
            ),
        ),
        sizes={"num_train": 10_000, "num_test": 5_000},
        options=("estimator", "num_jobs", "groups"),
        needs=("discrete_factors", "vectors"),
        details={"grouped_importance": "importance"},
    ),
    "leakage": Metric(
        function=leakage,
        numbers=(
            Number("unit_gap", field="gap", short="gap", title="Gap between units"),
            Number("unit_leakage", field="leakage", short="leakage", title="Leakage between units", direction="min"),
        ),
        sizes={"num_train": 10_000, "num_test": 5_000},
        options=("estimator", "groups"),
        needs=("discrete_factors", "two_units", "vectors"),
        details={"unit_accuracy": "accuracy"},
    ),
}


def numbers() -> dict[str, Number]:
    """Return the numbers of all metrics by name, in the order of the table."""
    return {number.name: number for metric in METRICS.values() for number in metric.numbers}


def number_named(name: str) -> Number:
    """Return a number by its name.

    Raises:
        MetricError: no metric has this number. The message suggests the nearest name.
    """
    known = numbers()
    if name in known:
        return known[name]
    near = METRICS[name].headline.name if name in METRICS else _nearest(name)
    hint = f"; did you mean {near}?" if near else "."
    raise MetricError(f"no metric gives a number named {name}{hint} The known names are {', '.join(known)}")


def _nearest(name: str) -> str | None:
    return next(iter(difflib.get_close_matches(name, numbers(), n=1, cutoff=0.5)), None)


def metrics_of(protocol: Protocol) -> tuple[str, ...]:
    """Return the names of the metrics that a protocol computes, in the order of the table.

    Raises:
        MetricError: it names no metric, or one that is unknown. The message suggests the nearest name.
    """
    if protocol.metrics is None:
        return tuple(name for name, metric in METRICS.items() if metric.default)
    if protocol.metrics == "all":
        return tuple(METRICS)
    for name in protocol.metrics:
        if name not in METRICS:
            near = next(
                (key for key, metric in METRICS.items() if name in {each.name for each in metric.numbers}), None
            )
            near = near or next(iter(difflib.get_close_matches(name, METRICS, n=1, cutoff=0.5)), None)
            hint = f"; did you mean {near}?" if near else "."
            raise MetricError(f"no metric is named {name}{hint} The known names are {', '.join(METRICS)}, or all")
    if not protocol.metrics:
        raise MetricError(f"no metric is chosen: name some of {', '.join(METRICS)}, or all")
    return tuple(name for name in METRICS if name in protocol.metrics)


def check_computed(number: str, protocol: Protocol) -> None:
    """Check that a protocol computes the metric of a number.

    Raises:
        MetricError: it does not, or no metric has this number.
    """
    wanted = number_named(number)
    owner = next(name for name, metric in METRICS.items() if wanted in metric.numbers)
    chosen = metrics_of(protocol)
    if owner not in chosen:
        raise MetricError(
            f"{number} is not computed: add its metric to evaluation.metrics, as in [{', '.join([*chosen, owner])}]"
        )


def check_needs(name: str, codes: ArrayLike, factors: ArrayLike) -> None:
    """Check that codes (M, N) and factors (M, F) have what a metric needs.

    Raises:
        MetricError: they lack it.
    """
    needs = METRICS[name].needs
    if "discrete_factors" in needs:
        _, levels = check_table(codes, factors)
        if "binary_factors" in needs:
            check_binary(levels)
    if "two_units" in needs and np.shape(codes)[1:] == (1,):
        raise MetricError(f"{name} compares units, but there is only one: give the codes of at least two units")


def sizes_of(protocol: Protocol) -> dict[str, dict[str, float]]:
    """Return the sample sizes of the protocol's metrics, by metric and argument, as scores store them.

    Raises:
        MetricError: the protocol overrides a size that no metric has, or names an unknown metric.
    """
    sizes = {name: dict(metric.sizes) for name, metric in METRICS.items()}
    for name, changed in protocol.overrides.items():
        known = sizes.get(name, {})
        if unknown := changed.keys() - known.keys():
            raise MetricError(
                f"protocol {protocol.name} overrides {', '.join(sorted(unknown))} of {name}, which it does not have: "
                f"its sizes are {', '.join(known) or 'none'}"
            )
        known.update(changed)
    return {name: sizes[name] for name in metrics_of(protocol)}
