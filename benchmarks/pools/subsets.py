"""Write a project with committed versions of a large mined subset, under git and in DVC's cache, without running DVC.

The lock holds further stages, as that of a whole project does, since to parse it is part of every answer.
"""

import hashlib
import json
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from benchmarks.pools.faces import CROP, Plan, write_faces
from fer_pipeline.artifacts.embeddings import write_embeddings
from fer_pipeline.artifacts.faces import face_schema, write_shard
from fer_pipeline.artifacts.scores import HELDOUT, Centroids, score_batch, score_schema, write_centroids, write_scores
from fer_pipeline.core.expressions import BASIC_7
from fer_pipeline.core.settings import ProjectSettings
from fer_pipeline.scoring.engines import rank_classes
from fer_pipeline.stages import mine

POOL, ANCHOR, SHARD_ROWS = "street", "studio", 5000
OTHER_STAGES, FILES_EACH = 60, 16  # about 100 KB
DRAWN = 200  # portraits


def write_project(folder: Path, *, rows: int, margins: Sequence[float], seed: int) -> list[int]:
    """Writes scores of `rows` pool faces and a commit for each margin; returns how many faces each one mined."""
    random = np.random.default_rng(seed)
    names = [f"{POOL}/{number}.jpg" for number in range(rows)]
    place = folder / "data/scores" / POOL
    for file, faces, is_known in (("part-00000.arrow", names, False), (HELDOUT, names[:2000], True)):
        label = random.integers(0, len(BASIC_7), len(faces))
        cosine = 0.3 * np.eye(len(BASIC_7))[label] + 0.1 * random.standard_normal((len(faces), len(BASIC_7)))
        cosine = np.clip(cosine, -1, 1).astype(np.float32)
        nearest, margin = rank_classes(cosine)
        schema = score_schema(BASIC_7, labelled=is_known)
        columns = {"cosine": cosine, "nearest": nearest, "margin": margin, "label": label if is_known else None}
        write_scores(place / file, schema, [score_batch(schema, face_id=pa.array(faces), **columns)])
    write_centroids(place, Centroids(np.eye(len(BASIC_7)), np.full(len(BASIC_7), 100), BASIC_7))
    labelled = f"data/faces/{ANCHOR}/train"
    recipe = {"strategy": "supervised", "sources": {"labelled": labelled}, "deps": [labelled] * 3}
    sets = {name: {"adapter": "csv", "path": f"raw/{name}"} for name in (POOL, ANCHOR)}
    params: dict[str, Any] = {
        "classes": list(BASIC_7), "seeds": [0], "anchor": ANCHOR, "train": ANCHOR, "pools": [POOL], "targets": [ANCHOR],
        "datasets": sets, "recipes": {"baseline": recipe},
    }  # fmt: skip
    (folder / ".dvc").mkdir()
    (folder / ".dvc/config").write_text("[core]\n    analytics = false\n")
    (folder / ".gitignore").write_text("/data\n/reports\n/.dvc/cache\n")
    _git(folder, "init", "--quiet", "--initial-branch=main")
    others = {f"other@{number}": _stage(f"other/{number}", FILES_EACH) for number in range(OTHER_STAGES)}
    kept = []
    for margin in margins:
        settings = {"by": "margin", "value": margin}
        project = ProjectSettings.model_validate(params)
        summary = mine.run(mine.Config(**settings), project, scores=place.parent, out=folder / "data/mined")
        kept.append(int(summary.counts["kept"]))
        stages = others | {
            f"score@{POOL}": _stage("score", 4) | {"outs": [_store(folder, f"data/scores/{POOL}")]},
            "mine": _stage("mine", 12)
            | {"params": {"params.yaml": {"mine": settings}}, "outs": [_store(folder, "data/mined")]},
        }
        (folder / "dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": stages}, sort_keys=False))
        (folder / "params.yaml").write_text(yaml.safe_dump(params | {"mine": settings}))
        _git(folder, "add", "--all")
        _git(folder, "commit", "--quiet", "-m", f"margin {margin}")
    return kept


def _stage(name: str, files: int) -> dict[str, Any]:
    """What a lock says of a stage: its command, and files that it depends on."""
    paths = [f"fer_pipeline/{name}/{number}.py" for number in range(files)]
    deps = [{"path": path, "hash": "md5", "md5": _md5(path.encode()), "size": len(path)} for path in paths]
    return {"cmd": f"python -m fer_pipeline {name}", "deps": deps}


def _store(folder: Path, path: str) -> dict[str, Any]:
    """Puts a folder into the cache, and returns what a lock says of it."""
    files = {file.name: file.read_bytes() for file in sorted((folder / path).iterdir())}
    entries = [{"md5": _md5(data), "relpath": name} for name, data in files.items()]
    listed = json.dumps(entries, sort_keys=True).encode()
    objects = [*((_md5(data), data) for data in files.values()), (f"{_md5(listed)}.dir", listed)]
    for name, data in objects:
        place = folder / ".dvc/cache/files/md5" / name[:2] / name[2:]
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)
    size = sum(map(len, files.values()))
    return {"path": path, "hash": "md5", "md5": f"{_md5(listed)}.dir", "size": size, "nfiles": len(files)}


def _md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def _git(folder: Path, *words: str) -> None:
    who = ["-c", "user.name=Someone", "-c", "user.email=someone@localhost", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", *who, *words], cwd=folder, check=True, capture_output=True)


def write_pictures(folder: Path, *, rows: int, pictures: int, anchors: int, dimensions: int, seed: int) -> None:
    """Adds what a gallery shows: crops, of which there are `pictures` different ones, and embeddings of all faces."""
    drawn = folder / "drawn"
    write_faces(drawn, Plan("drawn", pictures, min(DRAWN, pictures), seed), workers=1, advance=lambda _: None)
    faces = pa.concat_tables(pq.read_table(path) for path in sorted(drawn.glob("train/*.parquet")))
    shutil.rmtree(drawn)
    schema, random = face_schema(BASIC_7, crop=CROP, border="reflect", format="jpeg"), np.random.default_rng(seed)
    for name, number, form in ((POOL, rows, f"{POOL}/{{}}.jpg"), (ANCHOR, anchors, f"{ANCHOR}/{{}}.jpg")):
        for part, start in enumerate(range(0, number, SHARD_ROWS)):
            places = np.arange(start, min(start + SHARD_ROWS, number))
            names = pa.array([form.format(place) for place in places])
            labels = pa.array(places % len(BASIC_7) if name == ANCHOR else [None] * len(places), pa.int64())
            table = faces.take(pa.array(places % pictures)).set_column(0, faces.schema.field(0), names)
            column = faces.column_names.index("label")
            table = table.set_column(column, faces.schema.field(column), labels)
            write_shard(folder / f"data/faces/{name}/train/part-{part:05d}.parquet", table.cast(schema))
            vectors = random.standard_normal((len(places), dimensions)).astype(np.float16)
            place = folder / f"data/embeddings/{name}/part-{part:05d}.arrow"
            place.parent.mkdir(parents=True, exist_ok=True)
            write_embeddings(place, [(names, vectors)], dimensions=dimensions, model="0", shard=f"{part}")
