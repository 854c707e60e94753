"""Read the demo's drawn pictures (`part-*.parquet`, written by the stage `synthesize`), one sample a row.

Source: our own format: columns `sample_id`, `image` (JPEG bytes), `label` (null in a pool), `subject`, `split`. A
sample's key is `<row group>:<row>`; the last row groups stay in memory, so that reading in order decodes each once.
"""

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import pyarrow as pa

from fer_pipeline.artifacts.arrow import ParquetFile, required
from fer_pipeline.core.errors import DataError
from fer_pipeline.core.samples import Sample
from fer_pipeline.core.settings import Settings

TEXT_COLUMNS = ("sample_id", "label", "subject", "split")
REMEDY = "the adapter synthetic reads only what the stage synthesize wrote: remove it and run: dvc repro synthesize"
COLUMNS = pa.schema(
    [
        *required({"sample_id": pa.string()}),
        *((name, pa.string()) for name in TEXT_COLUMNS[1:]),
        ("image", pa.binary()),
    ],
    metadata=required({}, remedy=REMEDY).metadata,
)


class Options(Settings):
    """Nothing can be chosen: the stage `synthesize` decides."""


def samples(path: Path, options: Options) -> Iterator[Sample]:
    """Yields every row of every part, in order; the column of pictures is not read."""
    files = sorted(path.glob("part-*.parquet"))
    if not files:
        raise DataError(f"{path} holds no part-*.parquet; run: dvc repro synthesize")
    for file in files:
        with _open(file) as parquet:
            parquet.require(COLUMNS.names)
            for group in range(parquet.num_row_groups):
                texts = parquet.read_row_group(group, TEXT_COLUMNS).to_pylist()
                for row, text in enumerate(texts):
                    words = (text["sample_id"], text["split"], text["label"], text["subject"])
                    yield Sample(*words, path=file, key=f"{group}:{row}")


def read(sample: Sample, options: Options) -> bytes:
    """Returns the picture's JPEG bytes."""
    group, row = map(int, sample.key.split(":"))
    try:
        modified = sample.path.stat().st_mtime_ns
    except OSError as error:
        raise DataError(f"{sample.path} cannot be read ({error.strerror}); run: dvc repro synthesize") from None
    picture = _pictures(sample.path, modified, group)[row].as_py()
    if picture is None:
        raise DataError(f"{sample.id} has no picture in {sample.path}; run: dvc repro --force --single-item synthesize")
    return picture


@lru_cache(maxsize=2)
def _pictures(file: Path, modified: int, group: int) -> pa.ChunkedArray:
    with _open(file) as parquet:
        return parquet.read_row_group(group, ["image"]).column("image")


def _open(file: Path) -> ParquetFile:
    return ParquetFile(file, COLUMNS, kind="whole Parquet file", mapped=False)
