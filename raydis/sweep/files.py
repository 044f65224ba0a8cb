"""The names of the files in the folder of a sweep. Importing them imports no framework."""

from __future__ import annotations

SPEC_FILE = "spec.json"
STUDY_FILE = "optuna.journal"
SUMMARY_FILE = "summary.json"
LEASE_FILE = "lease.json"
PICTURE_FILE = "traversal.png"
