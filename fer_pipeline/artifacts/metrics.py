"""Read and write what `evaluate` leaves in `reports/metrics/<recipe>/<target>/`.

- `metrics.json`: the figures of `evaluation.statistics.summarise`, for `dvc metrics`.
- `predictions.parquet`, one row a test face: `face_id`, `label` and `subject` (names), per seed `predicted_<seed>` (a
  name) and `probabilities_<seed>` (f32, one for each class of the list in the metadata). Names, no numbers, so that SQL
  reads well.
- `confusion.csv`, one row a face and seed, as DVC's confusion template counts them: `actual`, `predicted`, `seed`.
- `failures/`: the most confident mistakes as PNG files, and `failures.json`, a list with `face_id`, `label`,
  `predicted`, `probability`, `rank` (within the true class, from 1) and `file` of each.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float

from fer_pipeline.core.errors import DataError
from fer_pipeline.core.files import read_json, replacing, write_bytes, write_json, write_text
from fer_pipeline.evaluation.predictions import Failure, Predictions

PREDICTIONS = "predictions.parquet"
METADATA_KEY = b"fer_pipeline"


def write_metrics(
    folder: Path,
    figures: Mapping[str, Any],
    predictions: Predictions,
    failures: Sequence[tuple[Failure, bytes]],
) -> None:
    """Write all files of one recipe on one target; a failure comes with the PNG of its face."""
    write_json(folder / "metrics.json", figures)
    write_predictions(folder / PREDICTIONS, predictions)
    rows = ["actual,predicted,seed"]
    for seed, row in zip(predictions.seeds, predictions.predicted, strict=True):
        pairs = zip(predictions.labels, row, strict=True)
        rows += [f"{predictions.classes[actual]},{predictions.classes[chosen]},{seed}" for actual, chosen in pairs]
    write_text(folder / "confusion.csv", "\n".join(rows) + "\n")
    write_failures(folder / "failures", failures)


def write_predictions(path: Path, predictions: Predictions) -> None:
    """Write the table of predictions; the same predictions give the same bytes."""
    names = np.asarray(predictions.classes, dtype=object)
    columns: dict[str, pa.Array] = {
        "face_id": pa.array(predictions.face_id.tolist(), pa.string()),
        "label": pa.array(names[predictions.labels].tolist(), pa.string()),
        "subject": pa.array([subject or None for subject in predictions.subjects], pa.string()),
    }
    for seed, row, chosen in zip(predictions.seeds, predictions.probabilities, predictions.predicted, strict=True):
        flat = pa.array(np.ascontiguousarray(row, dtype=np.float32).ravel())
        columns[f"predicted_{seed}"] = pa.array(names[chosen].tolist(), pa.string())
        columns[f"probabilities_{seed}"] = pa.FixedSizeListArray.from_arrays(flat, len(names))
    about = {"classes": list(predictions.classes), "seeds": list(predictions.seeds)}
    table = pa.table(columns).replace_schema_metadata({METADATA_KEY: json.dumps(about, sort_keys=True).encode()})
    with replacing(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def read_predictions(path: Path) -> Predictions:
    """Read the table of predictions; a missing or damaged file is a DataError."""
    try:
        table = pq.read_table(path)
        about = json.loads((table.schema.metadata or {})[METADATA_KEY])
        classes, seeds = tuple(about["classes"]), tuple(about["seeds"])
        number = {name: index for index, name in enumerate(classes)}
        labels = np.asarray([number[name] for name in table["label"].to_pylist()], dtype=np.int64)
        shares = [_matrix(table[f"probabilities_{seed}"], len(classes)) for seed in seeds]
    except FileNotFoundError:
        raise DataError(f"{path} does not exist; run the stage evaluate (dvc repro)") from None
    except (pa.ArrowInvalid, KeyError, OSError) as error:
        raise DataError(f"{path} is no predictions table ({error}); remove it and rerun evaluate") from None
    return Predictions(
        classes=classes,
        seeds=seeds,
        face_id=np.asarray(table["face_id"].to_pylist(), dtype=object),
        labels=labels,
        subjects=np.asarray([subject or "" for subject in table["subject"].to_pylist()], dtype=object),
        probabilities=np.stack(shares),
    )


def _matrix(column: pa.ChunkedArray, width: int) -> Float[np.ndarray, "n c"]:
    flat = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return flat.reshape(-1, width).astype(np.float32)


def write_failures(folder: Path, failures: Sequence[tuple[Failure, bytes]]) -> None:
    """Write the PNG of every failure, and their list."""
    for failure, picture in failures:
        write_bytes(folder / failure.file, picture)
    write_json(folder / "failures.json", [{**asdict(failure), "file": failure.file} for failure, _ in failures])


def read_failures(folder: Path) -> list[tuple[Failure, bytes]]:
    """Read the failures with their PNGs, none where none were written; a damaged list is a DataError."""
    if not (folder / "failures.json").exists():
        return []
    try:
        return [
            (
                Failure(
                    face_id=str(row["face_id"]),
                    label=str(row["label"]),
                    predicted=str(row["predicted"]),
                    probability=float(row["probability"]),
                    rank=int(row["rank"]),
                ),
                (folder / Path(row["file"]).name).read_bytes(),
            )
            for row in read_json(folder / "failures.json")
        ]
    except (KeyError, TypeError, ValueError, FileNotFoundError) as error:
        raise DataError(f"{folder} lacks what its failures.json lists ({error!r}); run: dvc repro evaluate") from None
