"""`shard`: the right pictures, byte for byte, best first, and as the `datasets` library sees them."""

import io
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from fer_pipeline.artifacts.arrow import write_rows
from fer_pipeline.artifacts.faces import decode_one, iter_faces, read_metadata, read_table
from fer_pipeline.artifacts.mined import MINED, RANDOM, REVIEWED, SECOND_RULE, SUMMARY, mined_schema
from fer_pipeline.core.errors import DataError
from fer_pipeline.core.files import file_sha256, write_json
from fer_pipeline.stages import shard
from tests.project import project_settings

CLASSES = ("anger", "fear", "neutral")


def mined_table(names: list[str], labels: list[int], pool: str = "street") -> pa.Table:
    """Rows in order of class; ranks count within it and margins fall."""
    ranks = [labels[:i].count(label) + 1 for i, label in enumerate(labels)]
    margins = np.linspace(0.9, 0.1, len(names), dtype=np.float32)
    columns = [names, [pool] * len(names), labels, np.float32(1) - margins, margins, ranks]
    arrays = [pa.array(column, field.type) for column, field in zip(columns, mined_schema(CLASSES), strict=True)]
    return pa.Table.from_arrays(arrays, schema=mined_schema(CLASSES))


@pytest.fixture
def world(tmp_path: Path, small_faces) -> dict:
    """A pool of 260 faces in two shards; mined and random faces of it and of another pool."""
    faces = small_faces("street", [250, 10])
    rng = np.random.default_rng(0)
    chosen = [f"street/{i}" for i in rng.permutation(260)[:60]]
    drawn = [f"street/{i}" for i in rng.permutation(260)[:60]]
    elsewhere = mined_table(["film/1"], [0], pool="film")
    write_rows(tmp_path / "mined" / MINED, pa.concat_tables([mined_table(chosen, [0] * 40 + [2] * 20), elsewhere]))
    write_rows(tmp_path / "mined" / RANDOM, mined_table(drawn, [0] * 10 + [1] * 25 + [2] * 25))
    known = {"kept": 61, "precision": dict.fromkeys(("estimate", "low", "high"))}
    by_class = {name: {"kept": kept, **dict.fromkeys(("precision", "low", "high"))}
                for name, kept in zip(CLASSES, (41, 0, 20), strict=True)}  # fmt: skip
    about = {"classes": CLASSES, "margins": dict.fromkeys(CLASSES, 0.1), "pools": {}, "by_class": by_class, **known}
    write_json(tmp_path / "mined" / SUMMARY, about)
    return {"mined": tmp_path / "mined", "faces": faces, "chosen": chosen, "drawn": drawn}


def run(world: dict, tmp_path: Path, *, pool: str = "street", per_shard: int = 16, known: Path | None = None):
    return shard.run(
        shard.Config(rows_per_shard=per_shard),
        project_settings(classes=CLASSES),
        pool=pool,
        mined=world["mined"],
        faces=world["faces"],
        **places(tmp_path, pool),
        known=known,
    )


def places(tmp_path: Path, pool: str) -> dict[str, Path]:
    names = ("control", "second_rule", "true_labels", "reviewed")
    return {"out": tmp_path / "auxiliary" / pool, **{name: tmp_path / name / pool for name in names}}


def class_counts(folder: Path) -> dict[str, int]:
    files = (path for path in folder.rglob("*.parquet") for _ in range(pq.read_metadata(path).num_rows))
    return Counter(path.parent.name for path in files)


def test_pictures_are_copied_byte_for_byte_best_first(tmp_path: Path, world: dict) -> None:
    summary = run(world, tmp_path)
    source = {
        row["face_id"]: row
        for row in read_table(world["faces"], ["face_id", "image", "label", "landmarks"]).to_pylist()
    }
    found = []
    for name in ("anger", "neutral"):
        shards = sorted((tmp_path / "auxiliary" / "street" / name).iterdir())
        assert [path.name for path in shards] == [f"part-{i:05d}.parquet" for i in range(len(shards))]
        rows = [row for path in shards for row in pq.read_table(path).to_pylist()]
        assert [row["rank"] for row in rows] == list(range(1, len(rows) + 1))
        assert {row["pseudo_label"] for row in rows} == {CLASSES.index(name)}
        found += rows
    assert [row["face_id"] for row in found] == world["chosen"]
    for row in found:
        assert row["image"]["bytes"] == source[row["face_id"]]["image"]["bytes"]
        assert row["label"] == source[row["face_id"]]["label"], "the faces' own column stays as it was"
        assert row["landmarks"] == source[row["face_id"]]["landmarks"]
    assert class_counts(tmp_path / "auxiliary" / "street") == {"anger": 40, "neutral": 20}
    assert class_counts(tmp_path / "control" / "street") == {"anger": 10, "fear": 25, "neutral": 25}
    assert summary.counts == {"mined": 60, "random": 60}
    assert read_metadata(tmp_path / "auxiliary" / "street") == read_metadata(world["faces"])
    assert not list((tmp_path / "auxiliary").rglob(".*"))


def test_shards_are_read_back_as_faces(tmp_path: Path, world: dict) -> None:
    run(world, tmp_path)
    read = list(iter_faces(tmp_path / "auxiliary" / "street", 7, label="pseudo_label"))
    assert [name for part in read for name in part.face_id] == world["chosen"]
    assert np.concatenate([part.labels for part in read]).tolist() == [0] * 40 + [2] * 20


def test_the_datasets_library_opens_it(tmp_path: Path, world: dict) -> None:
    import datasets

    run(world, tmp_path)
    opened = datasets.load_dataset(
        "parquet",
        data_files=str(tmp_path / "auxiliary" / "**" / "*.parquet"),
        split="train",
        cache_dir=str(tmp_path / "cache"),
    )
    assert len(opened) == 60
    for column in ("label", "pseudo_label"):
        assert isinstance(opened.features[column], datasets.ClassLabel)
        assert opened.features[column].names == list(CLASSES)
    source = {
        row["face_id"]: row["image"]["bytes"] for row in read_table(world["faces"], ["face_id", "image"]).to_pylist()
    }
    for row in opened.select([0, 45, 59]):
        assert isinstance(row["image"], Image.Image)
        expected = np.asarray(Image.open(io.BytesIO(source[row["face_id"]])).convert("RGB"))
        np.testing.assert_array_equal(np.asarray(row["image"].convert("RGB")), expected)
        assert decode_one(source[row["face_id"]]).shape == expected.shape
    assert opened.features["pseudo_label"].int2str(opened[59]["pseudo_label"]) == "neutral"


def test_the_same_input_gives_the_same_bytes(tmp_path: Path, world: dict) -> None:
    run(world, tmp_path / "a")
    run(world, tmp_path / "b")
    names = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*.parquet"))
    assert len(names) == 3 + 2 + 1 + 2 + 2 + 1 + 1 + 1, "of a second rule, a truth and people there is no face"
    assert [file_sha256(tmp_path / "a" / n) for n in names] == [file_sha256(tmp_path / "b" / n) for n in names]


def test_a_pool_without_mined_faces_has_one_empty_shard(tmp_path: Path, world: dict) -> None:
    summary = run(world, tmp_path, pool="empty")
    assert summary.counts == {"mined": 0, "random": 0}
    assert "no face of empty was mined" in summary.warnings[0]
    table = read_table(tmp_path / "auxiliary" / "empty", ["face_id", "pseudo_label", "margin", "rank"])
    assert len(table) == 0
    assert class_counts(tmp_path / "auxiliary" / "empty") == {}


def test_missing_faces_and_other_classes_leave_the_output_alone(tmp_path: Path, world: dict, small_faces) -> None:
    run(world, tmp_path)
    before = file_sha256(tmp_path / "auxiliary" / "street" / "anger" / "part-00000.parquet")
    with pytest.raises(DataError, match="1 mined faces are not in"):
        shard.run(
            shard.Config(),
            project_settings(classes=CLASSES),
            pool="film",
            mined=world["mined"],
            faces=world["faces"],
            **places(tmp_path, "street"),
        )
    other = small_faces("other", [5], classes=("fear", "anger", "neutral"))
    with pytest.raises(DataError, match="rerun align"):
        run(world | {"faces": other}, tmp_path)
    assert file_sha256(tmp_path / "auxiliary" / "street" / "anger" / "part-00000.parquet") == before


def test_mined_faces_stand_under_their_true_labels_beside_the_mined_ones(tmp_path: Path, world: dict) -> None:
    """The truth names 50 of 60 mined faces: 30 rightly mined, 15 wrongly, 5 of no class; it touches no other folder."""
    chosen = world["chosen"]
    wrong = {name: CLASSES[(CLASSES.index("anger") + 1 + i % 2) % 3] for i, name in enumerate(chosen[:15])}
    right = dict.fromkeys(chosen[15:40], "anger") | dict.fromkeys(chosen[40:45], "neutral")
    true = wrong | right | dict.fromkeys(chosen[45:48], None) | dict.fromkeys(chosen[48:50], "contempt")
    names, kinds = zip(*true.items(), strict=True)
    (tmp_path / "truth").mkdir()
    pq.write_table(pa.table({"face_id": names, "dominant": pa.array(kinds)}), tmp_path / "truth" / "street.parquet")

    run(world, tmp_path / "without")
    summary = run(world, tmp_path / "with", known=tmp_path / "truth")
    assert summary.counts == {"mined": 60, "random": 60, "true_labels": 45, "without_true_label": 15}
    rows = read_table(tmp_path / "with" / "true_labels" / "street", ["face_id", "pseudo_label", "rank"]).to_pylist()
    assert {row["face_id"]: CLASSES[row["pseudo_label"]] for row in rows} == wrong | right
    for label in range(3):
        ranks = [row["rank"] for row in rows if row["pseudo_label"] == label]
        assert ranks == sorted(ranks)
    for folder in ("auxiliary", "control", "second_rule"):
        one, other = tmp_path / "without" / folder, tmp_path / "with" / folder
        files = [path.relative_to(one) for path in sorted(one.rglob("*.parquet"))]
        assert files == [path.relative_to(other) for path in sorted(other.rglob("*.parquet"))]
        assert [file_sha256(one / name) for name in files] == [file_sha256(other / name) for name in files]
    assert class_counts(tmp_path / "without" / "true_labels" / "street") == {}


def test_the_faces_of_the_second_rule_stand_in_a_folder_of_their_own(tmp_path: Path, world: dict) -> None:
    names = [f"street/{i}" for i in range(100, 130)]
    write_rows(world["mined"] / SECOND_RULE, mined_table(names, [1] * 20 + [2] * 10))
    assert run(world, tmp_path).counts == {"mined": 60, "random": 60, "second_rule": 30}
    found = list(iter_faces(tmp_path / "second_rule" / "street", 50, label="pseudo_label"))
    assert [name for part in found for name in part.face_id] == names
    assert class_counts(tmp_path / "auxiliary" / "street") == {"anger": 40, "neutral": 20}


def test_judged_faces_are_written_under_their_labels(tmp_path: Path, world: dict) -> None:
    """Mined or not, of this pool, and only those that show a class; the bytes of the pictures are the pool's own."""
    run(world, tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.glob("[acst]*/street/**/*.parquet")}
    assert len(read_table(tmp_path / "reviewed" / "street", ["face_id", "label"])) == 0
    others = sorted({f"street/{number}" for number in range(260)} - {*world["chosen"]})[:2]
    names, shown = [*world["chosen"][:20], *others, "film/1"], [2, 0] * 10 + [1, -1, 2]
    rows = mined_table(names, [0] * len(names)).append_column("judged_label", pa.array(shown, pa.int64()))
    pools = pa.array([name.partition("/")[0] for name in names])
    rows = rows.set_column(1, "pool", pools).cast(mined_schema(CLASSES, reviewed=True))
    write_rows(world["mined"] / REVIEWED, rows)
    summary = run(world, tmp_path, per_shard=4)
    judged = {name: k for name, k in zip(names, shown, strict=True) if k >= 0 and name != "film/1"}
    assert summary.counts["reviewed"] == len(judged)
    folder, source = tmp_path / "reviewed" / "street", read_table(world["faces"], ["face_id", "image", "subject"])
    found = read_table(folder, ["face_id", "image", "subject", "label"]).to_pylist()
    assert {row["face_id"]: row.pop("label") for row in found} == judged
    assert sorted(found, key=str) == sorted((row for row in source.to_pylist() if row["face_id"] in judged), key=str)
    assert class_counts(folder) == Counter(CLASSES[k] for k in judged.values())
    assert read_metadata(folder) == read_metadata(world["faces"])
    run(world, tmp_path)
    assert before == {path: path.read_bytes() for path in tmp_path.glob("[acst]*/street/**/*.parquet")}
