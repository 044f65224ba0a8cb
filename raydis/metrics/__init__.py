"""Disentanglement metrics: functions of codes (M, N), factors (M, F) and a random generator.

`protocol.score` runs the metrics that a study compares; each metric also stands alone in the file of its name.
A metric takes no data set and no network, and returns a frozen result whose `status` says whether it has numbers.
"""
