"""Write image shards of one pool's mined faces, best first, one folder a class, and of what they are compared with.

Reads `data/mined` and `data/faces/<pool>/train`; writes `data/auxiliary/<pool>` with the mined faces, and laid out
alike (see `artifacts.auxiliary`): `data/control/<pool>` with the random ones, `data/second_rule/<pool>` with those of
the second rule, and `data/true_labels/<pool>` with the mined ones under their true labels where a truth is known
(`data/truth`), which bounds what better labels could bring. A face that shows no one class has no true label and is
left out there, counted. The truth goes into that folder alone. `data/reviewed/<pool>` has the faces of which people
said what they show, mined or not, for recipes that name it as the source `reviewed`.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from fer_pipeline.artifacts.arrow import is_among
from fer_pipeline.artifacts.auxiliary import auxiliary_schema, collect_faces, reviewed_schema, write_class
from fer_pipeline.artifacts.faces import read_classes, write_shard
from fer_pipeline.artifacts.mined import JUDGED_LABEL, MINED, RANDOM, REVIEWED, SECOND_RULE, read_rows, read_summary
from fer_pipeline.artifacts.seed_folders import each_seed
from fer_pipeline.artifacts.truth import Truth, read_truth
from fer_pipeline.core.errors import DataError
from fer_pipeline.core.files import replacing_folder
from fer_pipeline.core.settings import ProjectSettings, Settings, Summary


class Config(Settings):
    """How large the shards are."""

    rows_per_shard: Annotated[int, Field(ge=1)] = 10_000


@each_seed("mined", writes=("out", "control", "second_rule", "true_labels", "reviewed"))
def run(
    config: Config,
    project: ProjectSettings,
    *,
    pool: str,
    mined: Path,
    faces: Path,
    out: Path,
    control: Path,
    second_rule: Path,
    true_labels: Path,
    reviewed: Path,
    known: Path | None = None,
) -> Summary:
    """Write the mined faces of one pool, and those that they are compared with, as image shards.

    Args:
        pool: The pool's name in the settings.
        mined: What `mine` wrote.
        faces: The pool's split of aligned faces.
        out: Where the mined faces are written.
        control: Where the random faces are written.
        second_rule: Where the faces of the second rule are written.
        true_labels: Where the mined faces are written under their true labels.
        reviewed: Where the faces are written of which people said what they show.
        known: The folder of the true expressions of pools; without it no true label is known.
    """
    classes, found = project.classes, read_classes(faces)
    if classes != found:
        raise DataError(f"{faces} holds the classes {', '.join(found)}, expected {', '.join(classes)}; rerun align")
    schema = auxiliary_schema(faces, classes, read_summary(mined).get("seen", {}))
    tables = [read_rows(mined, name, classes=classes) for name in (MINED, RANDOM)]
    has_second = (mined / SECOND_RULE).exists()
    tables.append(read_rows(mined, SECOND_RULE, classes=classes) if has_second else tables[0].slice(0, 0))
    tables = [table.filter(pc.field("pool") == pool) for table in tables]
    truth = read_truth(known, [pool]) if known else Truth({})
    tables.append(label_truly(tables[0], truth, classes))
    tables.append(read_judged(mined, pool, classes))
    wanted = pa.concat_tables([table.select(["face_id"]) for table in tables]).column("face_id").unique()
    with ExitStack() as stack:
        places = (out, control, second_rule, true_labels, reviewed)
        folders = [stack.enter_context(replacing_folder(path)) for path in places]
        temporary = folders[0] / ".spill.arrow"
        rows = collect_faces(faces, wanted, temporary)
        check_complete(rows.face_id, wanted, faces)
        schemas = [schema] * (len(tables) - 1) + [reviewed_schema(faces, classes)]
        for table, folder, schema in zip(tables, folders, schemas, strict=True):
            for label, name in enumerate(classes):
                members = table.filter(pc.field("label") == label)
                if len(members):
                    write_class(folder / name, rows, members, schema, per_shard=config.rows_per_shard)
            if not len(table):
                write_shard(folder / "part-00000.parquet", schema.empty_table())
        temporary.unlink()
    num_mined, num_random, num_second, num_true, num_reviewed = map(len, tables)
    per_class = np.bincount(tables[0].column("label").to_numpy(), minlength=len(classes))
    shares = ", ".join(f"{name} {count:,}" for name, count in zip(classes, per_class, strict=True))
    warnings = () if num_mined else (f"no face of {pool} was mined; its shard is empty",)
    line = f"{pool}: {num_mined:,} mined ({shares}) and {num_random:,} random faces"
    counts: dict[str, int | float] = {"mined": num_mined, "random": num_random}
    if has_second:
        counts["second_rule"] = num_second
        line += f", {num_second:,} by the second rule"
    if num_reviewed:
        counts["reviewed"] = num_reviewed
        line += f"; {num_reviewed:,} have a label by people"
    if truth.pools:
        counts |= {"true_labels": num_true, "without_true_label": num_mined - num_true}
        line += f"; {num_true:,} mined ones have a true label, {num_mined - num_true:,} show no one class"
    return Summary("shard", line, counts, warnings)


def read_judged(mined: Path, pool: str, classes: Sequence[str]) -> pa.Table:
    """Reads the faces of a pool of which people said what they show, labelled so, in order of their names."""
    rows = read_rows(mined, REVIEWED, classes=classes)
    rows = rows.filter((pc.field("pool") == pool) & (pc.field(JUDGED_LABEL) >= 0))
    return rows.drop_columns(["label"]).rename_columns({JUDGED_LABEL: "label"})


def label_truly(mined: pa.Table, truth: Truth, classes: Sequence[str]) -> pa.Table:
    """Returns those mined faces whose true expression is a class, labelled by it, in order of class and rank."""
    numbers = {name: label for label, name in enumerate(classes)}
    names = zip(mined.column("pool").to_pylist(), mined.column("face_id").to_pylist(), strict=True)
    labels = pa.array([numbers.get(truth.label(pool, face_id)) for pool, face_id in names], pa.int64())
    relabelled = mined.set_column(mined.column_names.index("label"), mined.schema.field("label"), labels)
    return relabelled.filter(labels.is_valid()).sort_by([(name, "ascending") for name in ("label", "rank", "face_id")])


def check_complete(face_id: pa.Array, wanted: pa.Array, faces: Path) -> None:
    """Refuses a set in which a mined face has no picture, or several."""
    missing = wanted.filter(pa.array(~is_among(wanted, face_id)))
    if len(missing):
        raise DataError(
            f"{len(missing):,} mined faces are not in {faces}, the first is {missing[0]}; rerun embed, score and mine"
        )
    if len(face_id) > len(wanted):
        raise DataError(f"{faces} holds some face_ids twice; rerun align")
