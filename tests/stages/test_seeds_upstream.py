"""Stages that run for each seed: the bytes of a walk of that seed alone, and no seed reads what another one made.

The walks that they are compared with are of one seed and know of no other; they divide the anchor as the nested one
does. What is mined is also found by brute force from the weights of each learner.
"""

import hashlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fer_pipeline.artifacts import seed_folders
from fer_pipeline.artifacts.distilled import read_distilled
from fer_pipeline.artifacts.faces import decode_crop, read_table
from fer_pipeline.artifacts.metrics import read_predictions
from fer_pipeline.artifacts.split import FIT, read_split
from fer_pipeline.core.errors import DataError
from fer_pipeline.core.settings import ProjectSettings, Summary, validate
from fer_pipeline.networks.checkpoints import load_checkpoint
from fer_pipeline.stages import distill, embed, evaluate, mine, score, shard, train_final, train_primitive
from fer_pipeline.training import seeds as training_module
from tests.project import project_settings, recipe_settings
from tests.stages.conftest import BANDS

NETWORK = {"width": 4}
TRAINING = {"epochs": 2, "batch": 16, "optimizer": {"learning_rate": 0.02}}
FINAL = {"network": NETWORK, "training": TRAINING, "validation": 0.1}
PARTS = {"validation": 0.1, "heldout": 0.3}
POOLS = ("street", "film")
PER_CLASS = 5
DISTILL = {
    "outer_epochs": 2,
    "save_every": 1,
    "epochs": 1,
    "batch_size": 8,
    "controls": {"draws": 1, "steps": 1, "bootstrap": 100},
    "probe": {"moments": 2, "epochs": 1, "seeds": 1},
}
SOURCES = {
    "labelled": Path("data/faces/studio/train"),
    "mined": Path("data/auxiliary"),
    "distilled": Path("data/distilled"),
}
FOLDERS = {  # whose files are those of one seed
    "models/primitive",
    *(f"data/embeddings/{name}" for name in ("studio", *POOLS)),
    *(f"data/{kind}/{pool}" for kind in ("scores", "auxiliary", "control") for pool in POOLS),
    "data/mined",
    "data/distilled/auxiliary",
}
STAGES = ("train_primitive", "embed", "score", "mine", "shard", "distill", "train_final")
Walk = Callable[..., dict[str, Summary]]


def settings_of(seeds: Sequence[int]) -> ProjectSettings:
    recipes = {"both": recipe_settings(SOURCES)}
    final = {"network": NETWORK}
    return project_settings(classes=BANDS, seeds=tuple(seeds), pools=POOLS, recipes=recipes, train_final=final)


def walk(
    seeds: Sequence[int], *, every: bool, stages: Sequence[str] = STAGES, store: Path = Path("store")
) -> dict[str, Summary]:
    """Runs stages in the working directory; says what each said last."""
    project, faces = settings_of(seeds), Path("data/faces")
    model, mined, said = Path("models/primitive"), Path("data/mined"), dict[str, Summary]()
    for stage in stages:
        match stage:
            case "train_primitive":
                values = {"network": NETWORK, "training": TRAINING, "split": PARTS}
                values |= {"seeds_upstream": "all"} if every else {}
                config = validate(train_primitive.Config, values, where=stage)
                said[stage] = train_primitive.run(config, project, faces=SOURCES["labelled"], out=model, store=store)
            case "embed":
                for name in ("studio", *POOLS):
                    paths = {"faces": faces / name / "train", "model": model, "out": Path("data/embeddings") / name}
                    said[stage] = embed.run(embed.Config(), project, name=name, store=store, **paths)
            case "score":
                for pool in POOLS:
                    vectors = {f"{kind}_embeddings": Path("data/embeddings") / name
                               for kind, name in (("anchor", "studio"), ("pool", pool))}  # fmt: skip
                    paths = {"model": model, "out": Path("data/scores") / pool}
                    said[stage] = score.run(score.Config(), project, pool=pool, **vectors, **paths)
            case "mine":
                config = mine.Config(by="count", value=PER_CLASS, per_class=True)
                said[stage] = mine.run(config, project, scores=Path("data/scores"), out=mined)
            case "shard":
                for pool in POOLS:
                    paths = {kind: Path("data") / where / pool
                             for kind, where in (("out", "auxiliary"), ("control", "control"))}  # fmt: skip
                    train = faces / pool / "train"
                    said[stage] = shard.run(shard.Config(), project, pool=pool, mined=mined, faces=train, **paths)
            case "distill":
                paths = {"source": SOURCES["mined"], "model": model, "out": Path("data/distilled/auxiliary")}
                config = validate(distill.Config, DISTILL, where=stage)
                said[stage] = distill.run(config, project, name="auxiliary", store=store, **paths)
            case "train_final":
                config = validate(train_final.Config, FINAL, where=stage)
                paths = {"out": Path("models/final/both"), "timings": Path("timings.json")}
                said[stage] = train_final.run(config, project, recipe="both", sources=SOURCES, store=store, **paths)
    return said


def files(folder: Path) -> dict[str, str]:
    """The hash of every file that is promised to be equal."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory, band_faces) -> Path:
    """A folder `data/faces` with the anchor, its test split, and two pools."""
    folder = tmp_path_factory.mktemp("faces")
    band_faces(folder / "studio" / "train", count=90, seed=1)
    band_faces(folder / "studio" / "test", count=30, seed=4, split="test")
    for number, pool in enumerate(POOLS):
        band_faces(folder / pool / "train", count=60, seed=2 + number)
    return folder


def make_world(folder: Path, faces: Path) -> Path:
    (folder / "data").mkdir(parents=True)
    (folder / "data" / "faces").symlink_to(faces)
    return folder


@pytest.fixture(scope="module")
def nested(tmp_path_factory: pytest.TempPathFactory, faces: Path) -> Path:
    """Both seeds, walked together."""
    folder = make_world(tmp_path_factory.mktemp("nested"), faces)
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        walk((10, 11), every=True)
    return folder


@pytest.fixture
def copied(nested: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The walk of both seeds, to be changed; its links into the store are copied too."""
    shutil.copytree(nested, tmp_path / "copied", symlinks=True)
    monkeypatch.chdir(tmp_path / "copied")
    return tmp_path / "copied"


@pytest.fixture
def plain(tmp_path: Path, faces: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], Path]:
    """Walks one seed alone in an empty folder, with the division of the anchor of seed 10."""
    partition = training_module.partition

    def call(seed: int) -> Path:
        folder = make_world(tmp_path / f"plain-{seed}", faces)
        with monkeypatch.context() as patched:
            patched.chdir(folder)
            patched.setattr(
                training_module, "partition", lambda *one, **options: partition(*one, **{**options, "seed": 10})
            )
            walk((seed,), every=False)
        return folder

    return call


@pytest.mark.parametrize("seed", [10, 11])
def test_a_seed_among_others_has_the_bytes_of_a_walk_alone(nested: Path, plain, seed: int) -> None:
    alone = plain(seed)
    for name in FOLDERS:
        own = files(alone / name)
        assert own, name
        assert files(nested / name / str(seed)) == own, name
        assert files(nested / name).keys() == {
            seed_folders.SEEDS, *(f"{one}/{file}" for one in (10, 11) for file in files(nested / name / str(one)))
        }  # fmt: skip
    assert files(nested / "models/final/both" / str(seed)) == files(alone / "models/final/both" / str(seed))
    assert not (alone / "models/primitive" / seed_folders.SEEDS).exists()


def test_the_seeds_differ_from_the_learner_on_but_not_in_the_division_of_the_anchor(nested: Path) -> None:
    for name in FOLDERS:
        one, other = (files(nested / name / str(seed)) for seed in (10, 11))
        parts = {"split.parquet"} & one.keys()
        assert all(one[file] == other[file] for file in parts)
        assert one != other, name


def test_one_seed_of_a_walk_that_was_there_costs_nothing(plain, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one seed the two ways differ by the folder alone, so that the store has all that is kept there."""
    folder = plain(10)
    before = {name: files(folder / name) for name in (*FOLDERS, "models/final/both")}
    monkeypatch.chdir(folder)
    said = walk((10,), every=True)
    assert said["train_primitive"].line.endswith("(from the store)")
    assert "trained (0)" in said["train_final"].line or "(0 trained, 1 from the store)" in said["train_final"].line
    assert said["embed"].counts["made"] == 0
    assert said["distill"].line.endswith("(from the store)")
    for name in FOLDERS:
        assert files(folder / name / "10") == before[name], name
    assert files(folder / "models/final/both") == before["models/final/both"]


def mine_by_force(root: Path, seed: int) -> dict[str, int]:
    """The faces that the learner of a seed mines, with their labels: all vectors, all cosines, all pools sorted."""
    model = load_checkpoint(root / "models/primitive" / str(seed), device="cpu")
    fit = set(np.array(read_split(root / "models/primitive" / str(seed)).face_id.to_pylist())[
        read_split(root / "models/primitive" / str(seed)).part == FIT].tolist())  # fmt: skip

    def vectors(name: str) -> tuple[list[str], np.ndarray, list[int | None]]:
        table = read_table(root / "data/faces" / name / "train", ["face_id", "image", "label"])
        images = np.stack([decode_crop(one["bytes"], "") for one in table.column("image").to_pylist()])
        found = model.features(images).astype(np.float16).astype(np.float64)
        return table.column("face_id").to_pylist(), found, table.column("label").to_pylist()

    names, anchor, labels = vectors("studio")
    chosen = np.array([name in fit for name in names])
    centroids = np.stack([anchor[chosen & (np.array(labels) == k)].mean(0) for k in range(len(BANDS))])
    centroids /= np.linalg.norm(centroids, axis=1, keepdims=True)
    rows = []
    for pool in POOLS:
        names, found, _ = vectors(pool)
        cosines = found @ centroids.T / np.linalg.norm(found, axis=1, keepdims=True)
        two = np.sort(cosines, axis=1)[:, -2:]
        rows += zip(names, cosines.argmax(1).tolist(), (two[:, 1] - two[:, 0]).tolist(), strict=True)
    mined: dict[str, int] = {}
    for k in range(len(BANDS)):
        best = sorted((row for row in rows if row[1] == k), key=lambda row: -row[2])[:PER_CLASS]
        mined |= {name: k for name, _, _ in best}
    return mined


def test_a_final_model_learns_from_what_the_learner_of_its_seed_mined(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[int, tuple[dict[str, int], bytes]] = {}
    train = training_module.train

    def spy(job: Any, sets: Any, *rest: Any) -> Any:
        mined, distilled = sets["mined"], sets["distilled"]
        pairs = dict(zip([str(name) for name in mined.face_id], mined.labels.tolist(), strict=True))
        seen[job.seed] = (pairs, distilled.all_pixels().numpy().tobytes())
        return train(job, sets, *rest)

    monkeypatch.setattr(training_module, "train", spy)
    walk((10, 11), every=True, stages=["train_final"], store=Path("another"))
    expected = {seed: mine_by_force(copied, seed) for seed in (10, 11)}
    assert expected[10] != expected[11]
    assert {seed: pairs for seed, (pairs, _) in seen.items()} == expected
    for seed, (_, images) in seen.items():
        assert images == read_distilled(copied / "data/distilled/auxiliary" / str(seed)).flat()[0].tobytes()
    assert seen[10][1] != seen[11][1]
