"""Every paper's settings on every published set are valid, and their networks can be built."""

import json
from functools import cache
from pathlib import Path

import pytest
import torch
import yaml

from fer_pipeline.commands import profile
from fer_pipeline.commands.check import check, networks_in
from fer_pipeline.core.errors import ConfigError
from fer_pipeline.networks.backbones import build
from fer_pipeline.networks.settings import NetworkSettings

PAPERS = ("face2exp", "facenet2expnet", "os_fer", "progressive_teacher", "weakly_supervised")
SETS = sorted(path.stem for path in Path("profiles/sets").glob("*.yaml"))
PAIRS = [(paper, one) for paper in PAPERS for one in SETS if (paper, one) != ("progressive_teacher", "affectnet")]
# Classes and folds as the papers have them.
EXPECTED = {
    **{"raf_db": (7, 1), "fer2013": (7, 1), "ferplus": (7, 1), "affectnet": (7, 1), "sfew": (7, 1), "tfd": (7, 5)},
    **{"ck_plus": (8, 10), "ck_plus_7": (7, 10), "ck_plus_6": (6, 10), "ck_plus_ends": (7, 10), "jaffe": (7, 10)},
    **{"mmi": (6, 10), "oulu_casia": (6, 10), "rafd": (7, 10), "rafd_holdout": (7, 10)},
}


@cache
def size_of(network: str, classes: int) -> int:
    """The parameters of a network, which is built where no memory is taken."""
    with torch.device("meta"):
        return sum(one.numel() for one in build(NetworkSettings(**json.loads(network)), classes, seed=0).parameters())


@pytest.mark.parametrize(("paper", "on"), PAIRS)
def test_a_paper_on_a_set_is_valid_and_builds_its_networks(
    paper: str, on: str, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(root)
    params = tmp_path / "params.yaml"
    profile.run(paper, on=on, params=params)
    checked = check(params)
    project, protocol = checked.project, checked.project.dataset(on).protocol
    assert (project.anchor, project.train, project.targets) == (on, on, (on,))
    assert set(project.datasets) == {on, *project.pools}
    assert (len(project.classes), protocol.folds if protocol else 1) == EXPECTED[on]
    networks = [json.dumps(one.model_dump(mode="json", exclude_unset=True)) for one in networks_in(checked)]
    assert max(size_of(one, len(project.classes)) for one in networks) > 10**6
    own = (root / "profiles" / f"{paper}.yaml").read_text()
    assert {line for line in own.splitlines() if "optimizer" in line} <= {*params.read_text().splitlines()}


def test_the_paper_on_wrong_labels_as_they_come(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Section 4.3.3 of Jiang & Deng: a batch of 200 of which half is labelled, and what is kept of which class."""
    monkeypatch.chdir(root)
    params = tmp_path / "params.yaml"
    profile.run("progressive_teacher_affectnet", params=params)
    checked = check(params)
    settings = checked.configs["train_final"]
    options = settings.options["progressive_teacher"]
    kept = dict(zip(checked.project.classes, options["reserve"], strict=True))
    assert {name for name, share in kept.items() if share == 0.9} == {"disgust", "fear", "surprise"}
    assert {name for name, share in kept.items() if share == 0.8} == {"anger", "sadness"}
    assert settings.training.batch * (1 + options["unlabelled_ratio"]) == 200
    assert (options["reject"], options["reject_steps"]) == (0.2, 3000)
    assert checked.project.dataset("affectnet").classes == {"contempt": None}


def test_every_set_is_expected() -> None:
    assert set(SETS) == set(EXPECTED)


def test_what_a_paper_set_otherwise_on_a_set(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """28,608 = 8 × 3,576 faces of AffectNet, of seven classes 25,032; 180,000 steps instead of 30,000."""
    monkeypatch.chdir(root)
    written = profile.compose("face2exp", "affectnet")
    settings = yaml.safe_load(written)
    training = settings["train_final"]["training"]
    disgust = 3_803  # training faces of the rarest class
    assert (1 - settings["train_final"]["validation"]) * disgust > training["balance_per_class"]
    assert (training["steps"], training["balance"], training["balance_per_class"]) == (180_000, "dataset", 3576)
    assert "list: train_00001" not in written, "a comment on the set that is gone"


@pytest.mark.parametrize("path", sorted(Path("profiles").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_baseline_of_a_profile_is_a_recipe_that_is_evaluated(path: Path, root: Path) -> None:
    settings = yaml.safe_load((root / path).read_text())
    assert settings["report"].get("baseline", "baseline") in settings["evaluate"]["recipes"]


def test_cross_dataset_tests_a_set_whole(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)
    params = tmp_path / "params.yaml"
    profile.run("os_fer", test_on=["ck_plus_7", "jaffe", "mmi", "fer2013"], params=params)
    project = check(params).project
    assert project.targets == ("raf_db", "ck_plus_7", "jaffe", "mmi", "fer2013")
    assert [project.dataset(name).split for name in project.targets] == [None, "test", "test", "test", None]
    assert all(project.dataset(name).protocol is None for name in project.targets)


def test_a_target_of_more_classes_leaves_out_the_others(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(root)
    params = tmp_path / "params.yaml"
    profile.run("os_fer", on="oulu_casia", test_on=["raf_db"], params=params)
    project = check(params).project
    words = project.dataset("raf_db").classes
    assert "neutral" not in project.classes
    assert {word for word, meaning in words.items() if meaning is None} == {"7"}


@pytest.mark.parametrize(
    ("name", "on", "test_on", "said"),
    [
        ("os_fer", "ck", [], "unknown set 'ck'; choose one of affectnet, ck_plus"),
        ("os_fer", None, ["ck"], "unknown set 'ck'; choose one of affectnet, ck_plus"),
        ("facenet2expnet", "ck_plus", ["ck_plus_7"], "ck_plus_7 and ck_plus share pictures"),
        ("os_fer", "tfd", ["jaffe"], "jaffe and tfd share pictures"),
        ("os_fer", "ck_plus", ["tfd"], "tfd and ck_plus share pictures"),
        ("demo", "jaffe", [], "the profile demo is of no published set"),
        ("progressive_teacher", "affectnet", [], "affectnet is a pool of the profile progressive_teacher"),
        ("progressive_teacher", None, ["affectnet"], "affectnet is a pool of the profile progressive_teacher"),
    ],
)
def test_what_does_not_go_together(
    name: str,
    on: str | None,
    test_on: list[str],
    said: str,
    root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(root)
    with pytest.raises(ConfigError, match=said):
        profile.run(name, on=on, test_on=test_on, params=tmp_path / "params.yaml")
    assert not (tmp_path / "params.yaml").exists()
