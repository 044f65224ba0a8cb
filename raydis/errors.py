"""Errors a user can act on. Each message names what failed, what was found and what to do."""


class RaydisError(Exception):
    """Base of every error that raydis raises on purpose; the CLI prints it in one line and exits with 2."""


class ConfigError(RaydisError):
    """A configuration has an unknown key, a wrong type, or a value out of range."""


class DataError(RaydisError):
    """A data set's file is missing, truncated, or not laid out as its official format says."""


class FitError(RaydisError):
    """Training or a mixture fit failed: a non-finite loss, or a state that cannot be continued."""


class MetricError(RaydisError):
    """Codes or factors cannot be scored: unequal lengths, floats as factors, no varying factor."""


class CheckpointError(RaydisError):
    """A checkpoint is missing, incomplete, or does not match its manifest."""


class StoreError(RaydisError):
    """Storage refused a request: missing key, no permission, or a lost conditional write."""


class RegistryError(RaydisError):
    """A model name, version or alias does not exist, or may not move as asked."""


class ResourceError(RaydisError):
    """The machine or cluster lacks what the configuration asks for."""


class ClusterError(RaydisError):
    """A cluster lost a run's workers, or did not start them, more often than a run waits for: repeating it may help."""
