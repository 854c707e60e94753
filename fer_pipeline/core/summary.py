"""Hold what a stage reports when it ends. The command line prints it."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Summary:
    """One line, counts and warnings; `failed` makes the command exit with 1 after all possible work was done."""

    stage: str
    line: str
    counts: dict[str, int | float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    failed: bool = False
