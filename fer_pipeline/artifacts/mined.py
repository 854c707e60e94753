"""Read and write what was mined: `data/mined/{mined, random, second_rule, sweep}.parquet` and `summary.json`.

`mined.parquet` has one row a face that passed the rule: `face_id`, `pool`, `label` (the pseudo-label), `cosine` to its
centroid, `margin` (the value that the rule compares: by a rule of probability, that), and `rank` in its class over all
pools, from 1, nearest to the centroid or most probable first; rows stand in order of class and rank. `random.parquet`
has the same columns for as many faces drawn at random from the same pools, whose label is their class by the rule
whatever the value. `second_rule.parquet`, there with `mine.second_rule` alone, has them for as many faces as were
mined, chosen by that rule. `reviewed.parquet`, there with verdicts alone (`artifacts.review`), has them for every face
that was judged and could be mined, as the rule sees it: its class, and its rank before any verdict, 0 where the rule
does not choose it; and `judged_label`, the class that it shows, -1 where that is none or not known.

`sweep.parquet` has a row for each rule, step and class: `rule`, `step` (rows of one step keep equally many faces by
each rule, but for ties), `threshold` (null where no threshold keeps so few), `class` ("*" for all together), `kept`,
`heldout`, `precision`, `low`, `high` (null where not known).

`duplicates.parquet`, there with `mine.duplicates` alone, has a row for each pool face that looks like another:
`face_id`, `pool`, `reason` (the name of its count), the most similar `other_face_id` with `other_set`, and the `bits`
in which their hashes differ; of copies within the pools the other is the first of their group. Byte-equal faces are
counted in the summary of whatever settings; which they are `data/contents` says.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Float64, Int64
from pydantic import BaseModel, ConfigDict, Field, model_validator

from fer_pipeline.artifacts.arrow import ParquetFile, is_among, required
from fer_pipeline.artifacts.faces import image_schema
from fer_pipeline.core.errors import DataError
from fer_pipeline.core.files import read_json, refuse_damage
from fer_pipeline.core.settings import PLAIN_NAME, AllSeen, Rule

MINED, RANDOM, SECOND_RULE, REVIEWED = "mined.parquet", "random.parquet", "second_rule.parquet", "reviewed.parquet"
SUMMARY, SWEEP = "summary.json", "sweep.parquet"
ALL_CLASSES = "*"
MINED_COLUMNS = {
    "face_id": pa.string(),
    "pool": pa.string(),
    "label": pa.int64(),
    "cosine": pa.float32(),
    "margin": pa.float32(),
    "rank": pa.int64(),
}
JUDGED_LABEL = "judged_label"
PAIRS = "duplicates.parquet"
NEAR_TEST, NEAR_TRAIN, WITHIN_POOLS = "near_test_faces", "near_train_faces", "copies"
LIKENESSES = (NEAR_TEST, NEAR_TRAIN, WITHIN_POOLS)
TEST_FACES, TRAIN_FACES, EQUAL_COPIES = "test_faces", "train_faces", "equal_copies"  # by their bytes
LIKE_OTHERS = (TRAIN_FACES, NEAR_TEST, NEAR_TRAIN, EQUAL_COPIES, WITHIN_POOLS)  # in the order in which they are counted
LIKENESS = pa.schema(
    [(name, pa.string()) for name in ("face_id", "pool", "reason", "other_face_id", "other_set")]
    + [("bits", pa.int64())]
)
REMINE = "remove it and run: dvc repro mine"
SWEEP_COLUMNS = pa.schema(
    [
        *required({"rule": pa.string(), "step": pa.int64(), "class": pa.string()}),
        *required({"kept": pa.int64(), "heldout": pa.int64()}),
        *((name, pa.float64()) for name in ("threshold", "precision", "low", "high")),
    ],
    metadata=required({}, remedy=REMINE).metadata,
)


def mined_schema(classes: Sequence[str], *, reviewed: bool = False) -> pa.Schema:
    """Returns the schema of mined faces, by whichever rule, of random ones, or of `reviewed` ones."""
    columns = MINED_COLUMNS | ({JUDGED_LABEL: pa.int64()} if reviewed else {})
    return image_schema([pa.field(name, kind) for name, kind in columns.items()], classes)


def read_rows(folder: Path, name: str, *, classes: Sequence[str]) -> pa.Table:
    """Reads `mined.parquet` or another file of its columns; other classes than asked for are a DataError.

    Without `reviewed.parquet` no face was judged: a table without rows.
    """
    path, expected = folder / name, mined_schema(classes, reviewed=name == REVIEWED)
    if not path.is_file():
        if name == REVIEWED:
            return expected.empty_table()
        raise DataError(f"{path} does not exist; run mine (dvc repro)")
    file = ParquetFile(path, required({field.name: field.type for field in expected}, remedy=REMINE))
    if file.schema.metadata != expected.metadata or file.names != expected.names:
        raise DataError(f"{path} was mined with other classes or columns than {', '.join(classes)}; rerun mine")
    table = file.read()
    for column, least in (("label", 0), (JUDGED_LABEL, -1)) if len(table) else ():
        label = table.column(column).to_numpy() if column in table.column_names else np.zeros(1, np.int64)
        if not (least <= label.min() and label.max() < len(classes)):
            raise DataError(f"{path} has labels that are none of {len(classes)} classes; rerun mine")
    return table


def read_chosen(folder: Path, *, classes: Sequence[str]) -> pa.Table:
    """Reads the faces that the rule chose as they were before any verdict; those that none concerns come first."""
    mined, reviewed = (read_rows(folder, name, classes=classes) for name in (MINED, REVIEWED))
    others = mined.filter(pa.array(~is_among(mined["face_id"], reviewed["face_id"].combine_chunks())))
    judged = reviewed.filter(pc.field("rank") > 0).select(mined.column_names)
    return pa.concat_tables([others, judged.cast(mined.schema)])


def read_pairs(folder: Path) -> pa.Table:
    """Reads `duplicates.parquet`; a damaged file is a DataError."""
    columns = required({field.name: field.type for field in LIKENESS}, remedy=REMINE)
    table = ParquetFile(folder / PAIRS, columns).read(LIKENESS.names)
    sets = {*table["pool"].unique().to_pylist(), *table["other_set"].unique().to_pylist()}
    if {*table["reason"].unique().to_pylist()} - {*LIKENESSES} or not all(re.match(PLAIN_NAME, one) for one in sets):
        raise DataError(f"{folder / PAIRS} has a reason or a set of no known name; {REMINE}")
    return table


def counted_alone(rule: Mapping[str, Any]) -> dict[str, str]:
    """Returns the reasons whose faces are counted and mined all the same, and why, by the rule in a summary."""
    alike, kept = rule.get("duplicates") or {}, {}
    if rule.get("test_faces", "drop") == "keep":
        kept |= dict.fromkeys((TEST_FACES, NEAR_TEST), "mine.test_faces is keep")
    for reason, key in ((TRAIN_FACES, "train"), (EQUAL_COPIES, "pool")):
        if alike.get(key) is None:
            kept[reason] = f"mine.duplicates.{key} is not set"
    return kept


Count = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)] | None


class _Part(BaseModel):
    model_config = ConfigDict(extra="allow", allow_inf_nan=False, strict=True)


class PoolShare(_Part):
    """The share of a true class in the pools, by estimate."""

    share: Share
    low: Share
    high: Share


class Measured(_Part):
    """The share of right labels among drawn faces that people judged; `low` and `high` count those not judged."""

    drawn: Count
    judged: Count
    precision: Share
    low: Share
    high: Share


class ClassSummary(_Part):
    """The faces of one class, and the share of them that is right by estimate; `reason`: why that is not known."""

    kept: Count
    passed: Count | None = None
    heldout: Count | None = None
    precision: Share
    low: Share
    high: Share
    reason: str = ""
    pool_share: PoolShare | None = None
    measured: Measured | None = None


class RuleSummary(_Part):
    """What one rule keeps at the same number of faces as were mined before caps, with one threshold for all classes."""

    threshold: float | None
    kept: Count
    precision: Share
    low: Share
    high: Share
    by_class: dict[str, ClassSummary]


class PoolSummary(_Part):
    """Where the faces of one pool went."""

    faces: Count
    excluded: Count
    test_faces: Count = 0
    train_faces: Count = 0
    near_test_faces: Count = 0
    near_train_faces: Count = 0
    equal_copies: Count = 0
    copies: Count = 0
    no_direction: Count
    below_margin: Count
    over_cap: Count
    judged_wrong: Count = 0
    relabelled: Count = 0  # of those that are kept
    kept: Count
    by_class: dict[str, Count]


class Precision(_Part):
    """The estimate for all classes together."""

    estimate: Share
    low: Share
    high: Share
    measured: Measured | None = None


class SecondRule(_Part):
    """What `second_rule.parquet` holds."""

    rule: Rule
    margins: dict[str, float | None]
    kept: Count
    by_class: dict[str, ClassSummary]
    precision: Precision


class HeldOut(_Part):
    """What estimated the precision, where that is not the labeller."""

    model: str = ""


class TestFaces(_Part):
    """Of which sets nothing is known of test pictures."""

    not_checked: list[str] = []


class MinedSummary(_Part):
    """What a reader depends on in `summary.json`; there is more beside it."""

    classes: list[str]
    rule: dict[str, Any] = {}
    ranked_by: Rule = "margin"
    rules: dict[Rule, RuleSummary] = {}
    second_rule: SecondRule | None = None
    margins: dict[str, float | None]
    pools: dict[str, PoolSummary]
    kept: Count
    passed: Count | None = None
    by_class: dict[str, ClassSummary]
    precision: Precision
    heldout: HeldOut = HeldOut()
    test_faces: TestFaces = TestFaces()
    seen: AllSeen = {}  # what registered weights behind the labeller were trained on

    @model_validator(mode="after")
    def _every_class_is_counted(self) -> "MinedSummary":
        counted = [self.margins, self.by_class, *(pool.by_class for pool in self.pools.values())]
        counted += [rule.by_class for rule in self.rules.values()]
        counted += [self.second_rule.margins, self.second_rule.by_class] if self.second_rule else []
        if any({*self.classes} != {*counts} for counts in counted):
            raise ValueError("it does not count every one of its classes")
        return self


def read_summary(folder: Path) -> dict[str, Any]:
    """Reads the rule, the thresholds (`margins`), counts and estimated precisions; a damaged file is a DataError."""
    content = read_json(folder / SUMMARY)
    with refuse_damage(folder / SUMMARY, "is no summary of mined faces", "run: dvc repro mine"):
        MinedSummary.model_validate(content)
    return content


@dataclass(frozen=True)
class RuleSweep:
    """What one rule keeps at `t` thresholds that serve all classes, and which precision to expect of it.

    `interval` and `overall` end in the precision, its lower and its upper bound; NaN where they are not known.
    """

    threshold: Float64[np.ndarray, " t"]
    kept: Int64[np.ndarray, "t c"]
    heldout: Int64[np.ndarray, "t c"]
    interval: Float64[np.ndarray, "t c 3"]
    overall: Float64[np.ndarray, "t 3"]


def sweep_table(classes: Sequence[str], rules: Mapping[Rule, RuleSweep]) -> pa.Table:
    """Builds the sweep with one row for each rule, step and class; NaN becomes null."""
    tables = [_rule_table(classes, rule, sweep) for rule, sweep in rules.items()]
    return pa.concat_tables(tables)


def _rule_table(classes: Sequence[str], rule: str, sweep: RuleSweep) -> pa.Table:
    names, steps = [ALL_CLASSES, *classes], len(sweep.threshold)
    counts = [
        np.concatenate([part.sum(axis=1, keepdims=True), part], axis=1).ravel() for part in (sweep.kept, sweep.heldout)
    ]
    precisions = np.concatenate([sweep.overall[:, None], sweep.interval], axis=1).reshape(-1, 3)
    finite = np.where(np.isfinite(sweep.threshold), sweep.threshold, np.nan)  # no threshold keeps so few
    return pa.table(
        {
            "rule": pa.array([rule] * (steps * len(names)), pa.string()),
            "step": pa.array(np.repeat(np.arange(steps), len(names)), pa.int64()),
            "threshold": pa.array(np.repeat(finite, len(names)), pa.float64(), from_pandas=True),
            "class": pa.array(names * steps, pa.string()),
            "kept": pa.array(counts[0], pa.int64()),
            "heldout": pa.array(counts[1], pa.int64()),
            **{
                name: pa.array(precisions[:, i], pa.float64(), from_pandas=True)
                for i, name in enumerate(("precision", "low", "high"))
            },
        }
    )


def read_sweep(folder: Path) -> pa.Table | None:
    """Read `sweep.parquet`, None where there is none; a damaged file is a DataError."""
    path = folder / SWEEP
    return ParquetFile(path, SWEEP_COLUMNS).read(SWEEP_COLUMNS.names) if path.exists() else None
