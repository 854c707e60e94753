"""Stage `synthesize`: settings in, one raw set of the demo world and its truth out.

The only stage that may know the truth, which it writes apart. The bytes do not depend on the number of workers.
"""

import multiprocessing
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa
from pydantic import Field

from fer_pipeline.core.errors import ConfigError
from fer_pipeline.core.files import replacing_folder
from fer_pipeline.core.progress import progress
from fer_pipeline.core.settings import PlainName, ProjectSettings, Settings
from fer_pipeline.core.summary import Summary
from fer_pipeline.synthesis.records import data_table, part_path, truth_table, write_table
from fer_pipeline.synthesis.sets import Row, SetSettings, Studio, Turn, parts
from fer_pipeline.synthesis.styles import find_style


class Config(Settings):
    """The section `synthesize`."""

    sets: dict[PlainName, SetSettings] = Field({})  # without any, the stage vanishes from the graph
    size: Annotated[int, Field(ge=48, le=1024)] = 128  # pixels of a side
    styles: dict[str, dict[str, Any]] = Field({})  # changes to the built-in styles, or new ones
    rows_per_part: Annotated[int, Field(ge=1)] = 1000
    workers: Annotated[int, Field(ge=1)] = 2


TURNS_PER_CALL = 50  # so few that all workers end together, also in a set of one part
_studio: Studio | None = None  # in a worker


def run(config: Config, project: ProjectSettings, *, name: str, out: Path, truth: Path) -> Summary:
    """Draw one set of the demo world.

    Args:
        config: The section `synthesize`.
        project: What all stages share.
        name: The set's name in the settings.
        out: The folder of pictures that is written.
        truth: Where the truth about the portraits is written, apart from them.
    """
    if name not in config.sets:
        raise ConfigError(f"synthesize: there is no set {name!r}; params has the sets {', '.join(sorted(config.sets))}")
    settings = config.sets[name]
    for style in settings.styles:
        find_style(style, config.styles)
    studio = Studio(settings, seed=project.seeds[0], name=name, size=config.size, styles=config.styles)
    turns = studio.turns()
    with replacing_folder(out) as folder:
        with progress(f"synthesize {name}", len(turns), "portraits") as advance:
            rows = _drawn(studio, turns, config.workers)
            tables = []
            for number, part in parts(turns, config.rows_per_part):
                drawn = []
                for row in islice(rows, len(part)):
                    drawn.append(row)
                    advance(1)
                write_table(part_path(folder, number), data_table(drawn))
                tables.append(truth_table(drawn, name=name))
        told = pa.concat_tables(tables)
        write_table(truth, told)
    dominant = told.num_rows - told.column("dominant").null_count
    counts: dict[str, int | float] = {"portraits": told.num_rows, "parts": len(tables), "with_dominant": dominant}
    splits = ", ".join(f"{split} {count:,}" for split, count in sorted(settings.splits.items()))
    line = f"synthesize {name}: {told.num_rows:,} portraits ({splits}), {dominant:,} with a dominant expression"
    return Summary(stage="synthesize", line=line, counts=counts)


def _drawn(studio: Studio, turns: list[Turn], workers: int) -> Iterator[Row]:
    """The portraits in order, drawn here or by worker processes, which are given a few at a time."""
    if workers == 1 or len(turns) <= TURNS_PER_CALL:
        yield from (studio.draw(turn)[1] for turn in turns)
        return
    calls = [turns[start : start + TURNS_PER_CALL] for start in range(0, len(turns), TURNS_PER_CALL)]
    # Spawned, not forked: the caller may hold threads.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        min(workers, len(calls)), mp_context=context, initializer=_begin, initargs=(studio,)
    ) as pool:
        waiting = deque(pool.submit(_draw, call) for call in calls[: 2 * workers])
        for number in range(len(calls)):
            rows = waiting.popleft().result()
            if number + 2 * workers < len(calls):
                waiting.append(pool.submit(_draw, calls[number + 2 * workers]))
            yield from rows


def _begin(studio: Studio) -> None:
    global _studio
    _studio = studio


def _draw(turns: list[Turn]) -> list[Row]:
    assert _studio is not None
    return [_studio.draw(turn)[1] for turn in turns]
