"""Bytes of a running command to lines for people. In: pieces of any size. Out: lines, progress bars thinned out."""

from collections.abc import Iterator
from typing import NamedTuple

LIMIT = 4_000  # characters of a line; what comes after them is left out
BYTES = 4 * LIMIT  # enough for LIMIT characters in UTF-8
SECONDS_BETWEEN_REDRAWS = 0.5
# PostgreSQL refuses NUL in a text, and terminals obey the rest; tabs and colours stay
HARMLESS = dict.fromkeys((one for one in range(32) if chr(one) not in "\t\x1b"), "\N{REPLACEMENT CHARACTER}")


class Line(NamedTuple):
    """A line, or the state of one that is being redrawn."""

    text: str
    whole: bool = True
    new: bool = True  # not shown as a state before


class Lines:
    """Cuts a stream into lines; of a line that is redrawn with carriage returns only the last state counts."""

    def __init__(self) -> None:
        self._state = _Text()  # the last whole state of a line that is being redrawn
        self._text = _Text()  # what came after the last line feed or carriage return
        self._shown: str | None = None
        self._shown_at = float("-inf")

    def feed(self, piece: bytes, now: float) -> Iterator[Line]:
        """The lines that end in `piece`, and at most one state of an unfinished one."""
        *whole, rest = piece.split(b"\n")
        for part in whole:
            self._draw(part)
            yield from self._finish()
        self._draw(rest)
        if self._state.kept:
            yield from self._show(self._state, now)

    def quiet(self, now: float) -> Iterator[Line]:
        """The state of a bar when nothing has come for a moment: it is not in the middle of being drawn."""
        drawn = self._text if self._text.redraws and self._text.kept.strip() else self._state
        if drawn.kept:
            yield from self._show(drawn, now)

    def close(self) -> Iterator[Line]:
        """The last line, if it had no end."""
        if self._text.kept or self._state.kept:
            yield from self._finish()

    def _draw(self, part: bytes) -> None:
        first, *states = part.split(b"\r")
        self._text.add(first)
        for state in states:
            if self._text.kept.strip():
                self._state = self._text
            self._text = _Text(redraws=True)
            self._text.add(state)

    def _finish(self) -> Iterator[Line]:
        line = str(self._text if self._text.kept else self._state)
        new = line != self._shown
        self._state, self._text, self._shown = _Text(), _Text(), None
        yield Line(line, new=new)

    def _show(self, text: "_Text", now: float) -> Iterator[Line]:
        if now - self._shown_at >= SECONDS_BETWEEN_REDRAWS and (state := str(text)) != self._shown:
            self._shown, self._shown_at = state, now
            yield Line(state, whole=False)


class _Text:
    """The beginning of a line and the length of all of it."""

    def __init__(self, redraws: bool = False) -> None:
        self.kept = bytearray()
        self.length = 0
        self.redraws = redraws

    def add(self, piece: bytes) -> None:
        self.kept += piece[: BYTES - len(self.kept)]
        self.length += len(piece)

    def __str__(self) -> str:
        text = self.kept.decode("utf-8", errors="replace").translate(HARMLESS)
        cut = len(text) > LIMIT or self.length > len(self.kept)
        return f"{text[:LIMIT]} … (line of {self.length:,} bytes cut)" if cut else text
