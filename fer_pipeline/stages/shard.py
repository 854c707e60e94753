"""Mined faces and aligned pictures in, image shards out: best first, one folder a class.

In: `data/mined` and `data/faces/<pool>/train`. Out: `data/auxiliary/<pool>` with the mined faces and
`data/control/<pool>` with the random ones, laid out alike (see `artifacts.auxiliary`).
"""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import numpy as np
import pyarrow as pa
from pydantic import Field

from fer_pipeline.artifacts.arrow import is_among
from fer_pipeline.artifacts.auxiliary import Collected, auxiliary_schema, collect_faces, write_class, write_empty
from fer_pipeline.artifacts.faces import read_classes
from fer_pipeline.artifacts.mined import MINED, RANDOM, read_rows
from fer_pipeline.core.errors import DataError
from fer_pipeline.core.files import replacing_folder
from fer_pipeline.core.settings import ProjectSettings, Settings
from fer_pipeline.core.summary import Summary


class Config(Settings):
    """How large the shards are."""

    rows_per_shard: Annotated[int, Field(ge=1)] = 10_000


def run(
    config: Config, project: ProjectSettings, *, pool: str, mined: Path, faces: Path, out: Path, control: Path
) -> Summary:
    """Write the mined and the random faces of one pool as image shards.

    Args:
        config: The section `shard`.
        project: What all stages share.
        pool: The pool's name in the settings.
        mined: What `mine` wrote.
        faces: The pool's split of aligned faces.
        out: Where the mined faces are written.
        control: Where the random faces are written.
    """
    classes = project.classes
    if classes != read_classes(faces):
        raise DataError(
            f"{faces} holds the classes {', '.join(read_classes(faces))}, expected {', '.join(classes)}; rerun align"
        )
    schema = auxiliary_schema(faces, classes)
    tables = [read_rows(mined, name, classes=classes) for name in (MINED, RANDOM)]
    chosen = [table.filter(pa.array(is_among(table.column("pool"), pa.array([pool])))) for table in tables]
    wanted = pa.concat_tables(chosen).column("face_id").unique()
    with ExitStack() as stack:
        folders = [stack.enter_context(replacing_folder(path)) for path in (out, control)]
        spill = folders[0] / ".spill.arrow"
        rows = collect_faces(faces, wanted, spill)
        check_all_found(rows, wanted, faces)
        for table, folder in zip(chosen, folders, strict=True):
            write_classes(folder, table, rows, classes, schema, per_shard=config.rows_per_shard)
        spill.unlink()
    counts: dict[str, int | float] = {"mined": len(chosen[0]), "random": len(chosen[1])}
    per_class = np.bincount(chosen[0].column("label").to_numpy(), minlength=len(classes))
    shares = ", ".join(f"{name} {count:,}" for name, count in zip(classes, per_class, strict=True))
    warnings = (f"no face of {pool} was mined; its shard is empty",) if not len(chosen[0]) else ()
    return Summary(
        "shard", f"{pool}: {counts['mined']:,} mined ({shares}) and {counts['random']:,} random faces", counts, warnings
    )


def check_all_found(rows: Collected, wanted: pa.Array, faces: Path) -> None:
    """Every mined face must have its picture, once."""
    found = rows.face_id
    missing = wanted.filter(pa.array(~is_among(wanted, found)))
    if len(missing):
        raise DataError(
            f"{len(missing):,} mined faces are not in {faces}, the first is {missing[0]}; rerun embed, score and mine"
        )
    if len(found) > len(wanted):
        raise DataError(f"{faces} holds some face_ids twice; rerun align")


def write_classes(
    folder: Path, table: pa.Table, rows: Collected, classes: Sequence[str], schema: pa.Schema, *, per_shard: int
) -> None:
    """One folder a class; `table` gives labels, margins and ranks, already in order of class and rank."""
    for label, name in enumerate(classes):
        members = table.filter(pa.array(is_among(table.column("label"), pa.array([label]))))
        if len(members):
            write_class(folder / name, rows, members, schema, per_shard=per_shard)
    if not len(table):
        write_empty(folder, schema)
