"""What a recipe costs: `reports/timings/<recipe>.json` in, seconds per epoch out (figure 5 of arXiv:2005.08551).

An epoch is once through all images that the recipe uses, so a recipe with ten times the images has ten times the steps;
all recipes take the same number of steps in all. The clock is the one thing here that no seed fixes; it stands apart
from the results and decides nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fer_pipeline.core.errors import DataError
from fer_pipeline.core.files import read_json
from fer_pipeline.evaluation.statistics import Interval, mean_interval
from fer_pipeline.reporting.charts import bars
from fer_pipeline.reporting.numbers import TIMES
from fer_pipeline.reporting.palette import Look


@dataclass(frozen=True)
class Timing:
    """Seconds per epoch of a recipe over its seeds, and what an epoch is there."""

    recipe: str
    seconds: Interval
    seconds_per_step: float
    steps_per_epoch: float
    steps: float
    times_baseline: float | None


def read_timings(folder: Path, recipes: Sequence[str], *, baseline: str) -> list[Timing]:
    """The timings there are, in the order of the recipes."""
    paths = {name: folder / f"{name}.json" for name in recipes}
    raw = {name: seeds for name, path in paths.items() if path.exists() and (seeds := _seeds(path))}
    means = {name: mean_interval([seed["seconds_per_epoch"] for seed in seeds]) for name, seeds in raw.items()}
    first = means.get(baseline)
    return [
        Timing(
            recipe=name,
            seconds=means[name],
            seconds_per_step=_mean(seeds, "seconds_per_step"),
            steps_per_epoch=_mean(seeds, "steps_per_epoch"),
            steps=_mean(seeds, "steps"),
            times_baseline=means[name].mean / first.mean if first and first.mean > 0 else None,
        )
        for name, seeds in raw.items()
    ]


def chart(timings: Sequence[Timing], looks: Mapping[str, Look]) -> bytes:
    """Bars of seconds per epoch."""
    rows = []
    for timing in timings:
        ratio = "" if timing.times_baseline is None else f" ({timing.times_baseline:.1f}{TIMES})"
        words = f"{timing.seconds.mean:.2f} s{ratio}"
        rows.append((timing.recipe, timing.seconds.mean, looks[timing.recipe].colour, words))
    return bars(rows, xlabel="seconds per epoch")


def _mean(seeds: Sequence[Mapping[str, float]], key: str) -> float:
    return sum(seed[key] for seed in seeds) / len(seeds)


def _seeds(path: Path) -> list[dict[str, float]]:
    content = read_json(path)
    try:
        return [
            {key: float(seed[key]) for key in ("seconds_per_epoch", "seconds_per_step", "steps_per_epoch", "steps")}
            for seed in content["seeds"].values()
        ]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{path} is no record of timings ({error!r}); run: dvc repro train_final") from None
