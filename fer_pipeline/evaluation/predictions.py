"""What every seed's model said of every test face, as one table in `reports/metrics/<recipe>/<target>/`.

Columns of `predictions.parquet`: `face_id`, `label` and `subject` (names), per seed `predicted_<seed>` (a name) and
`probabilities_<seed>` (f32, one for each class of the list in the metadata). Names, no numbers, so that SQL reads well.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float, Int

from fer_pipeline.core.errors import DataError
from fer_pipeline.core.files import replacing
from fer_pipeline.evaluation.metrics import confusion_matrix

METADATA_KEY = b"fer_pipeline"


@dataclass(frozen=True)
class Predictions:
    """Test faces [n], their class numbers, their subjects ("" for none), and the probabilities of every seed."""

    classes: tuple[str, ...]
    seeds: tuple[int, ...]
    face_id: np.ndarray
    labels: Int[np.ndarray, " n"]
    subjects: np.ndarray
    probabilities: Float[np.ndarray, "s n c"]

    @property
    def predicted(self) -> Int[np.ndarray, "s n"]:
        """The most probable class of every seed; the first of equals."""
        return self.probabilities.argmax(-1)

    @property
    def confusions(self) -> Int[np.ndarray, "s c c"]:
        """The confusion matrix of every seed."""
        size = len(self.classes)
        return np.stack([confusion_matrix(self.labels, row, num_classes=size) for row in self.predicted])

    @property
    def clusters(self) -> Sequence[str] | None:
        """The subjects, for a bootstrap over persons; None where no subject is known."""
        return self.subjects.tolist() if any(self.subjects) else None


def write_predictions(path: Path, predictions: Predictions) -> None:
    """Writes the table; the same predictions give the same bytes."""
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
    """Reads the table back."""
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
