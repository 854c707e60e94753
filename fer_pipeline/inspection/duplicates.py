"""List the pool faces that are, or look like, a measured, learned or other pool face, and show the pairs as a page.

Equal faces are found again by `data/contents`, as `mine` found them; those that look alike are the rows of its
`duplicates.parquet` (see `mining.duplicates`). Of test splits names, contents and pictures are read, and no label.
"""

import base64
from collections import defaultdict
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from fer_pipeline.artifacts.arrow import is_among
from fer_pipeline.artifacts.contents import CONTENTS, TEST, TRAIN, iter_contents, iter_repeated
from fer_pipeline.artifacts.mined import (
    EQUAL_COPIES,
    NEAR_TEST,
    NEAR_TRAIN,
    PAIRS,
    SUMMARY,
    TEST_FACES,
    TRAIN_FACES,
    WITHIN_POOLS,
    counted_alone,
    read_pairs,
)
from fer_pipeline.core.documents import one_line
from fer_pipeline.core.errors import ConfigError
from fer_pipeline.core.files import refuse_link, write_text
from fer_pipeline.inspection.export import MAGIC, read_crops
from fer_pipeline.inspection.revisions import Revision
from fer_pipeline.inspection.tables import SUBSET, read_subset

EXACT, PERCEPTUAL = "exact", "perceptual"
LISTED = pa.schema(
    [(name, pa.string()) for name in ("kind", "reason", "pool", "face_id", "other_set", "other_split", "other_face_id")]
    + [("bits", pa.int64()), ("mined", pa.bool_()), ("outcome", pa.string())]
)
WHY = {
    TEST_FACES: "removed: it is a test picture",
    TRAIN_FACES: "removed: it is a train picture",
    NEAR_TEST: "removed: it looks like a test picture",
    NEAR_TRAIN: "removed: it looks like a train picture",
}
EQUALS = {NEAR_TEST: TEST_FACES, NEAR_TRAIN: TRAIN_FACES, WITHIN_POOLS: EQUAL_COPIES}
BEST = "kept: the best of its group"
NOTHING = "not mined: nor is another face of its group"
STYLE = """:root { color-scheme: light dark; font: 15px/1.4 system-ui, sans-serif; }
body { margin: 1rem; } main { display: flex; flex-wrap: wrap; gap: 1rem; }
figure { margin: 0; padding: 0.5rem; width: 18rem; border: 1px solid gray; overflow-wrap: anywhere; }
img { width: 8.5rem; margin-right: 0.5rem; } bdi { display: block; }"""
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
PAGE = """<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8"><meta name="viewport" content="width=device-width">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>{title}</title>
<style>{style}</style>
<h1>{title}</h1>
<main>
{figures}</main>
"""


def list_duplicates(revision: Revision) -> tuple[pa.Table, list[str]]:
    """Lists the pairs, the most alike first within each reason.

    Columns: `kind` (exact or perceptual), `reason` (as `mine` counts it), `pool` and `face_id`, the other face's
    `other_set`, `other_split` and `other_face_id`, in how many `bits` of 255 they differ, whether the pool face was
    `mined`, and the `outcome`: whether it was left out for this, and why. A face that equals several has one pair, with
    a test face before a train face before the first such face of the pools.

    Returns:
        The table, and a line for what this revision does not have.
    """
    rows, summary = read_subset(revision)
    mined = {*zip(rows["pool"].to_pylist(), rows["face_id"].to_pylist(), strict=True)}
    kept = counted_alone(summary.get("rule", {}))
    pairs, notes = _find_equal(revision, list(summary["pools"]))
    exact = {(row["reason"], row["pool"], row["face_id"]) for row in pairs}
    path = revision.path(SUBSET, f"*{PAIRS}", f"*{SUMMARY}") / PAIRS
    if path.exists():
        alike = read_pairs(path.parent).to_pylist()
    else:
        alike = []
        notes.append(f"{revision.title} was mined without mine.duplicates, so that faces that look alike are not known")
    firsts: dict[tuple[str, str], tuple[str, str]] = {}  # of each face of a group; of a wider one before its equal ones
    for row in (*alike, *pairs):
        if row["reason"] in (WITHIN_POOLS, EQUAL_COPIES):
            other = row["other_set"], row["other_face_id"]
            firsts.setdefault((row["pool"], row["face_id"]), firsts.setdefault(other, other))
    best = {first: face[1] for face, first in firsts.items() if face in mined}
    for row in alike:
        if (EQUALS[row["reason"]], row["pool"], row["face_id"]) in exact:
            continue  # counted by its first reason, as `mine` does
        pairs.append(row | {"kind": PERCEPTUAL, "other_split": TEST if row["reason"] == NEAR_TEST else TRAIN})
    for row in pairs:
        face = row["pool"], row["face_id"]
        row["mined"] = face in mined
        if row["reason"] in kept:
            row["outcome"] = f"not removed: {kept[row['reason']]}"
        elif row["reason"] in WHY:
            row["outcome"] = WHY[row["reason"]]
        else:
            other = best.get(firsts[face])
            row["outcome"] = BEST if row["mined"] else f"removed: {other} of its group is mined" if other else NOTHING
    order = [*WHY, EQUAL_COPIES, WITHIN_POOLS]
    pairs.sort(key=lambda row: (order.index(row["reason"]), row["bits"], row["pool"], row["face_id"]))
    return pa.Table.from_pylist(pairs, schema=LISTED), notes


def _find_equal(revision: Revision, pools: list[str]) -> tuple[list[dict[str, Any]], list[str]]:
    """Finds the pool faces whose crop equals one of a test or train split, or of the pools, each with the first."""
    settings = revision.settings()
    targets = settings.get("targets")
    named = [*(targets if isinstance(targets, list) else []), settings.get("anchor"), settings.get("train")]
    measured = [*dict.fromkeys(str(name) for name in named if name)]
    names = [*dict.fromkeys([*measured, *pools])]
    paths = {name: f"data/contents/{name}.parquet" for name in names if revision.has(f"data/contents/{name}.parquet")}
    unknown = [name for name in names if name not in paths]
    fault = f"does not say which pictures the faces of {', '.join(unknown)} are, so that equal ones are not known"
    notes = [f"{revision.title} {fault}"] * bool(unknown)
    known: dict[bytes, tuple[str, str, str, str]] = {}
    learned = [name for name in measured if name in (settings.get("anchor"), settings.get("train"))]
    for reason, split, sets in ((TEST_FACES, TEST, measured), (TRAIN_FACES, TRAIN, learned)):
        for name in (name for name in sets if name in paths):
            for content, face_id in _iter_split(revision.path(paths[name]), split):
                known.setdefault(content, (reason, name, split, face_id))
    contents = pa.array([*known], CONTENTS.field("content").type)
    places = {pool: revision.path(paths[pool]) for pool in pools if pool in paths}
    found = {
        (pool, face_id): known[content]
        for pool, place in places.items()
        for content, face_id in _iter_split(place, TRAIN, contents)
    }
    firsts: dict[int, tuple[str, str]] = {}
    for pool, names, numbers in iter_repeated(places, TRAIN):
        for face_id, number in zip(names.to_pylist(), numbers.tolist(), strict=True):
            first = firsts.setdefault(number, (pool, face_id))
            if first != (pool, face_id):
                found.setdefault((pool, face_id), (EQUAL_COPIES, first[0], TRAIN, first[1]))
    names = ("kind", "pool", "face_id", "reason", "other_set", "other_split", "other_face_id", "bits")
    return [dict(zip(names, (EXACT, *face, *other, 0), strict=True)) for face, other in found.items()], notes


def _iter_split(path: Path, split: str, wanted: pa.Array | None = None) -> Iterator[tuple[bytes, str]]:
    """Yields content and name of the faces of a split, of those with a `wanted` content alone where that is given."""
    for batch in iter_contents(path, ["face_id", "split", "content"]):
        rows = batch.filter(pc.field("split") == split)
        if wanted is not None:
            rows = rows.filter(pa.array(is_among(rows.column("content"), wanted)))
        yield from zip(rows.column("content").to_pylist(), rows.column("face_id").to_pylist(), strict=True)


def write_sheet(revision: Revision, out: Path, pairs: pa.Table, title: str) -> None:
    """Writes a page of its own with the pictures of each pair side by side; what is there already is a ConfigError."""
    refuse_link(out)
    if out.exists():
        raise ConfigError(f"{out} is there already; name another place with --sheet, or remove it")
    rows = pairs.to_pylist()
    sides = [[(row["pool"], TRAIN, row["face_id"]), _other(row)] for row in rows]
    wanted = defaultdict[tuple[str, str], dict[str, None]](dict)
    for dataset, split, face_id in (face for pair in sides for face in pair):
        wanted[dataset, split][face_id] = None
    pictures = {
        (dataset, split, face_id): picture
        for (dataset, split), names in wanted.items()
        for face_id, picture in zip(names, _read_pictures(revision, dataset, split, list(names)), strict=True)
    }
    figures = [_figure(row, [pictures[face] for face in pair]) for row, pair in zip(rows, sides, strict=True)]
    name = escape(one_line(title))
    write_text(out, PAGE.format(policy=POLICY, style=STYLE, title=name, figures="".join(figures)))


def _other(row: dict[str, Any]) -> tuple[str, str, str]:
    return row["other_set"], row["other_split"], row["other_face_id"]


def _read_pictures(revision: Revision, dataset: str, split: str, names: list[str]) -> list[bytes]:
    folder = revision.path(f"data/faces/{dataset}", f"{split}/part-*.parquet") / split
    return read_crops(folder, pa.array(names, pa.string()), f"faces of {dataset}", "run: dvc repro align")


def _figure(row: dict[str, Any], pictures: list[bytes]) -> str:
    names = [f"{row['pool']}: {row['face_id']}", f"{row['other_set']}, {row['other_split']}: {row['other_face_id']}"]
    shown = [escape(one_line(name)) for name in names]
    images = "".join(f'<img alt="{name}" src="{_link(one)}">' for name, one in zip(shown, pictures, strict=True))
    told = escape(one_line(f"{row['kind']}, {row['bits']} bits; {row['outcome']}"))
    return (
        f"<figure>{images}<figcaption>{told}{''.join(f'<bdi>{name}</bdi>' for name in shown)}</figcaption></figure>\n"
    )


def _link(picture: bytes) -> str:
    kind = next((kind for magic, kind in MAGIC.items() if picture.startswith(magic)), "jpg")
    return f"data:image/{kind.replace('jpg', 'jpeg')};base64,{base64.b64encode(picture).decode()}"
