"""Disentanglement metrics: functions of codes (M, N), factors (M, F) and a random generator.

`scoring.score` computes all metrics of a representation. Each metric can also be called on its own, from the file of
its name. A metric needs no data set and no network. It returns a frozen result whose `status` says whether the result
has numbers.
"""
