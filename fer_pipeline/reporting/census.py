"""What is in every data set: the records that `align` leaves in `data/faces/<set>` in, class counts and rejects out.

No split is opened for it; `summary.json` and `rejected.parquet` say it all.
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from fer_pipeline.core.errors import DataError
from fer_pipeline.core.files import read_json
from fer_pipeline.core.settings import World


@dataclass(frozen=True)
class Split:
    """The faces of one split; a class that nobody counted is None."""

    name: str
    faces: int
    counts: dict[str, int | None]
    unlabelled: int


@dataclass(frozen=True)
class DataSet:
    """One aligned data set and what it is used for."""

    name: str
    role: str
    splits: tuple[Split, ...]


@dataclass(frozen=True)
class Rejects:
    """How many pictures of one set were rejected for one reason."""

    dataset: str
    reason: str
    count: int


def census(faces: Path, world: World) -> list[DataSet]:
    """The data sets that were aligned, in the order of the settings."""
    found = []
    for name in world.datasets:
        path = faces / name / "summary.json"
        if path.exists():
            found.append(DataSet(name, role(name, world), _splits(path, world)))
    return found


def rejects(faces: Path, world: World) -> list[Rejects]:
    """The rejects of every set by reason, the most frequent first."""
    found = []
    for name in world.datasets:
        path = faces / name / "rejected.parquet"
        if path.exists():
            counted = Counter(_reasons(path))
            ordered = sorted(counted.items(), key=lambda pair: (-pair[1], pair[0]))
            found += [Rejects(name, reason, number) for reason, number in ordered]
    return found


def role(name: str, world: World) -> str:
    """What a data set is used for, in words."""
    uses = [("anchor", (world.anchor,)), ("training", (world.train,)), ("pool", world.pools), ("target", world.targets)]
    return ", ".join(word for word, names in uses if name in names) or "unused"


def _splits(path: Path, world: World) -> tuple[Split, ...]:
    content = read_json(path)
    try:
        return tuple(
            Split(
                name=name,
                faces=int(found["faces"]),
                counts={label: found["labels"].get(label, 0) for label in world.classes},
                unlabelled=int(found["unlabelled"]),
            )
            for name, found in sorted(content["splits"].items())
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{path} is no record of align ({error!r}); run: dvc repro align") from None


def _reasons(path: Path) -> list[str]:
    try:
        return [str(reason) for reason in pq.read_table(path, columns=["reason"])["reason"].to_pylist()]
    except (pa.ArrowInvalid, OSError, KeyError) as error:
        raise DataError(f"{path} cannot be read ({error}); run: dvc repro align") from None
