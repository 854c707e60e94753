"""Write the mined faces of a revision as a static site, which opens from the disk and asks nothing of other places.

Faces lie in lists, as `inspection/sheets.py` writes them: `mined-<n>` by class and rank, `gone-<n>` those that only the
compared revision has, by their class there, `chosen` those that a file names, `…-anchor` the anchor faces that are
among the nearest of any: those with the largest cosine of embeddings, by comparing with all. `index.js` holds the rest,
`verdicts.js` what was judged before. The same tables give the same bytes.
"""

import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Float32, Int64

from fer_pipeline.artifacts import arrow, scores
from fer_pipeline.artifacts.contents import DIGEST_BYTES
from fer_pipeline.artifacts.faces import open_shard, shard_paths
from fer_pipeline.core.documents import MAX_JSON, brief, parse_json
from fer_pipeline.core.errors import ConfigError, DataError
from fer_pipeline.core.files import refuse_link, replacing_folder
from fer_pipeline.core.progress import progress
from fer_pipeline.core.settings import PARAMS
from fer_pipeline.inspection import compare, export, sheets
from fer_pipeline.inspection.revisions import NotThereError, Revision, Stages
from fer_pipeline.inspection.sheets import STATUS, Crops, Part, Site
from fer_pipeline.inspection.tables import name_classes, read_subset, read_truth_of

TEMPLATES = Path(__file__).parent / "templates"
INDEX, VERDICTS = "index.js", "verdicts.js"
FILES = ("index.html", "gallery.css", "gallery.js")
NUM_ANCHORS = 6  # nearest ones that are shown of each face


def write_gallery(
    revision: Revision,
    out: Path,
    *,
    title: str,
    project: str,
    before: Revision | None = None,
    before_title: str = "",
    chosen: pa.Table | None = None,
    chosen_title: str = "",
    verdicts: Sequence[Sequence[str]] = (),
) -> tuple[dict[str, int], list[str]]:
    """Writes the site to `out`, in the place of a gallery that is there; anything else there is a ConfigError.

    Args:
        revision: Whose mined faces are shown.
        out: The folder of the site.
        title: What the pages call the revision.
        project: Under which name a browser keeps verdicts; another one for each project.
        before: The revision that it is compared with.
        before_title: What they call that.
        chosen: Faces of their own list, mined or not: columns `face_id`, `pool`, `content` (hex), `sample` and
            `listed`, their class or "".
        chosen_title: What they call those.
        verdicts: Rows of `data/review.csv`, as they were when the site was made.

    Returns:
        The number of faces by kind of list, and a line for each thing that this revision does not have.
    """
    refuse_link(out)
    _refuse_others(out)
    rows, summary = read_subset(revision)
    classes: list[str] = list(summary["classes"])
    index: dict[str, Any] = {
        "title": title, "project": project, "lineage": {"mined": hash_lineage(revision.stages)}, "compare": None,
        "chosen": chosen_title, "rule": summary.get("ranked_by", "margin"), "labels": classes,
    }  # fmt: skip
    groups: list[tuple[Revision, list[Part]]] = []
    gone = None
    if before is not None:
        old, old_summary = read_subset(before)
        classes = list(dict.fromkeys([*old_summary["classes"], *classes]))
        _, counts = compare.compare_subsets(old, rows, classes)
        causes = compare.compare_runs(before.stages, revision.stages).to_pylist()
        rows, gone = _join(old, rows)
        pairs = [(one, to) for one, to in zip(*(rows[c].to_pylist() for c in ("before", "label")), strict=True) if one]
        index["compare"] = {
            "title": before_title, "counts": counts.to_pylist(), "causes": causes,
            "relabelled": sorted({pair for pair in pairs if pair[0] != pair[1]}),
        }  # fmt: skip
        index["lineage"]["gone"] = hash_lineage(before.stages)
        groups.append((before, _divide(gone, "gone", classes)))
    if chosen is not None:
        part = Part("chosen", "chosen", "", _score(revision, chosen, rows, gone, classes, index["rule"]))
        groups.append((revision, [part]))
    groups.append((revision, _divide(rows, "mined", classes)))
    out.parent.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.", suffix=".tmp") as scratch,
        replacing_folder(out) as folder,
    ):
        site = Site(folder, Path(scratch), classes, {name: n for n, name in enumerate(classes)})
        for one, parts in groups:
            _write_group(site, one, parts)
        notes = list(dict.fromkeys(site.notes))  # two lists of one revision lack the same
        index |= {
            "classes": classes,
            "names": list(site.names),
            "pools": list(site.pools),
            "lists": site.lists,
            "notes": notes,
        }
        index |= {"status": STATUS, "sheets": {"tiles": sheets.TILES, "wall": sheets.WALL}, "columns": sheets.COLUMNS}
        sheets.write_script(folder / INDEX, "index", index)
        write_verdicts(folder / VERDICTS, verdicts)
        for name in FILES:
            (folder / name).write_bytes((TEMPLATES / name).read_bytes())
    counts = {
        kind: sum(one["count"] for one in site.lists if one["kind"] == kind) for kind in ("mined", "gone", "chosen")
    }
    return counts, notes


def write_verdicts(path: Path, verdicts: Sequence[Sequence[str]]) -> None:
    """Writes rows of `data/review.csv` as the script that the pages load."""
    path.write_bytes(sheets.script("verdicts", list(map(list, verdicts))))


def _refuse_others(out: Path) -> None:
    """Refuses a folder that holds anything but a gallery, since all of it is replaced."""
    remedy = "name another place with --out, or remove it"
    if out.exists() and read_lineage(out) is None:
        raise ConfigError(f"{out} is there already and is no gallery; {remedy}")
    for one in sorted(out.iterdir()) if out.exists() else ():
        if one.name not in (INDEX, VERDICTS, *FILES) and not (one / "rows.js").is_file():
            raise ConfigError(f"{out} is a gallery, but {brief(one.name)} in it is no part of one; {remedy}")


def read_lineage(folder: Path) -> dict[str, Any] | None:
    """Reads what the mined faces of a gallery come from; None where the folder has no index that we wrote."""
    path, opening = folder / INDEX, sheets.opening("index")
    try:
        if not path.is_file() or path.stat().st_size > MAX_JSON or not (data := path.read_bytes()).startswith(opening):
            return None
        found = parse_json(data.removeprefix(opening).removesuffix(sheets.CLOSING))["lineage"]["mined"]
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return found if isinstance(found, dict) else None


def hash_lineage(stages: Stages) -> dict[str, str]:
    """Returns what dvc.lock says of the outputs that the mined faces come from."""
    outs = [out for name in compare.list_upstream(stages) for out in stages[name].get("outs") or ()]
    return {out["path"]: str(out.get("md5")) for out in outs}


def _join(old: pa.Table, new: pa.Table) -> tuple[pa.Table, pa.Table]:
    """Adds to the new rows what each was `before`, and a `status`; returns those and the rows that are gone."""
    new_key, old_key = compare.face_keys(new), compare.face_keys(old)
    there = arrow.positions_in(new_key, old_key)
    at = pa.array(np.where(there < 0, 0, there), mask=there < 0)
    was = {name: old[name].take(at) for name in ("label", "rank", "margin")}
    status = np.full(len(new), STATUS.index("same"))
    status[was["rank"].to_numpy() != new["rank"].to_numpy()] = STATUS.index("moved")
    different = [one != other for one, other in zip(was["label"].to_pylist(), new["label"].to_pylist(), strict=True)]
    status[different] = STATUS.index("relabelled")
    status[there < 0] = STATUS.index("added")
    for name, column in (("before", "label"), ("before_rank", "rank"), ("before_margin", "margin")):
        new = new.append_column(name, was[column])
    gone = old.take(np.setdiff1d(np.arange(len(old)), there))
    removed = np.full(len(gone), STATUS.index("removed"))
    return new.append_column("status", pa.array(status)), gone.append_column("status", pa.array(removed))


def _divide(rows: pa.Table, kind: str, classes: Sequence[str]) -> list[Part]:
    numbers = arrow.positions_in(rows["label"], pa.array(classes, pa.string()))
    places = [np.flatnonzero(numbers == number) for number in range(len(classes))]
    return [Part(f"{kind}-{n}", kind, name, rows.take(places[n])) for n, name in enumerate(classes) if len(places[n])]


def _score(
    revision: Revision, chosen: pa.Table, mined: pa.Table, gone: pa.Table | None, classes: Sequence[str], rule: str
) -> pa.Table:
    """The rows of chosen faces: their class as listed, else as mined, else the nearest; no rank where not mined.

    `gone` are those that the compared revision alone has mined, if there is one.
    """
    there = arrow.positions_in(compare.face_keys(chosen), compare.face_keys(mined))
    cosine = read_cosines(revision, chosen, classes)
    if (unknown := np.flatnonzero(np.isnan(cosine).all(axis=1))).size:
        first = chosen["face_id"][int(unknown[0])]
        raise DataError(
            f"{len(unknown):,} of {len(chosen):,} faces have no scores in {revision.title}, {first} first; "
            "name a revision that has them with --rev, or take them out of the file"
        )
    cosine = np.nan_to_num(cosine, nan=-1)  # a class that the compared revision alone has
    two = np.sort(np.pad(cosine, ((0, 0), (1, 0)), constant_values=-1), axis=1)[:, -2:]
    margin = two[:, 1] - two[:, 0] if rule == "margin" else np.full(len(chosen), np.nan, np.float32)
    parts: dict[str, Any] = {"cosine": pa.array(two[:, 1]), "margin": pa.array(margin)}
    rows, at = chosen.drop_columns(["listed"]), pa.array(np.maximum(there, 0), mask=there < 0)
    if gone is not None:
        went = arrow.positions_in(compare.face_keys(chosen), compare.face_keys(gone))
        old = gone.take(pa.array(np.maximum(went, 0), mask=went < 0))
        was = {"status": "status", "before": "label", "before_rank": "rank", "before_margin": "margin"}
        parts |= {name: old[column] for name, column in was.items()}
    for name in ("cosine", "margin", "rank", "status", "before", "before_rank", "before_margin"):
        if name in mined.column_names:
            taken = mined[name].take(at)
            rows = rows.append_column(name, _first_known(taken, parts[name]) if name in parts else taken)
    listed = pa.array([label or None for label in chosen["listed"].to_pylist()], pa.string())
    nearest = name_classes(pa.array(cosine.argmax(axis=1)), classes)
    return rows.append_column("label", _first_known(listed, mined["label"].take(at), nearest))


def _first_known(*columns: pa.Array | pa.ChunkedArray) -> pa.ChunkedArray | pa.Array:
    return pc.call_function("coalesce", list(columns))


def read_cosines(revision: Revision, rows: pa.Table, classes: Sequence[str]) -> Float32[np.ndarray, "n c"]:
    """Reads the cosines of faces to all classes, NaN for a face without; other classes than these are a DataError."""
    found = np.full((len(rows), len(classes)), np.nan, np.float32)
    for pool, places in export.places_by_pool(rows).items():
        wanted = rows["face_id"].take(places).combine_chunks()
        folder = revision.path(f"data/scores/{pool}", "*part-*.arrow")
        for path in arrow.list_shards(folder, "part-*.arrow"):
            table = arrow.read_ipc(path, scores.COLUMNS)
            stored = arrow.schema_metadata(table.schema, path).get("classes", [])
            if not {*stored} <= {*classes}:
                raise DataError(f"{path} was scored against other classes than {', '.join(classes)}; rerun score")
            at = arrow.positions_in(table["face_id"], wanted)
            inside = np.flatnonzero(at >= 0)
            if len(inside):
                cosine = arrow.matrix_view(table["cosine"].take(inside).combine_chunks())
                columns = [classes.index(name) for name in stored]
                found[places[at[inside]][:, None], columns] = cosine
    return found


def _write_group(site: Site, revision: Revision, parts: Sequence[Part]) -> None:
    """Writes the lists whose faces come from one revision, each face in one of them, and their nearest anchor faces."""
    if not parts:
        return
    rows, kind = pa.concat_tables([part.rows for part in parts], promote_options="default"), parts[0].kind
    truth, cosine = read_truth_of(revision, rows), None
    try:
        cosine = read_cosines(revision, rows, site.classes)
    except NotThereError as error:
        site.notes.append(f"no cosines to all classes: {error}")
    ids, likeness, anchors = _find_anchors(site, revision, rows, kind)

    def describe(row: int) -> dict[str, Any]:
        near = zip(ids[row].tolist(), likeness[row].tolist(), strict=True)
        return {
            "cosines": None if cosine is None else [_finite(value) for value in cosine[row].tolist()],
            "anchors": [[one, _finite(value)] for one, value in near],
        }

    start, total = 0, len(rows) + sum(len(part.rows) for part in anchors)
    with progress(f"{kind} faces of {revision.title}", total, "faces") as advance:
        for group, about in ((parts, describe), (anchors, lambda _: {})):
            find = export.picture_folder if group is parts and kind != "chosen" else export.faces_folder
            crops = Crops(site.scratch, partial(find, revision), [part.rows for part in group])
            for part in group:
                site.lists.append({"key": part.key, "kind": part.kind, "label": part.label, "count": len(part.rows)})
                sheets.write_rows(site, part, truth)
                contents = sheets.write_pictures(site.folder / part.key, part.rows, crops, about, start)
                if "content" in part.rows.column_names and (other := _count_others(part.rows, contents)):
                    site.notes.append(
                        f"{other:,} of {len(part.rows):,} faces have another picture than when they were listed"
                    )
                start += len(part.rows)
                advance(len(part.rows))


def _finite(value: float) -> float | None:
    return round(value, 6) if np.isfinite(value) else None


def _find_anchors(
    site: Site, revision: Revision, rows: pa.Table, kind: str
) -> tuple[Int64[np.ndarray, "n k"], Float32[np.ndarray, "n k"], list[Part]]:
    """Finds the anchor faces nearest to each face: their rows in a list of all that are nearest to any, and cosines."""
    anchor = str(revision.settings().get("anchor", ""))
    try:
        if not anchor:
            raise NotThereError(f"{revision.title} has no anchor in {PARAMS}")
        vectors = export.to_unit(export.read_vectors(revision, rows))
        shards = shard_paths(export.faces_folder(revision, anchor))
        tables = [(shard.read(["face_id", "label"]), shard.about) for shard in map(open_shard, shards)]
        faces = pa.concat_tables([table.replace_schema_metadata(None) for table, _ in tables])
        faces = faces.append_column("pool", pa.array([anchor] * len(faces), pa.string()))
        anchors = export.to_unit(export.read_vectors(revision, faces))
        ids, likeness = export.find_nearest(vectors, anchors, NUM_ANCHORS)
    except NotThereError as error:
        site.notes.append(f"no nearest anchor faces: {error}")
        return np.zeros((len(rows), 0), np.int64), np.zeros((len(rows), 0), np.float32), []
    names = name_classes(faces["label"], tables[0][1].get("classes", []))
    used, places = np.unique(ids, return_inverse=True)
    shown = faces.set_column(faces.column_names.index("label"), "label", names).take(used)
    return places.reshape(ids.shape), likeness, [Part(f"{kind}-anchor", "anchor", "", shown)]


def _count_others(rows: pa.Table, contents: bytes) -> int:
    listed = b"".join(map(bytes.fromhex, rows["content"].to_pylist()))
    places = range(0, len(contents), DIGEST_BYTES)
    return sum(listed[at : at + DIGEST_BYTES] != contents[at : at + DIGEST_BYTES] for at in places)
