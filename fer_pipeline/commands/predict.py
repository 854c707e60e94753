"""Classify the expression of every face in any pictures: find, align, classify, one row a face.

Faces are aligned as those that the model was trained on: crop, border, grey and encoding are in its card. The crop is
encoded and decoded as `align` stores it, so that a face gets the probabilities that `evaluate` gives it. Unlike
`align`, which takes one face of a picture by a rule, all faces may be wanted, and their boxes. Memory is bounded
whatever the number of pictures.

Columns: `image` (path below the folder), `face` (0 is the most certain), box `x1 y1 x2 y2` and five landmarks in pixels
of the upright picture, `score`, `predicted`, `p_<class>`. A picture without a face, or that cannot be read, is one row
with a `reason`. Other files in the folder are no rows; a warning counts them by kind.
"""

import csv
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import UInt8

from fer_pipeline.alignment.aligner import Aligner, AlignmentSettings, SeveralFaces, choose_face
from fer_pipeline.alignment.pictures import Rejection
from fer_pipeline.artifacts.faces import decode_one, encode
from fer_pipeline.core.errors import ConfigError, DataError
from fer_pipeline.core.files import refuse_link, replacing
from fer_pipeline.core.progress import progress
from fer_pipeline.core.settings import Summary, validate
from fer_pipeline.datasets._files import PictureRoot, TooLargeError, format_left_out, read_picture, say_empty
from fer_pipeline.networks.checkpoints import Classifier, load_checkpoint

FACES_PER_CALL = 256
BOX = ("x1", "y1", "x2", "y2")
POINTS = ("left_eye", "right_eye", "nose", "mouth_left", "mouth_right")
LANDMARKS = tuple(f"{point}_{axis}" for point in POINTS for axis in "xy")

Row = dict[str, Any]
Face = tuple[Row, UInt8[np.ndarray, "s s 3"] | None]  # a row before its face is classified; without a crop it is final
Pictures = Sequence[tuple[str, Path]]  # name in the table, path
Rule = Literal["all"] | SeveralFaces


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
    refuse_link(out)
    if batch < 1:
        raise ConfigError(f"--batch must be at least 1, found {batch}")
    pictures, left_out = find_pictures(folder, leave_out=out)
    classifier = load_checkpoint(model, device=device)
    # How the training faces were made is in the card: the metadata of their shards.
    metadata: Mapping[str, Any] = classifier.card.training.get("faces", {})
    known = {name: value for name, value in metadata.items() if name in AlignmentSettings.model_fields}
    values = {"crop": classifier.card.preprocessing.size, **known, "prealigned": crops}
    settings = validate(AlignmentSettings, values, where="the checkpoint's card, training.faces")
    encode_crop = partial(encode, format=metadata.get("format", "jpeg"), quality=metadata.get("quality", 95))
    reasons: Counter[str] = Counter()
    predicted: Counter[str] = Counter()
    with progress("predict", len(pictures), "pictures") as advance, open_table(out, classifier.classes) as write:
        aligner = Aligner(settings, device=classifier.device)
        aligned = find_faces(pictures, aligner, advance, faces=faces, batch=batch)
        for rows in classify(aligned, classifier, encode_crop):
            write(rows)
            reasons.update(row["reason"] for row in rows if "reason" in row)
            predicted.update(row["predicted"] for row in rows if "predicted" in row)
    classes = ", ".join(f"{name} {count:,}" for name, count in predicted.most_common())
    without = ", ".join(f"{reason} {count:,}" for reason, count in reasons.most_common())
    text = f"{len(pictures):,} pictures in, {predicted.total():,} faces classified{f' ({classes})' if classes else ''}"
    text += f", {reasons.total():,} without ({without})" if without else ""
    usual = f"crops of {settings.crop} px with the border {settings.border} are taken"
    warnings = [] if "crop" in metadata else [f"the checkpoint does not say how its faces were aligned: {usual}"]
    warnings += [f"{folder}: {line}"] if (line := format_left_out(left_out)) else []
    counts: dict[str, int | float] = {"pictures": len(pictures), "faces": predicted.total()}
    counts["left_out"] = left_out.total()
    counts |= {f"without_{reason}": count for reason, count in reasons.items()}
    return Summary("predict", f"{text} -> {out}", counts, tuple(warnings))


def find_pictures(folder: Path, *, leave_out: Path) -> tuple[list[tuple[str, Path]], Counter[str]]:
    """Returns name and path of every picture below a folder, and by kind what else is there; or the one file.

    Files of a folder come before those of its folders.
    """
    if not folder.exists():
        raise DataError(f"{folder} does not exist; name a picture or a folder of pictures")
    left_out: Counter[str] = Counter()
    root, paths = folder.parent, [folder]
    if not folder.is_file():
        walk = PictureRoot(folder, follow_links=True, refuse_pipes=False).walk(left_out, ignored=leave_out)
        root, paths = folder, [folder.joinpath(*parts) for parts in walk]
        paths.sort(key=lambda path: (path.parent.parts, path.name))
    if not paths:
        raise DataError(f"{say_empty(folder, left_out)}; name a folder of pictures")
    names = [os.fsencode(path.relative_to(root).as_posix()) for path in paths]  # a table holds UTF-8 only
    return [(name.decode("utf-8", "backslashreplace"), path) for name, path in zip(names, paths, strict=True)], left_out


def find_faces(
    pictures: Pictures, aligner: Aligner, advance: Callable[[int], None], *, faces: Rule, batch: int
) -> Iterator[Face]:
    """Yields the faces of every picture, the most certain first, or the one that the rule takes."""
    results = aligner.detect((_read(path) for _, path in pictures), most=batch)
    for (name, _), result in zip(pictures, results, strict=True):
        advance(1)
        try:
            if isinstance(result, Rejection):
                raise result
            image, detected = result
            if aligner.settings.prealigned:
                yield {"image": name, "face": 0}, aligner.crop(image, detected).image
                continue
            chosen = None
            if faces != "all" or not detected:
                rule, (height, width) = "largest" if faces == "all" else faces, image.shape[:2]
                chosen = choose_face(detected, height=height, width=width, rule=rule)
        except Rejection as rejection:
            yield {"image": name, "reason": rejection.reason}, None
            continue
        for number, face in enumerate(detected):
            if chosen is None or face is chosen:
                row: Row = {"image": name, "face": number, "score": face.score}
                row |= dict(zip(BOX, face.box.tolist(), strict=True))
                row |= dict(zip(LANDMARKS, face.landmarks.ravel().tolist(), strict=True))
                try:
                    yield row, aligner.crop(image, [face]).image
                except Rejection as rejection:
                    yield {**row, "reason": rejection.reason}, None


def _read(path: Path) -> bytes | Rejection:
    try:
        return read_picture(path)
    except TooLargeError:
        return Rejection("too_large_a_file")
    except DataError:
        return Rejection("unreadable")


def classify(
    faces: Iterator[Face], classifier: Classifier, encode_crop: Callable[[np.ndarray], bytes]
) -> Iterator[list[Row]]:
    """Yields rows in order, with the probabilities of those that have a crop, a bounded number at a time.

    A crop is encoded and decoded first, as it comes back from a shard.
    """
    while chunk := list(islice(faces, FACES_PER_CALL)):
        encoded = [encode_crop(crop) for _, crop in chunk if crop is not None]
        predictions = classifier.predict(np.stack([*map(decode_one, encoded)])).tolist() if encoded else []
        classified = (row for row, crop in chunk if crop is not None)
        for row, probabilities in zip(classified, predictions, strict=True):
            row["predicted"] = classifier.classes[int(np.argmax(probabilities))]
            row |= {f"p_{name}": value for name, value in zip(classifier.classes, probabilities, strict=True)}
        yield [row for row, _ in chunk]


@contextmanager
def open_table(out: Path, classes: Sequence[str]) -> Iterator[Callable[[list[Row]], object]]:
    """Yields a function that adds rows to `out`, CSV or Parquet by its extension; it appears when all are written."""
    types = {"image": pa.string(), "face": pa.int32()}
    types |= dict.fromkeys((*BOX, "score", *LANDMARKS), pa.float32()) | {"predicted": pa.string()}
    types |= dict.fromkeys((f"p_{name}" for name in classes), pa.float32()) | {"reason": pa.string()}
    columns, floats = pa.schema(types), {name for name, kind in types.items() if kind == pa.float32()}

    def write_csv(rows: list[Row]) -> None:
        for row in rows:
            writer.writerow({name: f"{value:.9g}" if name in floats else value for name, value in row.items()})

    with replacing(out) as temporary:
        if out.suffix.lower() == ".csv":
            with temporary.open("w", encoding="utf-8", newline="") as stream:
                writer = csv.DictWriter(stream, columns.names, restval="", lineterminator="\n")
                writer.writeheader()
                yield write_csv
        else:
            with pq.ParquetWriter(temporary, columns, compression="zstd") as parquet:
                yield lambda rows: parquet.write_table(pa.Table.from_pylist(rows, schema=columns))
