"""The figures of the neurons against the network's own maps, face by face, and what is refused."""

import csv
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from fer_pipeline.artifacts.faces import encode, face_schema, read_faces, write_shard
from fer_pipeline.commands import neurons
from fer_pipeline.core.errors import ConfigError, DataError
from fer_pipeline.evaluation.neurons import entropy
from fer_pipeline.networks.backbones import build
from fer_pipeline.networks.checkpoints import WEIGHTS, load_checkpoint, save_checkpoint
from fer_pipeline.networks.preprocessing import Preprocessing
from fer_pipeline.networks.settings import Card, NetworkSettings

CLASSES = ("<i>anger</i>", "fear", "joy")
SIDE, TOP = 32, 7


def write_model(folder: Path, *, name: str = "expnet", seed: int = 0, began: int = 0) -> Path:
    network = NetworkSettings(name=name, size=SIDE, feature_dim=16)
    training = {"seed": began}
    card = Card(network=network, classes=("a", "b"), preprocessing=Preprocessing(size=SIDE), training=training)
    save_checkpoint(folder, build(network, 2, seed=seed), card)
    return folder


@pytest.fixture
def faces(tmp_path: Path) -> Path:
    rng = np.random.default_rng(2)
    rows = []
    for index in range(60):
        picture = rng.integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8) // (1 + index % 3)
        image = {"bytes": encode(picture, format="png"), "path": None}
        rows.append({"face_id": f"{index:02d}", "image": image, "label": None if index % 10 == 9 else index % 3})
    folder = tmp_path / "faces"
    write_shard(folder / "part-00000.parquet", pa.Table.from_pylist(rows, schema=face_schema(CLASSES, crop=SIDE)))
    return folder


def rows_of(out: Path, name: str) -> list[dict[str, str]]:
    with (out / name).open(newline="") as stream:
        return list(csv.DictReader(stream))


def by_hand(model: Path, faces: Path) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The entropy of every neuron, and its strongest faces, by layer."""
    network, shards = load_checkpoint(model), read_faces(faces)
    known = shards.labels >= 0
    inputs = network.card.preprocessing.apply(torch.from_numpy(shards.images[known]))
    with torch.no_grad():
        maps = cast(Any, network.model.backbone).feature_maps(inputs)
        responses = {name: maps[name].flatten(1).numpy() for name in [*maps][-3:]}
        responses["features"] = network.model.features(inputs).numpy()
    order = {name: np.argsort(-values, axis=0, kind="stable")[:TOP] for name, values in responses.items()}
    labels = shards.labels[known]
    counts = {name: np.stack([(labels[one] == k).sum(0) for k in range(3)], 1) for name, one in order.items()}
    found = {name: np.where(np.ptp(responses[name], axis=0) > 0, entropy(one), np.nan) for name, one in counts.items()}
    return found, order


@pytest.mark.parametrize("name", ["expnet", "small", "resnet18"])
def test_layers_of_any_network_by_hand(name: str, faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neurons, "BATCH", 16)
    before, model = (write_model(tmp_path / str(seed), name=name, seed=seed) for seed in (0, 1))
    out = tmp_path / "out"
    summary = neurons.run(model=model, faces=faces, out=out, before=str(before), top=TOP, device="cpu")
    assert summary.counts["faces"] == 54, "those with a label"
    found = {"before": by_hand(before, faces)[0], "after": by_hand(model, faces)[0]}
    threshold = min(np.nanmean(values) for values in found["before"].values())
    rows = rows_of(out, "layers.csv")
    assert {(row["network"], row["layer"]) for row in rows} == {(one, layer) for one in found for layer in found[one]}
    for row in rows:
        values = found[row["network"]][row["layer"]]
        assert (int(row["neurons"]), int(row["constant"])) == (len(values), np.isnan(values).sum())
        # A batch of another size may compute another last digit, and two responses change places.
        assert float(row["mean_entropy"]) == pytest.approx(np.nanmean(values), rel=1e-3)
        assert int(row["low"]) == pytest.approx((values < threshold).sum(), abs=max(2, len(values) // 100))
    page = (out / "index.html").read_text()
    assert "<i>anger" not in page
    assert "script" not in page.split("</style>")[1]
    assert {path.stem for path in out.glob("*.svg")} == set(found["after"])


def test_mean_pictures_are_those_of_the_strongest_faces(faces: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    model = write_model(tmp_path / "model")
    neurons.run(model=model, faces=faces, out=out, top=TOP, device="cpu")
    entropies, order = by_hand(model, faces)
    shards = read_faces(faces)
    known = shards.labels >= 0
    images, labels = shards.images[known], shards.labels[known]
    rows = rows_of(out, "neurons.csv")
    assert rows
    for row in rows:
        neuron = int(row["neuron"])
        strongest = order["features"][:, neuron]
        assert float(row["entropy"]) == pytest.approx(entropies["features"][neuron], abs=1e-6)
        assert row["class"] == CLASSES[np.bincount(labels[strongest]).argmax()]
        picture = np.asarray(Image.open(out / f"neuron_{neuron}.png")).astype(float)
        assert np.abs(picture - images[strongest].mean(0)).max() <= 0.5
    assert {path.name for path in out.glob("*.png")} == {f"neuron_{row['neuron']}.png" for row in rows}


def test_weights_may_be_what_came_before(faces: Path, tmp_path: Path) -> None:
    """The weights that it began with and the seed of the rest give the figures of the model that holds both."""
    before, model = write_model(tmp_path / "4", seed=4), write_model(tmp_path / "1", seed=1, began=4)
    tensors = load_file(before / WEIGHTS)
    save_file(
        {name: one for name, one in tensors.items() if name.startswith("backbone.")}, tmp_path / "start.safetensors"
    )
    outs = [tmp_path / "one", tmp_path / "other"]
    for out, start in zip(outs, (before, tmp_path / "start.safetensors"), strict=True):
        neurons.run(model=model, faces=faces, out=out, before=str(start), top=TOP, device="cpu")
    one, other = (rows_of(out, "layers.csv") for out in outs)
    assert one == other


def test_what_cannot_be_compared_is_one_line(faces: Path, tmp_path: Path) -> None:
    model, other = write_model(tmp_path / "model"), write_model(tmp_path / "other", name="resnet18")
    with pytest.raises(ConfigError, match=r"has the layers stage[^\n]+; compare alike$"):
        neurons.run(model=model, faces=faces, out=tmp_path / "out", before=str(other), device="cpu")
    with pytest.raises(DataError, match=r"54 labelled faces, of which --top 54 cannot be the strongest"):
        neurons.run(model=model, faces=faces, out=tmp_path / "out", top=54, device="cpu")
    assert not (tmp_path / "out").exists()
