"""The `image_folder` adapter: what folder levels mean, odd names, and links."""

import os
from pathlib import Path

import pytest

from fer_pipeline.core.errors import DataError
from fer_pipeline.core.fingerprints import fingerprint
from fer_pipeline.core.samples import Sample
from fer_pipeline.datasets import image_folder
from fer_pipeline.datasets.image_folder import Options


def plant(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
    return folder


def listed(path: Path, **options: object) -> list[Sample]:
    return list(image_folder.samples(path, Options.model_validate(options)))


def said(path: Path, **options: object) -> list[tuple[str, str | None, str | None, str | None]]:
    return [(s.id, s.split, s.label, s.subject) for s in listed(path, **options)]


def fault(path: Path, **options: object) -> str:
    with pytest.raises(DataError) as caught:
        listed(path, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_guesses(tmp_path: Path) -> None:
    flat, classes, both, splits = (tmp_path / name for name in ("flat", "classes", "both", "splits"))
    assert said(plant(flat, "a.jpg")) == [("a.jpg", None, None, None)]
    assert said(plant(classes, "Happy/a.jpg")) == [("Happy/a.jpg", None, "Happy", None)]
    assert said(plant(both, "Training/sad/a.jpg")) == [("Training/sad/a.jpg", "train", "sad", None)]
    assert said(plant(splits, "test/a.jpg")) == [("test/a.jpg", "test", None, None)]


def test_levels_by_setting(tmp_path: Path) -> None:
    plant(tmp_path, "x/p1/a.jpg")
    assert said(tmp_path, levels=[]) == [("x/p1/a.jpg", None, None, None)]
    assert said(tmp_path, levels=["subject"]) == [("x/p1/a.jpg", None, None, "x")]
    assert said(tmp_path, levels=["class", "subject"]) == [("x/p1/a.jpg", None, "x", "p1")]
    assert said(tmp_path, levels=["split"], splits={"X": "val"}) == [("x/p1/a.jpg", "val", None, None)]
    assert "'x' is no known split" in fault(tmp_path, levels=["split"])


def test_splits_beside_other_folders_are_no_guess(tmp_path: Path) -> None:
    plant(tmp_path, "train/a/a.jpg", "more/b.jpg")
    assert "holds the splits train beside more; set options.levels" in fault(tmp_path)


def test_no_picture_is_a_picture_that_align_rejects(tmp_path: Path) -> None:
    plant(tmp_path, "README.txt", "sad/notes", "sad/a.jpg")
    assert said(tmp_path) == [
        ("README.txt", None, None, None),
        ("sad/a.jpg", None, "sad", None),
        ("sad/notes", None, "sad", None),
    ]


def test_a_picture_above_its_class_is_a_fault(tmp_path: Path) -> None:
    plant(tmp_path, "b.jpg", "sad/a.jpg")
    assert "b.jpg lies above the folders of class" in fault(tmp_path)
    assert len(listed(tmp_path, levels=[])) == 2


def test_an_empty_class_is_a_fault(tmp_path: Path) -> None:
    plant(tmp_path, "train/sad/a.jpg", "train/fear/.DS_Store", "test/sad/b.jpg")
    assert "the class fear has no picture" in fault(tmp_path)
    plant(tmp_path, "test/fear/c.jpg")
    assert len(listed(tmp_path)) == 3


def test_the_folder_of_bad_pictures_loses_none(sample_faces: Path) -> None:
    assert len(listed(sample_faces / "bad")) == 16


def test_names_that_are_no_text_get_ids_that_are(tmp_path: Path) -> None:
    names = [b"ann\xe9e.jpg", rb"ann\xe9e.jpg", b"line\nbreak.jpg", b"a.jpg#1", rb"a.jpg\x231"]
    for name in names:
        (tmp_path / os.fsdecode(name)).write_bytes(name)
    found = {sample.id: image_folder.read(sample, Options()) for sample in listed(tmp_path)}
    assert {name.encode("utf-8").decode() for name in found} == {
        r"ann\xe9e.jpg",
        r"ann\\xe9e.jpg",
        "line\nbreak.jpg",
        r"a.jpg\x231",
        r"a.jpg\\x231",
    }
    # What is cached is known by its path.
    assert len({fingerprint(sample.path) for sample in listed(tmp_path)}) == len(names)
    assert found[r"ann\xe9e.jpg"] == b"ann\xe9e.jpg"
    assert found[r"a.jpg\x231"] == b"a.jpg#1"


def test_links_out_of_the_root_are_refused_unless_allowed(tmp_path: Path) -> None:
    plant(tmp_path / "elsewhere", "b.jpg", "more/c.jpg")
    root = plant(tmp_path / "root", "a.jpg")
    for link, target in (("b.jpg", "b.jpg"), ("more", "more")):
        (root / link).symlink_to(tmp_path / "elsewhere" / target)
        assert "is a link out of" in fault(root, levels=[])
        assert len(listed(root, levels=[], follow_links=True)) == 2
        (root / link).unlink()


def test_a_link_in_a_circle_is_refused(tmp_path: Path) -> None:
    plant(tmp_path, "sad/a.jpg")
    (tmp_path / "sad" / "again").symlink_to(tmp_path)
    assert "link to a folder that holds it" in fault(tmp_path)


def test_a_broken_link_is_a_picture_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").symlink_to("nothing.jpg")
    [broken] = listed(tmp_path)
    with pytest.raises(DataError, match="No such file"):
        image_folder.read(broken, Options())


def test_a_pipe_is_refused_since_reading_it_never_ends(tmp_path: Path) -> None:
    plant(tmp_path, "sad/a.jpg")
    [sample] = listed(tmp_path)
    sample.path.unlink()
    os.mkfifo(sample.path)
    assert "sad/a.jpg is a pipe" in fault(tmp_path)
    with pytest.raises(DataError, match="no plain file"):
        image_folder.read(sample, Options())


def test_a_path_that_is_a_file_is_reported(tmp_path: Path) -> None:
    plant(tmp_path, "a.jpg")
    assert "is a file" in fault(tmp_path / "a.jpg")
