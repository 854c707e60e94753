"""Read and write `split.parquet`, which says what each labelled face of the anchor was used for, and by which model.

It lies beside each checkpoint of the primitive learner: that of the labeller and, with `train_primitive.refit`, that of
the calibration model (`of_calibration`). Columns: `face_id` string, `label` int64 (place in the classes) and `part`
string: `fit` (trained on, in the centroids), `validation` (chooses the epoch) or `heldout` (neither trained on nor in
the centroids: the precision of mining is estimated on it). Rows stand in the order of the faces' shards.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from jaxtyping import Int64

from fer_pipeline.artifacts.arrow import ParquetFile, positions_in, required
from fer_pipeline.artifacts.faces import write_parquet
from fer_pipeline.core.errors import DataError

SPLIT = "split.parquet"
FIT, VALIDATION, HELDOUT = "fit", "validation", "heldout"
CALIBRATION = "calibration"
NO_LABEL = -1
COLUMNS = required(
    {"face_id": pa.string(), "label": pa.int64(), "part": pa.string()}, remedy="run: dvc repro train_primitive"
)


@dataclass(frozen=True)
class Split:
    """The labelled faces of the anchor with their labels and parts, one entry a face."""

    face_id: pa.StringArray
    label: Int64[np.ndarray, " n"]
    part: np.ndarray  # of str

    def labels_of(self, face_id: pa.StringArray, parts: Sequence[str]) -> Int64[np.ndarray, " k"]:
        """Returns the label of each of these faces, `NO_LABEL` for those outside `parts`."""
        place = positions_in(face_id, self.face_id)
        labels = np.append(np.where(np.isin(self.part, parts), self.label, NO_LABEL), NO_LABEL)  # the last is place -1
        return labels[place]

    def faces_outside(self, part: str) -> frozenset[str]:
        """Returns the identifiers of the faces that are not in `part`."""
        return frozenset(self.face_id.filter(pa.array(self.part != part)).to_pylist())


def of_calibration(folder: Path) -> Path:
    """Returns where the model that held faces out, or what was made with it, lies: `calibration` in the folder.

    It is the folder itself where the labeller was not refitted: then that model is the labeller.
    """
    calibration = folder / CALIBRATION
    return calibration if calibration.is_dir() else folder


def write_split(folder: Path, *, face_id: Sequence[str], label: Int64[np.ndarray, " n"], part: Sequence[str]) -> None:
    """Writes `split.parquet` into the folder of a checkpoint."""
    schema = pa.schema({field.name: field.type for field in COLUMNS})
    write_parquet(folder / SPLIT, pa.table([face_id, label, part], schema=schema))


def read_split(model: Path, *, num_classes: int | None = None) -> Split:
    """Reads the split beside a checkpoint; one that is missing, or has labels beyond the classes, is a DataError."""
    path = model / SPLIT
    if not path.is_file():
        raise DataError(f"{path} does not exist: {model} is no primitive learner; run train_primitive (dvc repro)")
    table = ParquetFile(path, COLUMNS).read(COLUMNS.names)
    label = table.column("label").to_numpy().astype(np.int64)
    if num_classes is not None and len(label) and not (0 <= label.min() and label.max() < num_classes):
        found = f"{path} has labels from {label.min()} to {label.max()}, expected 0 to {num_classes - 1}"
        raise DataError(f"{found}; run train_primitive again (dvc repro --force --single-item train_primitive)")
    part = np.array(table.column("part").to_pylist(), dtype=object)
    return Split(face_id=table.column("face_id").combine_chunks(), label=label, part=part)
