"""Show how a single recipe learned: the course of each quantity, and what its model calls faces that it learned from.

The quantities are the columns of `history.csv`, whatever its strategy returns, one chart each over the steps with a
line for every seed. The faces are those of `reports/labels`. Whether a label is right is said of a pool's where its
truth is known, or its own table has a label, and of a labelled set's where the settings changed some.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fer_pipeline.artifacts.labels import RERUN, Labels, Row, read_labels
from fer_pipeline.artifacts.truth import Truth
from fer_pipeline.core.documents import one_line
from fer_pipeline.core.errors import DataError
from fer_pipeline.core.files import read_json
from fer_pipeline.evaluation.statistics import Interval, share_interval
from fer_pipeline.reporting.charts import SERIES, Line, lines
from fer_pipeline.reporting.formatting import crop_uri
from fer_pipeline.reporting.trainings import History

PLACES = ("epoch", "steps", "phase")  # columns that say where a row is
KINDS = {"train_": "training, mean over an epoch", "validation_": "validation part"}
# What a unit is known of; any other quantity is a number. Entropies are natural.
SHARES = {"accuracy", "agreement", "confident", "feedback_positive", "kept_besides", "misalignment", "ramp", "right"}
SHARES |= {"macro_f1", "mean_class_accuracy", "replaced", "set_right", "share_of_map"}
SHARE_PREFIXES = ("selected", "wrong", "confidence")
NATS = {"loss", "labelled", "mined", "other", "distilled", "pseudo", "adaptation", "adaptation_labelled"}
DASHES = ("-", "--", "-.", ":")


class Course(NamedTuple):
    """One quantity of a recipe over its steps, drawn; `text` says where each seed ended."""

    column: str
    title: str
    text: str
    picture: bytes


class ClassLabels(NamedTuple):
    """The faces of a pool that a model calls one class: how many, how many are right, and those that are shown."""

    name: str
    faces: int
    probability: float  # mean
    right: Interval | None  # of those whose truth is known
    selected: int  # that the strategy would select
    selected_right: Interval | None  # of those of them whose truth is known
    surest: list[dict[str, Any]]
    least_sure: list[dict[str, Any]]


class PoolView(NamedTuple):
    """What the first model of a recipe calls a sample of its pool."""

    seed: int
    drawn: int
    pool: int
    known: int  # faces whose truth is known
    threshold: float | None  # the probability from which its strategy selects a face; None where it has no such rule
    classes: list[ClassLabels]


class GivenLabels(NamedTuple):
    """The faces that a model learned under one class, and those whose label it gives the smallest probability."""

    name: str
    faces: int
    probability: float  # mean, of that class
    otherwise: Interval  # share that the model calls another class
    changed: int  # labels that the settings made wrong
    changed_otherwise: int  # of them
    rejected: int  # that the strategy would reject
    changed_rejected: int  # of the changed ones
    least: list[dict[str, Any]]


class LabelledView(NamedTuple):
    """What the first model of a recipe makes of a sample of the labels that it learned."""

    seed: int
    drawn: int
    labelled: int
    changed: int
    reject: float | None  # the share with the largest losses that its strategy rejects; None where it has no such rule
    classes: list[GivenLabels]


def draw_courses(runs: Mapping[int, History]) -> list[Course]:
    """Draw every quantity of a recipe's histories, one a seed; a row without a number is left out of its line."""
    columns = dict.fromkeys(name for run in runs.values() for row in run for name in row)
    courses = []
    for column in [name for name in columns if name not in PLACES]:
        kind = next((kind for kind in KINDS if column.startswith(kind)), "")
        name = column.removeprefix(kind)
        share = name in SHARES or name.startswith(SHARE_PREFIXES)
        unit = "%" if share else "nats" if name in NATS else ""
        words, series, ends = name.replace("_", " "), [], []
        looks = zip(itertools.cycle(SERIES), itertools.cycle(DASHES), strict=False)
        for (seed, run), (colour, dashes) in zip(runs.items(), looks, strict=False):
            points = [(row["steps"], row[column]) for row in run if math.isfinite(row.get(column, math.nan))]
            if points:
                steps, values = zip(*points, strict=True)
                series.append(Line(f"seed {seed}", steps, values, colour, dashes))
                ends.append(f"{100 * values[-1]:.1f} %" if share else f"{values[-1]:.4g}")
        ylabel = f"{words}, {unit}" if unit else words
        picture = lines(series, xlabel="steps", ylabel=ylabel, percent=share, height=2.4, legend_above=True)
        if picture:
            title = f"{words}{f' ({KINDS[kind]})' if kind else ''}"
            courses.append(Course(column, title, f"at the end {', '.join(ends)}", picture))
    return courses


def read_options(model: Path) -> Mapping[str, Any]:
    """Read off a model's card the options of its strategy; none where there is no card, or none in it.

    DataError for a card that is no JSON.
    """
    path = model / "card.json"
    found: Any = read_json(path) if path.exists() else {}
    for key in ("training", "options"):
        found = found.get(key, {}) if isinstance(found, Mapping) else {}
    return found if isinstance(found, Mapping) else {}


def view_labels(
    path: Path, classes: Sequence[str], truth: Truth, *, shown: int, options: Mapping[str, Any]
) -> tuple[PoolView | None, LabelledView | None]:
    """Read what a recipe's model calls faces that it learned from, with `shown` of a class from either end of its pool.

    Of its labelled faces, twice as many whose label is the least probable. None for a set without a face. `options` are
    those of its strategy, for what they say of a selection: `threshold` of the probability by which pool faces are
    selected, `reject` the share of the labelled faces that is not, those of the largest losses.
    """
    labels = read_labels(path)
    if labels is None:
        return None, None
    named = {name for row in labels.rows for name in (row["predicted"], row["given"]) if name is not None}
    if unknown := named - {*classes}:
        raise DataError(f"{path} has the class {one_line(min(unknown), 40)}, none of the settings; {RERUN}")
    pool = [row for row in labels.rows if row["given"] is None]
    learned = [row for row in labels.rows if row["given"] is not None]
    threshold, reject = (_number(options.get(name)) for name in ("threshold", "reject"))
    return (
        _view_pool(pool, labels, classes, truth, shown, threshold) if pool else None,
        _view_labelled(learned, labels, classes, 2 * shown, reject) if learned else None,
    )


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and 0 <= value <= 1 else None


def _view_pool(
    rows: list[Row], labels: Labels, classes: Sequence[str], truth: Truth, shown: int, threshold: float | None
) -> PoolView:
    least = math.inf if threshold is None else threshold
    rows = [{**row, **_truth_of(row, truth), "selected": row["probability"] > least} for row in rows]
    by_class = [_view_class(name, [row for row in rows if row["predicted"] == name], labels, shown) for name in classes]
    known = sum(row["right"] is not None for row in rows)
    return PoolView(labels.seed, len(rows), labels.pool, known, threshold, [one for one in by_class if one.faces])


def _truth_of(row: Mapping[str, Any], truth: Truth) -> dict[str, Any]:
    """Say what a face truly shows and whether it was called so: by the truth of a pool, or by its table's label."""
    names = (truth.label(pool, row["face_id"]) for pool in truth.pools)
    label = next(filter(None, names), row["label"] or "")
    return {"true_label": label, "right": label == row["predicted"] if label else None}


def _view_labelled(
    rows: list[Row], labels: Labels, classes: Sequence[str], shown: int, reject: float | None
) -> LabelledView:
    ranked = sorted(rows, key=lambda row: (row["given_probability"], row["face_id"]))
    views, rejected = [], {row["face_id"] for row in ranked[: round((reject or 0) * len(rows))]}
    for name in classes:
        own = [
            {**row, "changed": row["label"] not in (None, name), "rejected": row["face_id"] in rejected}
            for row in ranked
            if row["given"] == name
        ]
        if not own:
            continue
        otherwise, out = [row for row in own if row["predicted"] != name], [row for row in own if row["rejected"]]
        least = [row for row in own if row["image"]]
        faces = [{**row, "picture": crop_uri(labels.crop(row))} for row in least[:shown]]
        mean = math.fsum(row["given_probability"] for row in own) / len(own)
        share = share_interval(len(otherwise), len(own))
        changed, both, gone = (sum(row["changed"] for row in some) for some in (own, otherwise, out))
        views.append(GivenLabels(name, len(own), mean, share, changed, both, len(out), gone, faces))
    return LabelledView(labels.seed, len(rows), labels.labelled, sum(view.changed for view in views), reject, views)


def _view_class(name: str, rows: list[dict[str, Any]], labels: Labels, shown: int) -> ClassLabels:
    rows = sorted(rows, key=lambda row: (-row["probability"], row["face_id"]))
    selected = [row for row in rows if row["selected"]]
    answers, of_selected = ([row["right"] for row in some if row["right"] is not None] for some in (rows, selected))
    shown_rows = [row for row in rows if row["image"]]
    half = min(shown, (len(shown_rows) + 1) // 2)
    ends = (shown_rows[:half], shown_rows[half:][-half:] if half else [])
    surest, least_sure = ([{**row, "picture": crop_uri(labels.crop(row))} for row in end] for end in ends)
    mean = math.fsum(row["probability"] for row in rows) / len(rows) if rows else math.nan
    right, picked = (share_interval(sum(some), len(some)) if some else None for some in (answers, of_selected))
    return ClassLabels(name, len(rows), mean, right, len(selected), picked, surest, least_sure)
