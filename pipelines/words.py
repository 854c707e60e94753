"""What DVC says of a stage in, how the stage ended out."""

from pipelines.walk import Outcome

UNCHANGED = "didn't change, skipping"
RESTORED = "is cached - skipping run"
BUSY = ("Unable to acquire lock", "is busy, it is being blocked by", "RWLock-file")

# What DVC advises a person at a terminal to do next; in a run's log it would stand under every stage.
HINTS = (
    "To track the changes with git, run:",
    "git add ",
    "To enable auto staging, run:",
    "dvc config core.autostage true",
    "Use `dvc push` to send your updates to remote storage.",
)


def is_hint(line: str) -> bool:
    """Whether a line is only DVC's advice on what to type next."""
    return line.strip().startswith(HINTS)


class Words:
    """Hears the lines of one `dvc repro -s` and tells what they mean."""

    def __init__(self) -> None:
        self._unchanged = self._restored = self.busy = False

    def hear(self, line: str) -> None:
        """One line of DVC's, or of the stage's own."""
        self._unchanged |= UNCHANGED in line
        self._restored |= RESTORED in line
        self.busy |= any(word in line for word in BUSY)

    @property
    def outcome(self) -> Outcome:
        """Of a stage that ended well."""
        if self._restored:
            return Outcome.RUN_CACHE
        return Outcome.CACHED if self._unchanged else Outcome.COMPLETED
