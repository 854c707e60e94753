"""Write image shards of one pool's mined faces, best first, one folder a class.

Reads `data/mined` and `data/faces/<pool>/train`; writes `data/auxiliary/<pool>` with the mined faces and
`data/control/<pool>` with the random ones, laid out alike (see `artifacts.auxiliary`).
"""

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from fer_pipeline.artifacts.arrow import is_among
from fer_pipeline.artifacts.auxiliary import auxiliary_schema, collect_faces, write_class
from fer_pipeline.artifacts.faces import read_classes, write_shard
from fer_pipeline.artifacts.mined import MINED, RANDOM, read_rows
from fer_pipeline.artifacts.seed_folders import each_seed
from fer_pipeline.core.errors import DataError
from fer_pipeline.core.files import replacing_folder
from fer_pipeline.core.settings import ProjectSettings, Settings, Summary


class Config(Settings):
    """How large the shards are."""

    rows_per_shard: Annotated[int, Field(ge=1)] = 10_000


@each_seed("mined", writes=("out", "control"))
def run(
    config: Config, project: ProjectSettings, *, pool: str, mined: Path, faces: Path, out: Path, control: Path
) -> Summary:
    """Write the mined and the random faces of one pool as image shards.

    Args:
        pool: The pool's name in the settings.
        mined: What `mine` wrote.
        faces: The pool's split of aligned faces.
        out: Where the mined faces are written.
        control: Where the random faces are written.
    """
    classes, found = project.classes, read_classes(faces)
    if classes != found:
        raise DataError(f"{faces} holds the classes {', '.join(found)}, expected {', '.join(classes)}; rerun align")
    schema = auxiliary_schema(faces, classes)
    tables = [read_rows(mined, name, classes=classes) for name in (MINED, RANDOM)]
    tables = [table.filter(pc.field("pool") == pool) for table in tables]
    wanted = pa.concat_tables(tables).column("face_id").unique()
    with ExitStack() as stack:
        folders = [stack.enter_context(replacing_folder(path)) for path in (out, control)]
        temporary = folders[0] / ".spill.arrow"
        rows = collect_faces(faces, wanted, temporary)
        check_complete(rows.face_id, wanted, faces)
        for table, folder in zip(tables, folders, strict=True):
            for label, name in enumerate(classes):
                members = table.filter(pc.field("label") == label)
                if len(members):
                    write_class(folder / name, rows, members, schema, per_shard=config.rows_per_shard)
            if not len(table):
                write_shard(folder / "part-00000.parquet", schema.empty_table())
        temporary.unlink()
    num_mined, num_random = len(tables[0]), len(tables[1])
    per_class = np.bincount(tables[0].column("label").to_numpy(), minlength=len(classes))
    shares = ", ".join(f"{name} {count:,}" for name, count in zip(classes, per_class, strict=True))
    warnings = () if num_mined else (f"no face of {pool} was mined; its shard is empty",)
    line = f"{pool}: {num_mined:,} mined ({shares}) and {num_random:,} random faces"
    return Summary("shard", line, {"mined": num_mined, "random": num_random}, warnings)


def check_complete(face_id: pa.Array, wanted: pa.Array, faces: Path) -> None:
    """Refuses a set in which a mined face has no picture, or several."""
    missing = wanted.filter(pa.array(~is_among(wanted, face_id)))
    if len(missing):
        raise DataError(
            f"{len(missing):,} mined faces are not in {faces}, the first is {missing[0]}; rerun embed, score and mine"
        )
    if len(face_id) > len(wanted):
        raise DataError(f"{faces} holds some face_ids twice; rerun align")
