"""Read and write `history.csv`, the course of a training or of a distillation: one row an epoch.

- Trainings (`models/primitive`, `models/final/<recipe>/<seed>`): `epoch`, `steps`, `learning_rate`, `train_<quantity>`
  for all that the strategy returns, `validation_<figure>` where there is a validation part.
- Distillation (`data/distilled/<name>`), an outer epoch a row: `epoch`, `loss_before`, `loss`, `accuracy_before`,
  `accuracy` on real images before and after the unrolled steps, `step_size_<step>`.
"""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from fer_pipeline.core.errors import DataError
from fer_pipeline.core.files import write_text

HISTORY = "history.csv"
Row = dict[str, float | int]


def write_history(folder: Path, rows: Sequence[Mapping[str, float | int]]) -> None:
    """Write all rows; floats in full, so that equal runs give equal bytes."""
    stream = io.StringIO()
    names = dict.fromkeys(name for row in rows for name in row)  # the phases of a training may have other losses
    writer = csv.DictWriter(stream, list(names), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(folder / HISTORY, stream.getvalue())


def read_history(folder: Path) -> list[dict[str, float]]:
    """Read the rows, an empty cell as NaN; a missing or damaged file is a DataError."""
    path = folder / HISTORY
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            return [{name: float(value or "nan") for name, value in row.items()} for row in csv.DictReader(stream)]
    except FileNotFoundError:
        raise DataError(f"{path} does not exist; run the stage that writes it (dvc repro)") from None
    except (ValueError, TypeError) as error:
        raise DataError(f"{path} is no table of numbers ({error}); rerun its stage (dvc repro)") from None
