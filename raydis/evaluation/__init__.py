"""Score any representation: tables of codes and factors in, scores with confidence intervals out.

`raydis.evaluate` is the function `evaluate` of this folder. It needs numpy and what the metrics need (scipy,
scikit-learn), and imports neither torch nor Ray. `files.py` reads the tables that `python -m raydis evaluate` scores.
"""

from __future__ import annotations

from raydis.evaluation.evaluate import evaluate
from raydis.evaluation.result import Estimate, Evaluation, Run

__all__ = ["Estimate", "Evaluation", "Run", "evaluate"]
