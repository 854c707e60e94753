"""The pages of a gallery of 150,000 generated faces and of one with a list, driven in Chromium by `gallery_pages.cjs`.

Of the package `playwright` the tests use node and its JavaScript alone; the browser is the machine's `chromium`.
"""

import csv
import hashlib
import json
import os
import shutil
import subprocess
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import playwright
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.pools.galleries import CLASSES, HOSTILE, write_gallery
from fer_pipeline.artifacts.mined import mined_schema
from fer_pipeline.artifacts.review import HEADER, Judgement, merge_reviews, parse_review
from fer_pipeline.inspection import sheets
from fer_pipeline.inspection.view import serve
from tests.inspection.conftest import CLASSES as THREE
from tests.inspection.conftest import POOLS, Project, crops_of
from tests.project import project_settings

SCRIPT = Path(__file__).with_name("gallery_pages.cjs")
DRIVER = Path(playwright.__file__).with_name("driver")  # node, and the package that the script takes


def drive(
    tmp_path: Path, site: Path, classes: tuple[str, ...], expected: dict[str, Any]
) -> tuple[dict[str, Any], list[list[Judgement]], list[Judgement]]:
    """Serves a gallery and drives its pages; returns what they measured, what they posted, and what was kept of it."""
    if (chromium := shutil.which("chromium")) is None:
        pytest.skip("no chromium on the PATH; install it, on Debian with: apt-get install chromium")
    node = subprocess.run([DRIVER / "node", "--version"], capture_output=True, text=True, check=False)
    if node.returncode:
        pytest.skip(f"playwright's node does not run: {node.stderr.strip()}; on Debian: apt-get install libatomic1")
    shots = Path(os.environ.get("FER_SCREENSHOTS", tmp_path / "shots"))
    posts, kept = list[list[Judgement]](), list[Judgement]()

    def merge(data: bytes) -> str:
        posts.append(parse_review(data, "posted", classes=classes))
        kept[:] = merge_reviews(kept, posts[-1])
        return f"{len(posts[-1])} verdicts saved, {len(kept)} kept"

    def judged() -> bytes:
        return sheets.script("verdicts", kept) + sheets.script("labels", classes)

    with serve(site, 0, merge=merge, verdicts=judged) as (server, address):
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        words = {"address": address, "file": (site / "index.html").as_uri(), "shots": str(shots), **expected}
        words |= {"chromium": chromium, "playwright": str(DRIVER / "package")}
        (tmp_path / "words.json").write_text(json.dumps(words))
        command = [DRIVER / "node", SCRIPT, tmp_path / "words.json"]
        told = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
        server.shutdown()
        thread.join()
    assert told.returncode == 0, told.stderr[-4000:] + told.stdout[-2000:]
    return json.loads(told.stdout.splitlines()[-1]), posts, kept


def test_the_pages_show_150000_faces(tmp_path: Path) -> None:
    """First screen within 5 MB; paging, filters, a face, keys, ranges, verdicts, tabs, compare, addresses, phone."""
    site = tmp_path / "site"
    try:
        measured, posts, kept = drive(tmp_path, site, CLASSES, write_gallery(site, per_class=21_429, seed=0))
    finally:
        shutil.rmtree(site)  # 1 GB, which pytest would keep for three runs
    for name in ("served", "from_disk"):
        assert measured[name]["bytes"] < 5_000_000, measured
        assert measured[name]["requests"] < 20, measured  # of a page, its 6 scripts and styles, and sheets of 16 faces
    said = [[(row.verdict, row.label, row.who) for row in rows] for rows in posts]
    assert sorted(said[0]) == [("other", "fear", "Ann")] + [("wrong", "anger", "Ann")] * 10
    assert said[1:4] == [[("right", "anger", "Ann")], [("withdrawn", "", "Ann")], [("withdrawn", "", "Ann")] * 2]
    assert [sorted(rows) for rows in said[4:]] == [[("wrong", "anger", "Ann"), ("wrong", "fear", "Ann")]]
    assert {row.face_id for row in kept} == {f"mined-0/{row}" for row in (*range(2, 11), 20)} | {"mined-2/21"}
    posted = posts[0]
    assert HOSTILE in {row.face_id for row in posted}
    downloaded = parse_review((tmp_path / "review.csv").read_bytes(), "downloaded", classes=CLASSES)
    assert downloaded == posted


def test_a_list_is_judged_beside_a_revision_with_another_class(
    made: Project, copy: Path, say: Callable[..., str], tmp_path: Path
) -> None:
    """States of listed faces; a class of before; late names; shrinking ranges; faces that are not there; no cookies."""
    settings = project_settings(classes=THREE, pools=tuple(POOLS)).model_dump(mode="json")
    (copy / "params.yaml").write_text(json.dumps(settings))
    was, now = mine_contempt(copy / "data/mined"), {(row["pool"], row["face_id"]): row for row in made.rows["v3"]}
    listed, status, removed = copy / "list.csv", Counter[str](), dict[str, str]()
    with listed.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(HEADER.split(","))
        for pool in POOLS:
            for name, row in crops_of(copy, pool).items():
                content = hashlib.blake2b(row["image"]["bytes"], digest_size=16).hexdigest()
                writer.writerow([name, pool, content, "", "", "", "", ""])
                old, new = was.get((pool, name)), now.get((pool, name))
                status[
                    ("not mined" if not old else "removed") if not new
                    else "added" if not old
                    else "relabelled" if old["label"] != new["label"]
                    else "moved" if old["rank"] != new["rank"]
                    else "same"
                ] += 1  # fmt: skip
                if old and not new:
                    removed[name] = old["label"]
    assert status.keys() == {*sheets.STATUS, "not mined"}
    say("gallery", "--rev", "v3", "--compare", "workspace", "--faces", str(listed), "--out", str(tmp_path / "site"))
    say("gallery", "--rev", "v3", "--out", str(tmp_path / "site/plain"))
    lists = json.loads((tmp_path / "site/index.js").read_text()[len('gallery.take("index",') : -2])["lists"]
    expected = {"status": status, "listed": status.total(), "removed": removed}
    expected["anger"] = sum(row["label"] == "anger" for row in now.values())
    expected["total"] = sum(one["count"] for one in lists)
    _, posts, _ = drive(tmp_path, tmp_path / "site", THREE, expected)
    said = [sorted((row.verdict, row.label, row.who) for row in rows) for rows in posts]
    assert said == [[("other", "fear", "Ann")], [("right", "fear", "Ann"), *[("wrong", "fear", "Ann")] * 2]]


def mine_contempt(folder: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """Writes the faces of `data/mined` as mined with one more class before the others, and returns them."""
    classes, path = ("contempt", *THREE), folder / "mined.parquet"
    rows = [row | {"label": row["label"] + 1} for row in pq.read_table(path).to_pylist()]
    rows = [row for number, row in enumerate(rows) if (number + 1) % 5]
    for row in rows[3::6]:
        row["label"] = 0
    rows.sort(key=lambda row: row["label"])
    for label in range(4):
        for rank, row in enumerate((row for row in rows if row["label"] == label), 1):
            row["rank"] = rank
    path.unlink()  # it may be a link to what DVC keeps
    pq.write_table(pa.Table.from_pylist(rows, schema=mined_schema(classes)), path)
    text = (folder / "summary.json").read_text()
    summary = json.loads(text, object_hook=lambda one: one | ({"contempt": one["anger"]} if "anger" in one else {}))
    (folder / "summary.json").unlink()
    (folder / "summary.json").write_text(json.dumps(summary | {"classes": classes}))
    return {(row["pool"], row["face_id"]): row | {"label": classes[row["label"]]} for row in rows}
