"""The training loop and the evaluation of a method on one worker or several, without Ray."""
