"""The `fer2013` adapter: the published layouts, and rows that are damaged."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fer_pipeline.core.errors import DataError
from fer_pipeline.core.samples import Sample
from fer_pipeline.datasets import fer2013
from fer_pipeline.datasets.fer2013 import Options

SMALL = Options(size=2)


def listed(path: Path, text: str) -> list[Sample]:
    path.write_bytes(text.encode())
    return list(fer2013.samples(path, SMALL))


@pytest.mark.parametrize(
    "text",
    [
        "emotion,pixels,Usage\n4,0 64 128 255,PrivateTest\n",
        "emotion, Usage, pixels\n4, PrivateTest, 0 64 128 255\n",
        'emotion,pixels,Usage\r\n4,"0 64 128 255",PrivateTest',
        '\ufeff"emotion","pixels","Usage"\n4,0 64 128 255,PrivateTest\n',
    ],
    ids=["fer2013", "icml_face_data", "quoted", "byte order mark"],
)
def test_the_layouts_that_are_about(tmp_path: Path, text: str, decode: Callable[[bytes], np.ndarray]) -> None:
    [sample] = listed(tmp_path / "fer.csv", text)
    assert (sample.id, sample.split, sample.label) == ("fer0000000", "test", "sadness")
    assert decode(fer2013.read(sample, SMALL))[..., 0].tolist() == [[0, 64], [128, 255]]


def test_columns_that_the_challenge_left_out(tmp_path: Path) -> None:
    assert [(s.split, s.label) for s in listed(tmp_path / "test.csv", "pixels\n1 2 3 4\n")] == [(None, None)]
    assert [(s.split, s.label) for s in listed(tmp_path / "t.csv", "emotion,pixels\n1,1 2 3 4\n")] == [
        (None, "disgust")
    ]


def test_numbers_outside_the_seven_stay_as_they_are(tmp_path: Path) -> None:
    """`align` then lists them with their counts as labels outside the classes."""
    rows = "".join(f"{emotion},1 2 3 4,Training\n" for emotion in ("7", "-1", "", "x"))
    assert [s.label for s in listed(tmp_path / "a.csv", "emotion,pixels,Usage\n" + rows)] == ["7", "-1", None, "x"]


@pytest.mark.parametrize(
    "pixels", ["1 2 3", "1 2 3 4 5", "1 2 3 256", "1 2 3 -4", "1 2 3 x", "1 2 3 4.5", "", "9" * 40]
)
def test_a_bad_row_is_an_unreadable_picture_and_its_neighbours_are_not(tmp_path: Path, pixels: str) -> None:
    rows = ("1 2 3 4", pixels, "1 2 3 4")
    text = "emotion,pixels,Usage\n" + "".join(f"0,{row},Training\n" for row in rows)
    found = listed(tmp_path / "fer.csv", text)
    with pytest.raises(DataError, match="fer0000001"):
        fer2013.read(found[1], SMALL)
    assert fer2013.read(found[0], SMALL) == fer2013.read(found[2], SMALL)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("image,label\na.jpg,3\n", "has no column 'pixels'; found 'image', 'label'"),
        ("emotion,pixels,Usage\n0,1 2 3 4,Training\n0,1 2", r"row 1 \(at byte 40\): 2 cells where 3 columns"),
        ("emotion,pixels,Usage\n0,1 2 3 4,Sometimes\n", "row 0: 'Sometimes' is no known split"),
        ("emotion,pixels,Usage\n", "has no row"),
        ("", "has no column 'pixels'"),
    ],
)
def test_a_file_that_is_not_the_set_is_one_line(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        listed(tmp_path / "fer.csv", text)


HEADER = "Usage,Image name,neutral,happiness,surprise,sadness,anger,disgust,fear,contempt,unknown,NF\n"
VOTES = {  # by hand, after the published rule; the numbers of the names are not those of the rows
    "Training,fer0000000.png,4,0,0,1,3,2,0,0,0,0": "picture without a majority",  # 4 of 4 + 3 + 2
    "Training,fer0000001.png,6,0,1,1,2,0,0,0,0,0": "neutral",
    "PublicTest,,0,0,0,0,0,0,0,0,0,10": "picture voted no face",
    "PrivateTest,fer0000002.png,1,1,1,1,1,1,2,1,1,0": "fear",  # what one person says alone does not count
    "PrivateTest,fer0000003.png,0,5,5,0,0,0,0,0,0,0": "picture without a majority",
    "PrivateTest,fer0000004.png,0,0,0,0,0,0,0,0,9,1": "picture voted unknown",
    "PrivateTest,fer0000005.png,1,1,1,1,1,1,1,1,1,1": "picture without a majority",
    "PrivateTest,fer0000006.png,0,1,0,0,0,0,0,8,1,0": "contempt",
}


def written(folder: Path, votes: str, rows: int = len(VOTES)) -> list[Sample]:
    splits = [row.split(",")[0] for row in VOTES][:rows]
    pixels = "".join(f"0,1 2 3 {number},{split}\n" for number, split in enumerate(splits))
    (folder / "fer2013.csv").write_text("emotion,pixels,Usage\n" + pixels)
    (folder / "fer2013new.csv").write_bytes(votes.encode())
    return list(fer2013.samples(folder, Options(size=2, votes="fer2013new.csv")))


def test_votes_are_joined_by_row_and_what_has_no_class_is_counted(
    tmp_path: Path, decode: Callable[[bytes], np.ndarray]
) -> None:
    found = written(tmp_path, HEADER + "\n".join(VOTES))
    assert [(one.id, one.split, one.label) for one in found] == [
        ("fer0000001", "train", "neutral"),
        ("fer0000003", "test", "fear"),
        ("fer0000007", "test", "contempt"),
    ]
    assert [decode(fer2013.read(one, SMALL))[1, 1, 0] for one in found] == [1, 3, 7]
    left_out = fer2013.left_out(tmp_path, Options(votes="fer2013new.csv"))
    assert left_out == Counter(label for label in VOTES.values() if label.startswith("picture"))
    assert not fer2013.left_out(tmp_path, SMALL)


@pytest.mark.parametrize(
    ("votes", "said"),
    [
        (HEADER + "\n".join([*VOTES][:-1]), "found fewer in fer2013new.csv"),
        (HEADER + "\n".join([*VOTES, *VOTES]), "found fewer in that of the pictures"),
        (HEADER + "\n".join(reversed(VOTES)), "fer0000000 is of train, but of test in fer2013new.csv"),
        (HEADER + "Training,a,1\n", "row 0: expected 12 cells"),
        (HEADER + "Training,a,x,0,0,0,0,0,0,0,0,0\n", "row 0: expected 12 cells with whole numbers"),
        (HEADER + f"Training,a,{'9' * 5000},0,0,0,0,0,0,0,0,0\n", "row 0: expected 12 cells with whole numbers"),
        (HEADER + "Sometimes,a,10,0,0,0,0,0,0,0,0,0\n", "'Sometimes' is no known split"),
        ('fer0000000.png,"(0, 0, 48, 48)",4,0,0,1,3,2,0,0,0,0\n', "is no table of votes"),
        ("", "is no table of votes"),
    ],
)
def test_a_table_that_is_not_of_these_votes_is_one_line(tmp_path: Path, votes: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        written(tmp_path, votes)


def test_votes_lie_where_dvc_sees_them(tmp_path: Path) -> None:
    written(tmp_path, HEADER + "\n".join(VOTES))
    with pytest.raises(DataError, match="name the folder that holds both"):
        list(fer2013.samples(tmp_path / "fer2013.csv", Options(votes="fer2013new.csv")))
    with pytest.raises(DataError, match=r"absent\.csv does not exist"):
        list(fer2013.samples(tmp_path, Options(votes="absent.csv")))
