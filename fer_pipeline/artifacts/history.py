"""Read and write the course of a training or of a distillation, and what the trainings of a recipe took.

- `history.csv` of trainings (`models/primitive`, `models/final/<recipe>/<seed>`), a row an epoch: `epoch`, `steps`,
  `learning_rate`, `train_<quantity>` for all that the strategy returns, `validation_<figure>` where there is a
  validation part.
- `history.csv` of a distillation (`data/distilled/<name>`), a row an outer epoch: `epoch`, `loss_before`, `loss`,
  `accuracy_before`, `accuracy` on real images before and after the unrolled steps, `step_size_<step>`.
- `reports/timings/<recipe>.json`: `{"recipe": name, "seeds": {seed: {...}}}`, and of every seed: `device`, `processes`,
  `steps`, `seconds`, `seconds_waited_for_images`, `seconds_per_step`, `steps_per_epoch` and `seconds_per_epoch` (an
  epoch is once through all images that the recipe uses), `images`, `times_seen` (how often each image of a source was,
  in the mean, in the phases that read it), `stopped_rising` (whether the validation had; null for a fixed number of
  steps), `advice`, `peak_memory_bytes` (of the process, or on its GPU; trainings of before have none). A seed without
  known times is left out.
"""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fer_pipeline.core.files import RERUN, read_json, read_lines, refuse_damage, write_json, write_text

HISTORY = "history.csv"
Row = dict[str, float | int]
FIGURES = ("seconds_per_epoch", "seconds_per_step", "steps_per_epoch", "steps")  # of a seed's timing


def write_history(folder: Path, rows: Sequence[Mapping[str, float | int]]) -> None:
    """Writes all rows; floats in full, so that equal runs give equal bytes."""
    stream = io.StringIO()
    names = dict.fromkeys(name for row in rows for name in row)  # the phases of a training may have other losses
    writer = csv.DictWriter(stream, list(names), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(folder / HISTORY, stream.getvalue())


def read_history(folder: Path) -> list[dict[str, float]]:
    """Reads the rows, an empty cell as NaN; a missing or damaged file is a DataError."""
    path = folder / HISTORY
    with (
        refuse_damage(path, "is no table of numbers", "rerun its stage (dvc repro)", missing=RERUN, kind=csv.Error),
        path.open(encoding="utf-8", newline="") as stream,
    ):
        rows = csv.DictReader(read_lines(stream.readline, path))
        return [{name: float(value or "nan") for name, value in row.items()} for row in rows]


def write_timings(path: Path, recipe: str, seeds: Mapping[int, Mapping[str, Any]]) -> None:
    """Writes the times of every seed of a recipe."""
    write_json(path, {"recipe": recipe, "seeds": {str(seed): timing for seed, timing in seeds.items()}})


class SeedTiming(NamedTuple):
    """What the training of one seed took: `FIGURES`, labelled faces' visits, whether it was done, and memory."""

    figures: dict[str, float]
    labelled_seen: float
    stopped_rising: bool | None
    peak_memory: int | None = None  # in bytes


def read_timings(path: Path) -> list[SeedTiming]:
    """Reads what the training of every seed took; a damaged file is a DataError."""
    content = read_json(path)
    with refuse_damage(path, "is no record of timings", "run: dvc repro train_final"):
        return [
            SeedTiming(
                {key: float(seed[key]) for key in FIGURES},
                float(seed["times_seen"]["labelled"]),
                None if seed["stopped_rising"] is None else seed["stopped_rising"] is True,
                None if (peak := seed.get("peak_memory_bytes")) is None else int(peak),
            )
            for seed in content["seeds"].values()
        ]
