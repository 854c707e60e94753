"""`embed`: features equal the plain network's, bytes whoever makes them, and no finished shard is made again."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from fer_pipeline.artifacts.embeddings import embedding_paths, iter_embeddings
from fer_pipeline.artifacts.faces import open_shard, read_faces, write_shard
from fer_pipeline.core.errors import DataError
from fer_pipeline.core.files import file_sha256
from fer_pipeline.embedding import shards as embedding
from fer_pipeline.networks.checkpoints import load_checkpoint
from fer_pipeline.stages import embed
from tests.project import project_settings

ONE = project_settings()


def vectors(folder: Path) -> tuple[list[str], np.ndarray]:
    parts = [part for path in embedding_paths(folder) for part in iter_embeddings(path)]
    return [name for part in parts for name in part.face_id.to_pylist()], np.concatenate([p.vector for p in parts])


def hashes(folder: Path) -> list[str]:
    return [file_sha256(path) for path in embedding_paths(folder)]


def test_features_equal_the_plain_network(tmp_path: Path, small_faces, small_primitive) -> None:
    faces, model = small_faces("street", [30, 20]), small_primitive()
    options = {"name": "street", "faces": faces, "model": model, "store": tmp_path / "store"}
    fused = embed.run(embed.Config(batch_size=7), ONE, out=tmp_path / "fused", **options)
    embed.run(embed.Config(batch_size=50, fuse=False), ONE, out=tmp_path / "plain", **options)
    decoded = read_faces(faces)
    expected = load_checkpoint(model).features(decoded.images)
    for out in ("fused", "plain"):
        names, found = vectors(tmp_path / out)
        assert names == list(decoded.face_id)
        assert found.dtype == np.float16
        scale = np.linalg.norm(expected, axis=1)
        assert (np.linalg.norm(found - expected, axis=1) / scale).max() < 1e-3
    assert fused.counts == {"faces": 50, "shards": 2, "made": 2, "reused": 0, "failed": 0}


def test_bytes_do_not_depend_on_workers(tmp_path: Path, small_faces, small_primitive) -> None:
    faces, model = small_faces("street", [20, 20, 10]), small_primitive()
    for workers in (1, 2):
        embed.run(
            embed.Config(),
            project_settings(workers=workers),
            name="street",
            faces=faces,
            model=model,
            out=tmp_path / f"out-{workers}",
            store=tmp_path / f"store-{workers}",
        )
    assert hashes(tmp_path / "out-1") == hashes(tmp_path / "out-2")


def test_stopped_and_grown_pools_embed_only_what_is_new(
    tmp_path: Path, small_faces, small_primitive, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that stops in its second shard leaves the first in the store; the next run makes the rest, bytes equal."""
    faces, model = small_faces("street", [20, 20]), small_primitive()
    options = {"name": "street", "faces": faces, "model": model}
    embed.run(embed.Config(), ONE, out=tmp_path / "whole", store=tmp_path / "other", **options)
    real, made = embedding.write_shard, []

    def stopping(job, *rest, **options) -> None:
        if made:
            raise KeyboardInterrupt
        made.append(job.key)
        real(job, *rest, **options)

    monkeypatch.setattr(embedding, "write_shard", stopping)
    with pytest.raises(KeyboardInterrupt):
        embed.run(embed.Config(), ONE, out=tmp_path / "out", store=tmp_path / "store", **options)
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(embedding, "write_shard", real)
    resumed = embed.run(embed.Config(), ONE, out=tmp_path / "out", store=tmp_path / "store", **options)
    assert resumed.counts["reused"] == 1
    assert hashes(tmp_path / "out") == hashes(tmp_path / "whole")
    small_faces("street", [20, 20, 5])
    grown = embed.run(embed.Config(), ONE, out=tmp_path / "out", store=tmp_path / "store", **options)
    assert grown.counts == {"faces": 45, "shards": 3, "made": 1, "reused": 2, "failed": 0}


def test_other_weights_and_settings_are_other_shards(tmp_path: Path, small_faces, small_primitive) -> None:
    faces = small_faces("street", [12])
    options = {"name": "street", "faces": faces, "out": tmp_path / "out", "store": tmp_path / "store"}
    first = small_primitive()
    embed.run(embed.Config(), ONE, model=first, **options)
    before = hashes(tmp_path / "out")
    assert embed.run(embed.Config(sets=("street",)), ONE, model=first, **options).counts["reused"] == 1
    assert embed.run(embed.Config(fuse=False), ONE, model=first, **options).counts["reused"] == 0
    assert embed.run(embed.Config(), ONE, model=small_primitive(seed=1), **options).counts["reused"] == 0
    assert hashes(tmp_path / "out") != before


def test_a_damaged_shard_is_reported_after_the_others(tmp_path: Path, small_faces, small_primitive) -> None:
    faces, model = small_faces("street", [12, 12, 12]), small_primitive()
    damaged = faces / "part-00001.parquet"
    table = open_shard(damaged).read()
    pictures = pa.array([{"bytes": b"\xff\xd8no picture", "path": None}] * 12, table.schema.field(1).type)
    write_shard(damaged, table.set_column(1, table.schema.field(1), pictures))
    options = {"name": "street", "faces": faces, "model": model, "out": tmp_path / "out"}
    with pytest.raises(
        DataError, match=r"part-00001\.parquet.*; 2 shards made, 0 reused, 1 failed; finished"
    ) as raised:
        embed.run(embed.Config(), ONE, store=tmp_path / "store", **options)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "out").exists()
    allowed = embed.run(embed.Config(allowed_failures=1), ONE, store=tmp_path / "store", **options)
    assert allowed.counts == {"faces": 24, "shards": 3, "made": 0, "reused": 2, "failed": 1}
    assert "part-00001.parquet" in allowed.warnings[0]
    assert [path.name for path in embedding_paths(tmp_path / "out")] == ["part-00000.arrow", "part-00002.arrow"]


def test_nan_features_are_one_line_and_leave_the_output_alone(tmp_path: Path, small_faces, small_primitive) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    faces, model = small_faces("street", [12]), small_primitive()
    options = {"name": "street", "faces": faces, "model": model, "store": tmp_path / "store"}
    embed.run(embed.Config(), ONE, out=tmp_path / "out", **options)
    before = hashes(tmp_path / "out")
    weights = load_file(model / "weights.safetensors")
    name = next(key for key in weights if key.endswith("running_mean"))
    weights[name] = torch.full_like(weights[name], torch.nan)
    save_file(weights, model / "weights.safetensors")
    with pytest.raises(DataError, match=r"part-00000\.parquet: 12 of 12 faces have NaN or infinite features") as raised:
        embed.run(embed.Config(), ONE, out=tmp_path / "out", **options)
    assert "\n" not in str(raised.value)
    assert hashes(tmp_path / "out") == before


def test_the_anchor_alone_is_embedded_by_the_calibration_model_too(
    tmp_path: Path, small_faces, small_primitive
) -> None:
    model, other = small_primitive(), small_primitive(seed=1)
    options = {"store": tmp_path / "store"}
    for name, one in (("labeller", model), ("calibrated", other)):
        faces = small_faces("studio", [20, 12])
        embed.run(embed.Config(), ONE, name="studio", faces=faces, model=one, out=tmp_path / name, **options)
    other.rename(model / "calibration")
    places = {name: small_faces(name, [20, 12]) for name in ("studio", "street")}
    for workers in (1, 2):
        project, store = project_settings(workers=workers), tmp_path / f"store-{workers}"
        for name, faces in places.items():
            out = tmp_path / f"{name}-{workers}"
            made = embed.run(embed.Config(), project, name=name, faces=faces, model=model, out=out, store=store)
            number = 4 if name == "studio" else 2
            assert made.counts == {"faces": 32, "shards": number, "made": number, "reused": 0, "failed": 0}
        assert hashes(tmp_path / f"studio-{workers}") == hashes(tmp_path / "labeller")
        assert hashes(tmp_path / f"studio-{workers}" / "calibration") == hashes(tmp_path / "calibrated")
        assert not (tmp_path / f"street-{workers}" / "calibration").exists()
    planned = embed.plan(embed.Config(), ONE, name="studio", faces=places["studio"], model=model, store=store)
    assert planned.total == sum(job.items for job in planned.jobs) == 64


def test_another_class_order_is_refused(tmp_path: Path, small_faces, small_primitive) -> None:
    faces = small_faces("street", [12])
    model = small_primitive(classes=("fear", "anger", "neutral"))
    with pytest.raises(DataError, match="fear, anger, neutral"):
        embed.run(
            embed.Config(),
            ONE,
            name="street",
            faces=faces,
            model=model,
            out=tmp_path / "out",
            store=tmp_path / "store",
        )


def test_no_faces_tells_what_to_run(tmp_path: Path, small_primitive) -> None:
    with pytest.raises(DataError, match="no shards in"):
        embed.run(
            embed.Config(),
            ONE,
            name="street",
            faces=tmp_path / "nowhere",
            model=small_primitive(),
            out=tmp_path / "out",
            store=tmp_path / "store",
        )
