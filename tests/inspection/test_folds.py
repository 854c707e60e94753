"""Folds are joined if they differ in the fold alone, and their figures are those that a hand computes."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import stdev
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner

from fer_pipeline.artifacts.metrics import write_predictions
from fer_pipeline.cli import app
from fer_pipeline.evaluation.predictions import Predictions
from tests.pipelines.conftest import make_repository

GRAPH = 'stages: {evaluate: {cmd: "true", params: [datasets], outs: [reports/metrics/vas/acted]}}\n'
PICTURES = {"a": (1, 1), "b": (0, 2), "c": (2, 0), "d": (1, 1)}  # of each person: so many of joy, of fear
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
    files = {"dvc.yaml": GRAPH, "params.yaml": yaml.safe_dump(settings(1)), ".gitignore": "/reports\n/raw\n"}
    make_repository(folder, files)
    monkeypatch.chdir(folder)
    for person, counts in PICTURES.items():
        for label, count in zip(("joy", "fear"), counts, strict=True):
            for number in range(count):
                file = folder / "raw" / person / label / f"{number}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.new("L", (4, 4)).save(file)

    def save_fold(fold: int, *, name: str = "", measured: Predictions | None = None, **changes: Any) -> None:
        text = (folder / "params.yaml").read_text()
        (folder / "params.yaml").write_text(yaml.safe_dump(settings(fold, **changes)))
        place = folder / "reports" / "metrics" / "vas" / "acted"
        place.mkdir(parents=True, exist_ok=True)
        write_predictions(place / "predictions.parquet", measured or predictions(fold, *FOLDS[fold]))
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
    assert found["folds"] == "3 of 3"
    assert err == ""
    assert "acted: k_fold (folds 3, groups blocks); mean and standard deviation" in say("table")[0]


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


def test_draws_have_no_figures_together(save: Callable[..., None], tmp_path: Path) -> None:
    drawn = {"name": "hold_out", "test": 0.5}
    (tmp_path / "project" / "params.yaml").write_text(yaml.safe_dump(settings(1, protocol=drawn)))
    save(1, protocol=drawn)
    save(2, protocol=drawn, measured=predictions(1, [0, 0], [0, 0]))
    row = say("table", "--format", "csv")[0].splitlines()[1].split(",")
    assert row[3:] == ["-", "0.8333 ± 0.2357", "0.8750 ± 0.1768", "-", "-"]


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


@pytest.mark.usefixtures("save")
def test_a_set_without_a_protocol() -> None:
    for command in ("divide", "table"):
        assert (
            "the set street has no protocol; set datasets.street.protocol: {name: k_fold"
            in (say(command, "--name", "street", code=1)[1])
        )
