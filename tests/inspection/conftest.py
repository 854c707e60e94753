"""A small project under git and DVC with three committed subsets, two learners and an experiment; made once."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from fer_pipeline.artifacts import faces
from fer_pipeline.artifacts.arrow import write_rows
from fer_pipeline.artifacts.census import RejectedSample, write_census
from fer_pipeline.artifacts.embeddings import write_embeddings
from fer_pipeline.artifacts.scores import HELDOUT, Centroids, score_batch, score_schema, write_centroids, write_scores
from fer_pipeline.cli import app
from fer_pipeline.scoring.engines import rank_classes
from fer_pipeline.stages import mine
from tests.pipelines.conftest import make_repository
from tests.project import project_settings

CLASSES = ("anger", "fear", "neutral")
POOLS = {"street": 90, "garden": 50}
WIDTH, SIZE = 8, 16
STRANGE = (  # names that a table, a page, a terminal or a spreadsheet might obey
    'street/o\'hara "x", <b>&amp;</b> | `y`.png',
    "street/\x1b[31mred\x07\u202e.png",
    "street/" + "long" * 75,
    "=1+1.png",
)
GRAPH = """
stages:
  align:
    foreach: [street, garden]
    do: {cmd: "true", params: [align], outs: ["data/faces/${item}"]}
  synthesize: {cmd: "true", outs: [data/truth/street.parquet]}
  train_primitive: {cmd: "true", params: [seeds], outs: [models/primitive]}
  embed:
    foreach: [street, garden]
    do: {cmd: "true", deps: ["data/faces/${item}", models/primitive], outs: ["data/embeddings/${item}"]}
  score:
    foreach: [street, garden]
    do: {cmd: "true", deps: ["data/embeddings/${item}", models/primitive], outs: ["data/scores/${item}"]}
  mine: {cmd: "true", deps: [data/scores, fer_pipeline/rule.txt], params: [mine, seeds], outs: [data/mined]}
  train_final:
    foreach: {vas: data/mined}
    do: {cmd: "true", deps: ["${item}"], outs: ["models/final/${key}"]}
  evaluate:
    matrix: {recipe: [vas], target: [studio, film]}
    cmd: "true"
    deps: ["models/final/${item.recipe}"]
    metrics: ["reports/metrics/${item.recipe}/${item.target}.json"]
"""


def names_of(pool: str) -> list[str]:
    strange = STRANGE if pool == "street" else ()
    return [*strange, *(f"{pool}/{number}" for number in range(POOLS[pool] - len(strange)))]


def write_faces(root: Path) -> None:
    """Crops of noise in two shards a pool, one rejected picture each, and the truth of one pool."""
    for pool in POOLS:
        names, random = names_of(pool), np.random.default_rng(POOLS[pool])
        rows = [
            {
                "face_id": name, "label": None, "subject": f"person {number % 7}", "split": "train",
                "image": {"bytes": faces.encode(random.integers(0, 256, (SIZE, SIZE, 3), np.uint8),
                                                format="png" if number % 2 else "jpeg"), "path": None},
                "landmarks": [float(number)] * 10, "score": 0.5, "source": f"{number}.png",
            }
            for number, name in enumerate(names)
        ]  # fmt: skip
        schema = faces.face_schema(CLASSES, crop=SIZE)
        for shard, part in enumerate((rows[:30], rows[30:])):
            path = root / "data/faces" / pool / "train" / f"part-{shard:05d}.parquet"
            faces.write_shard(path, pa.Table.from_pylist(part, schema=schema))
        rejected = [RejectedSample(f"{pool}/bad", "bad.png", "train", "no_face")]
        write_census(root / "data/faces" / pool, {}, rejected, {}, {})
    truth = [CLASSES[number % 3] for number in range(POOLS["street"])]
    write_rows(
        root / "data/truth/street.parquet", pa.table({"face_id": names_of("street"), "dominant": pa.array(truth)})
    )


def crops_of(root: Path, name: str) -> dict[str, dict[str, Any]]:
    """The rows of a set's train split, by face."""
    paths = sorted((root / "data/faces" / name / "train").glob("*.parquet"))
    return {row["face_id"]: row for path in paths for row in faces.open_shard(path).read().to_pylist()}


def vectors_of(pool: str, learner: int) -> np.ndarray:
    """What a learner makes of a pool: the class `number % 3` on one axis, and noise of its own."""
    random, count = np.random.default_rng([learner, len(pool)]), POOLS[pool]
    signal = np.zeros((count, WIDTH))
    signal[np.arange(count), np.arange(count) % 3] = 1
    return (signal + 0.4 * random.standard_normal((count, WIDTH))).astype(np.float16)


def cosines(vectors: np.ndarray) -> np.ndarray:
    unit = vectors.astype(np.float64) / np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    return unit[:, :3].astype(np.float32)


def write_scored(root: Path, learner: int) -> None:
    """The learner, its embeddings and its scores."""
    model = root / "models/primitive/weights.txt"
    model.parent.mkdir(parents=True, exist_ok=True)
    model.write_text(f"learner {learner}")
    heldout = np.random.default_rng(99)
    label = heldout.integers(0, 3, 300)
    anchor = np.clip(0.5 * np.eye(3)[label] + 0.25 * heldout.standard_normal((300, 3)), -1, 1).astype(np.float32)
    for pool in POOLS:
        vectors, folder = vectors_of(pool, learner), root / "data/scores" / pool
        place = root / "data/embeddings" / pool / "part-00000.arrow"
        place.parent.mkdir(parents=True, exist_ok=True)
        batches = [(pa.array(names_of(pool), pa.string()), vectors)]
        write_embeddings(place, batches, dimensions=WIDTH, model=f"{learner}", shard="toy")
        studio = [f"studio/{number}" for number in range(300)]
        for path, names, cosine, truth in (
            ("part-00000.arrow", names_of(pool), cosines(vectors), None),
            (HELDOUT, studio, anchor, label),
        ):
            nearest, margin = rank_classes(cosine)
            schema = score_schema(CLASSES, labelled=truth is not None)
            columns = {"cosine": cosine, "nearest": nearest, "margin": margin, "label": truth}
            write_scores(folder / path, schema, [score_batch(schema, face_id=pa.array(names), **columns)])
        write_centroids(folder, Centroids(np.eye(3), np.full(3, 5), CLASSES))


Rows = list[dict[str, Any]]


class Project(NamedTuple):
    """The project's folder, and what each revision's `data/mined` held when it was made: rows and summary."""

    folder: Path
    rows: dict[str, Rows]
    summaries: dict[str, dict[str, Any]]


def make_project(folder: Path) -> Project:
    from dvc.repo import Repo

    from pipelines.repository import run_git

    files = {"dvc.yaml": GRAPH, ".gitignore": "/data\n/models\n/reports\n", "fer_pipeline/rule.txt": "rule 1"}
    params = {"align": {"crop": SIZE}, "seeds": [0], "mine": {"by": "margin", "value": 0.1}}
    make_repository(folder, {**files, "params.yaml": json.dumps(params)})
    config = (folder / ".dvc/config").read_text()
    remote = folder.parent / "remote"
    (folder / ".dvc/config").write_text(f"{config}    remote = shared\n['remote \"shared\"']\n    url = {remote}\n")
    run_git(folder, "tag", "before")
    project = Project(folder, {}, {})
    write_faces(folder)
    versions = {
        "v1": (0.1, 0, "rule 1"),
        "v2": (0.3, 0, "rule 1"),
        "v3": (0.3, 1, "rule 2"),
        "wide": (0.0, 1, "rule 2"),
    }
    for name, (margin, learner, rule) in versions.items():
        params["mine"]["value"] = margin
        (folder / "params.yaml").write_text(json.dumps(params))
        (folder / "fer_pipeline/rule.txt").write_text(rule)
        write_scored(folder, learner)
        settings = project_settings(classes=CLASSES, pools=tuple(POOLS), targets=("studio",))
        mine.run(mine.Config(value=margin), settings, scores=folder / "data/scores", out=folder / "data/mined")
        rows = pq.read_table(folder / "data/mined/mined.parquet").to_pylist()
        project.rows[name] = [row | {"label": CLASSES[row["label"]]} for row in rows]
        project.summaries[name] = json.loads((folder / "data/mined/summary.json").read_text())
        (folder / "models/final/vas").mkdir(parents=True, exist_ok=True)
        (folder / "models/final/vas/weights.txt").write_text(name)
        for target, accuracy in (("studio", 0.5 + margin), ("film", 0.25 + margin)):
            path = folder / "reports/metrics/vas" / f"{target}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps({"mean_class_accuracy": accuracy, "accuracy": 0.9}))
        with Repo(str(folder)) as repo:
            repo.commit(force=True)
            if name == "wide":
                repo.experiments.save(name=name)
            else:
                run_git(folder, "add", "--all")
                run_git(folder, "commit", "--quiet", "-m", f"margin {margin} | <b>by</b> learner {learner}")
                run_git(folder, "tag", name)
            repo.push()
    return project


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Project:
    with pytest.MonkeyPatch.context() as patch:
        for name in [one for one in os.environ if one.startswith("GIT_")]:
            patch.delenv(name)
        patch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
        patch.setenv("GIT_CONFIG_NOSYSTEM", "1")
        folder = tmp_path_factory.mktemp("inspection") / "project"
        folder.mkdir()
        patch.chdir(folder)  # DVC names stages as seen from there
        project = make_project(folder)
    return project


@pytest.fixture
def project(made: Project, monkeypatch: pytest.MonkeyPatch) -> Project:
    """The project, to be read; its workspace holds what the experiment `wide` holds."""
    monkeypatch.chdir(made.folder)
    return made


@pytest.fixture
def copy(made: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the project that a test may break; its remote is its own too."""
    folder = tmp_path / "project"
    shutil.copytree(made.folder, folder, symlinks=True)
    shutil.copytree(made.folder.parent / "remote", tmp_path / "remote")
    config = folder / ".dvc/config"
    config.write_text(config.read_text().replace(str(made.folder.parent), str(tmp_path)))
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def say() -> Callable[..., str]:
    """Runs `mined …` and gives what it prints; `code` is the exit code that is expected."""

    def run(*words: str, code: int = 0) -> str:
        result = CliRunner().invoke(app, ["mined", *words])
        assert result.exit_code == code, result.output + repr(result.exception)
        if code:
            assert result.stdout == ""
            assert result.stderr.startswith("error: ")
            assert result.stderr.count("\n") == 1, result.stderr
            return result.stderr
        return result.stdout

    return run
