"""A toy world in memory: three classes told by a bright band at the top, in the middle or at the bottom."""

import hashlib
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from fer_pipeline.networks.settings import NetworkSettings
from fer_pipeline.strategies import supervised
from fer_pipeline.training.fit import Execution, TrainingJob, TrainingResult, train
from fer_pipeline.training.sets import ImageSet, image_set
from fer_pipeline.training.settings import TrainingSettings
from fer_pipeline.training.shares import ignore_steps
from fer_pipeline.training.worker import Worker, make_worker

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
    images = image_set(torch.from_numpy(images), torch.from_numpy(labels), names, subjects)
    return replace(images, blocks=np.arange(count) // 10)


def write_teacher(file: Path, matrix: np.ndarray, **changes: Any) -> dict[str, Any]:
    """An ONNX file that knows the toy world: its scores are the mean inputs of the three bands, times a matrix."""
    nodes = [
        helper.make_node("AveragePool", ["pixels"], ["bands"], kernel_shape=[8, SIZE], strides=[8, SIZE]),
        helper.make_node("ReduceMean", ["bands"], ["grey"], axes=[1], keepdims=0),
        helper.make_node("Flatten", ["grey"], ["flat"]),
        helper.make_node("MatMul", ["flat", "matrix"], ["out"]),
    ]
    pixels = helper.make_tensor_value_info("pixels", TensorProto.FLOAT, [None, 3, SIZE, SIZE])
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, [None, matrix.shape[1]])
    initial = [numpy_helper.from_array(matrix.astype(np.float32), "matrix")]
    graph = helper.make_graph(nodes, "net", [pixels], [out], initial)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    file.write_bytes(model.SerializeToString())
    values = {"path": file, "sha256": hashlib.sha256(file.read_bytes()).hexdigest(), "preprocessing": {"size": SIZE}}
    return {**values, "classes": CLASSES, **changes}


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
    weights=None,
    sets=None,
    advance=None,
    device: str | Worker = "cpu",
    strategy=supervised,
    data=None,
    checkpoints=None,
    **settings,
) -> tuple[TrainingResult, Path]:
    """Trains a tiny network on the toy world in `root / name`; gives the result and its folder."""
    folder, state = root / name, root / f"{name}-state"
    folder.mkdir(exist_ok=True, parents=True)
    state.mkdir(exist_ok=True, parents=True)
    plain = {"epochs": 3, "batch": 16, "optimizer": {"learning_rate": 0.02}, "augment": {"translate": 0.04}}
    chosen = options or strategy.Options()
    job = TrainingJob(
        network=NetworkSettings(**{"width": 4, **(network or {})}).sized(SIZE),
        weights=weights,
        classes=CLASSES,
        seed=seed,
        settings=TrainingSettings.model_validate({**plain, **settings}),
        build=partial(strategy.build, chosen),
        sources=strategy.sources(chosen),
        about={"stage": "toy"},
        data=data or {},
        checkpoints=checkpoints or {},
    )
    worker = make_worker(device, job.settings.precision) if isinstance(device, str) else device
    execution = Execution(worker, state, folder, advance or ignore_steps)
    return train(job, sets or {"labelled": bands(60, 0)}, bands(30, 1), execution), folder


@pytest.fixture
def train_toy(tmp_path: Path) -> Callable[..., tuple[TrainingResult, Path]]:
    return partial(train_in, tmp_path)
