"""Named evaluation protocols: which images are scored, by which estimator, with how many samples.

Two numbers may be compared only if the same protocol and the same estimator made them from the same data:
`raydis.metrics.scores.comparable` decides that, and every result carries what it needs to know.

PUBLISHED is the evaluation of DisDiff, EncDiff and DyGA+SD: disentanglement_lib's sizes and gradient boosting, on the
codes of the whole data set, each unit reduced to its first principal component.

SEARCH ranks trials at the published sizes. It saves by `hist` in place of the reference, and by a product sub-grid: a
trial encodes at most `max_images` images, and DCI has fewer levels to fit. On 12 synthetic models (noise 0.05 to 0.5,
pairs of codes rotated by 0 to 25 degrees) D on the 10,000-cell sub-grid of 3D Shapes orders the models as `hist` does
on all 480,000 cells with Kendall's tau 0.94, at half the cost: a few CPU-seconds with 10 units. A half or a quarter of
the samples would save another third or half, but tau falls to 0.85 and 0.82, since few samples punish noisy codes; one
`tree` at full sizes gives 0.82. Values on a sub-grid read higher, by up to 0.13 in D.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from raydis.metrics.importance import Estimator


@dataclass(frozen=True)
class Protocol:
    """How representations are evaluated.

    Every metric draws with replacement from the rows it is given. How many it draws stands in the table of metrics
    (`raydis.metrics.table`), and `sizes_of` there returns all sizes of a protocol.

    Attributes:
        name: what results call it.
        estimator: DCI's classifier unless the caller says otherwise.
        whole_data_set: codes are to be those of every image; otherwise those of a fixed `search_subgrid`.
        overrides: sizes other than those of the table, by metric and argument, as in `{"dci": {"num_train": 500}}`.
    """

    name: Literal["published", "search"]
    estimator: Estimator
    whole_data_set: bool
    overrides: Mapping[str, Mapping[str, float]] = field(default_factory=dict[str, Mapping[str, float]], hash=False)


PUBLISHED = Protocol("published", estimator="reference", whole_data_set=True)
SEARCH = Protocol("search", estimator="hist", whole_data_set=False)
