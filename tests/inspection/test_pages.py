"""The pages of a gallery of 150,000 generated faces, driven in Chromium by `gallery_pages.cjs`.

It needs `node`, `chromium` and the npm package `playwright-core` (found by NODE_PATH, or in a node_modules above).
"""

import base64
import json
import os
import shutil
import subprocess
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fer_pipeline.artifacts.faces import encode
from fer_pipeline.artifacts.review import Judgement, parse_review
from fer_pipeline.inspection import sheets
from fer_pipeline.inspection.gallery import FILES, TEMPLATES, write_verdicts
from fer_pipeline.inspection.view import serve

SCRIPT = Path(__file__).with_name("gallery_pages.cjs")
CLASSES = ("anger", "disgust", "fear", "happiness", "neutral", "sadness", "<b>surprise</b>")
POOLS = ("street", 'gar"den')
PER_CLASS, GONE, ANCHORS = 21_429, 1_000, 64
HOSTILE = '<img src=x onerror="hacked=1">\'"&amp;' + "long" * 75
BEFORE = "v1 <script>hacked=1</script>"
NUM_DETAILS = 8  # files of them in each list; the rest of 1 GB is not looked at


def find_browser() -> dict[str, str] | str:
    """The environment for the script, or why there is none."""
    if missing := [name for name in ("node", "chromium") if shutil.which(name) is None]:
        return f"no {' and no '.join(missing)} on the PATH"
    found = subprocess.run(["node", "-e", "require('playwright-core')"], capture_output=True, cwd=SCRIPT.parent)
    if found.returncode:
        return "node finds no playwright-core; install it with npm and set NODE_PATH to its node_modules"
    return {**os.environ, "CHROMIUM": str(shutil.which("chromium"))}


def make_site(folder: Path) -> dict[str, Any]:
    """Writes a gallery of 150,000 mined faces of noise, compared with another; returns what its pages must show."""
    random = np.random.default_rng(0)
    coarse = random.integers(0, 256, (3, 96, 96, 3), np.uint8).repeat(10, 1).repeat(10, 2)
    made = {
        sheet.letter: [encode(noise[: sheet.side * sheet.across, : sheet.side * sheet.across], quality=80) for noise in coarse]
        for sheet in (sheets.TILES, sheets.WALL)
    }  # fmt: skip
    assert min(map(len, made["t"])) > 40_000, "a sheet of photographs has 40 kB"
    picture = f"data:image/jpeg;base64,{base64.b64encode(encode(coarse[0][:112, :112])).decode()}"
    names = {name: number for number, name in enumerate([*CLASSES, "mixed"])}
    lists, expected = [], {}
    same, added, relabelled, moved, removed = range(5)
    relabels = set()
    for kind, count in (("mined", PER_CLASS), ("gone", GONE), ("mined-anchor", ANCHORS)):
        for number, label in enumerate(CLASSES if kind != "mined-anchor" else [""]):
            key = kind if kind == "mined-anchor" else f"{kind}-{number}"
            lists.append({"key": key, "kind": kind.rpartition("-")[2], "label": label, "count": count})
            margin = np.sort(random.uniform(0.2, 0.9, count).astype(np.float32))[::-1]
            pool, truth = random.integers(0, 2, count), random.choice([number, number, (number + 1) % 7, 7], count)
            status = random.choice([same, added, relabelled, moved], count, p=[0.2, 0.1, 0.02, 0.68])
            before = np.where(status == added, sheets.NONE, np.where(status == relabelled, (number + 2) % 7, number))
            columns = {
                "margin": margin, "cosine": random.permutation(margin), "rank": np.arange(1, count + 1),
                "label": np.full(count, number), "pool": pool, "truth": truth,
            }  # fmt: skip
            if kind == "mined":
                columns |= {
                    "status": status,
                    "before": before,
                    "before_rank": random.permutation(count),
                    "before_margin": margin,
                }
                relabels.add((CLASSES[(number + 2) % 7], label))
                expected[label] = {
                    "pool": int((pool == 0).sum()), "truth": int((truth == number).sum()), "added": int((status == added).sum()),
                    "relabelled": int((status == relabelled).sum()), "most": f"{margin[0]:.3f}",
                    "best_in_pool": f"{margin[pool == 0][0]:.3f}", "between": int(((margin >= 0.5) & (margin <= 0.6)).sum()),
                }  # fmt: skip
            elif kind == "gone":
                columns |= {"status": np.full(count, removed)}
            encoded = {name: base64.b64encode(np.asarray(values).astype(sheets.COLUMNS[name]).tobytes()).decode() for name, values in columns.items()}  # fmt: skip
            sheets.write_script(folder / key / "rows.js", f"{key}/rows", encoded)
            contents = random.bytes(16 * count)
            face_ids = [HOSTILE if not row else f"{key}/{row}" for row in range(count)]
            about = {"face_id": face_ids, "content": base64.b64encode(contents).decode()}
            sheets.write_script(folder / key / "names.js", f"{key}/names", about)
            for sheet in (sheets.TILES, sheets.WALL):
                for place in range(-(-count // sheet.across**2)):
                    (folder / key / f"{sheet.letter}{place:04d}.jpg").write_bytes(made[sheet.letter][place % 3])
            for place in range(min(NUM_DETAILS, count // 16)):
                details = [
                    {
                        "picture": picture, "size": [112, 112], "face_id": face_ids[row], "landmarks": [30.0] * 10, "score": 0.5,
                        "source": HOSTILE, "subject": None, "content": contents[16 * row : 16 * row + 16].hex(),
                        "cosines": [0.5, -0.5, 0.1, 0.2, 0.3, 0.4, None], "anchors": [[n, 0.9] for n in range(6)],
                    }
                    for row in range(16 * place, 16 * place + 16)
                ]  # fmt: skip
                sheets.write_script(folder / key / f"d{place:04d}.js", f"{key}/d{place:04d}", details)
    counts = {"before": PER_CLASS, "after": PER_CLASS, "added": 1, "removed": GONE, "relabelled_to": 1, "relabelled_from": 1, "moved": 1, "unchanged": 1}  # fmt: skip
    index = {
        "title": "v2", "classes": CLASSES, "names": list(names), "pools": POOLS, "lists": lists, "notes": [], "chosen": "",
        "rule": "margin", "margins": {}, "precision": {}, "status": sheets.STATUS, "columns": sheets.COLUMNS,
        "sheets": {"tiles": sheets.TILES, "wall": sheets.WALL}, "lineage": {"mined": {"data/mined": "0" * 32}, "gone": {}},
        "compare": {"title": BEFORE, "causes": [{"kind": "parameter", "name": HOSTILE, "stages": "mine", "before": "0.2", "after": "0.3"}],
                    "counts": [{"class": name, **counts} for name in CLASSES], "relabelled": sorted(relabels)},
    }  # fmt: skip
    sheets.write_script(folder / "index.js", "index", index)
    write_verdicts(folder / "verdicts.js", [])
    for name in FILES:
        shutil.copy(TEMPLATES / name, folder / name)
    return {
        "classes": expected,
        "per_class": PER_CLASS,
        "gone": GONE,
        "hostile": HOSTILE,
        "before": BEFORE,
        "total": 7 * PER_CLASS,
    }


def test_the_pages_show_150000_faces(tmp_path: Path) -> None:
    """First screen within 2 s and 5 MB; paging, filters, a face, keys, ranges, verdicts, compare, addresses, a phone."""
    environment = find_browser()
    if isinstance(environment, str):
        pytest.skip(environment)
    shots = Path(os.environ.get("FER_SCREENSHOTS", tmp_path / "shots"))
    folder, posted = tmp_path / "site", list[Judgement]()
    expected = make_site(folder)

    def merge(data: bytes) -> str:
        posted.extend(parse_review(data, "posted", classes=CLASSES))
        return f"{len(posted)} verdicts saved"

    with serve(folder, 0, merge=merge, verdicts=(folder / "verdicts.js").read_bytes) as (server, address):
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        words = {"address": address, "file": (folder / "index.html").as_uri(), "shots": str(shots), **expected}
        (tmp_path / "words.json").write_text(json.dumps(words))
        command = ["node", str(SCRIPT), str(tmp_path / "words.json")]
        told = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
        server.shutdown()
        thread.join()
    assert told.returncode == 0, told.stderr[-4000:] + told.stdout[-2000:]
    measured = json.loads(told.stdout.splitlines()[-1])
    for name in ("served", "from_disk"):
        assert measured[name]["bytes"] < 5_000_000, measured
        assert measured[name]["seconds"] < 2, measured
    assert [(row.verdict, row.label, row.who) for row in posted] == [("wrong", "anger", "Ann")] * 10 + [
        ("other", "fear", "Ann")
    ]
    assert posted[0].face_id == HOSTILE
    downloaded = parse_review((tmp_path / "review.csv").read_bytes(), "downloaded", classes=CLASSES)
    assert downloaded == posted
