"""Frame rules, persons, parts and faults of the adapters for published sets, on the contract's small examples."""

import re
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import yaml

from fer_pipeline.alignment.samples import load_adapter, read_samples
from fer_pipeline.commands.folds import divide
from fer_pipeline.core.errors import ConfigError, DataError
from fer_pipeline.core.folds import Published
from fer_pipeline.core.plugins import load
from fer_pipeline.core.samples import Sample
from fer_pipeline.core.settings import DatasetSettings, validate


@pytest.fixture
def built(tmp_path: Path, example_module: Callable[[str], ModuleType]) -> Callable[[str], Path]:
    """Builds the small example of an adapter and returns its folder."""
    return lambda name: example_module(name).build(tmp_path / name)["path"]


def listed(name: str, path: Path, **options: Any) -> list[Sample]:
    adapter = load("fer_pipeline.datasets", name)
    return list(adapter.samples(path, validate(adapter.Options, options, where="options")))


def ids(name: str, path: Path, **options: Any) -> list[str]:
    return [sample.id for sample in listed(name, path, **options)]


def left_out(name: str, path: Path, **options: Any) -> dict[str, int]:
    adapter = load("fer_pipeline.datasets", name)
    return dict(adapter.left_out(path, adapter.Options.model_validate(options)))


def fault(name: str, path: Path, **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        listed(name, path, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_frames_of_ck_plus(built: Callable[[str], Path]) -> None:
    path = built("ck_plus")
    assert len(ids("ck_plus", path)) == 8
    assert {sample.label for sample in listed("ck_plus", path, neutral=False)} == {"fear", "contempt"}
    first, last = "S005/001/S005_001_00000001.png", "S005/001/S005_001_00000006.png"
    assert ids("ck_plus", path, last=1, contempt=False) == [first, last]
    # Of contempt even the first frame: 1,236 pictures of seven classes, not 1,254.
    assert left_out("ck_plus", path, contempt=False) == {
        "frame of contempt": 5,
        "frame of a sequence without a label": 4,
        "frame that no rule takes": 2,
        "hidden": 1,
    }


def test_frames_of_ck_plus_are_ordered_by_their_number(built: Callable[[str], Path]) -> None:
    path = built("ck_plus")
    folder = path / "cohn-kanade-images" / "S005" / "001"
    (folder / "S005_001_00000006.png").rename(folder / "S005_001_00000010.jpg")  # the last one, by bytes the third
    (folder / "S005_001_00000001.png").rename(folder / "S005_001_00000000.png")
    found = ids("ck_plus", path, contempt=False)
    assert [name[-6:-4] for name in found] == ["00", "04", "05", "10"]


def test_middle_frames_are_what_no_rule_takes(built: Callable[[str], Path]) -> None:
    """Of six frames the first and the last three are labelled; the sequence without a label gives none."""
    path = built("ck_plus")
    found = listed("ck_plus", path, part="middle")
    assert [(sample.id[-7:-4], sample.label, sample.subject) for sample in found] == [
        ("002", None, "S005"),
        ("003", None, "S005"),
        ("002", None, "S010"),
    ]
    assert {*ids("ck_plus", path)}.isdisjoint(sample.id for sample in found)
    assert len(ids("ck_plus", path, part="middle", contempt=False)) == 2
    assert left_out("ck_plus", path, part="middle")["frame that no rule takes"] == 8
    assert ids("oulu_casia", built("oulu_casia"), part="middle") == ["P001/Anger/001.png"]


def sequences(path: Path) -> None:
    """Six persons with one or two sequences of seven frames; the first frames of all lie far from any other."""
    for person, expressions in enumerate(["3", "35", "5", "35", "3", "5"], 1):
        for sequence, code in enumerate(expressions, 1):
            parts = (f"S{person:03}", f"{sequence:03}")
            for number in range(1, 8):
                file = path.joinpath("cohn-kanade-images", *parts, f"{'_'.join(parts)}_{number:08}.png")
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(b"\x89PNG\r\n\x1a\n")
            file = path.joinpath("Emotion", *parts, f"{'_'.join(parts)}_00000007_emotion.txt")
            file.parent.mkdir(parents=True)
            file.write_text(f"   {code}.0000000e+00\n")


@pytest.mark.parametrize(
    "protocol",
    [
        *({"name": "k_fold", "folds": 3, "fold": fold} for fold in (1, 2, 3)),
        {"name": "k_fold", "folds": 3, "fold": 2, "groups": "steps"},
        {"name": "leave_one_out", "folds": 6, "fold": 4},
        *({"name": "hold_out", "test": 0.34, "folds": 5, "fold": fold} for fold in (1, 5)),
    ],
)
def test_no_person_of_a_test_fold_is_in_its_pool(tmp_path: Path, protocol: dict[str, Any]) -> None:
    sequences(tmp_path)
    persons: dict[tuple[str, str | None], set[str | None]] = {}
    for part in ("labelled", "middle"):
        settings = {"adapter": "ck_plus", "path": tmp_path, "protocol": protocol, "options": {"part": part}}
        dataset = DatasetSettings.model_validate(settings)
        for sample in read_samples(dataset, ("neutral", "disgust", "happiness"), name=part):
            persons.setdefault((part, sample.split), set()).add(sample.subject)
    assert persons["middle", "train"] == persons["labelled", "train"]
    assert persons["middle", "test"] == persons["labelled", "test"]
    assert not persons["middle", "train"] & persons["labelled", "test"]
    assert len(persons["labelled", "train"] | persons["labelled", "test"]) == 6


@pytest.mark.parametrize("text", ["", "0.0000000e+00", "8.0", "fear", "nan", "3.5", "3" * 200])
def test_a_label_of_ck_plus_that_is_none(built: Callable[[str], Path], text: str) -> None:
    path = built("ck_plus")
    file = path / "Emotion" / "S005" / "001" / "S005_001_00000006_emotion.txt"
    file.write_text(text)
    assert f"{file} holds" in fault("ck_plus", path)
    assert "expected a code from 1 to 7" in fault("ck_plus", path)


def test_faults_of_ck_plus(built: Callable[[str], Path], tmp_path: Path) -> None:
    path = built("ck_plus")
    assert "holds 6 frames, at least 7 are expected" in fault("ck_plus", path, last=6)
    (path / "Emotion" / "S005" / "001" / "S005_001_00000005_emotion.txt").write_text("1.0")
    assert "holds 2 labels" in fault("ck_plus", path)
    (path / "Emotion").rename(tmp_path / "elsewhere")
    assert "holds no folder Emotion or Emotion_labels/Emotion or Emotion_labels; set options.emotions: FOLDER" in fault(
        "ck_plus", path
    )
    (tmp_path / "elsewhere" / "S005" / "001" / "S005_001_00000005_emotion.txt").unlink()
    assert len(ids("ck_plus", path, emotions="../elsewhere")) == 8


def test_frames_of_oulu_casia(built: Callable[[str], Path]) -> None:
    path = built("oulu_casia")
    assert [sample.label for sample in listed("oulu_casia", path, neutral=True)] == [
        *("neutral", "anger", "anger", "anger"),
        *("neutral", "surprise", "surprise", "surprise"),
    ]
    assert ids("oulu_casia", path, light="Weak", last=1) == ["P001/Anger/003.png"]
    assert left_out("oulu_casia", path) == {"frame that no rule takes": 3}
    assert "holds no folder OriginalImg/NI/Strong; set options.images: " in fault("oulu_casia", path, camera="NI")
    assert ids("oulu_casia", path, images="OriginalImg/VL/Weak", last=1) == ["P001/Anger/003.png"]
    assert "holds 4 frames, at least 5 are expected" in fault("oulu_casia", path, last=4)


def test_frames_of_mmi(built: Callable[[str], Path]) -> None:
    path = built("mmi")
    # Both units are at their apex in frames 4 to 6: the middle one is 5.
    assert ids("mmi", path, apex="marked", frames=1) == ["12/S001-001/00005.png"]
    assert ids("mmi", path, apex="marked") == [f"12/S001-001/0000{frame}.png" for frame in (4, 5, 6)]
    neutral = [sample for sample in listed("mmi", path, neutral=True) if sample.label == "neutral"]
    assert [sample.id for sample in neutral] == ["12/S001-001/00001.png", "7/S016-004/00001.png"]
    assert left_out("mmi", path) == {
        "frame of a session of another state": 5,
        "frame that no rule takes": 7,
        ".avi": 3,
        ".xml": 7,
    }


def test_what_mmi_leaves_out(built: Callable[[str], Path]) -> None:
    path = built("mmi")
    sessions = path / "Sessions"
    (sessions / "7" / "session.xml").write_text('<Session><track view="1"/></Session>')
    (sessions / "8" / "S016-005.xml").unlink()
    (sessions / "9").mkdir()
    counts = left_out("mmi", path)
    assert counts["frame of a session in profile"] == 6
    assert counts["frame of a session without its XML files"] == 5
    assert counts["session whose frames are not extracted"] == 1
    assert left_out("mmi", path, frames=7)["still picture"] == 7
    assert "extract them: ffmpeg" in fault("mmi", path, frames=7)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no element found"),
        ("<Session><track></Session>", "mismatched tag"),
        ('<!DOCTYPE s [<!ENTITY a "x">]><Session>&a;</Session>', "document type, which is not read"),
        ('<!DOCTYPE s SYSTEM "file:///etc/passwd"><Session/>', "document type, which is not read"),
        ("<Session>" + " " * 1_000_000 + "</Session>", "bytes, and at most 1,000,000 are read"),
        ("<Session>" + "<t/>" * 20_001 + "</Session>", "over 20,000 elements"),
        ('<?xml version="1.0" encoding="nonsense"?><Session/>', "unknown encoding"),
    ],
)
def test_xml_that_is_damaged_or_means_harm(built: Callable[[str], Path], text: str, said: str) -> None:
    path = built("mmi")
    file = path / "Sessions" / "12" / "session.xml"
    file.write_text(text)
    assert f"{file} is no session of MMI" in fault("mmi", path)
    assert said in fault("mmi", path)


@pytest.mark.parametrize(
    "marks",
    [
        '<a><Marker Type="2" Frame="9"/><Marker Type="3" Frame="9"/></a>',
    ],
)
def test_marks_that_name_no_frame(built: Callable[[str], Path], marks: str) -> None:
    path = built("mmi")
    (path / "Sessions" / "12" / "S001-001-oao_aucs.xml").write_text(marks)
    assert "S001-001-oao_aucs.xml marks no apex within the 7 frames" in fault("mmi", path, apex="marked")


@pytest.mark.parametrize("marks", ["<a/>", '<Marker Type="2" Frame="4"/>'])
def test_a_session_without_both_marks_has_no_marked_apex(built: Callable[[str], Path], marks: str) -> None:
    path = built("mmi")
    before = left_out("mmi", path, apex="marked").get("frame of a session without a marked apex", 0)
    (path / "Sessions" / "12" / "S001-001-oao_aucs.xml").write_text(marks)
    assert left_out("mmi", path, apex="marked")["frame of a session without a marked apex"] == before + 7


def unit(number: str, *marks: tuple[int, int]) -> str:
    markers = "".join(f'<Marker Type="{kind}" Frame="{frame}"/>' for kind, frame in marks)
    return f'<ActionUnit Number="{number}">{markers}</ActionUnit>'


TWICE = ((2, 2), (3, 3), (2, 5), (3, 8))  # at its apex in frame 2, and in 5 to 7


@pytest.mark.parametrize(
    ("marks", "frame"),
    [
        (unit("12", *TWICE), 6),
        (unit("12", (2, 2), (3, 3)) + unit("12", (2, 5), (3, 8)), 6),  # the same, in two elements
        (unit("12", *TWICE) + unit("6", (2, 1), (3, 4)), 2),  # where the other one is, too
        (unit("12", *TWICE) + unit("6", (2, 1), (3, 3), (2, 4), (3, 6)), 2),  # 2 and 5: the first of equals
        (unit("12", *TWICE) + unit("6", (2, 7), (3, 8)), 7),
        (unit("12", (3, 4), (2, 7)) + unit("6", (2, 1), (3, 8)), 2),  # the clip begins and ends at an apex: 1-3 and 7
        (unit("12", (2, 5), (3, 8), (1, 4), (0, 1)), 6),  # once; other marks mean nothing
        (unit("12", (2, 1), (3, 2)) + unit("6", (2, 6), (3, 8)), None),  # never together, once each: as ever
    ],
)
def test_a_unit_of_mmi_that_is_active_several_times(
    built: Callable[[str], Path], marks: str, frame: int | None
) -> None:
    """By hand, of seven frames; a middle between two activations would be none of the expression."""
    path = built("mmi")
    (path / "Sessions" / "12" / "S001-001-oao_aucs.xml").write_text(f"<a>{marks}</a>")
    middle = (6 + 2 - 1) / 2  # between the last beginning and the first end, 3.5: the frame before it
    assert ids("mmi", path, apex="marked", frames=1) == [f"12/S001-001/{frame or int(middle):05}.png"]


def test_activations_of_mmi_that_never_meet_are_left_out_and_counted(built: Callable[[str], Path]) -> None:
    path = built("mmi")
    marks = unit("12", *TWICE) + unit("6", (2, 3), (3, 5))
    (path / "Sessions" / "12" / "S001-001-oao_aucs.xml").write_text(f"<a>{marks}</a>")
    reason = "frame of a session whose units are active several times and never all at their apex"
    assert left_out("mmi", path, apex="marked")[reason] == 7


def test_the_first_frame_of_mmi_is_neutral_and_no_apex(built: Callable[[str], Path]) -> None:
    labels = {sample.id: sample.label for sample in listed("mmi", built("mmi"), neutral=True, frames=6)}
    assert [labels[f"12/S001-001/0000{frame}.png"] for frame in (1, 2)] == ["neutral", labels["12/S001-001/00007.png"]]


def test_a_second_picture_of_a_frame_of_ck_plus_is_counted(built: Callable[[str], Path]) -> None:
    path = built("ck_plus")
    before = ids("ck_plus", path)
    file = next(path.rglob("S005_001_00000001.png"))
    file.with_suffix(".jpg").write_bytes(file.read_bytes())
    assert left_out("ck_plus", path)["second picture of a frame"] == 1
    assert len(ids("ck_plus", path)) == len(before)


def test_what_the_names_of_jaffe_and_rafd_leave_out(built: Callable[[str], Path]) -> None:
    assert left_out("jaffe", built("jaffe")) == {"picture of another name": 1, ".txt": 1}
    path = built("rafd")
    assert left_out("rafd", path) == {"picture of another name": 1, "picture of another camera": 1}
    assert ids("rafd", path, cameras=["045", "090"], gazes=["frontal"]) == [
        "Rafd045_01_Caucasian_female_angry_frontal.png",
        "Rafd090_01_Caucasian_female_angry_frontal.png",
    ]
    assert "name the folder of Rafd090_28" in fault("rafd", path, cameras=["180"])


def test_a_person_of_rafd_is_one_in_any_capitals(built: Callable[[str], Path]) -> None:
    path = built("rafd")
    file = next(path.rglob("Rafd090_01_Caucasian_female_angry_frontal.png"))
    file.with_name("Rafd090_01_caucasian_female_sad_frontal.png").write_bytes(file.read_bytes())
    persons = {sample.subject for sample in listed("rafd", path) if sample.id.startswith("Rafd090_01_")}
    assert persons == {"01_Caucasian"}


@pytest.mark.parametrize(
    ("adapter", "folds", "said"),
    [
        ("tfd", 3, "datasets.faces.protocol.folds is 3, but tfd has 5; correct it"),
        ("jaffe", 5, "datasets.faces.protocol: the adapter jaffe has no published folds; divide"),
    ],
)
def test_published_folds_are_those_of_the_adapter(adapter: str, folds: int, said: str, tmp_path: Path) -> None:
    protocol = Published(name="published", folds=folds)
    dataset = DatasetSettings(adapter=adapter, path=tmp_path, protocol=protocol)
    with pytest.raises(ConfigError, match=said):
        load_adapter(dataset, name="faces")


def test_parts_of_sfew(built: Callable[[str], Path]) -> None:
    path = built("sfew")
    assert {sample.split for sample in listed("sfew", path, validation="val")} == {"train", "val"}
    assert {sample.subject for sample in listed("sfew", path, subject="none")} == {None}
    assert left_out("sfew", path) == {"picture of the test part, which has no labels": 1}


def test_folds_and_parts_of_tfd(built: Callable[[str], Path]) -> None:
    """By hand, from the columns of the example."""
    path = built("tfd")
    assert [sample.split for sample in listed("tfd", path, fold=2)] == ["train", "train", "test", "val"]
    assert [sample.split for sample in listed("tfd", path, fold=5)] == ["test", "train", "val", "train"]
    [other] = listed("tfd", path, part="unlabelled")
    assert (other.id, other.split, other.label, other.subject) == ("tfd000001", "train", None, None)
    assert left_out("tfd", path) == {"picture without a label": 1}
    assert left_out("tfd", path, part="unlabelled") == {"picture with a label": 4}


def test_published_folds_are_shown_with_their_validation_part(built: Callable[[str], Path], tmp_path: Path) -> None:
    """By hand, from the same columns; person 3 has two pictures, tested in fold 4 and 5 and known there."""
    protocol = {"name": "published", "folds": 5}
    labels = ["anger", "happiness", "neutral", "surprise"]
    faces = "data/faces/tfd/train"
    recipe = {"strategy": "supervised", "sources": {"labelled": faces}, "deps": [faces] * 3}
    sets = {"tfd": {"adapter": "tfd", "path": str(built("tfd")), "protocol": protocol}}
    pool = {"pool": {"adapter": "image_folder", "path": "pool"}}
    settings = {"classes": labels, "seeds": [0], "anchor": "tfd", "train": "tfd", "pools": ["pool"], "targets": ["tfd"]}
    (tmp_path / "params.yaml").write_text(
        yaml.safe_dump({**settings, "datasets": {**sets, **pool}, "recipes": {"vas": recipe}})
    )
    _, header, _, *rows, _ = divide(params=tmp_path / "params.yaml").splitlines()
    assert re.split("  +", header) == ["fold", "persons", "tested", "trained on", "validation", *labels]
    known = "1 (1 trained on, too)"
    assert [re.split("  +", row) for row in rows] == [
        ["1*", "1", "1", "2", "1", "0", "0", "1", "0"],
        ["2", "1", "1", "2", "1", "0", "0", "1", "0"],
        ["3", "1", "1", "2", "1", "0", "1", "0", "0"],
        ["4", known, "1", "2", "1", "0", "0", "0", "1"],
        ["5", known, "1", "2", "1", "1", "0", "0", "0"],
    ]


@pytest.mark.parametrize("kind", ["u1", "i2"])
@pytest.mark.parametrize("pack", [False, True])
def test_pictures_of_tfd_in_any_form(
    built: Callable[[str], Path], example_module: Callable[[str], ModuleType], decode: Any, kind: str, pack: bool
) -> None:
    path, example = built("tfd"), example_module("tfd")
    found = example.arrays()
    elements = [example.matrix("images", found["images"].astype(kind))]
    elements += [example.matrix("a_note", np.zeros((1, 3))), *(example.matrix(*pair) for pair in [*found.items()][1:])]
    example.write(path / "TFD_48x48.mat", *map(example.compressed, elements) if pack else elements)
    adapter = load("fer_pipeline.datasets", "tfd")
    for sample in listed("tfd", path):
        np.testing.assert_array_equal(
            decode(adapter.read(sample, adapter.Options()))[..., 0], found["images"][int(sample.key)]
        )


def test_tfd_is_read_as_scipy_reads_what_it_writes(tmp_path: Path, example_module: Any, decode: Any) -> None:
    """Another implementation writes the file; ours reads it."""
    from scipy.io import savemat

    found, adapter = example_module("tfd").arrays(), load("fer_pipeline.datasets", "tfd")
    for compress in (False, True):
        savemat(tmp_path / "TFD_4x4.mat", found, do_compression=compress)
        samples = listed("tfd", tmp_path)
        assert [sample.label for sample in samples] == ["anger", "happiness", "neutral", "surprise"]
        for sample in samples:
            pixels = decode(adapter.read(sample, adapter.Options()))[..., 0]
            np.testing.assert_array_equal(pixels, found["images"][int(sample.key)])


def test_faults_of_tfd(built: Callable[[str], Path], example_module: Callable[[str], ModuleType]) -> None:
    path, example = built("tfd"), example_module("tfd")
    file, found = path / "TFD_48x48.mat", example.arrays()
    whole = file.read_bytes()

    def said(data: bytes) -> str:
        file.write_bytes(data)
        return fault("tfd", path)

    assert "is no MATLAB file of level 5" in said(b"")
    assert "is no MATLAB file of level 5" in said(b"x" * 500)
    assert "save -v7" in said(b"MATLAB 7.3 MAT-file".ljust(512) + b"\x89HDF\r\n\x1a\n")
    assert "is cut short or damaged" in said(whole[:-3])
    assert "has no array images or labs_ex or labs_id or folds; name the file" in said(whole[:128])
    elements = {name: example.matrix(name, values) for name, values in found.items()}
    # A compressed element whose checksum is wrong, and one that claims to be of 4 GB.
    packed = bytearray(example.compressed(elements["folds"]))
    packed[20] ^= 255
    assert "is cut short or damaged" in said(whole[: whole.index(struct.pack("<I", 15))] + bytes(packed))
    claim = elements["labs_ex"].replace(struct.pack("<ii", 5, 1), struct.pack("<ii", 2**30, 1))
    example.write(file, elements["images"], example.compressed(claim), elements["labs_id"], elements["folds"])
    assert "is cut short or damaged" in fault("tfd", path)
    wrong = {**found, "labs_ex": np.full((5, 1), 9, "i1")}
    example.write(file, *(example.matrix(*pair) for pair in wrong.items()))
    assert "has the expression 9, expected 1 to 7 or -1" in fault("tfd", path)
    short = [example.matrix(name, values[:4]) for name, values in found.items() if name != "folds"]
    example.write(file, *short, elements["folds"])
    assert "are not of equally many pictures" in fault("tfd", path)


def test_a_small_file_that_unpacks_to_much_takes_no_memory(built: Callable[[str], Path], example_module: Any) -> None:
    """A gigabyte of zeros in a megabyte, under the name of labels."""
    import tracemalloc

    path, example = built("tfd"), example_module("tfd")
    head = example.matrix("labs_ex", np.zeros((2, 2)))[:-32]
    head = head.replace(struct.pack("<ii", 2, 2), struct.pack("<ii", 2**27 // 8, 8))
    pump = zlib.compressobj()
    body = pump.compress(head) + b"".join(pump.compress(b"\0" * 2**20) for _ in range(1024)) + pump.flush()
    example.write(path / "TFD_48x48.mat", struct.pack("<II", 15, len(body)) + body)
    tracemalloc.start()
    assert "fetch it again" in fault("tfd", path)
    assert tracemalloc.get_traced_memory()[1] < 50_000_000
    tracemalloc.stop()
