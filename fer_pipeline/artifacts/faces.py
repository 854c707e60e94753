"""Read and write aligned faces: Parquet shards with one row a face.

`data/faces/<set>/<split>/part-*.parquet` follows the image convention of the `datasets` library (a struct of bytes and
path, with its schema metadata), so that `datasets`, its viewer and DuckDB open it; `label` is int64 because smaller
integers lose their class names there. Row groups of 100 images keep random access and bounded memory cheap.
"""

import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import simplejpeg
from jaxtyping import Int64, UInt8
from PIL import Image

from fer_pipeline.artifacts import arrow
from fer_pipeline.core.documents import one_line
from fer_pipeline.core.errors import DataError
from fer_pipeline.core.files import replacing
from fer_pipeline.core.settings import Seen

ROWS_PER_GROUP = 100
FACE_FIELDS = (  # the columns of an aligned face; all nullable, or `datasets` would not see their metadata
    pa.field("face_id", pa.string()),
    pa.field("image", pa.struct([pa.field("bytes", pa.binary()), pa.field("path", pa.string())])),
    pa.field("label", pa.int64()),
    pa.field("subject", pa.string()),
    pa.field("split", pa.string()),
    pa.field("landmarks", pa.list_(pa.float32(), 10)),
    pa.field("score", pa.float32()),
    pa.field("source", pa.string()),
)
# What may be read of a shard: those, and what mined faces have beside them.
SHARD = pa.schema(
    [
        pa.field("face_id", pa.string(), nullable=False),
        pa.field("image", pa.struct([pa.field("bytes", pa.binary())])),
        *FACE_FIELDS[2:],
        *(("pseudo_label", pa.int64()), ("margin", pa.float32()), ("rank", pa.int64())),
    ]
)
MOST_PIXELS = 2**20  # of a crop, more than `align` makes; batches hold many
PLAIN_BYTES = 2**16  # of an encoded crop; decoding a few of them takes no memory whatever they hold


@dataclass(frozen=True)
class Faces:
    """Decoded faces: identifiers [n], RGB images, class indices (-1 for none) and subjects [n] ("" for none)."""

    face_id: np.ndarray
    images: UInt8[np.ndarray, "n h w 3"]
    labels: Int64[np.ndarray, " n"]
    subjects: np.ndarray
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.face_id)


def image_schema(fields: Sequence[pa.Field], classes: Sequence[str], **about: Any) -> pa.Schema:
    """Builds a schema with the metadata of `datasets`: columns called *label become class labels, `image` an image."""
    features: dict[str, Any] = {}
    for field in fields:
        if field.name.endswith("label"):
            features[field.name] = {"names": list(classes), "_type": "ClassLabel"}
        elif field.name == "image":
            features[field.name] = {"_type": "Image"}
        elif pa.types.is_fixed_size_list(field.type):
            item = {"dtype": _dtype(field.type.value_type), "_type": "Value"}
            features[field.name] = {"feature": item, "length": field.type.list_size, "_type": "List"}
        else:
            features[field.name] = {"dtype": _dtype(field.type), "_type": "Value"}
    features_metadata = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    return pa.schema(list(fields), metadata=features_metadata | arrow.encode_metadata(classes=list(classes), **about))


def _dtype(kind: pa.DataType) -> str:
    return "float32" if pa.types.is_float32(kind) else str(kind)  # Arrow calls it "float"


def face_schema(classes: Sequence[str], *, crop: int, **about: Any) -> pa.Schema:
    """Builds the schema of `data/faces`; `about` (border, format, …) travels in the metadata beside the crop's side."""
    return image_schema(FACE_FIELDS, classes, crop=crop, **about)


def write_shard(path: Path, rows: pa.Table) -> None:
    """Writes one shard, whole or not at all. The same rows give the same bytes."""
    with replacing(path) as temporary:
        write_parquet(temporary, rows)


def write_parquet(path: Path, rows: pa.Table) -> None:
    """Writes rows in place, without statistics or compression of the image bytes, which are compressed already."""
    plain = [name for name in rows.schema.names if name != "image"]
    pq.write_table(
        rows,
        path,
        row_group_size=ROWS_PER_GROUP,
        compression={**dict.fromkeys(plain, "zstd"), "image.bytes": "none"},  # pyright: ignore[reportArgumentType]
        use_dictionary=False,
        write_statistics=plain,  # pyright: ignore[reportArgumentType]
    )


def shard_paths(folder: Path) -> list[Path]:
    """Returns the shards under a folder, at any depth, in order of their names; DataError where there is none."""
    return arrow.list_shards(folder, "**/part-*.parquet")


def read_metadata(folder: Path) -> dict[str, Any]:
    """Reads what the shards' metadata says: `classes`, `crop`, `border` and what else the writer noted."""
    path = shard_paths(folder)[0]
    metadata = open_shard(path).about
    if "classes" not in metadata:
        raise DataError(
            f"{path} carries no class names; it was not written by this pipeline, import it with an adapter"
        )
    return metadata


def read_classes(folder: Path) -> tuple[str, ...]:
    """Returns the class names, in the order of the label numbers."""
    return tuple(read_metadata(folder)["classes"])


def read_seen(folder: Path) -> dict[str, Seen]:
    """Returns what registered weights behind the labeller of mined faces were trained on; nothing of other faces."""
    parts = [open_shard(path).about.get("labeller_seen", {}) for path in shard_paths(folder)]
    return {name: Seen.model_validate(one) for part in parts for name, one in part.items()}


class Shard(arrow.ParquetFile):
    """A shard of faces; a label that is no number of its classes is a DataError too."""

    @cached_property
    def about(self) -> dict[str, Any]:
        """Returns what the writer noted: `classes`, `crop`, `border` and others."""
        return arrow.schema_metadata(self.schema, self.path)

    def _checked(self, rows: arrow.Rows, expected: int) -> arrow.Rows:
        rows = super()._checked(rows, expected)
        for name in {"label", "pseudo_label"} & set(rows.schema.names) if rows.num_rows else ():
            least, most = pc.call_function("min_max", [rows.column(name)]).as_py().values()
            num_classes = len(self.about.get("classes", ()))
            if most is not None and num_classes and not (-1 <= least and most < num_classes):
                raise DataError(
                    f"{self.path} has the {name} {least if least < -1 else most}, expected a number from 0 to "
                    f"{num_classes - 1}; {arrow.RERUN}"
                )
        return rows


def open_shard(path: Path) -> Shard:
    """Opens a shard for reading; a damaged one, or what is damaged in it, is a DataError."""
    return Shard(path, SHARD, kind="Parquet shard")


def read_table(folder: Path, columns: list[str]) -> pa.Table:
    """Reads columns of a whole split without decoding, in shard order."""
    return pa.concat_tables([open_shard(path).read(columns) for path in shard_paths(folder)])


def read_faces(folder: Path) -> Faces:
    """Reads and decodes a whole split into memory."""
    none = Faces(
        np.array([], object), np.zeros((0, 0, 0, 3), np.uint8), np.array([], np.int64), np.array([], object), ()
    )
    parts = list(iter_faces(folder, batch_size=1024)) or [replace(none, classes=read_classes(folder))]
    names = ("face_id", "images", "labels", "subjects")
    arrays = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
    return Faces(**arrays, classes=parts[0].classes)


def iter_faces(folder: Path, batch_size: int, *, label: Literal["label", "pseudo_label"] = "label") -> Iterator[Faces]:
    """Yields decoded batches in shard order with bounded memory; `label` names the column that gives the labels."""
    classes = read_classes(folder)
    for path in shard_paths(folder):
        for batch in open_shard(path).iter_batches(batch_size, columns=["face_id", "image", label, "subject"]):
            names = batch.column("face_id").to_pylist()
            crops = zip(names, encoded_images(batch), strict=True)
            yield Faces(
                face_id=np.array(names, dtype=object),
                images=stack_images([decode_crop(encoded, f"{path}, {name}") for name, encoded in crops]),
                labels=batch.column(label).fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64),
                subjects=np.array([subject or "" for subject in batch.column("subject").to_pylist()], dtype=object),
                classes=classes,
            )


def iter_encoded(path: Path, batch_size: int) -> Iterator[tuple[pa.StringArray, list[memoryview]]]:
    """Yields identifiers and encoded images of one shard, `batch_size` at a time, whatever its row groups are.

    The images are views into what Parquet gave; no more than a batch and a row group of them is held.
    """
    waiting: list[pa.StringArray] = []
    images: list[memoryview] = []
    for batch in iter_columns(path, ["face_id", "image.bytes"], max_rows=batch_size):
        waiting.append(batch.column("face_id"))
        images += encoded_images(batch)
        while len(images) >= batch_size:
            face_id = pa.chunked_array(waiting)
            yield face_id.slice(0, batch_size).combine_chunks(), images[:batch_size]
            waiting, images = face_id.slice(batch_size).chunks, images[batch_size:]
    if images:
        yield pa.chunked_array(waiting).combine_chunks(), images


def iter_columns(path: Path, columns: Sequence[str], *, max_rows: int = 10_000) -> Iterator[pa.RecordBatch]:
    """Yields columns of one shard, a row group at a time, or in parts of `max_rows` where row groups have more."""
    shard = open_shard(path)
    # Arrow copies images once more that it must gather from two row groups.
    group_rows = next(filter(None, shard.row_counts()), max_rows)
    yield from shard.iter_batches(min(max_rows, group_rows), columns, use_threads=False)


def encoded_images(batch: pa.RecordBatch) -> list[memoryview]:
    """Returns the encoded images of a batch as views into Arrow's buffer, without a copy."""
    column = batch.column("image").field("bytes")
    if not len(column):
        return []
    _, offsets_buffer, data = column.buffers()
    offsets = np.frombuffer(offsets_buffer, dtype=np.int32, count=len(column) + 1 + column.offset)[column.offset :]
    view = memoryview(data or b"").cast("B")
    return [view[start:end] for start, end in pairwise(offsets.tolist())]


def stack_images(images: Sequence[UInt8[np.ndarray, "_ _ 3"]]) -> UInt8[np.ndarray, "n h w 3"]:
    """Stacks decoded crops of one size; crops of several sizes are a DataError."""
    sizes = {image.shape for image in images}
    if len(sizes) > 1:
        raise DataError(f"crops of different sizes {sorted(sizes)} in one shard; rerun align with one crop size")
    return np.stack(images) if images else np.zeros((0, 0, 0, 3), np.uint8)


def decode_crop(encoded: bytes | memoryview, where: str) -> UInt8[np.ndarray, "h w 3"]:
    """Decodes a crop as RGB; one that is no picture is a DataError that says `where` it is."""
    try:
        return decode_one(encoded)
    except ValueError as error:
        raise DataError(f"the crop of {where} is no picture ({error}); rerun align") from None


def decode_one(encoded: bytes | memoryview) -> UInt8[np.ndarray, "h w 3"]:
    """Decodes one of our own crops as RGB; JPEG by libjpeg-turbo, PNG by Pillow.

    What is no picture, or one of more than `MOST_PIXELS`, is a ValueError.
    """
    try:
        if bytes(encoded[:2]) == b"\xff\xd8":
            if len(encoded) > PLAIN_BYTES:
                height, width, *_ = simplejpeg.decode_jpeg_header(encoded)
                _check_size(int(height), int(width))
            pixels = simplejpeg.decode_jpeg(encoded, colorspace="RGB")
            _check_size(*pixels.shape[:2])
            return pixels
        with Image.open(io.BytesIO(encoded), formats=["PNG"]) as picture:  # some of the others start programs
            width, height = picture.size
            _check_size(height, width)
            return np.asarray(picture.convert("RGB"))
    except Exception as error:  # a decoder raises whatever the bytes happen to look like
        raise ValueError(one_line(error, 120)) from None


def _check_size(height: int, width: int) -> None:
    if height * width > MOST_PIXELS:
        raise ValueError(f"{width} x {height} pixels, more than any crop has")


def encode(image: UInt8[np.ndarray, "h w 3"], *, format: Literal["jpeg", "png"] = "jpeg", quality: int = 95) -> bytes:
    """Encodes an RGB crop as JPEG (4:4:4, so that colour keeps its resolution) or PNG, equal bytes for equal pixels."""
    if format == "jpeg":
        return simplejpeg.encode_jpeg(
            np.ascontiguousarray(image), quality=quality, colorspace="RGB", colorsubsampling="444"
        )
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG", compress_level=6)
    return stream.getvalue()
