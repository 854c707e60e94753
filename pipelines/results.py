"""What a workspace holds of results: the figures of `evaluate` and the account of `mine`, now and at a git revision."""

import json
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

from pipelines.errors import FlowError
from pipelines.worktree import dvc

METRICS = Path("reports/metrics")
MINED = Path("data/mined/summary.json")


@dataclass(frozen=True)
class Results:
    """`metrics`: figure by (recipe, target, name). `mined`: the summary that `mine` writes, or nothing."""

    metrics: dict[tuple[str, str, str], float] = field(default_factory=dict)
    mined: dict[str, Any] = field(default_factory=dict)


def results_now(workspace: Path) -> Results:
    """What lies in the workspace."""
    metrics = {
        (path.parent.name, path.stem, name): value
        for path in sorted((workspace / METRICS).glob("*/*.json"))
        for name, value in _figures(_read(path)).items()
    }
    return Results(metrics, _read(workspace / MINED))


def results_at(workspace: Path, rev: str) -> Results | None:
    """What a revision's dvc.lock names, from DVC's cache or remote; None where it has none."""
    try:
        shown = json.loads(dvc(workspace, "metrics", "diff", "--json", "--all", rev))
    except (FlowError, ValueError):
        return None
    metrics: dict[tuple[str, str, str], float] = {}
    for path, figures in shown.items():
        place = Path(path)
        if place.is_relative_to(METRICS) and len(place.parts) == 4:
            old = {name: change.get("old") for name, change in figures.items()}
            metrics |= {(place.parent.name, place.stem, name): value for name, value in _figures(old).items()}
    mined = _mined_at(workspace, rev)
    return Results(metrics, mined) if metrics or mined else None


@dataclass(frozen=True)
class Change:
    """One figure that is not what it was; None where it was not there, or is no more."""

    what: str
    before: float | None
    after: float | None

    @property
    def difference(self) -> float | None:
        """After less before, where there are both."""
        return None if self.before is None or self.after is None else self.after - self.before


def changes(before: Results, after: Results) -> list[Change]:
    """All figures of mining and of the metrics that differ, in order of name."""
    old, new = _flat(before), _flat(after)
    names = sorted(old.keys() | new.keys())
    return [Change(name, old.get(name), new.get(name)) for name in names if old.get(name) != new.get(name)]


def _flat(results: Results) -> dict[str, float]:
    flat = {f"{recipe} on {target}: {name}": value for (recipe, target, name), value in results.metrics.items()}
    mined = results.mined
    flat |= {f"mined: {name}": float(mined[name]) for name in ("kept", "passed") if is_number(mined.get(name))}
    for label, counts in mapping(mined.get("by_class")).items():
        kept = mapping(counts).get("kept")
        flat |= {f"mined {label}: kept": float(kept)} if is_number(kept) else {}
    margins = mapping(mined.get("margins"))
    return flat | {f"margin of {label}": float(value) for label, value in margins.items() if is_number(value)}


def _mined_at(workspace: Path, rev: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "summary.json"
        try:
            dvc(workspace, "get", ".", MINED.as_posix(), "--rev", rev, "--out", str(out))
        except FlowError:
            return {}
        return _read(out)


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _figures(content: Mapping[str, Any]) -> dict[str, float]:
    """Numbers by name, inner ones as `by_class.joy`, as DVC names them."""
    figures = {name: float(value) for name, value in content.items() if is_number(value)}
    inner = {name: _figures(value) for name, value in content.items() if isinstance(value, Mapping)}
    return figures | {f"{name}.{one}": value for name, found in inner.items() for one, value in found.items()}


def mapping(value: Any) -> Mapping[str, Any]:
    """A mapping from a file; an empty one for anything else."""
    return value if isinstance(value, Mapping) else {}


def is_number(value: Any) -> TypeGuard[int | float]:
    """Whether a value from a file is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
