"""Train one run under Ray Train. `trainer.run` is the function behind `python -m raydis train`."""
