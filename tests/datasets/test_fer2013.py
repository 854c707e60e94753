"""The `fer2013` adapter: the published layouts, and rows that are damaged."""

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
