"""Search over run configurations with Ray Tune and Optuna. The command is `python -m raydis.sweep`."""
