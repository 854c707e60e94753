"""Any pictures in, the expression of every face in them out: find, align, classify, one row a face.

Faces are aligned as those that the model was trained on: crop, border, grey and encoding stand in its card. The crop is
encoded and decoded as `align` stores it, so that a face gets the probabilities that `evaluate` gives it. A picture
without a face, or that cannot be read, is a row with a reason. Memory is bounded whatever the number of pictures.
"""

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np

from fer_pipeline.alignment.aligner import AlignmentSettings, SeveralFaces
from fer_pipeline.alignment.cascade import Detector
from fer_pipeline.commands.predict_faces import CropSettings, Found, aligned_crops, aligned_faces
from fer_pipeline.commands.predict_rows import Row, check_extension, writing
from fer_pipeline.core.errors import DataError
from fer_pipeline.core.progress import progress
from fer_pipeline.core.settings import validate
from fer_pipeline.core.summary import Summary
from fer_pipeline.networks.cards import Card
from fer_pipeline.networks.checkpoints import Classifier, load_checkpoint

FACES_PER_CALL = 256


def run(
    folder: Path,
    *,
    model: Path,
    out: Path,
    faces: Literal["all"] | SeveralFaces = "all",
    crops: bool = False,
    batch: int = 32,
    device: str = "auto",
) -> Summary:
    """Classifies the faces of all pictures below `folder` (or of one picture) into `out`, a .parquet or .csv file.

    `faces` is `all`, or the rule that takes one face of a picture. `crops` says that the pictures are aligned crops
    already. `batch` bounds how many pictures are searched at a time.
    """
    check_extension(out)
    pictures = find_pictures(folder, leave_out=out)
    classifier = load_checkpoint(model, device=device)
    settings = crop_settings(classifier.card, prealigned=crops)
    reasons: Counter[str] = Counter()
    predicted: Counter[str] = Counter()
    with progress("predict", len(pictures), "pictures") as advance, writing(out, classifier.classes) as writer:
        if crops:
            found = aligned_crops(pictures, settings, advance)
        else:
            detector = Detector(settings.alignment.detection, device=classifier.device)
            found = aligned_faces(pictures, settings, detector, advance, faces=faces, batch=batch)
        for rows in classified(found, classifier, settings):
            writer.write(rows)
            reasons.update(row["reason"] for row in rows if "reason" in row)
            predicted.update(row["predicted"] for row in rows if "predicted" in row)
    return _summary(len(pictures), predicted, reasons, out, settings)


def find_pictures(folder: Path, *, leave_out: Path) -> list[tuple[str, Path]]:
    """Name and path of every file below a folder, hidden ones left out, in order; or of the one file."""
    if folder.is_file():
        return [(_text(folder.name), folder)]
    if not folder.is_dir():
        raise DataError(f"{folder} does not exist; name a picture or a folder of pictures")
    found = []
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [Path(place) / name for name in sorted(files) if not name.startswith(".")]
    own = leave_out.resolve()
    pictures = [(_text(path.relative_to(folder).as_posix()), path) for path in found if path.resolve() != own]
    if not pictures:
        raise DataError(f"{folder} holds no file; name a folder of pictures")
    return pictures


def crop_settings(card: Card, *, prealigned: bool) -> CropSettings:
    """The settings of the training faces, from the card's `training.faces`, the metadata of their shards."""
    noted: Mapping[str, Any] = card.training.get("faces", {})
    kept = {name: value for name, value in noted.items() if name in AlignmentSettings.model_fields}
    values = {"crop": card.preprocessing.size, **kept, "prealigned": prealigned}
    return CropSettings(
        alignment=validate(AlignmentSettings, values, where="the checkpoint's card, training.faces"),
        format=noted.get("format", "jpeg"),
        quality=noted.get("quality", 95),
        known="crop" in noted,
    )


def classified(found: Iterator[Found], classifier: Classifier, settings: CropSettings) -> Iterator[list[Row]]:
    """Rows in order, with the probabilities of those that have a crop, a bounded number at a time."""
    while chunk := list(islice(found, FACES_PER_CALL)):
        crops = [settings.stored(item.crop) for item in chunk if item.crop is not None]
        shares = iter(classifier.predict(np.stack(crops)).tolist() if crops else [])
        rows: list[Row] = []
        for item in chunk:
            row = dict(item.row)
            if item.crop is not None:
                share = next(shares)
                row["predicted"] = classifier.classes[int(np.argmax(share))]
                row |= {f"p_{name}": value for name, value in zip(classifier.classes, share, strict=True)}
            rows.append(row)
        yield rows


def _text(name: str) -> str:
    return os.fsencode(name).decode("utf-8", "backslashreplace")  # a name that is no UTF-8 cannot stand in a table


def _summary(
    pictures: int, predicted: Counter[str], reasons: Counter[str], out: Path, settings: CropSettings
) -> Summary:
    told = ", ".join(f"{name} {count:,}" for name, count in predicted.most_common())
    lost = ", ".join(f"{reason} {count:,}" for reason, count in reasons.most_common())
    line = f"{pictures:,} pictures in, {predicted.total():,} faces classified{f' ({told})' if told else ''}"
    line += f", {reasons.total():,} without ({lost})" if lost else ""
    warnings = ()
    if not settings.known:
        warnings = (
            f"the checkpoint does not say how its faces were aligned: crops of {settings.alignment.crop} px with the "
            f"border {settings.alignment.border} are taken",
        )
    counts: dict[str, int | float] = {"pictures": pictures, "faces": predicted.total()}
    counts |= {f"without_{reason}": count for reason, count in reasons.items()}
    return Summary("predict", f"{line} -> {out}", counts, warnings)
