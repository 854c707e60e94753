"""Generated pools: equal bytes for equal seeds, read by the pipeline's own readers, removed without anything else."""

import json
import shutil
import struct
from collections import namedtuple
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from benchmarks.pool import app
from benchmarks.pools import embeddings, faces, folder, records
from benchmarks.pools.subsets import write_pictures, write_project
from fer_pipeline.artifacts.embeddings import embedding_paths, iter_embeddings
from fer_pipeline.artifacts.faces import read_faces
from fer_pipeline.core.errors import DataError
from fer_pipeline.datasets import recordio
from fer_pipeline.inspection.export import read_pictures
from fer_pipeline.inspection.revisions import open_revision
from fer_pipeline.inspection.tables import read_subset
from fer_pipeline.scoring.engines import cosine_reference


def quiet(_: int) -> None:
    pass


def make(out: Path, *, rows: int = 250, seed: int = 0) -> Path:
    embeddings.write_pool(out, rows=rows, dimensions=16, seed=seed, advance=quiet, shard_rows=100, batch_rows=30)
    return out


def vectors(out: Path) -> np.ndarray:
    return np.concatenate([part.vector for path in embedding_paths(out) for part in iter_embeddings(path)])


def test_embeddings_have_classes_and_margins_of_all_sizes(tmp_path: Path) -> None:
    out = make(tmp_path / "pool", rows=2000)
    found = vectors(out)
    assert found.shape == (2000, 16)
    ids = [name for path in embedding_paths(out) for part in iter_embeddings(path) for name in part.face_id.to_pylist()]
    assert ids == [f"pool/{number:09d}" for number in range(2000)]
    cosine = np.sort(cosine_reference(found, embeddings.class_centres(16, seed=0)), axis=1)
    nearest = cosine_reference(found, embeddings.class_centres(16, seed=0)).argmax(axis=1)
    assert set(nearest.tolist()) == set(range(7))
    margins = cosine[:, -1] - cosine[:, -2]
    assert np.quantile(margins, 0.1) < 0.05 < 0.1 < np.quantile(margins, 0.9)


def test_a_seed_says_every_byte_and_shards_do_not_repeat(tmp_path: Path) -> None:
    one, two, other = make(tmp_path / "a"), make(tmp_path / "b"), make(tmp_path / "c", seed=1)
    assert [path.name for path in embedding_paths(one)] == [f"part-{n:05d}.arrow" for n in range(3)]
    for path in embedding_paths(one):
        assert path.read_bytes() == (two / path.name).read_bytes()
        assert path.read_bytes() != (other / path.name).read_bytes()
    assert len(np.unique(vectors(one), axis=0)) == 250


def test_what_does_not_fit_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(2**30 + 1000))
    with pytest.raises(DataError, match=r"1\.1 GB free, but the pool takes 0\.0 GB") as raised:
        make(tmp_path / "pool")
    assert "\n" not in str(raised.value)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(DataError, match="holds something already"):
        make(tmp_path)
    with pytest.raises(DataError, match="holds no generated pool"):
        folder.remove(tmp_path)
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_only_what_was_generated_is_removed(tmp_path: Path) -> None:
    out = make(tmp_path / "pool")
    (out / ".part-00001.arrow.0123abcd.tmp").write_bytes(b"left by a run that was killed")
    embedding_paths(out)[0].unlink()  # as if it had been interrupted
    (out / "mine.txt").write_text("mine")
    (tmp_path / "beside.txt").write_text("mine")
    freed, left = folder.remove(out)
    assert freed > 0
    assert left == ["mine.txt"]
    assert [path.name for path in out.iterdir()] == ["mine.txt"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["beside.txt", "pool"]


@pytest.fixture(scope="module")
def pool_of_faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("faces") / "pool"
    told = CliRunner().invoke(
        app, ["faces", "--rows", "23", "--drawn", "4", "--out", str(out), "--name", "gen", "--workers", "1"]
    )
    assert told.exit_code == 0, told.output
    return out


def test_faces_are_aligned_unique_and_the_same_in_both_files(pool_of_faces: Path) -> None:
    found = read_faces(pool_of_faces / "train")
    assert found.images.shape == (23, 112, 112, 3)
    assert found.face_id.tolist() == [f"gen/{number}" for number in range(1, 24)]
    assert len({image.tobytes() for image in found.images}) == 23
    samples = list(recordio.samples(pool_of_faces / "train.rec", recordio.Options()))
    assert [f"gen/{sample.id}" for sample in samples] == found.face_id.tolist()
    assert [sample.subject for sample in samples] == found.subjects.tolist()
    assert sorted(set(found.subjects)) == ["0", "1", "2", "3"]
    import pyarrow.parquet as pq

    stored = pq.read_table(pool_of_faces / "train" / "part-00000.parquet")
    pictures = [row["bytes"] for row in stored.column("image").to_pylist()]
    assert [recordio.read(sample, recordio.Options()) for sample in samples] == pictures
    points = np.array(stored.column("landmarks").to_pylist()).reshape(-1, 5, 2)
    assert np.abs(points - faces.scale_template(112)).max() < 15  # turned and shifted a little, not misplaced


def test_workers_change_no_byte(pool_of_faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = faces.Plan("gen", 23, 4, 0)
    monkeypatch.setattr(faces, "SHARD_ROWS", 10)
    found = list(faces.made(partial(faces.write_part, tmp_path, plan), plan.parts(), workers=2))
    assert found == [10, 10, 3]
    assert np.array_equal(read_faces(tmp_path / "train").images, read_faces(pool_of_faces / "train").images)


def test_faces_are_removed_with_their_folders(pool_of_faces: Path, tmp_path: Path) -> None:
    out = tmp_path / "pool"
    shutil.copytree(pool_of_faces, out)
    told = CliRunner().invoke(app, ["remove", str(out)])
    assert told.exit_code == 0, told.output
    assert list(tmp_path.iterdir()) == []


def test_a_record_is_framed_as_dmlc_specifies() -> None:
    """By hand: magic, 3 bits of continuation with 29 of length, data, padding; split where the magic stands in it."""
    magic = bytes.fromhex("0a23d7ce")
    assert records.framed(b"abcde") == magic + struct.pack("<I", 5) + b"abcde\0\0\0"
    split = records.framed(b"four" + magic + b"end" + magic)  # the second is off the grid of four
    assert split == (
        magic
        + struct.pack("<I", 1 << 29 | 4)
        + b"four"
        + magic
        + struct.pack("<I", 3 << 29 | 7)
        + b"end"
        + magic
        + b"\0"
    )
    head = records.packed(b"jpeg", number=7, label=3.0)
    assert head == struct.pack("<IfQQ", 0, 3.0, 7, 0) + b"jpeg"
    assert records.packed(b"", number=0, labels=(5, 9)) == struct.pack("<IfQQff", 2, 0.0, 0, 0, 5.0, 9.0)


def test_the_marker_names_every_file(tmp_path: Path) -> None:
    out = make(tmp_path / "pool")
    marker = json.loads((out / folder.MARKER).read_text())
    assert marker["files"] == [path.name for path in embedding_paths(out)]
    assert (marker["rows"], marker["dimensions"], marker["seed"]) == (250, 16, 0)


def test_each_committed_version_of_a_subset_is_the_one_that_was_mined(tmp_path: Path) -> None:
    """Of two margins, read back as a user reads them; the pictures are those of the faces."""
    kept = write_project(tmp_path, rows=300, margins=(0.05, 0.2), seed=0)
    assert kept[0] > kept[1] > 0
    write_pictures(tmp_path, rows=300, pictures=4, anchors=7, dimensions=8, seed=0)
    for rev, number, margin in (("HEAD~1", kept[0], 0.05), ("HEAD", kept[1], 0.2), ("workspace", kept[1], 0.2)):
        with open_revision(tmp_path, rev) as revision:
            rows, summary = read_subset(revision)
        assert (len(rows), set(summary["margins"].values())) == (number, {margin})
    with open_revision(tmp_path) as revision:
        crops = read_pictures(revision, rows)
    places = [int(name.removeprefix("street/").removesuffix(".jpg")) % 4 for name in rows["face_id"].to_pylist()]
    assert len({*zip(places, crops, strict=True)}) == len({*places}) == len({*crops})
