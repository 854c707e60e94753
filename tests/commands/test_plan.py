"""`plan` and `prune` on the command line, and the store that a stage is given: all that it keeps lies there."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import yaml
from typer.testing import CliRunner

from fer_pipeline.artifacts import faces
from fer_pipeline.cli import app
from fer_pipeline.networks.backbones import build
from fer_pipeline.networks.checkpoints import save_checkpoint
from fer_pipeline.networks.preprocessing import Preprocessing
from fer_pipeline.networks.settings import Card, NetworkSettings
from fer_pipeline.sharding.locks import lock_for_run

SIZE = 16


@pytest.fixture
def project(tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The demo's settings, three shards of faces of one pool, and an untrained model."""
    params = yaml.safe_load((root / "params.yaml").read_text(encoding="utf-8"))
    params["resources"] = {"device": "cpu", "workers": 1}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    classes = tuple(params["classes"])
    schema = faces.face_schema(classes, crop=SIZE)
    for shard in range(3):
        rows = [
            {
                "face_id": f"street/{shard}-{row}",
                "image": {"bytes": faces.encode(np.full((SIZE, SIZE, 3), row, np.uint8)), "path": None},
                "split": "train",
            }
            for row in range(40)
        ]
        table = pa.Table.from_pylist(rows, schema=schema)
        faces.write_shard(tmp_path / "data" / "faces" / "street" / "train" / f"part-{shard:05d}.parquet", table)
    network = NetworkSettings(name="small", width=4, size=SIZE)
    card = Card(network=network, classes=classes, preprocessing=Preprocessing(size=SIZE))
    save_checkpoint(tmp_path / "models" / "primitive", build(network, len(classes), seed=0), card)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(*words: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, [*words])
    return result.exit_code, result.output


def test_plan_embed_prune(project: Path) -> None:
    planned = ("plan", "embed", "--name", "street", "--seconds", "1", "--store", "kept")
    code, told = call(*planned, "--json")
    assert code == 0, told
    (found,) = json.loads(told[told.index("[") :])
    assert found["shards"] == {"all": 3, "missing": 3}
    assert found["faces"] == 120
    assert 0 < found["hours"]["low"] <= found["hours"]["likely"] <= found["hours"]["high"]
    # A face takes its vector of f16 and its name: 4 layers of width 4 give 32 numbers.
    assert 120 * 64 < found["disk"]["needed"] < 120 * 200
    place = ("--faces", "data/faces/street/train", "--model", "models/primitive", "--out", "out", "--store", "kept")
    code, told = call("embed", "--name", "street", *place)
    assert (code, told) == (0, "embed: street: 120 faces in 3 shards, 0 reused\n")
    assert not (project / ".store").exists(), "what a stage remembers lies in the store that it was given"
    assert {"memory", "provenance", "checksums", "last_runs", "progress", "locks", "shards"} <= {
        path.name for path in (project / "kept").iterdir()
    }
    code, told = call(*planned)
    assert told.endswith("embed street: 3 of 3 shards are there, nothing to make\n")
    (project / "data" / "faces" / "street" / "train" / "part-00002.parquet").unlink()
    assert call("embed", "--name", "street", *place)[1] == "embed: street: 80 faces in 2 shards, 2 reused\n"
    code, told = call("prune", "--store", "kept")
    assert (code, "prune: 1 shards of no last run" in told) == (0, True), told
    assert len(list((project / "kept").glob("shards/*/*"))) == 2


def test_a_second_run_is_refused_in_one_line(project: Path) -> None:
    place = ("--faces", "data/faces/street/train", "--model", "models/primitive", "--out", "out")
    with lock_for_run(Path(".store"), "embed@street"):
        code, told = call("embed", "--name", "street", *place)
        assert code == 1
        assert told.startswith("error: another run of embed@street is at work on .store (process ")
        assert told.count("\n") == 1
        code, told = call("prune")
        assert told.startswith("error: .store is in use: embed@street is at work")
    assert not (project / "out").exists()


def test_what_cannot_be_planned_yet_is_told_and_the_rest_is_planned(project: Path) -> None:
    code, told = call("plan", "--name", "studio", "--name", "street", "--seconds", "1")
    assert code == 0, told
    lines = told.splitlines()
    assert any(line.startswith("embed studio: no shards in data/faces/studio/train; run the stage") for line in lines)
    assert any(line.startswith("embed street: 0 of 3 shards are there, 120 faces to come: ") for line in lines)
    assert sum(line.startswith("align ") for line in lines) == 2
    assert call("plan", "embed", "--name", "nowhere")[1].startswith("error: params.yaml has no set 'nowhere' for embed")
