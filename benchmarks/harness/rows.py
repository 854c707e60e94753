"""One line of the result. In: two figures and a target. Out: their ratio and whether the target is met."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """A figure of ours beside a peer's. `met` is None where there is no target or nothing was measured."""

    work: str
    figure: str
    ours: float | None
    peer: float | None
    ratio: float | None
    target: str
    met: bool | None
    note: str = ""

    @property
    def verdict(self) -> str:
        """The word for `met`."""
        return "" if self.met is None else "met" if self.met else "missed"


def compared(
    work: str,
    figure: str,
    ours: float,
    peer: float,
    *,
    at_least: float | None = None,
    at_most: float | None = None,
    note: str = "",
) -> Row:
    """A row with ratio ours / peer, which must reach `at_least` (rates) or not pass `at_most` (costs)."""
    ratio = ours / peer
    return Row(work, figure, ours, peer, ratio, *_judged(ratio, at_least, at_most, "×"), note)


def cheaper(work: str, figure: str, ours: float, peer: float, *, at_least: float | None = None, note: str = "") -> Row:
    """A row of two costs with ratio peer / ours: how many times less ours takes."""
    ratio = peer / ours
    return Row(work, figure, ours, peer, ratio, *_judged(ratio, at_least, None, "× less"), note)


def bounded(
    work: str, figure: str, ours: float, *, at_most: float | None = None, at_least: float | None = None, note: str = ""
) -> Row:
    """A row of ours alone against an absolute bound (megabytes, share of equal boxes, shards lost)."""
    return Row(work, figure, ours, None, None, *_judged(ours, at_least, at_most, ""), note)


def _judged(value: float, at_least: float | None, at_most: float | None, unit: str) -> tuple[str, bool | None]:
    """The target's words and whether the value keeps to it; no number keeps to none."""
    words, kept = [], []
    if at_least is not None:
        words.append(f"≥ {at_least:g}{unit}")
        kept.append(value >= at_least)
    if at_most is not None:
        words.append(f"≤ {at_most:g}{unit}")
        kept.append(value <= at_most)
    return ", ".join(words), bool(all(kept)) if kept else None


def unmeasured(work: str, fault: str) -> Row:
    """A row that says why there is no figure."""
    return Row(work, "not measured", None, None, None, "", None, fault)
