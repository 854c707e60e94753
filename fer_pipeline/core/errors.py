"""Define the errors that a user can cause and correct.

The command line prints one as `error: <one line>` and exits with 1.
"""


class PipelineError(Exception):
    """One line for a person: what was found, what was expected, what to do."""


class ConfigError(PipelineError):
    """A setting is unknown, of the wrong kind, or impossible together with another."""


class DataError(PipelineError):
    """Something on disk is missing, damaged or not what its name says."""
