"""A tiny set of faces and an untrained primitive learner for the stages between them."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from fer_pipeline.artifacts import faces
from fer_pipeline.core import fingerprints
from fer_pipeline.networks.backbones import build
from fer_pipeline.networks.checkpoints import save_checkpoint
from fer_pipeline.networks.preprocessing import Preprocessing
from fer_pipeline.networks.settings import Card, NetworkSettings
from fer_pipeline.strategies import supervised

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


@pytest.fixture
def package_copy(tmp_path: Path, monkeypatch) -> Callable[[], Path]:
    """Lets the stages take the fingerprint of their code from a copy of the package, which a test may edit."""

    def copy() -> Path:
        folder = tmp_path / "package"
        shutil.copytree(fingerprints.PACKAGE, folder, ignore=shutil.ignore_patterns("__pycache__"))
        monkeypatch.setattr(fingerprints, "PACKAGE", folder)
        monkeypatch.setattr(supervised, "__file__", str(folder / "strategies" / "supervised.py"))
        return folder

    return copy


BANDS = ("anger", "happiness", "neutral")
BAND_SIZE = 24


@pytest.fixture(scope="session")
def band_faces() -> Writer:
    """Writes a shard of faces that can be learned: three classes told by a bright band at the top, middle or bottom.

    Three pictures show one person; `unlabelled` leaves out the label of every so many-th, `pseudo` names the labels
    pseudo-labels, as auxiliary shards do.
    """

    def write(
        folder: Path, *, count: int = 90, seed: int = 0, split: str | None = "train", kept: tuple[int, ...] = (0, 1, 2),
        unlabelled: int | None = None, pseudo: bool = False,
    ) -> Path:  # fmt: skip
        random = np.random.default_rng(seed)
        rows = []
        for index, label in enumerate(random.choice(kept, count).tolist()):
            image = random.integers(40, 140, (BAND_SIZE, BAND_SIZE, 3)).astype(np.uint8)
            image[label * 8 : label * 8 + 8] += 60
            row = {
                "face_id": f"{folder.name}{seed}/{index}",
                "image": {"bytes": faces.encode(image, format="png"), "path": None},
                "label": None if pseudo or (unlabelled and index % unlabelled == unlabelled - 1) else label,
                "subject": f"p{index // 3}",
                "split": split,
                "landmarks": [0.0] * 10,
                "score": 1.0,
                "source": "",
            }
            rows.append(row | ({"pseudo_label": label} if pseudo else {}))
        fields = [*faces.FACE_FIELDS, *([pa.field("pseudo_label", pa.int64())] if pseudo else [])]
        schema = faces.image_schema(fields, BANDS, crop=BAND_SIZE)
        faces.write_shard(folder / "part-00000.parquet", pa.Table.from_pylist(rows, schema=schema))
        return folder

    return write
