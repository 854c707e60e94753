"""A toy world in memory: three classes told by a bright band at the top, in the middle or at the bottom."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from fer_pipeline.networks.settings import NetworkSettings
from fer_pipeline.strategies import supervised
from fer_pipeline.training.job import Start, Trained, train
from fer_pipeline.training.sets import ImageSet, held_set
from fer_pipeline.training.settings import TrainingSettings

CLASSES = ("anger", "happiness", "neutral")
SIZE = 24


def bands(count: int, seed: int) -> ImageSet:
    """`count` images with their labels."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, len(CLASSES), count)
    images = random.integers(40, 140, (count, SIZE, SIZE, 3)).astype(np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[label * 8 : label * 8 + 8] += 60
    names = np.array([f"toy/{seed}-{index}" for index in range(count)], dtype=object)
    subjects = np.array([f"s{index % 9}" for index in range(count)], dtype=object)
    images = held_set(torch.from_numpy(images), torch.from_numpy(labels), names, subjects)
    return replace(images, blocks=np.arange(count) // 10)


@pytest.fixture
def toy() -> Callable[[int, int], ImageSet]:
    return bands


def train_in(
    root: Path,
    name: str,
    *,
    seed: int = 3,
    options=None,
    network=None,
    sets=None,
    advance=None,
    device="cpu",
    **settings,
) -> tuple[Trained, Path]:
    """Trains a tiny network on the toy world in `root / name`; gives the result and its folder."""
    folder, state = root / name, root / f"{name}-state"
    folder.mkdir(exist_ok=True)
    state.mkdir(exist_ok=True)
    plain = {"epochs": 3, "batch": 16, "optimizer": {"learning_rate": 0.02}, "augment": {"translate": 0.04}}
    trained = train(
        Start(NetworkSettings(width=4, **(network or {})).sized(SIZE), None, CLASSES, seed),
        lambda ingredients: supervised.build(options or supervised.Options(), ingredients),
        sets or {"labelled": bands(60, 0)},
        bands(30, 1),
        settings=TrainingSettings.model_validate({**plain, **settings}),
        device=device,
        state=state,
        folder=folder,
        about={"stage": "toy"},
        data={},
        advance=advance or (lambda steps: None),
    )
    return trained, folder


@pytest.fixture
def train_toy(tmp_path: Path) -> Callable[..., tuple[Trained, Path]]:
    return partial(train_in, tmp_path)
