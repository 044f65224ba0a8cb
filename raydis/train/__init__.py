"""One run under Ray Train: `run(config)` is what `python -m raydis train` calls."""

from raydis.train.trainer import TrainResult, fit_with_ray, run

__all__ = ["TrainResult", "fit_with_ray", "run"]
