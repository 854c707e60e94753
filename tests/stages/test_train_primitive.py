"""train_primitive: the parts of the anchor, equal bytes after any pause, and one line for what is wrong."""

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from fer_pipeline.artifacts.history import read_history
from fer_pipeline.artifacts.split import read_split
from fer_pipeline.core.errors import ConfigError, DataError
from fer_pipeline.core.progress import with_listener
from fer_pipeline.core.settings import Resources, validate
from fer_pipeline.networks import pretrained
from fer_pipeline.networks.backbones import build
from fer_pipeline.networks.checkpoints import load_checkpoint, save_checkpoint
from fer_pipeline.networks.preprocessing import Preprocessing
from fer_pipeline.networks.settings import Card, NetworkSettings, read_card
from fer_pipeline.stages import train_primitive
from fer_pipeline.stages.train_primitive import Config
from fer_pipeline.strategies import linear
from fer_pipeline.training import seeds as training_module
from tests.project import project_settings

CLASSES = ("anger", "happiness", "neutral")
SIZE = 24
ALONE = Resources(device="cpu", workers=1)
FAST = {
    "network": {"width": 4},
    "training": {"epochs": 3, "batch": 16, "optimizer": {"learning_rate": 0.02}, "augment": {"translate": 0.04}},
}


@pytest.fixture
def faces(tmp_path: Path, band_faces) -> Path:
    return band_faces(tmp_path / "faces", unlabelled=10)


@pytest.fixture
def run(tmp_path: Path, faces: Path) -> Callable[..., tuple]:
    def call(
        name: str = "primitive", *, store: str = "store", seed: int = 10, classes=CLASSES, source=faces,
        resources: Resources = ALONE, **settings
    ):  # fmt: skip
        config = validate(Config, {**FAST, **settings}, where="train_primitive")
        summary = train_primitive.run(
            config,
            project_settings(classes=classes, seeds=(seed,), resources=resources),
            faces=source,
            out=tmp_path / name,
            store=tmp_path / store,
        )
        return summary, tmp_path / name

    return call


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_parts_hold_every_labelled_face_once_and_nobody_twice(run, faces: Path) -> None:
    summary, out = run()
    split = pq.read_table(out / "split.parquet").to_pylist()
    source = {row["face_id"]: row for row in pq.read_table(faces / "part-00000.parquet").to_pylist()}
    labelled = [name for name, row in source.items() if row["label"] is not None]
    assert [row["face_id"] for row in split] == labelled
    assert all(row["label"] == source[row["face_id"]]["label"] for row in split)
    people: dict[str, set[str]] = {}
    for row in split:
        people.setdefault(source[row["face_id"]]["subject"], set()).add(row["part"])
    assert all(len(parts) == 1 for parts in people.values())
    count = {part: sum(row["part"] == part for row in split) for part in ("fit", "validation", "heldout")}
    assert all(summary.counts[part] == number for part, number in count.items())
    assert 4 <= count["heldout"] <= 13
    assert 4 <= count["validation"] <= 13
    assert summary.counts["unlabelled"] == 9
    assert any("9 faces" in warning for warning in summary.warnings)


def test_only_the_fit_part_is_trained_on(run, faces: Path, monkeypatch) -> None:
    seen: dict[str, set[str]] = {}
    original = training_module.train

    def spy(job, sets, validation, execution):
        seen["fit"] = set(sets["labelled"].face_id)
        seen["validation"] = set(validation.face_id)
        return original(job, sets, validation, execution)

    monkeypatch.setattr(training_module, "train", spy)
    _, out = run()
    split = pq.read_table(out / "split.parquet").to_pylist()
    for part, names in seen.items():
        assert names == {row["face_id"] for row in split if row["part"] == part}


def test_the_checkpoint_predicts_and_its_card_tells_all(run, faces: Path) -> None:
    summary, out = run(training={**FAST["training"], "epochs": 10})
    classifier = load_checkpoint(out, classes=CLASSES)
    images = np.full((3, SIZE, SIZE, 3), 90, np.uint8)
    for label in range(3):
        images[label, label * 8 : label * 8 + 8] += 60
    assert classifier.predict(images).argmax(1).tolist() == [0, 1, 2]
    card = read_card(out)
    assert card.preprocessing.size == card.network.size == SIZE
    assert card.training["images"] == {"labelled": summary.counts["fit"]}
    best = read_history(out)[card.training["chosen_epoch"] - 1]
    assert summary.counts["validation_mean_class_accuracy"] == best["validation_mean_class_accuracy"]


def test_same_seed_same_bytes_and_the_store_saves_the_work(run) -> None:
    first, again = contents(run("a", store="one")[1]), contents(run("b", store="two")[1])
    assert first == again
    assert set(first) >= {"weights.safetensors", "card.json", "split.parquet", "history.csv", "dvclive/metrics.json"}
    summary, out = run("c", store="one")
    assert "from the store" in summary.line
    assert contents(out) == first
    assert contents(run("d", store="one", seed=11)[1])["weights.safetensors"] != first["weights.safetensors"]


@pytest.mark.parametrize(
    ("settings", "step"),
    [({}, 7), ({"refit": True}, 7), ({"refit": True}, 16), ({"refit": True}, 22)],
    ids=["alone", "in the calibration model", "between the two", "in the labeller"],
)
def test_a_pause_changes_no_byte_and_leaves_earlier_output(
    run, tmp_path: Path, monkeypatch, settings: dict, step: int
) -> None:
    whole = contents(run("whole", store="one", **settings)[1])
    (tmp_path / "paused").mkdir()
    (tmp_path / "paused" / "earlier").write_text("kept until the new one is whole")
    original, calls = training_module.train, []

    def pulled(job, sets, validation, execution):
        def advance(steps: int, **more: int) -> None:
            calls.extend(range(steps))
            if steps and len(calls) == step:
                raise KeyboardInterrupt

        return original(job, sets, validation, replace(execution, advance=advance))

    monkeypatch.setattr(training_module, "train", pulled)
    with pytest.raises(KeyboardInterrupt):
        run("paused", store="two", **settings)
    assert [path.name for path in (tmp_path / "paused").iterdir()] == ["earlier"]
    finished = list((tmp_path / "two").glob("shards/*/*/card.json"))
    assert len(finished) == (step > 15), "the calibration model has 15 steps"
    monkeypatch.setattr(training_module, "train", original)
    assert contents(run("paused", store="two", **settings)[1]) == whole
    assert not list((tmp_path / "two" / "states").rglob("*.pt"))


@pytest.mark.parametrize("estimate", [None, 3, 4000])
def test_the_progress_ends_at_its_total(run, monkeypatch, estimate: int | None) -> None:
    """What is estimated from the labels is corrected as soon as a training knows."""
    if estimate is not None:
        monkeypatch.setattr(training_module.SeedTraining, "estimate_steps", lambda training: estimate)
    totals: list[tuple[int, int | None]] = []
    with with_listener(lambda progress, items: totals.append((progress.done, progress.total))):
        run(refit=True)
    assert totals[-1] == (30, 30)
    assert all(done <= total for done, total in totals)
    first = 30 if estimate is None else 15 + estimate  # two models of 15 steps, of which the second is still estimated
    assert {total for _, total in totals} == {first, 30}


def test_another_class_order_an_empty_class_and_a_test_split_are_one_line(run, tmp_path: Path, band_faces) -> None:
    with pytest.raises(
        DataError, match=r"has the classes anger, happiness, neutral, expected neutral, [^\n]* in this order"
    ):
        run(classes=CLASSES[::-1])
    with pytest.raises(DataError, match="has no face of the class happiness; take it out of classes"):
        run(source=band_faces(tmp_path / "empty", kept=(0, 2)))
    with pytest.raises(DataError, match="holds the split 'test', and training reads train splits only"):
        run(source=band_faces(tmp_path / "test", split="test"))
    with pytest.raises(DataError, match="no shards in"):
        run(source=tmp_path / "absent")


@pytest.mark.parametrize("balance", ["none", "sampling"])
@pytest.mark.parametrize("order", ["rows", "blocks"])
def test_no_byte_depends_on_where_the_images_lie(run, tmp_path: Path, band_faces, order: str, balance: str) -> None:
    source = band_faces(tmp_path / "many", count=330, unlabelled=10)
    training = {**FAST["training"], "epochs": 2, "order": order, "buffer_rows": 100, "balance": balance}
    held, out = run("held", store="one", source=source, training=training)
    nowhere = Resources(device="cpu", workers=3, memory_gb=0)
    streamed, again = run("streamed", store="two", source=source, training=training, resources=nowhere)
    assert contents(again) == contents(out)
    assert not held.warnings[1:]  # but that of faces without labels
    advised = [line for line in streamed.warnings if "do not fit into memory" in line]
    assert [("set training.order: blocks" in line) for line in advised] == [True] * (order == "rows")
    assert "waited for images" in streamed.line


def test_two_processes_train_together_and_say_how_fast(run, capfd) -> None:
    plain = {
        "network": {"width": 4, "norm": "group"},
        "training": {**FAST["training"], "augment": {"flip": 0, "translate": 0}},
    }
    _, alone = run("alone", store="one", **plain)
    capfd.readouterr()
    together = Resources(device="cpu", workers=2, parallel="data")
    summary, both = run("both", store="two", resources=together, **plain)
    assert "waited for images" in summary.line
    assert "distributed" not in "".join(capfd.readouterr())
    weights = [load_checkpoint(out).model.state_dict() for out in (alone, both)]
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, rtol=1e-3, atol=1e-5)
    assert contents(both)["split.parquet"] == contents(alone)["split.parquet"]


def test_orders_differ_and_the_plain_one_is_the_default(run) -> None:
    plain, blocks = (run(order, training={**FAST["training"], "order": order})[1] for order in ("rows", "blocks"))
    assert contents(plain)["weights.safetensors"] != contents(blocks)["weights.safetensors"]
    assert contents(run("default", store="three")[1]) == contents(plain)
    assert [read_card(out).training["settings"]["order"] for out in (plain, blocks)] == ["rows", "blocks"]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"split": {"validation": 0.0}}, "select: best needs split.validation"),
        ({"split": {"validation": 0.5, "heldout": 0.5}}, "leave nothing to train on"),
        (
            {"spilt": {}},
            "unknown key 'spilt'; known keys are label_noise, network, options, refit, seeds_upstream, split, "
            "strategy, training, weights",
        ),
        ({"network": {"name": "small", "widht": 3}}, "unknown key 'network.widht'"),
        ({"refit": True, "split": {"heldout": 0}}, "set split.heldout above 0, or take refit out"),
    ],
)
def test_impossible_settings_are_one_line(values, words: str) -> None:
    with pytest.raises(ConfigError, match=rf"^train_primitive: [^\n]*{words}[^\n]*$"):
        validate(Config, values, where="train_primitive")


def test_without_validation_the_last_epoch_is_kept(run) -> None:
    training = {**FAST["training"], "select": "last"}
    summary, out = run(training=training, split={"validation": 0.0, "heldout": 0.0})
    assert summary.counts["chosen_epoch"] == 3
    assert "validation_accuracy" not in read_history(out)[0]


def test_parts_and_losses_are_those_of_the_last_release(run) -> None:
    """A change of the training that was not meant shows here; the weights' last bits are the machine's."""
    _, out = run()
    parts = [row["part"][0] for row in pq.read_table(out / "split.parquet").to_pylist()]
    losses = [row["train_loss"] for row in read_history(out)]
    assert hashlib.sha256("".join(parts).encode()).hexdigest()[:16] == "9c565ec68ecd834b"
    assert losses == pytest.approx([0.97, 0.47, 0.30], abs=0.01)


def test_an_edited_strategy_trains_again_and_a_reworded_one_does_not(run, package_copy) -> None:
    def trained() -> bool:
        return "(from the store)" not in run("same")[0].line

    assert trained()
    strategy = package_copy() / "strategies" / "supervised.py"
    assert not trained(), "the same code elsewhere"
    source = strategy.read_text(encoding="utf-8")
    edited = source.replace("run.update(total)", "run.update(2 * total)")
    reworded = edited.replace('"""One forward pass over faces', '"""A single forward pass over faces')
    reformatted = reworded.replace("run.update(2 * total)", "run.update(\n            2 * total,\n        )")
    assert len({source, edited, reworded, reformatted}) == 4
    for text, again in ((edited, True), (reworded, False), (reformatted, False), (source, False)):
        strategy.write_text(text, encoding="utf-8")
        assert trained() == again


def linear_settings(tmp_path: Path, **network) -> dict:
    """A head alone, on the features of a network that lies there."""
    folder = tmp_path / "start"
    if not folder.exists():
        settings = NetworkSettings(width=4, size=SIZE)
        card = Card(network=settings, classes=CLASSES, preprocessing=Preprocessing(size=SIZE))
        save_checkpoint(folder, build(settings, 3, seed=5), card)
    own = {"width": 4, "features": {"stage2": 3, "stage3": 2}, **network}
    weights = {"path": str(folder / "weights.safetensors")}
    return {"strategy": "linear", "network": own, "training": {}, "weights": weights, "options": {"folds": 3}}


def test_a_linear_head_is_learned_on_loaded_features(run, tmp_path: Path, monkeypatch) -> None:
    settings = linear_settings(tmp_path)
    summary, out = run("linear", **settings)
    classifier, card = load_checkpoint(out, classes=CLASSES), read_card(out)
    start = load_checkpoint(tmp_path / "start").model.backbone.state_dict()
    assert all(torch.equal(tensor, start[name]) for name, tensor in classifier.model.backbone.state_dict().items())
    images = np.full((3, SIZE, SIZE, 3), 90, np.uint8)
    for label in range(3):
        images[label, label * 8 : label * 8 + 8] += 60
    assert classifier.predict(images).argmax(1).tolist() == [0, 1, 2]
    assert classifier.features(images).shape == (3, 8 * 9 + 16 * 4)
    assert card.training["strategy"] == "linear"
    assert (card.training["steps"], card.training["settings"]) == (1, {"threads": 1})
    assert f"; strength {card.training['found']['strength']:g}; " in summary.line
    assert "from the store" in run("again", **settings)[0].line
    sets = [{"stage2": 2}, None, {"stage4": 2}]
    chosen, mined = run("mining", **{**settings, "options": {"folds": 3, "mining_features": sets}})
    table = {str(grids): precision for grids, precision in read_card(mined).training["found"]["mining_precision"]}
    best = read_card(mined).mining_features
    assert table[str(best)] == max(table.values()) == chosen.counts["mining_precision"]
    assert f"mines by {' + '.join(f'{s} {g} x {g}' for s, g in best.items()) if best else 'the head'}" in chosen.line
    assert "stage2 2 x 2: " in chosen.line
    assert "from the store" not in run("other", **{**settings, "options": {"folds": 4}})[0].line
    first = contents(out)
    original = linear.solve

    def pulled(*arguments, **options):
        if len(arguments[0]) > 60:  # the last of them, on all faces
            raise KeyboardInterrupt
        return original(*arguments, **options)

    monkeypatch.setattr(linear, "solve", pulled)
    with pytest.raises(KeyboardInterrupt):
        run("paused", store="second", **settings)
    monkeypatch.setattr(linear, "solve", original)
    assert contents(run("paused", store="second", **settings)[1]) == first


@pytest.mark.parametrize("strategy", ["supervised", "linear"])
def test_refitting_is_today_s_training_and_one_that_holds_nothing_out(run, tmp_path: Path, strategy: str) -> None:
    settings = linear_settings(tmp_path) if strategy == "linear" else {}
    calibration = contents(run("calibration", store="one", **settings)[1])
    labeller = contents(run("labeller", store="one", split={"heldout": 0.0}, **settings)[1])
    assert labeller["weights.safetensors"] != calibration["weights.safetensors"]
    workers = Resources(device="cpu", workers=2 if strategy == "supervised" else 1)  # side by side, and in turn
    summary, out = run("both", store="two", refit=True, resources=workers, **settings)
    assert contents(out) == labeller | {f"calibration/{name}": content for name, content in calibration.items()}
    assert "(from the store)" in run("again", store="one", refit=True, **settings)[0].line
    held, whole = read_split(out / "calibration"), read_split(out)
    assert whole.faces_outside("fit") == frozenset(held.face_id.filter(pa.array(held.part == "validation")).to_pylist())
    assert summary.counts["heldout"] == (held.part == "heldout").sum() > 0
    assert (whole.part == "fit").sum() == summary.counts["fit"] + summary.counts["heldout"]
    assert f"held out from a calibration model of {summary.counts['fit']}; " in summary.line
    assert summary.line.startswith(f"{(whole.part == 'fit').sum()} faces trained on, ")


def test_a_calibration_model_that_mines_by_other_features_is_refused(run, tmp_path: Path, monkeypatch) -> None:
    def narrow_where_few(x, labels, groups, *, folds: int) -> float:
        return float((x.shape[1] == 32) == (len(x) < 70))

    monkeypatch.setattr(linear, "centroid_precision", narrow_where_few)
    settings = linear_settings(tmp_path)
    settings["options"]["mining_features"] = [None, {"stage2": 2}]
    line = "mines by the head's features and its calibration model by stage2 2 x 2, whose values cannot be compared"
    with pytest.raises(DataError, match=f"^[^\\n]*{line}[^\\n]*$"):
        run(refit=True, **settings)


def test_a_pretrained_start_is_in_the_card_with_its_licence_and_template(run, monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        pretrained.locate("dlib_face")
    except DataError as error:
        pytest.skip(str(error))
    settings = {
        "network": {"name": "dlib_resnet"},
        "weights": {"name": "dlib_face"},
        "training": {"epochs": None, "steps": 1, "batch": 4, "select": "last"},
        "split": {"validation": 0.0, "heldout": 0.0},
    }
    summary, folder = run(**settings)
    card, one = read_card(folder), pretrained.find("dlib_face")
    assert card.network.size == card.preprocessing.size == 150
    assert card.preprocessing == one.preprocessing
    expected = {"name": "dlib_face", "sha256": one.sha256, "licence": "CC0-1.0", "data_licence": "not stated"}
    assert expected.items() <= card.training["pretrained"].items()
    assert any("were trained on FaceScrub" in line for line in summary.warnings)
    assert load_checkpoint(folder).predict(np.zeros((2, 24, 24, 3), np.uint8)).shape == (2, 3)
    # Other bytes are another model; and what is missing is told before anything is read.
    monkeypatch.setattr(pretrained, "find", lambda name: replace(one, files=(replace(one.files[0], sha256="0" * 64),)))
    with pytest.raises(DataError, match=r"is not the published .*; install it again"):
        run(**settings)


def test_missing_weights_are_told_before_any_training_starts(run, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(training_module, "run_shares", lambda *args, **options: pytest.fail("a training has started"))
    with pytest.raises(DataError, match=r"absent\.pth do not exist; put the file there or change the setting"):
        run(weights={"path": str(tmp_path / "absent.pth")})
