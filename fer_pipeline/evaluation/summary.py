"""Predictions of several seeds in; the figures of `metrics.json` out, nested so that `dvc metrics show` reads them.

The top level holds the four figures as means over the seeds. `over_seeds` has Student's interval where there are two
seeds or more, `over_samples` the bootstrap's (see `statistics`). All are fractions of 1.
"""

from typing import Any

from fer_pipeline.evaluation.metrics import METRICS, Metrics, measure
from fer_pipeline.evaluation.predictions import Predictions
from fer_pipeline.evaluation.statistics import Interval, bootstrap, mean_interval, percentile_interval


def per_seed(predictions: Predictions) -> dict[int, Metrics]:
    """The figures of every seed."""
    matrices = zip(predictions.seeds, predictions.confusions, strict=True)
    return {seed: measure(matrix, classes=predictions.classes) for seed, matrix in matrices}


def summarise(predictions: Predictions, *, draws: int, seed: int, by_subject: bool) -> dict[str, Any]:
    """Everything `metrics.json` holds."""
    seeds = per_seed(predictions)
    first = next(iter(seeds.values()))
    means = {name: mean_interval([getattr(found, name) for found in seeds.values()]) for name in METRICS}
    subjects = predictions.clusters if by_subject else None
    replicates = bootstrap(
        predictions.labels,
        predictions.predicted,
        num_classes=len(predictions.classes),
        subjects=subjects,
        draws=draws,
        seed=seed,
    )
    samples = {
        name: percentile_interval(replicates.metrics[:, k], estimate=means[name].mean, count=first.num_samples)
        for k, name in enumerate(METRICS)
    }
    recall = {name: [found.class_accuracies[name] for found in seeds.values()] for name in first.class_accuracies}
    per_class = {}
    for k, name in enumerate(predictions.classes):
        if name in recall:
            mean = mean_interval(recall[name]).mean
            found = percentile_interval(replicates.confusion[:, k, k], estimate=mean, count=first.supports[name])
            per_class[name] = {"accuracy": mean, **_ends(found)}
    return {
        **{name: interval.mean for name, interval in means.items()},
        "samples": first.num_samples,
        "support": first.supports,
        "absent_classes": ", ".join(first.absent),
        "bootstrap_units": "subjects" if subjects else "faces within classes",
        "over_seeds": {name: _ends(interval) for name, interval in means.items() if interval.low is not None},
        "over_samples": {name: _ends(interval) for name, interval in samples.items()},
        "per_class": per_class,
        "per_seed": {str(key): {name: getattr(found, name) for name in METRICS} for key, found in seeds.items()},
    }


def _ends(interval: Interval) -> dict[str, float]:
    ends = {"low": interval.low, "high": interval.high}
    return {key: value for key, value in ends.items() if value is not None}
