"""Rotate the units of codes from anywhere to independent components, which are then scored in their place.

This is what `units.rotation=ica` does with the units of a run, except that it need not be undone: units that are copies
or mixtures of others do no harm, and there are as many components as the units vary in directions.
"""

from __future__ import annotations

from raydis.errors import FitError, MetricError
from raydis.evaluation.inputs import Codes


def rotate(run: Codes, *, seed: int) -> tuple[Codes, str]:
    """Return the independent components of a run's units, one scalar each, and a note about them.

    Raises:
        MetricError: ICA does not converge.
    """
    from raydis.models.ica import independent_components, shape_of

    try:
        components = independent_components(run.scalars, seed=seed)
    except FitError as error:
        raise MetricError(
            f"{run.name}: ICA of its {run.scalars.shape[1]} units did not converge: score them as they are"
        ) from error
    number, num_gaussian = components.shape[1], int(shape_of(components).gaussian.sum())
    note = f"{run.name}: {number} independent components of its {run.scalars.shape[1]} units are scored in their place"
    if num_gaussian > 1:
        note += f"; {num_gaussian} of them look Gaussian, and ICA cannot tell such components from their mixtures"
    return Codes(run.name, components, tuple(f"component {unit}" for unit in range(number))), note
