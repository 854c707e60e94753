"""The `synthetic` adapter: parts that are not whole, and reading in order decodes each row group once."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from fer_pipeline.core.errors import DataError
from fer_pipeline.datasets import synthetic

OPTIONS = synthetic.Options()


def test_reading_in_order_opens_each_row_group_once(
    build_example: Callable[[str], dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = list(synthetic.samples(build_example("synthetic")["path"], OPTIONS))
    reads: list[tuple[int, Any]] = []
    original = pq.ParquetFile.read_row_group

    def counted(self: Any, group: int, columns: Any = None, **rest: Any) -> Any:
        reads.append((group, columns))
        return original(self, group, columns=columns, **rest)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", counted)
    for sample in found:
        synthetic.read(sample, OPTIONS)
    assert reads == [(group, ["image"]) for group in (0, 1, 0, 1)]


def test_a_part_written_anew_is_read_anew(build_example: Callable[[str], dict[str, Any]]) -> None:
    example = build_example("synthetic")
    first = next(iter(synthetic.samples(example["path"], OPTIONS)))
    before = synthetic.read(first, OPTIONS)
    example["spoil"]()
    assert synthetic.read(first, OPTIONS) == b"\0" * len(before)


def test_half_a_part_is_one_line(build_example: Callable[[str], dict[str, Any]]) -> None:
    path: Path = build_example("synthetic")["path"]
    part = path / "part-00001.parquet"
    part.write_bytes(part.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"part-00001.parquet is no readable whole Parquet file.*dvc repro synthesize"):
        list(synthetic.samples(path, OPTIONS))


def test_another_table_is_reported_by_its_columns(tmp_path: Path) -> None:
    import pyarrow as pa

    pq.write_table(pa.table({"image": [b"x"], "name": ["a"]}), tmp_path / "part-00000.parquet")
    with pytest.raises(DataError, match="has no column sample_id, label, subject, split; found image, name"):
        list(synthetic.samples(tmp_path, OPTIONS))
