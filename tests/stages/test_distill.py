"""The stage from shards to a distilled set: what it promises about learning, resuming, bytes and bad input."""

import csv
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from fer_pipeline.artifacts.distilled import DistilledSet, read_distilled, read_saved
from fer_pipeline.artifacts.faces import encode, face_schema, write_shard
from fer_pipeline.core.errors import ConfigError, DataError
from fer_pipeline.core.files import read_json
from fer_pipeline.core.settings import Summary, validate
from fer_pipeline.distillation.start import logits_of, trainable
from fer_pipeline.distillation.unrolled import cross_entropy_of, train
from fer_pipeline.networks.backbones import build
from fer_pipeline.networks.checkpoints import load_checkpoint, save_checkpoint
from fer_pipeline.networks.preprocessing import Preprocessing
from fer_pipeline.networks.settings import Card, NetworkSettings
from fer_pipeline.stages import distill
from fer_pipeline.stages.distill import Config
from tests.project import project_settings

CLASSES = ("anger", "happiness", "neutral")
SIDE = 16
EXPERTS = {"count": 2, "epochs": 4, "batch_size": 16, "saved_every": 2, "ahead": 2, "latest": 3}
FINAL = {"network": {"name": "small", "width": 4}}
PROJECT = project_settings(classes=CLASSES, seeds=(3,), train_final=FINAL)
COLOURS = np.array([[200, 60, 60], [60, 200, 60], [60, 60, 200]])


def _faces() -> tuple[np.ndarray, np.ndarray]:
    """60 pictures: a colour a class under heavy noise."""
    draw = np.random.default_rng(4)
    labels = np.arange(60) % 3
    noise = draw.normal(0, 60, size=(60, SIDE, SIDE, 3))
    return np.clip(COLOURS[labels][:, None, None] + noise, 0, 255).astype(np.uint8), labels


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A faces split and an untrained primitive learner, which has everything to learn."""
    root = tmp_path_factory.mktemp("world")
    images, labels = _faces()
    count = len(labels)
    persons = [f"p{row // 6}" for row in range(count)]
    rows = {
        "face_id": [f"set/{row}" for row in range(count)],
        "image": [{"bytes": encode(image, format="png"), "path": None} for image in images],
        "label": labels.tolist(),
        "subject": persons,
        "split": ["train"] * count,
        "landmarks": [[0.0] * 10] * count,
        "score": [1.0] * count,
        "source": [None] * count,
    }
    table = pa.table(rows, schema=face_schema(CLASSES, crop=SIDE))
    write_shard(root / "faces" / "part-00000.parquet", table)
    network = NetworkSettings(size=SIDE, width=4)
    card = Card(network=network, classes=CLASSES, preprocessing=Preprocessing(size=SIDE))
    save_checkpoint(root / "model", build(network, 3, seed=2), card)
    return root


def _config(**changes: Any) -> Config:
    values = {
        "steps": 2,
        "epochs": 2,
        "outer_epochs": 12,
        "batch_size": 32,
        "batches": 4,
        "save_every": 2,
        "step_size": 0.5,
        "learning_rate": 0.1,
        "theta_0": "primitive",  # which is untrained here
        "augment": None,
        "heldout": 0,
        "controls": {"draws": 2, "steps": 3, "bootstrap": 100},
        "probe": {"epochs": 2, "seeds": 1},
        **changes,
    }
    return validate(Config, values, where="distill")


def _run(world: Path, root: Path, **changes: Any) -> Summary:
    return distill.run(
        _config(**changes),
        PROJECT,
        name="out",
        source=world / "faces",
        model=world / "model",
        out=root / "out",
        store=root / "store",
    )


def _bytes(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def finished(world: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Summary]:
    root = tmp_path_factory.mktemp("finished")
    return root, _run(world, root, heldout=0.2, save_every=1)


def test_training_on_the_images_alone_learns_the_real_ones(world: Path, finished: tuple[Path, Summary]) -> None:
    """Judged from outside: load what lies on disk, train from theta_0 with it, look at the real pictures."""
    root, summary = finished
    found = read_distilled(root / "out", classes=CLASSES)
    classifier = load_checkpoint(world / "model")
    images, labels = _faces()
    before = (classifier.predict(images).argmax(1) == labels).mean()
    network = classifier.model.requires_grad_(True)
    parameters = train(
        cross_entropy_of(network),
        trainable(network),
        torch.from_numpy(found.images),
        torch.from_numpy(found.labels),
        torch.from_numpy(found.step_sizes),
        epochs=2,
    )
    with torch.no_grad():
        logits = logits_of(network)(parameters, classifier.card.preprocessing.apply(images))
    after = (logits.argmax(1).numpy() == labels).mean()
    assert before < 0.4
    assert after > 0.6
    assert summary.counts["distilled_images"] == 6
    assert summary.counts["loss"] < summary.counts["loss_before"]


def test_overrides_of_a_set_are_its_settings_and_of_no_other(world: Path, tmp_path: Path) -> None:
    """The same bytes as from settings that have the override's values themselves."""
    sources = {"out": "data/auxiliary", "other": "data/auxiliary"}
    short = {"outer_epochs": 2, "probe": {"epochs": 1, "seeds": 1, "moments": 2}}
    _run(world, tmp_path / "plain", **short, start="real", controls={"draws": 1, "steps": 2, "bootstrap": 100})
    over = {"start": "real", "controls": {"draws": 1, "steps": 2}}
    _run(world, tmp_path / "over", **short, sources=sources, overrides={"out": over, "other": {"steps": 9}})
    assert _bytes(tmp_path / "over" / "out") == _bytes(tmp_path / "plain" / "out")


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        ({"nobody": {"steps": 2}}, "overrides names 'nobody', but sources has ['out']"),
        ({"out": {"stps": 2}}, "overrides.out: unknown key 'stps'"),
        ({"out": {"method": "magic"}}, "overrides.out: method: Input should be"),
        ({"out": {"sources": {}}}, "overrides.out: 'sources' is not of one distilled set; take it out"),
    ],
)
def test_overrides_that_fit_nothing_are_one_line(overrides: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(line)) as caught:
        _config(sources={"out": "data/auxiliary"}, overrides=overrides)
    assert "\n" not in str(caught.value)


def test_everything_promised_lies_in_the_folder(finished: tuple[Path, Summary]) -> None:
    out = finished[0] / "out"
    found = read_distilled(out)
    assert found.images.shape == (2, 3, 3, SIDE, SIDE)
    assert found.labels.tolist() == [[0, 1, 2]] * 2
    assert found.step_sizes.shape == (2,)
    assert (found.step_sizes > 0).all()
    assert not np.allclose(found.step_sizes, 0.5, rtol=1e-3)
    saved = read_saved(out)
    assert list(saved) == list(range(1, 13))
    best = read_json(out / "card.json")["best_epoch"]
    np.testing.assert_array_equal(saved[best], found.images)
    with (out / "history.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [int(row["epoch"]) for row in rows] == list(range(1, 13))
    assert float(rows[-1]["loss"]) < float(rows[0]["loss"])
    assert best == 1 + int(np.argmin([float(row["heldout_loss"]) for row in rows]))
    assert float(rows[best - 1]["step_size_1"]) == pytest.approx(float(found.step_sizes[1]), rel=1e-5)
    with Image.open(out / "previews" / "grid.png") as grid:
        assert grid.size == (3 * SIDE + 4, 2 * SIDE + 2)
    with Image.open(out / "previews" / "neutral.png") as picture:
        shown = np.asarray(picture)[:SIDE, :SIDE].astype(float)
    # mean = std = 0.5: a value of -1 is black, 1 is white
    expected = np.clip((found.images[0, 2].transpose(1, 2, 0) + 1) / 2, 0, 1) * 255
    assert np.abs(shown - expected).max() <= 0.51
    assert read_json(out / "probe.json")["moments"] == [1, 3, 5, 8, 10, 12]  # six of them, evenly
    card = read_json(out / "card.json")
    assert (card["source"], card["source_images"], card["settings"]["epochs"]) == ("faces", 60, 2)
    assert not (finished[0] / "store" / "states" / "distill").exists() or not any(
        (finished[0] / "store" / "states" / "distill").iterdir()
    )


ONE: dict[str, Any] = {"draws": 1, "steps": 1, "bootstrap": 100}
TWO: dict[str, Any] = {"outer_epochs": 2, "save_every": 1}


@pytest.fixture(scope="module")
def plain(world: Path, tmp_path_factory: pytest.TempPathFactory) -> DistilledSet:
    """What two epochs make with no other setting changed."""
    root = tmp_path_factory.mktemp("plain")
    _run(world, root, **TWO)
    return read_distilled(root / "out")


FEW: dict[str, Any] = {
    "outer_epochs": 4,
    "save_every": 1,
    "batches": 2,
    "heldout": 0.2,
    "controls": ONE,
}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"method": "distribution_matching"},
        {"method": "trajectory_matching", "experts": EXPERTS, "theta_0": "random"},
    ],
    ids=lambda changes: changes.get("method", "unrolled"),
)
def test_killed_and_resumed_gives_the_same_bytes(
    world: Path, tmp_path: Path, root: Path, changes: dict[str, Any]
) -> None:
    _run(world, tmp_path / "whole", **FEW, **changes)
    script = f"""
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
from fer_pipeline.distillation import loop
import test_distill
save = loop.save_state
def dying(folder, synthetic, optimizer, done):
    save(folder, synthetic, optimizer, done)
    if len(done.history) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
loop.save_state = dying
test_distill._run(Path({str(world)!r}), Path({str(tmp_path / "cut")!r}), **test_distill.FEW, **{changes!r})
"""
    killed = subprocess.run([sys.executable, "-c", script], cwd=root, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "cut" / "out").exists()
    _run(world, tmp_path / "cut", **FEW, **changes)
    assert _bytes(tmp_path / "cut" / "out") == _bytes(tmp_path / "whole" / "out")


@pytest.mark.parametrize(
    "changes", [{"optimizer": "sgd"}, {"theta_0": "random", "draws": 2}, {"balance": "none"}], ids=str
)
def test_stopped_and_resumed_gives_the_same_bytes(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    from fer_pipeline.distillation import loop

    _run(world, tmp_path / "whole", **FEW, **changes)
    save = loop.save_state

    def stopping(folder: Path, synthetic: Any, optimizer: Any, done: Any) -> None:
        save(folder, synthetic, optimizer, done)
        if len(done.history) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(loop, "save_state", stopping)
        with pytest.raises(KeyboardInterrupt):
            _run(world, tmp_path / "cut", **FEW, **changes)
    _run(world, tmp_path / "cut", **FEW, **changes)
    assert _bytes(tmp_path / "cut" / "out") == _bytes(tmp_path / "whole" / "out")


def test_resuming_starts_after_the_last_finished_epoch(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fer_pipeline.distillation import loop

    seen: list[int] = []
    save = loop.save_state

    def stopping(folder: Path, synthetic: Any, optimizer: Any, done: Any) -> None:
        save(folder, synthetic, optimizer, done)
        seen.append(len(done.history))
        if len(done.history) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(loop, "save_state", stopping)
    with pytest.raises(KeyboardInterrupt):
        _run(world, tmp_path, outer_epochs=5)
    _run(world, tmp_path, outer_epochs=5)
    assert seen == [1, 2, 3, 4, 5]


def test_a_finished_distillation_is_taken_from_the_store(world: Path, finished: tuple[Path, Summary]) -> None:
    root, first = finished
    before = _bytes(root / "out")
    again = _run(world, root, heldout=0.2, save_every=1)
    assert again.line == first.line + " (from the store)"
    assert _bytes(root / "out") == before


@pytest.mark.parametrize(
    "changes",
    [
        {"steps": 1},
        {"epochs": 1},
        {"per_class": 2},
        {"theta_0": "random"},
        {"theta_0": "initial"},
        {"start": "real"},
        {"heldout": 0.5},
        {"augment": {}},
        {"method": "distribution_matching"},
        {"method": "trajectory_matching", "experts": EXPERTS},
        {"step_size": 0.1},
        {"clamp": True},
        {"batch_size": 20},
        {"batches": 1},
        {"balance": "none"},
        {"max_images": 30},
        {"optimizer": "sgd"},
        {"learning_rate": 0.02},
        {"decay_every": 1},
    ],
    ids=str,
)
def test_every_setting_does_something(
    world: Path, plain: DistilledSet, tmp_path: Path, changes: dict[str, Any]
) -> None:
    _run(world, tmp_path, **TWO, **changes)
    changed = read_distilled(tmp_path / "out")
    assert plain.images.shape != changed.images.shape or not np.array_equal(plain.images, changed.images)


def test_keeping_fewer_weights_changes_no_byte(world: Path, plain: DistilledSet, tmp_path: Path) -> None:
    _run(world, tmp_path, **TWO, weights_kept=1)
    np.testing.assert_array_equal(read_distilled(tmp_path / "out").images, plain.images)


def test_real_images_are_the_start_where_asked(world: Path, tmp_path: Path) -> None:
    """One tiny outer step from real images leaves them all but what they were: pictures of the right class."""
    _run(world, tmp_path, start="real", outer_epochs=1, learning_rate=1e-6)
    found = read_distilled(tmp_path / "out")
    images, labels = _faces()
    space = Preprocessing(size=SIDE).apply(images).numpy()
    for image, label in zip(*found.flat(), strict=True):
        distance = np.abs(space - image).max((1, 2, 3))
        assert distance.min() < 1e-3
        assert labels[distance.argmin()] == label


def test_clamped_images_stay_within_what_pixels_can_be(world: Path, tmp_path: Path) -> None:
    _run(world, tmp_path, clamp=True, outer_epochs=2)
    assert np.abs(read_distilled(tmp_path / "out").images).max() <= 1 + 1e-6  # mean = std = 0.5


def test_held_out_anchor_faces_are_left_out(world: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    for path in (world / "model").iterdir():
        (model / path.name).write_bytes(path.read_bytes())
    parts = {"face_id": ["set/0", "set/1", "set/2"], "label": [0, 1, 2], "part": ["fit", "heldout", "validation"]}
    pq.write_table(pa.table(parts), model / "split.parquet")

    def distilled(name: str) -> Summary:
        options = {"out": tmp_path / name, "store": tmp_path / f"store-{name}"}
        project = project_settings(classes=CLASSES, seeds=(3,))
        config = _config(outer_epochs=1)
        return distill.run(config, project, name="out", source=world / "faces", model=model, **options)

    summary = distilled("out")
    assert summary.counts["source_images"] == 58
    assert summary.counts["left_out_held_out"] == 2
    # Of a refitted labeller, which learned from one of the two, the calibration model stands for it.
    model.rename(tmp_path / "calibration")
    network = NetworkSettings(size=SIDE, width=4)
    card = Card(network=network, classes=CLASSES, preprocessing=Preprocessing(size=SIDE))
    save_checkpoint(model, build(network, 3, seed=6), card)
    pq.write_table(pa.table(parts | {"part": ["fit", "fit", "validation"]}), model / "split.parquet")
    (tmp_path / "calibration").rename(model / "calibration")
    distilled("refitted")
    assert _bytes(tmp_path / "refitted") == _bytes(tmp_path / "out")


def test_it_stops_where_the_held_out_loss_no_longer_falls(world: Path, tmp_path: Path) -> None:
    """Images that cannot move have the same loss at every look: the first is the best, and two more are enough."""
    summary = _run(world, tmp_path, learning_rate=1e-30, heldout=0.2, patience=2, controls=ONE)
    card = read_json(tmp_path / "out" / "card.json")
    assert (card["epochs_run"], card["best_epoch"]) == (3, 1)
    assert card["stopped"] == "after 2 looks without a lower held-out loss"
    assert (summary.counts["epochs_run"], card["heldout_images"]) == (3, 12)
    with (tmp_path / "out" / "history.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len({row["heldout_loss"] for row in rows}) == 1
    assert [row["best_epoch"] for row in rows] == ["1", "1", "1"]


def test_the_images_of_the_lowest_held_out_loss_are_kept(world: Path, tmp_path: Path) -> None:
    _run(world, tmp_path, outer_epochs=5, save_every=1, heldout=0.2, patience=None, controls=ONE)
    with (tmp_path / "out" / "history.csv").open(newline="") as stream:
        losses = [float(row["heldout_loss"]) for row in csv.DictReader(stream)]
    best = 1 + int(np.argmin(losses))
    assert read_json(tmp_path / "out" / "card.json")["best_epoch"] == best
    np.testing.assert_array_equal(read_distilled(tmp_path / "out").images, read_saved(tmp_path / "out")[best])


def test_a_source_that_is_solved_before_the_first_step_is_a_warning(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An untrained primitive learner solves nothing; where it counts as solved its loss and accuracy are stated."""
    summary = _run(world, tmp_path / "as_it_is", outer_epochs=1)
    assert not [line for line in summary.warnings if "solved" in line]
    monkeypatch.setattr(distill, "SOLVED", 0.0)
    summary = _run(world, tmp_path / "solved", outer_epochs=1)
    images, labels = _faces()
    found = load_checkpoint(world / "model").predict(images)
    accuracy, loss = (found.argmax(1) == labels).mean(), -np.log(found[np.arange(60), labels]).mean()
    expected = f"(theta_0: primitive has loss {loss:.4f} and accuracy {accuracy:.4f} on it)"
    assert [line for line in summary.warnings if expected in line]


def test_more_repeats_change_the_comparison_alone(world: Path, tmp_path: Path) -> None:
    changes = {"outer_epochs": 1, "heldout": 0.2, "controls": {**ONE, "draws": 2}}
    for name, repeats in (("one", 1), ("two", 2)):
        _run(world, tmp_path / name, repeats=repeats, **changes)
    one, two = (read_distilled(tmp_path / name / "out").images for name in ("one", "two"))
    np.testing.assert_array_equal(one, two)
    assert read_json(tmp_path / "two" / "out" / "controls.json")["repeats"] == 2


def test_divergence_is_one_line_and_keeps_the_earlier_artefact(world: Path, tmp_path: Path) -> None:
    _run(world, tmp_path, outer_epochs=1)
    before = _bytes(tmp_path / "out")
    with pytest.raises(DataError, match=r"not finite in epoch .*; lower distill.step_size"):
        _run(world, tmp_path, step_size=1e12, epochs=6)
    assert _bytes(tmp_path / "out") == before


def test_too_few_saved_moments_and_nothing_held_out_are_warnings(world: Path, tmp_path: Path) -> None:
    summary = _run(world, tmp_path, outer_epochs=2)
    assert [warning.split(";")[0] for warning in summary.warnings] == [
        "whether the images teach anything is not known: no image of the source is held out",
        "the probe needs 6 saved moments and found 1",
    ]


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="step_size"):
        _config(step_size=0)
    with pytest.raises(ConfigError, match=r"unknown key 'step'; known keys are .*steps"):
        _config(step=3)


def test_an_edited_loss_distils_again_and_a_reworded_one_does_not(world: Path, tmp_path: Path, package_copy) -> None:
    def made() -> bool:
        return "(from the store)" not in _run(world, tmp_path, outer_epochs=1).line

    assert made()
    module = package_copy() / "distillation" / "unrolled.py"
    assert not made(), "the same code elsewhere"
    source = module.read_text(encoding="utf-8")
    edited = source + "\n\ndef added() -> None:\n    pass\n"
    reworded = source.replace('"""', '"""In other words. ', 1) + "\n# a comment\n"
    reformatted = source.replace("\n\n\n", "\n\n\n\n")
    assert len({source, edited, reworded, reformatted}) == 4
    for text, again in ((edited, True), (reworded, False), (reformatted, False)):
        module.write_text(text, encoding="utf-8")
        assert made() == again
