"""The stage `align`: rows, rejected samples, counts, labels refused early; equal bytes after a crash."""

import hashlib
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from fer_pipeline.alignment import leaks
from fer_pipeline.alignment import shards as plan
from fer_pipeline.alignment.warp import scale_template
from fer_pipeline.artifacts.census import read_shared
from fer_pipeline.artifacts.contents import SharedCounts
from fer_pipeline.artifacts.faces import read_faces, read_metadata, read_table
from fer_pipeline.commands import prune
from fer_pipeline.core.errors import ConfigError, DataError
from fer_pipeline.core.settings import DatasetSettings, Summary
from fer_pipeline.stages import align
from tests.project import project_settings

CLASSES = ("anger", "happiness", "neutral")
PREALIGNED = {"crop": 32, "prealigned": True, "shard_rows": 4, "cut": "count", "format": "png"}


def draw(root: Path, *, count: int = 18, labels: tuple[str, ...] = ("angry", "happy", "neutral")) -> Path:
    """A table of small pictures of known pixels; every ninth is broken; a third is the test split."""
    images = root / "images"
    images.mkdir(parents=True, exist_ok=True)
    lines = ["image,emotion,person,part"]
    for number in range(count):
        name = f"p{number:03d}.png"
        Image.fromarray(pixels(number)).save(images / name)
        if number % 9 == 7:
            (images / name).write_bytes(b"")
        split = "test" if number % 3 == 2 else "train"
        lines.append(f"{name},{labels[number % len(labels)]},someone{number // 6},{split}")
    (root / "labels.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return root


def pixels(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (32, 32, 3), dtype=np.uint8)


def dataset(root: Path, **changes: Any) -> DatasetSettings:
    options = {"csv": "labels.csv", "images": "images", "label": "emotion", "subject": "person", "split": "part"}
    return DatasetSettings.model_validate({"adapter": "csv", "path": root, "options": options, **changes})


def run(root: Path, place: Path, *, store: Path | None = None, workers: int = 1, **changes: Any) -> Summary:
    settings = {**PREALIGNED, **changes.pop("config", {})}
    return align.run(
        align.Config.model_validate(settings),
        project_settings(
            workers=workers,
            classes=changes.pop("classes", CLASSES),
            datasets={"set": changes.pop("dataset", None) or dataset(root)},
        ),
        name="set",
        out=place / "out",
        store=store or place / "store",
        **changes,
    )


def bytes_of(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_rows_are_what_the_pictures_and_the_table_say(tmp_path: Path) -> None:
    summary = run(draw(tmp_path / "raw"), tmp_path)
    assert summary.line == "align set: 18 in, 16 kept, 2 rejected (empty 2); 0 of 5 shards reused"
    train = read_faces(tmp_path / "out" / "train")
    kept = [number for number in range(18) if number % 3 != 2 and number % 9 != 7]
    assert train.face_id.tolist() == [f"set/p{number:03d}.png" for number in kept]
    assert train.labels.tolist() == [number % 3 for number in kept]
    assert train.subjects.tolist() == [f"someone{number // 6}" for number in kept]
    assert train.classes == CLASSES
    for image, number in zip(train.images, kept, strict=True):
        np.testing.assert_array_equal(image, pixels(number))
    table = read_table(tmp_path / "out" / "test", ["split", "landmarks", "score", "source"]).to_pylist()
    assert {row["split"] for row in table} == {"test"}
    np.testing.assert_allclose(table[0]["landmarks"], scale_template(32).ravel(), rtol=1e-6)
    assert table[0]["source"] == "images/p002.png"
    assert table[0]["score"] is None
    assert read_metadata(tmp_path / "out" / "train")["border"] == "reflect"


def test_nothing_disappears(tmp_path: Path) -> None:
    run(draw(tmp_path / "raw"), tmp_path)
    rejected = pq.read_table(tmp_path / "out" / "rejected.parquet").to_pylist()
    assert rejected == [
        {"sample_id": "p007.png", "source": "images/p007.png", "split": "train", "reason": "empty"},
        {"sample_id": "p016.png", "source": "images/p016.png", "split": "train", "reason": "empty"},
    ]
    summary_file = json.loads((tmp_path / "out" / "summary.json").read_text(encoding="utf-8"))
    assert (summary_file["samples"], summary_file["faces"], summary_file["rejected"]) == (18, 16, {"empty": 2})
    assert summary_file["splits"]["train"] == {
        "samples": 12,
        "faces": 10,
        "labels": {"anger": 6, "happiness": 4, "neutral": 0},
        "unlabelled": 0,
        "rejected": {"empty": 2},
    }
    assert summary_file["splits"]["test"]["labels"] == {"anger": 0, "happiness": 0, "neutral": 6}
    assert summary_file["shared"] == {"test": {"persons": 3, "faces": 0}}


def test_labels_outside_the_classes_are_refused_before_any_work(tmp_path: Path) -> None:
    root = draw(tmp_path / "raw", labels=("angry", "happy", "neutral", "disgust", "awe"))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "earlier").write_text("kept", encoding="utf-8")
    with pytest.raises(DataError, match=r"outside the classes: awe 3, disgust 3; .*drop_unknown: true"):
        run(root, tmp_path)
    assert bytes_of(tmp_path).keys() & {"out/earlier"}
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("wrong", "remedy"),
    [
        ({"label": "mood"}, "set datasets.set.options.label: NAME"),
        ({"encoding": "utf-9"}, "set datasets.set.options.encoding: cp1252, for example"),
        ({"images": "other"}, "set datasets.set.options.images: FOLDER or set datasets.set.options.missing: reject"),
        ({"split": "emotion"}, "set datasets.set.options.splits: {angry: train} (or val, or test)"),
    ],
)
def test_an_option_that_cures_is_named_by_its_place_in_the_settings(
    tmp_path: Path, wrong: dict[str, str], remedy: str
) -> None:
    root = draw(tmp_path / "raw")
    (root / "other").mkdir()
    named = dataset(root)
    with pytest.raises(DataError) as fault:
        run(root, tmp_path, dataset=named.model_copy(update={"options": {**named.options, **wrong}}))
    assert str(fault.value).endswith(f"; {remedy}")


def test_labels_may_be_dropped_with_their_count(tmp_path: Path) -> None:
    root = draw(tmp_path / "raw", labels=("angry", "happy", "neutral", "disgust", "awe"))
    summary = run(root, tmp_path, dataset=dataset(root, drop_unknown=True, classes={"awe": None}))
    assert summary.counts["rejected"] == 8
    reasons = pq.read_table(tmp_path / "out" / "rejected.parquet")["reason"].to_pylist()
    assert sorted(reasons) == ["empty"] * 2 + ["label_dropped"] * 3 + ["label_outside_classes"] * 3
    summary_file = json.loads((tmp_path / "out" / "summary.json").read_text(encoding="utf-8"))
    assert summary_file["source_labels"] == {
        "angry": {"samples": 4, "meaning": "anger"},
        "awe": {"samples": 3, "meaning": "label_dropped"},
        "disgust": {"samples": 3, "meaning": "label_outside_classes"},
        "happy": {"samples": 4, "meaning": "happiness"},
        "neutral": {"samples": 4, "meaning": "neutral"},
    }


def test_a_set_without_labels_has_null_labels(tmp_path: Path) -> None:
    root = draw(tmp_path / "raw")
    options = {"csv": "labels.csv", "images": "images"}
    run(root, tmp_path, dataset=dataset(root, options=options, split="train"))
    assert set(read_table(tmp_path / "out" / "train", ["label"])["label"].to_pylist()) == {None}
    summary_file = json.loads((tmp_path / "out" / "summary.json").read_text(encoding="utf-8"))
    assert summary_file["splits"]["train"]["unlabelled"] == 16


def test_a_split_must_be_known(tmp_path: Path) -> None:
    root = draw(tmp_path / "raw")
    with pytest.raises(DataError, match=r"has no split; set datasets\.set\.split"):
        run(root, tmp_path, dataset=dataset(root, options={"csv": "labels.csv", "images": "images"}))


def test_unknown_options_of_the_adapter_are_one_line(tmp_path: Path) -> None:
    root = draw(tmp_path / "raw")
    with pytest.raises(ConfigError, match=r"datasets\.set\.options: unknown key 'imges'"):
        run(root, tmp_path, dataset=dataset(root, options={"imges": "x"}))


def test_ids_that_come_twice_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = draw(tmp_path / "raw")
    from fer_pipeline.datasets import csv

    given = csv.samples
    monkeypatch.setattr(csv, "samples", lambda path, options: [*given(path, options), *list(given(path, options))[3:5]])
    with pytest.raises(DataError, match=r"2 sample ids come more than once, the first is 'p003\.png'"):
        run(root, tmp_path)


def test_a_set_without_samples_or_faces_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = draw(tmp_path / "raw")
    for file in (root / "images").iterdir():
        file.write_bytes(b"not a picture")
    with pytest.raises(DataError, match=r"no face is left of 18 pictures, 18 rejected \(not_an_image 18\)"):
        run(root, tmp_path)
    from fer_pipeline.datasets import csv

    monkeypatch.setattr(csv, "samples", lambda path, options: [])
    with pytest.raises(DataError, match="has no sample"):
        run(root, tmp_path)


def test_a_picture_that_cannot_be_read_is_rejected(tmp_path: Path) -> None:
    root = draw(tmp_path / "raw")
    (root / "images" / "p003.png").unlink()
    options = {**dataset(root).options, "missing": "reject"}
    run(root, tmp_path, dataset=dataset(root, options=options))
    rejected = pq.read_table(tmp_path / "out" / "rejected.parquet").to_pylist()
    assert [row["reason"] for row in rejected if row["sample_id"] == "p003.png"] == ["unreadable"]


def test_bytes_do_not_depend_on_the_number_of_workers(tmp_path: Path) -> None:
    root = draw(tmp_path / "raw")
    run(root, tmp_path / "one")
    run(root, tmp_path / "two", workers=2)
    assert bytes_of(tmp_path / "one" / "out") == bytes_of(tmp_path / "two" / "out")


CRASH = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from fer_pipeline.alignment import shards as plan
from fer_pipeline.stages import align
import {module} as tests

whole = plan.make_shard
made = []

def crash(folder, job, **rest):
    whole(folder, job, **rest)
    if len(made) == 2:  # with all files of the third written but not yet renamed
        os.kill(os.getpid(), signal.SIGKILL)
    made.append(job)

plan.make_shard = crash
tests.run(Path({raw!r}), Path({place!r}))
"""


def test_after_a_kill_the_rest_is_made_and_the_bytes_are_the_same(tmp_path: Path) -> None:
    root = draw(tmp_path / "raw")
    run(root, tmp_path / "whole")
    place = tmp_path / "killed"
    file = Path(__file__)
    script = CRASH.format(tests=str(file.parent), module=file.stem, raw=str(root), place=str(place))
    killed = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert not (place / "out").exists()
    assert run(root, place).line.endswith("2 of 5 shards reused")
    assert bytes_of(place / "out") == bytes_of(tmp_path / "whole" / "out")


def test_only_what_changed_is_made_again(tmp_path: Path) -> None:
    root = draw(tmp_path / "raw")
    assert run(root, tmp_path).counts["reused"] == 0
    before = bytes_of(tmp_path / "out")
    assert run(root, tmp_path).counts["reused"] == 5
    assert bytes_of(tmp_path / "out") == before
    Image.fromarray(pixels(99)).save(root / "images" / "p000.png")
    assert run(root, tmp_path).counts["reused"] == 4, "another picture"
    draw(root, count=24)
    assert run(root, tmp_path).counts == {
        "samples": 24,
        "faces": 22,
        "rejected": 2,
        "shards": 6,
        "made": 2,
        "reused": 4,
        "failed": 0,
    }
    assert run(root, tmp_path, config={"crop": 16}).counts["reused"] == 0
    assert run(root, tmp_path, config={"grey": True}).counts["reused"] == 0
    assert run(root, tmp_path, config={"format": "jpeg"}).counts["reused"] == 0
    assert run(root, tmp_path, classes=CLASSES[::-1]).counts["reused"] == 0
    moved = root.rename(tmp_path / "elsewhere")
    assert run(moved, tmp_path).counts["reused"] == 6, "where the set lies does not matter"


def test_a_failed_shard_is_reported_and_the_others_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = draw(tmp_path / "raw")
    whole = plan.make_shard

    def failing(folder: Path, job: Any, **rest: Any) -> None:
        if (job.split, job.number) == ("test", 1):
            raise ValueError("broken\nshard")
        whole(folder, job, **rest)

    monkeypatch.setattr(plan, "make_shard", failing)
    with pytest.raises(
        DataError, match=r"align set/test/part-00001\.parquet: ValueError: broken shard; 4 shards made, 0 reused"
    ):
        run(root, tmp_path)
    assert not (tmp_path / "out").exists()
    summary = run(root, tmp_path, config={"allowed_failures": 1})
    assert summary.counts == {
        "samples": 18,
        "faces": 14,
        "rejected": 4,
        "shards": 5,
        "made": 0,
        "reused": 4,
        "failed": 1,
    }
    assert summary.warnings[1:] == ("set/test/part-00001.parquet: ValueError: broken shard",)
    reasons = pq.read_table(tmp_path / "out" / "rejected.parquet")["reason"].to_pylist()
    assert sorted(reasons) == ["empty", "empty", "shard_failed", "shard_failed"]
    monkeypatch.setattr(plan, "make_shard", whole)
    assert run(root, tmp_path).counts["reused"] == 4
    run(root, tmp_path / "fresh")
    assert bytes_of(tmp_path / "out") == bytes_of(tmp_path / "fresh" / "out")


def test_sets_may_differ_in_how_faces_are_found_but_not_in_what_a_crop_is() -> None:
    config = align.Config.model_validate({"crop": 64, "sets": {"pool": {"prealigned": True}}})
    assert config.alignment("pool").prealigned
    assert not config.alignment("anchor").prealigned
    assert config.alignment("pool").crop == 64
    with pytest.raises(ValueError, match="crop"):
        align.Config.model_validate({"sets": {"pool": {"crop": 48}}})


def test_photographs_give_upright_faces(sample_faces: Path, tmp_path: Path) -> None:
    """The troublesome files through the whole stage, with one count a reason."""
    settings = DatasetSettings(adapter="image_folder", path=sample_faces / "bad", split="train")
    summary = run(
        sample_faces / "bad", tmp_path, dataset=settings, config={"crop": 64, "prealigned": False, "shard_rows": 100}
    )
    summary_file = json.loads((tmp_path / "out" / "summary.json").read_text(encoding="utf-8"))
    assert summary.counts["samples"] == 16
    assert summary_file["faces"] == 8
    assert summary_file["rejected"] == {
        "too_small": 2,
        "damaged": 1,
        "empty": 1,
        "no_face": 1,
        "not_an_image": 1,
        "too_many_pixels": 1,
        "truncated": 1,
    }
    rows = read_table(tmp_path / "out" / "train", ["face_id", "landmarks", "score"]).to_pylist()
    for row in rows:
        assert np.linalg.norm(np.reshape(row["landmarks"], (5, 2)) - scale_template(64), axis=1).max() < 5
        assert row["score"] > 0.9
    assert "set/naïve Ünïcode 名前 (1).jpg" in {row["face_id"] for row in rows}


def test_files_that_are_no_pictures_are_counted_by_kind(tmp_path: Path) -> None:
    root = draw(tmp_path / "raw") / "images"
    for name in ("notes.txt", "._p000.png", "Thumbs.db"):
        (root / name).write_bytes(b"no picture")
    summary = run(root, tmp_path, dataset=DatasetSettings(adapter="image_folder", path=root, split="train"))
    assert summary.counts["samples"] == 18
    assert summary.warnings == ("set: 3 files left out: 1 .txt, 1 hidden, 1 system",)


def test_a_set_that_changes_anywhere_makes_only_the_shards_around_again(tmp_path: Path) -> None:
    """Cut by ids: what is lost, gained or changed moves the shards next to it and no others."""
    root = draw(tmp_path / "raw", count=240)
    by_ids = {"cut": "ids", "shard_rows": 8}
    shards = run(root, tmp_path, config=by_ids).counts["shards"]
    assert shards > 20
    lines = (root / "labels.csv").read_text(encoding="utf-8").splitlines()
    for number, change in enumerate(("lost", "gained", "changed")):
        place = 1 + 3 * number  # near the front, where a cut by count would move everything
        if change == "lost":
            del lines[place]
        elif change == "gained":
            Image.fromarray(pixels(1000)).save(root / "images" / "new.png")
            lines.insert(place, "new.png,happy,someone,train")
        else:
            Image.fromarray(pixels(1001)).save(root / "images" / lines[place].partition(",")[0])
        (root / "labels.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
        made = run(root, tmp_path, config=by_ids).counts["made"]
        assert 1 <= made <= 6, change
    run(root, tmp_path / "fresh", config=by_ids)
    assert bytes_of(tmp_path / "out") == bytes_of(tmp_path / "fresh" / "out")


def draw_leaks(root: Path) -> Path:
    """Nine pictures; p7 is picture p0, p8 is p1; someone0 stands in train, val and test, p8's person is not known."""
    images = root / "images"
    images.mkdir(parents=True)
    rows = ["image,emotion,person,part"]
    parts = ("train", "train", "train", "train", "val", "test", "test", "test", "test")
    persons = (0, 1, 2, 3, 0, 0, 1, 9, "")
    for number, (part, person) in enumerate(zip(parts, persons, strict=True)):
        Image.fromarray(pixels(number % 7)).save(images / f"p{number}.png")
        rows.append(f"p{number}.png,happy,{f'someone{person}' if person != '' else ''},{part}")
    (root / "labels.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return root


@pytest.mark.parametrize("format", ["png", "jpeg"])
def test_persons_and_equal_faces_in_two_splits_are_counted_and_told(tmp_path: Path, format: str) -> None:
    census, contents = tmp_path / "census.json", tmp_path / "contents.parquet"
    summary = run(draw_leaks(tmp_path / "raw"), tmp_path, config={"format": format}, census=census, contents=contents)
    assert read_shared(census) == {"test": SharedCounts(persons=2, faces=2), "val": SharedCounts(persons=1, faces=0)}
    told = [line.partition(", so")[0] for line in summary.warnings]
    assert told == [
        "set: 2 persons stand in train and test",
        "set: 2 faces of test are equal to faces of train",
        "set: 1 person stands in train and val",
    ]
    rows = pq.read_table(contents).to_pylist()
    assert set(rows[0]) == {"face_id", "split", "subject", "content"}, "no labels"
    assert [(row["face_id"], row["split"]) for row in rows] == [
        (f"set/p{number}.png", split)
        for split, numbers in (("test", range(5, 9)), ("train", range(4)), ("val", [4]))
        for number in numbers
    ]
    by_content: dict[bytes, list[str]] = {}
    for row in rows:
        by_content.setdefault(row["content"], []).append(row["face_id"][4:6])
    assert sorted(map(sorted, by_content.values())) == [
        ["p0", "p7"], ["p1", "p8"], ["p2"], ["p3"], ["p4"], ["p5"], ["p6"]
    ]  # fmt: skip


def test_finished_shards_are_hashed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, read = draw(tmp_path / "raw"), []
    whole = leaks.hash_faces
    monkeypatch.setattr(leaks, "hash_faces", lambda shard, look: (read.append(shard), whole(shard, look))[1])
    run(root, tmp_path, contents=tmp_path / "first.parquet")
    assert len(read) == 5
    run(root, tmp_path, contents=tmp_path / "second.parquet")
    assert len(read) == 5
    assert (tmp_path / "first.parquet").read_bytes() == (tmp_path / "second.parquet").read_bytes()
    assert "nothing removed" in prune.run(store=tmp_path / "store"), "the hashes belong to the last run"
    Image.fromarray(pixels(99)).save(root / "images" / "p000.png")
    run(root, tmp_path)
    assert len(read) == 6, "the shard that changed"
