"""A problem small enough to reckon with: coloured pictures of 8 px, and the small network with group norms."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fer_pipeline.artifacts.faces import encode
from fer_pipeline.core.settings import validate
from fer_pipeline.distillation.method import Problem
from fer_pipeline.distillation.settings import DistillSettings
from fer_pipeline.distillation.source import Source
from fer_pipeline.distillation.start import final_weights
from fer_pipeline.networks.settings import NetworkSettings

CLASSES = ("anger", "happiness", "neutral")
NETWORK = NetworkSettings(name="small", width=4, size=32)


def make_source(per_class: int, seed: int) -> Source:
    draw = np.random.default_rng(seed)
    labels = np.arange(3 * per_class) % 3
    colours = np.array([[200, 60, 60], [60, 200, 60], [60, 60, 200]])[labels][:, None, None]
    images = np.clip(colours + draw.normal(0, 50, (len(labels), 32, 32, 3)), 0, 255).astype(np.uint8)
    persons = np.array([f"p{seed}/{row // 6}" for row in range(len(labels))], dtype=object)
    return Source("faces", CLASSES, [encode(image, format="png") for image in images], labels, persons, {})


@pytest.fixture
def make_problem(tmp_path: Path) -> Callable[..., Problem]:
    def make(**changes: Any) -> Problem:
        first_seed = None if changes.get("theta_0") == "random" else 5
        settings = validate(DistillSettings, changes, where="distill")
        about: dict[str, Any] = {"num_classes": 3, "seed": 1, "device": torch.device("cpu")}
        initial, preprocessing = final_weights(NETWORK, None, first_seed=first_seed, **about)
        fresh, _ = final_weights(NETWORK, None, first_seed=None, **about)
        parts = (make_source(8, seed=1), make_source(4, seed=2))
        return Problem(settings, *parts, initial, fresh, preprocessing, 1, torch.device("cpu"), tmp_path)

    return make
