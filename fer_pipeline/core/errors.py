"""Define the errors that a user can cause and correct.

The command line prints one as `error: <one line>` and exits with 1.
"""

from collections.abc import Callable

from fer_pipeline.core.documents import one_line


class PipelineError(Exception):
    """One line for a person: what was found, what was expected, what to do.

    It may hold names from files of strangers: line breaks and terminal escapes are taken out of it here, wherever it
    is shown.
    """

    def __str__(self) -> str:
        return one_line(super().__str__())


class ConfigError(PipelineError):
    """A setting is unknown, of the wrong kind, or impossible together with another."""


class DataError(PipelineError):
    """Something on disk is missing, damaged or not what its name says."""


class OptionError(DataError):
    """A fault that an option of the data set's adapter cures; a command that gives options in words of its own says so.

    `remedies` are values by the option's name, as settings write them.
    """

    def __init__(self, fault: str, **remedies: str) -> None:
        cures = " or ".join(f"options.{name}: {value}" for name, value in remedies.items())
        super().__init__(f"{fault}; set {cures}" if cures else fault)
        self.fault, self.remedies = fault, remedies

    def reworded(self, word: Callable[[str, str], str]) -> DataError:
        """Returns the error with every remedy in the words that `word` gives for a name and a value."""
        cures = " or ".join(word(name, value) for name, value in self.remedies.items())
        return DataError(f"{self.fault}; {cures}" if cures else self.fault)
