"""Who was mined, in pictures and counts: figure 3 of Liu et al., arXiv:2005.08551.

Each row of the figure is a class and its confidence falls from left to right: the faces stand at even steps from the
first rank to the last, over all pools, so that the row shows the whole class and not its best corner only. Where the
truth of a pool is known (a drawn world), a face whose true expression is another one is marked.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fer_pipeline.artifacts.faces import decode_one, open_shard
from fer_pipeline.artifacts.mined import MINED, SUMMARY, read_rows, read_summary
from fer_pipeline.reporting.charts import bars
from fer_pipeline.reporting.numbers import count
from fer_pipeline.reporting.palette import series_colours
from fer_pipeline.reporting.pictures import crop_uri
from fer_pipeline.reporting.truth import Truth


@dataclass(frozen=True)
class MinedFace:
    """One mined face, ready for the page. `right` is None where no truth is known."""

    picture: str
    face_id: str
    pool: str
    rank: int
    cosine: float
    margin: float
    right: bool | None
    true_label: str


@dataclass(frozen=True)
class Mined:
    """The mined set: its table, its summary, and per class the faces of the figure."""

    rows: pa.Table
    summary: dict[str, Any]
    gallery: dict[str, tuple[MinedFace, ...]]


def mined_set(data: Path, *, classes: Sequence[str], truth: Truth, per_class: int) -> Mined | None:
    """The mined set under `data/mined` with pictures from `data/auxiliary`; None where nothing was mined."""
    if not (data / "mined" / SUMMARY).exists():
        return None
    rows = read_rows(data / "mined", MINED, classes=classes)
    gallery = {name: _gallery(rows, k, data / "auxiliary", name, truth, per_class) for k, name in enumerate(classes)}
    return Mined(rows, read_summary(data / "mined"), {name: faces for name, faces in gallery.items() if faces})


def counts_chart(summary: Mapping[str, Any]) -> bytes:
    """Bars: mined faces by class, one bar a pool."""
    pools = list(summary["pools"])
    colours = series_colours(pools)
    rows = []
    for name in summary["classes"]:
        for pool in pools:
            kept = summary["pools"][pool]["by_class"][name]
            label = name if len(pools) == 1 else f"{name} · {pool}"
            rows.append((label, float(kept), colours[pool], count(kept)))
    return bars(rows, xlabel="faces mined")


def count_rows(summary: Mapping[str, Any]) -> list[dict[str, object]]:
    """One row a pool: where each of its faces went, and how many each class got."""
    keys = ("faces", "excluded", "no_direction", "below_margin", "over_cap", "kept")
    return [
        {"pool": pool, **{key: found[key] for key in keys}, **found["by_class"]}
        for pool, found in summary["pools"].items()
    ]


def _gallery(
    rows: pa.Table, label: int, auxiliary: Path, name: str, truth: Truth, per_class: int
) -> tuple[MinedFace, ...]:
    members = rows.filter(pc.field("label") == label).sort_by("rank")
    steps = np.unique(np.linspace(0, len(members) - 1, min(per_class, len(members))).round().astype(int))
    wanted = members.take(pa.array(steps, pa.int64())).to_pylist() if len(members) else []
    pictures: dict[str, str] = {}
    for pool in sorted({row["pool"] for row in wanted}):
        identifiers = {row["face_id"] for row in wanted if row["pool"] == pool}
        pictures.update(crops(auxiliary / pool / name, identifiers))
    return tuple(
        MinedFace(
            picture=pictures[row["face_id"]],
            face_id=row["face_id"],
            pool=row["pool"],
            rank=row["rank"],
            cosine=row["cosine"],
            margin=row["margin"],
            right=truth.right(row["pool"], row["face_id"], name),
            true_label=truth.label(row["pool"], row["face_id"]),
        )
        for row in wanted
        if row["face_id"] in pictures
    )


def crops(folder: Path, face_ids: set[str]) -> dict[str, str]:
    """Data URIs of some faces of one folder of shards; only the row groups that hold one are decoded."""
    found: dict[str, str] = {}
    for path in sorted(folder.glob("part-*.parquet")) if face_ids else ():
        shard = open_shard(path)
        for group in range(shard.num_row_groups):
            present = shard.read_row_group(group, columns=["face_id"])["face_id"].to_pylist()
            places = [index for index, face_id in enumerate(present) if face_id in face_ids]
            images = shard.read_row_group(group, columns=["image"])["image"] if places else []
            found.update((present[place], crop_uri(decode_one(images[place]["bytes"].as_py()))) for place in places)
    return found
