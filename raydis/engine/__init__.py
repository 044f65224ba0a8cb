"""Train, evaluate, save and edit: the algorithms as a whole, without Ray."""
