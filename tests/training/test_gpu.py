"""On a GPU: images in its memory, in pinned memory or in shards give the same batches and the same network."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from fer_pipeline.artifacts import faces
from fer_pipeline.core.settings import Resources, validate
from fer_pipeline.networks.checkpoints import load_checkpoint
from fer_pipeline.stages import train_primitive
from fer_pipeline.training.batches import Loader, Stream
from fer_pipeline.training.images import memory_budget
from tests.project import project_settings

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]
BANDS = ("anger", "happiness", "neutral")
SETTINGS = {
    "network": {"width": 4, "norm": "group"},
    "training": {
        "epochs": 3, "batch": 16, "optimizer": {"learning_rate": 0.02}, "augment": {"flip": 0, "translate": 0},
        "precision": "32-true",
    },
}  # fmt: skip


def faces_in(folder: Path, count: int = 330) -> Path:
    """The faces of the stages' tests: three classes told by where a bright band is."""
    random = np.random.default_rng(0)
    rows = []
    for index in range(count):
        label = int(random.integers(3))
        image = random.integers(40, 140, (24, 24, 3)).astype(np.uint8)
        image[label * 8 : label * 8 + 8] += 60
        row = {"face_id": f"f/{index}", "image": {"bytes": faces.encode(image, format="png"), "path": None}}
        row |= {"label": label, "subject": f"p{index // 3}", "split": "train", "landmarks": [0.0] * 10, "score": 1.0}
        rows.append(row | {"source": ""})
    table = pa.Table.from_pylist(rows, schema=faces.face_schema(BANDS, crop=24))
    faces.write_shard(folder / "part-00000.parquet", table)
    return folder


def train(root: Path, name: str, **resources) -> dict[str, torch.Tensor]:
    train_primitive.run(
        validate(train_primitive.Config, SETTINGS, where="test"),
        project_settings(
            classes=BANDS, seeds=(3,), resources=Resources(device=resources.pop("device", "cuda:0"), **resources)
        ),
        faces=root / "faces",
        out=root / name,
        store=root / f"{name}-store",
    )
    return load_checkpoint(root / name).model.state_dict()


def test_batches_are_the_same_from_everywhere(toy) -> None:
    gpu = torch.device("cuda:0")
    images = toy(200, 0)
    held = images.with_pixels(images.all_pixels().to(gpu))
    assert (images.images.threads(gpu), held.images.threads(gpu)) == (1, 0)
    one, two = (
        list(Loader({"labelled": Stream(source, 32, seed=1)}, gpu).batches(range(20))) for source in (images, held)
    )
    for step, (left, right) in enumerate(zip(one, two, strict=True)):
        assert left["labelled"].images.device.type == "cuda"
        assert torch.equal(left["labelled"].images, right["labelled"].images), step
        assert torch.equal(left["labelled"].images.cpu(), images.pixels(left["labelled"].rows.numpy())), step


def test_no_byte_depends_on_where_the_images_lie(tmp_path: Path) -> None:
    faces_in(tmp_path / "faces")
    assert memory_budget(Resources(device="cuda:0"), torch.device("cuda:0")).on_device > 1 << 30
    on_gpu = train(tmp_path, "gpu")
    for name, resources in (
        ("memory", {"gpu_memory_share": 0}),
        ("shards", {"gpu_memory_share": 0, "memory_gb": 0, "workers": 4}),
    ):
        for key, tensor in train(tmp_path, name, **resources).items():
            assert torch.equal(tensor, on_gpu[key]), (name, key)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("norm", ["group", "batch"])
def test_two_gpus_train_the_network_of_one(tmp_path: Path, norm: str, monkeypatch) -> None:
    monkeypatch.setitem(SETTINGS["network"], "norm", norm)
    faces_in(tmp_path / "faces")
    one, two = train(tmp_path, "one"), train(tmp_path, "two", device="cuda", gpus=2)
    for key, tensor in one.items():
        torch.testing.assert_close(two[key].float(), tensor.float(), rtol=1e-2, atol=1e-4)
