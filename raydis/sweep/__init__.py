"""Search over run configurations with Ray Tune and Optuna; `python -m raydis.sweep` is the command."""
