"""What a stage says when it ends: one line, counts and warnings. The command line prints them."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Summary:
    """The end of a stage: `failed` makes the command exit with 1 although everything that could be done was done."""

    stage: str
    line: str
    counts: dict[str, int | float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    failed: bool = False
