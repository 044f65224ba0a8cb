"""Read the codes and factors that the command `evaluate` scores: from files, or by encoding images with checkpoints."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import typer

from raydis.errors import ConfigError, MetricError

if TYPE_CHECKING:
    from raydis.metrics.protocol import Protocol


class Inputs(NamedTuple):
    """The codes of each run by name, the factors and their names, and notes about what was left out.

    `factors` is None if there are none. `unit_widths` has the runs whose units are vectors.
    """

    codes: dict[str, Any]
    factors: Any
    factor_names: tuple[str, ...] | None
    notes: tuple[str, ...]
    unit_widths: dict[str, tuple[int, ...]] = {}  # noqa: RUF012  (nothing writes to it)


def read_inputs(
    sources: list[str],
    factors: str | None,
    factor_names: tuple[str, ...] | None,
    protocol: Protocol,
    storage: str,
    *,
    needs_factors: bool,
) -> Inputs:
    """Read codes and factors from files, or encode the images of checkpoints."""
    from raydis.evaluation.files import is_table

    kinds = {is_table(source) for source in sources}
    if len(kinds) > 1:
        raise ConfigError("files of codes and checkpoints cannot be scored together: run the command once for each")
    if len(set(sources)) < len(sources):
        raise ConfigError("the same codes are given twice: runs must be different trainings")
    if kinds == {True}:
        return _read_files(sources, factors, factor_names, needs_factors=needs_factors)
    if factors or factor_names:
        raise ConfigError("a checkpoint brings the factors of its own data set: leave out --factors and --factor-names")
    return _encode(sources, protocol, storage, needs_factors=needs_factors)


def _read_files(
    sources: list[str], factors: str | None, factor_names: tuple[str, ...] | None, *, needs_factors: bool
) -> Inputs:
    from raydis.evaluation.files import are_equal, read_codes, read_factors

    found = [read_codes(source, factor_names=None if factors else factor_names) for source in sources]
    labels = [printable(source) for source in sources] if len(sources) > 1 else ["codes"]
    codes = {label: each.codes for label, each in zip(labels, found, strict=True)}
    notes = tuple(dict.fromkeys(note for each in found for note in each.notes))
    if factors:
        return Inputs(codes, *read_factors(factors, factor_names=factor_names), notes)
    first = found[0].factors
    if first is None and not needs_factors:
        return Inputs(codes, None, None, notes)
    if first is None:
        raise ConfigError(
            f"{sources[0]} holds codes alone: give the factors of the same rows with --factors FILE, or name the "
            "columns that are factors with --factor-names NAME,NAME (of a CSV or Parquet file)"
        )
    for source, each in zip(sources, found, strict=True):
        if each.factors is None or not are_equal(each.factors, first):
            raise ConfigError(f"{source} and {sources[0]} have different factors: runs must encode the same samples")
    return Inputs(codes, first, found[0].factor_names or (None if hasattr(first, "columns") else factor_names), notes)


def _encode(sources: list[str], protocol: Protocol, storage: str, *, needs_factors: bool) -> Inputs:
    """Encode the images of each checkpoint's data set that the protocol scores."""
    from raydis.data import Loader
    from raydis.data.open import open_dataset
    from raydis.editor.editor import Editor
    from raydis.engine.evaluate import encode_images, scored_indices
    from raydis.metrics.representation import per_unit_pca

    codes: dict[str, Any] = {}
    widths: dict[str, tuple[int, ...]] = {}
    data: dict[str, Any] = {}
    factors, names = None, None
    for source in sources:
        editor = Editor.open(source, storage=storage)
        dataset, evaluation = open_dataset(editor.config.data), editor.config.evaluation
        if needs_factors and not dataset.factor_names:
            raise MetricError(
                f"{source}: data set {dataset.name} has no factors, so nothing can be scored but --metrics udr of "
                "several runs"
            )
        if reason := editor.method.not_ready():
            raise MetricError(f"{source} cannot be scored yet: {reason}")
        indices = scored_indices(dataset, protocol=protocol, max_images=evaluation.max_images)
        data[source] = (dataset.fingerprint, len(indices))
        if data[source] != data[sources[0]]:
            raise ConfigError(
                f"{source} and {sources[0]} were trained on different data or evaluation.max_images: runs must encode "
                "the same images"
            )
        typer.echo(f"encoding {len(indices):,} images with {source}", err=True)
        loader = Loader(dataset, batch_size=editor.config.train.batch_size, seed=0, device=editor.device)
        encoded = encode_images(editor.method, loader, indices)
        if editor.method.units_are_vectors:
            codes[source], widths[source] = encoded, editor.method.unit_widths
        else:  # the vector of a unit says no more than its scalar
            codes[source] = per_unit_pca(encoded)
        if dataset.factor_names:
            factors, names = dataset.factors(indices), dataset.factor_names
    return Inputs(codes, factors, names, (), widths)


def printable(name: str) -> str:
    """Return a name in which bytes that are no text, as a file name may have them, are written as escapes."""
    return name.encode(errors="backslashreplace").decode()
