"""train_final: every recipe from one start and with one number of steps; seeds apart; equal bytes however it ran."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fer_pipeline.artifacts.distilled import Distilled, write_distilled
from fer_pipeline.core.errors import ConfigError, DataError
from fer_pipeline.core.settings import RecipeSettings, Resources, validate
from fer_pipeline.core.summary import Summary
from fer_pipeline.networks.cards import read_card
from fer_pipeline.networks.checkpoints import load_checkpoint
from fer_pipeline.networks.preprocessing import Preprocessing
from fer_pipeline.stages import train_final
from fer_pipeline.stages.train_final import Config
from fer_pipeline.training import job
from fer_pipeline.training.extras import class_counts, read_extra
from fer_pipeline.training.records import read_history
from fer_pipeline.training.room import GIB, Room
from tests.project import project_settings

CLASSES = ("anger", "happiness", "neutral")
SIZE = 24
FAST = {
    "network": {"width": 4},
    "training": {"epochs": 2, "batch": 16, "optimizer": {"learning_rate": 0.02}},
}
ROOM = Room(torch.device("cpu"), GIB)
USES = ("labelled", "mined", "random", "distilled", "random_real")


def write_das(folder: Path, *, preprocessing: Preprocessing | None = None) -> Path:
    inputs = np.random.default_rng(3).normal(size=(2, 3, 3, SIZE, SIZE)).astype(np.float32)
    about = (preprocessing or Preprocessing(size=SIZE)).model_dump(mode="json")
    labels = np.tile(np.arange(3), (2, 1))
    folder.mkdir(parents=True)
    write_distilled(folder, Distilled(inputs, labels, np.full(2, 0.1, np.float32), CLASSES, about), {})
    return folder


@pytest.fixture
def data(tmp_path: Path, band_faces) -> dict[str, Path]:
    labelled = band_faces(tmp_path / "faces" / "train")
    for pool, count in (("street", 40), ("film", 20)):
        band_faces(tmp_path / "auxiliary" / pool / "anger", count=count, seed=count, pseudo=True)
        band_faces(tmp_path / "control" / pool / "anger", count=count, seed=count + 1, pseudo=True)
    return {
        "labelled": labelled,
        "mined": tmp_path / "auxiliary",
        "random": tmp_path / "control",
        "distilled": write_das(tmp_path / "distilled" / "auxiliary"),
        "random_real": tmp_path / "auxiliary",
    }


@pytest.fixture
def run(tmp_path: Path, data) -> Callable[..., tuple[Summary, Path]]:
    def call(
        use: Any = "labelled", *, name: str = "", seeds=(10,), store: str = "store", workers: int = 1, overrides=None,
        extra: Path | None = None, resources: dict[str, Any] | None = None, **settings,
    ) -> tuple[Summary, Path]:  # fmt: skip
        out = tmp_path / "final" / (name or use)
        summary = train_final.run(
            validate(Config, {**FAST, **settings}, where="train_final"),
            project_settings(
                classes=CLASSES,
                seeds=seeds,
                recipes={name or use: RecipeSettings(use=use, data=data[use], overrides=overrides or {})},
                resources=Resources(device="cpu", workers=workers, **(resources or {})),
            ),
            recipe=name or use,
            labelled=data["labelled"],
            extra=extra or data[use],
            out=out,
            timings=tmp_path / "timings" / f"{name or use}.json",
            store=tmp_path / store,
        )
        return summary, out

    return call


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_every_recipe_has_the_same_start_parts_and_steps_and_its_own_data(run, monkeypatch) -> None:
    starts: dict[str, list[bytes]] = {}
    seen: dict[str, Any] = {}
    original = job.fit

    def spy(strategy, streams, validation, **rest):
        state = strategy.predictor().state_dict()
        starts.setdefault(use, []).append(b"".join(tensor.numpy().tobytes() for tensor in state.values()))
        seen[use] = ({name: len(stream.set) for name, stream in streams.items()}, streams, validation)
        return original(strategy, streams, validation, **rest)

    monkeypatch.setattr(job, "fit", spy)
    cards = {}
    for use in USES:
        _, out = run(use)
        cards[use] = read_card(out / "10")
    assert len({values[0] for values in starts.values()}) == 1
    assert len({card.training["steps"] for card in cards.values()}) == 1
    assert len({tuple(validation.face_id) for _, _, validation in seen.values()}) == 1
    assert len({tuple(streams["labelled"].set.face_id) for _, streams, _ in seen.values()}) == 1
    labelled = seen["labelled"][0]["labelled"]
    assert {
        use: {name: count for name, count in found[0].items() if name != "labelled"} for use, found in seen.items()
    } == {
        "labelled": {},
        "mined": {"auxiliary": 60},
        "random": {"auxiliary": 60},
        "distilled": {"distilled": 6},
        "random_real": {"distilled": 3},
    }
    assert cards["mined"].training["epochs_of_own_set"] < cards["labelled"].training["epochs_of_own_set"] == 2
    fit, validation = seen["labelled"][1]["labelled"].set, seen["labelled"][2]
    assert labelled + len(validation) == 90
    assert not set(fit.subjects) & set(validation.subjects)
    assert not torch.equal(*(load_checkpoint(run(use)[1] / "10").model.head.weight for use in ("labelled", "mined")))


def test_seeds_in_two_processes_give_the_bytes_of_one_after_the_other(run) -> None:
    _, alone = run("mined", name="alone", seeds=(10, 11, 12), store="one")
    _, together = run("mined", name="together", seeds=(10, 11, 12), store="two", workers=2)
    found = contents(alone)
    assert {Path(name).parts[0] for name in found} == {"10", "11", "12"}
    assert contents(together) == found
    assert found["10/weights.safetensors"] != found["11/weights.safetensors"]


@pytest.mark.parametrize("use", ["mined", "random_real"])
def test_no_byte_depends_on_where_the_images_lie(run, use: str) -> None:
    seeds = (10, 11)
    _, held = run(use, name="held", seeds=seeds, store="one")
    summary, streamed = run(use, name="streamed", seeds=seeds, store="two", resources={"memory_gb": 0})
    assert contents(streamed) == contents(held)
    assert any("images of labelled do not fit into memory" in line for line in summary.warnings)
    assert not any("do not fit" in line for line in run(use, name="streamed", seeds=seeds, store="two")[0].warnings)


def test_two_processes_train_one_seed_as_one_does(run) -> None:
    plain = {
        "network": {"width": 4, "norm": "group"},
        "training": {**FAST["training"], "augment": {"flip": 0, "translate": 0}},
    }
    _, alone = run("mined", name="alone", store="one", **plain)
    summary, both = run("mined", name="both", store="two", workers=2, resources={"parallel": "data"}, **plain)
    assert summary.counts["trained"] == 1
    assert contents(both).keys() == contents(alone).keys()
    weights = [load_checkpoint(out / "10").model.state_dict() for out in (alone, both)]
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, rtol=1e-3, atol=1e-5)


def test_an_added_seed_trains_itself_alone(run, tmp_path: Path) -> None:
    first, out = run(seeds=(10,))
    before = contents(out)
    second, _ = run(seeds=(10, 11))
    assert (first.counts["trained"], second.counts["trained"]) == (1, 1)
    assert {name: data for name, data in contents(out).items() if name.startswith("10/")} == before
    timings = json.loads((tmp_path / "timings" / "labelled.json").read_text())
    assert set(timings["seeds"]) == {"10", "11"}
    for timing in timings["seeds"].values():
        assert timing["seconds"] > 0
        assert timing["seconds_per_epoch"] == pytest.approx(
            timing["seconds"] / timing["steps"] * timing["steps_per_epoch"]
        )


def test_a_killed_recipe_goes_on_to_the_same_bytes(run, monkeypatch) -> None:
    whole = contents(run("distilled", name="whole", seeds=(10, 11), store="one")[1])
    original, calls = train_final.train, []

    def pulled(*arguments, **rest):
        def advance(steps: int) -> None:
            calls.append(steps)
            if len(calls) == 20:
                raise KeyboardInterrupt

        return original(*arguments, **{**rest, "advance": advance})

    monkeypatch.setattr(train_final, "train", pulled)
    with pytest.raises(KeyboardInterrupt):
        run("distilled", name="paused", seeds=(10, 11), store="two")
    monkeypatch.setattr(train_final, "train", original)
    summary, out = run("distilled", name="paused", seeds=(10, 11), store="two")
    assert summary.counts["trained"] == 1
    assert contents(out) == whole


def test_overrides_reach_the_training_and_unequal_ones_are_told(run) -> None:
    summary, out = run("mined", overrides={"options": {"mix": "beside"}, "training": {"optimizer": {"momentum": 0.5}}})
    training = read_card(out / "10").training
    assert training["batch_sizes"] == {"labelled": 16, "auxiliary": 16}
    assert training["settings"]["optimizer"]["momentum"] == 0.5
    assert training["settings"]["optimizer"]["learning_rate"] == 0.02
    assert not summary.warnings
    summary, out = run("mined", overrides={"training": {"epochs": 1, "optimizer": {"name": "adam"}}})
    assert read_card(out / "10").training["settings"]["optimizer"]["learning_rate"] == 0.001
    assert any("training.epochs: no fair comparison" in warning for warning in summary.warnings)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"trainng": {}}, "unknown key 'trainng'"),
        ({"training": {"epochs": "many"}}, "training.epochs"),
        ({"options": {"mixx": "pooled"}}, "unknown key 'mixx'; known keys are anchor_share"),
        ({"options": {"auxiliary_ratio": 2}}, "auxiliary_ratio is of mix: beside"),
        ({"validation": 0.0}, "select: best needs validation above 0"),
    ],
)
def test_wrong_overrides_are_one_line_before_any_work(run, tmp_path: Path, overrides, words: str) -> None:
    with pytest.raises(ConfigError, match=rf"^[^\n]*mined[^\n]*{words}[^\n]*$"):
        run("mined", overrides=overrides)
    assert not (tmp_path / "store").exists()
    assert not (tmp_path / "final").exists()


def test_a_class_that_was_not_mined_is_a_warning_or_an_error(run, tmp_path: Path, band_faces) -> None:
    poor = tmp_path / "poor"
    band_faces(poor / "street" / "anger", count=20, kept=(0, 2), pseudo=True)
    for use in ("mined", "random_real"):
        summary, _ = run(use, extra=poor)
        assert any("has no image of the class happiness" in warning for warning in summary.warnings)
        with pytest.raises(DataError, match="no image of the class happiness; mine with a smaller margin"):
            run(use, extra=poor, empty_class="error")


def test_random_real_draws_anew_for_each_seed_and_per_class(data) -> None:
    def drawn(seed: int, per_class: int = 2) -> list[str]:
        extra = read_extra(
            "random_real", data["mined"], classes=CLASSES, real_per_class=per_class, seed=seed, room=ROOM
        )
        images = extra.sets["distilled"]
        assert images.counts(3).tolist() == [per_class] * 3
        return images.face_id.tolist()

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)
    assert len(set(drawn(1, 5))) == 15


def test_counts_are_those_of_the_decoded_sets(data) -> None:
    for use in ("mined", "random", "distilled"):
        extra = read_extra(use, data[use], classes=CLASSES, real_per_class=1, seed=0, room=ROOM)
        (images,) = extra.sets.values()
        assert class_counts(use, data[use], classes=CLASSES).tolist() == images.counts(3).tolist()
    assert class_counts("labelled", data["labelled"], classes=CLASSES) is None


def test_distilled_images_of_another_preprocessing_are_converted(tmp_path: Path) -> None:
    theirs = Preprocessing(size=SIZE, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    ours = Preprocessing(size=SIZE)
    folder = write_das(tmp_path / "das", preprocessing=theirs)
    extra = read_extra("distilled", folder, classes=CLASSES, real_per_class=1, seed=0, room=ROOM)
    before, after = extra.sets["distilled"].all_pixels(), extra.fitted(ours)["distilled"].all_pixels()
    by_hand = (
        (before * torch.tensor(theirs.std).view(1, 3, 1, 1) + torch.tensor(theirs.mean).view(1, 3, 1, 1)) - 0.5
    ) / 0.5
    torch.testing.assert_close(after, by_hand, atol=1e-5, rtol=1e-5)
    assert torch.equal(extra.fitted(theirs)["distilled"].all_pixels(), before)


def test_what_a_version_stands_for(run) -> None:
    """Raise VERSION with any change of these, so that the store forgets; the last digits are the machine's."""
    losses = {use: read_history(run(use)[1] / "10")[-1]["train_loss"] for use in USES}
    assert train_final.VERSION == 1
    expected = {"labelled": 0.698, "mined": 0.835, "random": 0.790, "distilled": 0.802, "random_real": 0.805}
    assert losses == pytest.approx(expected, abs=0.005)
