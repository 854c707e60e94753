"""The page's numbers against scikit-learn and scipy, from the predictions alone."""

import itertools
import json
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sk

from fer_pipeline.artifacts.metrics import write_metrics
from fer_pipeline.core.errors import DataError
from fer_pipeline.core.settings import Seen
from fer_pipeline.evaluation.predictions import Predictions
from fer_pipeline.evaluation.statistics import Interval, Resampling, summarise
from fer_pipeline.networks.pretrained import describe_seen
from fer_pipeline.reporting.results import best_recipe, compute_differences, compute_result, list_pairs

TOOK = {"labelled": 1.11, "mined": 3.11, "distilled": 1.31, "random": 3.01, "random_real": 1.26}  # seconds an epoch


def by_scikit(predictions: Predictions) -> np.ndarray:
    """Mean class accuracy of every seed."""
    return np.array([sk.balanced_accuracy_score(predictions.labels, row) for row in predictions.predicted])


class Cells(HTMLParser):
    """The words of every table cell, row by row."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.inside = False

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.inside = True
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        self.inside = self.inside and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.rows[-1][-1] += data


def test_results_table_of_the_page_by_hand(whole: Any) -> None:
    parser = Cells()
    parser.feed(whole.page.split('aria-label="Results table"')[1].split("</table>")[0])
    rows = iter(parser.rows[1:])
    for target in whole.project.targets:
        assert next(rows)[0].startswith(target)
        for recipe in whole.project.recipes:
            predictions = whole.project.predictions(recipe, target)
            values = 100 * by_scikit(predictions)
            low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
            cells = next(rows)
            assert cells[0] == recipe
            assert cells[1] == f"{values.mean():.1f} ± {(high - low) / 2:.1f}"
            accuracy = 100 * np.mean([(row == predictions.labels).mean() for row in predictions.predicted])
            assert cells[3].startswith(f"{accuracy:.1f} ±")
            here = np.unique(predictions.labels)
            spread = [
                np.std(sk.recall_score(predictions.labels, row, labels=here, average=None, zero_division=0))
                for row in predictions.predicted
            ]
            assert cells[4].startswith(f"{100 * np.mean(spread):.1f} ±")
            assert cells[6:] == [f"{TOOK[whole.project.recipes[recipe]]:.2f}", "412"]


def test_published_figures_stand_apart_as_they_are(
    whole: Any, project: Callable[..., Any], reported: Callable[..., Any]
) -> None:
    row = {
        "method": "<b>PT</b>",
        "train": "RAF-DB",
        "test": "RAF-DB test",
        "accuracy": 88.69,
        "source": "them, table 2",
    }
    published = [row, {**row, "method": "other", "accuracy": 84.1, "deviation": 10.0}]
    assert "Published by" not in whole.page
    assert "folds" not in whole.page
    protocol = {"name": "k_fold", "folds": 5, "fold": 3}
    again = reported(project(faces=40, protocols={"studio": protocol}), published=published)
    assert "the figures of fold 3 of 5 of studio alone" in again.page
    assert 'href="folds/studio/index.html"' in again.page
    parser = Cells()
    parser.feed(again.page.split('aria-label="Published by the papers"')[1].split("</table>")[0])
    assert parser.rows[1:] == [
        ["<b>PT</b>", "RAF-DB", "RAF-DB test", "88.69", "\N{EN DASH}", "them, table 2"],
        ["other", "RAF-DB", "RAF-DB test", "84.1", "10.0", "them, table 2"],
    ]
    assert [line["accuracy"] for line in again.table("published")] == ["88.690000", "84.100000"]


def test_differences_of_the_table_by_hand(whole: Any) -> None:
    """Mean and standard error over the seeds by scipy, per target and on the mean; persons widen the interval."""
    project = whole.project
    rows = {
        (row["recipe"], row["against"], row["target"]): row
        for row in whole.table("differences")
        if row["metric"] == "mean_class_accuracy"
    }
    assert ("vas", "random_vas", "film") in rows
    assert ("das", "random_real", "all targets") in rows
    means = {"vas": [], "baseline": []}
    for target in project.targets:
        for name, found in means.items():
            found.append(by_scikit(project.predictions(name, target)))
        difference = means["vas"][-1] - means["baseline"][-1]
        row = rows["vas", "baseline", target]
        assert float(row["difference"]) == pytest.approx(difference.mean(), abs=1e-6)
        assert float(row["sd_seeds"]) == pytest.approx(stats.sem(difference), abs=1e-6)
        low, high = stats.ttest_1samp(difference, 0).confidence_interval(0.95)
        assert float(row["low"]) < low < high < float(row["high"])
        assert row["p_corrected"] == row["claim"] == row["seeds_for_a_point"] == ""
    row = rows["vas", "baseline", "all targets"]
    error = stats.sem(np.mean(means["vas"], 0) - np.mean(means["baseline"], 0))
    assert float(row["sd_seeds"]) == pytest.approx(error, abs=1e-6)
    assert float(row["p_corrected"]) >= float(row["p_value"])
    assert (
        (row["claim"] == "unclear")
        == (float(row["low"]) <= 0 <= float(row["high"]))
        == (float(row["p_corrected"]) >= 0.05)
    )


def test_headline_follows_the_interval_over_all_targets(whole: Any) -> None:
    rows = [row for row in whole.table("differences") if row["metric"] == "mean_class_accuracy"]
    overall = {row["recipe"]: row for row in rows if (row["against"], row["target"]) == ("baseline", "all targets")}
    said = re.search(r"<h1>(.*?)\.</h1>", whole.page).group(1)  # type: ignore[union-attr]
    assert ("Mined faces help" in said) == (float(overall["vas"]["low"]) > 0)
    assert ("istilled images help" in said) == (float(overall["das"]["low"]) > 0)
    assert said in whole.summary.line


def test_paired_bootstrap_of_equal_models_is_exactly_zero(whole: Any) -> None:
    resampling = Resampling(bootstrap=100, by_subject=True)
    predictions = whole.project.predictions("vas", "studio")
    results = {(name, "studio"): compute_result(name, "studio", predictions, resampling) for name in ("a", "b")}
    [row] = compute_differences(results, recipe="a", against="b", targets=["studio", "film"], metric="accuracy")
    assert (row.interval.low, row.interval.mean, row.interval.high) == (0, 0, 0)
    assert row.contrast.p_value == 1


def test_the_page_resamples_as_the_metrics_were(whole: Any) -> None:
    """One settings, one seed, one method: the interval over test faces is the same number in both places."""
    for row in whole.table("results"):
        path = whole.project.root / "reports" / "metrics" / row["recipe"] / row["target"] / "metrics.json"
        interval = json.loads(path.read_text())["over_samples"]["mean_class_accuracy"]
        found = [float(row[f"mean_class_accuracy_faces_{end}"]) for end in ("low", "high")]
        assert found == pytest.approx([interval["low"], interval["high"]], abs=1e-6)


def test_results_that_were_resampled_in_different_ways_are_one_line(
    project: Callable[..., Any], reported: Callable[..., Any]
) -> None:
    made = project(recipes={"baseline": "labelled", "vas": "mined"}, targets=("film",))
    made.resampling = Resampling(bootstrap=100)
    made.evaluate("vas", "film")
    with pytest.raises(DataError, match="resampled in different ways; run: dvc repro evaluate"):
        reported(made)


def test_a_peer_is_a_row_without_seeds(project: Callable[..., Any], reported: Callable[..., Any]) -> None:
    """A network as it comes: no spread over seeds of its own, the baseline's alone in the difference."""
    made = project(targets=("studio",), recipes={"baseline": "labelled", "vas": "mined"})
    one, folder = made.predictions("vas", "studio"), made.root / "reports" / "metrics" / "packaged" / "studio"
    seen = describe_seen({"net": Seen(data=("studio",), how="taught", of="the labeller")}, {"studio"})
    peer = replace(one, seeds=(0,), probabilities=one.probabilities[:1], trained=False, seen=seen)
    write_metrics(folder, summarise(peer, made.resampling, target="studio"), peer, [])
    found = reported(made, peers=["packaged"])
    rows = {row["recipe"]: row for row in found.table("differences") if row["metric"] == "mean_class_accuracy"}
    difference = by_scikit(peer) - by_scikit(made.predictions("baseline", "studio"))
    assert float(rows["packaged"]["difference"]) == pytest.approx(difference.mean(), abs=1e-6)
    assert float(rows["packaged"]["sd_seeds"]) == pytest.approx(stats.sem(difference), abs=1e-6)
    assert rows["packaged"]["p_corrected"]
    assert [warning for warning in found.summary.warnings if "packaged" in warning] == [
        "net, which taught the labeller, was trained on studio, which studio is: the figures of packaged are of "
        "pictures that it knows."
    ]
    results = {row["recipe"]: row for row in found.table("results")}
    assert {name: row["seeds"] for name, row in results.items()} == {"baseline": "3", "vas": "3", "packaged": "0"}
    assert "packaged" not in found.summary.line, "what it comes with is no claim about what a recipe adds"
    text = found.page.split('id="results"')[1]
    assert text.index("baseline") < text.index("published networks as they come") < text.index("packaged")


def test_the_difference_of_two_pairs_stands_beside_that_of_recipes(
    project: Callable[..., Any], reported: Callable[..., Any]
) -> None:
    """(vas - baseline) - (das - baseline) is vas - das; one with a bound in it is shown and decides nothing."""
    four, bound = [["vas", "baseline"], ["das", "baseline"]], [["vas", "baseline"], ["random_vas", "baseline"]]
    found = reported(project(), pairs=[["vas", "das"]], interactions=[four, bound], bounds=["random_vas"])
    rows = {(row["recipe"], row["against"], row["target"], row["metric"]): row for row in found.table("differences")}
    sides = [f"({name} \N{MINUS SIGN} baseline)" for name in ("vas", "das", "random_vas")]
    for target, metric in itertools.product(("studio", "film", "all targets"), ("accuracy", "class_accuracy_sd")):
        one, other = rows["vas", "das", target, metric], rows[sides[0], sides[1], target, metric]
        for name in ("difference", "low", "high", "p_value"):
            assert float(one[name]) == pytest.approx(float(other[name]), abs=2e-6)
    assert rows[sides[0], sides[1], "all targets", "mean_class_accuracy"]["claim"]
    assert not rows[sides[0], sides[2], "all targets", "mean_class_accuracy"]["claim"]
    assert f"{sides[0]} \N{MINUS SIGN} {sides[1]}" in found.page


def test_different_faces_cannot_be_compared(whole: Any) -> None:
    resampling = Resampling(bootstrap=100, by_subject=True)
    results = {
        ("a", "t"): compute_result("a", "t", whole.project.predictions("vas", "studio"), resampling),
        ("b", "t"): compute_result("b", "t", whole.project.predictions("vas", "film"), resampling),
    }
    with pytest.raises(DataError, match="different faces of t"):
        compute_differences(results, recipe="a", against="b", targets=["t"], metric="accuracy")


def test_pairs_are_baseline_then_controls(whole: Any) -> None:
    recipes, controls = list(whole.project.recipes), whole.project.settings["controls"]
    assert list_pairs(recipes, baseline="baseline", controls=controls) == [
        ("vas", "baseline"),
        ("das", "baseline"),
        ("random_vas", "baseline"),
        ("random_real", "baseline"),
        ("vas", "random_vas"),
        ("das", "random_real"),
    ]
    assert list_pairs(recipes, baseline="none", controls=controls) == [("vas", "random_vas"), ("das", "random_real")]
    more = [("vas", "das"), ("vas", "random_vas")]  # the second is there already
    assert list_pairs(recipes, baseline="none", controls=controls, more=more) == [
        ("vas", "random_vas"),
        ("das", "random_real"),
        ("vas", "das"),
    ]


def test_best_recipe_by_hand(whole: Any) -> None:
    resampling = Resampling(bootstrap=100, by_subject=False)
    results = {
        (name, "studio"): compute_result(name, "studio", whole.project.predictions(name, "studio"), resampling)
        for name in ("baseline", "vas")
    }
    means = {name: by_scikit(whole.project.predictions(name, "studio")).mean() for name in ("baseline", "vas")}
    assert best_recipe(results) == max(means, key=lambda name: means[name])


def test_the_deviation_over_classes_by_hand() -> None:
    """Of two classes it is half the distance of their accuracies; its interval is that of what varies."""

    def found(rights: list[list[int]]) -> Interval:
        """Of seeds with so many of a person's four faces of the class a right, person by person; b is always right."""
        wrong = np.array([[index >= right for right in row for index in range(4)] for row in rights])
        labels, size = np.repeat([0, 1], wrong.shape[1]), wrong.shape[1]
        shares = np.stack([np.eye(2)[np.where(np.arange(2 * size) < size, np.pad(row, (0, size)), 1)] for row in wrong])
        persons = np.array([f"p{index // 4}" for index in range(size)] * 2, dtype=object)
        names = np.array([f"f{index:03d}" for index in range(2 * size)], dtype=object)
        predictions = Predictions(("a", "b"), tuple(range(len(rights))), names, labels, persons, shares)
        return compute_result("r", "t", predictions, Resampling(bootstrap=4000)).over_both("class_accuracy_sd")

    alike = found([[2] * 10, [3] * 10, [2] * 10])  # persons do not differ
    low, high = stats.ttest_1samp([0.25, 0.125, 0.25], 0).confidence_interval(0.95)
    assert (alike.mean, alike.low, alike.high) == pytest.approx((0.625 / 3, max(0.0, low), high))
    rights = [0, 1, 2, 3, 4, 4, 3, 2, 1, 0]  # the seeds do not differ
    persons = found([rights, rights])
    assert persons.mean == 0.25
    half = stats.t.ppf(0.975, 9) * stats.sem(np.array(rights) / 4) / 2
    assert persons.high is not None
    assert persons.high - persons.mean == pytest.approx(half, rel=0.05)
    assert found([rights]).low is None, "one seed"
