"""The page of a recipe says what its histories, its metrics and the labels of its pool say, and nothing runs in it."""

import csv
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from fer_pipeline.artifacts.labels import read_labels
from fer_pipeline.core.errors import DataError
from fer_pipeline.evaluation.statistics import share_interval

EVIL = "<script>alert('1')</script>\"&'`{{7*7}}\u202e"


class Page(HTMLParser):
    """All elements with their attributes, the cells of every table by its label or caption, and all words."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.tables: list[list[list[str]]] = []
        self.words: list[str] = []
        self.inside = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        self.inside = self.inside or tag in ("td", "th")

    def handle_endtag(self, tag: str) -> None:
        self.inside = self.inside and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        self.words.append(data)
        if self.inside:
            self.tables[-1][-1][-1] += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.found if name == tag]


def test_a_page_for_every_recipe_that_runs_nothing(whole: Any) -> None:
    folder = whole.project.root / "reports" / "learners"
    assert {path.stem for path in folder.iterdir()} == set(whole.project.recipes)
    for recipe in whole.project.recipes:
        page = Page(whole.learner(recipe))
        policy = [one["content"] for one in page.all("meta") if one.get("http-equiv") == "Content-Security-Policy"]
        assert policy == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]
        assert not {"script", "link", "iframe", "object", "embed", "base", "form"} & {tag for tag, _ in page.found}
        assert not [name for _, attributes in page.found for name in attributes if name.startswith("on")]
        assert all(str(one["src"]).startswith("data:image/") and one["alt"] for one in page.all("img"))
        assert [one["href"] for one in page.all("a")] == ["../index.html"]


def test_figures_are_those_of_the_metrics_files_and_histories(whole: Any) -> None:
    project = whole.project
    for recipe in project.recipes:
        page = Page(whole.learner(recipe))
        results, *others = page.tables
        for target, row in zip(project.targets, results[1:], strict=True):
            figures = json.loads((project.root / "reports/metrics" / recipe / target / "metrics.json").read_text())
            assert row[0] == target
            for cell, name in zip(row[1:4], ("mean_class_accuracy", "accuracy", "class_accuracy_sd"), strict=True):
                assert cell.startswith(f"{100 * figures[name]:.1f} ±")
            half = (figures["over_seeds"]["accuracy"]["high"] - figures["over_seeds"]["accuracy"]["low"]) / 2
            assert row[2] == f"{100 * figures['accuracy']:.1f} ± {100 * half:.1f}"
        for target, matrix in zip(project.targets, others, strict=False):
            counts = project.predictions(recipe, target).confusions.sum(0)
            for actual, row in zip(counts, matrix[1:], strict=True):
                shares = [f"{100 * one / actual.sum():.0f}" for one in actual] if actual.sum() else ["no test face"]
                assert row[1:] == shares
        charts = [one for one in page.all("img") if str(one["src"]).startswith("data:image/svg")]
        ends: dict[str, list[float]] = {}
        for seed in project.seeds:
            with (project.root / "models/final" / recipe / str(seed) / "history.csv").open() as stream:
                for name, value in list(csv.DictReader(stream))[-1].items():
                    ends.setdefault(name, []).append(float(value))
        assert len(charts) == len(ends) - 2, "one for each column but the epoch and its steps"
        share = ", ".join(f"{100 * one:.1f} %" for one in ends["validation_mean_class_accuracy"])
        assert any(str(one["alt"]).endswith(f"over the steps, at the end {share}") for one in charts)
        loss = ", ".join(f"{one:.4g}" for one in ends["train_labelled"])
        assert any(
            one["alt"] == f"labelled (training, mean over an epoch) over the steps, at the end {loss}" for one in charts
        )


def test_labels_of_the_pool_by_hand(whole: Any) -> None:
    project, recipe = whole.project, [*whole.project.recipes][-1]
    page = Page(whole.learner(recipe))
    rows = pq.read_table(project.root / "reports/labels" / f"{recipe}.parquet").to_pylist()
    rows = [row for row in rows if row["given"] is None]
    truth = pq.read_table(project.root / "data/truth" / f"{project.pools[0]}.parquet").to_pydict()
    true = dict(zip(truth["face_id"], truth["dominant"], strict=True))
    [table] = [one for one in page.tables if one[0][:1] == ["Called"]]
    assert [row[0] for row in table[1:]] == list(project.classes[:-1]), "none is called the last class"
    for name, faces, probability, right, interval, selected, picked, within in table[1:]:
        own = [row for row in rows if row["predicted"] == name]
        answers = [true[row["face_id"]] == name for row in own if row["face_id"] in true]
        answers += [True for row in own if row["label"] == name]
        expected = share_interval(sum(answers), len(answers))
        assert (int(faces), probability) == (10, f"{100 * np.mean([row['probability'] for row in own]):.1f}")
        assert right == f"{100 * expected.mean:.1f}"
        assert interval == " to ".join(f"{100 * (end or 0):.1f}" for end in (expected.low, expected.high))
        surer = [row for row in own if row["probability"] > 0.6]
        answers = [true[row["face_id"]] == name for row in surer if row["face_id"] in true]
        answers += [True for row in surer if row["label"] == name]
        expected = share_interval(sum(answers), len(answers))
        assert (int(selected), picked) == (len(surer), f"{100 * expected.mean:.1f}")
        assert within == " to ".join(f"{100 * (end or 0):.1f}" for end in (expected.low, expected.high))
    text = "".join(page.words)
    assert text.count("●") == 1 + sum(row["probability"] > 0.6 for row in rows if row["image"]), "one in the note"
    assert "30 faces drawn from the 120 of its pool; whether a label is right is known of 29" in text
    named = [str(one["title"]) for one in page.all("figure") if "title" in one]
    for name in project.classes[:-1]:
        own = sorted(
            (row for row in rows if row["predicted"] == name and row["image"]), key=lambda row: -row["probability"]
        )
        places = [named.index(row["face_id"]) for row in own]
        assert places == [*range(places[0], places[0] + 8)], "from the surest to the least sure, each once"
    own = {row["face_id"] for row in rows}
    wrong = [one for one in page.all("figure") if one.get("class") == "wrong" and one["title"] in own]
    shown = [row for row in rows if row["image"]]
    assert len(wrong) == sum(true[row["face_id"]] != row["predicted"] for row in shown)
    assert "it learns from no pool" in whole.learner("baseline")


def test_labels_that_it_believes_least_by_hand(whole: Any) -> None:
    project, recipe = whole.project, [*whole.project.recipes][-1]
    page = Page(whole.learner(recipe))
    rows = pq.read_table(project.root / "reports/labels" / f"{recipe}.parquet").to_pylist()
    rows = [row for row in rows if row["given"] is not None]
    [table] = [one for one in page.tables if one[0][:1] == ["Label"]]
    assert [row[0] for row in table[1:]] == list(project.classes)
    out = {row["face_id"] for row in sorted(rows, key=lambda row: row["given_probability"])[:8]}  # 40 % of 20
    for name, faces, probability, share, interval, changed, otherwise, rejected, both in table[1:]:
        own = [row for row in rows if row["given"] == name]
        others = [row for row in own if row["predicted"] != name]
        expected = share_interval(len(others), len(own))
        assert (int(faces), share) == (len(own), f"{100 * expected.mean:.1f}")
        assert probability == f"{100 * np.mean([row['given_probability'] for row in own]):.1f}"
        assert interval == " to ".join(f"{100 * (end or 0):.1f}" for end in (expected.low, expected.high))
        assert int(changed) == sum(row["label"] != name for row in own)
        assert int(otherwise) == sum(row["label"] != name for row in others)
        gone = [row for row in own if row["face_id"] in out]
        assert (int(rejected), int(both)) == (len(gone), sum(row["label"] != name for row in gone))
    text = "".join(page.words)
    assert text.count("○") == 1 + sum(row["face_id"] in out for row in rows if row["image"])
    changed = {row["face_id"] for row in rows if row["label"] != row["given"]}
    assert f"20 faces drawn from the 300 labelled ones that it learned from; the labels of {len(changed)}" in text
    named = [str(one["title"]) for one in page.all("figure") if "title" in one]
    for name in project.classes:
        own = sorted((row for row in rows if row["given"] == name), key=lambda row: row["given_probability"])
        places = [named.index(row["face_id"]) for row in own if row["image"]]
        assert places == [*range(places[0], places[0] + len(places))], "the least probable first, each once"
    wrong = {str(one["title"]) for one in page.all("figure") if one.get("class") == "wrong"}
    assert {row["face_id"] for row in rows} & wrong == changed
    assert "it learned nothing" in whole.learner("baseline")


def test_names_of_faces_are_escaped(project: Callable[..., Any], reported: Callable[..., Any]) -> None:
    made = project(odd_name=EVIL, faces=20)
    page = Page(reported(made, title=EVIL).learner([*made.recipes][-1]))
    assert "script" not in {tag for tag, _ in page.found}
    titles = [str(one["title"]) for one in page.all("figure") if "title" in one]
    assert any("<script>" in title for title in titles)
    assert not any("\u202e" in title for title in titles)


def test_a_recipe_without_results_or_course_says_so(project: Callable[..., Any], reported: Callable[..., Any]) -> None:
    made = project(faces=20)
    (made.root / "reports/metrics/vas").rename(made.root / "gone")
    for path in (made.root / "models/final/das").rglob("history.csv"):
        path.unlink()
    again = reported(made)
    assert "It was not evaluated" in again.learner("vas")
    assert "Nothing was trained, so there is no course" in again.learner("das")
    assert re.search(r"Not evaluated, so not in here: vas\.", again.page)


def test_damaged_labels_are_one_line(project: Callable[..., Any], tmp_path: Path) -> None:
    path = tmp_path / "labels.parquet"
    assert read_labels(path) is None
    path.write_bytes(b"PAR1 nothing")
    with pytest.raises(DataError, match=r"is no readable table of labels [^\n]+; run: dvc repro train_final$"):
        read_labels(path)
