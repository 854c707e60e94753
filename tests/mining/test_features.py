"""The features' bytes are pinned to `VERSION`, by a network whose arithmetic is exact on every machine."""

import hashlib
from pathlib import Path

import numpy as np
import torch
from torch import nn

from fer_pipeline.artifacts import faces
from fer_pipeline.artifacts.embeddings import iter_embeddings
from fer_pipeline.mining import embedding
from fer_pipeline.mining.features import VERSION, Extractor
from fer_pipeline.networks.cards import Card
from fer_pipeline.networks.checkpoints import Classifier
from fer_pipeline.networks.model import ExpressionNet
from fer_pipeline.networks.preprocessing import Preprocessing
from fer_pipeline.networks.settings import NetworkSettings

SIZE = 8
PINNED = {1: "511fe3e59a197014"}  # VERSION: how the SHA-256 of the vectors begins


class Exact(nn.Module):
    """Small whole weights: every sum is a whole number below 2**24, whatever the order of the additions."""

    feature_dim = 6

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, SIZE, bias=False)
        weights = torch.randint(-2, 3, self.conv.weight.shape, generator=torch.Generator().manual_seed(0))
        self.conv.weight = nn.Parameter(weights.float())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x).flatten(1)


def extractor(batch_size: int = 4) -> Extractor:
    card = Card(
        network=NetworkSettings(name="small", size=SIZE),
        classes=("anger", "fear"),
        preprocessing=Preprocessing(size=SIZE, mean=(0, 0, 0), std=(1, 1, 1), scale=1),
    )
    return Extractor(Classifier(ExpressionNet(Exact(), 2), card, device=torch.device("cpu")), batch_size=batch_size)


def pictures(n: int = 10) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 32, (n, SIZE, SIZE, 3), dtype=np.uint8)


def test_features_are_the_penultimate_layer_exactly() -> None:
    weights = Exact().conv.weight.detach().numpy().astype(np.int64)
    expected = np.einsum("nhwc,fchw->nf", pictures().astype(np.int64), weights)
    np.testing.assert_array_equal(extractor()(pictures()), expected)


def test_shard_bytes_are_pinned_to_the_version(tmp_path: Path) -> None:
    import pyarrow as pa

    columns = {
        "face_id": [f"p/{i}" for i in range(10)],
        "image": [{"bytes": faces.encode(picture, format="png"), "path": None} for picture in pictures()],
        "label": [None] * 10,
        "subject": [None] * 10,
        "split": ["train"] * 10,
        "landmarks": [[0.0] * 10] * 10,
        "score": [1.0] * 10,
        "source": [""] * 10,
    }
    rows = pa.table(columns, schema=faces.face_schema(("anger", "fear"), crop=SIZE))
    faces.write_shard(tmp_path / "part-00000.parquet", rows)
    job = embedding.Job(key="k", faces=tmp_path / "part-00000.parquet", name="part-00000.parquet")
    plan = embedding.Plan(tmp_path, "weights", tmp_path / "store", 4, True, "cpu")
    embedding.write_shard(job, plan, extractor(), lambda _: None, tmp_path / "out.arrow")
    vectors = np.concatenate([part.vector for part in iter_embeddings(tmp_path / "out.arrow")])
    assert hashlib.sha256(vectors.tobytes()).hexdigest().startswith(PINNED[VERSION])


def test_batch_size_does_not_matter() -> None:
    np.testing.assert_array_equal(extractor(3)(pictures()), extractor(100)(pictures()))
    assert extractor()(pictures(0)).shape == (0, 6)
