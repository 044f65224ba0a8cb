"""The evaluation protocols: which images are scored, with which DCI estimator, and with how many samples.

Two numbers can be compared only if they have the same protocol, the same estimator and the same data. Every result
stores these, and `raydis.metrics.scores.differences` compares them.

PUBLISHED is the evaluation of DisDiff, EncDiff and DyGA+SD: the sample sizes and the gradient boosting of
disentanglement_lib, on the codes of the whole data set, with each unit reduced to its first principal component.

SEARCH ranks the trials of a sweep, with the published sample sizes. It is cheaper because it uses `hist` instead of the
reference estimator, and a sub-grid of the factors: a trial encodes at most `max_images` images, and DCI has fewer
levels to fit. For 12 synthetic models (noise 0.05 to 0.5, pairs of codes rotated by 0 to 25 degrees), we compared the
order by D on the 10,000-cell sub-grid of 3D Shapes with the order by `hist` on all 480,000 cells. Kendall's tau is
0.94, at half the cost: a few CPU-seconds with 10 units. A half or a quarter of the samples would save another third or
half of the cost, but tau falls to 0.85 and 0.82, because small samples lower the scores of noisy codes. One `tree` with
full sizes has 0.82. Values on a sub-grid are higher, by up to 0.13 in D.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from raydis.metrics.importance import Estimator


@dataclass(frozen=True)
class Protocol:
    """The settings of an evaluation.

    Every metric draws samples with replacement from the rows that it receives. The table of metrics
    (`raydis.metrics.table`) holds the numbers of samples, and `sizes_of` there returns all sizes of a protocol.

    Attributes:
        name: the name of the protocol in results.
        estimator: the default classifier of DCI.
        metrics: names of the metrics that are computed; "all" computes every metric that fits the table, and None those
            that the table of metrics marks as default, on which the published comparisons rest.
        whole_data_set: whether all images are encoded and scored; otherwise those of a fixed `search_subgrid`.
        overrides: sizes that replace those of the table, by metric and argument, as in `{"dci": {"num_train": 500}}`.
    """

    name: Literal["published", "search"]
    estimator: Estimator
    whole_data_set: bool
    metrics: tuple[str, ...] | Literal["all"] | None = None
    overrides: Mapping[str, Mapping[str, float]] = field(default_factory=dict[str, Mapping[str, float]], hash=False)


PUBLISHED = Protocol("published", estimator="reference", whole_data_set=True)
SEARCH = Protocol("search", estimator="hist", whole_data_set=False)
