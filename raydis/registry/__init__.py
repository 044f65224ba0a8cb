"""Checkpoints as published things: the manifest, numbered versions of a named model, aliases, promotion.

No torch here: a registry moves and checks files, it never opens the weights.
"""
