"""The `.rec` reader against files written by MXNet itself and by the writer in `examples/recordio.py`."""

import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from fer_pipeline.core.errors import DataError
from fer_pipeline.core.samples import Sample
from fer_pipeline.datasets import recordio
from fer_pipeline.datasets.recordio import Options

AUTO, STREAM = Options(), Options(index="none")


@pytest.fixture(scope="session")
def writer(example_module: Callable[[str], ModuleType]) -> ModuleType:
    return example_module("recordio")


def listed(path: Path, options: Options = AUTO) -> list[Sample]:
    return list(recordio.samples(path, options))


def fault(path: Path, options: Options = AUTO) -> str:
    with pytest.raises(DataError) as caught:
        listed(path, options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_pool_that_mxnet_wrote(sample_faces: Path, decode: Callable[[bytes], np.ndarray]) -> None:
    """Numbers from the sample faces' README: 8,238 pictures of 3,508 identities between a header and their ranges."""
    path = sample_faces / "pool" / "pool.rec"
    found = listed(path)
    assert [sample.id for sample in found] == [str(number) for number in range(1, 8239)]
    assert {sample.subject for sample in found} == {str(number) for number in range(11747 - 8239)}
    assert listed(path, STREAM) == found
    for sample in found[::1000]:
        assert decode(recordio.read(sample, AUTO)).shape == (112, 112, 3)


def test_every_byte_of_the_pool_is_accounted_for(sample_faces: Path) -> None:
    """The payload ranges lie in order, and between two of them are just padding, frame and header: 32 to 35 bytes."""
    found = listed(sample_faces / "pool" / "pool.rec")
    ends = np.array([sample.offset + sample.length for sample in found])
    starts = np.array([sample.offset for sample in found])
    gaps = starts[1:] - ends[:-1]
    assert set(gaps) <= {32, 33, 34, 35}


def test_the_writer_frames_as_mxnet_does(sample_faces: Path, writer: ModuleType) -> None:
    """The tests' writer is trusted since it repeats the sample file's first records byte for byte."""
    data = (sample_faces / "pool" / "pool.rec").read_bytes()
    header = writer.frame(writer.pack(b"", label=[8239.0, 11747.0], number=0))
    first = listed(sample_faces / "pool" / "pool.rec")[0]
    picture = writer.frame(writer.pack(data[first.offset : first.offset + first.length], label=0, number=1))
    assert data.startswith(header + picture)


@pytest.mark.parametrize("options", [AUTO, STREAM], ids=["index", "stream"])
@pytest.mark.parametrize("position", [0, 4, 100])
def test_a_payload_with_the_magic_word_comes_back_whole(
    writer: ModuleType, tmp_path: Path, position: int, options: Options
) -> None:
    payloads = [b"a" * position + writer.MAGIC * repeats + b"tail"[:rest] for repeats in (1, 2, 3) for rest in range(4)]
    records = [writer.pack(payload, label=5, number=number) for number, payload in enumerate(payloads)]
    path = writer.write(tmp_path, records)
    found = listed(path, options)
    assert [recordio.read(sample, options) for sample in found] == payloads
    assert {sample.subject for sample in found} == {"5"}


def test_the_magic_word_off_the_grid_of_four_splits_nothing(writer: ModuleType, tmp_path: Path) -> None:
    payload = b"abc" + writer.MAGIC + b"d"
    path = writer.write(tmp_path, [writer.pack(payload, label=1, number=0)])
    [sample] = listed(path)
    assert sample.key == ""
    assert recordio.read(sample, AUTO) == payload


def test_the_magic_word_inside_the_header_is_put_back(writer: ModuleType, tmp_path: Path) -> None:
    """id = 0xced7230a stands at byte 8 of the data: the record is split before its header is complete."""
    path = writer.write(tmp_path, [writer.pack(b"payload", label=[3.0, 4.0], number=0xCED7230A)])
    [sample] = listed(path)
    assert sample.subject == "3"
    assert recordio.read(sample, AUTO) == b"payload"


def test_identity_records_are_reported_without_a_header_too(writer: ModuleType, tmp_path: Path) -> None:
    records = [writer.pack(b"x", label=[1.0, 0.0], number=0), writer.pack(b"", label=[1.0, 2.0], number=1)]
    assert [sample.id for sample in listed(writer.write(tmp_path, records))] == ["0"]


def test_a_record_behind_the_headers_range_is_no_picture_whatever_it_holds(writer: ModuleType, tmp_path: Path) -> None:
    records = [
        writer.pack(b"", label=[2.0, 3.0], number=0),
        writer.pack(b"x", label=1, number=1),
        writer.pack(b"not a picture", label=0, number=2),
    ]
    assert [sample.id for sample in listed(writer.write(tmp_path, records))] == ["1"]


def test_labels_can_be_classes(writer: ModuleType, tmp_path: Path) -> None:
    labels = [2, [4.5, 1.0], float("nan")]
    records = [writer.pack(b"x", label=label, number=number) for number, label in enumerate(labels)]
    found = listed(writer.write(tmp_path, records), Options(labels="class"))
    assert [(sample.label, sample.subject) for sample in found] == [("2", None), ("4.5", None), (None, None)]


def test_names_are_the_keys_of_the_index(writer: ModuleType, tmp_path: Path) -> None:
    """The order is the file's, whatever the order of the index."""
    records = [writer.pack(bytes([65 + number]), label=number, number=0) for number in range(3)]
    path = writer.write(tmp_path, records, keys=[30, 10, 20])
    lines = (tmp_path / "pool.idx").read_text().splitlines()
    (tmp_path / "pool.idx").write_text("\n".join(reversed(lines)))
    assert [(sample.id, recordio.read(sample, AUTO)) for sample in listed(path)] == [
        ("30", b"A"),
        ("10", b"B"),
        ("20", b"C"),
    ]


def ten_records(writer: ModuleType, folder: Path) -> tuple[Path, list[int]]:
    records = [writer.pack(b"", label=[10.0, 12.0], number=0)]
    records += [writer.pack(b"p" * (20 + number), label=1, number=number) for number in range(1, 10)]
    records += [writer.pack(b"", label=[1.0, 10.0], number=number) for number in (10, 11)]
    path = writer.write(folder, records)
    return path, [int(line.split("\t")[1]) for line in (folder / "pool.idx").read_text().splitlines()]


@pytest.mark.parametrize("beyond", [1, 7, 8, 30])
def test_a_truncated_file_is_reported_by_record_and_byte(writer: ModuleType, tmp_path: Path, beyond: int) -> None:
    path, offsets = ten_records(writer, tmp_path)
    size = offsets[5] + beyond
    path.write_bytes(path.read_bytes()[:size])
    message = fault(path, STREAM)
    assert f"truncated: record 5 at byte {offsets[5]:,} does not end within the file's {size:,} bytes" in message
    assert "fetch or copy the file again" in message
    # With an index the last record is looked at first: nothing is given before the fault.
    assert f"truncated: record 11 at byte {offsets[11]:,}" in fault(path)


def test_a_file_cut_between_two_records_is_reported_by_the_header(writer: ModuleType, tmp_path: Path) -> None:
    path, offsets = ten_records(writer, tmp_path)
    path.write_bytes(path.read_bytes()[: offsets[6]])
    assert "holds 5 pictures where its header says 9" in fault(path, STREAM)


def test_an_index_cut_short_is_reported(writer: ModuleType, tmp_path: Path) -> None:
    path, offsets = ten_records(writer, tmp_path)
    lines = (tmp_path / "pool.idx").read_text().splitlines(keepends=True)
    (tmp_path / "pool.idx").write_text("".join(lines[:6]))
    assert f"ends at byte {offsets[6]:,}" in fault(path)


def test_an_index_with_a_hole_is_reported(writer: ModuleType, tmp_path: Path) -> None:
    path, _ = ten_records(writer, tmp_path)
    lines = (tmp_path / "pool.idx").read_text().splitlines(keepends=True)
    (tmp_path / "pool.idx").write_text("".join(lines[:4] + lines[5:]))
    said = fault(path)
    assert f"lists 8 pictures where the header of {path} says 9" in said
    assert "remove it to read the .rec from its start" in said
    assert "again" not in said


@pytest.mark.parametrize("index", ["", "0\t0\n1\t40\n", None])
def test_an_empty_file_is_not_its_index_fault(writer: ModuleType, tmp_path: Path, index: str | None) -> None:
    path, _ = ten_records(writer, tmp_path)
    path.write_bytes(b"")
    (tmp_path / "pool.idx").unlink()
    if index is not None:
        (tmp_path / "pool.idx").write_text(index)
    assert fault(path) == f"{path} is empty; fetch or copy the file again and compare its size"


def test_a_web_page_in_the_place_of_the_file_is_called_so(writer: ModuleType, tmp_path: Path) -> None:
    path, _ = ten_records(writer, tmp_path)
    (tmp_path / "pool.idx").write_text("<html>")
    assert "pool.idx is a web page" in fault(path)
    path.write_text("version https://git-lfs.github.com/spec/v1\n")
    assert "pool.rec is a pointer of git-LFS" in fault(path)


@pytest.mark.parametrize("text", ["", "0 0 0\n", "0\tx\n", "1\t0\n1\t40\n", "0\t-1\n"])
def test_a_damaged_index_is_reported_with_the_cure(writer: ModuleType, tmp_path: Path, text: str) -> None:
    path, _ = ten_records(writer, tmp_path)
    (tmp_path / "pool.idx").write_text(text)
    assert "remove it to read the .rec from its start" in fault(path)


@pytest.mark.parametrize("options", [AUTO, STREAM], ids=["index", "stream"])
@pytest.mark.parametrize(
    ("at", "value", "said"),
    [
        (0, 0xCED7230B, "the magic word is 0xced7230b"),
        (4, 2 << 29 | 44, "it goes on a record that nothing begins"),
        (4, 1 << 29 | 48, "the parts of the record are out of order"),
        (4, 8, "8 bytes are too few for the image header"),
        (8, 1000, "1000 labels do not fit"),
    ],
)
def test_damage_is_reported_by_record_and_byte(
    writer: ModuleType, tmp_path: Path, at: int, value: int, said: str, options: Options
) -> None:
    path, offsets = ten_records(writer, tmp_path)
    data = bytearray(path.read_bytes())
    struct.pack_into("<I", data, offsets[4] + at, value)
    path.write_bytes(data)
    message = fault(path, options)
    assert said in message
    assert "record 4 at byte" in message or "record 5 at byte" in message


def test_a_file_that_shrank_after_listing_is_no_short_picture(writer: ModuleType, tmp_path: Path) -> None:
    path, offsets = ten_records(writer, tmp_path)
    last = listed(path)[-1]
    path.write_bytes(path.read_bytes()[: offsets[9] + 40])
    with pytest.raises(DataError, match="ends within record 9"):
        recordio.read(last, AUTO)


def test_a_folder_with_one_rec_is_its_file(writer: ModuleType, tmp_path: Path) -> None:
    path, _ = ten_records(writer, tmp_path)
    assert listed(tmp_path) == listed(path)
    (tmp_path / "other.rec").touch()
    assert "must hold one .rec file, found other.rec, pool.rec" in fault(tmp_path)


def test_no_picture_is_held(writer: ModuleType, tmp_path: Path) -> None:
    """A sample is its place: replacing its name gives the bytes of the place."""
    path, _ = ten_records(writer, tmp_path)
    first, second = listed(path)[:2]
    assert recordio.read(replace(first, offset=second.offset, length=second.length), AUTO) == b"p" * 22
