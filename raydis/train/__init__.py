"""One run under Ray Train: `trainer.run` is what `python -m raydis train` calls."""
