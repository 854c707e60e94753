"""Trained models of one recipe and a target's test split in, `reports/metrics/<recipe>/<target>` out.

Writes `metrics.json` (the mean over seeds with both intervals, every seed, every class), `predictions.parquet`,
`confusion.csv` (one row a face and seed, as DVC's confusion template counts them) and `failures/` (the most confident
mistakes with `failures.json`, which says what they are). This is the only stage that opens a test split, and nothing
in it is chosen by what it sees there.
"""

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import numpy as np
from jaxtyping import Float, Int64
from pydantic import Field

from fer_pipeline.artifacts.faces import encode, iter_faces, read_classes, read_table
from fer_pipeline.core.errors import DataError
from fer_pipeline.core.files import replacing_folder, write_bytes, write_json, write_text
from fer_pipeline.core.progress import progress
from fer_pipeline.core.settings import PlainName, ProjectSettings, Settings
from fer_pipeline.core.summary import Summary
from fer_pipeline.evaluation.failures import Failure, worst_failures
from fer_pipeline.evaluation.metrics import METRICS
from fer_pipeline.evaluation.predictions import Predictions, write_predictions
from fer_pipeline.evaluation.summary import summarise
from fer_pipeline.networks.checkpoints import load_checkpoint


class Config(Settings):
    """Which recipes are measured, and how; nothing here changes what they predict."""

    recipes: Annotated[tuple[PlainName, ...], Field(min_length=1)]  # each on every target
    bootstrap: Annotated[int, Field(ge=100)] = 2000  # replicates of the test set
    bootstrap_seed: int = 0
    by_subject: bool = True  # draw persons where they are known; else faces within each class
    failures_per_class: Annotated[int, Field(ge=0)] = 4
    batch_size: Annotated[int, Field(ge=1)] = 256


def run(
    config: Config,
    project: ProjectSettings,
    *,
    recipe: str,
    target: str,
    models: Path,
    faces: Path,
    out: Path,
    metrics: Path | None = None,
) -> Summary:
    """Measure the models of one recipe on the test split of one target.

    Args:
        config: The section `evaluate`.
        project: What all stages share.
        recipe: The recipe's name in the settings.
        target: The target set's name in the settings.
        models: The recipe's models, one folder a seed.
        faces: The target's test split of aligned faces.
        out: Where metrics, predictions and mistakes are written.
        metrics: Where the main figures alone are written, for `dvc metrics`.
    """
    classes, seeds = project.classes, project.seeds
    split = find_split(faces)
    face_id, labels, subjects, unlabelled = labelled_faces(split, classes=classes)
    rows = []
    with progress(f"evaluate {recipe} on {target}", len(seeds) * (len(labels) + unlabelled), "faces") as advance:
        for seed in seeds:
            classifier = load_checkpoint(models / str(seed), classes=classes, device=project.resources.device)
            parts = []
            for batch in iter_faces(split, config.batch_size):
                parts.append(classifier.predict(batch.images)[batch.labels >= 0])
                advance(len(batch))
            rows.append(checked(np.concatenate(parts), models / str(seed)))
    predictions = Predictions(classes, seeds, face_id, labels, subjects, np.stack(rows))
    found = summarise(predictions, draws=config.bootstrap, seed=config.bootstrap_seed, by_subject=config.by_subject)
    failures = worst_failures(predictions, per_class=config.failures_per_class)
    with replacing_folder(out) as folder:
        write_json(folder / "metrics.json", found)
        write_predictions(folder / "predictions.parquet", predictions)
        write_text(folder / "confusion.csv", confusion_rows(predictions))
        write_failures(folder / "failures", failures, split=split, batch_size=config.batch_size)
    if metrics is not None:
        write_json(metrics, {name: round(found[name], 6) for name in METRICS})
    return summary(recipe, target, found, unlabelled=unlabelled, num_seeds=len(seeds))


def find_split(faces: Path) -> Path:
    """The split's folder, refused in one line where the data set has none."""
    if not faces.is_dir():
        parent = faces.parent
        there = sorted(path.name for path in parent.iterdir() if path.is_dir()) if parent.is_dir() else []
        raise DataError(
            f"{parent} has no {faces.name} split, it has {', '.join(there) or 'none'}; give the target a {faces.name} "
            f"split (a split column, or `split: {faces.name}` of its data set) and rerun align"
        )
    return faces


def labelled_faces(
    split: Path, *, classes: Sequence[str]
) -> tuple[np.ndarray, Int64[np.ndarray, " n"], np.ndarray, int]:
    """Identifiers, class numbers and subjects of the faces with a label, and how many have none."""
    own = read_classes(split)
    table = read_table(split, ["face_id", "label", "subject"])
    given = table["label"].fill_null(-1).to_numpy().astype(np.int64)
    keep = given >= 0
    if not keep.any():
        raise DataError(f"{split} has no labelled face; check its label column and its classes")
    outside = sorted({own[label] for label in np.unique(given[keep])} - set(classes))
    if outside:
        raise DataError(f"{split} has labels outside the classes: {', '.join(outside)}; rerun align on it")
    number = np.asarray([classes.index(name) if name in classes else -1 for name in own], dtype=np.int64)
    face_id = np.asarray(table["face_id"].to_pylist(), dtype=object)[keep]
    subjects = np.asarray([subject or "" for subject in table["subject"].to_pylist()], dtype=object)[keep]
    return face_id, number[given[keep]], subjects, int((~keep).sum())


def checked(probabilities: Float[np.ndarray, "n c"], model: Path) -> Float[np.ndarray, "n c"]:
    """The same probabilities, refused where one is no number."""
    if not np.isfinite(probabilities).all():
        bad = int((~np.isfinite(probabilities).all(-1)).sum())
        raise DataError(
            f"{model} gives no number for {bad} of {len(probabilities)} faces; its training diverged, rerun it"
        )
    return probabilities.astype(np.float32)


def confusion_rows(predictions: Predictions) -> str:
    """One line a face and seed: actual, predicted, seed."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(("actual", "predicted", "seed"))
    for seed, row in zip(predictions.seeds, predictions.predicted, strict=True):
        for label, chosen in zip(predictions.labels, row, strict=True):
            writer.writerow((predictions.classes[label], predictions.classes[chosen], seed))
    return stream.getvalue()


def write_failures(folder: Path, failures: Sequence[Failure], *, split: Path, batch_size: int) -> None:
    """The crops as PNG, and a list of them that names the face, both classes and the probability."""
    wanted = {failure.face_id: failure for failure in failures}
    for batch in iter_faces(split, batch_size) if wanted else ():
        for face_id, image in zip(batch.face_id, batch.images, strict=True):
            if face_id in wanted:
                write_bytes(folder / wanted[face_id].file, encode(image, format="png"))
    write_json(folder / "failures.json", [{**asdict(failure), "file": failure.file} for failure in failures])


def summary(recipe: str, target: str, metrics: dict, *, unlabelled: int, num_seeds: int) -> Summary:
    """One line for the person who waits."""
    counts = {name: metrics[name] for name in ("accuracy", "mean_class_accuracy", "macro_f1", "samples")}
    line = (
        f"{recipe} on {target}: mean class accuracy {metrics['mean_class_accuracy']:.3f}, accuracy "
        f"{metrics['accuracy']:.3f} ({metrics['samples']:,} faces, {num_seeds} seed{'s' * (num_seeds != 1)})"
    )
    warnings = []
    if metrics["absent_classes"]:
        warnings.append(f"{target} has no {metrics['absent_classes']} among its test faces: left out of the class mean")
    if unlabelled:
        warnings.append(f"{unlabelled:,} faces of {target} have no label and were left out")
    return Summary("evaluate", line, counts, tuple(warnings))
