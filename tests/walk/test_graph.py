"""The whole walk through DVC: what runs, what is cached, and what a changed setting touches.

Accidents this prevents: a walk that crashes at its last stage; a margin that retrains the baseline; a report that
cannot be rewritten without training.
"""

import csv
import json
import re
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from typer.testing import CliRunner

from fer_pipeline.artifacts.review import Judgement, write_review
from fer_pipeline.cli import app
from pipelines.repository import run_git
from tests.prefect_server import Api
from tests.walk.conftest import COPIED

runner = CliRunner()

MINED_AND_BELOW = {
    "mine",
    "shard@street",
    "distill@auxiliary",
    "train_final@both",
    "evaluate@both-film",
    "report",
}


def ran(told: str) -> set[str]:
    return set(re.findall(r"Running stage '([^']+)'", told))


def test_the_walk(
    project: Callable[[str], Any], scheduled: Callable[[Any], Any], api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = project("first")
    stages = set(made.dvc("stage", "list", "--name-only").split())

    # A schedule fires twice: the first run makes everything, the second finds it so.
    first, second = scheduled(made).fire(times=2)
    assert first["auto_scheduled"]
    assert second["auto_scheduled"]
    assert api.states(first["id"]) == dict.fromkeys(stages, "Completed"), first["state"]["message"]
    assert api.states(second["id"]) == dict.fromkeys(stages, "Cached"), second["state"]["message"]
    assert first["name"] == "reproduce · studio + street → baseline, both"
    shown = api.artifacts(first["id"])
    assert {row["stage"] for row in json.loads(shown["stages"]["data"])} == stages
    assert {(row["recipe"], row["target"]) for row in json.loads(shown["metrics"]["data"])} == {
        (recipe, target) for recipe in ("baseline", "both") for target in ("film",)
    }
    assert {row["class"]: row["kept"] for row in json.loads(shown["mined"]["data"])} == {
        "happiness": "8",
        "neutral": "8",
        "surprise": "8",
    }
    assert "reports/runs/" in shown["report"]["data"]
    lock = (made / "dvc.lock").read_bytes()

    with (made / "reports/tables/results.csv").open(encoding="utf-8") as stream:
        results = {(row["recipe"], row["target"]) for row in csv.DictReader(stream)}
    assert results == {(recipe, "film") for recipe in ("baseline", "both")}
    page = (made / "reports/index.html").read_text(encoding="utf-8")
    assert "<html" in page
    assert not re.search(r'(?:src|href)="https?://[^"]*\.(?:js|css|png|svg)', page), "the page reaches for the network"

    rows = pq.read_table(made / "data/mined/mined.parquet").to_pylist()
    assert {row["pool"] for row in rows} == {"street"}
    assert all(row["margin"] >= 0 for row in rows)
    aligned = json.loads((made / "reports/census/street.json").read_text())["splits"]["train"]
    assert aligned["faces"] + sum(aligned["rejected"].values()) == aligned["samples"] == 60

    # What `dvc exp show` and `dvc plots diff` compare revisions by.
    (metrics,) = json.loads(made.dvc("metrics", "show", "--json")).values()
    assert metrics["data"]["reports/tables/mined.json"]["data"]["kept"] == len(rows) == 24
    assert metrics["data"]["reports/metrics/both/film.json"]["data"].keys() >= {"accuracy", "mean_class_accuracy"}
    plots = json.loads(made.dvc("plots", "show", "--json"))
    drawn = {name: one[0]["content"]["data"]["values"] for name, one in plots["data"].items()}
    assert {row["class"]: row["kept"] for row in drawn["mined faces of each class"]} == dict.fromkeys(
        ("happiness", "neutral", "surprise"), "8"
    )
    assert len(drawn["confusion of the best recipe"]) == 2 * 12, "two seeds, twelve test faces"
    assert not plots.get("errors")

    assert ran(made.dvc("repro")) == set(), "DVC alone must have nothing to do"
    assert (made / "dvc.lock").read_bytes() == lock

    made.change(report={"title": "Another title"})
    assert ran(made.dvc("repro")) == {"report"}

    # An experiment with as many faces as there are is compared with what is committed.
    for words in (("add", "--", *COPIED, "params.yaml", "dvc.lock"), ("commit", "--quiet", "--message", "the walk")):
        run_git(made.folder, "-c", "user.name=Ada", "-c", "user.email=ada@example.org", *words)
    assert ran(made.dvc("exp", "run", "--name", "all", "-S", "mine.value=60")) == MINED_AND_BELOW
    rows = pq.read_table(made / "data/mined/mined.parquet").to_pylist()
    assert len(rows) == aligned["faces"]
    _, head = json.loads(made.dvc("exp", "show", "--json"))
    (named,) = [one for group in head["experiments"] for one in group["revs"]]
    assert named["name"] == "all"
    for entry, value, kept in ((head, 8, 24), (named, 60, len(rows))):
        assert entry["data"]["params"]["params.yaml"]["data"]["mine"]["value"] == value
        figures = {name: one["data"] for name, one in entry["data"]["metrics"].items()}
        assert figures["reports/tables/mined.json"]["kept"] == kept
        assert figures["reports/metrics/both/film.json"].keys() >= {"accuracy", "mean_class_accuracy"}
    (content,) = [one["content"] for one in json.loads(made.dvc("plots", "diff", "--json", "HEAD"))["data"][
        "mined faces of each class"
    ]]  # fmt: skip
    kept = Counter(row["rev"] for row in content["data"]["values"])
    assert kept == {"HEAD": 3, "workspace": 3}, "three classes of each"

    # The same settings in an empty folder, by hand, with an empty store: the same bytes.
    again = project("again")
    again.write(made.params)
    monkeypatch.chdir(again.folder)
    for command in again.commands():
        told = runner.invoke(app, command)
        assert told.exit_code == 0, told.output
    assert again.files() == made.files()
    again.dvc("commit", "--force")
    assert again.locked() == made.locked(), "what DVC alone locks"

    # Lost outputs come back from the cache without running anything.
    shutil.rmtree(made / "models")
    assert ran(made.dvc("repro")) == set()
    assert (made / "models/final/both/1/weights.safetensors").exists()

    # Faces that are judged wrong are mined no more, they alone, and nothing before `mine` runs.
    faces = pq.read_table(made / "data/contents/street.parquet").to_pylist()
    pictures = {row["face_id"]: row["content"].hex() for row in faces}
    rows = pq.read_table(made / "data/mined/mined.parquet").to_pylist()
    mined = {row["face_id"]: made.params["classes"][row["label"]] for row in rows}
    verdicts = [
        Judgement(name, "street", pictures[name], "wrong", mined[name], "Ada", "2026-11-28T12:00:00Z")
        for name in sorted(mined.keys() - {row["face_id"] for row in rows if row["rank"] <= 3})[:50]
    ]
    assert len(verdicts) == 50
    write_review(made / "data/review.csv", verdicts)
    assert ran(made.dvc("repro")) == MINED_AND_BELOW
    left = {row["face_id"] for row in pq.read_table(made / "data/mined/mined.parquet").to_pylist()}
    assert left == mined.keys() - {row.face_id for row in verdicts}

    # A learner for each seed: all that stands on one runs again, and nothing else; the first seed's is what it was.
    first = {name: (made / name).read_bytes() for name in ("data/mined/mined.parquet", "models/primitive/card.json")}
    made.change(train_primitive={"seeds_upstream": "all"})
    assert ran(made.dvc("repro")) == made.below("train_primitive")
    for name, content in first.items():
        place = Path(name)
        assert (made / str(place.parent / "0" / place.name)).read_bytes() == content
    assert "ran anew for each seed" in (made / "reports/index.html").read_text(encoding="utf-8")
    assert ran(made.dvc("repro")) == set()


def test_each_recipe_of_the_demo_stands_on_its_own_sources(project: Callable[[str], Any], root: Path) -> None:
    """What the walk sees of `both` holds for mined faces alone, and for distilled images alone."""
    demo = project("demo")
    demo.write(yaml.safe_load((root / "params.yaml").read_text(encoding="utf-8")))
    mined, distilled = {"vas"}, {"das"}
    for stage, recipes, others in (
        ("mine", mined | distilled, {"shard@street", "shard@studio_pool", "distill@auxiliary"}),
        ("shard@street", mined | distilled, {"distill@auxiliary"}),
        ("distill@auxiliary", distilled, set()),
    ):
        trained = {f"train_final@{recipe}" for recipe in recipes}
        evaluated = {f"evaluate@{recipe}-{target}" for recipe in recipes for target in ("studio", "film")}
        assert demo.below(stage) == {stage, *others, *trained, *evaluated, "report"}


def test_each_recipe_of_the_full_demo_stands_on_its_own_sources(project: Callable[[str], Any], root: Path) -> None:
    """The settings are those of its profile, as the command puts them in place; every recipe meets every target."""
    full = project("full")
    full.write(yaml.safe_load((root / "profiles" / "demo_full.yaml").read_text(encoding="utf-8")))
    recipes = set(full.params["evaluate"]["recipes"])
    assert recipes == set(full.params["recipes"])

    def train_and_evaluate(names: set[str]) -> set[str]:
        evaluated = {f"evaluate@{name}-{target}" for name in names for target in ("studio", "film")}
        return {f"train_final@{name}" for name in names} | evaluated | {"report"}

    mined, distilled = {"vas", "vas_softmax", "random_vas", "true_vas"}, {"das", "noise"}
    # The anchor, not what was mined, is distilled for das; the other distilled set is for its controls alone.
    assert full.below("distill@unrolled") == {"distill@unrolled", *train_and_evaluate(distilled)}
    assert full.below("distill@matched") == {"distill@matched", "report"}
    shards = {"shard@street", "shard@studio_pool"}
    assert full.below("mine") == {"mine", *shards, "distill@matched", *train_and_evaluate(mined)}
    assert full.below("align@studio") >= train_and_evaluate(recipes)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"mine": {"valu": 0.1}}, "mine: unknown key 'valu'; known keys are "),
        ({"classes": ["happiness"]}, "classes must name at least two expressions"),
        ({"evaluate": {"recipes": ["vsa"]}}, "evaluate.recipes: no recipe 'vsa'"),
        ({"embed": {"sets": ["studio"]}}, "embed.sets: found"),
        ({"resources": {"workers": 0}}, "resources.workers"),
    ],
)
def test_wrong_settings_stop_the_first_stage(project: Callable[[str], Any], change: dict[str, Any], line: str) -> None:
    """Refused before anything is done, in one line, without a traceback."""
    made = project("wrong")
    made.change(**change)
    told = runner.invoke(
        app,
        [
            "synthesize",
            "--name",
            "film",
            "--out",
            str(made / "out"),
            "--truth",
            str(made / "truth.parquet"),
            "--params",
            str(made / "params.yaml"),
        ],
    )
    assert told.exit_code == 1
    assert told.stderr.count("\n") == 1
    assert told.stderr.startswith("error: ")
    assert line in told.stderr
    assert not (made / "out").exists()
