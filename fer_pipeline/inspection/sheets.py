"""Write a list of faces for a gallery: columns of numbers, names, thumbnails on sheets, and the details of each face.

A list is a folder of the site:

- `rows.js`: one number a face in each column, little-endian in base64, as `COLUMNS` has them; `NONE` where not known.
  `label`, `truth` and `before` are places in the index's `names`, `pool` in its `pools`, `status` in `STATUS`;
- `names.js`: `face_id` of each, and `content` (`artifacts.contents`) as 16 bytes each in base64;
- `t0000.jpg`, `w0000.jpg`: their pictures at 112 and 56 pixels, 16 and 256 on a sheet, line by line;
- `d0000.js`: of each 16 faces the crop with the bytes that it has in its shard, and what a page about one face shows.

Scripts and no JSON, since a page from the disk may load the former alone. A side of 8 pixels or a multiple of it and
JPEG without subsampling keep tiles apart: each is what it would be in a file of its own.
"""

import base64
import hashlib
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from jaxtyping import UInt8
from PIL import Image

from fer_pipeline.artifacts.auxiliary import FaceRows, collect_faces
from fer_pipeline.artifacts.contents import DIGEST_BYTES
from fer_pipeline.artifacts.faces import decode_crop, encode
from fer_pipeline.artifacts.truth import Truth
from fer_pipeline.core.errors import DataError
from fer_pipeline.inspection import export

NONE = 0xFFFF
STATUS = ("same", "added", "relabelled", "moved", "removed")
COLUMNS = {
    "margin": "<f4", "cosine": "<f4", "rank": "<u4", "label": "<u2", "pool": "<u2", "truth": "<u2", "status": "<u2",
    "before": "<u2", "before_rank": "<u4", "before_margin": "<f4",
}  # fmt: skip
QUALITY = 80
CLOSING = b")\n"  # of each script
MIME = {"jpg": "jpeg", "png": "png"}


class Sheet(NamedTuple):
    """Pictures of one size: a letter in the names of files, pixels of a side, how many stand in a line."""

    letter: str
    side: int
    across: int


TILES, WALL = Sheet("t", 112, 4), Sheet("w", 56, 16)
PER_DETAIL = TILES.across**2


class Part(NamedTuple):
    """A list of faces: its folder, what it holds, its class, and the rows, which have the columns of `mined`."""

    key: str
    kind: str
    label: str
    rows: pa.Table


@dataclass
class Site:
    """What is being written: where, and the names and lists of the index so far."""

    folder: Path
    scratch: Path  # for crops, until they are on a sheet
    classes: Sequence[str]
    names: dict[str, int]
    pools: dict[str, int] = field(default_factory=dict)
    lists: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def numbers(self, names: Sequence[str | None]) -> list[int]:
        """Returns the places of names among all names, which grow by them; `NONE` for none."""
        return [NONE if name is None else self.names.setdefault(name, len(self.names)) for name in names]


def script(name: str, value: Any) -> bytes:
    """Returns a script, a file of its own, that hands a value to the page."""
    return opening(name) + json.dumps(value, separators=(",", ":"), allow_nan=False).encode() + CLOSING


def opening(name: str) -> bytes:
    """Returns what a script begins with."""
    return f"gallery.take({json.dumps(name)},".encode()


def write_script(path: Path, name: str, value: Any) -> None:
    """Writes a script."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(script(name, value))


class Crops:
    """The rows of `data/faces` of some faces, copied to a scratch folder and read when they are asked for."""

    def __init__(self, scratch: Path, find_folder: Callable[[str], Path], tables: Sequence[pa.Table]) -> None:
        keys = [table.select(["face_id", "pool"]) for table in tables]
        self._pools: dict[str, tuple[FaceRows, dict[str, int]]] = {}
        rows = pa.concat_tables(keys) if keys else pa.table({"face_id": [], "pool": []})
        for pool, places in export.places_by_pool(rows).items():
            wanted = rows["face_id"].take(places).combine_chunks()
            with tempfile.NamedTemporaryFile(dir=scratch, delete=False) as spill:
                found = collect_faces(find_folder(pool), wanted, Path(spill.name))
            names = {name: number for number, name in enumerate(found.face_id.to_pylist())}
            if missing := [name for name in wanted.to_pylist() if name not in names]:
                fault = f"{len(missing):,} faces of {pool} have no picture, {missing[0]} first"
                raise DataError(f"{fault}; run: dvc repro align")
            self._pools[pool] = found, names

    def take(self, rows: pa.Table) -> list[dict[str, Any]]:
        """Returns what `data/faces` has of these faces."""
        taken: list[Any] = [None] * len(rows)
        for pool, places in export.places_by_pool(rows).items():
            faces, names = self._pools[pool]
            at = np.array([names[name] for name in rows["face_id"].take(places).to_pylist()])
            found = faces.take(at).to_pylist()
            for place, face in zip(places.tolist(), found, strict=True):
                taken[place] = face
        return taken


def write_rows(site: Site, part: Part, truth: Truth) -> None:
    """Writes the columns of a list."""
    rows, true = part.rows.to_pydict(), [None] * len(part.rows)
    if part.kind != "anchor":
        true = [truth.label(*face) or None for face in zip(rows["pool"], rows["face_id"], strict=True)]
    pools = [site.pools.setdefault(pool, len(site.pools)) for pool in rows["pool"]]
    columns: dict[str, Sequence[Any]] = {**rows, "pool": pools, "truth": site.numbers(true)}
    columns |= {name: site.numbers(rows[name]) for name in ("label", "before") if name in rows}
    encoded = {}
    for name, kind in COLUMNS.items():
        if name in columns:
            none = np.nan if "f" in kind else 0 if "rank" in name else NONE
            encoded[name] = _encode(np.array([none if one is None else one for one in columns[name]], kind))
    write_script(site.folder / part.key / "rows.js", f"{part.key}/rows", encoded)


def _encode(array: np.ndarray | bytes) -> str:
    return base64.b64encode(array if isinstance(array, bytes) else array.tobytes()).decode()


def write_pictures(
    folder: Path, rows: pa.Table, crops: Crops, describe: Callable[[int], dict[str, Any]], start: int
) -> bytes:
    """Writes sheets, details and names of a list, and returns its contents.

    `describe` says of the rows, numbered from `start`, what else is shown.
    """
    contents = bytearray()
    sheets = {sheet: np.zeros((sheet.side * sheet.across,) * 2 + (3,), np.uint8) for sheet in (TILES, WALL)}
    for first in range(0, len(rows), PER_DETAIL):
        faces = crops.take(rows.slice(first, PER_DETAIL))
        details = []
        for row, face in enumerate(faces, first):
            crop = bytes(face["image"]["bytes"])
            pixels = decode_crop(crop, face["face_id"])
            content = hashlib.blake2b(crop, digest_size=DIGEST_BYTES)
            contents += content.digest()
            for sheet, canvas in sheets.items():
                y, x = divmod(row % sheet.across**2, sheet.across)
                place = slice(y * sheet.side, (y + 1) * sheet.side), slice(x * sheet.side, (x + 1) * sheet.side)
                canvas[place] = make_thumbnail(pixels, sheet.side)
            kind = next((kind for magic, kind in export.MAGIC.items() if crop.startswith(magic)), "jpg")
            details.append(
                {"picture": f"data:image/{MIME[kind]};base64,{_encode(crop)}", "size": pixels.shape[1::-1]}
                | {name: face[name] for name in ("face_id", "source", "subject")}
                | {name: _finite(face[name]) for name in ("landmarks", "score")}
                | {"content": content.hexdigest(), **describe(start + row)}
            )
        number, is_last = first // PER_DETAIL, first + PER_DETAIL >= len(rows)
        write_script(folder / f"d{number:04d}.js", f"{folder.name}/d{number:04d}", details)
        for sheet, canvas in sheets.items():
            if is_last or (first + PER_DETAIL) % sheet.across**2 == 0:
                name = f"{sheet.letter}{first // sheet.across**2:04d}.jpg"
                (folder / name).write_bytes(encode(canvas, quality=QUALITY))
                canvas[:] = 0
    names = {name: rows[name].to_pylist() for name in ("face_id", "sample") if name in rows.column_names}
    write_script(folder / "names.js", f"{folder.name}/names", {**names, "content": _encode(bytes(contents))})
    return bytes(contents)


def _finite(value: Any) -> Any:
    """The number or list of numbers, None where any of it is none."""
    return value if np.isfinite(np.array(value, np.float64)).all() else None


def make_thumbnail(pixels: UInt8[np.ndarray, "h w 3"], side: int) -> UInt8[np.ndarray, "s s 3"]:
    """Makes a square picture of a crop by Lanczos filtering; what is not square is stretched."""
    return np.asarray(Image.fromarray(pixels).resize((side, side), Image.Resampling.LANCZOS))
