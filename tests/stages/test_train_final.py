"""train_final: every recipe from one start and with one number of steps; seeds apart; equal bytes however it ran."""

import importlib
import json
import re
import resource
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch

import fer_pipeline.training.fit as fit_module
from fer_pipeline.artifacts.distilled import DistilledSet, write_distilled
from fer_pipeline.artifacts.faces import read_faces, write_shard
from fer_pipeline.artifacts.history import read_history
from fer_pipeline.artifacts.labels import read_labels
from fer_pipeline.artifacts.metrics import read_predictions
from fer_pipeline.core.errors import ConfigError, DataError
from fer_pipeline.core.settings import RecipeSettings, Resources, Summary, validate
from fer_pipeline.distillation.settings import DistillSettings
from fer_pipeline.distillation.source import Source
from fer_pipeline.distillation.start import start_synthetic
from fer_pipeline.health.recorded_settings import find_contradictions
from fer_pipeline.networks.checkpoints import load_checkpoint
from fer_pipeline.networks.preprocessing import Preprocessing
from fer_pipeline.networks.settings import read_card
from fer_pipeline.stages import evaluate, report, train_final, train_primitive
from fer_pipeline.stages.train_final import Config
from fer_pipeline.strategies import supervised
from fer_pipeline.training import seeds as training_module
from fer_pipeline.training.images import GIB, MemoryBudget
from fer_pipeline.training.label_noise import LabelNoise, noisy_labels
from fer_pipeline.training.sources import DistilledImages, Faces, NoiseImages, RandomFaces
from tests.project import project_settings, recipe_settings
from tests.toy_world import write_teacher

CLASSES = ("anger", "happiness", "neutral")
SIZE = 24
FAST = {
    "network": {"width": 4},
    "training": {"epochs": 2, "batch": 16, "optimizer": {"learning_rate": 0.02}},
}
BUDGET = MemoryBudget(torch.device("cpu"), GIB)
# name of a recipe -> the source that it has beside the labelled set, and its key in `data`
RECIPES = {
    "baseline": {},
    "mined": {"mined": "mined"},
    "random": {"mined": "random"},
    "distilled": {"distilled": "distilled"},
    "random_real": {"random_real": "mined"},
    "noise": {"noise": "distilled"},
    "mean_teacher": {"unlabelled": "pool"},
    "pseudo_label": {"unlabelled": "pool"},
}


def write_das(folder: Path, *, preprocessing: Preprocessing | None = None) -> Path:
    inputs = np.random.default_rng(3).normal(size=(2, 3, 3, SIZE, SIZE)).astype(np.float32)
    about = (preprocessing or Preprocessing(size=SIZE)).model_dump(mode="json")
    labels = np.tile(np.arange(3), (2, 1))
    folder.mkdir(parents=True)
    write_distilled(folder, DistilledSet(inputs, labels, np.full(2, 0.1, np.float32), CLASSES, about), {})
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
        "pool": band_faces(tmp_path / "pool", seed=7),
    }


@pytest.fixture
def run(tmp_path: Path, data) -> Callable[..., tuple[Summary, Path]]:
    def call(
        recipe: str = "baseline", *, name: str = "", strategy: str | None = None, seeds=(10,), store: str = "store",
        workers: int = 1, overrides=None, sources: dict[str, Path] | None = None,
        resources: dict[str, Any] | None = None, **settings,
    ) -> tuple[Summary, Path]:  # fmt: skip
        name = name or recipe
        out = tmp_path / "final" / name
        own = {"labelled": data["labelled"]} | {key: data[value] for key, value in RECIPES.get(recipe, {}).items()}
        named = sources or own
        chosen = strategy or (recipe if recipe in ("mean_teacher", "pseudo_label") else "supervised")
        summary = train_final.run(
            validate(Config, {**FAST, **settings}, where="train_final"),
            project_settings(
                classes=CLASSES,
                seeds=seeds,
                recipes={name: recipe_settings(named, strategy=chosen, overrides=overrides or {})},
                resources=Resources(device="cpu", workers=workers, **(resources or {})),
            ),
            recipe=name,
            sources=named,
            out=out,
            timings=tmp_path / "timings" / f"{name}.json",
            labels=tmp_path / "labels" / f"{name}.parquet",
            store=tmp_path / store,
        )
        return summary, out

    return call


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_every_recipe_has_the_same_start_parts_and_steps_and_its_own_data(run, monkeypatch) -> None:
    starts: dict[str, list[bytes]] = {}
    seen: dict[str, Any] = {}
    original = fit_module.fit

    def spy(job, strategy, streams, validation, *rest):
        state = strategy.predictor().state_dict()
        starts.setdefault(recipe, []).append(b"".join(tensor.numpy().tobytes() for tensor in state.values()))
        seen[recipe] = ({name: len(stream.set) for name, stream in streams.items()}, streams, validation)
        return original(job, strategy, streams, validation, *rest)

    monkeypatch.setattr(fit_module, "fit", spy)
    cards = {}
    for recipe in RECIPES:
        _, out = run(recipe)
        cards[recipe] = read_card(out / "10")
    assert len({values[0] for values in starts.values()}) == 1
    assert len({card.training["steps"] for card in cards.values()}) == 1
    assert len({tuple(validation.face_id) for _, _, validation in seen.values()}) == 1
    assert len({tuple(streams["labelled"].set.face_id) for _, streams, _ in seen.values()}) == 1
    labelled = seen["baseline"][0]["labelled"]
    assert {
        recipe: {name: count for name, count in one[0].items() if name != "labelled"} for recipe, one in seen.items()
    } == {
        "baseline": {},
        "mined": {"mined": 60},
        "random": {"mined": 60},
        "distilled": {"distilled": 6},
        "random_real": {"random_real": 3},
        "noise": {"noise": 6},
        "mean_teacher": {"unlabelled": 90},
        "pseudo_label": {"unlabelled": 90},
    }
    assert cards["mined"].training["epochs_of_own_set"] < cards["baseline"].training["epochs_of_own_set"] == 2
    fit, validation = seen["baseline"][1]["labelled"].set, seen["baseline"][2]
    assert labelled + len(validation) == 90
    assert not set(fit.subjects) & set(validation.subjects)
    assert not torch.equal(
        *(load_checkpoint(run(recipe)[1] / "10").model.head.weight for recipe in ("baseline", "mined"))
    )


def test_the_labeller_and_the_final_models_share_their_validation_faces_and_no_weight(
    run, data, tmp_path: Path, monkeypatch
) -> None:
    """No validation face of a final model taught the labeller; no weight that is drawn is drawn twice."""
    starts, sets = [], []
    original = fit_module.fit

    def spy(job, strategy, streams, validation, *rest):
        starts.append({name: tensor.clone() for name, tensor in strategy.predictor().state_dict().items()})
        sets.append((set(streams["labelled"].set.face_id), set(validation.face_id)))
        return original(job, strategy, streams, validation, *rest)

    monkeypatch.setattr(fit_module, "fit", spy)
    config = validate(train_primitive.Config, FAST, where="train_primitive")
    seeds = (10, 11, 12)
    project = project_settings(classes=CLASSES, seeds=seeds, resources=Resources(device="cpu", workers=1))
    out, store = tmp_path / "primitive", tmp_path / "store"
    train_primitive.run(config, project, faces=data["labelled"], out=out, store=store)
    run("mined", seeds=seeds)
    (learned, chosen_by), *finals = sets
    heldout = {row["face_id"] for row in pq.read_table(out / "split.parquet").to_pylist() if row["part"] == "heldout"}
    assert heldout
    assert chosen_by
    for fit, validation in finals:
        assert validation == chosen_by
        assert fit == learned | heldout
    labeller, *others = starts
    drawn = [name for name, tensor in labeller.items() if tensor.is_floating_point() and tensor.unique().numel() > 1]
    assert len(drawn) >= 5
    for other in others:
        assert not [name for name in drawn if torch.equal(labeller[name], other[name])]


def test_seeds_in_two_processes_give_the_bytes_of_one_after_the_other(run) -> None:
    _, alone = run("mined", name="alone", seeds=(10, 11, 12), store="one")
    _, together = run("mined", name="together", seeds=(10, 11, 12), store="two", workers=2)
    found = contents(alone)
    assert {Path(name).parts[0] for name in found} == {"10", "11", "12"}
    assert contents(together) == found
    assert found["10/weights.safetensors"] != found["11/weights.safetensors"]


@pytest.mark.parametrize("recipe", ["mined", "random_real", "mean_teacher"])
def test_no_byte_depends_on_where_the_images_lie(run, recipe: str) -> None:
    seeds = (10, 11)
    _, held = run(recipe, name="held", seeds=seeds, store="one")
    summary, streamed = run(recipe, name="streamed", seeds=seeds, store="two", resources={"memory_gb": 0})
    assert contents(streamed) == contents(held)
    assert any("images of labelled do not fit into memory" in line for line in summary.warnings)
    assert not any("do not fit" in line for line in run(recipe, name="streamed", seeds=seeds, store="two")[0].warnings)


@pytest.mark.parametrize(
    "length", [{}, {"epochs": None, "until": {"at_most": 6, "patience": 1, "smallest_gain": 0.3, "decay": 0.5}}]
)
def test_two_processes_train_one_seed_as_one_does(run, length: dict[str, Any]) -> None:
    plain = {
        "network": {"width": 4, "norm": "group"},
        "training": {**FAST["training"], "augment": {"flip": 0, "translate": 0}, **length},
    }
    _, alone = run("mined", name="alone", store="one", **plain)
    summary, both = run("mined", name="both", store="two", workers=2, resources={"parallel": "data"}, **plain)
    assert summary.counts["trained"] == 1
    assert contents(both).keys() == contents(alone).keys()
    cards = [read_card(out / "10").training for out in (alone, both)]
    assert cards[0]["steps"] == cards[1]["steps"]
    assert cards[0]["stopped_rising"] is cards[1]["stopped_rising"] is (True if length else None)
    weights = [load_checkpoint(out / "10").model.state_dict() for out in (alone, both)]
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, rtol=1e-3, atol=1e-5)


def test_an_added_seed_trains_itself_alone(run, tmp_path: Path) -> None:
    first, out = run(seeds=(10,))
    before = contents(out)
    second, _ = run(seeds=(10, 11))
    assert (first.counts["trained"], second.counts["trained"]) == (1, 1)
    assert {name: data for name, data in contents(out).items() if name.startswith("10/")} == before
    timings = json.loads((tmp_path / "timings" / "baseline.json").read_text())
    assert set(timings["seeds"]) == {"10", "11"}
    for timing in timings["seeds"].values():
        assert timing["seconds"] > 0
        assert timing["seconds_per_epoch"] == pytest.approx(
            timing["seconds"] / timing["steps"] * timing["steps_per_epoch"]
        )
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB
        assert most / 10 < timing["peak_memory_bytes"] <= most


def test_what_the_first_model_calls_its_pool_is_written(run, data, tmp_path: Path) -> None:
    _, out = run("pseudo_label", seeds=(10, 11))
    path = tmp_path / "labels" / "pseudo_label.parquet"
    found, pool = read_labels(path), read_faces(data["pool"])
    assert found is not None
    rows = [row for row in found.rows if row["given"] is None]
    shares = load_checkpoint(out / "10", classes=CLASSES).predict(pool.images)
    assert [row["face_id"] for row in rows] == pool.face_id.tolist()
    assert [row["predicted"] for row in rows] == [CLASSES[k] for k in shares.argmax(1)]
    np.testing.assert_allclose([row["probability"] for row in rows], shares.max(1), rtol=1e-4)
    before = path.read_bytes()
    assert run("pseudo_label", seeds=(10, 11))[0].counts["trained"] == 0
    assert path.read_bytes() == before


def test_what_the_first_model_makes_of_the_labels_it_learned_is_written(run, data, tmp_path: Path) -> None:
    noise = {"kind": "symmetric", "rate": 0.3}
    _, out = run("baseline", seeds=(10, 11), overrides={"label_noise": noise})
    found, faces = read_labels(tmp_path / "labels" / "baseline.parquet"), read_faces(data["labelled"])
    assert found is not None
    true = dict(zip(faces.face_id.tolist(), faces.labels.tolist(), strict=True))
    changed = noisy_labels(faces.labels, faces.face_id, LabelNoise(**noise), CLASSES)
    given = dict(zip(faces.face_id.tolist(), changed.tolist(), strict=True))
    card = read_card(out / "10").training
    assert len(found.rows) == found.labelled == card["images"]["labelled"]
    assert found.pool == 0
    shares = dict(zip(true, load_checkpoint(out / "10", classes=CLASSES).predict(faces.images), strict=True))
    for row in found.rows:
        own = given[row["face_id"]]
        assert (row["given"], row["label"]) == (CLASSES[own], CLASSES[true[row["face_id"]]])
        assert row["given_probability"] == pytest.approx(float(shares[row["face_id"]][own]), rel=1e-4)
    assert any(row["given"] != row["label"] for row in found.rows)


def test_a_source_of_models_gives_each_seed_its_own_and_is_a_part_of_its_key(run, data, tmp_path: Path) -> None:
    _, estimator = run("estimator", strategy="confidence", seeds=(10, 11))
    named = {"labelled": data["labelled"], "unlabelled": data["pool"], "confidence": estimator}
    how = {"strategy": "progressive_teacher", "sources": named}
    first, out = run("guided", seeds=(10, 11), **how)
    assert (first.counts["trained"], run("guided", seeds=(10, 11), **how)[0].counts["trained"]) == (2, 0)
    hashes = [read_card(out / seed).data["confidence"] for seed in ("10", "11")]
    assert hashes[0] != hashes[1]
    noise = {"label_noise": {"kind": "symmetric", "rate": 0.3}}
    told = [run("noisy", seeds=(10,), **how, overrides=one)[0].warnings for one in ({}, noise)]
    said = "its labels are changed, those that its source confidence learned from were not"
    assert [said in warnings for warnings in told] == [False, True]
    _, other = run("other", strategy="confidence", seeds=(11,), overrides={"options": {"price": 0.3}})
    shutil.rmtree(estimator / "11")
    with pytest.raises(DataError, match=r"^no checkpoint in [^\n]+estimator/11; train it first"):
        run("guided", seeds=(10, 11), **how)
    shutil.copytree(other / "11", estimator / "11")
    assert run("guided", seeds=(10, 11), **how)[0].counts["trained"] == 1, "only the seed whose estimator is another"


def test_a_killed_recipe_goes_on_to_the_same_bytes(run, tmp_path: Path, monkeypatch) -> None:
    whole = contents(run("distilled", name="whole", seeds=(10, 11), store="one")[1])
    original, calls = training_module.train, []

    def pulled(job, sets, validation, execution):
        def advance(steps: int, **more: int) -> None:
            calls.extend(range(steps))
            if steps and len(calls) == 20:
                raise KeyboardInterrupt

        return original(job, sets, validation, replace(execution, advance=advance))

    monkeypatch.setattr(training_module, "train", pulled)
    with pytest.raises(KeyboardInterrupt):
        run("distilled", name="paused", seeds=(10, 11), store="two")
    assert len(list((tmp_path / "two" / "states").rglob("*.pt"))) == 2, "both seeds have an epoch"
    monkeypatch.setattr(training_module, "train", original)
    summary, out = run("distilled", name="paused", seeds=(10, 11), store="two")
    assert summary.counts["trained"] == 1
    assert contents(out) == whole


def test_overrides_reach_the_training_and_unequal_ones_are_told(run) -> None:
    summary, out = run("mined", overrides={"options": {"mix": "beside"}, "training": {"optimizer": {"momentum": 0.5}}})
    training = read_card(out / "10").training
    assert training["batch_sizes"] == {"labelled": 16, "mined": 16}
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
        ({"options": {"mined_ratio": 2}}, "mined_ratio is of mix: beside"),
        ({"validation": 0.0}, "select: best needs validation above 0"),
        ({"validation": 0.0, "training": {"epochs": None, "until": {"at_most": 9}}}, "until needs validation above 0"),
    ],
)
def test_wrong_overrides_are_one_line_before_any_work(run, tmp_path: Path, overrides, words: str) -> None:
    with pytest.raises(ConfigError, match=rf"^[^\n]*mined[^\n]*{words}[^\n]*$"):
        run("mined", overrides=overrides)
    assert not (tmp_path / "store").exists()
    assert not (tmp_path / "final").exists()


def test_a_class_that_was_not_mined_is_a_warning_or_an_error(run, data, tmp_path: Path, band_faces) -> None:
    poor = tmp_path / "poor"
    band_faces(poor / "street" / "anger", count=20, kept=(0, 2), pseudo=True)
    for source in ("mined", "random_real"):
        sources = {"labelled": data["labelled"], source: poor}
        summary, _ = run(sources=sources)
        assert any("has no image of the class happiness" in warning for warning in summary.warnings)
        with pytest.raises(DataError, match="no image of the class happiness; mine with a smaller margin"):
            run(sources=sources, empty_class="error")


@pytest.mark.parametrize("recipe", ["baseline", "mean_teacher"])
def test_judged_faces_join_the_labelled_ones(run, data, tmp_path: Path, band_faces, monkeypatch, recipe: str) -> None:
    """The weights are those of one folder with both; what is set aside to validate is the labelled set's alone."""
    reviewed = band_faces(tmp_path / "reviewed" / "street", count=20, seed=5)
    joined = shutil.copytree(data["labelled"], tmp_path / "joined")
    shutil.copyfile(reviewed / "part-00000.parquet", joined / "part-00001.parquet")
    schema = pq.read_schema(reviewed / "part-00000.parquet")
    write_shard(tmp_path / "nobody" / "street" / "part-00000.parquet", schema.empty_table())
    others = {name: data["pool"] for name in RECIPES[recipe]}
    sources = {
        "plain": {"labelled": data["labelled"]},
        "joined": {"labelled": joined},
        "reviewed": {"labelled": data["labelled"], "reviewed": tmp_path / "reviewed"},
        "nobody": {"labelled": data["labelled"], "reviewed": tmp_path / "nobody"},
    }
    options = {"validation": 0, "training": {**FAST["training"], "select": "last"}}
    weights, cards = {}, {}
    for name, own in sources.items():
        _, out = run(recipe, name=name, sources=own | others, **options)
        weights[name] = (out / "10" / "weights.safetensors").read_bytes()
        cards[name] = read_card(out / "10").training
    assert weights["reviewed"] == weights["joined"] != weights["plain"] == weights["nobody"]
    assert [cards[name].get("reviewed") for name in sources] == [None, None, 20, 0]
    parts = []
    original = fit_module.fit

    def spy(job, strategy, streams, validation, *rest):
        parts.append((streams["labelled"].set.face_id.tolist(), validation.face_id.tolist()))
        return original(job, strategy, streams, validation, *rest)

    monkeypatch.setattr(fit_module, "fit", spy)
    for name in ("plain", "reviewed"):
        run(recipe, name=name, sources=sources[name] | others, store="other")
    (fit, validation), (both, same) = parts
    assert both == [*fit, *pq.read_table(reviewed).column("face_id").to_pylist()]
    assert same == validation


def test_random_real_draws_anew_for_each_seed_and_per_class(data) -> None:
    def drawn(seed: int, per_class: int = 2) -> list[str]:
        images = RandomFaces(per_class).read(data["mined"], CLASSES, budget=BUDGET, seed=seed)
        assert images.counts(3).tolist() == [per_class] * 3
        return images.face_id.tolist()

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)
    assert len(set(drawn(1, 5))) == 15


def test_noise_is_what_the_distillation_of_the_seed_began_with(tmp_path: Path) -> None:
    """Two steps of an image a class; another seed has other noise, and labels are the distilled set's."""
    space = Preprocessing(size=SIZE)
    folder = write_das(tmp_path / "das")
    settings = DistillSettings(steps=2, per_class=1)
    source = Source("auxiliary", CLASSES, [], np.array([], np.int64), np.array([], object), {})
    begun = start_synthetic(settings, source, space, seed=4, device=torch.device("cpu"))
    noise = NoiseImages().read(folder, CLASSES, budget=BUDGET, seed=4)
    assert torch.equal(noise.all_pixels(), begun.images.flatten(0, 1))
    assert noise.labels.tolist() == DistilledImages().read(folder, CLASSES, budget=BUDGET, seed=4).labels.tolist()
    other = NoiseImages().read(folder, CLASSES, budget=BUDGET, seed=5)
    assert not torch.equal(noise.all_pixels(), other.all_pixels())
    assert NoiseImages().class_counts(folder, CLASSES).tolist() == noise.counts(3).tolist()


def test_counts_are_those_of_the_decoded_sets(data) -> None:
    for source, name in ((Faces("pseudo_label"), "mined"), (Faces(), "labelled"), (DistilledImages(), "distilled")):
        images = source.read(data[name], CLASSES, budget=BUDGET, seed=0)
        assert source.class_counts(data[name], CLASSES).tolist() == images.counts(3).tolist()
    pool = Faces(None).read(data["pool"], CLASSES, budget=BUDGET, seed=0)
    assert Faces(None).class_counts(data["pool"], CLASSES) is None
    assert pool.labels.tolist() == [-1] * 90, "an unlabelled stream must not see labels"


def test_distilled_images_of_another_preprocessing_are_converted(tmp_path: Path) -> None:
    theirs = Preprocessing(size=SIZE, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    ours = Preprocessing(size=SIZE)
    folder = write_das(tmp_path / "das", preprocessing=theirs)
    images = DistilledImages().read(folder, CLASSES, budget=BUDGET, seed=0)
    before, after = images.all_pixels(), images.as_inputs_of(ours).all_pixels()
    by_hand = (
        (before * torch.tensor(theirs.std).view(1, 3, 1, 1) + torch.tensor(theirs.mean).view(1, 3, 1, 1)) - 0.5
    ) / 0.5
    torch.testing.assert_close(after, by_hand, atol=1e-5, rtol=1e-5)
    assert torch.equal(images.as_inputs_of(theirs).all_pixels(), before)


def test_losses_are_those_of_the_last_release(run) -> None:
    """A change of the training that was not meant shows here; the last digits are the machine's."""
    losses = {name: read_history(run(name)[1] / "10")[-1]["train_loss"] for name in EXPECTED}
    assert losses == pytest.approx(EXPECTED, abs=0.005)


EXPECTED = {"baseline": 0.709, "distilled": 0.817, "random_real": 0.817}


@pytest.fixture
def strategies(tmp_path: Path, monkeypatch) -> Callable[[str, str], Path]:
    """Adds files to the folder of strategies, as a user would: `strategies("tenth", source)`."""
    import fer_pipeline.strategies as package

    folder = tmp_path / "strategies"
    folder.mkdir()
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(folder)])

    def write(name: str, source: str) -> Path:
        (folder / f"{name}.py").write_text(source, encoding="utf-8")
        loaded = sys.modules.get(f"fer_pipeline.strategies.{name}")
        if loaded is not None and str(folder) in str(loaded.__file__):
            del sys.modules[loaded.__name__]
        importlib.invalidate_caches()
        shutil.rmtree(folder / "__pycache__", ignore_errors=True)
        return folder / f"{name}.py"

    yield write
    for name in [name for name in sys.modules if name.startswith("fer_pipeline.strategies.")]:
        if str(folder) in str(sys.modules[name].__file__):
            del sys.modules[name]


def test_an_edited_strategy_trains_again_and_a_reworded_one_does_not(run, strategies) -> None:
    source = Path(supervised.__file__).read_text(encoding="utf-8")
    strategies("copied", source)
    first, out = run(strategy="copied")
    before = contents(out)
    assert first.counts["trained"] == 1

    changed = source.replace("run.update(total)", "run.update(2 * total)")
    assert changed != source
    strategies("copied", changed)
    second, _ = run(strategy="copied")
    assert second.counts["trained"] == 1, "another loss is another model"
    assert contents(out)["10/weights.safetensors"] != before["10/weights.safetensors"]

    reworded = (
        changed.replace('"""One forward pass over faces', '"""A single forward pass over faces') + "\n# a comment\n"
    )
    assert reworded != changed
    strategies("copied", reworded)
    assert run(strategy="copied")[0].counts["trained"] == 0, "a docstring makes no other model"

    reformatted = reworded.replace("run.update(2 * total)", "run.update(\n            2 * total,\n        )")
    assert reformatted != reworded
    strategies("copied", reformatted)
    assert run(strategy="copied")[0].counts["trained"] == 0, "formatting makes no other model"

    strategies("copied", source)
    assert run(strategy="copied")[0].counts["trained"] == 0, "the first one lies in the store still"
    assert contents(out) == before


def test_edited_training_code_trains_every_recipe_again(run, package_copy) -> None:
    run()
    copy = package_copy()
    assert run()[0].counts["trained"] == 0, "the same code elsewhere"
    files = {"networks/model.py": 1, "training/fit.py": 1, "core/seeds.py": 1, "core/progress.py": 0}
    for name, trained in files.items():
        with (copy / name).open("a", encoding="utf-8") as stream:
            stream.write("ADDED = 1\n")
        assert run()[0].counts["trained"] == trained, name


README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
(TENTH,) = [block for block in re.findall(r"```python\n(.*?)```", README, re.S) if "class Squared" in block]


def test_another_teacher_in_the_same_place_trains_again(run, data, tmp_path: Path) -> None:
    """A model is kept under what its teachers are: the bytes of networks of others, what own ones predict."""
    _, own = run("baseline")
    sources = {"labelled": data["labelled"], "unlabelled": data["pool"]}
    teacher = write_teacher(tmp_path / "teacher.onnx", 5 * np.eye(3))
    teacher["path"] = str(teacher["path"])

    def train(*teachers: dict[str, Any], **options) -> tuple[Summary, Path]:
        chosen = {"options": {"teachers": list(teachers), **options}}
        named = sources if teachers else {**sources, "checkpoints": own}
        return run(strategy="ensemble_teacher", name="taught", sources=named, overrides=chosen)

    def trained(*teachers: dict[str, Any], **options) -> int:
        return int(train(*teachers, **options)[0].counts["trained"])

    assert [trained(), trained()] == [1, 0]
    assert [trained(teacher), trained(teacher), trained({**teacher, "weight": 2})] == [1, 0, 1]
    run("baseline", training={**FAST["training"], "epochs": 1})
    assert [trained(), trained()] == [1, 0]
    other = write_teacher(tmp_path / "teacher.onnx", 4 * np.eye(3))
    assert trained({**teacher, "sha256": other["sha256"]}) == 1
    with pytest.raises(DataError, match=r"teacher\.onnx has sha256 [0-9a-f]{64}, expected "):
        trained(teacher, labels="hard")
    with pytest.raises(
        ConfigError, match=r"the source 'checkpoints' is missing; the strategy reads labelled \(required\)"
    ):
        run(strategy="ensemble_teacher", name="taught", sources=sources)


def test_a_card_contradicts_no_list_of_teachers(run, data, tmp_path: Path) -> None:
    """The lock has what a person wrote of a teacher, the card all that it amounts to."""
    teacher = write_teacher(tmp_path / "teacher.onnx", 5 * np.eye(3))
    teacher = {**teacher, "path": str(teacher["path"]), "classes": list(CLASSES)}
    sources = {"labelled": data["labelled"], "unlabelled": data["pool"]}
    chosen = {"options": {"teachers": [teacher]}}
    run(strategy="ensemble_teacher", name="taught", sources=sources, overrides=chosen)
    for weight, told in ((1, []), (2, ["train_final.options.teachers.0.weight"])):
        recipe = {
            "strategy": "ensemble_teacher",
            "overrides": {"options": {"teachers": [{**teacher, "weight": weight}]}},
        }
        params = {"train_final": {}, "recipes.taught": recipe}
        stages = {"train_final@taught": {"params": {"params.yaml": params}, "outs": [{"path": "final/taught"}]}}
        assert [one.key for one in find_contradictions(tmp_path, stages)] == told


def test_a_tenth_strategy_is_one_file_and_one_recipe(run, strategies, monkeypatch) -> None:
    strategies("squared", TENTH)
    whole, out = run(strategy="squared", name="tenth", store="one")
    assert whole.counts["trained"] == 1
    assert read_card(out / "10").training["strategy"] == "squared"
    before, original, calls = contents(out), training_module.train, []

    def pulled(job, sets, validation, execution):
        def advance(steps: int, **more: int) -> None:
            calls.extend(range(steps))
            if steps and len(calls) == 8:
                raise KeyboardInterrupt

        return original(job, sets, validation, replace(execution, advance=advance))

    monkeypatch.setattr(training_module, "train", pulled)
    with pytest.raises(KeyboardInterrupt):
        run(strategy="squared", name="tenth", store="two")
    monkeypatch.setattr(training_module, "train", original)
    assert contents(run(strategy="squared", name="tenth", store="two")[1]) == before


def test_a_tenth_strategy_shows_up_in_the_report(run, strategies, band_faces, tmp_path: Path) -> None:
    strategies("squared", TENTH)
    test = band_faces(tmp_path / "faces" / "test", split="test", seed=5)
    strategy_of = {"baseline": "supervised", "tenth": "squared"}
    recipes = {
        name: recipe_settings({"labelled": tmp_path / "faces" / "train"}, strategy=strategy)
        for name, strategy in strategy_of.items()
    }
    project = project_settings(classes=CLASSES, seeds=(10, 11), recipes=recipes, targets=("studio",))
    for name, strategy in strategy_of.items():
        _, models = run(strategy=strategy, name=name, seeds=(10, 11))
        evaluate.run(
            evaluate.Config(recipes=tuple(recipes)), project, recipe=name, target="studio", models=models, faces=test,
            out=tmp_path / "reports" / "metrics" / name / "studio",
        )  # fmt: skip
    summary = report.run(report.Config(), project, out=tmp_path / "reports", root=tmp_path)
    assert "tenth" in (tmp_path / "reports" / "index.html").read_text(encoding="utf-8")
    assert summary.counts["results"] == 2
    predictions = read_predictions(tmp_path / "reports/metrics/tenth/studio/predictions.parquet")
    by_hand = (predictions.probabilities.argmax(-1) == predictions.labels).mean()
    shown = pd.read_csv(tmp_path / "reports" / "tables" / "results.csv").set_index("recipe")
    assert shown.loc["tenth", "accuracy"] == pytest.approx(by_hand, abs=1e-6)


@pytest.mark.parametrize(
    ("source", "line"),
    [
        ("def build(:\n", r"strategies/broken\.py, line 1: .*; correct the file or choose another strategy"),
        (
            "class Options: ...\n",
            r"strategies/broken\.py has no sources; a strategy defines Options",
        ),
        (TENTH.replace("def build(", "def make("), r"strategies/broken\.py has no build; a strategy defines"),
        ("import nothing_of_that_name\n", r"strategies/broken\.py cannot be imported \(ModuleNotFoundError: "),
        ("Options = unknown\n", r"strategies/broken\.py cannot be imported \(NameError: "),
        (TENTH.replace("Options(Settings)", "Options"), r"Options must be a class of settings"),
        (TENTH.replace("required=True", ""), r"sources must have a required 'labelled'"),
        (TENTH.replace("(required=True)}", "(required=True), 'store': Faces()}"), r"a source cannot be called 'store'"),
    ],
)
def test_a_broken_strategy_is_one_line(run, strategies, tmp_path: Path, source: str, line: str) -> None:
    strategies("broken", source)
    with pytest.raises(ConfigError, match=rf"^[^\n]*{line}[^\n]*$"):
        run(strategy="broken")
    assert not (tmp_path / "store").exists()


def test_two_strategies_of_one_name_are_refused(run, strategies, tmp_path: Path) -> None:
    strategies("supervised", TENTH)
    with pytest.raises(ConfigError, match=r"^two files are called supervised\.py[^\n]*; rename one$"):
        run()
    assert not (tmp_path / "store").exists()


def test_sources_that_do_not_fit_are_one_line(run, data) -> None:
    labelled, pool = data["labelled"], data["pool"]
    with pytest.raises(ConfigError, match=r"unknown source 'unlabelled'; the strategy reads labelled \(required\)"):
        run(sources={"labelled": labelled, "unlabelled": pool})
    with pytest.raises(ConfigError, match=r"the source 'unlabelled' is missing; the strategy reads"):
        run("mean_teacher", sources={"labelled": labelled})
    with pytest.raises(ConfigError, match=r"no strategy 'smoothing'; options stand under their strategy's name"):
        run(options={"smoothing": {}})


def test_sources_of_another_kind_and_empty_ones_are_one_line(run, data, band_faces, tmp_path: Path) -> None:
    labelled = data["labelled"]
    with pytest.raises(DataError, match=r"^[^\n]*train has no column pseudo_label; name a folder of mined or random"):
        run(sources={"labelled": labelled, "mined": labelled})
    empty = band_faces(tmp_path / "empty", count=0)
    with pytest.raises(DataError, match=r"^[^\n]*empty has no face for the source unlabelled; run the stage"):
        run("mean_teacher", sources={"labelled": labelled, "unlabelled": empty})


def test_a_strategy_that_imports_another_depends_on_it(run, strategies) -> None:
    strategies("squared", TENTH)
    strategies("derived", "from fer_pipeline.strategies.squared import Options, build, sources\n")
    assert run(strategy="derived")[0].counts["trained"] == 1
    assert run(strategy="derived")[0].counts["trained"] == 0
    strategies("squared", TENTH.replace("square().sum(1)", "square().sum(1) * 2"))
    strategies("derived", "from fer_pipeline.strategies.squared import Options, build, sources\n")
    assert run(strategy="derived")[0].counts["trained"] == 1


@pytest.mark.parametrize("old", [{"use": "mined", "data": "data/auxiliary"}, {"use": "labelled"}])
def test_the_old_form_of_a_recipe_is_told_the_new_one(old) -> None:
    with pytest.raises(ConfigError, match=r"^recipe: 'use' is of an old form; a recipe is written \{strategy: [^\n]*$"):
        validate(RecipeSettings, old, where="recipe")
    test = {"strategy": "x", "sources": {"labelled": "data/faces/film/test"}, "deps": ["data/faces/film/test"] * 3}
    with pytest.raises(ConfigError, match=r"the source labelled is a test split, data/faces/film/test; name the train"):
        validate(RecipeSettings, test, where="recipe")
    with pytest.raises(ConfigError, match=r"deps must repeat the paths of the sources: deps: \[a, b, b\]"):
        validate(
            RecipeSettings, {"strategy": "x", "sources": {"labelled": "a", "mined": "b"}, "deps": ["a"]}, where="recipe"
        )
