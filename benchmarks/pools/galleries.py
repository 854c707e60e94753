"""Write a gallery of generated faces, mined in two versions, in the files that `mined gallery` writes."""

import base64
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from fer_pipeline.artifacts.faces import encode
from fer_pipeline.inspection import sheets
from fer_pipeline.inspection.gallery import FILES, TEMPLATES, write_verdicts

CLASSES = ("anger", "disgust", "fear", "happiness", "neutral", "sadness", "<b>surprise</b>")
POOLS = ("street", 'gar"den')
GONE, ANCHORS = 1_000, 64
HOSTILE = '<img src=x onerror="hacked=1">\'"&amp;' + "long" * 75
BEFORE = "v1 <script>hacked=1</script>"
SAME, ADDED, RELABELLED, MOVED, REMOVED = range(5)  # in `sheets.STATUS`
NUM_DETAILS = 8  # files of them in each list; the rest of 1 GB is not looked at


def write_gallery(folder: Path, *, per_class: int, seed: int) -> dict[str, Any]:
    """Writes a gallery of mined faces of noise, compared with another; returns what its pages must show."""
    random = np.random.default_rng(seed)
    noise = random.integers(0, 256, (3, 96, 96, 3), np.uint8).repeat(10, 1).repeat(10, 2)
    made: dict[str, list[bytes]] = {}
    for letter, side, across in (sheets.TILES, sheets.WALL):
        made[letter] = [encode(one[: side * across, : side * across], quality=80) for one in noise]
    assert min(map(len, made["t"])) > 40_000, "a sheet of photographs has 40 kB"
    picture = f"data:image/jpeg;base64,{encoded(encode(noise[0][:112, :112]))}"
    keys = [(f"{kind}-{n}", kind, n) for kind in ("mined", "gone") for n in range(len(CLASSES))]
    lists, expected, relabels = [], {}, set()
    for key, kind, number in [*keys, ("mined-anchor", "anchor", 0)]:
        count, label = {"mined": per_class, "gone": GONE, "anchor": ANCHORS}[kind], CLASSES[number]
        lists.append({"key": key, "kind": kind, "label": "" if kind == "anchor" else label, "count": count})
        columns = make_columns(random, kind, number, count)
        if kind == "mined":
            relabels.add((CLASSES[(number + 2) % 7], label))
            expected[label] = expect(columns, number)
        texts = {name: encoded(values.astype(sheets.COLUMNS[name]).tobytes()) for name, values in columns.items()}
        sheets.write_script(folder / key / "rows.js", f"{key}/rows", texts)
        names, contents = [f"{key}/{row}" if row else HOSTILE for row in range(count)], random.bytes(16 * count)
        about = {"face_id": names, "content": encoded(contents)}
        sheets.write_script(folder / key / "names.js", f"{key}/names", about)
        for letter, _, across in (sheets.TILES, sheets.WALL):
            for place in range(-(-count // across**2)):
                (folder / key / f"{letter}{place:04d}.jpg").write_bytes(made[letter][place % 3])
        face = {
            "picture": picture, "size": [112, 112], "landmarks": [30.0] * 10, "score": 0.5, "source": HOSTILE,
            "subject": None, "cosines": [0.5, -0.5, 0.1, 0.2, 0.3, 0.4, None], "anchors": [[n, 0.9] for n in range(6)],
        }  # fmt: skip
        for place in range(min(NUM_DETAILS, count // 16)):
            rows = range(16 * place, 16 * place + 16)
            details = [
                face | {"face_id": names[row], "content": contents[16 * row : 16 * row + 16].hex()} for row in rows
            ]
            sheets.write_script(folder / key / f"d{place:04d}.js", f"{key}/d{place:04d}", details)
    counted = ("before", "after", "added", "removed", "relabelled_to", "relabelled_from", "moved", "unchanged")
    cause = {"kind": "parameter", "name": HOSTILE, "stages": "mine", "before": "0.2", "after": "0.3"}
    changes = [{"class": name, **dict.fromkeys(counted, 1)} for name in CLASSES]
    index = {
        "title": "v2", "classes": CLASSES, "names": [*CLASSES, "mixed"], "pools": POOLS, "lists": lists, "notes": [],
        "chosen": "", "rule": "margin", "labels": CLASSES, "status": sheets.STATUS, "columns": sheets.COLUMNS,
        "sheets": {"tiles": sheets.TILES, "wall": sheets.WALL},
        "project": "0" * 16, "lineage": {"mined": {"data/mined": "0" * 32}, "gone": {}},
        "compare": {"title": BEFORE, "causes": [cause], "counts": changes, "relabelled": sorted(relabels)},
    }  # fmt: skip
    sheets.write_script(folder / "index.js", "index", index)
    write_verdicts(folder / "verdicts.js", [])
    for name in FILES:
        shutil.copy(TEMPLATES / name, folder / name)
    return {"classes": expected, "per_class": per_class, "gone": GONE, "hostile": HOSTILE, "before": BEFORE}


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def make_columns(random: np.random.Generator, kind: str, number: int, count: int) -> dict[str, np.ndarray]:
    margin = np.sort(random.uniform(0.2, 0.9, count).astype(np.float32))[::-1]
    columns = {
        "margin": margin, "cosine": random.permutation(margin), "rank": np.arange(1, count + 1),
        "label": np.full(count, number), "pool": random.integers(0, 2, count),
        "truth": random.choice([number, number, (number + 1) % 7, 7], count),
    }  # fmt: skip
    if kind == "gone":
        columns["status"] = np.full(count, REMOVED)
    if kind == "mined":
        status = random.choice([SAME, ADDED, RELABELLED, MOVED], count, p=[0.2, 0.1, 0.02, 0.68])
        other = np.where(status == RELABELLED, (number + 2) % 7, number)
        columns |= {"status": status, "before": np.where(status == ADDED, sheets.NONE, other)}
        columns |= {"before_rank": random.permutation(count), "before_margin": margin}
    return columns


def expect(columns: dict[str, np.ndarray], number: int) -> dict[str, Any]:
    margin, pool, status = (columns[name] for name in ("margin", "pool", "status"))
    return {
        "pool": int((pool == 0).sum()),
        "truth": int((columns["truth"] == number).sum()),
        "added": int((status == ADDED).sum()),
        "relabelled": int((status == RELABELLED).sum()),
        "between": int(((margin >= 0.5) & (margin <= 0.6)).sum()),
        "most": f"{margin[0]:.3f}",
        "best_in_pool": f"{margin[pool == 0][0]:.3f}",
    }
