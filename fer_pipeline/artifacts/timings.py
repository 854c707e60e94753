"""Read and write `reports/timings/<recipe>.json`: what the trainings of one recipe cost.

`{"recipe": name, "seeds": {seed: {...}}}`, and of every seed: `device`, `processes`, `steps`, `seconds`,
`seconds_waited_for_images`, `seconds_per_step`, `steps_per_epoch` and `seconds_per_epoch` (an epoch is once through all
images that the recipe uses), `images`, `advice`. A seed whose times are not known is left out.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fer_pipeline.core.errors import DataError
from fer_pipeline.core.files import read_json, write_json

FIGURES = ("seconds_per_epoch", "seconds_per_step", "steps_per_epoch", "steps")


def write_timings(path: Path, recipe: str, seeds: Mapping[int, Mapping[str, Any]]) -> None:
    """Write the times of every seed of a recipe."""
    write_json(path, {"recipe": recipe, "seeds": {str(seed): timing for seed, timing in seeds.items()}})


def read_timings(path: Path) -> list[dict[str, float]]:
    """Read `FIGURES` of every seed; a damaged file is a DataError."""
    content = read_json(path)
    try:
        return [{key: float(seed[key]) for key in FIGURES} for seed in content["seeds"].values()]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{path} is no record of timings ({error!r}); run: dvc repro train_final") from None
