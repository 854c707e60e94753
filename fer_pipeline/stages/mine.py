"""Scores of all pools in, the faces that pass the margin rule out: who, with which label, at which rank.

In: `data/scores/<pool>` for every pool. Out: `data/mined` (see `artifacts.mined`): mined and random faces, the summary
with margins, counts and estimated precision, and the sweep. Nothing is written before every check has passed.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from fer_pipeline.artifacts.mined import MINED, RANDOM, SUMMARY, SWEEP, sweep_table, write_rows
from fer_pipeline.artifacts.scores import Scores, read_centroids, read_heldout, read_scores
from fer_pipeline.core.errors import DataError
from fer_pipeline.core.files import file_sha256, replacing_folder, write_json
from fer_pipeline.core.settings import ProjectSettings
from fer_pipeline.core.summary import Summary
from fer_pipeline.mining.calibration import Calibration, Estimator, calibrate
from fer_pipeline.mining.margin import find_thresholds, passes
from fer_pipeline.mining.outcome import (
    COUNTS,
    blind_classes,
    count_pools,
    empty_classes,
    expected_precision,
    headline,
    number,
    ranked,
    refuse_nothing,
)
from fer_pipeline.mining.pools import Candidates, candidates_of, random_faces, read_exclusions
from fer_pipeline.mining.priors import class_weights
from fer_pipeline.mining.rule import NO_CAP, MarginRule
from fer_pipeline.mining.sweep import sweep_margins


class Config(MarginRule):
    """The margin rule, how its precision is estimated, and what to do when a class stays empty."""

    estimator: Estimator = "tail"  # isotonic: a precision that cannot fall as the margin rises
    class_prior: Literal["anchor", "pool"] = "anchor"  # pool: true classes weighed by their shares in the pool
    support: Annotated[int, Field(ge=1)] = 20  # held-out faces below which a class's precision is carried on
    level: Annotated[float, Field(gt=0, lt=1)] = 0.95  # of the intervals
    sweep_points: Annotated[int, Field(ge=2)] = 101
    exclude: Path | None = None  # Parquet or CSV with a column face_id: faces that must not be mined
    # pins that file: DVC follows settings, so a changed list is seen by its changed hash alone
    exclude_sha256: Annotated[str, Field(pattern=r"^[0-9a-fA-F]{64}$")] | None = None
    empty_class: Literal["warn", "error"] = "warn"


def run(config: Config, project: ProjectSettings, *, scores: Path, out: Path) -> Summary:
    """Apply the margin rule to all pools together.

    Args:
        config: The section `mine`.
        project: What all stages share.
        scores: The folder with a folder of scores for each pool.
        out: Where mined and random faces, the sweep and a summary are written.
    """
    classes, pools, seed = project.classes, project.pools, project.seeds[0]
    caps = config.caps(classes)
    listed = read_exclusions(config.exclude, sha256=config.exclude_sha256)
    by_pool = {pool: read_scores(scores / pool, classes=classes) for pool in pools}
    check_same_centroids(scores, pools)
    candidates = candidates_of(by_pool, exclude=listed)
    calibration = calibration_of(config, read_heldout(scores / pools[0], classes=classes), candidates, len(classes))

    thresholds = find_thresholds(config, candidates.label, candidates.margin, calibration=calibration, classes=classes)
    passed = np.flatnonzero(passes(candidates.label, candidates.margin, thresholds))
    refuse_nothing(candidates, thresholds, passed)
    mined = ranked(candidates, passed, caps=caps, classes=classes)
    labels = mined.column("label").to_numpy()
    empty = empty_classes(labels, thresholds, calibration, classes)
    if empty and config.empty_class == "error":
        raise DataError(f"{empty}, or set mine.empty_class to warn")
    drawn = random_faces(candidates, number=len(mined), seed=seed)
    control = ranked(candidates, drawn, caps=np.full(len(classes), NO_CAP), classes=classes)

    kept = np.bincount(labels, minlength=len(classes)).astype(np.int64)
    summary = {
        "classes": list(classes),
        "rule": config.model_dump(mode="json", exclude={"exclude", "exclude_sha256"}),
        "seed": seed,
        "margins": {name: number(value) for name, value in zip(classes, thresholds, strict=True)},
        "pools": count_pools(candidates, passed, mined, classes),
        "kept": len(mined),
        "passed": len(passed),
        "random": len(control),
        "exclude": {"listed": len(listed), "found": sum(candidates.excluded)},
        **expected_precision(calibration, thresholds, kept, classes=classes),
    }
    sweep = sweep_margins(calibration, points=config.sweep_points, used=np.unique(thresholds))
    with replacing_folder(out) as folder:
        write_rows(folder / MINED, mined)
        write_rows(folder / RANDOM, control)
        write_rows(folder / SWEEP, sweep_table(classes, **vars(sweep)))
        write_json(folder / SUMMARY, summary)
    counts: dict[str, int | float] = {key: sum(pool[key] for pool in summary["pools"].values()) for key in COUNTS}
    told = [empty, blind_classes(calibration, classes), short_of(config, len(mined), classes), unpinned(config)]
    return Summary("mine", headline(summary), counts, tuple(line for line in told if line))


def check_same_centroids(scores: Path, pools: Sequence[str]) -> None:
    """Pools that were scored against different centroids cannot share a margin."""
    first = read_centroids(scores / pools[0])
    for pool in pools[1:]:
        if not np.array_equal(read_centroids(scores / pool).vectors, first.vectors):
            raise DataError(
                f"{scores / pool} and {scores / pools[0]} were scored against different centroids; rerun score"
            )


def calibration_of(config: Config, heldout: Scores, candidates: Candidates, num_classes: int) -> Calibration:
    """The held-out faces with a direction, weighed as the settings say."""
    assert heldout.label is not None
    used = heldout.directed
    label, nearest, margin = heldout.label[used], heldout.nearest[used], heldout.margin[used]
    weights = np.ones(num_classes)
    if config.class_prior == "pool":
        weights = class_weights(label, nearest, candidates.label, num_classes=num_classes)
    return calibrate(
        label=label,
        nearest=nearest,
        margin=margin,
        pool_nearest=candidates.label,
        pool_margin=candidates.margin,
        class_weights=weights,
        support=config.support,
        level=config.level,
        estimator=config.estimator,
    )


def short_of(config: Config, kept: int, classes: Sequence[str]) -> str:
    """One line where fewer faces than the wanted count were kept, else nothing."""
    if config.by != "count":
        return ""
    values = config.values(classes)
    wanted = int(values.sum() if config.split_by_class else values[0])
    if kept >= wanted:
        return ""
    return f"{kept:,} faces were kept where {wanted:,} were wanted: caps, ties or too few clear margins"


def unpinned(config: Config) -> str:
    """One line where a list of exclusions may change without DVC seeing it, else nothing."""
    if config.exclude is None or config.exclude_sha256 is not None:
        return ""
    return (
        f"mine.exclude is not pinned, so a changed list would not mine again; set mine.exclude_sha256: "
        f"{file_sha256(config.exclude)}"
    )
