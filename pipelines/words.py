"""What DVC says of a stage in, how the stage ended out."""

import re

from pipelines.walk import Outcome

# DVC's own lines only: a stage may print anything, and one that runs DVC itself prints the same words.
STARTED = re.compile(r"Running stage '.+':$")
UNCHANGED = re.compile(r"(Stage )?'.+' didn't change, skipping$")
RESTORED = re.compile(r"Stage '.+' is cached - skipping run")
BUSY = re.compile(r"(\x1b\[\d+m)?ERROR.*(Unable to acquire lock|is busy, it is being blocked by|RWLock-file)")

# What DVC advises a person at a terminal to do next, and its lock file; a run's log would have it under every stage.
HINTS = (
    "To track the changes with git, run:",
    "\tgit add ",
    "To enable auto staging, run:",
    "\tdvc config core.autostage true",
    "Generating lock file 'dvc.lock'",
    "Updating lock file 'dvc.lock'",
    "Use `dvc push` to send your updates to remote storage.",
)


def is_hint(line: str) -> bool:
    """Whether a line is only DVC's advice on what to type next."""
    return line.startswith(HINTS)


class Words:
    """Hears the lines of one `dvc repro -s` and tells what they mean."""

    def __init__(self) -> None:
        self._started = self._unchanged = self._restored = self.busy = False

    def hear(self, line: str) -> None:
        """One line of DVC's, or of the stage's own."""
        self.busy |= BUSY.match(line) is not None
        if self._started:  # from here on the stage has the word
            return
        self._started = STARTED.match(line) is not None
        self._unchanged |= UNCHANGED.match(line) is not None
        self._restored |= RESTORED.match(line) is not None

    @property
    def outcome(self) -> Outcome:
        """Of a stage that ended well."""
        if self._restored:
            return Outcome.RUN_CACHE
        return Outcome.CACHED if self._unchanged else Outcome.COMPLETED
