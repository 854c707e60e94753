"""A tiny set of faces and an untrained primitive learner for the stages between them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from fer_pipeline.artifacts import faces
from fer_pipeline.networks.backbones import build
from fer_pipeline.networks.checkpoints import Card, save_checkpoint
from fer_pipeline.networks.preprocessing import Preprocessing
from fer_pipeline.networks.settings import NetworkSettings

CLASSES = ("anger", "fear", "neutral")
SIZE = 16

Writer = Callable[..., Path]


def face_rows(name: str, numbers: range, *, classes: tuple[str, ...] = CLASSES) -> pa.Table:
    """Random pictures, every second as JPEG; the label of each is its number modulo the classes."""
    columns = {
        "face_id": [f"{name}/{number}" for number in numbers],
        "image": [
            {
                "bytes": faces.encode(
                    np.random.default_rng([number, len(name)]).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8),
                    format="jpeg" if number % 2 else "png",
                ),
                "path": None,
            }
            for number in numbers
        ],
        "label": [number % len(classes) for number in numbers],
        "subject": ["s" if number % 5 else None for number in numbers],
        "split": ["train" for _ in numbers],
        "landmarks": [[float(number)] * 10 for number in numbers],
        "score": [0.5 for _ in numbers],
        "source": [f"{number}.png" for number in numbers],
    }
    return pa.table(columns, schema=faces.face_schema(classes, crop=SIZE, border="constant"))


@pytest.fixture
def small_faces(tmp_path: Path) -> Writer:
    """Writes shards of faces: `small_faces("street", [40, 30])`."""

    def write(name: str, sizes: list[int], *, classes: tuple[str, ...] = CLASSES) -> Path:
        start = 0
        for shard, size in enumerate(sizes):
            rows = face_rows(name, range(start, start + size), classes=classes)
            faces.write_shard(tmp_path / "faces" / name / f"part-{shard:05d}.parquet", rows)
            start += size
        return tmp_path / "faces" / name

    return write


@pytest.fixture
def small_primitive(tmp_path: Path) -> Writer:
    """Saves an untrained network, with running statistics that folding must respect, and its split of a set."""

    def save(*, anchor: Path | None = None, classes: tuple[str, ...] = CLASSES, seed: int = 0) -> Path:
        network = NetworkSettings(name="small", width=4, size=SIZE)
        model = build(network, len(classes), seed=seed)
        torch.manual_seed(seed)
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                torch.nn.init.uniform_(module.running_mean, -1, 1)
                torch.nn.init.uniform_(module.running_var, 0.5, 2)
        folder = tmp_path / f"primitive-{seed}"
        save_checkpoint(folder, model, Card(network=network, classes=classes, preprocessing=Preprocessing(size=SIZE)))
        if anchor is not None:
            table = faces.read_table(anchor, ["face_id", "label"])
            parts = [("fit", "fit", "validation", "heldout")[number // 3 % 4] for number in range(len(table))]
            pq.write_table(table.append_column("part", pa.array(parts)), folder / "split.parquet")
        return folder

    return save
