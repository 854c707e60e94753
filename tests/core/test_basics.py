"""Names, seeds, fingerprints, files and plugins against independent truths."""

import hashlib
import io
import json
import os
from contextlib import nullcontext
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fer_pipeline.core.errors import ConfigError, DataError
from fer_pipeline.core.expressions import BASIC_7, BASIC_8, canonical
from fer_pipeline.core.files import (
    file_sha256,
    fresh_folder,
    read_json,
    read_lines,
    remove,
    replacing,
    replacing_folder,
    write_json,
    write_text,
)
from fer_pipeline.core.fingerprints import fingerprint
from fer_pipeline.core.plugins import available, load
from fer_pipeline.core.seeds import derive
from fer_pipeline.core.settings import Resources


@pytest.mark.parametrize(
    ("spelling", "name"),
    [("Happy", "happiness"), (" ANGRY ", "anger"), ("Surprised", "surprise"), ("sad", "sadness"), ("Bored", "bored")],
)
def test_spellings(spelling: str, name: str) -> None:
    assert canonical(spelling) == name


def test_canonical_names_are_their_own_spelling() -> None:
    assert tuple(map(canonical, BASIC_8)) == BASIC_8
    assert set(BASIC_8) - set(BASIC_7) == {"contempt"}


def test_seeds_are_the_first_63_bits_of_sha256() -> None:
    expected = int(hashlib.sha256(b"7\x1fmine\x1f3").hexdigest()[:16], 16) >> 1
    assert derive(7, "mine", 3) == expected
    assert len({derive(seed, name) for seed in range(50) for name in ("a", "b", "ab")}) == 150


def test_fingerprints_change_with_any_part_and_with_nothing_else() -> None:
    settings = Resources(workers=3)
    assert fingerprint({"b": 1, "a": settings}, (1, 2)) == fingerprint({"a": settings, "b": 1}, [1, 2])
    different = [
        fingerprint("ab"),
        fingerprint("a", "b"),
        fingerprint(b"ab"),
        fingerprint(settings),
        fingerprint(settings.model_dump()),
        fingerprint(1),
        fingerprint(1.5),
        fingerprint(None),
    ]
    assert len(set(different)) == len(different)


def test_a_failed_write_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    write_text(path, "old")

    def fail() -> None:
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["file.txt"]


def test_a_folder_is_replaced_whole(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    for number in (1, 2):
        with replacing_folder(folder) as temporary:
            (temporary / f"{number}.txt").write_text(str(number))
    assert [file.name for file in folder.iterdir()] == ["2.txt"]
    with pytest.raises(RuntimeError), replacing_folder(folder) as temporary:
        raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
    assert list(fresh_folder(folder).iterdir()) == []


def replace_by_folder(path: Path) -> None:
    with replacing_folder(path) as temporary:
        (temporary / "new").write_text("new")


@pytest.mark.parametrize("target", ["folder", "file", "nothing"])
@pytest.mark.parametrize("write", [replace_by_folder, fresh_folder, lambda path: write_text(path, "new")])
def test_a_link_in_the_place_of_an_output_is_refused(tmp_path: Path, target: str, write) -> None:
    """It was renamed away before: the result lay beside the link, and what it led to was not what it seemed."""
    elsewhere, out = tmp_path / "elsewhere", tmp_path / "out"
    elsewhere.mkdir()
    (elsewhere / "old").write_text("old")
    out.symlink_to({"folder": elsewhere, "file": elsewhere / "old", "nothing": tmp_path / "gone"}[target])
    with pytest.raises(
        DataError, match=rf"^{out} is a link to {os.readlink(out)}; write to that place by its name, or"
    ):
        write(out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["elsewhere", "out"]
    assert out.is_symlink()
    assert [(path.name, path.read_text()) for path in elsewhere.iterdir()] == [("old", "old")]
    remove(out)  # the link alone
    assert [path.name for path in tmp_path.iterdir()] == ["elsewhere"]
    write(tmp_path / "elsewhere" / "out")  # a link above it is none of its business
    (tmp_path / "link").symlink_to(elsewhere)
    write(tmp_path / "link" / "out")


def test_a_folder_takes_the_place_of_a_file_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("old")
    replace_by_folder(tmp_path / "out")
    assert [path.relative_to(tmp_path).as_posix() for path in sorted(tmp_path.rglob("*"))] == ["out", "out/new"]


def test_json_is_read_back_and_damage_is_told(tmp_path: Path) -> None:
    path = tmp_path / "value.json"
    write_json(path, {"b": [1, 2.5], "a": "ü"})
    assert path.read_bytes() == '{\n "a": "ü",\n "b": [\n  1,\n  2.5\n ]\n}\n'.encode()
    assert read_json(path) == json.loads(path.read_text(encoding="utf-8"))
    assert file_sha256(path) == hashlib.sha256(path.read_bytes()).hexdigest()
    path.write_text('{"a": ')
    with pytest.raises(DataError, match="not valid JSON"):
        read_json(path)


def test_the_folder_is_the_registry() -> None:
    names = available("fer_pipeline.datasets")
    assert {"csv", "fer2013", "image_folder", "recordio", "synthetic"} <= set(names)
    assert load("fer_pipeline.datasets", "csv").__name__ == "fer_pipeline.datasets.csv"
    with pytest.raises(ConfigError, match=r"unknown datasets 'tsv'; choose one of ck_plus, csv, fer2013"):
        load("fer_pipeline.datasets", "tsv")


@pytest.mark.parametrize(
    ("source", "line"),
    [
        (
            "def samples(:\n",
            r"^datasets/broken\.py, line 1: invalid syntax; correct the file or choose another ad",
        ),
        ("import nothing_of_that_name\n", r"^datasets/broken\.py cannot be imported \(ModuleNotFoundError: .*adapter$"),
    ],
)
def test_a_broken_adapter_is_one_line(tmp_path: Path, monkeypatch, source: str, line: str) -> None:
    import fer_pipeline.datasets as package

    folder = tmp_path / "datasets"
    folder.mkdir()
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(folder)])
    (folder / "broken.py").write_text(source, encoding="utf-8")
    with pytest.raises(ConfigError, match=line):
        load("fer_pipeline.datasets", "broken")


@given(text=st.text(alphabet='ab,"\r\n\0é\u2028', max_size=200), longest=st.integers(1, 30))
def test_lines_are_pythons_up_to_one_that_is_too_long(text: str, longest: int) -> None:
    expected = list(io.StringIO(text, newline=""))
    first_long = next((place for place, line in enumerate(expected) if len(line) > longest), None)
    found: list[str] = []
    stream = io.TextIOWrapper(io.BytesIO(text.encode()), encoding="utf-8", newline="")
    with (
        pytest.MonkeyPatch.context() as patch,
        nullcontext()
        if first_long is None
        else pytest.raises(DataError, match=f"t.csv, line {first_long + 1}, is over {longest} characters long"),
    ):
        patch.setattr("fer_pipeline.core.files.LONGEST_LINE", longest)
        found += read_lines(stream.readline, Path("t.csv"))
    assert found == expected[:first_long]
