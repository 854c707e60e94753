"""Draw one raw set of the demo world into Parquet parts, and its truth into a file apart.

The only stage that may know the truth. The bytes do not depend on the number of workers.
"""

import multiprocessing
from collections.abc import Generator
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from fer_pipeline.core.errors import ConfigError
from fer_pipeline.core.files import replacing, replacing_folder
from fer_pipeline.core.progress import progress
from fer_pipeline.core.settings import PlainName, ProjectSettings, Settings, Summary
from fer_pipeline.synthesis.sets import PortraitSet, Row, SetSettings, data_table, truth_table

ROWS_PER_CALL = 50  # so few that all workers end together, also in a set of one part
PARQUET: dict[str, Any] = {"row_group_size": 100, "compression": "zstd"}  # few rows: one picture is cheap to read


class Config(Settings):
    """The section `synthesize`."""

    sets: dict[PlainName, SetSettings] = Field({})  # without any, the stage vanishes from the graph
    size: Annotated[int, Field(ge=48, le=1024)] = 128  # pixels of a side
    styles: dict[str, dict[str, Any]] = Field({})  # changes to the built-in styles, or new ones
    rows_per_part: Annotated[int, Field(ge=1)] = 1000
    workers: Annotated[int, Field(ge=1)] = 2


def run(config: Config, project: ProjectSettings, *, name: str, out: Path, truth: Path) -> Summary:
    """Draw one set of the demo world.

    Args:
        name: The set's name in the settings.
        out: The folder of pictures that is written.
        truth: Where the truth about the portraits is written, apart from them.
    """
    if name not in config.sets:
        raise ConfigError(f"synthesize: there is no set {name!r}; params has the sets {', '.join(sorted(config.sets))}")
    settings = config.sets[name]
    portraits = PortraitSet(settings, seed=project.seeds[0], name=name, size=config.size, styles=config.styles)
    count = len(portraits.keys())
    tables = []
    with replacing_folder(out) as folder:
        with (
            progress(f"synthesize {name}", count, "portraits") as advance,
            closing(_draw_rows(portraits, config.workers)) as rows,
        ):
            for start in range(0, count, config.rows_per_part):
                part = []
                for row in islice(rows, config.rows_per_part):
                    part.append(row)
                    advance(1)
                path = folder / f"part-{start // config.rows_per_part:05d}.parquet"
                pq.write_table(data_table(part), path, **PARQUET)
                tables.append(truth_table(part, name=name))
        table = pa.concat_tables(tables)
        with replacing(truth) as temporary:
            pq.write_table(table, temporary, **PARQUET)
    dominant = count - table.column("dominant").null_count
    splits = ", ".join(f"{split} {number:,}" for split, number in sorted(settings.splits.items()))
    line = f"synthesize {name}: {count:,} portraits ({splits}), {dominant:,} with a dominant expression"
    counts: dict[str, int | float] = {"portraits": count, "parts": len(tables), "with_dominant": dominant}
    return Summary(stage="synthesize", line=line, counts=counts)


def _draw_rows(portraits: PortraitSet, workers: int) -> Generator[Row, None, None]:
    """The portraits in order, drawn here or by worker processes."""
    keys = portraits.keys()
    if workers == 1 or len(keys) <= ROWS_PER_CALL:
        yield from map(portraits.draw_row, keys)
        return
    workers = min(workers, -(-len(keys) // ROWS_PER_CALL))
    # Spawned, not forked: the caller may hold threads.
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(portraits.draw_row, keys, chunksize=ROWS_PER_CALL)
