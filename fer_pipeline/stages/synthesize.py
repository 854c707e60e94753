"""Stage `synthesize`: settings in, one raw set of the demo world and its truth out.

The only stage that may know the truth, which it writes apart. The bytes do not depend on the number of workers.
"""

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa
from pydantic import Field

from fer_pipeline.core.errors import ConfigError
from fer_pipeline.core.files import replacing_folder
from fer_pipeline.core.progress import progress
from fer_pipeline.core.settings import PlainName, Settings
from fer_pipeline.core.summaries import Summary
from fer_pipeline.synthesis.records import data_table, part_path, truth_table, write_table
from fer_pipeline.synthesis.sets import SetSettings, Studio, Turn, parts
from fer_pipeline.synthesis.styles import find_style


class Config(Settings):
    """The section `synthesize`."""

    sets: dict[PlainName, SetSettings] = Field({})  # without any, the stage vanishes from the graph
    size: Annotated[int, Field(ge=48, le=1024)] = 128  # pixels of a side
    styles: dict[str, dict[str, Any]] = Field({})  # changes to the built-in styles, or new ones
    rows_per_part: Annotated[int, Field(ge=1)] = 1000
    workers: Annotated[int, Field(ge=1)] = 2


@dataclass(frozen=True, slots=True)
class _Job:
    settings: SetSettings
    seed: int
    name: str
    size: int
    styles: dict[str, dict[str, Any]]
    folder: Path
    number: int
    turns: tuple[Turn, ...]


def run(config: Config, *, name: str, seed: int, out: Path, truth: Path) -> Summary:
    """Draws the set `name` into the folder `out` and its truth into the file `truth`."""
    if name not in config.sets:
        raise ConfigError(f"synthesize: there is no set {name!r}; params has the sets {', '.join(sorted(config.sets))}")
    settings = config.sets[name]
    for style in settings.styles:
        find_style(style, config.styles)
    turns = Studio(settings, seed=seed, name=name, size=config.size, styles=config.styles).turns()
    with replacing_folder(out) as folder:
        jobs = [
            _Job(settings, seed, name, config.size, config.styles, folder, number, tuple(part))
            for number, part in parts(turns, config.rows_per_part)
        ]
        with progress(f"synthesize {name}", len(turns), "portraits") as advance:
            tables = []
            for table in _drawn(jobs, config.workers):
                tables.append(table)
                advance(table.num_rows)
        told = pa.concat_tables(tables)
        write_table(truth, told)
    dominant = told.num_rows - told.column("dominant").null_count
    counts: dict[str, int | float] = {"portraits": told.num_rows, "parts": len(jobs), "with_dominant": dominant}
    splits = ", ".join(f"{split} {count:,}" for split, count in sorted(settings.splits.items()))
    line = f"synthesize {name}: {told.num_rows:,} portraits ({splits}), {dominant:,} with a dominant expression"
    return Summary(stage="synthesize", line=line, counts=counts)


def _drawn(jobs: list[_Job], workers: int) -> Iterator[pa.Table]:
    if workers == 1 or len(jobs) == 1:
        yield from map(_draw_part, jobs)
        return
    # Spawned, not forked: the caller may hold threads.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(jobs)), mp_context=context) as pool:
        yield from pool.map(_draw_part, jobs)


def _draw_part(job: _Job) -> pa.Table:
    studio = Studio(job.settings, seed=job.seed, name=job.name, size=job.size, styles=job.styles)
    rows = [studio.draw(turn)[1] for turn in job.turns]
    write_table(part_path(job.folder, job.number), data_table(rows))
    return truth_table(rows, name=job.name)
