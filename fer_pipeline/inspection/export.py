"""Write the mined faces of a revision for other programs: a folder of pictures, CSV, Parquet, or Parquet with a map.

The pictures come from `data/auxiliary` where that was made of this very subset, else from `data/faces`, with the bytes
that they have there. The map is for Apple's embedding-atlas, as its documentation has it ("Command Line Tool", checked
2026-11): `projection_x` and `projection_y`, and `neighbors`, a struct of `ids` (rows of this table, from 0) and
`distances`. Neighbours are the nearest ones by cosine, found by comparing with every other face; a distance is 1 minus
that. The projection is that on the first two principal components of the vectors at unit length, each with the
sign that makes its largest weight positive: the same vectors give the same map, but for rounding.
"""

import csv
import json
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
from jaxtyping import Float32, Int64

from fer_pipeline.artifacts.arrow import positions_in, write_rows
from fer_pipeline.artifacts.embeddings import embedding_paths, stream_embeddings
from fer_pipeline.artifacts.faces import encoded_images, open_shard, shard_paths, write_shard
from fer_pipeline.core.errors import ConfigError, DataError
from fer_pipeline.core.files import refuse_link, replacing
from fer_pipeline.core.progress import progress
from fer_pipeline.core.settings import PLAIN_NAME
from fer_pipeline.inspection.revisions import Revision
from fer_pipeline.inspection.tables import SUBSET, read_subset

Format = Literal["images", "csv", "parquet", "atlas"]
FORMATS = {".csv": ("csv",), ".parquet": ("parquet", "atlas")}  # what a name may end in
NEIGHBOURS = 15  # as embedding-atlas computes them where nobody says otherwise
QUERY_ROWS = 4096  # compared with all others at once
FORMULA = ("=", "+", "-", "@", "\t", "\r")
MAGIC = {b"\xff\xd8\xff": "jpg", b"\x89PNG": "png"}
MAP = ("projection_x", "projection_y", "neighbors")


def export(
    revision: Revision, out: Path, *, format: Format, images: bool = True, neighbours: int = NEIGHBOURS
) -> pa.Table:
    """Writes the mined faces to `out`, which must not be there yet, and returns the rows without pictures.

    `images`: whether a Parquet file holds the pictures; `neighbours`: how many of each face the map names.
    """
    refuse_link(out)
    if out.exists():
        raise ConfigError(f"{out} is there already; name another place with --out, or remove it")
    suffix = out.suffix.lower()
    if suffix in FORMATS and format not in FORMATS[suffix]:
        wanted = f"--format {FORMATS[suffix][0]}, or a name without {suffix}"
        raise ConfigError(f"{out} would hold {format}, which its name contradicts; give {wanted}")
    if neighbours < 1:
        raise ConfigError(f"--neighbours must be at least 1, found {neighbours}")
    rows, _ = read_subset(revision)
    if format == "atlas":
        rows = add_map(rows, read_vectors(revision, rows), neighbours=neighbours)
    pictures = read_pictures(revision, rows) if format == "images" or (images and format != "csv") else None
    if format == "csv":
        with replacing(out) as temporary:
            write_csv(temporary, rows)
    elif format == "images":
        assert pictures is not None
        write_pictures(out, rows, pictures)
    elif pictures is None:
        write_rows(out, rows.replace_schema_metadata(_features(rows.schema)))
    else:
        with_images = rows.append_column("image", _image_column(pictures))
        write_shard(out, with_images.replace_schema_metadata(_features(with_images.schema)))
    return rows


def read_pictures(revision: Revision, rows: pa.Table) -> list[bytes]:
    """Reads the encoded crop of each mined face."""
    pictures = [b""] * len(rows)
    for pool, places in places_by_pool(rows).items():
        wanted = rows["face_id"].take(places).combine_chunks()
        crops = read_crops(picture_folder(revision, pool), wanted, f"mined faces of {pool}", "run: dvc repro shard")
        for place, crop in zip(places.tolist(), crops, strict=True):
            pictures[place] = crop
    return pictures


def read_crops(folder: Path, wanted: pa.Array, what: str, remedy: str) -> list[bytes]:
    """Reads the encoded crops of some faces from the shards of a folder, and no other column; DataError without one."""
    crops: list[bytes | None] = [None] * len(wanted)
    for path in shard_paths(folder):
        shard = open_shard(path)
        found = positions_in(shard.read(["face_id"])["face_id"], wanted)
        starts = np.cumsum([0, *shard.row_counts()])
        for group in np.unique(np.searchsorted(starts, np.flatnonzero(found >= 0), side="right") - 1).tolist():
            column = shard.read_row_group(group, ["image"], use_threads=False).combine_chunks()
            encoded = encoded_images(column.to_batches()[0])
            at = found[starts[group] : starts[group + 1]]
            for row in np.flatnonzero(at >= 0).tolist():
                crops[at[row]] = bytes(encoded[row])  # a view would hold the whole group
    if absent := [place for place, crop in enumerate(crops) if crop is None]:
        raise DataError(f"{len(absent):,} {what} have no picture, {wanted[absent[0]]} first; {remedy}")
    return crops  # pyright: ignore[reportReturnType]


def picture_folder(revision: Revision, pool: str) -> Path:
    """Returns the shards of mined faces where they were made of this subset, which its hash says; else all faces."""
    auxiliary, made_of = f"data/auxiliary/{pool}", revision.outputs(SUBSET).get(SUBSET)
    for stage in revision.stages.values():
        writes = [out["path"] for out in stage.get("outs") or ()]
        reads = [dep.get("md5") for dep in stage.get("deps") or () if dep["path"] == SUBSET]
        if auxiliary in writes and reads == [made_of]:
            return revision.path(auxiliary, "*part-*.parquet")
    return faces_folder(revision, pool)


def faces_folder(revision: Revision, pool: str) -> Path:
    """Returns the folder with all faces of a set's train split."""
    return revision.path(f"data/faces/{pool}", "train/part-*.parquet") / "train"


def read_vectors(revision: Revision, rows: pa.Table) -> Float32[np.ndarray, "n d"]:
    """Reads the features of the mined faces, as the primitive learner of this revision gave them."""
    vectors, found = np.zeros((len(rows), 0), np.float32), np.zeros(len(rows), bool)
    for pool, places in places_by_pool(rows).items():
        wanted = rows["face_id"].take(places).combine_chunks()
        for path in embedding_paths(revision.path(f"data/embeddings/{pool}", "*part-*.arrow")):
            for block in stream_embeddings(path, rows=100_000):
                at = positions_in(block.face_id, wanted)
                if not vectors.shape[1] and len(block):
                    vectors = np.zeros((len(rows), block.parts[0].shape[1]), np.float32)
                start = 0
                for part in block.parts:
                    inside = np.flatnonzero(at[start : start + len(part)] >= 0)
                    target = places[at[start + inside]]
                    vectors[target], found[target] = part[inside], True
                    start += len(part)
    if not found.all():
        raise DataError(
            f"{int((~found).sum()):,} mined faces have no embedding in {revision.title}; run: dvc repro embed"
        )
    return vectors


def places_by_pool(rows: pa.Table) -> Mapping[str, Int64[np.ndarray, " k"]]:
    """Returns which rows are of each pool."""
    pools = rows["pool"].unique()
    numbers = positions_in(rows["pool"], pools)
    return {pool: np.flatnonzero(numbers == number) for number, pool in enumerate(pools.to_pylist())}


def add_map(rows: pa.Table, vectors: Float32[np.ndarray, "n d"], *, neighbours: int) -> pa.Table:
    """Adds the columns of `MAP`; where there are fewer other faces than `neighbours`, all of them are named."""
    unit = to_unit(vectors)
    places = project(unit)
    ids, distances = find_neighbours(unit, min(neighbours, len(unit) - 1))
    lists = [
        pa.array([*part], kind) for part, kind in ((ids, pa.list_(pa.int64())), (distances, pa.list_(pa.float32())))
    ]
    columns = [pa.array(places[:, 0]), pa.array(places[:, 1]), pa.StructArray.from_arrays(lists, ["ids", "distances"])]
    for name, column in zip(MAP, columns, strict=True):
        rows = rows.append_column(name, column)
    return rows


def to_unit(vectors: Float32[np.ndarray, "n d"]) -> Float32[np.ndarray, "n d"]:
    """Returns the vectors at length 1; one of zeros stays as it is."""
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.divide(vectors, length, out=np.zeros_like(vectors), where=length > 0)


def project(unit: Float32[np.ndarray, "n d"]) -> Float32[np.ndarray, "n 2"]:
    """Projects vectors on their first two principal components (Pearson, 1901)."""
    mean = unit.mean(axis=0, dtype=np.float64)
    spread = np.zeros((unit.shape[1], unit.shape[1]))
    for start in range(0, len(unit), QUERY_ROWS):
        part = unit[start : start + QUERY_ROWS] - mean
        spread += part.T @ part
    _, axes = np.linalg.eigh(spread)  # in order of rising eigenvalues
    first = np.zeros((unit.shape[1], 2))
    first[:, : min(2, unit.shape[1])] = axes[:, ::-1][:, :2]
    first *= np.where(first[np.abs(first).argmax(axis=0), [0, 1]] < 0, -1, 1)
    return ((unit - mean) @ first).astype(np.float32)


def find_nearest(
    unit: Float32[np.ndarray, "n d"], others: Float32[np.ndarray, "m d"], number: int
) -> tuple[Int64[np.ndarray, "n k"], Float32[np.ndarray, "n k"]]:
    """Finds the rows of `others` with the largest cosines to each vector, the largest first, and these cosines."""
    from faiss import METRIC_INNER_PRODUCT, knn

    number = min(number, len(others))
    ids, cosine = np.zeros((len(unit), number), np.int64), np.zeros((len(unit), number), np.float32)
    with progress("neighbours", len(unit), "faces") as advance:
        for start in range(0, len(unit) if number else 0, QUERY_ROWS):
            part = slice(start, start + QUERY_ROWS)
            cosine[part], ids[part] = knn(unit[part], others, number, metric=METRIC_INNER_PRODUCT)
            advance(len(ids[part]))
    return ids, cosine


def find_neighbours(
    unit: Float32[np.ndarray, "n d"], number: int
) -> tuple[Int64[np.ndarray, "n k"], Float32[np.ndarray, "n k"]]:
    """Finds the rows with the largest cosine to each row but itself, the nearest first, and 1 minus that cosine."""
    ids, cosine = find_nearest(unit, unit, number + 1)
    own = ids == np.arange(len(ids))[:, None]
    own[~own.any(axis=1), -1] = True  # so many equal faces that it is not among them
    ids, cosine = (part[~own].reshape(len(ids), number) for part in (ids, cosine))
    return ids, np.maximum(1 - cosine, 0)  # of equal vectors it is rounding


def write_csv(path: Path, rows: pa.Table) -> None:
    """Writes rows as CSV, in place; names that a spreadsheet would run as a formula get an apostrophe in front."""
    with path.open("w", encoding="utf-8", newline="") as stream:
        write_csv_rows(stream, rows)


def write_csv_rows(stream: object, rows: pa.Table) -> None:
    """Writes a header and rows to an open text file; what is no plain value is written as JSON."""
    writer = csv.writer(stream, lineterminator="\n")  # pyright: ignore[reportArgumentType]
    writer.writerow(map(_cell, rows.column_names))
    for batch in rows.to_batches(max_chunksize=QUERY_ROWS):
        writer.writerows(map(_cell, row) for row in zip(*(column.to_pylist() for column in batch.columns), strict=True))


def _cell(value: object) -> object:
    if isinstance(value, str):
        return f"'{value}" if value.startswith(FORMULA) else value
    return json.dumps(value, default=str) if isinstance(value, list | dict | tuple) else value


def write_pictures(out: Path, rows: pa.Table, pictures: Sequence[bytes]) -> None:
    """Writes a folder for each class with its faces by rank, and the `metadata.csv` that `datasets` reads."""
    labels = rows["label"].to_pylist()
    if strange := [label for label in dict.fromkeys(labels) if not re.match(PLAIN_NAME, label)]:
        raise DataError(f"the class {strange[0]!r} can be no folder; correct classes in params.yaml")
    names = [*_file_names(rows, pictures)]
    out.parent.mkdir(parents=True, exist_ok=True)
    # Flushed one by one they would take 8 ms each; what a loss of power leaves of them is exported again.
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.", suffix=".tmp") as scratch:
        folder = Path(scratch) / out.name
        for place in (folder, *(folder / label for label in dict.fromkeys(labels))):
            place.mkdir()
        for name, picture in zip(names, pictures, strict=True):
            (folder / name).write_bytes(picture)
        write_csv(folder / "metadata.csv", rows.add_column(0, "file_name", pa.array(names, pa.string())))
        folder.rename(out)


def _file_names(rows: pa.Table, pictures: Sequence[bytes]) -> Iterator[str]:
    """`anger/000001_street_17.jpg`: class, rank, the end of the face's name in plain letters."""
    columns = (rows[name].to_pylist() for name in ("label", "rank", "face_id"))
    for label, rank, face_id, picture in zip(*columns, pictures, strict=True):
        name = re.sub(r"[^A-Za-z0-9.-]+", "_", face_id)[-60:].strip("._")
        kind = next((suffix for magic, suffix in MAGIC.items() if picture.startswith(magic)), "bin")
        yield f"{label}/{rank:06d}_{name}.{kind}"


def _image_column(pictures: Sequence[bytes]) -> pa.ChunkedArray:
    """The pictures as `datasets` stores them, in parts: an Arrow array of bytes ends at 2 GB."""
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    ends = [*range(0, len(pictures), QUERY_ROWS), len(pictures)]
    parts = []
    for start, end in pairwise(ends):
        encoded = pa.array(pictures[start:end], pa.binary())
        parts.append(pa.StructArray.from_arrays([encoded, pa.nulls(end - start, pa.string())], fields=[*kind]))
    return pa.chunked_array(parts, kind)


def _features(schema: pa.Schema) -> dict[bytes, bytes]:
    """The metadata by which `datasets` shows pictures as pictures."""
    features = {field.name: _feature(field) for field in schema}
    return {b"huggingface": json.dumps({"info": {"features": features}}).encode()}


def _feature(field: pa.Field) -> dict[str, object]:
    if field.name == "image":
        return {"_type": "Image"}
    if pa.types.is_struct(field.type):
        return {child.name: _feature(child) for child in field.type}
    if pa.types.is_list(field.type):
        return {"feature": _feature(field.type.value_field), "_type": "List"}
    return {"dtype": "float32" if pa.types.is_float32(field.type) else str(field.type), "_type": "Value"}
