"""What a sweep file says, typed: base run, search space, objectives, controls, promotion.

A spec is checked as a whole before anything starts: every searched key must exist in the run configuration, and the
corners of the space must be valid runs.
"""

from __future__ import annotations

import copy
import difflib
import itertools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import Field, ValidationInfo, field_validator, model_validator

from raydis.config import RunConfig
from raydis.config.files import Tree, apply_overrides, field_paths, parse, read_yaml
from raydis.config.former import replacement
from raydis.config.presets import expand
from raydis.config.section import Model
from raydis.errors import ConfigError
from raydis.metrics.standing import DEFAULT_OBJECTIVES, Objective

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
FIXED_SECTIONS = {
    "data": "scores on different data do not compare",
    "evaluation": "scores of different protocols do not compare",
    "compute": "trials differ by their settings, not by their machines",
}
MAX_CORNERS = 1024


class IntRange(Model):
    """Integers from `low` to `high`, both included."""

    kind: Literal["int"]
    low: int
    high: int
    step: int = Field(default=1, ge=1, description="Distance between neighbours; only without log.")
    log: bool = Field(default=False, description="Draw evenly in the logarithm.")

    @model_validator(mode="after")
    def _bounds(self) -> Self:
        _check_bounds(self.low, self.high, self.log)
        if self.log and self.step != 1:
            raise ValueError(f"step={self.step} does not go with log=true: remove one of them")
        if (self.high - self.low) % self.step:
            raise ValueError(f"high={self.high} cannot be reached from low={self.low} in steps of {self.step}")
        return self

    def ends(self) -> tuple[Any, ...]:
        """The values that a corner of the space can have."""
        return (self.low, self.high)

    def holds(self, value: Any) -> bool:
        """Whether a value lies in the range."""
        whole = isinstance(value, int) and not isinstance(value, bool)
        return whole and self.low <= value <= self.high and (value - self.low) % self.step == 0


class FloatRange(Model):
    """Numbers from `low` to `high`."""

    kind: Literal["float"]
    low: float
    high: float
    log: bool = Field(default=False, description="Draw evenly in the logarithm.")

    @model_validator(mode="after")
    def _bounds(self) -> Self:
        _check_bounds(self.low, self.high, self.log)
        return self

    def ends(self) -> tuple[Any, ...]:
        """The values that a corner of the space can have."""
        return (self.low, self.high)

    def holds(self, value: Any) -> bool:
        """Whether a value lies in the range."""
        return isinstance(value, int | float) and not isinstance(value, bool) and self.low <= value <= self.high


class Choice(Model):
    """One of several values; a value may be a list or a whole section, which then replaces what was there."""

    kind: Literal["choice"]
    values: tuple[Any, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        labels = [json.dumps(value, sort_keys=True) for value in self.values]
        if len(set(labels)) != len(labels):
            raise ValueError(f"values {', '.join(labels)} are not distinct")
        return self

    def ends(self) -> tuple[Any, ...]:
        """The values that a corner of the space can have: all of them."""
        return self.values

    def holds(self, value: Any) -> bool:
        """Whether a value is one of the choices."""
        return any(type(value) is type(known) and value == known for known in self.values)


Domain = Annotated[IntRange | FloatRange | Choice, Field(discriminator="kind")]


class Control(Model):
    """A fixed run to compare with: the base run, with some keys set, once or with several seeds."""

    name: str = Field(pattern=NAME)
    set: dict[str, Any] = Field(default_factory=dict, description="Dotted keys of the run and their values.")
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        default=(), description="One run with each as `seed` of the run; empty: one run with the run's own."
    )

    @model_validator(mode="after")
    def _one_seed_a_run(self) -> Self:
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds {', '.join(map(str, self.seeds))}: each may be there once")
        if self.seeds and "seed" in self.set:
            raise ValueError("seeds and set.seed exclude each other: keep seeds")
        return self

    def runs(self) -> dict[str, dict[str, Any]]:
        """The settings of each of its runs, by the run's name: NAME, or NAME/SEED."""
        return {f"{self.name}/{seed}": self.set | {"seed": seed} for seed in self.seeds} or {self.name: self.set}


class PromotionConfig(Model):
    """How the best trial becomes a version in the registry."""

    name: str | None = Field(default=None, pattern=NAME, description="Model name; null takes the sweep file's name.")
    alias: str = Field(
        default="best",
        pattern=NAME,
        description="Alias that moves if the new version is better by the objectives, beyond the scores' spread.",
    )
    protocol: Literal["published", "search"] = Field(default="published", description="Protocol of the final scores.")
    estimator: Literal["reference", "hist", "tree"] = Field(default="reference", description="DCI's classifier in it.")


class SweepSpec(Model):
    """One sweep."""

    name: str = Field(pattern=NAME, description="First part of the sweep's folder, and the promoted model's name.")
    run: RunConfig = Field(description="Base run; a sweep file may start it from a preset.")
    num_trials: int = Field(default=16, ge=0, description="Sampled trials; controls come on top.")
    search: dict[str, Domain] = Field(
        default=None,
        validate_default=True,
        description="Dotted key of the run -> the values it may take; null: the default of run.method.",
    )
    objectives: tuple[Objective, ...] = Field(
        default=DEFAULT_OBJECTIVES,
        min_length=1,
        description="What the sampler searches for, and what makes a trial the best: see raydis/metrics/standing.py.",
    )
    max_concurrent: int | None = Field(
        default=None, ge=1, description="Trials at once; null: as many as the cluster holds."
    )
    max_failures: int = Field(
        default=1, ge=0, description="Restarts of a trial whose process died, from its checkpoint."
    )
    seed: int = Field(default=0, ge=0, description="Seed of the sampler.")
    sampler: Literal["tpe", "random", "nsga2"] = Field(default="tpe", description="Optuna's sampler.")
    controls: tuple[Control, ...] = Field(default=(), description="Runs to compare with; they go first.")
    promotion: PromotionConfig | None = Field(default=PromotionConfig(), description="null: promote nothing.")

    @field_validator("search", mode="before")
    @classmethod
    def _default_space(cls, search: Any, info: ValidationInfo) -> Any:
        if search is not None:
            return search
        run, num_trials = info.data.get("run"), info.data.get("num_trials")
        return run.method.default_search_space() if run and num_trials else {}

    @property
    def total_trials(self) -> int:
        """Sampled trials and controls."""
        return self.num_trials + sum(len(control.runs()) for control in self.controls)

    @property
    def model_name(self) -> str:
        """Name under which the best trial is registered."""
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
                f"run.method.kind={self.run.method.kind} is a first stage without scores to rank trials by: "
                "train one run with `python -m raydis train`"
            )
        if self.run.evaluation.protocol == "none":
            raise ValueError("run.evaluation.protocol=none leaves no score to rank the trials by: use search")
        if not self.total_trials:
            raise ValueError("num_trials=0 and no controls: there is nothing to run")
        if self.num_trials and not self.search:
            raise ValueError(f"num_trials={self.num_trials}, but search is empty: name keys to search, or set 0")
        for what, names in (
            ("objectives", [objective.metric for objective in self.objectives]),
            ("controls", [control.name for control in self.controls]),
        ):
            if len(set(names)) != len(names):
                raise ValueError(f"{what} names {', '.join(names)}: each may be there once")
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
    """Reads a sweep file, applies `KEY=VALUE` overrides to it, and expands the run's preset.

    Raises:
        ConfigError: unreadable, or anything in it is wrong; in one line with the nearest valid name.
    """
    tree = read_yaml(path)
    if isinstance(tree.get("search"), dict):
        tree["search"] = _nested(tree["search"])  # so that an override can reach into it
    tree = apply_overrides(tree, overrides)
    if isinstance(tree.get("search"), dict):
        tree["search"] = dict(_flat(tree["search"]))
    if isinstance(tree.get("run"), dict):
        tree["run"] = expand(tree["run"])
    return parse(SweepSpec, tree, source=str(path))


def configure(base: RunConfig, settings: Mapping[str, Any]) -> RunConfig:
    """The base run with the values at some dotted keys replaced.

    Raises:
        ConfigError: the result is not a valid run.
    """
    tree: Tree = base.model_dump(mode="json")
    for key, value in settings.items():
        *above, last = key.split(".")
        node = tree
        for name in above:
            node = node.setdefault(name, {})
        node[last] = copy.deepcopy(value)
    return parse(RunConfig, tree, source=_text(settings) or "run")


def value_at(config: RunConfig, key: str) -> Any:
    """The plain value of a run at a dotted key."""
    value: Any = config.model_dump(mode="json")
    for name in key.split("."):
        value = value[name]
    return value


def corners(search: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Corners of the space: all of them, or where there are too many a fixed random part, in which every end occurs."""
    ends = [domain.ends() for domain in search.values()]
    if int(np.prod([len(values) for values in ends], dtype=np.int64)) <= MAX_CORNERS:
        for values in itertools.product(*ends):
            yield dict(zip(search, values, strict=True))
        return
    rng, longest = np.random.default_rng(0), max(map(len, ends))
    for row in range(MAX_CORNERS):
        picks = [row % len(values) if row < longest else int(rng.integers(len(values))) for values in ends]
        yield {key: values[pick] for key, values, pick in zip(search, ends, picks, strict=True)}


def check_key(key: str, where: str) -> None:
    """Refuses a key that no run has, or that must be the same in all trials of a sweep."""
    section = key.split(".")[0]
    if section in FIXED_SECTIONS:
        raise ValueError(f"{where}: {key} must be the same in all trials ({FIXED_SECTIONS[section]}): set run.{key}")
    known = field_paths(RunConfig)
    if key not in known:
        if instead := replacement(key):
            raise ValueError(f"{where}: {key} {instead}")
        near = difflib.get_close_matches(key, known, n=1, cutoff=0.5) or [
            path for path in known if path.endswith(f".{key}")
        ]
        hint = f"did you mean {near[0]}?" if near else "use a dotted key of the run, as in method.num_units"
        raise ValueError(f"{where}: {key} is no key of a run; {hint}")


def _nested(search: Tree) -> Tree:
    """Dotted keys as nested mappings."""
    tree: Tree = {}
    for key, domain in search.items():
        *above, last = str(key).split(".")
        node = tree
        for name in above:
            node = node.setdefault(name, {})
            if not isinstance(node, dict):
                raise ConfigError(f"search: {key} lies inside a key that has a value of its own")
        node[last] = domain
    return tree


def _flat(tree: Tree, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested mappings as dotted keys; a mapping that says its kind, or lies at a field of the run, is a domain."""
    sections = {path.rpartition(".")[0] for path in field_paths(RunConfig)}
    for name, node in tree.items():
        key = f"{prefix}{name}"
        if isinstance(node, dict) and not isinstance(node.get("kind"), str) and key in sections:
            yield from _flat(node, f"{key}.")
        else:
            yield key, node


def _check_bounds(low: float, high: float, log: bool) -> None:
    if low > high:
        raise ValueError(f"empty range: low={low} is above high={high}")
    if log and low <= 0:
        raise ValueError(f"low={low} has no logarithm: raise low above 0 or set log=false")


def _text(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in settings.items())
