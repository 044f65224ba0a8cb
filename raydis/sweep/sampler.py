"""Build the Optuna sampler that a sweep's spec names."""

from __future__ import annotations

import warnings

import numpy as np
import optuna
from optuna.samplers import BaseSampler, NSGAIISampler, RandomSampler, TPESampler

from raydis.sweep.spec import SweepSpec

MAX_STARTUP_TRIALS = 10
NSGA2_POPULATION = 20


def build_sampler(spec: SweepSpec, *, num_existing: int) -> BaseSampler:
    """Return the spec's sampler, seeded by the spec's seed and the number of existing trials.

    A sweep that is started again therefore does not repeat its first suggestions.
    """
    seed = int(np.random.SeedSequence([spec.seed, num_existing]).generate_state(1)[0])
    match spec.sampler:
        case "random":
            return RandomSampler(seed=seed)
        case "nsga2":
            return NSGAIISampler(population_size=NSGA2_POPULATION, seed=seed)
        case "tpe":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                return TPESampler(
                    n_startup_trials=min(MAX_STARTUP_TRIALS, max(3, spec.num_trials // 3)),
                    multivariate=True,
                    group=True,
                    seed=seed,
                )
