"""Measure the models of one recipe on the test split of one target.

A network that was taken as it comes is one model and of no seed. Where weights in the models, or behind them, were
trained elsewhere on what the target is, that is said. Writes `reports/metrics/<recipe>/<target>`, whose files
`artifacts/metrics.py` describes. This is the only stage that opens a test split, and nothing in it is chosen by what it
sees there.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from fer_pipeline.artifacts.faces import encode, iter_faces, read_classes, read_table
from fer_pipeline.artifacts.metrics import write_metrics
from fer_pipeline.core.errors import DataError
from fer_pipeline.core.files import replacing_folder, write_json
from fer_pipeline.core.progress import progress
from fer_pipeline.core.settings import PlainName, ProjectSettings, Summary
from fer_pipeline.evaluation.metrics import METRICS
from fer_pipeline.evaluation.predictions import Failure, Predictions, worst_failures
from fer_pipeline.evaluation.statistics import Resampling, summarise
from fer_pipeline.networks.checkpoints import load_checkpoint, predictor_parts
from fer_pipeline.networks.pretrained import describe_seen, seen_by
from fer_pipeline.networks.settings import read_card


class Config(Resampling):
    """Which recipes are measured, and how; nothing here changes what they predict."""

    recipes: Annotated[tuple[PlainName, ...], Field(min_length=1)]  # each on every target
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
        recipe: The recipe's name in the settings.
        target: The target set's name in the settings.
        models: The recipe's models, one folder a seed.
        faces: The target's test split of aligned faces.
        out: Where metrics, predictions and mistakes are written.
        metrics: Where the main figures alone are written, for `dvc metrics`.
    """
    classes = project.classes
    require_split(faces)
    face_id, labels, subjects, unlabelled = read_labels(faces, classes=classes)
    trained, seen = describe_models(models / str(project.seeds[0]), project, target)
    seeds, rows = project.seeds if trained else project.seeds[:1], []
    known: dict[str, np.ndarray] = {}  # seeds may have equal models: that of a solved head
    with progress(f"evaluate {recipe} on {target}", len(seeds) * (len(labels) + unlabelled), "faces") as advance:
        for seed in seeds:
            if (model := repr(predictor_parts(models / str(seed)))) in known:
                rows.append(known[model])
                advance(len(labels) + unlabelled)
                continue
            classifier = load_checkpoint(models / str(seed), classes=classes, device=project.resources.device)
            parts = []
            for batch in iter_faces(faces, config.batch_size):
                parts.append(classifier.predict(batch.images)[batch.labels >= 0])
                advance(len(batch))
            row = np.concatenate(parts)
            if bad := int((~np.isfinite(row).all(-1)).sum()):
                fault = f"{models / str(seed)} gives no number for {bad} of {len(row)} faces"
                raise DataError(f"{fault}; its training diverged, rerun it")
            known[model] = row.astype(np.float32)
            rows.append(known[model])
    predictions = Predictions(classes, seeds, face_id, labels, subjects, np.stack(rows), trained=trained, seen=seen)
    figures = summarise(predictions, config, target=target)
    failures = worst_failures(predictions, per_class=config.failures_per_class)
    with replacing_folder(out) as folder:
        write_metrics(folder, figures, predictions, add_pictures(failures, faces, config.batch_size))
    if metrics is not None:
        write_json(metrics, {name: round(figures[name], 6) for name in METRICS})
    return summarise_run(recipe, target, figures, predictions, unlabelled=unlabelled)


def describe_models(model: Path, project: ProjectSettings, target: str) -> tuple[bool, str]:
    """Tell whether the models of a recipe were trained here, and which weights behind them saw the target elsewhere."""
    card = read_card(model)
    return card.training.get("learns", True) is not False, describe_seen(seen_by(card), project.names_of(target))


def require_split(faces: Path) -> None:
    """Refuse a data set without this split in one line."""
    if not faces.is_dir():
        parent = faces.parent
        there = sorted(path.name for path in parent.iterdir() if path.is_dir()) if parent.is_dir() else []
        raise DataError(
            f"{parent} has no {faces.name} split, it has {', '.join(there) or 'none'}; give the target a {faces.name} "
            f"split (a split column, or `split: {faces.name}` of its data set) and rerun align"
        )


def read_labels(split: Path, *, classes: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Read identifiers, class numbers and subjects of the faces with a label, and count those without one."""
    split_classes = read_classes(split)
    table = read_table(split, ["face_id", "label", "subject"])
    labels = table["label"].fill_null(-1).to_numpy().astype(np.int64)
    labelled = labels >= 0
    if not labelled.any():
        raise DataError(f"{split} has no labelled face; check its label column and its classes")
    if unknown := sorted({split_classes[label] for label in np.unique(labels[labelled])} - set(classes)):
        raise DataError(f"{split} has labels outside the classes: {', '.join(unknown)}; rerun align on it")
    number = np.asarray([classes.index(name) if name in classes else -1 for name in split_classes], dtype=np.int64)
    face_id = np.asarray(table["face_id"].to_pylist(), dtype=object)[labelled]
    subjects = np.asarray([subject or "" for subject in table["subject"].to_pylist()], dtype=object)[labelled]
    return face_id, number[labels[labelled]], subjects, int((~labelled).sum())


def add_pictures(failures: Sequence[Failure], split: Path, batch_size: int) -> list[tuple[Failure, bytes]]:
    """Read the crops of the failures and encode them as PNG."""
    wanted, pictures = {failure.face_id for failure in failures}, {}
    for batch in iter_faces(split, batch_size) if wanted else ():
        faces = zip(batch.face_id, batch.images, strict=True)
        pictures |= {face_id: encode(image, format="png") for face_id, image in faces if face_id in wanted}
    return [(failure, pictures[failure.face_id]) for failure in failures]


def summarise_run(
    recipe: str, target: str, figures: dict[str, Any], predictions: Predictions, *, unlabelled: int
) -> Summary:
    """Say the main figures in one line, and what was left out."""
    num_seeds = len(predictions.seeds)
    seeds = f"{num_seeds} seed{'s' * (num_seeds != 1)}" if predictions.trained else "nothing trained"
    counts = {name: figures[name] for name in ("accuracy", "mean_class_accuracy", "macro_f1", "samples")}
    line = (
        f"{recipe} on {target}: mean class accuracy {figures['mean_class_accuracy']:.3f}, accuracy "
        f"{figures['accuracy']:.3f} ({figures['samples']:,} faces, {seeds})"
    )
    warnings = []
    if absent := figures["absent_classes"]:
        warnings.append(f"{target} has no {absent} among its test faces: left out of the class mean")
    if predictions.seen:
        warnings.append(f"{predictions.seen}, which {target} is: the figures are of pictures it knows")
    if unlabelled:
        warnings.append(f"{unlabelled:,} faces of {target} have no label and were left out")
    return Summary("evaluate", line, counts, tuple(warnings))
