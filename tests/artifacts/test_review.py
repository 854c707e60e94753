"""Verdicts are kept as they were given, merged to the same bytes in any order, and refused in one line."""

import csv
import itertools
import random
import re
from pathlib import Path

import pytest

from fer_pipeline.artifacts.review import (
    COLUMNS,
    Judgement,
    format_review,
    merge_reviews,
    parse_review,
    read_review,
    write_review,
)
from fer_pipeline.core.errors import DataError

CLASSES = ("anger", "fear", "neutral")
PICTURE = "0123456789abcdef" * 2
NOON = "2026-11-28T12:00:00.000Z"
GOOD = f"street/1,street,{PICTURE},right,fear,Ada,{NOON},"


def judged(
    face: str, verdict: str = "right", label: str = "fear", who: str = "Ada", when: str = NOON, sample: str = ""
):
    return Judgement(face, "street", PICTURE, verdict, label, who, when, sample)


def parse(*lines: str, **options: str) -> list[Judgement]:
    text = "\n".join((",".join(COLUMNS), *lines)) + "\n"
    return parse_review(text.encode(), "review.csv", classes=CLASSES, **options)


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    """Names that CSV has to quote too; the other reader of the same bytes is Python's own."""
    names = ["street/1", 'a "quoted", name', "two\nlines", "one\rtwo", "= 1 + 1", " blank ", "ü" * 300]
    rows = [judged(name, sample="0 12") for name in names]
    path = tmp_path / "review.csv"
    write_review(path, rows)
    assert read_review(path, classes=CLASSES) == rows
    with path.open(encoding="utf-8", newline="") as stream:
        assert [*csv.reader(stream)] == [[*COLUMNS], *map(list, rows)]
    marked = b"\xef\xbb\xbf" + path.read_bytes()  # as spreadsheets save it
    assert parse_review(marked, path, classes=CLASSES) == rows


def test_other_writers_columns_and_times_become_one_form() -> None:
    """The columns in another order and without `sample`; a time of another zone; hexadecimal digits in capitals."""
    text = (
        f"when,who,label,verdict,content,set,face_id\n2026-11-28T13:30:00+01:30,Ada,,other,{PICTURE.upper()},street,f\n"
    )
    assert parse_review(text.encode(), "x", classes=CLASSES) == [judged("f", "other", "", when=NOON)]


def test_a_list_of_faces_to_judge_may_be_filled_by_hand() -> None:
    """Who judged and when are said once for rows that do not; one without a verdict is kept, and merged to none."""
    open_row, judged_row = f"a,street,{PICTURE},,fear,,,7", f"b,street,{PICTURE},wrong,fear,,,7"
    rows = parse(open_row, judged_row, GOOD, who="Bob", when="2026-01-01T00:00:00Z")
    assert rows[0] == Judgement("a", "street", PICTURE, "", "fear", "", "", "7")
    assert rows[1] == judged("b", "wrong", who="Bob", when="2026-01-01T00:00:00.000Z", sample="7")
    assert [row.face_id for row in merge_reviews(rows)] == ["b", "street/1"]


def test_merging_in_any_order_gives_the_same_bytes() -> None:
    """Each person's newest verdict about each picture counts, by brute force; a picture's draws add up."""
    chance = random.Random(0)
    rows = [
        Judgement(
            f"f{chance.randrange(4)}",
            chance.choice(["street", "film"]),
            chance.choice([PICTURE, PICTURE[::-1]]),
            *chance.choice([("right", "fear"), ("wrong", "anger"), ("other", "neutral"), ("other", "")]),
            chance.choice(["Ada", "Bob"]),
            f"2026-11-28T12:00:{number // 60:02}.{number % 60:03}Z",
            chance.choice(["", "3", "12", "3 12"]),
        )
        for number in range(240)
    ]
    whole = format_review(merge_reviews(rows))
    for _ in range(20):
        chance.shuffle(rows)
        cut = chance.randrange(len(rows))
        assert format_review(merge_reviews(merge_reviews(rows[:cut]), merge_reviews(rows[cut:]))) == whole
    found = parse_review(whole.encode(), "x", classes=CLASSES)
    key = lambda row: (*row.picture, row.who)  # noqa: E731
    expected = {key(row): row for row in sorted(rows, key=lambda row: row.when)}
    assert [row[:7] for row in found] == [row[:7] for _, row in sorted(expected.items())]
    for row in found:
        draws = {draw for one in rows if one.picture == row.picture for draw in one.sample.split()}
        assert row.sample.split() == sorted(draws, key=int)


def test_a_person_who_says_two_things_at_once_is_named() -> None:
    two = [judged("a"), judged("a", "wrong"), judged("a", who="Bob")]
    for rows in itertools.permutations(two):
        with pytest.raises(
            DataError, match=r"'Ada' says of the face 'a' of 'street' both right fear and wrong fear at 2026"
        ):
            merge_reviews(rows)
    later = judged("a", "other", "anger", when="2026-11-28T12:00:00.001Z")
    assert merge_reviews([*two, later]) == [later, two[2]], "what is newer stands above both"


def test_a_verdict_that_is_taken_back_leaves_no_row() -> None:
    """What is older goes with it; what is newer, or of others, or of another face, stays."""
    noon, one, two = (f"2026-11-28T12:00:0{second}.000Z" for second in range(3))
    back = judged("a", "withdrawn", "", when=one)
    kept = [judged("a", who="Bob", when=noon, sample="7"), judged("b", when=noon)]
    for rows in itertools.permutations([judged("a", when=noon), back, *kept]):
        assert merge_reviews(rows) == kept
    anew = judged("a", "wrong", when=two)
    assert merge_reviews([back, anew], kept) == [anew._replace(sample="7"), *kept]
    assert parse(format_review([back]).splitlines()[1]) == [back]


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("street/1,street", "row 3, has 2 cells, expected 8"),
        (
            GOOD.replace("right", "maybe"),
            "row 3, has the verdict 'maybe', expected right, wrong, other, withdrawn or nothing",
        ),
        (GOOD.replace("fear", "joy"), "row 3, has the label 'joy', expected one of anger, fear, neutral"),
        (GOOD.replace("fear", "j" * 300), r"row 3, has the label 'j+\.\.\.j+'"),
        (GOOD.replace("fear", ""), "row 3, has the label '', expected one of"),
        (GOOD.replace(PICTURE, "1.2E+31"), r"row 3, has the content '1\.2E\+31', expected the 32 hex digits"),
        (GOOD.replace("Ada", " "), "row 3, does not say who gave the verdict"),
        (GOOD.replace("Ada", "A" * 300), "row 3, has a name of 300 letters in who, at most 200"),
        (GOOD.replace("Ada", "A\0a"), "row 3, has a NUL in who"),
        (
            GOOD.replace(NOON, "28.11.2026"),
            r"row 3, has '28\.11\.2026' in when, expected a time",
        ),
        (GOOD.replace(NOON, "2026-11-28T12:00:00"), "row 3, has '2026-11-28T12:00:00' in when"),
        (GOOD.replace(NOON, "0001-01-01T00:00:00+01:00"), "row 3, has '0001"),
        (GOOD.replace("street/1", ""), "row 3, names no face_id or no set"),
        (GOOD + "seven", "row 3, has the sample 'seven', expected nothing or the seeds"),
        ('"street/1', "row 3, unexpected end of data"),
        (GOOD.replace("street/1", "x" * 200_000), "row 3, field larger than field limit"),
    ],
)
def test_a_bad_row_is_one_line_with_its_number(line: str, fault: str) -> None:
    with pytest.raises(DataError, match=fault) as caught:
        parse(GOOD, line)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600
    assert re.match(r"review\.csv, row 3, .*; correct or remove it$", str(caught.value))


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (b"", r"has the columns '', expected face_id,set,content,verdict,label,who,when,sample; correct its row 1"),
        (b"face_id,set\n", "has the columns 'face_id,set', expected face_id,set,content"),
        (",".join((*COLUMNS, "set")).encode(), "has the columns"),
        (";".join(COLUMNS).encode(), "has the columns 'face_id;set"),
        (",".join(COLUMNS).encode() + b"\n\n\xff\n", r"row 3, is no text in UTF-8; save it as CSV in UTF-8"),
    ],
)
def test_a_bad_file_is_one_line(tmp_path: Path, data: bytes, fault: str) -> None:
    path = tmp_path / "review.csv"
    path.write_bytes(data)
    with pytest.raises(DataError, match=fault):
        read_review(path, classes=CLASSES)
    with pytest.raises(DataError, match="does not exist; make it with the line face_id,set"):
        read_review(tmp_path / "none.csv", classes=CLASSES)
    with pytest.raises(DataError, match="cannot be read"):
        read_review(tmp_path, classes=CLASSES)
