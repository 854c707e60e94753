"""What every strategy must keep; the suite runs over all files of the folder, so adding one is testing it."""

import copy
import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from fer_pipeline.artifacts.history import read_history
from fer_pipeline.core.errors import ConfigError
from fer_pipeline.core.plugins import available, load
from fer_pipeline.core.progress import Progress
from fer_pipeline.core.settings import validate
from fer_pipeline.networks.backbones import build
from fer_pipeline.networks.model import ExpressionNet
from fer_pipeline.networks.preprocessing import Preprocessing
from fer_pipeline.networks.settings import NetworkSettings, read_card
from fer_pipeline.networks.weights import WeightSettings
from fer_pipeline.training.augmentation import Augmentation
from fer_pipeline.training.fit import Execution, TrainingJob, train
from fer_pipeline.training.sets import ImageSet, image_set
from fer_pipeline.training.settings import AugmentSettings, TrainingSettings
from fer_pipeline.training.shares import Advance, ignore_steps
from fer_pipeline.training.sources import Checkpoints, DistilledImages, RandomFaces
from fer_pipeline.training.strategy import BuildContext, Strategy, learns, load_strategy
from fer_pipeline.training.worker import Worker, make_worker, run_group
from tests.toy_world import CLASSES, SIZE, bands, write_teacher

BASES = {
    "ensemble_teacher": {"teachers": ["toy"]},  # beside own checkpoints, so that the weights of both count
    "pseudo_label": {"threshold": 0.0},  # so that an untrained network's labels count
    "progressive_teacher": {"reject": 0.5, "reject_steps": 5},  # so that some are rejected within five steps
    "facenet2expnet": {"rate": 1e-3, "rate_every": 0.5},
    "weakly_supervised": {"first_epochs": 1, "threshold": 0.34},  # so that an untrained network is sure of some
    "fixmatch": {"threshold": 0.0, "unlabelled_ratio": 1.0},
    "remixmatch": {"unlabelled_ratio": 1.0},
    "meta_face2exp": {"fine_tune_epochs": 1, "unlabelled_ratio": 1.0},
    "linear": {"strengths": tuple(10 ** (power / 10) for power in range(0, 30))},  # close together
}
EPOCHS = {"weakly_supervised": 2}  # one for each part
SHOWN_ELSEWHERE = {"weakly_supervised": {"window"}}  # which ends a training, on made-up curves
FAST = {  # a teacher of sixty steps cannot average a thousand
    "mean_teacher": {"decay": 0.9, "weight": 5.0},
    "confidence": {"decay": 0.9, "consistency": 5.0},
    "progressive_teacher": {"decay": 0.9, "weight": 1.0},
    "meta_face2exp": {"adaptation_rate": 1.0, "cover": "none", "fine_tune_epochs": 1},
    "remixmatch": {"rotation_weight": 0.0},
}

NO_STRONG_VIEWS = {"operations": 0, "erase": 0.0, "cover": "none"}
UNDRAWN = {
    "ensemble_teacher": {"teachers": []},
    "weakly_supervised": {"first_epochs": 0},
    "fixmatch": NO_STRONG_VIEWS,
    "meta_face2exp": NO_STRONG_VIEWS,
    "remixmatch": {**NO_STRONG_VIEWS, "mixup": 0.0, "rotation_weight": 0.0},
}


class PulledError(Exception):
    """The plug."""


NAMES = [name for name in available("fer_pipeline.strategies") if learns(load_strategy(name))]  # others: test_published


def distilled() -> ImageSet:
    """One network input a class."""
    inputs = torch.randn(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(5))
    names, space = np.array(["a", "b", "c"], dtype=object), Preprocessing(size=SIZE)
    return image_set(inputs, torch.arange(3), names, np.full(3, "", dtype=object), space=space)


def unlabelled(count: int, seed: int) -> ImageSet:
    """Images like the labelled ones, without their labels (every third is known, to measure by), with landmarks."""
    images = bands(count, seed)
    truth = torch.where(torch.arange(count) % 3 == 0, images.labels, -1)
    points = torch.tensor([8.2, 11.1, 15.8, 11.1, 12.0, 15.4, 8.9, 19.8, 15.2, 19.8]).repeat(count, 1)
    return replace(images, labels=torch.full((count,), -1), landmarks=points, truth=truth)


def streams_of(name: str, options: Any) -> dict[str, ImageSet]:
    """A set for every source that a strategy declares; what it does not need comes in a world of its own."""
    module = load("fer_pipeline.strategies", name)
    sets: dict[str, ImageSet] = {}
    for stream, source in module.sources(options).items():
        if isinstance(source, Checkpoints):
            continue
        if isinstance(source, DistilledImages):
            sets[stream] = distilled()
        elif isinstance(source, RandomFaces):
            sets[stream] = bands(3 * source.per_class, 3)
        elif source.label is None:
            sets[stream] = unlabelled(90, 4)
        else:
            sets[stream] = bands(60, 0) if stream == "labelled" else bands(90, 1)
    return sets


def worlds() -> list[tuple[str, str]]:
    """Every strategy with its required sources alone, and with each other one beside them."""
    found = []
    for name in NAMES:
        module = load("fer_pipeline.strategies", name)
        declared = module.sources(module.Options())
        others = [stream for stream, source in declared.items() if not source.required]
        found += [(name, "required"), *((name, stream) for stream in others)]
    return found


def sets_of(name: str, world: str, options: Any) -> Mapping[str, ImageSet]:
    module = load("fer_pipeline.strategies", name)
    declared = module.sources(options)
    return {key: one for key, one in streams_of(name, options).items() if declared[key].required or key == world}


def checkpoints_of(name: str, world: str, options: Any, folder: Path) -> dict[str, Path]:
    """A trained network, in a folder, for every source of such that a world has."""
    module, found = load("fer_pipeline.strategies", name), {}
    for key, source in module.sources(options).items():
        if isinstance(source, Checkpoints) and (module.sources(module.Options())[key].required or key == world):
            found[key] = folder / f"checkpoint-of-{key}"
            if not found[key].exists():
                run("confidence" if source.confidence else "supervised", found[key], "required", epochs=6)
    return found


def run(
    name: str,
    root: Path,
    world: str,
    *,
    options: Any = None,
    advance: Advance = ignore_steps,
    epochs: int | None = 2,
    network: Mapping[str, Any] | None = None,
    worker: Worker | None = None,
    weights: WeightSettings | None = None,
    **settings: Any,
) -> Path:
    module = load("fer_pipeline.strategies", name)
    state = root.with_name(f"{root.name}-state")
    for folder in (root, state):
        folder.mkdir(exist_ok=True, parents=True)
    chosen = options or module.Options()
    job = TrainingJob(
        network=NetworkSettings(**{"width": 4, **({"dropout": 0.2} if network is None else network)}).sized(SIZE),
        weights=weights,
        classes=CLASSES,
        seed=7,
        settings=TrainingSettings.model_validate(
            {"epochs": epochs, "batch": 12, "optimizer": {"learning_rate": 0.02}, "select": "last", **settings}
        ),
        build=partial(module.build, chosen),
        sources=module.sources(chosen),
        checkpoints=checkpoints_of(name, world, chosen, root.parent),
    )
    execution = Execution(worker or make_worker("cpu", "auto"), state, root, advance)
    train(job, sets_of(name, world, chosen), bands(30, 2), execution)
    return root


@pytest.fixture(params=NAMES)
def name(request) -> str:
    return request.param


@pytest.mark.parametrize("name", available("fer_pipeline.strategies"))
def test_the_docstring_names_its_source(name: str) -> None:
    text = load("fer_pipeline.strategies", name).__doc__ or ""
    assert re.search(r"Source: .*(arXiv:\d{4}\.\d{5}|CVPR|FG|20\d\d)", text), "no source in the docstring"


def test_it_is_a_strategy_whose_optimisers_share_no_weight(name: str) -> None:
    module = load("fer_pipeline.strategies", name)
    streams = streams_of(name, module.Options())
    network = build(NetworkSettings(width=4).sized(SIZE), 3, seed=7)
    augmentation = Augmentation(AugmentSettings(), Preprocessing(size=SIZE))
    context = BuildContext(
        num_classes=3,
        make_network=lambda *_: (copy.deepcopy(network), augmentation.preprocessing),
        augmentation=augmentation,
        settings=TrainingSettings(),
        images=dict.fromkeys(streams, 10),
        class_counts={"labelled": torch.tensor([3, 3, 4])},
    )
    strategy = module.build(module.Options(), context)
    assert isinstance(strategy, Strategy)
    assert isinstance(strategy.predictor(), ExpressionNet)
    sizes = strategy.batch_sizes(8, dict.fromkeys(streams, 100))
    assert set(sizes) == set(streams)
    for phase in strategy.phases():
        parameters = [id(p) for one in phase.optimizers.values() for p in one.module.parameters() if p.requires_grad]
        assert parameters
        assert len(parameters) == len(set(parameters)), "two optimisers share a weight"


@pytest.mark.parametrize(("name", "world"), worlds())
def test_loss_falls_and_the_toy_world_is_learned(name: str, world: str, tmp_path: Path) -> None:
    options = FAST.get(name, {})
    chosen = load("fer_pipeline.strategies", name).Options(**options)
    rows = read_history(run(name, tmp_path / "run", world, epochs=12, options=chosen))
    rows = [row for row in rows if not math.isnan(row["train_labelled"])]  # a part of a training may use no labels
    assert rows[-1]["train_labelled"] < (rows[0]["train_labelled"] if len(rows) > 1 else math.log(3) / 2)  # of chance
    assert rows[-1]["validation_accuracy"] >= 0.9


@pytest.mark.parametrize(("name", "world"), worlds())
def test_a_pause_changes_no_byte(name: str, world: str, tmp_path: Path) -> None:
    steps, total = 0, 0

    def count_all(count: int, *, earlier: bool = False, planned: int = 0) -> None:
        progress(count, earlier=earlier, planned=planned)
        assert progress.done <= (progress.total or 0), "more is done than there is"

    progress = Progress("train", 0, "steps")
    whole = run(name, tmp_path / "whole", world, advance=count_all)
    total = progress.done
    assert progress.total == total == read_history(whole)[-1]["steps"]

    def pull(count: int, **more: int) -> None:
        nonlocal steps
        steps += count
        if steps == min(8, total):
            raise PulledError

    with pytest.raises(PulledError):
        run(name, tmp_path / "paused", world, advance=pull)
    torch.manual_seed(99)
    progress = Progress("train", 0, "steps")
    paused = run(name, tmp_path / "paused", world, advance=count_all)
    assert progress.total == progress.done == total
    for path in (path for path in whole.rglob("*") if path.is_file()):
        assert (paused / path.relative_to(whole)).read_bytes() == path.read_bytes(), path.name


def trained_elsewhere(root: Path, **network: Any) -> WeightSettings:
    """Weights that are not those that a network is drawn with."""
    if not (folder := root / "elsewhere").exists():
        run("supervised", folder, "required", epochs=1, network=network)
    return WeightSettings(path=folder / "weights.safetensors")


def others(field: Any, value: Any, root: Path) -> list[Any]:
    """Other values of a setting, by its type."""
    kind = field.annotation
    kinds = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    found: list[Any] = []
    for item in (get_args(one)[0] if get_origin(one) is Annotated else one for one in kinds):
        if get_origin(item) is Literal:
            found += [choice for choice in get_args(item) if choice != value]
        elif get_origin(item) is tuple:
            found += [value[:1]] if value else [({"stage3": 2},), (1.0,) * len(CLASSES)]
            found.append(("toy",))
        elif item is NetworkSettings:
            found.append(NetworkSettings(width=8))
        elif item is WeightSettings:
            found.append(trained_elsewhere(root, width=16))
        elif item is bool:
            found.append(not value)
        elif item in (int, float):
            base = value if isinstance(value, int | float) else 0
            found += [2 * base] if item is float and base > 0 else []  # of a rate, to which the others are far
            found += [item(base + step) for step in (0.3, 0.5, 1, -0.3, -0.9)]
        elif item is not NoneType:
            pytest.fail(f"say here how to vary a setting of type {item}")
    return found


def at_hand(value: Any, folder: Path) -> Any:
    """A value of a setting, in which `toy` stands for a network of others that sees what it is shown from below."""
    upside_down = 4 * np.eye(3)[::-1]
    return [write_teacher(folder / "toy.onnx", upside_down)] if value in (["toy"], ("toy",)) else value


def test_every_option_changes_the_result(name: str, tmp_path: Path) -> None:
    """An option that does nothing is a promise that is broken in silence."""
    options = load("fer_pipeline.strategies", name).Options
    results: dict[str, str] = {}
    choices = {key: field for key, field in options.model_fields.items() if get_origin(field.annotation) is Literal}
    usual = BASES.get(name, {})
    bases = [
        usual,
        *({**usual, key: one} for key, field in choices.items() for one in others(field, field.default, tmp_path)),
        {},
    ]

    def result(values: dict[str, Any], world: str) -> str | None:
        try:
            chosen = options(**{key: at_hand(value, tmp_path) for key, value in values.items()})
        except ValidationError:
            return None
        label = f"{sorted(values.items())}-{world}"
        if label not in results:
            folder = tmp_path / f"run{len(results)}"
            run(name, folder, world, options=chosen, epochs=EPOCHS.get(name, 1))
            mining = str(read_card(folder).mining_features).encode()
            results[label] = hashlib.sha256((folder / "weights.safetensors").read_bytes() + mining).hexdigest()
        return results[label]

    for key, field in options.model_fields.items():
        if key in SHOWN_ELSEWHERE.get(name, ()):
            continue
        changed = any(
            (found := result({**base, key: other}, world)) is not None and found != result(base, world)
            for base in bases
            for other in others(field, base.get(key, field.default), tmp_path)
            for world in [world for strategy, world in worlds() if strategy == name]
        )
        assert changed, f"the option {key} changes nothing"


def test_an_unknown_option_is_one_line_with_the_known_ones(name: str) -> None:
    options = load("fer_pipeline.strategies", name).Options
    with pytest.raises(ConfigError, match=r"^options: unknown key 'nonsense'; known keys are [^\n]+$") as caught:
        validate(options, {"nonsense": 1}, where="options")
    assert all(key in str(caught.value) for key in options.model_fields)


def test_it_starts_from_weights(name: str, tmp_path: Path) -> None:
    """With a learning rate of almost nothing the backbone is still the one that was loaded."""
    weights = trained_elsewhere(tmp_path, norm="group")
    assert weights.path
    still = {"learning_rate": 1e-12, "weight_decay": 0}
    folder = run(
        name, tmp_path / "run", "required", epochs=1, network={"norm": "group"}, weights=weights, optimizer=still
    )
    loaded, found = load_file(weights.path), load_file(folder / "weights.safetensors")
    for key in (key for key in loaded if key.startswith("backbone.")):
        torch.testing.assert_close(
            found[key], loaded[key], rtol=1e-3, atol=1e-4, msg=lambda text, k=key: f"{k}: {text}"
        )


def run_without_draws(root: Path, names: Sequence[str], worker: Worker, advance: Advance) -> list[str]:
    """Trains strategies for two steps of each phase, without what each process draws for itself.

    More steps would amplify how sums are rounded. Batches cannot be divided evenly, but where each process divides its
    part once more.
    """
    still = {"network": {"norm": "group"}, "augment": {"flip": 0, "translate": 0}, "epochs": None, "steps": 2}
    for name in names:
        run(name, root / name, "required", options=undrawn(name), worker=worker, batch=13, **still)
    return list(names)


def undrawn(name: str) -> Any:
    """Options with which nothing is drawn, and which are shown in few steps."""
    return load("fer_pipeline.strategies", name).Options(**BASES.get(name, {}) | UNDRAWN.get(name, {}))


def check_equal(name: str, first: Path, second: Path, *, rtol: float, atol: float) -> None:
    """Compares the weights and the histories of a strategy's models."""
    one, two = (load_file(folder / name / "weights.safetensors") for folder in (first, second))
    assert one.keys() == two.keys()
    for key, tensor in one.items():
        torch.testing.assert_close(two[key], tensor, rtol=rtol, atol=atol, msg=lambda text, k=key: f"{k}: {text}")
    rows = [read_history(folder / name) for folder in (first, second)]
    assert rows[1] == [
        pytest.approx(row, rel=rtol, abs=atol, nan_ok=True) for row in rows[0]
    ]  # phases differ in losses


@pytest.fixture(scope="module")
def together(tmp_path_factory) -> Path:
    """Models that two processes trained together; one group for all, since it starts slowly."""
    root = tmp_path_factory.mktemp("together")
    for name in NAMES:  # else both processes would write them
        checkpoints_of(name, "required", undrawn(name), root)
    work = partial(run_without_draws, root, NAMES)
    assert run_group(work, ("cpu", "cpu"), precision="auto", advance=ignore_steps) == NAMES
    return root


def test_two_processes_train_the_network_of_one(name: str, together: Path, tmp_path: Path) -> None:
    """Losses are means over all parts, and what is selected, predicted or counted is that of the whole batch."""
    run_without_draws(tmp_path, [name], make_worker("cpu", "auto"), ignore_steps)
    check_equal(name, tmp_path, together, rtol=1e-3, atol=5e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_a_gpu_trains_the_network_of_a_cpu(name: str, tmp_path: Path) -> None:
    for device in ("cpu", "cuda:0"):
        run_without_draws(tmp_path / device, [name], make_worker(device, "32-true"), ignore_steps)
    check_equal(name, tmp_path / "cpu", tmp_path / "cuda:0", rtol=2e-2, atol=1e-3)
