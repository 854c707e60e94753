"""A shard of faces in, nothing out where it is what the run expects, else one line that says what was found."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fer_pipeline.artifacts.faces import METADATA_KEY, open_shard
from fer_pipeline.core.errors import DataError


@dataclass(frozen=True)
class FacesShard:
    """What a shard says of itself; `rows` 0 and no classes where it cannot be read."""

    path: Path
    rows: int = 0
    classes: tuple[str, ...] = ()
    crop: int | None = None


def look_at(path: Path) -> FacesShard:
    """A shard's rows, classes and crop; nothing is known of a damaged one, which its worker will tell."""
    try:
        shard = open_shard(path)
        about = _about(shard.schema_arrow.metadata)
        return FacesShard(path, shard.metadata.num_rows, tuple(about.get("classes", ())), about.get("crop"))
    except DataError:
        return FacesShard(path)


def check_faces(path: Path, *, classes: Sequence[str], crop: int | None) -> None:
    """Refuses a shard of another kind than the set's: it would be embedded without a word, and mean nothing."""
    schema = open_shard(path).schema_arrow
    about = _about(schema.metadata)
    if missing := sorted({"face_id", "image"} - set(schema.names)):
        raise DataError(f"{path} has no column {' and '.join(missing)}: it is no shard of faces; rerun align")
    if tuple(about.get("classes", ())) != tuple(classes):
        found = ", ".join(about.get("classes", ())) or "none"
        raise DataError(f"{path} holds the classes {found}, expected {', '.join(classes)}; rerun align")
    if about.get("crop") != crop:
        raise DataError(f"{path} holds crops of {about.get('crop')} px, the other shards of {crop} px; rerun align")


def _about(metadata: dict[bytes, bytes] | None) -> dict[str, Any]:
    return json.loads((metadata or {}).get(METADATA_KEY, b"{}"))
