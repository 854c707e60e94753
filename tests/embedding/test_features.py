"""Features are the network's own, bit for bit on a CPU; their bytes are pinned to `VERSION` by an exact network."""

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import nn

from fer_pipeline.artifacts import faces
from fer_pipeline.artifacts.embeddings import iter_embeddings
from fer_pipeline.embedding import shards as embedding
from fer_pipeline.embedding.features import VERSION, Extractor, Precision, compute_overlapped
from fer_pipeline.networks.backbones import build
from fer_pipeline.networks.checkpoints import Classifier
from fer_pipeline.networks.model import ExpressionNet
from fer_pipeline.networks.preprocessing import Preprocessing
from fer_pipeline.networks.settings import Card, NetworkSettings
from fer_pipeline.sharding.jobs import Job

SIZE = 8


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


def extractor(batch_size: int = 4, device: str = "cpu", **options) -> Extractor:
    card = Card(
        network=NetworkSettings(name="small", size=SIZE),
        classes=("anger", "fear"),
        preprocessing=Preprocessing(size=SIZE, mean=(0, 0, 0), std=(1, 1, 1), scale=1),
    )
    classifier = Classifier(ExpressionNet(Exact(), 2), card, device=torch.device(device))
    return Extractor(classifier, batch_size=batch_size, **options)


def pictures(n: int = 10, *, size: int = SIZE, limit: int = 32) -> np.ndarray:
    return np.random.default_rng(0).integers(0, limit, (n, size, size, 3), dtype=np.uint8)


def test_features_are_the_penultimate_layer_exactly() -> None:
    weights = Exact().conv.weight.detach().numpy().astype(np.int64)
    expected = np.einsum("nhwc,fchw->nf", pictures().astype(np.int64), weights)
    np.testing.assert_array_equal(extractor()(pictures()), expected)


def write_faces(path: Path, encoded: list[bytes], *, crop: int) -> Job[Path]:
    count = len(encoded)
    columns = {
        "face_id": [f"p/{i}" for i in range(count)],
        "image": [{"bytes": item, "path": None} for item in encoded],
        "label": [None] * count,
        "subject": [None] * count,
        "split": ["train"] * count,
        "landmarks": [[0.0] * 10] * count,
        "score": [1.0] * count,
        "source": [""] * count,
    }
    faces.write_shard(path, pa.table(columns, schema=faces.face_schema(("anger", "fear"), crop=crop)))
    return Job(key="k", name=path.name, items=count, payload=path)


@pytest.fixture
def job(tmp_path: Path) -> Job[Path]:
    encoded = [faces.encode(picture, format="png") for picture in pictures()]
    return write_faces(tmp_path / "part-00000.parquet", encoded, crop=SIZE)


def read_vectors(path: Path) -> np.ndarray:
    return np.concatenate([part.vector for part in iter_embeddings(path)])


def test_exact_features_are_pinned_to_the_version(tmp_path: Path, job: Job[Path]) -> None:
    """Whole numbers, the same to the last bit on any processor.

    `VERSION` is in the key of every embedded shard: raise it where these bytes change.
    """
    steps: list[int] = []
    embedding.write_shard(job, tmp_path / "out.arrow", steps.append, extractor=extractor(), weights="weights")
    assert steps == [4, 4, 2]
    digest = hashlib.sha256(read_vectors(tmp_path / "out.arrow").tobytes()).hexdigest()
    assert VERSION == 2
    assert digest == "511fe3e59a197014ca0f989ebfc13a99304e5eb1a618b4de333222a848b719d8"


def test_features_of_a_trained_network_are_pinned_to_the_version(tmp_path: Path) -> None:
    """JPEG decoding, resizing, normalisation, fused batch norms, a layer of features: what the exact network lacks.

    Vectors are compared in steps of 1/64, since the last bits of a convolution differ between processors. No
    number lies within 4e-4 of the middle between two steps: more than half precision can move it there.
    """
    images = pictures(5, size=24, limit=256)
    encoded = [faces.encode(image, format="jpeg" if n % 2 else "png") for n, image in enumerate(images)]
    job = write_faces(tmp_path / "part-00000.parquet", encoded, crop=24)
    settings = NetworkSettings(name="small", size=16, width=4, feature_dim=12)
    model = with_running_statistics(build(settings, 2, seed=58))
    card = Card(network=settings, classes=("anger", "fear"), preprocessing=Preprocessing(size=16, mean=(0.4, 0.5, 0.6)))
    extractor = Extractor(Classifier(model, card, device=torch.device("cpu")), batch_size=3)
    assert extractor.fused
    embedding.write_shard(job, tmp_path / "out.arrow", lambda _: None, extractor=extractor, weights="weights")
    scaled = read_vectors(tmp_path / "out.arrow").astype(np.float64) * 64
    steps = np.round(scaled)
    assert len(np.unique(steps)) > 10
    assert VERSION == 2
    digest = hashlib.sha256(steps.astype(np.int32).tobytes()).hexdigest()
    assert digest == "2be99271d753ac7ee3ea73ab900e255f85afad849179e3dbfc8ca71ee9f35c02"
    assert np.abs(np.abs(scaled - steps) - 0.5).min() > 64 * 4e-4


def test_the_order_of_work_of_a_gpu_gives_the_same_file(
    tmp_path: Path, job: Job[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Decoding threads and transfer buffers, with a CPU at the end of them."""
    embedding.write_shard(job, tmp_path / "plain.arrow", lambda _: None, extractor=extractor(), weights="weights")

    def stream(self: Extractor, batches: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        return compute_overlapped(batches, self.compute, device=self.device)

    monkeypatch.setattr(Extractor, "stream", stream)
    monkeypatch.setattr(embedding, "num_decoders", lambda _: 2)
    steps: list[int] = []
    embedding.write_shard(job, tmp_path / "buffers.arrow", steps.append, extractor=extractor(), weights="weights")
    assert steps == [4, 4, 2]
    assert (tmp_path / "buffers.arrow").read_bytes() == (tmp_path / "plain.arrow").read_bytes()


def test_batch_size_does_not_matter() -> None:
    np.testing.assert_array_equal(extractor(3)(pictures()), extractor(100)(pictures()))
    assert extractor()(pictures(0)).shape == (0, 6)


def with_running_statistics(model: ExpressionNet, seed: int = 0) -> ExpressionNet:
    torch.manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model


def normed(device: str, seed: int = 0) -> Classifier:
    """A network whose batch norms can be folded, with running statistics far from their start."""
    settings = NetworkSettings(name="resnet18", size=32)
    model = with_running_statistics(build(settings, 2, seed=seed), seed)
    card = Card(network=settings, classes=("anger", "fear"), preprocessing=Preprocessing(size=32))
    return Classifier(model, card, device=torch.device(device))


def noise(n: int, size: int = 32) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (n, size, size, 3), dtype=np.uint8)


def test_the_bits_are_those_of_the_network_batch_by_batch() -> None:
    """Unfolded and in float32, step by step as torch has it: how batches come and go adds nothing."""
    classifier, images = normed("cpu"), noise(11)
    expected = []
    with torch.inference_mode():
        for start in range(0, 11, 4):
            pixels = torch.from_numpy(images[start : start + 4]).permute(0, 3, 1, 2).float() * (1 / 255 / 0.5) - 1.0
            expected.append(classifier.model.features(pixels).numpy())
    plain = Extractor(classifier, batch_size=4, fuse=False)
    assert not plain.fused
    np.testing.assert_array_equal(plain(images), np.concatenate(expected))
    streamed = list(plain.stream(images[start : start + 4] for start in range(0, 11, 4)))
    assert [len(part) for part in streamed] == [4, 4, 3]
    np.testing.assert_array_equal(np.concatenate(streamed), np.concatenate(expected))


def test_folding_keeps_what_half_precision_keeps() -> None:
    classifier, images = normed("cpu"), noise(6)
    folded, plain = Extractor(classifier), Extractor(classifier, fuse=False)
    assert folded.fused
    expected = plain(images)
    assert (np.linalg.norm(folded(images) - expected, axis=1) < 1e-3 * np.linalg.norm(expected, axis=1)).all()


def test_a_gpu_worker_has_its_share_of_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding.os, "cpu_count", lambda: 48)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    assert embedding.num_decoders(torch.device("cpu")) == 0
    assert embedding.num_decoders(torch.device("cuda:3")) == 6
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert embedding.num_decoders(torch.device("cuda")) == embedding.MAX_DECODERS
    monkeypatch.setattr(embedding.os, "cpu_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert embedding.num_decoders(torch.device("cuda:3")) == 1


def test_a_compiled_network_is_the_folded_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced by torch, without the minute that its compiler takes."""
    real, given = torch.compile, []

    def traced(network: nn.Module) -> object:
        given.append(network)
        return real(network, backend="eager")

    monkeypatch.setattr(torch, "compile", traced)
    images = noise(6)
    expected = Extractor(normed("cpu"), batch_size=4)(images)
    assert not given
    np.testing.assert_array_equal(Extractor(normed("cpu"), batch_size=4, compile=True)(images), expected)
    assert not any(isinstance(module, nn.BatchNorm2d) for network in given for module in network.modules())
    assert len(given) == 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize(("precision", "bound"), [("float32", 2e-3), ("float16", 5e-3), ("bfloat16", 4e-2)])
def test_a_gpu_gives_the_features_of_the_cpu(precision: Precision, bound: float) -> None:
    images = noise(11)
    expected = Extractor(normed("cpu"), fuse=False)(images)
    found = Extractor(normed("cuda"), batch_size=4, precision=precision)(images)
    assert (np.linalg.norm(found - expected, axis=1) < bound * np.linalg.norm(expected, axis=1)).all()
    again = Extractor(normed("cuda"), batch_size=4, precision=precision)(images)
    np.testing.assert_array_equal(found, again)
