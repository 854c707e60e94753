"""The page's numbers against scikit-learn and scipy, from the predictions alone."""

import re
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sk

from fer_pipeline.core.errors import DataError
from fer_pipeline.evaluation.predictions import Predictions
from fer_pipeline.evaluation.statistics import Resampling
from fer_pipeline.reporting.results import best_recipe, compute_differences, compute_result, list_pairs


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


def test_differences_of_the_table_are_scipys_paired_ones(whole: Any) -> None:
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
        values = {name: by_scikit(project.predictions(name, target)) for name in means}
        for name, found in values.items():
            means[name].append(found)
        row = rows["vas", "baseline", target]
        low, high = stats.ttest_rel(values["vas"], values["baseline"]).confidence_interval(0.95)
        assert float(row["difference"]) == pytest.approx(np.mean(values["vas"] - values["baseline"]), abs=1e-6)
        assert (float(row["seeds_low"]), float(row["seeds_high"])) == pytest.approx((low, high), abs=1e-6)
    low, high = stats.ttest_rel(np.mean(means["vas"], 0), np.mean(means["baseline"], 0)).confidence_interval(0.95)
    row = rows["vas", "baseline", "all targets"]
    assert (float(row["seeds_low"]), float(row["seeds_high"])) == pytest.approx((low, high), abs=1e-6)


def test_headline_follows_the_interval_over_all_targets(whole: Any) -> None:
    rows = [row for row in whole.table("differences") if row["metric"] == "mean_class_accuracy"]
    overall = {row["recipe"]: row for row in rows if (row["against"], row["target"]) == ("baseline", "all targets")}
    said = re.search(r"<h1>(.*?)\.</h1>", whole.page).group(1)  # type: ignore[union-attr]
    assert ("Mined faces help" in said) == (float(overall["vas"]["seeds_low"]) > 0)
    assert ("istilled images help" in said) == (float(overall["das"]["seeds_low"]) > 0)
    assert said in whole.summary.line


def test_paired_bootstrap_of_equal_models_is_exactly_zero(whole: Any) -> None:
    resampling = Resampling(bootstrap=100, by_subject=True)
    predictions = whole.project.predictions("vas", "studio")
    results = {(name, "studio"): compute_result(name, "studio", predictions, resampling) for name in ("a", "b")}
    [row] = compute_differences(results, recipe="a", against="b", targets=["studio", "film"], metric="accuracy")
    assert (row.over_samples.low, row.over_samples.mean, row.over_samples.high) == (0, 0, 0)
    assert (row.over_seeds.low, row.over_seeds.high) == (0, 0)


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


def test_best_recipe_by_hand(whole: Any) -> None:
    resampling = Resampling(bootstrap=100, by_subject=False)
    results = {
        (name, "studio"): compute_result(name, "studio", whole.project.predictions(name, "studio"), resampling)
        for name in ("baseline", "vas")
    }
    means = {name: by_scikit(whole.project.predictions(name, "studio")).mean() for name in ("baseline", "vas")}
    assert best_recipe(results) == max(means, key=lambda name: means[name])
