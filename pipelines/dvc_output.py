"""Split the output of a running command into lines, and tell from DVC's lines how a stage ended."""

import re
from collections.abc import Iterator
from typing import NamedTuple

from pipelines.scheduler import Outcome

MAX_CHARACTERS = 4_000  # of a line; what comes after them is left out
MAX_BYTES = 4 * MAX_CHARACTERS  # enough for that many characters in UTF-8
SECONDS_BETWEEN_REDRAWS = 0.5
# PostgreSQL refuses NUL in a text, and terminals obey the rest; tabs and colours stay.
HARMLESS = dict.fromkeys((code for code in range(32) if chr(code) not in "\t\x1b"), "\N{REPLACEMENT CHARACTER}")

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


class Line(NamedTuple):
    """A line, or the state of one that is being redrawn."""

    text: str
    complete: bool = True
    new: bool = True  # not shown as a state before


class LineSplitter:
    """Split a stream into lines; of a line that is redrawn with carriage returns only the last state counts."""

    def __init__(self) -> None:
        self._state = _Text()  # the last whole state of a line that is being redrawn
        self._text = _Text()  # what came after the last line feed or carriage return
        self._shown: str | None = None
        self._shown_at = float("-inf")

    def feed(self, piece: bytes, now: float) -> Iterator[Line]:
        """Yield the lines that end in `piece`, and at most one state of an unfinished one."""
        *parts, rest = piece.split(b"\n")
        for part in parts:
            self._draw(part)
            yield self._finish()
        self._draw(rest)
        yield from self._show(self._state, now)

    def pause(self, now: float) -> Iterator[Line]:
        """Yield the state of a bar when nothing has come for a moment: it is not in the middle of being drawn."""
        yield from self._show(self._text if self._text.redraws and self._text.start.strip() else self._state, now)

    def close(self) -> Iterator[Line]:
        """Yield the last line, if it had no end."""
        if self._text.start or self._state.start:
            yield self._finish()

    def _draw(self, part: bytes) -> None:
        first, *states = part.split(b"\r")
        self._text.add(first)
        for state in states:
            if self._text.start.strip():
                self._state = self._text
            self._text = _Text(redraws=True)
            self._text.add(state)

    def _finish(self) -> Line:
        text = str(self._text if self._text.start else self._state)
        new = text != self._shown
        self._state, self._text, self._shown = _Text(), _Text(), None
        return Line(text, new=new)

    def _show(self, text: "_Text", now: float) -> Iterator[Line]:
        if not text.start or now - self._shown_at < SECONDS_BETWEEN_REDRAWS:
            return
        if (state := str(text)) != self._shown:
            self._shown, self._shown_at = state, now
            yield Line(state, complete=False)


class _Text:
    """The start of a line and the length of all of it."""

    def __init__(self, redraws: bool = False) -> None:
        self.start = bytearray()
        self.length = 0
        self.redraws = redraws

    def add(self, piece: bytes) -> None:
        self.start += piece[: MAX_BYTES - len(self.start)]
        self.length += len(piece)

    def __str__(self) -> str:
        text = self.start.decode("utf-8", errors="replace").translate(HARMLESS)
        cut = len(text) > MAX_CHARACTERS or self.length > len(self.start)
        return f"{text[:MAX_CHARACTERS]} … (line of {self.length:,} bytes cut)" if cut else text


def is_hint(line: str) -> bool:
    """Tell whether a line is only DVC's advice on what to type next."""
    return line.startswith(HINTS)


class DvcOutput:
    """What the lines of one `dvc repro -s` say; `busy`: DVC could not get one of its locks."""

    def __init__(self) -> None:
        self._started = self._unchanged = self._restored = self.busy = False

    def add(self, line: str) -> None:
        """Read one line of DVC's, or of the stage's own."""
        self.busy |= BUSY.match(line) is not None
        if not self._started:  # afterwards the lines are the stage's
            self._started = STARTED.match(line) is not None
            self._unchanged |= UNCHANGED.match(line) is not None
            self._restored |= RESTORED.match(line) is not None

    @property
    def outcome(self) -> Outcome:
        """The outcome of a stage whose command succeeded."""
        if self._restored:
            return Outcome.RUN_CACHE
        return Outcome.CACHED if self._unchanged else Outcome.COMPLETED
