"""What was made with other settings than dvc.lock says is named with both values."""

import json
from pathlib import Path
from typing import Any

import pytest

from fer_pipeline.core.seeds import derive
from fer_pipeline.health.recorded_settings import find_contradictions

TRAINING = {"settings": {"steps": 500, "batch": 64, "optimizer": {"name": "sgd", "momentum": 0.9}}, "seed": 10}
CARD = {
    "classes": ["a", "b"],
    "network": {"name": "small", "width": 12, "dropout": 0.0},
    "training": TRAINING | {"options": {"smoothing": 0.1, "weight": 2}},
}
FILES: dict[str, dict[str, Any]] = {
    "models/primitive/card.json": CARD
    | {
        "training": CARD["training"]
        | {
            "seed": derive(10, "train_primitive"),
            "label_noise": {"kind": "symmetric", "rate": 0.1, "changed": {"a": 3, "b": 4}},
        }
    },
    "models/final/vas/10/card.json": CARD,
    "models/final/vas/11/card.json": CARD | {"training": CARD["training"] | {"seed": 11}},
    "data/mined/summary.json": {"classes": ["a", "b"], "rule": {"by": "margin", "value": 0.2, "cap": None}, "seed": 10},
    "data/distilled/aux/card.json": {
        "classes": ["a", "b"],
        "settings": {"steps": 1, "batches": 2},
        "network": {"width": 12},
        "seed": 10,
    },
    "data/faces/studio/summary.json": {"faces": 3},
}
SHARED = {"classes": ["a", "b"], "seeds": [10, 11]}
TRAIN = {"training": {"steps": 500, "optimizer": {"name": "sgd"}}, "network": {"width": 12}}
SETTINGS: dict[str, dict[str, Any]] = {
    "train_primitive": SHARED
    | {
        "train_primitive": TRAIN
        | {"options": {"smoothing": 0.1}, "label_noise": {"kind": "symmetric", "rate": 0.1, "seed": 0}}
    },
    "train_final@vas": SHARED
    | {
        "train_final": TRAIN | {"training": {"steps": 9}, "options": {"supervised": {"smoothing": 0.1}, "other": {}}},
        "recipes.vas": {"strategy": "supervised", "overrides": {"training": {"steps": 500}, "options": {"weight": 2}}},
    },
    "mine": SHARED | {"mine": {"by": "margin", "value": 0.2}, "pools": ["street"]},
    "distill@aux": SHARED | {"distill": {"sources": {"aux": "data/aux"}, "batches": 2}, "train_final": TRAIN},
    "align@studio": {"align": {"crop": 48}, "classes": ["a", "b"]},
}
OUTS = {
    "train_primitive": "models/primitive",
    "train_final@vas": "models/final/vas",
    "mine": "data/mined",
    "distill@aux": "data/distilled/aux",
    "align@studio": "data/faces/studio",
}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    for name, content in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(json.dumps(content), encoding="utf-8")
    return tmp_path


def stages(settings: dict[str, Any]) -> dict[str, Any]:
    return {
        name: {"cmd": "x", "params": {"params.yaml": params}, "outs": [{"path": OUTS[name]}]}
        for name, params in settings.items()
    }


def test_equal_settings_are_no_contradiction(project: Path) -> None:
    assert list(find_contradictions(project, stages(SETTINGS))) == []


@pytest.mark.parametrize(
    ("stage", "place", "value", "files", "key"),
    [
        ("train_primitive", "train_primitive.training.steps", 5, ["models/primitive/card.json"], None),
        ("train_primitive", "train_primitive.training.optimizer.name", "adamw", ["models/primitive/card.json"], None),
        ("train_primitive", "train_primitive.options.smoothing", 0.2, ["models/primitive/card.json"], None),
        ("train_primitive", "train_primitive.label_noise.rate", 0.2, ["models/primitive/card.json"], None),
        ("train_primitive", "seeds", [11, 10, 12], [], None),
        ("train_primitive", "seeds", [12], ["models/primitive/card.json"], "seeds"),
        ("train_primitive", "classes", ["b", "a"], ["models/primitive/card.json"], "classes"),
        ("train_final@vas", "train_final.training.steps", 5, [], None),  # the recipe has its own
        ("train_final@vas", "train_final.network.width", 16,
         ["models/final/vas/10/card.json", "models/final/vas/11/card.json"], None),
        ("train_final@vas", "train_final.options.supervised.smoothing", 0.2,
         ["models/final/vas/10/card.json", "models/final/vas/11/card.json"], "train_final.options.smoothing"),
        ("train_final@vas", "recipes.vas.overrides", {"training": {"steps": 7}},
         ["models/final/vas/10/card.json", "models/final/vas/11/card.json"], "train_final.training.steps"),
        ("mine", "mine.value", 0.3, ["data/mined/summary.json"], None),
        ("distill@aux", "distill.batches", 3, ["data/distilled/aux/card.json"], None),
        ("distill@aux", "distill.overrides", {"other": {"batches": 3}}, [], None),
        ("distill@aux", "distill.overrides", {"aux": {"batches": 3}}, ["data/distilled/aux/card.json"],
         "distill.batches"),
        ("distill@aux", "train_final.network.width", 16, ["data/distilled/aux/card.json"], None),
    ],
)  # fmt: skip
def test_each_setting_is_compared(
    project: Path, stage: str, place: str, value: Any, files: list[str], key: str | None
) -> None:
    settings = json.loads(json.dumps(SETTINGS))  # nothing shared
    inside: Any = settings[stage]
    steps = place.replace("recipes.vas", "recipes:vas").split(".")
    for step in steps[:-1]:
        inside = inside[step.replace(":", ".")]
    inside[steps[-1]] = value
    found = list(find_contradictions(project, stages(settings)))
    assert [one.path.relative_to(project).as_posix() for one in found] == files
    assert {one.key for one in found} <= {key or place}
    assert {one.stage for one in found} <= {stage}


def test_both_models_of_a_refitted_learner_are_compared(project: Path) -> None:
    folder = project / "models/primitive"
    (folder / "calibration").mkdir()
    (folder / "calibration/card.json").write_bytes((folder / "card.json").read_bytes())
    edited = TRAIN | {"training": {"steps": 5}}
    found = find_contradictions(project, stages({"train_primitive": SHARED | {"train_primitive": edited}}))
    assert [one.path for one in found] == [folder / "calibration/card.json", folder / "card.json"]


def test_damaged_or_absent_files_are_left_to_their_hashes(project: Path) -> None:
    (project / "data/mined/summary.json").write_bytes(b"{")
    (project / "models/primitive/card.json").unlink()
    assert list(find_contradictions(project, stages(SETTINGS) | {"older": {"cmd": "x"}})) == []
