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
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fer_pipeline.artifacts.distilled import read_distilled
from fer_pipeline.artifacts.faces import decode_crop, read_table, shard_paths
from fer_pipeline.artifacts.mined import read_summary
from fer_pipeline.artifacts.seed_folders import SEEDS, find_files, in_set, name_in, of_seed
from fer_pipeline.artifacts.split import FIT, read_split
from fer_pipeline.artifacts.store import Store
from fer_pipeline.commands.prune import find_unused
from fer_pipeline.core.errors import DataError
from fer_pipeline.core.settings import ProjectSettings, Summary, validate
from fer_pipeline.networks.checkpoints import checkpoint_folders, load_checkpoint
from fer_pipeline.networks.settings import read_card
from fer_pipeline.stages import distill, embed, mine, score, shard, train_final, train_primitive
from fer_pipeline.training import seeds as training_module
from fer_pipeline.training.sources import Checkpoints
from tests.project import QUICK_DISTILLATION, project_settings, recipe_settings
from tests.stages.conftest import BANDS

NETWORK = {"width": 4}
TRAINING = {"epochs": 2, "batch": 16, "optimizer": {"learning_rate": 0.02}}
FINAL = {"network": NETWORK, "training": TRAINING, "validation": 0.1}
PARTS = {"validation": 0.1, "heldout": 0.3}
POOLS = ("street", "film")
PER_CLASS = 5
SOURCES = {
    "labelled": Path("data/faces/studio/train"),
    "mined": Path("data/auxiliary"),
    "distilled": Path("data/distilled"),
}
SHARDED = {"out": "auxiliary"} | {name: name for name in ("control", "second_rule", "true_labels", "reviewed")}
FOLDERS = {  # whose files are those of one seed
    "models/primitive",
    *(f"data/embeddings/{name}" for name in ("studio", *POOLS)),
    *(f"data/{kind}/{pool}" for kind in ("scores", *SHARDED.values()) for pool in POOLS),
    "data/mined",
    "data/distilled/auxiliary",
}
STAGES = ("train_primitive", "embed", "score", "mine", "shard", "distill", "train_final")


def settings_of(seeds: Sequence[int]) -> ProjectSettings:
    recipes = {"both": recipe_settings(SOURCES)}
    final = {"network": NETWORK}
    return project_settings(classes=BANDS, seeds=tuple(seeds), pools=POOLS, recipes=recipes, train_final=final)


def walk(
    seeds: Sequence[int],
    *,
    every: bool,
    refit: bool = False,
    stages: Sequence[str] = STAGES,
    store: Path = Path("store"),
) -> dict[str, Summary]:
    """Runs stages in the working directory; says what each said last."""
    project, faces = settings_of(seeds), Path("data/faces")
    model, mined, said = Path("models/primitive"), Path("data/mined"), dict[str, Summary]()
    for stage in stages:
        match stage:
            case "train_primitive":
                values = {"network": NETWORK, "training": TRAINING, "split": PARTS}
                values |= {"refit": refit} | ({"seeds_upstream": "all"} if every else {})
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
                config = mine.Config(by="count", value=PER_CLASS, per_class=True, second_rule="probability")
                said[stage] = mine.run(config, project, scores=Path("data/scores"), out=mined)
            case "shard":
                for pool in POOLS:
                    paths = {kind: Path("data") / where / pool for kind, where in SHARDED.items()}
                    paths |= {"known": Path("data/truth")}
                    train = faces / pool / "train"
                    said[stage] = shard.run(shard.Config(), project, pool=pool, mined=mined, faces=train, **paths)
            case "distill":
                paths = {"source": SOURCES["mined"], "model": model, "out": Path("data/distilled/auxiliary")}
                config = validate(distill.Config, QUICK_DISTILLATION, where=stage)
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
    (folder / "data" / "truth").mkdir()
    for pool in POOLS:
        rows = read_table(faces / pool / "train", ["face_id", "label"]).to_pylist()
        known = {"face_id": [row["face_id"] for row in rows], "dominant": [BANDS[row["label"]] for row in rows]}
        pq.write_table(pa.table(known), folder / "data" / "truth" / f"{pool}.parquet")
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


def walk_alone(seed: int) -> None:
    """Walks one seed in the working directory, with the division of the anchor of seed 10."""
    partition = training_module.partition
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(
            training_module, "partition", lambda *one, **options: partition(*one, **{**options, "seed": 10})
        )
        walk((seed,), every=False)


@pytest.fixture(scope="module", params=[10, 11])
def alone(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, faces: Path) -> tuple[int, Path]:
    """One seed, walked by itself as without the setting."""
    folder = make_world(tmp_path_factory.mktemp("alone"), faces)
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        walk_alone(request.param)
    return request.param, folder


def test_a_seed_among_others_has_the_bytes_of_a_walk_alone(nested: Path, alone: tuple[int, Path]) -> None:
    seed, folder = alone
    for name in FOLDERS:
        own = files(folder / name)
        assert own, name
        assert files(nested / name / str(seed)) == own, name
        assert {path.name for path in (nested / name).iterdir()} == {SEEDS, "10", "11"}, name
    assert files(nested / "models/final/both" / str(seed)) == files(folder / "models/final/both" / str(seed))
    assert not list(folder.rglob(SEEDS))


@pytest.mark.parametrize("alone", [10], indirect=True)  # the other walk divides the anchor by a seed that it lacks
def test_one_seed_for_itself_differs_by_the_folder_alone(
    alone: tuple[int, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that the store keeps is there already."""
    _, folder = alone
    shutil.copytree(folder, tmp_path / "again", symlinks=True)
    monkeypatch.chdir(tmp_path / "again")
    said = walk((10,), every=True)
    assert said["train_primitive"].line.endswith("(from the store)")
    assert said["embed"].counts["made"] == 0
    assert said["distill"].line.endswith("(from the store)")
    assert "(0 trained, 1 from the store)" in said["train_final"].line
    for name in FOLDERS:
        assert files(tmp_path / "again" / name / "10") == files(folder / name), name
    again = files(tmp_path / "again/models/final/both")
    assert again.pop(SEEDS)
    assert again == files(folder / "models/final/both")


def test_seeds_differ_from_the_learner_on_but_not_in_the_division_of_the_anchor(nested: Path) -> None:
    for name in FOLDERS:
        one, other = (files(nested / name / str(seed)) for seed in (10, 11))
        assert (one == other) == ("reviewed" in name), f"{name}: nobody judged"
        assert one.get("split.parquet") == other.get("split.parquet")
    starts = {
        read_card(path).training["seed"] for path in (nested / "models").rglob("*") if (path / "card.json").exists()
    }
    assert len(starts) == 4, "a final model and a labeller share their weights"


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


def test_models_of_nested_seeds_teach_their_own_seed_alone(nested: Path) -> None:
    own, source = nested / "models/final/both", Checkpoints()
    for seed in (10, 11):
        assert checkpoint_folders(source.of_seed(own, seed)) == [own / str(seed)]
        assert source.of_seed(own, seed) == Checkpoints(one=True).of_seed(own, seed)
    with pytest.raises(DataError, match=r"both holds folders of the seeds 10, 11, none for the seed 12"):
        source.of_seed(own, 12)


def shards(store: Path) -> dict[str, int]:
    """The finished shards of a store, each with what a second making would change."""
    return {path.name: path.stat().st_ino for path in store.glob("shards/*/[!.]*")}


def test_a_seed_more_is_made_and_no_other_again(copied: Path) -> None:
    before, made = shards(copied / "store"), {name: files(copied / name) for name in FOLDERS}
    said = walk((10, 11, 12), every=True)
    after = shards(copied / "store")
    assert before.items() <= after.items()
    assert said["embed"].counts == {"faces": 60, "shards": 3, "made": 1, "reused": 2, "failed": 0}
    assert [one.endswith("(from the store)") for one in said["distill"].line.split("; seed ")] == [True, True, False]
    assert "3 models (1 trained, 2 from the store)" in said["train_final"].line
    for name in FOLDERS:
        now = files(copied / name)
        assert {file: one for file, one in now.items() if file.startswith(("10/", "11/"))} == {
            file: one for file, one in made[name].items() if file != SEEDS
        }
        assert any(file.startswith("12/") for file in now)
    # Taken out again, its folders go; what the store keeps of it stays until `prune`.
    walk((10, 11), every=True)
    assert {name: files(copied / name) for name in FOLDERS} == made
    used = {one.path.name for one in find_unused(Store(copied / "store")) if one.kind == "shard"}
    assert used == after.keys() - before.keys()


def test_a_refitted_labeller_is_measured_by_the_calibration_model_of_its_seed(copied: Path) -> None:
    """That model is the learner of a walk without refitting, and so is all that is made with it alone."""
    before = {name: files(copied / name) for name in FOLDERS}
    said = walk((10, 11), every=True, refit=True, stages=STAGES[:4])
    assert said["embed"].counts["faces"] == 60
    for seed in ("10", "11"):
        for name in ("models/primitive", "data/embeddings/studio", "data/scores/street", "data/scores/film"):
            made = files(copied / name / seed / "calibration")
            assert made.keys() & {"weights.safetensors", "part-00000.arrow", "heldout.arrow"}
            assert {f"{seed}/{file}": one for file, one in made.items()}.items() <= before[name].items()
        assert (
            files(copied / "models/primitive")[f"{seed}/weights.safetensors"] not in before["models/primitive"].values()
        )
        assert read_summary(copied / "data/mined" / seed)["heldout"]["model"] == "calibration"
    assert not list((copied / "data/embeddings/street").rglob("calibration"))


KILLED = """
import os, signal
from importlib import import_module
from pathlib import Path
from tests.stages.test_seeds_upstream import walk

owner = import_module({module!r})
for part in {owner!r}.split("."):
    owner = getattr(owner, part) if part else owner
original, calls = getattr(owner, {name!r}), []

def dying(*one, **options):
    original(*one, **options)
    calls.append(1)
    if len(calls) == {calls}:
        os.kill(os.getpid(), signal.SIGKILL)

setattr(owner, {name!r}, dying)
walk((10, 11), every=True, stages=[{stage!r}], store=Path("other"))
"""


@pytest.mark.parametrize(
    ("stage", "module", "owner", "name", "calls", "kept"),
    [  # each within the second seed: after an epoch of two, while it is linked, before the summary, after an epoch
        ("train_primitive", "fer_pipeline.training.records", "Progress", "save", 3, 2),
        ("embed", "fer_pipeline.stages.embed", "Store", "link", 2, 2),
        ("mine", "fer_pipeline.stages.mine", "", "write_rows", 4, 0),
        ("distill", "fer_pipeline.distillation.loop", "", "save_state", 3, 1),
    ],
)
def test_killed_in_its_second_seed_a_stage_goes_on_exactly(
    copied: Path, root: Path, stage: str, module: str, owner: str, name: str, calls: int, kept: int
) -> None:
    expected = {folder: files(copied / folder) for folder in FOLDERS}
    script = KILLED.format(stage=stage, module=module, owner=owner, name=name, calls=calls)
    environment = {**os.environ, "PYTHONPATH": str(root)}
    killed = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    before = shards(copied / "other")
    assert len(before) == kept, "the first seed's work, finished"
    walk((10, 11), every=True, stages=[stage], store=Path("other"))
    assert before.items() <= shards(copied / "other").items(), "nothing finished is made again"
    assert {folder: files(copied / folder) for folder in FOLDERS} == expected


def test_what_belongs_to_no_seed_or_to_several_is_refused_in_one_line(copied: Path) -> None:
    run = {"store": Path("store"), "every": True}
    with pytest.raises(DataError, match=r"data/auxiliary holds folders of the seeds 10, 11, none for the seed 12; run"):
        walk((10, 12), stages=["train_final"], **run)
    with pytest.raises(DataError, match=r"holds the models 10, 11; name one of them, models/primitive/10"):
        load_checkpoint(Path("models/primitive"))
    with pytest.raises(
        DataError, match=r"data/auxiliary holds folders of the seeds 10, 11; name that of one seed, for "
    ):
        shard_paths(Path("data/auxiliary"))
    shutil.copytree("data/scores/street/10", "data/scores/old")
    with pytest.raises(
        DataError, match=r"data/scores/old holds what is for all seeds and data/scores/film folders of "
    ):
        walk((10, 11), stages=["mine"], **run)
    shutil.rmtree("data/scores/old")
    shutil.rmtree("data/embeddings/street/11")
    Path("data/embeddings/street", SEEDS).write_text('{"seeds": [10]}')
    with pytest.raises(DataError, match=r"data/embeddings/street holds folders of the seeds 10, none for the seed 11"):
        walk((10, 11), stages=["score"], **run)
    for damage in ("{", "[]", '{"seeds": []}', '{"seeds": ["../x"]}', '{"seeds": [1], "more": 2}'):
        Path("data/mined", SEEDS).write_text(damage)
        with pytest.raises(DataError, match=r"data/mined/seeds.json is n"):
            walk((10, 11), stages=["shard"], **run)


@pytest.mark.parametrize("left", ["seeds.json and more", "the first seed"])
def test_what_a_killed_run_left_is_never_read(tmp_path: Path, left: str) -> None:
    """A folder beside the finished one, whole with its list of seeds or still without: read by neither seed."""
    for name in ("street", ".street.0123abcd.tmp", ".street.0123abcd.old"):
        for seed in (10, 11):
            (tmp_path / name / str(seed)).mkdir(parents=True)
            (tmp_path / name / str(seed) / "part-00000.parquet").touch()
        if name == "street" or left == "seeds.json and more":
            (tmp_path / name / SEEDS).write_text('{"seeds": [10, 11]}')
    assert find_files(of_seed(tmp_path, 11), "**/part-*.parquet") == [tmp_path / "street/11/part-00000.parquet"]
    flat = tmp_path / "flat"
    for name in ("street", ".street.0123abcd.tmp"):
        (flat / name).mkdir(parents=True)
        (flat / name / "part-00000.parquet").touch()
    assert find_files(of_seed(flat, 11), "**/part-*.parquet") == [flat / "street/part-00000.parquet"]


def test_names_that_are_numbers_are_no_seeds(tmp_path: Path) -> None:
    """A pool or a class may be called as a seed is; the file alone says what a folder holds."""
    for name in ("10", "11"):
        (tmp_path / "auxiliary" / name / "10").mkdir(parents=True)
        (tmp_path / "auxiliary" / name / "10" / "part-00000.parquet").touch()
    assert of_seed(tmp_path / "auxiliary", 10) == tmp_path / "auxiliary"
    assert len(shard_paths(tmp_path / "auxiliary")) == 2
    for name in ("10", "11"):
        (tmp_path / "auxiliary" / name / SEEDS).write_text('{"seeds": [10]}')
    own = of_seed(tmp_path / "auxiliary", 10)
    assert [name_in(path, own) for path in shard_paths(own)] == ["10/part-00000.parquet", "11/part-00000.parquet"]
    assert in_set(own, "11") == of_seed(tmp_path / "auxiliary" / "11", 10) == tmp_path / "auxiliary/11/10"
