"""Select the pool faces that get a pseudo-label by the margin rule, over all pools, and rank them.

Reads `data/scores/<pool>` of every pool; writes `data/mined` (see `artifacts.mined`): mined and random faces, the
summary with margins, counts and estimated precision, and the sweep. Faces that are pictures of the test split of a
target, of the anchor or of the training set (`data/contents`, exact and without labels) are no candidates. Nothing is
written before every check has passed.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from fer_pipeline.artifacts.arrow import write_rows
from fer_pipeline.artifacts.mined import MINED, RANDOM, SUMMARY, SWEEP, sweep_table
from fer_pipeline.artifacts.scores import read_centroids, read_heldout, read_scores
from fer_pipeline.core.errors import DataError
from fer_pipeline.core.files import file_sha256, replacing_folder, write_json
from fer_pipeline.core.settings import ProjectSettings, Summary
from fer_pipeline.mining.calibration import Calibration, CalibrationSettings, Predictions, calibrate
from fer_pipeline.mining.candidates import (
    check_any_passed,
    collect_candidates,
    describe_empty_classes,
    headline,
    random_faces,
    rank_faces,
    read_exclusions,
    summarise,
)
from fer_pipeline.mining.leaks import describe_test_faces, find_test_faces
from fer_pipeline.mining.margin import NO_CAP, MarginRule, find_thresholds, passes

COUNTS = ("faces", "excluded", "test_faces", "no_direction", "below_margin", "over_cap", "kept")


class Config(MarginRule, CalibrationSettings):
    """The margin rule, how its precision is estimated, and what to do when a class stays empty."""

    sweep_points: Annotated[int, Field(ge=2)] = 101
    exclude: Path | None = None  # Parquet or CSV with a column face_id: faces that must not be mined
    # pins that file: DVC follows settings, so a changed list is seen by its changed hash alone
    exclude_sha256: Annotated[str, Field(pattern=r"^[0-9a-fA-F]{64}$")] | None = None
    test_faces: Literal["drop", "keep"] = "drop"  # pool faces that are equal to test faces
    empty_class: Literal["warn", "error"] = "warn"


def run(config: Config, project: ProjectSettings, *, scores: Path, out: Path, contents: Path | None = None) -> Summary:
    """Apply the margin rule to all pools together.

    Args:
        scores: The folder with a folder of scores for each pool.
        out: Where mined and random faces, the sweep and a summary are written.
        contents: The folder that says which picture each face of each set is; without it no test face is found.
    """
    classes, pools, seed = project.classes, project.pools, project.seeds[0]
    caps = config.caps(classes)
    exclude = read_exclusions(config.exclude, sha256=config.exclude_sha256)
    by_pool = {pool: read_scores(scores / pool, classes=classes) for pool in pools}
    centroids = read_centroids(scores / pools[0]).vectors
    for pool in pools[1:]:  # against different ones they cannot share a margin
        if not np.array_equal(read_centroids(scores / pool).vectors, centroids):
            both = f"{scores / pool} and {scores / pools[0]}"
            raise DataError(f"{both} were scored against different centroids; rerun score")
    test_faces, unknown = find_test_faces(contents, project)
    drop = config.test_faces == "drop"
    candidates = collect_candidates(by_pool, exclude=exclude, test_faces=test_faces, drop=drop)
    heldout = read_heldout(scores / pools[0], classes=classes)
    assert heldout.label is not None
    directed = heldout.directed
    calibration = calibrate(
        Predictions(heldout.nearest[directed], heldout.margin[directed], heldout.label[directed]),
        Predictions(candidates.label, candidates.margin),
        config,
        num_classes=len(classes),
    )

    thresholds = find_thresholds(config, candidates.label, candidates.margin, calibration=calibration, classes=classes)
    passed = np.flatnonzero(passes(candidates.label, candidates.margin, thresholds))
    check_any_passed(candidates, thresholds, passed)
    mined = rank_faces(candidates, passed, caps=caps, classes=classes)
    empty = describe_empty_classes(mined.column("label").to_numpy(), thresholds, calibration, classes)
    if empty and config.empty_class == "error":
        raise DataError(f"{empty}, or set mine.empty_class to warn")
    drawn = random_faces(candidates, number=len(mined), seed=seed)
    control = rank_faces(candidates, drawn, caps=np.full(len(classes), NO_CAP), classes=classes)

    summary = {
        "classes": list(classes),
        "rule": config.model_dump(mode="json", exclude={"exclude", "exclude_sha256"}),
        "seed": seed,
        "random": len(control),
        **summarise(candidates, passed, mined, thresholds, calibration, classes),
    }
    counts: dict[str, int | float] = {key: sum(pool[key] for pool in summary["pools"].values()) for key in COUNTS}
    summary["exclude"] = {"listed": len(exclude), "found": counts["excluded"]}
    summary["test_faces"] = {"found": counts["test_faces"], "not_checked": unknown}
    sweep = calibration.sweep(points=config.sweep_points, used=np.unique(thresholds))
    with replacing_folder(out) as folder:
        write_rows(folder / MINED, mined)
        write_rows(folder / RANDOM, control)
        write_rows(folder / SWEEP, sweep_table(classes, **sweep))
        write_json(folder / SUMMARY, summary)
    warnings = [*([empty] if empty else []), *warn(config, calibration, len(mined), classes)]
    warnings += describe_test_faces(summary["pools"], unknown, drop=drop)
    return Summary("mine", headline(summary), counts, tuple(warnings))


def warn(config: Config, calibration: Calibration, num_mined: int, classes: Sequence[str]) -> Iterator[str]:
    """Yields what a person should look at: classes without an estimate, too few faces, a list that is not pinned."""
    blind = [name for name, covered in zip(classes, calibration.covered, strict=True) if not covered]
    if blind:
        yield f"no held-out face is predicted {', '.join(blind)}: the estimated precision leaves it out"
    if config.by == "count":
        values = config.values(classes)
        wanted = int(values.sum() if config.split_by_class else values[0])
        if num_mined < wanted:
            yield f"{num_mined:,} faces were kept where {wanted:,} were wanted: caps, ties or too few clear margins"
    if config.exclude is not None and config.exclude_sha256 is None:
        yield (
            "mine.exclude is not pinned, so a changed list would not mine again; set mine.exclude_sha256: "
            f"{file_sha256(config.exclude)}"
        )
