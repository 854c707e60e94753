"""Read and write scores: `data/scores/<pool>/{part-*.arrow, heldout.arrow, centroids.safetensors, summary.json}`.

Columns: `face_id`, `cosine` fixed-size list of f32[c] in the order of the classes, `nearest` int64 (exact ties: the
lowest class), `margin` f32, best cosine minus second best. `heldout.arrow` holds the anchor faces that were neither
trained on nor are in the centroids, and has their true `label` too. A face without a direction (zero feature) has
cosines of exactly 0.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float32, Float64, Int64

from fer_pipeline.artifacts import arrow
from fer_pipeline.artifacts.arrays import Kind, read_arrays, write_arrays
from fer_pipeline.core.documents import brief
from fer_pipeline.core.errors import DataError
from fer_pipeline.core.files import replacing

HELDOUT = "heldout.arrow"
CENTROIDS = "centroids.safetensors"


RESCORE = "remove it and rerun score"
COLUMNS = arrow.required(
    {
        "face_id": pa.string(),
        "cosine": pa.list_(pa.float32(), arrow.ANY_LENGTH),
        "nearest": pa.int64(),
        "margin": pa.float32(),
    },
    remedy=RESCORE,
)
LABELLED = COLUMNS.append(pa.field("label", pa.int64(), nullable=False))


@dataclass(frozen=True)
class Scores:
    """Scores of many faces: one entry a face; `best` is the cosine to the nearest centroid."""

    face_id: pa.ChunkedArray
    nearest: Int64[np.ndarray, " n"]
    margin: Float32[np.ndarray, " n"]
    best: Float32[np.ndarray, " n"]
    directed: Bool[np.ndarray, " n"]  # False: a zero feature, which no class may claim
    label: Int64[np.ndarray, " n"] | None = None

    def __len__(self) -> int:
        return len(self.nearest)


@dataclass(frozen=True)
class Centroids:
    """The mean feature of every class and the number of faces behind it."""

    vectors: Float64[np.ndarray, "c d"]
    counts: Int64[np.ndarray, " c"]
    classes: tuple[str, ...]


def score_schema(classes: Sequence[str], *, labelled: bool = False) -> pa.Schema:
    """Returns the schema of scores against these classes."""
    fields = [
        pa.field("face_id", pa.string()),
        pa.field("cosine", pa.list_(pa.float32(), len(classes))),
        pa.field("nearest", pa.int64()),
        pa.field("margin", pa.float32()),
    ]
    fields += [pa.field("label", pa.int64())] * labelled
    return pa.schema(fields, metadata=arrow.encode_metadata(classes=list(classes)))


def score_batch(
    schema: pa.Schema,
    *,
    face_id: pa.Array,
    cosine: Float32[np.ndarray, "n c"],
    nearest: Int64[np.ndarray, " n"],
    margin: Float32[np.ndarray, " n"],
    label: Int64[np.ndarray, " n"] | None = None,
) -> pa.RecordBatch:
    """Builds one record batch of scores."""
    columns = [face_id, arrow.matrix_column(cosine), pa.array(nearest), pa.array(margin)]
    return pa.RecordBatch.from_arrays(columns if label is None else [*columns, pa.array(label)], schema=schema)


def write_scores(path: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> int:
    """Writes one file of scores, whole or not at all, and returns its rows."""
    with replacing(path) as temporary:
        return arrow.write_ipc(temporary, schema, batches)


def read_scores(folder: Path, *, classes: Sequence[str]) -> Scores:
    """Reads all scores of a pool; the identifiers stay on the disk until they are used."""
    return _read_scores(arrow.list_shards(folder, "part-*.arrow"), classes, where=folder)


def read_heldout(folder: Path, *, classes: Sequence[str]) -> Scores:
    """Reads the scores of the held-out anchor faces, with their labels."""
    path = folder / HELDOUT
    if not path.is_file():
        raise DataError(f"{path} does not exist; run score (dvc repro)")
    return _read_scores([path], classes, where=path, labelled=True)


def _read_scores(paths: Sequence[Path], classes: Sequence[str], *, where: Path, labelled: bool = False) -> Scores:
    for path in paths:
        stored = arrow.schema_metadata(arrow.open_ipc(path, COLUMNS if not labelled else LABELLED).schema, path)
        if stored.get("classes") != list(classes):
            found = brief(stored.get("classes"))
            raise DataError(f"{where} was scored against the classes {found}, expected {list(classes)}; rerun score")
    schema = score_schema(classes, labelled=labelled)
    expected = arrow.required({field.name: field.type for field in schema}, remedy=RESCORE)
    table = pa.concat_tables([arrow.read_ipc(path, expected) for path in paths])
    best, directed = [np.zeros(0, np.float32)], [np.zeros(0, bool)]
    for chunk in table.column("cosine").chunks:
        with arrow.refuse_damage(where, expected):
            cosine = arrow.matrix_view(chunk)
        best.append(cosine.max(axis=1))
        directed.append(np.any(cosine, axis=1))
    scores = Scores(
        face_id=table.column("face_id"),
        nearest=table.column("nearest").to_numpy(),
        margin=table.column("margin").to_numpy(),
        best=np.concatenate(best),
        directed=np.concatenate(directed),
        label=table.column("label").to_numpy() if labelled else None,
    )
    for numbers in (scores.nearest, scores.label):
        if numbers is not None and len(numbers) and not (0 <= numbers.min() and numbers.max() < len(classes)):
            raise DataError(f"{where} has classes outside of the {len(classes)} of the settings; rerun score")
    if not (np.isfinite(scores.margin).all() and np.isfinite(scores.best).all()):
        raise DataError(f"{where} has cosines or margins that are not finite; rerun score")
    return scores


def write_centroids(folder: Path, centroids: Centroids) -> None:
    """Writes the centroids beside the scores that were computed from them."""
    arrays = {"vectors": centroids.vectors, "counts": centroids.counts}
    write_arrays(folder / CENTROIDS, arrays, {"classes": "\n".join(centroids.classes)})


def read_centroids(folder: Path) -> Centroids:
    """Reads the centroids of a pool's scores; a missing or damaged file is a DataError."""
    kinds = {"vectors": Kind("F64", ("classes", "dimensions")), "counts": Kind("I64", ("classes",))}
    arrays, about = read_arrays(folder / CENTROIDS, kinds, stage="score")
    classes = tuple(about.get("classes", "").split("\n"))
    if len(classes) != len(arrays["counts"]):
        raise DataError(f"{folder / CENTROIDS} does not name its classes; remove it and run: dvc repro score")
    return Centroids(**arrays, classes=classes)
