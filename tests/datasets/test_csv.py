"""The `csv` adapter: guesses that are obvious, faults in one line, and no way out of the image root."""

import os
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from fer_pipeline.core.errors import DataError
from fer_pipeline.core.samples import Sample
from fer_pipeline.datasets import csv
from fer_pipeline.datasets.csv import Options


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / "images" / name).write_bytes(name.encode())
    (tmp_path / "labels.csv").write_text("image,emotion,split\na.jpg,Happy,train\nb.jpg,Sad,test\n")
    return tmp_path


def listed(path: Path, **options: object) -> list[Sample]:
    return list(csv.samples(path, Options.model_validate({"images": "images", "label": "emotion", **options})))


def fault(path: Path, **options: object) -> str:
    with pytest.raises(DataError) as caught:
        listed(path, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_lists_of_the_sample_faces(sample_faces: Path) -> None:
    """Counts from the sample faces' README."""
    for name, counts in (("lfw", {"train": 465, "test": 416}), ("movies", {"test": 407})):
        found = listed(sample_faces / name, subject="subject", split="split")
        assert {split: sum(s.split == split for s in found) for split in counts} == counts


def test_the_path_may_be_the_table_itself(folder: Path) -> None:
    assert listed(folder / "labels.csv") == listed(folder) == listed(folder, csv="labels.csv")


def test_several_tables_need_a_name(folder: Path) -> None:
    (folder / "other.csv").write_text("x\n")
    assert "found labels.csv, other.csv; set options.csv: FILE" in fault(folder)
    assert len(listed(folder, csv="labels.csv")) == 2


def test_a_column_that_is_not_there_names_those_found(folder: Path) -> None:
    assert "has no column 'expression'; found 'image', 'emotion', 'split'" in fault(folder, label="expression")


def test_a_column_that_is_there_twice_is_refused(folder: Path) -> None:
    (folder / "labels.csv").write_text("image,emotion,emotion\na.jpg,Happy,Sad\n")
    assert "has 2 columns called 'emotion'" in fault(folder)


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_delimiter_and_encoding_are_guessed(folder: Path, delimiter: str, encoding: str) -> None:
    before = listed(folder, split="split")
    text = (folder / "labels.csv").read_text().replace(",", delimiter)
    (folder / "labels.csv").write_text(text, encoding=encoding)
    assert listed(folder, split="split") == before


def test_another_encoding_is_named_and_then_read(folder: Path) -> None:
    (folder / "labels.csv").write_bytes("image,emotion\na.jpg,Fröhlich\n".encode("cp1252"))
    assert "is not utf-8-sig" in fault(folder)
    assert "options.encoding" in fault(folder)
    assert listed(folder, encoding="cp1252")[0].label == "Fröhlich"
    assert "no known encoding" in fault(folder, encoding="latin-99")


def test_a_file_without_a_header_line(folder: Path) -> None:
    (folder / "labels.csv").write_text("a.jpg 4\nb.jpg 5\n")
    found = listed(folder, columns=["image", "emotion"], delimiter=" ")
    assert [(sample.id, sample.label) for sample in found] == [("a.jpg", "4"), ("b.jpg", "5")]


def test_blanks_are_the_delimiter_where_every_row_has_as_many_words(folder: Path) -> None:
    (folder / "labels.csv").write_text("a.jpg  4 \nb.jpg 5")
    assert [sample.label for sample in listed(folder, columns=["image", "emotion"])] == ["4", "5"]
    (folder / "images" / "my own.jpg").touch()
    (folder / "labels.csv").write_text("image\nmy own.jpg\na.jpg\n")
    assert [sample.id for sample in listed(folder, label=None)] == ["my own.jpg", "a.jpg"]


def test_a_first_row_is_no_line_of_names(folder: Path) -> None:
    (folder / "labels.csv").write_text("a.jpg,4\nb.jpg,5\n")
    said = fault(folder)
    assert (
        "has no column 'image'; found 'a.jpg', '4', which is a row and no line of names; set options.columns: " in said
    )


@pytest.mark.parametrize(
    ("start", "said"),
    [
        (b"<!DOCTYPE html><html><body>Please log in", "is a web page, not the file itself"),
        (b"\xef\xbb\xbf\n  <HTML>", "is a web page, not the file itself"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code>", "is a web page, not the file itself"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:12", "is a pointer of git-LFS"),
        (b"PK\x03\x04\x14\0", "is an Excel workbook or a zip archive"),
        (b"\x1f\x8b\x08", "is compressed by gzip"),
    ],
)
def test_what_is_no_table_is_called_what_it_is(folder: Path, start: bytes, said: str) -> None:
    (folder / "labels.csv").write_bytes(start)
    assert said in fault(folder)
    assert "encoding" not in fault(folder)


def test_wide_text_without_its_mark_is_named(folder: Path) -> None:
    text = (folder / "labels.csv").read_text()
    for encoding in ("utf-16-le", "utf-16-be"):
        (folder / "labels.csv").write_text(text, encoding=encoding)
        assert fault(folder).endswith(f"set options.encoding: {encoding}")
        assert len(listed(folder, encoding=encoding)) == 2


@pytest.mark.parametrize("wrong", [{"delimiter": "::"}, {"delimiter": ""}, {"encoding": "base64"}])
def test_impossible_marks_and_encodings_are_one_line(folder: Path, wrong: dict[str, str]) -> None:
    assert f"set options.{next(iter(wrong))}: " in fault(folder, **wrong)


@pytest.mark.parametrize("beginning", ["C:\\faces\\", "\\\\server\\share\\", "D:/x/", "/mnt/someone/"])
def test_absolute_paths_of_another_machine(folder: Path, beginning: str) -> None:
    (folder / "labels.csv").write_text(f"image,emotion\n{beginning}a.jpg,Happy\n{beginning}b.jpg,Sad\n")
    assert "options.prefixes: [BEGINNING] (it is cut off)" in fault(folder)
    found = listed(folder, prefixes=["/other/", beginning.replace("\\", "/")])
    assert [sample.id for sample in found] == ["a.jpg", "b.jpg"]
    assert "begins with none of /data/; set options.prefixes: [BEGINNING]" in fault(folder, prefixes=["/data/"])


def test_endings_that_the_list_leaves_out(folder: Path) -> None:
    for name in ("c_aligned.jpg", "d_aligned.jpg"):
        (folder / "images" / name).touch()
    (folder / "labels.csv").write_text("image,emotion\nc.jpg,Happy\nd,Sad\n")
    assert [sample.id for sample in listed(folder, ending="_aligned.jpg")] == ["c_aligned.jpg", "d_aligned.jpg"]


def test_names_may_tell_the_split(folder: Path) -> None:
    (folder / "images" / "test").mkdir()
    names = {"train_1.jpg": "train", "test/train_2.jpg": "test", "valid3.jpg": "val", "a.jpg": None}
    for name in names:
        (folder / "images" / name).touch()
    (folder / "labels.csv").write_text("\n".join(["image", *names]))
    assert [sample.split for sample in listed(folder, label=None, split_by_name=True)] == list(names.values())


def test_a_row_with_other_cells_is_reported_by_its_line(folder: Path) -> None:
    (folder / "labels.csv").write_text("image,emotion\na.jpg,Happy\n\nb,1.jpg,Sad\n")
    assert "line 4: 3 cells where 2 columns are named" in fault(folder)


def test_a_quote_that_never_ends_is_reported(folder: Path) -> None:
    (folder / "labels.csv").write_text('image,emotion\n"a.jpg,Happy\n' + "b.jpg,Sad\n" * 20_000)
    assert "quote that never ends" in fault(folder)


def test_own_words_for_splits(folder: Path) -> None:
    text = (folder / "labels.csv").read_text()
    (folder / "labels.csv").write_text(text.replace("train", "0").replace(",test", ",1"))
    assert "line 2: '0' is no known split" in fault(folder, split="split")
    assert [s.split for s in listed(folder, split="split", splits={"0": "train", "1": "test"})] == ["train", "test"]


def test_missing_pictures_are_counted_or_passed_on(folder: Path) -> None:
    (folder / "images" / "b.jpg").unlink()
    message = fault(folder)
    assert "1 of 2 pictures" in message
    assert "(first: b.jpg)" in message
    found = listed(folder, missing="reject")
    assert [sample.id for sample in found] == ["a.jpg", "b.jpg"]
    with pytest.raises(DataError, match="No such file"):
        csv.read(found[1], Options())


def test_a_row_that_names_a_folder_or_a_pipe_is_reported(folder: Path) -> None:
    (folder / "images" / "more").mkdir()
    os.mkfifo(folder / "images" / "pipe")
    for name in ("more", "pipe"):
        (folder / "labels.csv").write_text(f"image,emotion\n{name},Happy\n")
        assert f"line 2: {folder}/images/{name} is no plain file" in fault(folder, missing="reject")


def test_a_picture_listed_twice_is_reported_by_its_lines(folder: Path) -> None:
    (folder / "labels.csv").write_text("image,emotion\na.jpg,Happy\n./a.jpg,Sad\n")
    assert "lists 'a.jpg' twice, in lines 2 and 3" in fault(folder)


def test_a_table_without_rows_is_refused(folder: Path) -> None:
    (folder / "labels.csv").write_text("image,emotion\n")
    assert "has no row" in fault(folder)
    (folder / "labels.csv").write_text("")
    assert "is empty" in fault(folder)


def test_names_that_leave_the_image_root_are_refused(folder: Path) -> None:
    (folder / "secret.jpg").write_bytes(b"x")
    for name in ("../secret.jpg", "/etc/hostname", str(folder / "secret.jpg")):
        (folder / "labels.csv").write_text(f"image,emotion\n{name},Happy\n")
        assert "line 2" in fault(folder)
        assert "outside the folder of pictures" in fault(folder)
    inside = folder / "images" / "a.jpg"
    (folder / "labels.csv").write_text(f"image,emotion\n{inside},Happy\n")
    assert listed(folder)[0].id == "a.jpg"


def test_links_that_leave_the_image_root_are_refused_unless_allowed(folder: Path) -> None:
    (folder / "elsewhere").mkdir()
    (folder / "elsewhere" / "c.jpg").write_bytes(b"c")
    (folder / "images" / "c.jpg").symlink_to(folder / "elsewhere" / "c.jpg")
    (folder / "images" / "sub").symlink_to(folder / "elsewhere")
    for name in ("c.jpg", "sub/c.jpg"):
        (folder / "labels.csv").write_text(f"image,emotion\n{name},Happy\n")
        assert "is a link out of" in fault(folder)
        [sample] = listed(folder, follow_links=True)
        assert csv.read(sample, Options()) == b"c"


def test_a_link_within_the_image_root_is_a_picture(folder: Path) -> None:
    (folder / "images" / "c.jpg").symlink_to("a.jpg")
    (folder / "labels.csv").write_text("image,emotion\nc.jpg,Happy\n")
    assert csv.read(listed(folder)[0], Options()) == b"a.jpg"


def test_backslashes_of_windows_separate_folders(folder: Path) -> None:
    (folder / "images" / "sub").mkdir()
    (folder / "images" / "sub" / "c.jpg").write_bytes(b"c")
    (folder / "labels.csv").write_text("image,emotion\nsub\\c.jpg,Happy\n")
    assert listed(folder)[0].id == "sub/c.jpg"
    (folder / "labels.csv").write_text("image,emotion\n..\\labels.csv,Happy\n")
    assert "outside" in fault(folder)


def test_an_image_root_that_is_not_there_is_reported(folder: Path) -> None:
    assert "pictures does not exist" in fault(folder, images="pictures").replace(str(folder) + "/", "")


def relisted(folder: Path, *names: str) -> list[str]:
    """The ids of pictures that a list calls by these names."""
    lines = "".join(f"{name},Happy\n" for name in names)
    (folder / "labels.csv").write_text(f"image,emotion\n{lines}", encoding="utf-8")
    return [sample.id for sample in listed(folder)]


def stored(folder: Path, *names: str) -> None:
    for name in names:
        (folder / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "images" / name).write_bytes(b"x")


def test_a_suffix_may_be_left_out_on_either_side(folder: Path) -> None:
    stored(folder, "c.v2.png", "sub/d", "e.txt")
    assert relisted(folder, "a", "c.v2", "sub/d.jpg") == ["a.jpg", "c.v2.png", "sub/d"]
    (folder / "labels.csv").write_text("image,emotion\ne,Happy\n")
    assert "1 of 1 pictures" in fault(folder)


def test_capitals_may_differ(folder: Path) -> None:
    stored(folder, "IMG_1.JPG", "Sub/Straße.jpeg")
    assert relisted(folder, "img_1.jpg", "A.JPG", "B", "sub/STRASSE.JPEG") == [
        "IMG_1.JPG",
        "a.jpg",
        "b.jpg",
        "Sub/Straße.jpeg",
    ]


@pytest.mark.parametrize(("written", "listed_as"), [("NFD", "NFC"), ("NFC", "NFD")])
def test_accents_may_be_composed_or_not(folder: Path, written: Any, listed_as: Any) -> None:
    """The id is the file's own name, as a folder that is walked gives it."""
    name = "sé/É한.jpg"
    stored(folder, unicodedata.normalize(written, name))
    for word in (name, name.lower(), name.removesuffix(".jpg")):
        assert relisted(folder, unicodedata.normalize(listed_as, word)) == [unicodedata.normalize(written, name)]


def test_the_name_as_it_stands_comes_first_and_then_the_nearest(folder: Path) -> None:
    stored(folder, "A.jpg", "c.png", "C.png", "d", "d.jpg")
    assert relisted(folder, "a.jpg", "A.jpg", "c", "d", "d.jpg") == ["a.jpg", "A.jpg", "c.png", "d", "d.jpg"]


@pytest.mark.parametrize(
    ("names", "name"),
    [(("C.jpg", "c.JPG"), "c.jpg"), (("c.png", "c.jpg"), "c"), (("Dir/c.jpg", "DIR/c.jpg"), "dir/c.jpg")],
)
def test_two_files_that_may_be_meant_are_both_named(folder: Path, names: tuple[str, str], name: str) -> None:
    stored(folder, *names)
    with pytest.raises(DataError) as caught:
        relisted(folder, name)
    first, second = sorted(part.removesuffix("/c.jpg") for part in names)
    assert "line 2" in str(caught.value)
    assert f"but '{first}' and '{second}' are" in str(caught.value)


def test_one_picture_listed_by_two_names_is_listed_twice(folder: Path) -> None:
    with pytest.raises(DataError, match=r"lists 'a\.jpg' twice, in lines 2 and 3"):
        relisted(folder, "a.jpg", "a")


def test_a_picture_with_another_suffix_is_suggested_but_not_taken(folder: Path) -> None:
    with pytest.raises(DataError, match=r"\(first: a\.png, but a\.jpg is there\)"):
        relisted(folder, "a.png")


def test_a_folder_or_a_hidden_file_is_no_other_form_of_a_picture(folder: Path) -> None:
    stored(folder, "c/x.jpg", "._d.jpg")
    for name in ("c.jpg", "d.jpg", "C"):
        with pytest.raises(DataError, match="1 of 1 pictures"):
            relisted(folder, name)


def test_a_link_that_leads_nowhere_is_missing_and_another_form_may_not_leave_the_root(folder: Path) -> None:
    (folder / "images" / "c.jpg").symlink_to("nothing.jpg")
    (folder / "images" / "D.jpg").symlink_to(folder / "labels.csv")
    with pytest.raises(DataError, match="1 of 1 pictures"):
        relisted(folder, "c")
    with pytest.raises(DataError, match="is a link out of"):
        relisted(folder, "d")
