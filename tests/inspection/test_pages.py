"""The pages of a gallery of 150,000 generated faces, driven in Chromium by `gallery_pages.cjs`.

Of the package `playwright` the tests use node and its JavaScript alone; the browser is the machine's `chromium`.
"""

import json
import os
import shutil
import subprocess
import threading
from pathlib import Path

import playwright
import pytest

from benchmarks.pools.galleries import CLASSES, HOSTILE, write_gallery
from fer_pipeline.artifacts.review import Judgement, merge_reviews, parse_review
from fer_pipeline.inspection import sheets
from fer_pipeline.inspection.view import serve

SCRIPT = Path(__file__).with_name("gallery_pages.cjs")
DRIVER = Path(playwright.__file__).with_name("driver")  # node, and the package that the script takes


def test_the_pages_show_150000_faces(tmp_path: Path) -> None:
    """First screen within 5 MB; paging, filters, a face, keys, ranges, verdicts, tabs, compare, addresses, phone."""
    if (chromium := shutil.which("chromium")) is None:
        pytest.skip("no chromium on the PATH; install it, on Debian with: apt-get install chromium")
    node = subprocess.run([DRIVER / "node", "--version"], capture_output=True, text=True, check=False)
    if node.returncode:
        pytest.skip(f"playwright's node does not run: {node.stderr.strip()}; on Debian: apt-get install libatomic1")
    shots = Path(os.environ.get("FER_SCREENSHOTS", tmp_path / "shots"))
    folder, posts, kept = tmp_path / "site", list[list[Judgement]](), list[Judgement]()
    expected = write_gallery(folder, per_class=21_429, seed=0)

    def merge(data: bytes) -> str:
        posts.append(parse_review(data, "posted", classes=CLASSES))
        kept[:] = merge_reviews(kept, posts[-1])
        return f"{len(posts[-1])} verdicts saved, {len(kept)} kept"

    with serve(folder, 0, merge=merge, verdicts=lambda: sheets.script("verdicts", kept)) as (server, address):
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        words = {"address": address, "file": (folder / "index.html").as_uri(), "shots": str(shots), **expected}
        words |= {"chromium": chromium, "playwright": str(DRIVER / "package")}
        (tmp_path / "words.json").write_text(json.dumps(words))
        command = [DRIVER / "node", SCRIPT, tmp_path / "words.json"]
        told = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
        server.shutdown()
        thread.join()
    shutil.rmtree(folder)  # 1 GB, which pytest would keep for three runs
    assert told.returncode == 0, told.stderr[-4000:] + told.stdout[-2000:]
    measured = json.loads(told.stdout.splitlines()[-1])
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
