"""The `image_folder` adapter: what folder levels mean, odd names, and links."""

import io
import os
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from fer_pipeline.alignment.pictures import FORMATS
from fer_pipeline.core.errors import DataError
from fer_pipeline.core.fingerprints import fingerprint
from fer_pipeline.core.samples import Sample
from fer_pipeline.datasets import image_folder
from fer_pipeline.datasets._files import format_left_out
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


def left_out(path: Path, **options: object) -> Counter[str]:
    return image_folder.left_out(path, Options.model_validate(options))


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


def test_a_picture_is_known_by_its_suffix_or_its_first_bytes(tmp_path: Path) -> None:
    plant(tmp_path, "README.txt", "sad/a.jpg", "sad/B.JPG", "sad/c.JPEG", "sad/d.mp4", "sad/notes", "sad/x.TXT")
    stream = io.BytesIO()
    Image.new("RGB", (8, 8)).save(stream, "PNG")
    for name in ("without", "odd.dat", "photo.jpg_large"):
        (tmp_path / "sad" / name).write_bytes(stream.getvalue())
    names = ["B.JPG", "a.jpg", "c.JPEG", "odd.dat", "photo.jpg_large", "without"]
    assert said(tmp_path) == [(f"sad/{name}", None, "sad", None) for name in names]
    assert format_left_out(left_out(tmp_path)) == "4 files left out: 2 .txt, 1 .mp4, 1 without a suffix"


def test_the_first_bytes_tell_every_format_that_is_read(tmp_path: Path) -> None:
    """One file a format as Pillow writes it, and files that begin alike."""
    picture = Image.new("RGB", (16, 16))
    for format in FORMATS:
        picture.save(tmp_path / format, format)
    picture.save(tmp_path / "bigtiff", "TIFF", big_tiff=True)
    (tmp_path / "ascii").write_bytes(b"P2\n# by hand\n1 1\n255\n0\n")
    found = len(listed(tmp_path))
    assert found == len(FORMATS) + 2
    for number, data in enumerate((b"BMW and others", b"P4 processors", b"RIFF....WAVE", b"%PDF-1.7", b"", b"\0" * 64)):
        (tmp_path / f"none{number}").write_bytes(data)
    assert len(listed(tmp_path)) == found
    assert left_out(tmp_path) == {"without a suffix": 6}


def test_hidden_and_system_files_are_counted(tmp_path: Path) -> None:
    plant(tmp_path, "sad/a.jpg", "sad/._a.jpg", ".DS_Store", "sad/Thumbs.db", "sad/@eaDir/a.jpg", "__MACOSX/sad/a.jpg")
    plant(tmp_path, "sad/@someone.jpg")
    assert [sample.id for sample in listed(tmp_path)] == ["sad/@someone.jpg", "sad/a.jpg"]
    assert left_out(tmp_path) == {"hidden": 2, "hidden folder": 1, "system": 1, "system folder": 1}


def test_many_kinds_are_cut_short_and_odd_suffixes_are_text(tmp_path: Path) -> None:
    plant(tmp_path, "a.jpg", *(f"b.x{number:02}" for number in range(12)))
    (tmp_path / os.fsdecode(b"c.\xe9\n")).write_bytes(b"c")
    line = format_left_out(left_out(tmp_path))
    assert line.startswith("13 files left out: 1 .??, 1 .x00, ")
    assert line.endswith(" and 3 more kinds")


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
        (tmp_path / os.fsdecode(name)).write_bytes(b"\xff\xd8\xff" + name)
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
    assert found[r"ann\xe9e.jpg"] == b"\xff\xd8\xffann\xe9e.jpg"
    assert found[r"a.jpg\x231"] == b"\xff\xd8\xffa.jpg#1"


def test_links_out_of_the_root_are_refused_unless_allowed(tmp_path: Path) -> None:
    plant(tmp_path / "elsewhere", "b.jpg", "more/c.jpg")
    root = plant(tmp_path / "root", "a.jpg")
    for link, target in (("b.jpg", "b.jpg"), ("more", "more")):
        (root / link).symlink_to(tmp_path / "elsewhere" / target)
        assert "is a link out of" in fault(root, levels=[])
        assert len(listed(root, levels=[], follow_links=True)) == 2
        (root / link).unlink()


def test_a_link_in_a_circle_is_counted(tmp_path: Path) -> None:
    plant(tmp_path, "sad/a.jpg", "sad/more/b.jpg")
    (tmp_path / "sad" / "again").symlink_to(tmp_path)
    (tmp_path / "sad" / "more" / "itself").symlink_to(".")
    assert [sample.id for sample in listed(tmp_path)] == ["sad/a.jpg", "sad/more/b.jpg"]
    assert left_out(tmp_path) == {"link to a folder above": 2}


def test_a_linked_folder_within_the_root_is_followed(tmp_path: Path) -> None:
    plant(tmp_path, "sad/a.jpg")
    (tmp_path / "gloomy").symlink_to("sad")
    assert [sample.id for sample in listed(tmp_path)] == ["gloomy/a.jpg", "sad/a.jpg"]


def test_a_folder_of_other_files_says_so(tmp_path: Path) -> None:
    plant(tmp_path, "a.txt", ".b.jpg")
    assert "holds no picture (2 files left out: 1 .txt, 1 hidden); put" in fault(tmp_path)


@pytest.mark.parametrize(("target", "fault"), [("nothing.jpg", "No such file"), ("a.jpg", "cannot be read")])
def test_a_link_that_leads_nowhere_is_a_picture_that_cannot_be_read(tmp_path: Path, target: str, fault: str) -> None:
    (tmp_path / "a.jpg").symlink_to(target)
    [broken] = listed(tmp_path)
    with pytest.raises(DataError, match=fault):
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
