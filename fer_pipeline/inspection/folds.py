"""Join what the folds of a protocol measured, which are DVC experiments that differ in the fold alone.

An experiment is one of a set's folds if its `params.yaml` is the project's own but for `protocol.fold` of that set,
what it runs on and the report, so that folds of other settings never stand in one mean. Figures are computed from each
fold's predictions: accuracy, mean class accuracy and the standard deviation of the class accuracies, the mean over its
seeds. Over the folds papers state mean and standard deviation; ours is that of a sample (n - 1). A class that a fold
does not test is left out of that fold's class mean, so that of small folds the figures of all faces together are to be
looked at, too: each is tested once.

A fold's figure varies with its seeds, the persons that it tests and those that it learns from at once, so that the
spread over folds has all three. Folds share what they learn from, and their plain t interval is too narrow: the
variance of the mean is (1/k + tested/trained on) times that of a sample of k folds, with k - 1 degrees of freedom.
Source: Nadeau and Bengio, Inference for the generalization error, Machine Learning 52 (2003), section 3.2 (the
corrected resampled t-test), made for hold-outs; for k folds tested/trained on is 1/(k - 1), as Bouckaert and Frank do
(PAKDD 2004). Faces that are set apart for validation count as trained on: with a tenth of them intervals are 3 % too
narrow. Differences are paired fold by fold, and `decide` corrects for their number as everywhere. On another set
than the divided one all folds test the same faces; nothing is inferred there.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from fer_pipeline.artifacts.contents import TEST, SplitContents
from fer_pipeline.artifacts.metrics import PREDICTIONS, read_predictions
from fer_pipeline.core.errors import DataError
from fer_pipeline.core.folds import Fold, HoldOut
from fer_pipeline.evaluation.metrics import METRICS, all_metrics
from fer_pipeline.evaluation.predictions import Predictions
from fer_pipeline.evaluation.statistics import Contrast, Interval, Part, decide
from fer_pipeline.inspection.revisions import (
    NotThereError,
    Revision,
    describe_commit,
    list_experiments,
    open_revision,
    read_settings,
)
from fer_pipeline.reporting.results import METRIC, Difference
from fer_pipeline.reporting.trainings import load_timings

FIGURES = METRICS[:3]  # accuracy, mean class accuracy, standard deviation of the class accuracies
NO_RESULTS = ("resources", "report")  # sections on which no figure depends
TIMINGS, AGAIN = "reports/timings", "run it again, whole, after: dvc exp remove NAME"


class Finished(NamedTuple):
    """A fold's experiment: its name, reference and commit, and the commit that it was made from (12 digits)."""

    name: str
    ref: str
    commit: str
    base: str


@dataclass(frozen=True)
class FoldTable:
    """What the folds of one set measured; `faults` say why a result of a finished fold is not among them."""

    name: str
    protocol: Fold
    finished: Mapping[int, Finished]  # by fold
    results: Mapping[tuple[str, str], Mapping[int, Predictions]]  # by recipe and target, then by fold
    faults: Sequence[str] = field(default_factory=tuple)
    costs: Mapping[str, Sequence[tuple[float, int | None]]] = field(default_factory=dict)  # see `cost`, by fold

    def missing(self) -> list[int]:
        """Returns the folds without an experiment."""
        return [fold for fold in range(1, self.protocol.folds + 1) if fold not in self.finished]

    def over_folds(self, recipe: str, target: str) -> Float[np.ndarray, "f 3"]:
        """Returns the figures of each fold."""
        return np.stack([_figures(one.confusions) for one in self.results[recipe, target].values()])

    def interval(self, recipe: str, target: str) -> Interval:
        """Returns the mean class accuracy over the folds with its 95 % interval; see the module."""
        values = self.over_folds(recipe, target)[:, FIGURES.index(METRIC)]
        found = contrast_folds(values, self.protocol).interval()
        return found if target == self.name else Interval(found.mean, None, None, len(values))

    def cost(self, recipe: str) -> tuple[float, int | None] | None:
        """Returns the seconds of an epoch, the mean over folds and seeds, and the most memory in bytes, if known."""
        if not (own := self.costs.get(recipe)):
            return None
        peaks = [peak for _, peak in own if peak is not None]
        return float(np.mean([seconds for seconds, _ in own])), max(peaks, default=None)

    def compare(self, pairs: Sequence[tuple[str, str]], *, bounds: Sequence[str] = ()) -> list[Difference]:
        """Compares recipes on the divided set; a pair decides if it has all folds and no bound.

        Raises:
            DataError: Two recipes were measured on different faces of a fold.
        """
        rows = []
        for recipe, against in pairs:
            one, other = (self.results.get((name, self.name), {}) for name in (recipe, against))
            if not (common := [fold for fold in one if fold in other]):
                continue
            for fold in common:
                if one[fold].face_id.tolist() != other[fold].face_id.tolist():
                    fault = f"{recipe} and {against} were measured on different faces of fold {fold}"
                    raise DataError(f"{fault}; {AGAIN}")
            values = [_figures(one[fold].confusions) - _figures(other[fold].confusions) for fold in common]
            difference = contrast_folds(np.stack(values)[:, FIGURES.index(METRIC)], self.protocol)
            rows.append((len(common), Difference(recipe, against, self.name, METRIC, difference)))
        deciding = [
            row for count, row in rows if count == self.protocol.folds and not {row.recipe, row.against} & {*bounds}
        ]
        decisions = iter(decide([row.contrast for row in deciding]))
        return [row._replace(decision=next(decisions)) if row in deciding else row for _, row in rows]

    def together(self, recipe: str, target: str) -> Float[np.ndarray, " 3"] | None:
        """Returns the figures of all faces together; None where folds test the same faces."""
        if target != self.name or isinstance(self.protocol, HoldOut):
            return None
        return _figures(np.sum([one.confusions for one in self.results[recipe, target].values()], 0))


def contrast_folds(values: Float[np.ndarray, " f"], protocol: Fold) -> Contrast:
    """Returns the mean over folds with what it varies with; `unknown` where they leave no spread to see."""
    count = len(values)
    overlap = protocol.test / (1 - protocol.test) if isinstance(protocol, HoldOut) else 1 / (protocol.folds - 1)
    if count < 2 or np.ptp(values) < 1e-12:  # some folds of few faces are equal by chance
        return Contrast(float(values.mean()), count, (), (), 0.0, "one fold" if count < 2 else "folds that are equal")
    part = Part(float(values.var(ddof=1) * (1 / count + overlap)), count - 1)
    return Contrast(float(values.mean()), count, (part,), (), 0.0)


def join(
    root: Path, settings: Mapping[str, Any], name: str, protocol: Fold, recipes: Sequence[str], targets: Sequence[str]
) -> FoldTable:
    """Reads the results of the folds of one set.

    Args:
        root: The project's folder.
        settings: What `params.yaml` there holds.
        name: The set that the protocol divides.
        protocol: How it does.
        recipes: Whose results are read.
        targets: On which sets.

    Raises:
        DataError: Folds that divide the set tested the same faces, or bytes are damaged.
    """
    finished = find_finished(root, settings, name)
    results: defaultdict[tuple[str, str], dict[int, Predictions]] = defaultdict(dict)
    costs: defaultdict[str, list[tuple[float, int | None]]] = defaultdict(list)
    faults = []
    for fold, one in sorted(finished.items()):
        with open_revision(root, one.ref) as revision:
            own = _read_tested(revision, name)
            for recipe in recipes:
                for target in targets:
                    try:
                        folder = revision.path(f"reports/metrics/{recipe}/{target}", PREDICTIONS)
                        found = read_predictions(folder / PREDICTIONS)
                        if target == name and own is not None and not own.issuperset(found.face_id):
                            raise NotThereError(f"other faces than its test part has; {AGAIN}")
                        results[recipe, target][fold] = found
                    except NotThereError as error:
                        faults.append(f"fold {fold}, {recipe} on {target}: {error}")
                with suppress(NotThereError):  # of a network that nobody trains here
                    revision.path(f"{TIMINGS}/{recipe}.json")
            for row in load_timings(revision.view / TIMINGS, recipes, baseline=""):
                costs[row.recipe].append((row.seconds.mean, row.peak_memory))
    for (recipe, target), folds in results.items():
        if target == name:
            _refuse_repeated(folds, protocol, recipe)
    return FoldTable(name, protocol, finished, dict(results), tuple(faults), costs)


def find_finished(root: Path, settings: Mapping[str, Any], name: str) -> dict[int, Finished]:
    """Returns the newest experiment of each fold whose other settings are these."""
    own, found = _but_for_fold(settings, name), dict[int, tuple[datetime, Finished]]()
    for ref, experiment, commit in list_experiments(root):
        values = read_settings(root, commit)
        other = None if values is None else _but_for_fold(values, name)
        if values is None or own is None or other is None or other[1] != own[1]:
            continue
        date = datetime.fromisoformat(describe_commit(root, commit)[0])  # of any time zone
        base = ref.removesuffix(f"/{experiment}").removeprefix("refs/exps/").replace("/", "")[:12]
        dated = (date, Finished(experiment, ref, commit, base))
        found[other[0]] = max(found.get(other[0], dated), dated)
    return {fold: one for fold, (_, one) in found.items()}


def _but_for_fold(settings: Mapping[str, Any], name: str) -> tuple[int, dict[str, Any]] | None:
    """Returns the fold of a set's protocol and all settings without it; None where there is none."""
    try:
        dataset = dict(settings["datasets"][name])
        protocol = dict(dataset["protocol"])
        fold = protocol.pop("fold", 1)
    except (KeyError, TypeError, ValueError):
        return None
    if not isinstance(fold, int):
        return None
    kept = {key: value for key, value in settings.items() if key not in NO_RESULTS}
    datasets = {**settings["datasets"], name: {**dataset, "protocol": protocol}}
    for key, one in settings["datasets"].items():  # a pool of the same source has the same fold
        if isinstance(one, dict) and _source(one) == _source(dataset) and one.get("protocol") == dataset["protocol"]:
            datasets[key] = {**one, "protocol": protocol}
    return fold, {**kept, "datasets": datasets}


def _source(dataset: Mapping[str, Any]) -> tuple[Any, Any]:
    return dataset.get("adapter"), dataset.get("path")


def _read_tested(revision: Revision, name: str) -> set[str] | None:
    """Returns the faces of the test part; None where the experiment does not say."""
    path = f"data/contents/{name}.parquet"
    if not revision.has(path):
        return None
    columns = SplitContents([revision.path(path)], TEST).column("face_id")
    return {face for column in columns for face in column.to_pylist()}


def _figures(confusions: np.ndarray) -> Float[np.ndarray, " 3"]:
    return all_metrics(confusions)[:, : len(FIGURES)].mean(0)


def _refuse_repeated(folds: Mapping[int, Predictions], protocol: Fold, recipe: str) -> None:
    """Refuses folds whose results cannot be theirs: of an experiment, say, that ran some of its stages only."""
    tested = {fold: {*one.face_id} for fold, one in folds.items()}
    for (first, some), (second, others) in combinations(tested.items(), 2):
        if some == others if isinstance(protocol, HoldOut) else some & others:
            fault = f"folds {first} and {second} tested {len(some & others):,} faces both, in the results of {recipe}"
            raise DataError(f"{fault}; {AGAIN.replace('it', 'one')}")
