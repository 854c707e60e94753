"""Select the pool faces that get a pseudo-label by one rule, over all pools, rank them, and compare the rules.

Reads `data/scores/<pool>` of every pool; writes `data/mined` (see `artifacts.mined`): mined and random faces, as many
as the mined ones by a second rule where one is named, the summary with thresholds, counts and estimated precision, and
the sweep over all rules. Faces that are pictures of the test split of a target, of the anchor or of the training set
(`data/contents`, exact and without labels) are no candidates. Those that equal a train picture or each other are
counted, and with `mine.duplicates` they are none either, nor are those that only look so (`duplicates.parquet`). What
people said of single faces (`data/review.csv`) is applied to what the rule chose, mined faces alone (see
`mining.review`). Nothing is written before every check has passed.

Where the labeller was refitted, held-out faces have the scores of its calibration model, and the summary names that
model: the estimates are of a learner that had fewer faces, at the labeller's thresholds.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
from jaxtyping import Float64, Int64
from pydantic import Field, model_validator

from fer_pipeline.artifacts.arrow import write_rows
from fer_pipeline.artifacts.mined import (
    LIKE_OTHERS,
    MINED,
    PAIRS,
    RANDOM,
    REVIEWED,
    SECOND_RULE,
    SUMMARY,
    SWEEP,
    TEST_FACES,
    RuleSweep,
    counted_alone,
    sweep_table,
)
from fer_pipeline.artifacts.scores import Scores, read_centroids, read_heldout, read_scores
from fer_pipeline.artifacts.seed_folders import each_seed, in_set
from fer_pipeline.artifacts.split import CALIBRATION, of_calibration
from fer_pipeline.core.errors import ConfigError, DataError
from fer_pipeline.core.files import file_sha256, replacing_folder, write_json
from fer_pipeline.core.seeds import derive
from fer_pipeline.core.settings import ProjectSettings, Rule, Summary, dump_seen
from fer_pipeline.mining.calibration import Calibration, CalibrationSettings, calibrate
from fer_pipeline.mining.candidates import (
    NAMES,
    Candidates,
    check_any_passed,
    compare_rules,
    describe_empty_classes,
    headline,
    random_faces,
    rank_faces,
    read_exclusions,
    summarise,
)
from fer_pipeline.mining.duplicates import DuplicateSettings, describe_lookalikes, prepare_candidates
from fer_pipeline.mining.leaks import describe_test_faces, number_persons
from fer_pipeline.mining.margin import NO_CAP, Caps, MarginRule, find_thresholds, passes
from fer_pipeline.mining.review import add_review, apply_opinions, measure, read_opinions
from fer_pipeline.mining.shares import PoolShares, estimate_shares

COUNTS = ("faces", "excluded", "test_faces", "no_direction", "below_margin", "over_cap", "kept")
JUDGED_COUNTS = ("judged_wrong", "relabelled")  # there where faces were judged


class Config(MarginRule, CalibrationSettings):
    """The rule, how its precision is estimated, and what to do when a class stays empty or wants too much."""

    # another rule, which keeps as many faces (where each class has a threshold: of each class) for a recipe of its own
    second_rule: Annotated[Rule | None, Field(exclude_if=lambda value: value is None)] = None
    sweep_points: Annotated[int, Field(ge=2)] = 101
    exclude: Path | None = None  # Parquet or CSV with a column face_id: faces that must not be mined
    # pins that file: DVC follows settings, so a changed list is seen by its changed hash alone
    exclude_sha256: Annotated[str, Field(pattern=r"^[0-9a-fA-F]{64}$")] | None = None
    test_faces: Literal["drop", "keep"] = "drop"  # pool faces that are equal to test faces
    duplicates: Annotated[DuplicateSettings | None, Field(exclude_if=lambda value: value is None)] = None
    empty_class: Literal["warn", "error"] = "warn"
    beyond_pool: Literal["warn", "error"] = "warn"  # a class's count that is more than the pools hold, by estimate

    @model_validator(mode="after")
    def _rules_differ(self) -> "Config":
        if self.second_rule == self.ranked_by:
            raise ValueError(f"second_rule: {self.second_rule} is the rule that chooses; name another, or leave it out")
        return self


@each_seed("scores")
def run(
    config: Config,
    project: ProjectSettings,
    *,
    scores: Path,
    out: Path,
    contents: Path | None = None,
    review: Path | None = None,
) -> Summary:
    """Apply the rule to all pools together, and say what the other rules would keep.

    Args:
        scores: The folder with a folder of scores for each pool.
        out: Where mined and random faces, the sweep and a summary are written.
        contents: The folder that says which picture each face of each set is; without it no test face is found.
        review: The file of verdicts on single faces; without it none was judged.
    """
    classes, pools, seed = project.classes, project.pools, project.seeds[0]
    caps = config.caps(classes)
    exclude = read_exclusions(config.exclude, sha256=config.exclude_sha256)
    judged = read_opinions(review, contents, pools, classes)
    folders = {pool: in_set(scores, pool) for pool in pools}
    by_pool = {pool: read_scores(folder, classes=classes) for pool, folder in folders.items()}
    first = folders[pools[0]]
    centroids = read_centroids(first)
    for pool in pools[1:]:  # against different ones they cannot share a margin
        if not np.array_equal(read_centroids(folders[pool]).vectors, centroids.vectors):
            both = f"{folders[pool]} and {first}"
            raise DataError(f"{both} were scored against different centroids; rerun score")
    held_out = of_calibration(first)
    heldout = read_heldout(held_out, classes=classes)
    assert heldout.label is not None
    for rule in filter(None, (config.ranked_by, config.second_rule)):
        if any(rule not in one.rankings for one in (*by_pool.values(), heldout)):
            raise ConfigError(
                f"mine chooses by {rule}, but {scores} holds no logits; rerun score with the features "
                "that the primitive learner's head takes, or choose by margin"
            )
    alone, chosen, settings = counted_alone(config.model_dump()), config.ranked_by, config.duplicates
    collect, alike, unknown = prepare_candidates(by_pool, exclude, contents, project, settings, rule=chosen, kept=alone)
    candidates = collect(ranked_by=chosen)
    persons = number_persons(contents, project.anchor, heldout.face_id)
    shares = estimate_pool(config, candidates, heldout, persons, seed=derive(seed, "mine", "shares"))
    directed = heldout.directed
    calibrations: dict[Rule, Calibration] = {
        rule: calibrate(
            heldout.rankings[rule][directed],
            heldout.label[directed],
            ranking,
            config,
            shares=shares,
            num_classes=len(classes),
        )
        for rule, ranking in candidates.rankings.items()
    }
    calibration = calibrations[chosen]

    anchor = read_centroids(held_out).counts + np.bincount(heldout.label, minlength=len(classes))
    values = config.values(classes, anchor)
    thresholds = find_thresholds(config, candidates.rankings[chosen], values=values, caps=caps, calibration=calibration)
    passed = np.flatnonzero(passes(candidates.label, candidates.value, thresholds))
    check_any_passed(candidates, thresholds, passed)
    chosen_faces = rank_faces(candidates, passed, caps=caps, classes=classes)
    labels = chosen_faces.column("label").to_numpy()
    reviewed = apply_opinions(candidates, passed, chosen_faces, judged.opinions, classes) if judged else None
    mined = reviewed.mined if reviewed else chosen_faces
    empty = describe_empty_classes(labels, thresholds, calibration, classes, NAMES[chosen])
    if empty and config.empty_class == "error":
        raise DataError(f"{empty}, or set mine.empty_class to warn")
    beyond = describe_beyond_pool(config, values, shares, len(candidates), classes)
    if beyond and config.beyond_pool == "error":
        raise DataError(f"{beyond}, or set mine.beyond_pool to warn")
    drawn = random_faces(candidates, number=len(mined), seed=seed)
    control = rank_faces(candidates, drawn, caps=np.full(len(classes), NO_CAP), classes=classes)

    summary = {
        "classes": list(classes),
        "rule": config.model_dump(mode="json", exclude={"exclude", "exclude_sha256"}),
        "seed": seed,
        "random": len(control),
        **summarise(candidates, passed, mined, thresholds, calibration, classes),
        "rules": compare_rules(calibrations, passed=len(passed), classes=classes),
        "heldout": {"faces": len(heldout), "persons": None if persons is None else len(np.unique(persons))},
        **dump_seen(centroids.seen),
    }
    if held_out != first:
        summary["heldout"]["model"] = CALIBRATION
    if reviewed:
        add_review(summary, judged, reviewed, measure(chosen_faces, judged.opinions, classes, level=config.level))
    second = None
    if rule := config.second_rule:
        kept = np.bincount(mined.column("label").to_numpy(), minlength=len(classes))
        second, summary["second_rule"] = mine_as_many(
            config, collect(ranked_by=rule), calibrations[rule], kept, caps=caps, classes=classes
        )
    reasons = [key for key in LIKE_OTHERS if any(key in pool for pool in summary["pools"].values())]
    counts: dict[str, int | float] = {
        key: sum(pool[key] for pool in summary["pools"].values())
        for key in (*COUNTS, *reasons, *JUDGED_COUNTS * bool(reviewed))
    }
    summary["exclude"] = {"listed": len(exclude), "found": counts["excluded"]}
    summary["test_faces"] = {"found": counts["test_faces"], "not_checked": unknown}
    grid = calibration.grid(points=config.sweep_points, used=np.unique(thresholds))
    with replacing_folder(out) as folder:
        write_rows(folder / MINED, mined)
        write_rows(folder / RANDOM, control)
        if second is not None:
            write_rows(folder / SECOND_RULE, second)
        if reviewed is not None:
            write_rows(folder / REVIEWED, reviewed.faces)
        write_rows(folder / SWEEP, sweep_table(classes, sweep_rules(calibrations, chosen, grid)))
        if alike is not None:
            write_rows(folder / PAIRS, alike.pairs)
        write_json(folder / SUMMARY, summary)
    warnings = [line for line in (empty, beyond, *judged.warnings) if line]
    warnings += warn(config, calibration, values, labels, classes)
    if second is not None:
        warnings += warn_of_second(config, mined.column("label").to_numpy(), second.column("label").to_numpy(), classes)
    warnings += describe_test_faces(summary["pools"], unknown, drop=TEST_FACES not in alone)
    warnings += describe_lookalikes(summary["pools"], alone)
    return Summary("mine", headline(summary), counts, tuple(warnings))


def estimate_pool(
    settings: CalibrationSettings, candidates: Candidates, heldout: Scores, persons: np.ndarray | None, *, seed: int
) -> PoolShares | None:
    """Estimates the shares of the classes in the pools; None where those of the anchor are to stand for them.

    From logits where there are, else from cosines.
    """
    directed = heldout.directed
    if settings.class_prior == "anchor" or not directed.any() or not len(candidates):
        return None
    assert heldout.label is not None
    scores = np.concatenate([*heldout.by_class(logits="probability" in candidates.rankings)])[directed]
    groups = np.arange(len(heldout)) if persons is None else persons
    _, person = np.unique(groups[directed], return_inverse=True)
    return estimate_shares(scores, heldout.label[directed], person, candidates.scores, level=settings.level, seed=seed)


def mine_as_many(
    config: Config,
    candidates: Candidates,
    calibration: Calibration,
    kept: Int64[np.ndarray, " c"],
    *,
    caps: Caps,
    classes: Sequence[str],
) -> tuple[pa.Table, dict[str, Any]]:
    """Mines as many faces by the rule of the candidates as another rule kept of each class.

    Where that rule has one threshold for all classes, so has this one, and the total is equal. Returns the faces and
    their part of the summary.
    """
    by_class = config.split_by_class
    rule = MarginRule(by="count", value=1, rule=candidates.ranked_by, per_class=by_class)
    values = kept.astype(np.float64) if by_class else np.full(len(classes), float(kept.sum()))
    ranking = candidates.rankings[candidates.ranked_by]
    thresholds = find_thresholds(rule, ranking, values=values, caps=caps, calibration=calibration)
    passed = np.flatnonzero(passes(candidates.label, candidates.value, thresholds))
    mined = rank_faces(candidates, passed, caps=caps, classes=classes)
    whole = summarise(candidates, passed, mined, thresholds, calibration, classes)
    parts = ("margins", "kept", "by_class", "precision")
    return mined, {"rule": candidates.ranked_by, **{name: whole[name] for name in parts}}


def list_short(names: Sequence[str], kept: np.ndarray, wanted: np.ndarray) -> str:
    """Lists where fewer faces were kept than wanted: `fear 1 of 2`."""
    counts = zip(names, kept, wanted, strict=True)
    return ", ".join(f"{name} {have:,} of {int(want):,}" for name, have, want in counts if have < want)


def warn_of_second(config: Config, labels: np.ndarray, second: np.ndarray, classes: Sequence[str]) -> Iterator[str]:
    """Yields where the second rule kept fewer faces than the first, so that their recipes differ in number too."""
    both = [np.bincount(one, minlength=len(classes)) for one in (labels, second)]
    names = list(classes)
    if not config.split_by_class:
        both, names = [one.sum(keepdims=True) for one in both], ["all classes"]
    kept, found = both
    if short := list_short(names, found, kept):
        yield (
            f"mine.second_rule: {config.second_rule} kept fewer faces than {config.ranked_by}: {short}; it "
            "gives fewer faces these labels, or equal ones stand at the border: its recipe learns from fewer"
        )


def sweep_rules(
    calibrations: dict[Rule, Calibration], chosen: Rule, grid: Float64[np.ndarray, " t"]
) -> dict[Rule, RuleSweep]:
    """Sweeps the rule that chose over a grid of its thresholds, and the others where they keep as many faces."""
    first = calibrations[chosen].sweep(grid)
    wanted = first.kept.sum(axis=1)
    return {
        rule: first if rule == chosen else one.sweep(one.thresholds_for(wanted)) for rule, one in calibrations.items()
    }


def describe_beyond_pool(
    config: Config,
    values: Float64[np.ndarray, " c"],
    shares: PoolShares | None,
    number: int,
    classes: Sequence[str],
) -> str:
    """Returns one line about the classes of which more faces are wanted than the pools hold, empty where none is."""
    if config.by != "count" or not config.split_by_class or shares is None:
        return ""
    parts = []
    for k, name in enumerate(classes):
        most = np.ceil(shares.high[k] * number)
        if values[k] > most:  # not so where nothing is known: NaN
            parts.append(f"{name} ({int(values[k]):,} wanted, at most {int(most):,} there)")
    if not parts:
        return ""
    level = f"{config.level:.0%} interval of the share"
    return f"more faces are wanted than the pools hold of {', '.join(parts)}, by the {level}; lower mine.value"


def warn(
    config: Config,
    calibration: Calibration,
    values: Float64[np.ndarray, " c"],
    labels: np.ndarray,
    classes: Sequence[str],
) -> Iterator[str]:
    """Yields what a person should look at: classes of which little is known, too few faces, an unpinned list."""
    reasons = [f"{name} ({reason})" for name, reason in zip(classes, calibration.reasons(), strict=True) if reason]
    if reasons:
        yield (
            f"the precision of {', '.join(reasons)} is not known or has no lower bound: the estimate leaves out what "
            "is not known, its lower bound counts as wrong what has none; hold out more anchor faces"
        )
    if config.by == "count":
        kept = np.bincount(labels, minlength=len(classes))
        if config.split_by_class:
            if short := list_short(classes, kept, values):
                yield f"fewer faces were kept than wanted: {short}; caps, ties or too few clear faces"
        elif len(labels) < (wanted := int(values[0])):
            yield f"{len(labels):,} faces were kept where {wanted:,} were wanted: caps, ties or too few clear margins"
    if config.exclude is not None and config.exclude_sha256 is None:
        yield (
            "mine.exclude is not pinned, so a changed list would not mine again; set mine.exclude_sha256: "
            f"{file_sha256(config.exclude)}"
        )
