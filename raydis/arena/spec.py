"""The specification of an arena, and how an arena file is read: the entrants, their common budget, and the final seeds.

An entrant is a configuration: a run, usually a preset of a method, and optionally a search space. An arena turns each
entrant into two sweeps. The study searches for the entrant's best setting. The final trains this setting with seeds
that no study has used, and scores it on draws of the metrics that no study has used.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from raydis.config import RunConfig
from raydis.config.files import Tree, apply_overrides, merge, parse, read_yaml
from raydis.config.presets import expand
from raydis.config.section import Model
from raydis.config.train import MetricChoice
from raydis.config.tree import is_tree
from raydis.errors import ConfigError
from raydis.metrics.comparison import MAX_PAIRS
from raydis.metrics.protocol import PUBLISHED
from raydis.metrics.scoring import derived_seed
from raydis.metrics.standing import DEFAULT_OBJECTIVES, Objective
from raydis.metrics.table import number_named
from raydis.sweep.domains import Domain
from raydis.sweep.settings import check_key, configure
from raydis.sweep.spec import NAME, Control, SweepSpec

EntrantName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,39}$")]
DEFAULT_SHARE = 0.5  # of the budget, for a pre-training
DEFAULT = "default"  # the control of a study that is the entrant's own setting
COMMON = ("data", "evaluation")  # sections that are equal in the runs of all entrants
SHARED = (*COMMON, "train", "compute")  # sections that the arena's `run` may set


class Speed(Model):
    """What one run of an entrant takes on the machine that the arena file names. Only the plan's estimate uses it."""

    images_per_s: float = Field(gt=0.0, description="Training images per second of one run.")
    fixed_s: float = Field(default=0.0, ge=0.0, description="Further seconds of one run: its start and its scoring.")


class Pretraining(Model):
    """A model that all runs of an entrant borrow. It is trained once, and its images count in the budget."""

    run: RunConfig = Field(description="The run that trains the model. It may start from a preset.")
    share: float = Field(
        default=DEFAULT_SHARE, gt=0.0, lt=1.0, description="Share of the budget of images that this run gets."
    )
    key: str = Field(
        default="method.pretrained.checkpoint", description="Dotted key of the entrant's run that takes the checkpoint."
    )


class Entrant(Model):
    """A method that takes part: the run that it starts from, and what its study searches over."""

    title: str | None = Field(default=None, max_length=60, description="Name in the report; null: the entrant's key.")
    note: str = Field(default="", description="What a reader must know of this entrant; shown in the report.")
    run: RunConfig = Field(description="The entrant's own setting. It may start from a preset.")
    search: dict[str, Domain] | None = Field(
        default=None, description="Dotted key of the run -> the values it may take; null: the default of run.method."
    )
    speed: Speed | None = None
    pretraining: Pretraining | None = Field(
        default=None, description="The run whose checkpoint the entrant's runs borrow; null: they borrow none."
    )

    @property
    def num_images(self) -> int:
        """The budget of a run: its own images, and those of the pre-training."""
        return self.run.train.num_images + (self.pretraining.run.train.num_images if self.pretraining else 0)

    def borrowing(self, checkpoint: str) -> Self:
        """Return the entrant with the checkpoint of its pre-training."""
        assert self.pretraining is not None
        return self.model_copy(update={"run": configure(self.run, {self.pretraining.key: checkpoint})})

    @model_validator(mode="after")
    def _borrows(self) -> Self:
        if self.pretraining is not None:
            check_key(self.pretraining.key, "pretraining.key")
            try:
                self.borrowing("checkpoint")
            except ConfigError as error:
                raise ValueError(f"pretraining.key: {error}") from error
        return self


class ArenaSpec(Model):
    """The specification of one arena."""

    name: str = Field(pattern=NAME, description="Default name of the arena's folder.")
    entrants: dict[EntrantName, Entrant] = Field(min_length=2, description="The methods, by a short name each.")
    focus: str | None = Field(
        default=None,
        description="The entrant that the question is about: the others are tested against it. Null: all pairs are.",
    )
    num_trials: int = Field(
        default=8, ge=1, description="Trials of each study, of which the first is the entrant's own setting."
    )
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        default=(101, 102, 103, 104, 105),
        min_length=2,
        max_length=MAX_PAIRS,
        description="Seeds of the final runs. No study may use them.",
    )
    estimator: Literal["reference", "hist", "tree"] | None = Field(
        default=None, description="Classifier of DCI in the final; null: that of the `published` protocol."
    )
    metrics: MetricChoice | None = Field(
        default=None, description="Metrics in the final, as in evaluation.metrics; null: those of run.evaluation."
    )
    objectives: tuple[Objective, ...] = Field(
        default=DEFAULT_OBJECTIVES, min_length=1, description="Scores that decide the best trial, and that are tested."
    )
    seed: int = Field(default=0, ge=0, description="Seed of the sampler of every study.")
    sampler: Literal["tpe", "random", "nsga2"] = Field(default="tpe", description="Optuna's sampler in every study.")
    max_concurrent: int | None = Field(
        default=None, ge=1, description="Most runs at once; null: as many as the cluster holds."
    )
    max_failures: int = Field(default=1, ge=0, description="Most restarts of a run after its process died.")

    @property
    def num_images(self) -> int:
        """The training budget of every run."""
        return next(iter(self.entrants.values())).num_images

    def title(self, name: str) -> str:
        """Return the name of an entrant in the report."""
        return self.entrants[name].title or name

    @model_validator(mode="after")
    def _equal_terms(self) -> Self:
        first, *others = self.entrants
        for name in others:
            for what, ours, theirs in _terms(self.entrants[first], self.entrants[name]):
                if ours != theirs:
                    raise ValueError(
                        f"{what} is {ours} for {first} and {theirs} for {name}: set run.{what}, for all entrants"
                    )
        return self

    @model_validator(mode="after")
    def _own_directions(self) -> Self:
        for goal in self.objectives:
            own = number_named(goal.metric).direction
            if goal.direction != own:
                raise ValueError(
                    f"objectives: {goal.metric} has direction {goal.direction}, but an arena asks which method is "
                    f"better, which {own} is: leave out the direction"
                )
        return self

    @model_validator(mode="after")
    def _fresh_seeds(self) -> Self:
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds {', '.join(map(str, self.seeds))}: each may occur only once")
        for name, entrant in self.entrants.items():
            if entrant.run.seed in self.seeds:
                raise ValueError(f"seeds: the study of {name} uses seed {entrant.run.seed}: name others for the final")
            if "seed" in (entrant.search or {}):
                raise ValueError(f"{name} searches over seed, which is no setting of a method: remove it")
        if self.focus is not None and self.focus not in self.entrants:
            raise ValueError(f"focus={self.focus} is not an entrant: use one of {', '.join(self.entrants)}")
        return self

    @model_validator(mode="after")
    def _sweeps(self) -> Self:
        for name in self.entrants:
            self.study(name)
            self.final(name, {}, self.seeds)
        return self

    def study(self, name: str) -> SweepSpec:
        """Return the sweep that searches for the best setting of an entrant, without promotion.

        Its first trial is the entrant's own setting. An entrant with nothing to search has this trial only.
        """
        entrant = self.entrants[name]
        search = entrant.search
        if search is None:
            search = entrant.run.method.default_search_space()
        tree = self._sweep(name, entrant.run) | {
            "num_trials": self.num_trials - 1 if search else 0,
            "search": search if self.num_trials > 1 else {},
            "controls": [Control(name=DEFAULT)],
        }
        return _sweep_spec(tree, name)

    def final(self, name: str, settings: dict[str, Any], seeds: tuple[int, ...]) -> SweepSpec:
        """Return the sweep that trains an entrant's best setting with some of the final seeds.

        Its runs are scored by the `published` protocol, on draws of the metrics that no study uses.

        Args:
            settings: dotted key of the run -> value, as the study has found them.
        """
        run = self.entrants[name].run
        evaluation = run.evaluation.model_copy(
            update={
                "protocol": PUBLISHED.name,
                "estimator": self.estimator,
                "metrics": run.evaluation.metrics if self.metrics is None else self.metrics,
                "seed": derived_seed(run.evaluation.seed, "arena"),
            }
        )
        tree = self._sweep(name, run.model_copy(update={"evaluation": evaluation})) | {
            "num_trials": 0,
            "search": {},
            "controls": [Control(name=name, set=settings, seeds=seeds)],
        }
        return _sweep_spec(tree, name)

    def _sweep(self, name: str, run: RunConfig) -> dict[str, Any]:
        if pretraining := self.entrants[name].pretraining:  # whose images come first
            first = pretraining.run.train.num_images
            rungs = tuple(rung - first for rung in run.evaluation.rungs if rung > first)
            run = run.model_copy(update={"evaluation": run.evaluation.model_copy(update={"rungs": rungs})})
        kept = ("objectives", "seed", "sampler", "max_concurrent", "max_failures")
        return {each: getattr(self, each) for each in kept} | {"name": name, "run": run, "promotion": None}


def _sweep_spec(tree: dict[str, Any], name: str) -> SweepSpec:
    """Return a sweep, or raise ValueError with the reason in one line."""
    try:
        return parse(SweepSpec, tree, source=f"entrant {name}")
    except ConfigError as error:
        raise ValueError(str(error)) from error


def _terms(ours: Entrant, theirs: Entrant) -> list[tuple[str, Any, Any]]:
    """Return what must be equal in the runs of two entrants: name and both values."""
    found = [("train.num_images", ours.num_images, theirs.num_images)]
    for section in COMMON:
        one, other = getattr(ours.run, section).model_dump(), getattr(theirs.run, section).model_dump()
        found += [(f"{section}.{key}", one[key], other[key]) for key in one]
    return found


def load_arena(path: Path, overrides: list[str]) -> ArenaSpec:
    """Read an arena file, apply `KEY=VALUE` overrides to it, and expand the presets of its entrants.

    The section `run` holds what is common to all entrants: data, evaluation, compute, and parts of train. An entrant
    that is null is left out.

    Raises:
        ConfigError: the file cannot be read or is not a valid arena. The message is one line.
    """
    tree = apply_overrides(read_yaml(path), overrides)
    common, entrants = tree.pop("run", {}), tree.get("entrants")
    if not is_tree(common) or set(common) - set(SHARED):
        found = ", ".join(map(str, common)) if is_tree(common) else common
        raise ConfigError(
            f"{path}: run: found {found}, expected some of {', '.join(SHARED)}; all else belongs to an entrant"
        )
    if is_tree(entrants):
        tree["entrants"] = {name: _complete(each, common) for name, each in entrants.items() if each is not None}
    return parse(ArenaSpec, tree, source=str(path))


def _complete(entrant: Any, common: Tree) -> Any:
    """Return an entrant whose run is its preset, its own settings, and those that are common to all.

    The budget of images is divided between the run and its pre-training, if there is one.
    """
    if not is_tree(entrant) or not is_tree(entrant.get("run")):
        return entrant
    run, pretraining = expand(merge(entrant["run"], common)), entrant.get("pretraining")
    if not is_tree(pretraining) or not is_tree(pretraining.get("run")):
        return {**entrant, "run": run}
    shared = {section: tree for section, tree in common.items() if section in ("data", "compute")}
    first = merge(expand(merge(pretraining["run"], shared)), {"evaluation": {"protocol": "none", "rungs": []}})
    budget, share = parse(RunConfig, run, source="run").train.num_images, pretraining.get("share", DEFAULT_SHARE)
    if isinstance(share, int | float) and 0.0 < share < 1.0 and budget > 1:
        num_first = min(max(round(share * budget), 1), budget - 1)
        first = merge(first, {"train": {"num_images": num_first}})
        run = merge(run, {"train": {"num_images": budget - num_first}})
    return {**entrant, "run": run, "pretraining": {**pretraining, "run": first}}
