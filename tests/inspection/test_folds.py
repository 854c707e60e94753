"""Folds are joined if they differ in the fold alone, and their figures are those that a hand computes."""

import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import stdev
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import yaml
from PIL import Image
from scipy import stats
from typer.testing import CliRunner

from fer_pipeline.artifacts.contents import CONTENTS, write_contents
from fer_pipeline.artifacts.history import write_timings
from fer_pipeline.artifacts.metrics import write_predictions
from fer_pipeline.cli import app
from fer_pipeline.core.errors import DataError
from fer_pipeline.core.folds import Fold, HoldOut, KFold
from fer_pipeline.evaluation.predictions import Predictions
from fer_pipeline.evaluation.protocols import is_tested
from fer_pipeline.inspection.folds import FoldTable, contrast_folds
from tests.pipelines.conftest import make_repository

GRAPH = (
    'stages: {evaluate: {cmd: "true", params: [datasets], outs: [reports/metrics/vas/acted, reports/timings, data]}}\n'
)
PICTURES = {"a": (1, 1), "b": (0, 2), "c": (2, 0), "d": (1, 1)}  # of each person: so many of joy, of fear
K_FOLD = KFold(name="k_fold", folds=3)
# Of each fold: the true classes, those that were predicted.
FOLDS = {1: ([0, 0, 1], [0, 1, 1]), 2: ([0, 1], [0, 0]), 3: ([0, 0, 0], [0, 0, 0])}


def settings(fold: int, **changes: Any) -> dict[str, Any]:
    protocol = {"name": "k_fold", "folds": 3, "fold": fold, **changes.pop("protocol", {})}
    acted = {
        "adapter": "image_folder",
        "path": "raw",
        "options": {"levels": ["subject", "class"]},
        "protocol": protocol,
    }
    faces = "data/faces/acted/train"
    return {
        **{"classes": ["joy", "fear"], "seeds": [0], "anchor": "acted", "train": "acted", "pools": ["street"]},
        "targets": ["acted"],
        "datasets": {"acted": acted, "street": {"adapter": "image_folder", "path": "street"}},
        "recipes": {"vas": {"strategy": "supervised", "sources": {"labelled": faces}, "deps": [faces] * 3}},
        "evaluate": {"recipes": ["vas"]},
        **changes,
    }


def predictions(fold: int, labels: Sequence[int], predicted: Sequence[int]) -> Predictions:
    return Predictions(
        classes=("joy", "fear"),
        seeds=(0,),
        face_id=np.asarray([f"acted/{fold}-{number}" for number in range(len(labels))], dtype=object),
        labels=np.asarray(labels, dtype=np.int64),
        subjects=np.asarray([f"p{fold}"] * len(labels), dtype=object),
        probabilities=np.eye(2, dtype=np.float32)[list(predicted)][None],
    )


@pytest.fixture
def save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Saves what a fold measured as an experiment; the project is where it is called."""
    from dvc.repo import Repo

    for name in [one for one in os.environ if one.startswith("GIT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    folder = tmp_path / "project"
    files = {"dvc.yaml": GRAPH, "params.yaml": yaml.safe_dump(settings(1)), ".gitignore": "/reports\n/raw\n/data\n"}
    make_repository(folder, files)
    monkeypatch.chdir(folder)
    for person, counts in PICTURES.items():
        for label, count in zip(("joy", "fear"), counts, strict=True):
            for number in range(count):
                file = folder / "raw" / person / label / f"{number}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.new("L", (4, 4)).save(file)

    def save_fold(
        fold: int,
        *,
        name: str = "",
        measured: Predictions | None = None,
        aligned: Sequence[str] = (),
        **changes: Any,
    ) -> None:
        text = (folder / "params.yaml").read_text()
        (folder / "params.yaml").write_text(yaml.safe_dump(settings(fold, **changes)))
        place = folder / "reports" / "metrics" / "vas" / "acted"
        place.mkdir(parents=True, exist_ok=True)
        write_predictions(place / "predictions.parquet", measured or predictions(fold, *FOLDS[fold]))
        faces = aligned or (measured or predictions(fold, *FOLDS[fold])).face_id.tolist()
        rows = [{"face_id": face, "split": "test", "subject": None, "content": b"0" * 16} for face in faces]
        (folder / "data" / "contents").mkdir(parents=True, exist_ok=True)
        table = pa.Table.from_pylist([*rows, {**rows[0], "face_id": "acted/other", "split": "train"}], CONTENTS)
        write_contents(folder / "data" / "contents" / "acted.parquet", [table])
        took = {"seconds_per_step": 0.1, "steps_per_epoch": 9, "steps": 90, "times_seen": {"labelled": 3}}
        took |= {"stopped_rising": None, "peak_memory_bytes": 400_000_000 + fold * 4_000_000}
        both = {seed: {**took, "seconds_per_epoch": fold * seconds} for seed, seconds in ((0, 1.5), (1, 2.0))}
        write_timings(folder / "reports" / "timings" / "vas.json", "vas", both)
        with Repo(str(folder)) as repo:
            repo.commit(force=True)
            repo.experiments.save(name=name or f"fold-{fold}")
        (folder / "params.yaml").write_text(text)

    return save_fold


def say(*words: str, code: int = 0) -> tuple[str, str]:
    result = CliRunner().invoke(app, ["folds", *words])
    assert result.exit_code == code, result.output + repr(result.exception)
    return result.stdout, result.stderr


def test_figures_over_folds_by_hand(save: Callable[..., None]) -> None:
    for fold in FOLDS:
        save(fold, **{"resources": {"device": "cpu"}} if fold == 2 else {})
    save(2, name="other", seeds=[1], measured=predictions(9, [0, 1], [1, 0]))  # of other settings: not ours
    out, err = say("table", "--format", "csv")
    header, row = (line.split(",") for line in out.splitlines())
    found = dict(zip(header, row, strict=True))
    shares, means = (2 / 3, 1 / 2, 1), (0.75, 0.5, 1)
    assert found["accuracy"] == f"{sum(shares) / 3:.4f} ± {stdev(shares):.4f}"
    assert found["mean class accuracy"] == f"{sum(means) / 3:.4f} ± {stdev(means):.4f}"
    # Together 5 of 6 of joy and 1 of 2 of fear: 6 of 8, and (5/6 + 1/2) / 2.
    assert (found["faces"], found["together"], found["and by class"]) == ("8", "0.7500", "0.6667")
    # Of the classes' accuracies: 1/2 and 1; 1 and 0; joy alone. Together 5/6 and 1/2.
    assert (found["sd over classes"], found["and its sd"]) == ("0.2500 ± 0.2500", "0.1667")
    # 4.3027, the 97.5 % point of t with 2 degrees of freedom, times sqrt((1/3 + 1/2) 0.25²).
    assert found["95 %"] == "-0.2319 to 1.7319"
    assert (found["s/epoch"], found["MB"]) == ("3.50", "412")  # 1.5 and 2 s in fold 1, two and three times that
    assert found["folds"] == "3 of 3"
    assert err == ""
    assert "acted: k_fold (folds 3, groups blocks); mean and standard deviation" in say("table")[0]

    # The page says the same, and beside it what the papers state, escaped.
    paper = {"method": "<b>PT</b>", "train": "CK+", "test": "CK+", "accuracy": 98.6, "source": "them, table 2"}
    Path("params.yaml").write_text(yaml.safe_dump(settings(1, report={"published": [paper]})))
    assert "page: reports/folds/acted/index.html" in say("table", "--page")[0]
    place = Path("reports/folds/acted")
    assert (place / "results.csv").read_text() == out
    assert (place / "differences.csv").read_text() == "", "there is one recipe"
    text = (place / "index.html").read_text()
    assert [f">{cell}</" in text for cell in row] == [True] * len(row)
    assert "&lt;b&gt;PT&lt;/b&gt;" in text
    assert "98.6" in text


def table_of(values: dict[str, Sequence[Sequence[int]]], protocol: Fold = K_FOLD) -> FoldTable:
    """A table of recipes; of each fold whether each of its faces, all of joy, was taken for joy."""
    results = {
        (recipe, "acted"): {
            fold: predictions(fold, [0] * len(right), [1 - one for one in right]) for fold, right in enumerate(folds, 1)
        }
        for recipe, folds in values.items()
    }
    return FoldTable("acted", protocol, {}, results)


def test_a_difference_over_folds_is_paired_and_corrected() -> None:
    """By hand: of fold 1 to 3 the differences 1/4, 1/2, 3/4, the t of 1/2 / sqrt((1/3 + 1/2) / 16) = 2.191."""
    found = table_of(
        {
            "base": [[0, 0, 0, 0], [1, 0, 0, 1], [1, 0, 0, 0]],
            "vas": [[0, 1, 0, 0], [1, 1, 1, 1], [1, 1, 1, 1]],
            "bound": [[1, 1, 1, 1]] * 3,
            "short": [[1, 1, 1, 1]] * 2,
            "even": [[0, 1, 0, 0], [1, 1, 0, 1], [1, 0, 1, 0]],
        }
    )
    pairs = [(name, "base") for name in ("vas", "bound", "short", "even", "absent")]
    rows = {row.recipe: row for row in found.compare(pairs, bounds=["bound"])}
    assert list(rows) == ["vas", "bound", "short", "even"]
    tail = 2 * (1 - stats.t(2).cdf(0.5 / math.sqrt((1 / 3 + 1 / 2) / 16)))
    assert rows["vas"].contrast.mean == 0.5
    assert rows["vas"].contrast.p_value == pytest.approx(tail)
    assert rows["vas"].decision is not None
    assert rows["vas"].decision.p_value == pytest.approx(2 * tail), "Holm: two pairs decide"
    assert [name for name, row in rows.items() if row.decision is None] == ["bound", "short"]
    # A quarter in every fold: no spread, so no certainty either.
    assert (rows["even"].contrast.unknown, rows["even"].contrast.p_value) == ("folds that are equal", 1)


def test_two_recipes_that_saw_different_faces_are_not_compared() -> None:
    found = table_of({"base": [[0, 1]] * 3, "vas": [[0, 1, 1]] * 3})
    with pytest.raises(DataError, match="vas and base were measured on different faces of fold 1; run it again"):
        found.compare([("vas", "base")])


@pytest.mark.parametrize(
    "protocol", [K_FOLD.model_copy(update={"folds": 10}), HoldOut(name="hold_out", test=0.3, folds=10)]
)
def test_recipes_that_do_not_differ_are_rarely_claimed(protocol: KFold | HoldOut) -> None:
    """Real learners: nearest class means, each of its own half of equally good features, on 200 drawn worlds.

    At 5 % 10 of 200 are claimed, and over 18 with a chance of 0.5 %. The plain t test over folds claims far more.
    """
    claimed = plain = 0
    for world in range(200):
        rng = np.random.default_rng([world, protocol.folds])
        labels = np.arange(60) % 2
        subjects = [f"p{number // 2}" for number in range(60)]
        features = rng.normal(size=(60, 20)) + 0.25 * labels[:, None]
        differences = []
        for fold in range(1, protocol.folds + 1):
            tested = is_tested(protocol, subjects, labels, fold=fold)
            rights = []
            for own in (features[:, :10], features[:, 10:]):
                means = [own[~tested & (labels == label)].mean(0) for label in (0, 1)]
                nearer = np.linalg.norm(own - means[1], axis=1) < np.linalg.norm(own - means[0], axis=1)
                rights.append((nearer == labels)[tested].mean())
            differences.append(rights[0] - rights[1])
        claimed += contrast_folds(np.asarray(differences), protocol).p_value < 0.05
        plain += stats.ttest_1samp(differences, 0)[1] < 0.05  # pyright: ignore[reportOperatorIssue]
    assert claimed <= 18
    assert plain > claimed


def test_what_is_missing_is_said(save: Callable[..., None]) -> None:
    assert "no fold of acted with these settings is finished; run: python -m pipelines sweep" in say("table", code=1)[1]
    save(1)
    save(3)
    out, err = say("table", "--name", "acted")
    assert "2 of 3" in out
    assert "1 of 3 folds are missing (2): no figures of the whole protocol" in err
    save(3, name="newer", measured=predictions(7, [0, 1, 1], [0, 0, 0]))  # once more: the newest counts
    assert "0.5000 ± 0.2357" in say("table", "--name", "acted")[0]  # of 2/3 and 1/3


def test_folds_that_tested_the_same_faces_are_refused(save: Callable[..., None]) -> None:
    save(1)
    save(2, measured=predictions(1, *FOLDS[1]))
    assert "folds 1 and 2 tested 3 faces both, in the results of vas" in say("table", code=1)[1]


def test_results_of_another_test_part_are_left_out(save: Callable[..., None]) -> None:
    """As of an experiment that ran `align` for its fold, and kept what another fold measured."""
    save(1)
    save(2, measured=predictions(9, *FOLDS[2]), aligned=["acted/2-0", "acted/2-1", "acted/other"])
    out, err = say("table")
    assert "1 of 3" in out
    assert "fold 2, vas on acted: other faces than its test part has; run it again, whole, after" in err


def test_draws_have_no_figures_together(save: Callable[..., None], tmp_path: Path) -> None:
    drawn = {"name": "hold_out", "test": 0.5}
    (tmp_path / "project" / "params.yaml").write_text(yaml.safe_dump(settings(1, protocol=drawn)))
    save(1, protocol=drawn)
    save(2, protocol=drawn, measured=predictions(1, [0, 0], [0, 0]))
    row = say("table", "--format", "csv")[0].splitlines()[1].split(",")
    # 12.7062 sqrt((1/2 + 1) 0.17678²) either side of 0.875, and no figures of all faces together.
    assert row[3:] == [
        "-",
        "0.8333 ± 0.2357",
        "0.8750 ± 0.1768",
        "-1.8760 to 3.6260",
        "0.1250 ± 0.1768",
        *"---",
        "2.62",
        "408",
    ]


@pytest.mark.usefixtures("save")
def test_what_each_fold_tests() -> None:
    """Persons a and b, c, d, by hand; nothing was run."""
    out, _ = say("divide")
    rows = [line.split() for line in out.splitlines()[3:6]]
    assert rows == [
        ["1*", "2", "4", "4", "1", "3"],
        ["2", "1", "2", "6", "2", "0"],
        ["3", "1", "2", "6", "1", "1"],
    ]
    assert "run them all: python -m pipelines sweep datasets.acted.protocol.fold=1,2,3 --resume" in out


def test_a_pool_of_the_same_source_is_varied_with_its_set(save: Callable[..., None]) -> None:
    """Of two folds one was run with the fold of its pool left behind: it is none of them."""

    def shared(fold: int, of_pool: int) -> dict[str, Any]:
        sets = settings(fold)["datasets"]
        pool = {**sets["acted"], "protocol": {**sets["acted"]["protocol"], "fold": of_pool}}
        return {**sets, "street": pool}

    Path("params.yaml").write_text(yaml.safe_dump(settings(1, datasets=shared(1, 1))))
    sweep = "sweep datasets.acted.protocol.fold+datasets.street.protocol.fold=1,2,3 --resume"
    assert sweep in say("divide")[0]
    save(1, datasets=shared(1, 1))
    save(2, datasets=shared(2, 2))
    save(3, datasets=shared(3, 1))
    out, err = say("table")
    assert "2 of 3" in out
    assert "1 of 3 folds are missing (3)" in err


@pytest.mark.usefixtures("save")
def test_a_set_without_a_protocol() -> None:
    for command in ("divide", "table"):
        assert (
            "the set street has no protocol; set datasets.street.protocol: {name: k_fold"
            in (say(command, "--name", "street", code=1)[1])
        )
