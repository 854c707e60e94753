"""Read and write what `evaluate` leaves in `reports/metrics/<recipe>/<target>/`.

- `metrics.json`: the figures of `evaluation.statistics.summarise`, for `dvc metrics`, and how they were resampled.
- `predictions.parquet`, one row a test face: `face_id`, `label` and `subject` (names), per seed `predicted_<seed>` (a
  name) and `probabilities_<seed>` (f32, one for each class of the list in the metadata). Names, no numbers, so that SQL
  reads well. `trained` in the metadata is false for a network as it comes in a package, whose one row is of no seed;
  `seen` is there where weights were trained on the target, and says which.
- `confusion.csv`, one row a face and seed, as DVC's confusion template counts them: `actual`, `predicted`, `seed`.
- `failures/`: the most confident mistakes as PNG files, and `failures.json`, a list with `face_id`, `label`,
  `predicted`, `probability`, `rank` (within the true class, from 1) and `file` of each.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import TypeAdapter

from fer_pipeline.artifacts import arrow
from fer_pipeline.core.files import read_json, read_png, refuse_damage, write_bytes, write_json, write_text
from fer_pipeline.evaluation.predictions import Failure, Predictions
from fer_pipeline.evaluation.statistics import Resampling

METRICS = "metrics.json"
PREDICTIONS = "predictions.parquet"
RERUN = "remove it and run: dvc repro evaluate"
PREDICTED = arrow.required({"face_id": pa.string(), "label": pa.string()}, remedy=RERUN)
PREDICTED = PREDICTED.append(pa.field("subject", pa.string()))


def write_metrics(
    folder: Path,
    figures: Mapping[str, Any],
    predictions: Predictions,
    failures: Sequence[tuple[Failure, bytes]],
) -> None:
    """Write all files of one recipe on one target; a failure comes with the PNG of its face."""
    write_json(folder / METRICS, figures)
    write_predictions(folder / PREDICTIONS, predictions)
    lines = ["actual,predicted,seed"]
    for seed, row in zip(predictions.seeds, predictions.predicted, strict=True):
        pairs = zip(predictions.labels, row, strict=True)
        lines += [f"{predictions.classes[actual]},{predictions.classes[chosen]},{seed}" for actual, chosen in pairs]
    write_text(folder / "confusion.csv", "\n".join(lines) + "\n")
    for failure, picture in failures:
        write_bytes(folder / "failures" / failure.file, picture)
    rows = [{**asdict(failure), "file": failure.file} for failure, _ in failures]
    write_json(folder / "failures" / "failures.json", rows)


def write_predictions(path: Path, predictions: Predictions) -> None:
    """Write the table of predictions; the same predictions give the same bytes."""
    names = np.asarray(predictions.classes, dtype=object)
    columns: dict[str, pa.Array] = {
        "face_id": pa.array(predictions.face_id.tolist(), pa.string()),
        "label": pa.array(names[predictions.labels].tolist(), pa.string()),
        "subject": pa.array([subject or None for subject in predictions.subjects], pa.string()),
    }
    for seed, row, chosen in zip(predictions.seeds, predictions.probabilities, predictions.predicted, strict=True):
        columns[f"predicted_{seed}"] = pa.array(names[chosen].tolist(), pa.string())
        columns[f"probabilities_{seed}"] = arrow.matrix_column(row.astype(np.float32))
    about = {"classes": list(predictions.classes), "seeds": list(predictions.seeds), "trained": predictions.trained}
    if predictions.seen:
        about["seen"] = predictions.seen
    metadata = arrow.encode_metadata(**about)
    arrow.write_rows(path, pa.table(columns, metadata=metadata))


def read_predictions(path: Path) -> Predictions:
    """Read the table of predictions; a missing or damaged file is a DataError."""
    with refuse_damage(path, "is no predictions table", RERUN):
        file = arrow.ParquetFile(path, PREDICTED, kind="predictions table")
        about = arrow.schema_metadata(file.schema, path)
        classes, seeds = tuple(about["classes"]), tuple(about["seeds"])
        file.expected = _prediction_schema(len(classes), seeds)
        table = file.read(file.expected.names)
        number = {name: index for index, name in enumerate(classes)}
        shares = np.stack([arrow.matrix_view(table[f"probabilities_{seed}"].combine_chunks()) for seed in seeds])
        if not (np.isfinite(shares).all() and len(number) == len(classes) == shares.shape[-1] and len(table)):
            raise ValueError("its probabilities are not those of its classes")
        return Predictions(
            classes=classes,
            seeds=seeds,
            face_id=np.asarray(table["face_id"].to_pylist(), dtype=object),
            labels=np.asarray([number[name] for name in table["label"].to_pylist()], dtype=np.int64),
            subjects=np.asarray([subject or "" for subject in table["subject"].to_pylist()], dtype=object),
            probabilities=shares,
            trained=about.get("trained", True) is True,
            seen=str(about.get("seen", "")),
        )


def _prediction_schema(num_classes: int, seeds: Sequence[int]) -> pa.Schema:
    shares = pa.list_(pa.float32(), num_classes)
    fields = [*PREDICTED, *arrow.required({f"probabilities_{seed}": shares for seed in seeds})]
    return pa.schema(fields, metadata=PREDICTED.metadata)


def read_resampling(folder: Path) -> Resampling:
    """Read how the figures of a recipe on a target were resampled; a missing or damaged file is a DataError."""
    path = folder / METRICS
    with refuse_damage(path, "does not say how it was resampled", RERUN):
        return Resampling.model_validate(read_json(path)["resampling"])


def read_failures(folder: Path) -> list[tuple[Failure, bytes]]:
    """Read the failures with their PNGs, none where none were written; a damaged list is a DataError."""
    path = folder / "failures.json"
    with refuse_damage(folder, "lacks what its failures.json lists", "run: dvc repro evaluate"):
        failures = TypeAdapter(list[Failure]).validate_python(read_json(path)) if path.exists() else []
        return [(failure, read_png(folder / failure.file)) for failure in failures]
