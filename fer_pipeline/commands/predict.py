"""Classify the expression of every face in any pictures: find, align, classify, one row a face.

Faces are aligned as those that the model was trained on: crop, border, grey and encoding are in its card. The crop is
encoded and decoded as `align` stores it, so that a face gets the probabilities that `evaluate` gives it. Unlike
`align`, which takes one face of a picture by a rule, all faces may be wanted, and their boxes. Memory is bounded
whatever the number of pictures.

Columns: `image` (path below the folder), `face` (0 is the most certain), box `x1 y1 x2 y2` and five landmarks in pixels
of the upright picture, `score`, `predicted`, `p_<class>`. A picture without a face, or that cannot be read, is one row
with a `reason`.
"""

import csv
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import UInt8
from PIL import Image

from fer_pipeline.alignment.aligner import Aligner, AlignmentSettings, SeveralFaces, choose_face
from fer_pipeline.alignment.cascade import DetectedFace, Detector
from fer_pipeline.alignment.pictures import PictureSettings, Rejection, decode_picture
from fer_pipeline.alignment.warp import align_face
from fer_pipeline.artifacts.faces import decode_one, encode
from fer_pipeline.core.errors import ConfigError, DataError
from fer_pipeline.core.files import replacing
from fer_pipeline.core.progress import progress
from fer_pipeline.core.settings import validate
from fer_pipeline.core.summary import Summary
from fer_pipeline.networks.checkpoints import Classifier, load_checkpoint
from fer_pipeline.networks.settings import Card

FACES_PER_CALL = 256
BYTES_PER_BATCH = 100_000_000  # of decoded pixels
LARGEST_FILE = 500_000_000  # bytes; what is larger is no picture of faces, and is not read into memory
BOX = ("x1", "y1", "x2", "y2")
POINTS = ("left_eye", "right_eye", "nose", "mouth_left", "mouth_right")
LANDMARKS = tuple(f"{point}_{axis}" for point in POINTS for axis in "xy")

Row = dict[str, Any]
Pictures = Sequence[tuple[str, Path]]  # name in the table, path
Advance = Callable[[int], None]


def run(
    folder: Path,
    *,
    model: Path,
    out: Path,
    faces: Literal["all", "largest", "most_central", "highest_score", "reject"] = "all",
    crops: bool = False,
    batch: int = 32,
    device: str = "auto",
) -> Summary:
    """Find, align and classify every face of any pictures.

    Args:
        folder: A folder of pictures, or one picture.
        model: A trained model's folder.
        out: The table that is written, .parquet or .csv.
        faces: Which faces of a picture with several.
        crops: The pictures are aligned crops already.
        batch: Pictures at a time.
        device: cpu, cuda, cuda:1, … or auto.
    """
    if out.suffix.lower() not in (".parquet", ".csv"):
        raise ConfigError(f"--out {out} must end in .parquet or .csv")
    if batch < 1:
        raise ConfigError(f"--batch must be at least 1, found {batch}")
    pictures = find_pictures(folder, leave_out=out)
    classifier = load_checkpoint(model, device=device)
    settings = crop_settings(classifier.card, prealigned=crops)
    reasons: Counter[str] = Counter()
    predicted: Counter[str] = Counter()
    with progress("predict", len(pictures), "pictures") as advance, open_table(out, classifier.classes) as write:
        if crops:
            faces_found = read_crops(pictures, settings, advance)
        else:
            detector = Detector(settings.alignment.detection, device=classifier.device)
            faces_found = find_and_align(pictures, settings, detector, advance, faces=faces, batch=batch)
        for rows in classify(faces_found, classifier, settings):
            write(rows)
            reasons.update(row["reason"] for row in rows if "reason" in row)
            predicted.update(row["predicted"] for row in rows if "predicted" in row)
    return _summary(len(pictures), predicted, reasons, out, settings)


def find_pictures(folder: Path, *, leave_out: Path) -> list[tuple[str, Path]]:
    """Returns name and path of every file below a folder, hidden ones left out, in order; or of the one file."""
    if folder.is_file():
        return [(_text(folder.name), folder)]
    if not folder.is_dir():
        raise DataError(f"{folder} does not exist; name a picture or a folder of pictures")
    paths: list[Path] = []
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        paths += [Path(place) / name for name in sorted(files) if not name.startswith(".")]
    own = leave_out.resolve()
    pictures = [(_text(path.relative_to(folder).as_posix()), path) for path in paths if path.resolve() != own]
    if not pictures:
        raise DataError(f"{folder} holds no file; name a folder of pictures")
    return pictures


def _text(name: str) -> str:
    return os.fsencode(name).decode("utf-8", "backslashreplace")  # a table holds UTF-8 only


@dataclass(frozen=True)
class CropSettings:
    """How the model's training faces were made."""

    alignment: AlignmentSettings
    format: Literal["jpeg", "png"]
    quality: int
    known: bool  # false: the card does not say, the usual settings are taken

    def encode_and_decode(self, crop: UInt8[np.ndarray, "s s 3"]) -> UInt8[np.ndarray, "s s 3"]:
        """Returns the crop as it comes back from a shard."""
        return decode_one(encode(crop, format=self.format, quality=self.quality))


def crop_settings(card: Card, *, prealigned: bool) -> CropSettings:
    """Returns the settings of the training faces, from the card's `training.faces`, the metadata of their shards."""
    metadata: Mapping[str, Any] = card.training.get("faces", {})
    known = {name: value for name, value in metadata.items() if name in AlignmentSettings.model_fields}
    values = {"crop": card.preprocessing.size, **known, "prealigned": prealigned}
    return CropSettings(
        alignment=validate(AlignmentSettings, values, where="the checkpoint's card, training.faces"),
        format=metadata.get("format", "jpeg"),
        quality=metadata.get("quality", 95),
        known="crop" in metadata,
    )


@dataclass(frozen=True)
class Face:
    """What a row says before its face is classified; without a crop the row is final."""

    row: Row
    crop: UInt8[np.ndarray, "s s 3"] | None = None


def read_crops(pictures: Pictures, settings: CropSettings, advance: Advance) -> Iterator[Face]:
    """Yields pictures that are crops already, as `align` passes them through."""
    results = Aligner(settings.alignment).align(_read(path) for _, path in pictures)
    for (name, _), result in zip(pictures, results, strict=True):
        advance(1)
        yield (
            _rejected(name, result) if isinstance(result, Rejection) else Face({"image": name, "face": 0}, result.image)
        )


def find_and_align(
    pictures: Pictures,
    settings: CropSettings,
    detector: Detector,
    advance: Advance,
    *,
    faces: Literal["all"] | SeveralFaces,
    batch: int,
) -> Iterator[Face]:
    """Yields the faces of every picture, the most certain first, or the one that the rule takes."""
    for images in _batches(pictures, settings.alignment.pictures, most=batch):
        detections = iter(detector.detect([image for _, image in images if not isinstance(image, Rejection)]))
        for name, image in images:
            advance(1)
            try:
                if isinstance(image, Rejection):
                    raise image
                for number, face in _choose(image, next(detections), faces):
                    yield _align(name, image, number, face, settings.alignment)
            except Rejection as rejection:
                yield _rejected(name, rejection)


def _choose(
    image: UInt8[np.ndarray, "h w 3"], detections: list[DetectedFace], faces: Literal["all"] | SeveralFaces
) -> list[tuple[int, DetectedFace]]:
    """The wanted faces with their numbers; a Rejection where there is none."""
    if detections and faces == "all":
        return list(enumerate(detections))
    height, width = image.shape[:2]
    one = choose_face(detections, height=height, width=width, rule="largest" if faces == "all" else faces)
    return [(number, face) for number, face in enumerate(detections) if face is one]


def _align(
    name: str, image: UInt8[np.ndarray, "h w 3"], number: int, face: DetectedFace, settings: AlignmentSettings
) -> Face:
    row: Row = {"image": name, "face": number, "score": face.score}
    row |= dict(zip(BOX, face.box.tolist(), strict=True))
    row |= dict(zip(LANDMARKS, face.landmarks.ravel().tolist(), strict=True))
    try:
        crop = align_face(image, face.landmarks, size=settings.crop, border=settings.border)
    except Rejection as rejection:
        return Face({**row, "reason": rejection.reason})
    if settings.grey:
        crop = np.array(Image.fromarray(crop).convert("L").convert("RGB"))
    return Face(row, crop)


def _batches(
    pictures: Pictures, settings: PictureSettings, *, most: int
) -> Iterator[list[tuple[str, UInt8[np.ndarray, "h w 3"] | Rejection]]]:
    """Names and decoded pictures in batches of bounded memory."""
    batch, size = [], 0
    for name, path in pictures:
        image = _read(path)
        if isinstance(image, bytes):
            try:
                image = decode_picture(image, settings)
                size += image.nbytes
            except Rejection as rejection:
                image = rejection
        batch.append((name, image))
        if len(batch) == most or size > BYTES_PER_BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _read(path: Path) -> bytes | Rejection:
    try:
        if not path.is_file():  # reading a pipe would wait for ever
            return Rejection("unreadable")
        return path.read_bytes() if path.stat().st_size <= LARGEST_FILE else Rejection("too_large_a_file")
    except OSError:
        return Rejection("unreadable")


def _rejected(name: str, rejection: Rejection) -> Face:
    return Face({"image": name, "reason": rejection.reason})


def classify(faces: Iterator[Face], classifier: Classifier, settings: CropSettings) -> Iterator[list[Row]]:
    """Yields rows in order, with the probabilities of those that have a crop, a bounded number at a time."""
    while chunk := list(islice(faces, FACES_PER_CALL)):
        crops = [settings.encode_and_decode(face.crop) for face in chunk if face.crop is not None]
        predictions = iter(classifier.predict(np.stack(crops)).tolist() if crops else [])
        rows: list[Row] = []
        for face in chunk:
            row = dict(face.row)
            if face.crop is not None:
                probabilities = next(predictions)
                row["predicted"] = classifier.classes[int(np.argmax(probabilities))]
                row |= {f"p_{name}": value for name, value in zip(classifier.classes, probabilities, strict=True)}
            rows.append(row)
        yield rows


def schema(classes: Sequence[str]) -> pa.Schema:
    """Returns the columns, in order."""
    return pa.schema(
        [
            pa.field("image", pa.string()),
            pa.field("face", pa.int32()),
            *(pa.field(name, pa.float32()) for name in (*BOX, "score", *LANDMARKS)),
            pa.field("predicted", pa.string()),
            *(pa.field(f"p_{name}", pa.float32()) for name in classes),
            pa.field("reason", pa.string()),
        ]
    )


@contextmanager
def open_table(out: Path, classes: Sequence[str]) -> Iterator[Callable[[list[Row]], object]]:
    """Yields a function that adds rows to `out`, CSV or Parquet by its extension; it appears when all are written."""
    columns = schema(classes)
    floats = {field.name for field in columns if pa.types.is_float32(field.type)}

    def write_csv(rows: list[Row]) -> None:
        for row in rows:
            writer.writerow({name: f"{value:.9g}" if name in floats else value for name, value in row.items()})

    with replacing(out) as temporary:
        if out.suffix.lower() == ".csv":
            with temporary.open("w", encoding="utf-8", newline="") as stream:
                writer = csv.DictWriter(stream, fieldnames=columns.names, restval="", lineterminator="\n")
                writer.writeheader()
                yield write_csv
        else:
            with pq.ParquetWriter(temporary, columns, compression="zstd") as parquet:
                yield lambda rows: parquet.write_table(pa.Table.from_pylist(rows, schema=columns))


def _summary(
    pictures: int, predicted: Counter[str], reasons: Counter[str], out: Path, settings: CropSettings
) -> Summary:
    classes = ", ".join(f"{name} {count:,}" for name, count in predicted.most_common())
    without = ", ".join(f"{reason} {count:,}" for reason, count in reasons.most_common())
    line = f"{pictures:,} pictures in, {predicted.total():,} faces classified{f' ({classes})' if classes else ''}"
    line += f", {reasons.total():,} without ({without})" if without else ""
    warnings = ()
    if not settings.known:
        warnings = (
            f"the checkpoint does not say how its faces were aligned: crops of {settings.alignment.crop} px with the "
            f"border {settings.alignment.border} are taken",
        )
    counts: dict[str, int | float] = {"pictures": pictures, "faces": predicted.total()}
    counts |= {f"without_{reason}": count for reason, count in reasons.items()}
    return Summary("predict", f"{line} -> {out}", counts, warnings)
