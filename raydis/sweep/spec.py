"""The specification of a sweep, and how a sweep file is read: base run, search space, objectives, controls, promotion.

A spec is validated as a whole before anything starts: every searched key must exist in the run configuration, and the
corners of the search space must be valid runs.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, ValidationInfo, field_validator, model_validator

from raydis.config import RunConfig
from raydis.config.files import Tree, apply_overrides, field_paths, parse, read_yaml
from raydis.config.presets import expand
from raydis.config.section import Model
from raydis.errors import ConfigError, MetricError
from raydis.metrics.protocol import SEARCH
from raydis.metrics.standing import DEFAULT_OBJECTIVES, Objective
from raydis.metrics.table import check_computed
from raydis.sweep.domains import Domain, corners
from raydis.sweep.settings import check_key, configure

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"


class Control(Model):
    """A fixed run to compare the trials with: the base run with some keys set, once or with several seeds."""

    name: str = Field(pattern=NAME)
    set: dict[str, Any] = Field(default_factory=dict, description="Dotted keys of the run and their values.")
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        default=(), description="Seeds of the control's runs, one run each; empty: one run with the base run's seed."
    )

    @model_validator(mode="after")
    def _one_seed_a_run(self) -> Self:
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds {', '.join(map(str, self.seeds))}: each may occur only once")
        if self.seeds and "seed" in self.set:
            raise ValueError("seeds and set.seed exclude each other: keep seeds")
        return self

    def runs(self) -> dict[str, dict[str, Any]]:
        """Return the settings of each run of this control, by the run's name: NAME, or NAME/SEED."""
        return {f"{self.name}/{seed}": self.set | {"seed": seed} for seed in self.seeds} or {self.name: self.set}


def _check_alias(alias: str) -> str:
    if alias.isdecimal():
        raise ValueError(f"{alias} consists of digits alone, which name a version: choose a word, such as best")
    return alias


class PromotionConfig(Model):
    """How the best trial is scored and registered, and which alias may move to it."""

    name: str | None = Field(default=None, pattern=NAME, description="Model name; null takes the sweep file's name.")
    alias: Annotated[str, AfterValidator(_check_alias)] = Field(
        default="best",
        pattern=NAME,
        description="Alias that moves if the new version is better by more than the margin of the scores.",
    )
    protocol: Literal["published", "search"] = Field(default="published", description="Protocol of the final scores.")
    estimator: Literal["reference", "hist", "tree"] = Field(default="reference", description="Classifier of DCI.")


class StoppingConfig(Model):
    """Early stopping by all objectives; see raydis/sweep/README.md, also for when not to use it."""

    reduction_factor: float = Field(default=2.0, gt=1.0, description="About one trial in so many goes on from a rung.")
    rungs: tuple[Annotated[int, Field(ge=1)], ...] | None = Field(
        default=None,
        min_length=1,
        description="Those of run.evaluation.rungs at which trials are compared; null: all. Let each be about "
        "reduction_factor times the one before.",
    )
    grace_images: int | None = Field(
        default=None,
        ge=0,
        description="Most images that a trial may see while its units are not ready; null: no limit.",
    )
    pause: bool = Field(
        default=True, description="Pause trials at a rung, so that they may go on later; false: stop them at once."
    )

    def check(self, run: RunConfig) -> None:
        """Raise ValueError if the trials of this base run cannot be stopped early."""
        scored = run.evaluation.rungs
        if not scored:
            raise ValueError(
                "stopping compares trials by their scores at run.evaluation.rungs, which is empty: name numbers of "
                "images"
            )
        if unknown := [rung for rung in self.rungs or () if rung not in scored]:
            raise ValueError(
                f"stopping.rungs has {unknown}, and run.evaluation.rungs={list(scored)} does not: add them"
            )
        if self.rungs and list(self.rungs) != sorted(set(self.rungs)):
            raise ValueError(f"stopping.rungs={list(self.rungs)} must rise")
        if late := [rung for rung in self.rungs or scored if rung >= run.train.num_images]:
            raise ValueError(
                f"stopping compares trials after {late} images, and run.train.num_images={run.train.num_images}: name "
                "earlier rungs in stopping.rungs"
            )
        if run.compute.num_workers > 1:
            raise ValueError(
                f"stopping works for trials with one worker, and run.compute.num_workers={run.compute.num_workers}: "
                "set one of them to its default"
            )


class SweepSpec(Model):
    """The specification of one sweep."""

    name: str = Field(pattern=NAME, description="First part of the sweep's folder, and the promoted model's name.")
    run: RunConfig = Field(description="Base run; a sweep file may start it from a preset.")
    num_trials: int = Field(default=16, ge=0, description="Number of sampled trials, without controls.")
    search: dict[str, Domain] = Field(
        default=None,
        validate_default=True,
        description="Dotted key of the run -> the values it may take; null: the default of run.method.",
    )
    objectives: tuple[Objective, ...] = Field(
        default=DEFAULT_OBJECTIVES,
        min_length=1,
        description="Scores that the sampler optimises and that decide the best trial; see raydis/metrics/standing.py.",
    )
    max_concurrent: int | None = Field(
        default=None, ge=1, description="Most trials at once; null: as many as the cluster holds."
    )
    max_failures: int = Field(
        default=1,
        ge=0,
        description="Most restarts of a trial after its process died; it continues from its checkpoint.",
    )
    seed: int = Field(default=0, ge=0, description="Seed of the sampler.")
    sampler: Literal["tpe", "random", "nsga2"] = Field(default="tpe", description="Optuna's sampler.")
    controls: tuple[Control, ...] = Field(default=(), description="Fixed runs to compare with; they run first.")
    promotion: PromotionConfig | None = Field(default=PromotionConfig(), description="null: promote nothing.")
    stopping: StoppingConfig | None = Field(default=None, description="null: every trial trains to its end.")

    @field_validator("search", mode="before")
    @classmethod
    def _default_space(cls, search: Any, info: ValidationInfo) -> Any:
        if search is not None:
            return search
        run, num_trials = info.data.get("run"), info.data.get("num_trials")
        return run.method.default_search_space() if run and num_trials else {}

    @property
    def total_trials(self) -> int:
        """The number of sampled trials and control runs."""
        return self.num_trials + sum(len(control.runs()) for control in self.controls)

    @property
    def model_name(self) -> str:
        """The name under which the best trial is registered."""
        return (self.promotion and self.promotion.name) or self.name

    @model_validator(mode="after")
    def _can_rank(self) -> Self:
        if self.run.data.name == "image_folder":
            raise ValueError(
                "run.data.name=image_folder has no factors, so no score can rank the trials: "
                "train one run with `python -m raydis train`"
            )
        if not self.run.method.scored:
            raise ValueError(
                f"run.method.kind={self.run.method.kind} has no units, and so no scores to rank trials by: "
                "train one run with `python -m raydis train`"
            )
        if self.run.evaluation.protocol == "none":
            raise ValueError("run.evaluation.protocol=none leaves no score to rank the trials by: use search")
        if not self.total_trials:
            raise ValueError("num_trials=0 and no controls: there is nothing to run")
        if self.num_trials and not self.search:
            raise ValueError(f"num_trials={self.num_trials}, but search is empty: name keys to search, or set 0")
        computed = replace(SEARCH, metrics=self.run.evaluation.metrics)
        for objective in self.objectives:
            try:
                check_computed(objective.metric, computed)
            except MetricError as error:
                raise ValueError(f"objectives: {str(error).replace(' evaluation.', ' run.evaluation.')}") from error
        for what, names in (
            ("objectives", [objective.metric for objective in self.objectives]),
            ("controls", [control.name for control in self.controls]),
        ):
            if len(set(names)) != len(names):
                raise ValueError(f"{what} names {', '.join(names)}: each may occur only once")
        return self

    @model_validator(mode="after")
    def _stops(self) -> Self:
        if self.stopping is not None:
            self.stopping.check(self.run)
        return self

    @model_validator(mode="after")
    def _keys(self) -> Self:
        for key in self.search:
            check_key(key, "search")
        for control in self.controls:
            for key in control.set:
                check_key(key, f"control {control.name}")
        for key, other in itertools.permutations(self.search, 2):
            if other.startswith(f"{key}."):
                raise ValueError(f"search: {other} lies inside {key}, which is searched as a whole: keep one of them")
        return self

    @model_validator(mode="after")
    def _corners(self) -> Self:
        places = [("search", corner) for corner in corners(self.search)]
        places += [(f"control {name}", run) for control in self.controls for name, run in control.runs().items()]
        for where, settings in places:
            try:
                configure(self.run, settings)
            except ConfigError as error:
                raise ValueError(f"{where}: {error}") from error
        return self


def load_spec(path: Path, overrides: list[str]) -> SweepSpec:
    """Read a sweep file, apply `KEY=VALUE` overrides to it, and expand the run's preset.

    Raises:
        ConfigError: the file cannot be read or is not a valid sweep. The message is one line; for a wrong name it
            suggests the nearest valid one.
    """
    tree = read_yaml(path)
    if isinstance(tree.get("search"), dict):
        tree["search"] = _nested(tree["search"])  # so that an override can change a part of it
    tree = apply_overrides(tree, overrides)
    if isinstance(tree.get("search"), dict):
        tree["search"] = dict(_flat(tree["search"]))
    if isinstance(tree.get("run"), dict):
        tree["run"] = expand(tree["run"])
    return parse(SweepSpec, tree, source=str(path))


def _nested(search: Tree) -> Tree:
    """Convert dotted and nested keys to nested mappings.

    Raises:
        ConfigError: two keys name the same setting, or one of them names a section in which the other lies.
    """
    tree: Tree = {}
    written = dict[str, str]()  # dotted key of a setting -> the key as the file has it
    for first, value in search.items():
        for key, domain in _flat({str(first): value}):
            shown = key if key == str(first) else f"{key} (below {first})"
            for other, before in written.items():
                if key == other:
                    raise ConfigError(f"search: {before} and {shown} name the same setting: keep one of them")
                if key.startswith(f"{other}.") or other.startswith(f"{key}."):
                    inner, outer = (shown, before) if key.startswith(f"{other}.") else (before, shown)
                    raise ConfigError(
                        f"search: {inner} lies inside {outer}, which is searched as a whole: keep one of them"
                    )
            written[key] = shown
            *above, last = key.split(".")
            node = tree
            for name in above:
                node = node.setdefault(name, {})
            node[last] = domain
    return tree


def _flat(tree: Tree, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Convert nested mappings to dotted keys. A mapping that has a kind, or whose key is a field, is a domain."""
    sections = {path.rpartition(".")[0] for path in field_paths(RunConfig)}
    for name, node in tree.items():
        key = f"{prefix}{name}"
        if isinstance(node, dict) and not isinstance(node.get("kind"), str) and key in sections:
            yield from _flat(node, f"{key}.")
        else:
            yield key, node
