"""Persons and pictures on both sides of a test are told with their counts, and nothing where there are none."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa

from fer_pipeline.artifacts.contents import CONTENTS, SharedCounts, write_contents
from fer_pipeline.core.settings import DatasetSettings
from fer_pipeline.reporting.leaks import describe_leaks
from fer_pipeline.reporting.lineage import DataSet
from tests.project import project_settings, recipe_settings

STREET = Path("data/faces/street/train")


def write(folder: Path, name: str, **splits: list[int]) -> None:
    """A file of contents: the numbers of the pictures of each split."""
    rows = [
        (f"{name}/{split}{i}", split, None, n.to_bytes(16, "big"))
        for split in splits
        for i, n in enumerate(splits[split])
    ]
    columns = [[*column] for column in zip(*rows, strict=True)]
    write_contents(folder / f"{name}.parquet", [pa.table(columns, schema=CONTENTS)])


def settings(**changes: Any) -> Any:
    film = {"film": DatasetSettings(adapter="csv", path=Path("raw/film"))}
    return project_settings(targets=("studio", "film"), datasets=film, **changes)


def test_sets_that_share_pictures_by_hand(tmp_path: Path) -> None:
    write(tmp_path, "studio", train=[1, 2, 3], test=[3, 4, 5])
    write(tmp_path, "street", train=[4, 5, 6], test=[9])
    write(tmp_path, "film", train=[1], test=[2, 2, 6, 9])
    assert describe_leaks(tmp_path, settings(), [], None) == [
        "2 test faces of film are equal to train faces of studio; take these pictures out of one of the two."
    ]
    teacher = recipe_settings({"labelled": Path("data/faces/studio/train"), "unlabelled": STREET})
    found = describe_leaks(tmp_path, settings(recipes={"teacher": teacher}), [], None)
    assert [line.partition(";")[0] for line in found] == [
        "2 test faces of film are equal to train faces of studio, which teacher learns from",
        "2 test faces of studio are equal to train faces of street, which teacher learns from",
        "1 test face of film is equal to train faces of street, which teacher learns from",
    ]


def test_persons_and_faces_within_the_sets_that_are_learned_from(tmp_path: Path) -> None:
    shared = {"test": SharedCounts(persons=2, faces=0), "val": SharedCounts(persons=9, faces=9)}
    census = [DataSet(name, "", (), {}, shared) for name in ("studio", "film")]
    [line] = describe_leaks(tmp_path, settings(), census, None)
    assert line.startswith("studio: 2 persons stand in train and test, so ")


def test_mined_test_pictures_are_on_the_page(project: Callable[..., Any], reported: Callable[..., Any]) -> None:
    made = project(faces=20)
    before = reported(made)
    assert not [line for line in before.summary.warnings if "test" in line and "pool" in line]
    path = made.root / "data/mined/summary.json"
    summary = json.loads(path.read_text())
    summary["pools"]["street"]["test_faces"] = 3
    summary["pools"]["street"]["near_test_faces"] = 2
    summary["pools"]["street"]["train_faces"] = 1
    summary["pools"]["street"]["equal_copies"] = 4
    summary["test_faces"] = {"found": 3, "not_checked": ["film"]}
    path.write_text(json.dumps(summary))
    found = reported(made)
    for line in (
        "3 faces of the pool street stand in a test split as well; they were not mined.",
        "2 faces of the pool street look like one of a test split; they were not mined.",
        "1 face of the pool street stands in the train split of the anchor or the training set as well; they may have "
        "been mined, since mine.duplicates.train is not set.",
        "4 faces of the pool street equal another one of the pools; they may have been mined, since "
        "mine.duplicates.pool is not set.",
        "Whether test pictures were mined is not known: mine had no contents of film.",
    ):
        assert line in found.summary.warnings
        assert line in found.page
    assert '<th scope="col">Near test faces</th>' in found.page
    assert "Near test faces" not in before.page
    assert '<th scope="col">Equal copies</th>' in found.page
    assert [row["test_faces"] for row in found.table("mined")] == ["3", ""]
    summary["rule"] = {**summary["rule"], "test_faces": "keep"}
    path.write_text(json.dumps(summary))
    assert any("mine.test_faces is keep" in line for line in reported(made).summary.warnings)
