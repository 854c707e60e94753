"""Read and write scores: `data/scores/<pool>/{part-*.arrow, heldout.arrow, centroids.safetensors, summary.json}`.

Columns: `face_id`, `cosine` fixed-size list of f32[c] in the order of the classes, `nearest` int64 (exact ties: the
lowest class), `margin` f32, best cosine minus second best, and `logit` fixed-size list of f32[c]: what the head of the
primitive learner makes of the feature, where the features are those that its head takes (`soft_max` gives the
probabilities). `heldout.arrow` holds the anchor faces that were neither trained on nor are in the centroids, and has
their true `label` too; where the labeller was refitted on them, it lies in `calibration` (`artifacts.split`), with the
centroids that it was scored against. A face without a direction (zero feature) has cosines of exactly 0.

Logits and no probabilities are stored, for the same 28 bytes of 7 classes: half precision would tie thousands of the
surest faces of a large pool, and single precision ends at 1 - 6e-8, where a margin of logits does not.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float, Float32, Float64, Int64
from pydantic import TypeAdapter

from fer_pipeline.artifacts import arrow
from fer_pipeline.artifacts.arrays import Kind, read_arrays, write_arrays
from fer_pipeline.core.documents import brief, parse_json
from fer_pipeline.core.errors import DataError
from fer_pipeline.core.files import refuse_damage, replacing
from fer_pipeline.core.settings import AllSeen, Rule, Seen, dump_seen

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
).append(pa.field("logit", pa.list_(pa.float32(), arrow.ANY_LENGTH), nullable=False, metadata=arrow.OPTIONAL))
LABELLED = COLUMNS.append(pa.field("label", pa.int64(), nullable=False))


@dataclass(frozen=True)
class Ranking:
    """What one rule says of many faces: their class, and the value that a threshold is compared with."""

    label: Int64[np.ndarray, " n"]
    value: Float[np.ndarray, " n"]  # margin: f32, as it is stored; probabilities: f64, which ties fewer of them

    def __getitem__(self, chosen: Int64[np.ndarray, " k"] | Bool[np.ndarray, " n"]) -> "Ranking":
        return Ranking(self.label[chosen], self.value[chosen])


@dataclass(frozen=True)
class Scores:
    """Scores of many faces: one entry a face; `best` is the cosine to the nearest centroid.

    `rankings` holds the rules that there are scores for: those by probability where there are logits.
    """

    face_id: pa.ChunkedArray
    rankings: dict[Rule, Ranking]
    cosine: pa.ChunkedArray
    best: Float32[np.ndarray, " n"]
    directed: Bool[np.ndarray, " n"]  # False: a zero feature, which no class may claim
    logit: pa.ChunkedArray | None = None
    label: Int64[np.ndarray, " n"] | None = None

    def __len__(self) -> int:
        return len(self.best)

    @property
    def nearest(self) -> Int64[np.ndarray, " n"]:
        """The class of the nearest centroid."""
        return self.rankings["margin"].label

    @property
    def margin(self) -> Float32[np.ndarray, " n"]:
        """Best cosine minus second best."""
        return self.rankings["margin"].value

    def by_class(self, *, logits: bool) -> Iterator[Float32[np.ndarray, "_ c"]]:
        """Yields one score for each class, logits or cosines, in parts that share the file's memory."""
        column = self.logit if logits else self.cosine
        assert column is not None, "no logits were stored"
        return map(arrow.matrix_view, column.chunks)

    def cosine_to(self, label: Int64[np.ndarray, " n"]) -> Float32[np.ndarray, " n"]:
        """Returns the cosine of each face to the centroid of the class that it is given."""
        parts, start = [np.zeros(0, np.float32)], 0
        for cosine in map(arrow.matrix_view, self.cosine.chunks):
            parts.append(np.take_along_axis(cosine, label[start : start + len(cosine), None], axis=1)[:, 0])
            start += len(cosine)
        return np.concatenate(parts)


@dataclass(frozen=True)
class Centroids:
    """The mean feature of every class and the number of faces behind it."""

    vectors: Float64[np.ndarray, "c d"]
    counts: Int64[np.ndarray, " c"]
    classes: tuple[str, ...]
    seen: Mapping[str, Seen] = field(default_factory=dict)  # by registered weights behind their labeller


def soft_max(logit: Float[np.ndarray, "n c"]) -> Float64[np.ndarray, "n c"]:
    """Computes the probabilities of logits: exp z_k / sum_j exp z_j, in float64."""
    powers = np.exp(logit.astype(np.float64) - logit.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def rank_probabilities(logit: Float32[np.ndarray, "n c"]) -> tuple[Ranking, Ranking]:
    """Ranks faces by their largest probability, and by that minus the second largest; ties go to the lowest class.

    Of a single class there is no second: its probability, 1, stands in.
    """
    probability, label = soft_max(logit), logit.argmax(axis=1)
    two = np.partition(np.pad(probability, ((0, 0), (1, 0))), -2, axis=1)[:, -2:]
    return Ranking(label, two[:, 1]), Ranking(label, two[:, 1] - two[:, 0])


def score_schema(classes: Sequence[str], *, labelled: bool = False, logits: bool = False) -> pa.Schema:
    """Returns the schema of scores against these classes."""
    fields = [
        pa.field("face_id", pa.string()),
        pa.field("cosine", pa.list_(pa.float32(), len(classes))),
        pa.field("nearest", pa.int64()),
        pa.field("margin", pa.float32()),
    ]
    fields += [pa.field("logit", pa.list_(pa.float32(), len(classes)))] * logits
    fields += [pa.field("label", pa.int64())] * labelled
    return pa.schema(fields, metadata=arrow.encode_metadata(classes=list(classes)))


def score_batch(
    schema: pa.Schema,
    *,
    face_id: pa.Array,
    cosine: Float32[np.ndarray, "n c"],
    nearest: Int64[np.ndarray, " n"],
    margin: Float32[np.ndarray, " n"],
    logit: Float32[np.ndarray, "n c"] | None = None,
    label: Int64[np.ndarray, " n"] | None = None,
) -> pa.RecordBatch:
    """Builds one record batch of scores."""
    columns = [face_id, arrow.matrix_column(cosine), pa.array(nearest), pa.array(margin)]
    columns += [] if logit is None else [arrow.matrix_column(logit)]
    columns += [] if label is None else [pa.array(label)]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


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
    logits = False
    for path in paths:
        found_schema = arrow.open_ipc(path, COLUMNS if not labelled else LABELLED).schema
        logits = logits or "logit" in found_schema.names  # all or none: the others are refused below
        stored = arrow.schema_metadata(found_schema, path)
        if stored.get("classes") != list(classes):
            found = brief(stored.get("classes"))
            raise DataError(f"{where} was scored against the classes {found}, expected {list(classes)}; rerun score")
    schema = score_schema(classes, labelled=labelled, logits=logits)
    expected = arrow.required({field.name: field.type for field in schema}, remedy=RESCORE)
    table = pa.concat_tables([arrow.read_ipc(path, expected) for path in paths])
    best, directed = [np.zeros(0, np.float32)], [np.zeros(0, bool)]
    for chunk in table.column("cosine").chunks:
        with arrow.refuse_damage(where, expected):
            cosine = arrow.matrix_view(chunk)
        best.append(cosine.max(axis=1))
        directed.append(np.any(cosine, axis=1))
    rankings: dict[Rule, Ranking] = {
        "margin": Ranking(table.column("nearest").to_numpy(), table.column("margin").to_numpy())
    }
    if logits:
        pairs = [rank_probabilities(np.zeros((0, len(classes)), np.float32))]
        for chunk in table.column("logit").chunks:
            with arrow.refuse_damage(where, expected):
                logit = arrow.matrix_view(chunk)
            if not np.isfinite(logit).all():
                raise DataError(f"{where} has logits that are not finite; rerun score")
            pairs.append(rank_probabilities(logit))
        label = np.concatenate([largest.label for largest, _ in pairs])
        values = [np.concatenate([ranking.value for ranking in column]) for column in zip(*pairs, strict=True)]
        rankings |= {"probability": Ranking(label, values[0]), "probability_margin": Ranking(label, values[1])}
    scores = Scores(
        face_id=table.column("face_id"),
        rankings=rankings,
        cosine=table.column("cosine"),
        best=np.concatenate(best),
        directed=np.concatenate(directed),
        logit=table.column("logit") if logits else None,
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
    seen = {name: json.dumps(value, sort_keys=True) for name, value in dump_seen(centroids.seen).items()}
    write_arrays(folder / CENTROIDS, arrays, {"classes": "\n".join(centroids.classes), **seen})


def read_centroids(folder: Path) -> Centroids:
    """Reads the centroids of a pool's scores; a missing or damaged file is a DataError."""
    kinds = {"vectors": Kind("F64", ("classes", "dimensions")), "counts": Kind("I64", ("classes",))}
    arrays, about = read_arrays(folder / CENTROIDS, kinds, stage="score")
    classes = tuple(about.get("classes", "").split("\n"))
    if len(classes) != len(arrays["counts"]):
        raise DataError(f"{folder / CENTROIDS} does not name its classes; remove it and run: dvc repro score")
    with refuse_damage(folder / CENTROIDS, "does not say what its labeller rests on", "run: dvc repro score"):
        seen = TypeAdapter(AllSeen).validate_python(parse_json(about.get("seen", "{}")))
    return Centroids(**arrays, classes=classes, seen=seen)
