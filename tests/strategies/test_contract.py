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
from fer_pipeline.core.plugins import available, load
from fer_pipeline.networks.backbones import build
from fer_pipeline.networks.model import ExpressionNet
from fer_pipeline.networks.preprocessing import Preprocessing
from fer_pipeline.networks.settings import NetworkSettings, read_card
from fer_pipeline.training.augmentation import Augmentation
from fer_pipeline.training.fit import Execution, TrainingJob, train
from fer_pipeline.training.sets import ImageSet, image_set
from fer_pipeline.training.settings import AugmentSettings, TrainingSettings
from fer_pipeline.training.shares import Advance, ignore_steps
from fer_pipeline.training.sources import DistilledImages, RandomFaces
from fer_pipeline.training.strategy import BuildContext, Strategy
from fer_pipeline.training.worker import Worker, make_worker, run_group
from tests.toy_world import CLASSES, SIZE, bands

BASES = {
    "pseudo_label": {"threshold": 0.0},  # so that an untrained network's labels count
    "fixmatch": {"threshold": 0.0, "unlabelled_ratio": 1.0},
    "meta_face2exp": {"fine_tune_epochs": 1, "unlabelled_ratio": 1.0},
    "linear": {"strengths": tuple(10 ** (power / 10) for power in range(0, 30))},  # close together
}
FAST = {  # for sixty steps
    "mean_teacher": {"decay": 0.9, "weight": 5.0},  # such a teacher cannot average a thousand
    "meta_face2exp": {"adaptation_rate": 1.0, "cover": "none", "fine_tune_epochs": 1},
    "remixmatch": {"rotation_weight": 0.0},
}


UNDRAWN = {"operations": 0, "erase": 0.0, "cover": "none", "mixup": 0.0, "rotation_weight": 0.0}


class PulledError(Exception):
    """The plug."""


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
    for name in available("fer_pipeline.strategies"):
        module = load("fer_pipeline.strategies", name)
        declared = module.sources(module.Options())
        found += [(name, "required"), *((name, stream) for stream, source in declared.items() if not source.required)]
    return found


def sets_of(name: str, world: str, options: Any) -> Mapping[str, ImageSet]:
    module = load("fer_pipeline.strategies", name)
    declared = module.sources(options)
    return {key: one for key, one in streams_of(name, options).items() if declared[key].required or key == world}


def run(
    name: str,
    root: Path,
    world: str,
    *,
    options: Any = None,
    advance=ignore_steps,
    epochs: int = 2,
    network: Mapping[str, Any] | None = None,
    worker: Worker | None = None,
    **settings: Any,
) -> Path:
    module = load("fer_pipeline.strategies", name)
    state = root.with_name(f"{root.name}-state")
    for folder in (root, state):
        folder.mkdir(exist_ok=True, parents=True)
    chosen = options or module.Options()
    job = TrainingJob(
        network=NetworkSettings.model_validate({"width": 4, "dropout": 0.2, **(network or {})}).sized(SIZE),
        weights=None,
        classes=CLASSES,
        seed=7,
        settings=TrainingSettings.model_validate(
            {"epochs": epochs, "batch": 12, "optimizer": {"learning_rate": 0.02}, "select": "last", **settings}
        ),
        build=partial(module.build, chosen),
        sources=module.sources(chosen),
    )
    execution = Execution(worker or make_worker("cpu", "auto"), state, root, advance)
    train(job, sets_of(name, world, chosen), bands(30, 2), execution)
    return root


@pytest.fixture(params=available("fer_pipeline.strategies"))
def name(request) -> str:
    return request.param


def test_the_docstring_names_its_source(name: str) -> None:
    text = load("fer_pipeline.strategies", name).__doc__ or ""
    assert re.search(r"Source: .*(arXiv:\d{4}\.\d{5}|CVPR|FG|20\d\d)", text), "no source in the docstring"


def test_it_is_a_strategy_whose_optimisers_share_no_weight(name: str) -> None:
    module = load("fer_pipeline.strategies", name)
    network = build(NetworkSettings(width=4).sized(SIZE), 3, seed=7)
    augmentation = Augmentation(AugmentSettings(), Preprocessing(size=SIZE))
    context = BuildContext(
        num_classes=3,
        make_network=lambda *_: (copy.deepcopy(network), augmentation.preprocessing),
        augmentation=augmentation,
        settings=TrainingSettings(),
        images=dict.fromkeys(module.sources(module.Options()), 10),
        class_counts={"labelled": torch.tensor([3, 3, 4])},
    )
    strategy = module.build(module.Options(), context)
    assert isinstance(strategy, Strategy)
    assert isinstance(strategy.predictor(), ExpressionNet)
    sizes = strategy.batch_sizes(8, dict.fromkeys(module.sources(module.Options()), 100))
    assert set(sizes) == set(module.sources(module.Options()))
    for phase in strategy.phases():
        parameters = [id(p) for one in phase.optimizers.values() for p in one.module.parameters() if p.requires_grad]
        assert parameters
        assert len(parameters) == len(set(parameters)), "two optimisers share a weight"


@pytest.mark.parametrize(("name", "world"), worlds())
def test_loss_falls_and_the_toy_world_is_learned(name: str, world: str, tmp_path: Path) -> None:
    options = FAST.get(name, {})
    chosen = load("fer_pipeline.strategies", name).Options(**options)
    rows = read_history(run(name, tmp_path / "run", world, epochs=12, options=chosen))
    assert rows[-1]["train_labelled"] < (rows[0]["train_labelled"] if len(rows) > 1 else math.log(3) / 2)  # of chance
    assert rows[-1]["validation_accuracy"] >= 0.9


@pytest.mark.parametrize(("name", "world"), worlds())
def test_a_pause_changes_no_byte(name: str, world: str, tmp_path: Path) -> None:
    steps, total = 0, 0

    def count_all(count: int) -> None:
        nonlocal total
        total += count

    whole = run(name, tmp_path / "whole", world, advance=count_all)

    def pull(count: int) -> None:
        nonlocal steps
        steps += count
        if steps == min(8, total):
            raise PulledError

    with pytest.raises(PulledError):
        run(name, tmp_path / "paused", world, advance=pull)
    torch.manual_seed(99)
    paused = run(name, tmp_path / "paused", world)
    for path in (path for path in whole.rglob("*") if path.is_file()):
        assert (paused / path.relative_to(whole)).read_bytes() == path.read_bytes(), path.name


def run_without_draws(root: Path, names: Sequence[str], worker: Worker, advance: Advance) -> list[str]:
    """Trains strategies with nothing that is drawn by each process for itself."""
    plain = {"network": {"dropout": 0.0, "norm": "group"}, "augment": {"flip": 0, "translate": 0}, "batch": 13}
    for name in names:
        known = load("fer_pipeline.strategies", name).Options
        chosen = {**BASES.get(name, {}), **UNDRAWN}
        options = known(**{key: value for key, value in chosen.items() if key in known.model_fields})
        run(name, root / name, "required", options=options, worker=worker, epochs=1, **plain)
    return list(names)


@pytest.fixture(scope="module")
def together(tmp_path_factory) -> Path:
    """Models that two processes trained together; one group for all, since it starts slowly."""
    root = tmp_path_factory.mktemp("together")
    names = available("fer_pipeline.strategies")
    work = partial(run_without_draws, root, names)
    assert run_group(work, ("cpu", "cpu"), precision="auto", advance=lambda *_, **__: None) == list(names)
    return root


def test_one_process_makes_the_steps_of_two(name: str, together: Path, tmp_path: Path) -> None:
    run_without_draws(tmp_path, [name], make_worker("cpu", "auto"), ignore_steps)
    alone, other = (load_file(root / name / "weights.safetensors") for root in (tmp_path, together))
    assert alone.keys() == other.keys()
    for key, tensor in alone.items():
        torch.testing.assert_close(other[key], tensor, rtol=1e-3, atol=1e-5)
    rows = [read_history(root / name) for root in (tmp_path, together)]
    for one, two in zip(*rows, strict=True):
        assert two == pytest.approx(one, rel=1e-3, abs=1e-6, nan_ok=True)  # phases have other losses


def others(field: Any, value: Any) -> list[Any]:
    """Other values of a setting, by its type."""
    kind = field.annotation
    kinds = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    found: list[Any] = []
    for item in (get_args(one)[0] if get_origin(one) is Annotated else one for one in kinds):
        if get_origin(item) is Literal:
            found += [choice for choice in get_args(item) if choice != value]
        elif get_origin(item) is tuple:
            found.append(value[:1] or ({"stage3": 2},))
        elif item is bool:
            found.append(not value)
        elif item in (int, float):
            base = value if isinstance(value, int | float) else 0
            found += [item(base + step) for step in (0.3, 0.5, 1, -0.3, -0.9)]
        elif item is not NoneType:
            pytest.fail(f"say here how to vary a setting of type {item}")
    return found


def test_every_option_changes_the_result(name: str, tmp_path: Path) -> None:
    """An option that does nothing is a promise that is broken in silence."""
    options = load("fer_pipeline.strategies", name).Options
    results: dict[str, str] = {}
    choices = {key: field for key, field in options.model_fields.items() if get_origin(field.annotation) is Literal}
    usual = BASES.get(name, {})
    bases = [
        usual,
        *({**usual, key: one} for key, field in choices.items() for one in others(field, field.default)),
        {},
    ]

    def result(values: dict[str, Any], world: str) -> str | None:
        try:
            chosen = options(**values)
        except ValidationError:
            return None
        label = f"{sorted(values.items())}-{world}"
        if label not in results:
            folder = run(name, tmp_path / f"run{len(results)}", world, options=chosen, epochs=1)
            mining = str(read_card(folder).mining_features).encode()
            results[label] = hashlib.sha256((folder / "weights.safetensors").read_bytes() + mining).hexdigest()
        return results[label]

    for key, field in options.model_fields.items():
        changed = any(
            (found := result({**base, key: other}, world)) is not None and found != result(base, world)
            for base in bases
            if key not in base
            for other in others(field, base.get(key, field.default))
            for world in [world for strategy, world in worlds() if strategy == name]
        )
        assert changed, f"the option {key} changes nothing"
