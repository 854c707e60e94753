"""Choose and load the faces that the page shows: mined ones by class, and the most confident mistakes.

Figure 3 of Liu et al., arXiv:2005.08551: each row is a class and its confidence falls from left to right. The faces
stand at even steps from the first rank to the last, over all pools, so that the row shows the whole class and not its
best corner only. Where the truth of a pool is known (a drawn world), a wrong face is marked.

Figure 6: the paper groups its failures by eye (pose, light, occlusion); ours come ordered by true class and by how
confident the models were, and the reader judges.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fer_pipeline.artifacts.faces import decode_one, open_shard
from fer_pipeline.artifacts.metrics import read_failures
from fer_pipeline.artifacts.mined import MINED, read_rows
from fer_pipeline.artifacts.truth import Truth
from fer_pipeline.reporting.formatting import crop_uri, data_uri

Face = dict[str, Any]


def load_mined_faces(data: Path, *, classes: Sequence[str], truth: Truth, per_class: int) -> dict[str, list[Face]]:
    """Load at most `per_class` faces of every class of the mined set, with their pictures.

    A face has the columns of `mined.parquet`, `picture` (a data URI), `true_label` ("" where no truth is known) and
    `right` (None there).
    """
    rows, gallery = read_rows(data / "mined", MINED, classes=classes), {}
    for label, name in enumerate(classes):
        members = rows.filter(pc.field("label") == label).sort_by("rank")
        steps = np.unique(np.linspace(0, len(members) - 1, min(per_class, len(members))).round().astype(int))
        chosen = members.take(pa.array(steps, pa.int64())).to_pylist() if len(members) else []
        pictures: dict[str, str] = {}
        for pool in sorted({row["pool"] for row in chosen}):
            pictures |= load_crops(
                data / "auxiliary" / pool / name, {row["face_id"] for row in chosen if row["pool"] == pool}
            )
        faces = [
            {
                **row,
                "picture": pictures[row["face_id"]],
                "right": truth.right(row["pool"], row["face_id"], name),
                "true_label": truth.label(row["pool"], row["face_id"]),
            }
            for row in chosen
            if row["face_id"] in pictures
        ]
        if faces:
            gallery[name] = faces
    return gallery


def load_crops(folder: Path, face_ids: set[str]) -> dict[str, str]:
    """Load data URIs of some faces of one folder of shards; only the row groups that hold one are decoded."""
    crops: dict[str, str] = {}
    for path in sorted(folder.glob("part-*.parquet")) if face_ids else ():
        shard = open_shard(path)
        for group in range(shard.num_row_groups):
            present = shard.read_row_group(group, columns=["face_id"])["face_id"].to_pylist()
            places = [index for index, face_id in enumerate(present) if face_id in face_ids]
            images = shard.read_row_group(group, columns=["image"])["image"] if places else []
            crops |= {present[place]: crop_uri(decode_one(images[place]["bytes"].as_py())) for place in places}
    return crops


def load_failures(metrics: Path, *, recipe: str, targets: Sequence[str], per_class: int) -> dict[str, list[Face]]:
    """Load the mistakes by target, where the recipe made one: the fields of `Failure`, and `picture` (a data URI)."""
    failures = {target: read_failures(metrics / recipe / target / "failures") for target in targets}
    galleries = {
        target: [{**vars(one), "picture": data_uri(png)} for one, png in pairs if one.rank <= per_class]
        for target, pairs in failures.items()
    }
    return {target: faces for target, faces in galleries.items() if faces}
