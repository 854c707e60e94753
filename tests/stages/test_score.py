"""`score` against a float64 brute force over the same files, and what it refuses."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fer_pipeline.artifacts.embeddings import embedding_paths, iter_embeddings, write_embeddings
from fer_pipeline.artifacts.faces import decode_crop, read_table
from fer_pipeline.artifacts.scores import read_centroids, read_heldout, read_scores, soft_max
from fer_pipeline.core.errors import DataError
from fer_pipeline.core.files import file_sha256, read_json
from fer_pipeline.networks.checkpoints import load_checkpoint
from fer_pipeline.stages import embed, score
from tests.project import project_settings

CLASSES = ("anger", "fear", "neutral")


@pytest.fixture
def world(tmp_path: Path, small_faces, small_primitive) -> dict:
    """An anchor of 60 faces, a pool of 45 in two shards, both embedded."""
    anchor, pool = small_faces("studio", [40, 20]), small_faces("street", [25, 20])
    model = small_primitive(anchor=anchor)
    for name, faces in (("studio", anchor), ("street", pool)):
        embed.run(
            embed.Config(),
            project_settings(),
            name=name,
            faces=faces,
            model=model,
            out=tmp_path / "embeddings" / name,
            store=tmp_path / "store",
        )
    return {
        "anchor_embeddings": tmp_path / "embeddings" / "studio",
        "pool_embeddings": tmp_path / "embeddings" / "street",
        "model": model,
    }


def run(config: score.Config, world: dict, out: Path, classes: tuple[str, ...] = CLASSES):
    return score.run(config, project_settings(classes=classes), pool="street", out=out, **world)


def vectors(folder: Path) -> tuple[list[str], np.ndarray]:
    parts = [part for path in embedding_paths(folder) for part in iter_embeddings(path)]
    names = [name for part in parts for name in part.face_id.to_pylist()]
    return names, np.concatenate([part.vector for part in parts]).astype(np.float64)


def cosines(x: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    return (x @ centroids.T) / np.linalg.norm(x, axis=1)[:, None] / np.linalg.norm(centroids, axis=1)


@pytest.mark.parametrize("parts", ["fit", "fit+validation"])
@pytest.mark.parametrize("engine", ["numpy", "llvm", "faiss"])
def test_everything_equals_brute_force(tmp_path: Path, world: dict, parts: str, engine: str) -> None:
    summary = run(score.Config(engine=engine, centroids=parts), world, tmp_path / "out")
    split = pq.read_table(world["model"] / "split.parquet").to_pandas().set_index("face_id")
    names, anchor = vectors(world["anchor_embeddings"])
    split = split.loc[names]
    inside = split["part"].isin(parts.split("+")).to_numpy()
    expected = np.stack([anchor[inside & (split["label"] == k).to_numpy()].mean(axis=0) for k in range(3)])
    centroids = read_centroids(tmp_path / "out")
    np.testing.assert_allclose(centroids.vectors, expected, rtol=1e-12)
    assert centroids.counts.sum() == inside.sum()

    pool_names, pool = vectors(world["pool_embeddings"])
    scores = read_scores(tmp_path / "out", classes=CLASSES)
    cosine = cosines(pool, expected)
    assert scores.face_id.to_pylist() == pool_names
    np.testing.assert_allclose(scores.best, cosine.max(axis=1), atol=2e-6)
    ordered = np.sort(cosine, axis=1)
    np.testing.assert_allclose(scores.margin, ordered[:, 2] - ordered[:, 1], atol=4e-6)
    clear = ordered[:, 2] - ordered[:, 1] > 4e-6
    np.testing.assert_array_equal(scores.nearest[clear], cosine.argmax(axis=1)[clear])

    held = (split["part"] == "heldout").to_numpy()
    heldout = read_heldout(tmp_path / "out", classes=CLASSES)
    assert heldout.face_id.to_pylist() == [name for name, chosen in zip(names, held, strict=True) if chosen]
    assert heldout.label is not None
    assert heldout.label.tolist() == split["label"][held].tolist()
    np.testing.assert_allclose(heldout.best, cosines(anchor[held], expected).max(axis=1), atol=2e-6)
    assert summary.counts["faces"] == 45
    assert summary.counts["heldout"] == held.sum()
    assert read_json(tmp_path / "out" / "summary.json")["engine"] == engine


@pytest.mark.parametrize("engine", ["numpy", "llvm", "faiss"])
def test_probabilities_are_those_of_the_network(tmp_path: Path, world: dict, small_faces, engine: str) -> None:
    """Up to the half precision of the stored features: the whole network sees the crops themselves."""
    run(score.Config(engine=engine), world, tmp_path / "out")
    classifier = load_checkpoint(world["model"])
    for folder, scores in (
        ("street", read_scores(tmp_path / "out", classes=CLASSES)),
        ("studio", read_heldout(tmp_path / "out", classes=CLASSES)),
    ):
        table = read_table(tmp_path / "faces" / folder, ["face_id", "image"])
        pictures = dict(zip(table.column("face_id").to_pylist(), table.column("image").to_pylist(), strict=True))
        crops = [decode_crop(pictures[name]["bytes"], name) for name in scores.face_id.to_pylist()]
        expected = classifier.predict(np.stack(crops))
        found = soft_max(np.concatenate(list(scores.by_class(logits=True))))
        np.testing.assert_allclose(found, expected, atol=2e-3)
        ordered = np.sort(found, axis=1)
        by_largest, by_margin = scores.rankings["probability"], scores.rankings["probability_margin"]
        np.testing.assert_array_equal(by_largest.label, found.argmax(axis=1))
        np.testing.assert_allclose(by_largest.value, ordered[:, -1], rtol=1e-12)
        np.testing.assert_allclose(by_margin.value, ordered[:, -1] - ordered[:, -2], rtol=0, atol=1e-12)
        ranked = scores.cosine_to(by_largest.label)
        np.testing.assert_array_equal(ranked <= scores.best, True)
        np.testing.assert_array_equal(scores.cosine_to(scores.nearest), scores.best)


def test_refitted_the_pool_is_the_labeller_s_and_held_out_faces_the_calibration_model_s(
    tmp_path: Path, world: dict, small_faces, small_primitive
) -> None:
    """The world's model becomes the calibration model of another, which held nothing out."""
    run(score.Config(), world, tmp_path / "before")
    anchor, labeller = tmp_path / "faces" / "studio", small_primitive(seed=1)
    table = pq.read_table(world["model"] / "split.parquet")
    parts = ["fit" if part == "heldout" else part for part in table.column("part").to_pylist()]
    pq.write_table(table.set_column(2, "part", pa.array(parts)), labeller / "split.parquet")
    world["model"].rename(labeller / "calibration")
    places = {"studio": anchor, "street": tmp_path / "faces" / "street"}
    for name, faces in places.items():
        out, store = tmp_path / "again" / name, tmp_path / "store"
        embed.run(embed.Config(), project_settings(), name=name, faces=faces, model=labeller, out=out, store=store)
    again = {
        f"{role}_embeddings": tmp_path / "again" / name for role, name in (("anchor", "studio"), ("pool", "street"))
    }
    summary = run(score.Config(), again | {"model": labeller}, tmp_path / "out")

    names, vector = vectors(again["anchor_embeddings"])
    split = pq.read_table(labeller / "split.parquet").to_pandas().set_index("face_id").loc[names]
    fitted = (split["part"] == "fit").to_numpy()
    expected = np.stack([vector[fitted & (split["label"] == k).to_numpy()].mean(axis=0) for k in range(3)])
    centroids = read_centroids(tmp_path / "out")
    np.testing.assert_allclose(centroids.vectors, expected, rtol=1e-12)
    scores = read_scores(tmp_path / "out", classes=CLASSES)
    cosine = cosines(vectors(again["pool_embeddings"])[1], expected)
    np.testing.assert_allclose(scores.best, cosine.max(axis=1), atol=2e-6)
    np.testing.assert_allclose(np.stack(scores.cosine.to_pylist()), cosine, atol=2e-6)

    held, names = tmp_path / "out" / "calibration", ("heldout.arrow", "centroids.safetensors")
    assert sorted(path.name for path in held.iterdir()) == sorted(names)
    for name in names:  # those of the walk without a second model, which another test compares with brute force
        assert file_sha256(held / name) == file_sha256(tmp_path / "before" / name)
    assert not (tmp_path / "out" / "heldout.arrow").exists()
    found, calibrated = read_heldout(held, classes=CLASSES), load_checkpoint(labeller / "calibration")
    features = dict(zip(*vectors(again["anchor_embeddings"] / "calibration"), strict=True))
    wanted = np.stack([features[name] for name in found.face_id.to_pylist()])
    np.testing.assert_allclose(found.best, cosines(wanted, read_centroids(held).vectors).max(axis=1), atol=2e-6)
    logits = wanted @ calibrated.model.head.weight.detach().double().numpy().T
    logits += calibrated.model.head.bias.detach().double().numpy()
    np.testing.assert_allclose(np.concatenate(list(found.by_class(logits=True))), logits, atol=1e-4)
    assert summary.counts["heldout"] == len(found) > 0
    assert centroids.counts.sum() == read_centroids(held).counts.sum() + len(found)
    (again["anchor_embeddings"] / "calibration").rename(tmp_path / "lost")
    with pytest.raises(DataError, match=r"no shards in [^\n]*calibration; run the stage that writes it"):
        run(score.Config(), again | {"model": labeller}, tmp_path / "out")


def test_features_that_the_head_does_not_take_have_no_logits(tmp_path: Path, world: dict) -> None:
    weights = file_sha256(world["model"] / "weights.safetensors")
    for name in ("anchor_embeddings", "pool_embeddings"):
        for path in sorted(world[name].iterdir()):
            batches = [(batch.face_id, batch.vector[:, :7].astype(np.float32)) for batch in iter_embeddings(path)]
            path.unlink()
            write_embeddings(path, batches, dimensions=7, model=weights, shard="x")
    summary = run(score.Config(), world, tmp_path / "out")
    assert "mine has no rule by probability" in summary.warnings[0]
    assert not read_json(tmp_path / "out" / "summary.json")["logits"]
    assert read_scores(tmp_path / "out", classes=CLASSES).rankings.keys() == {"margin"}


def test_shards_keep_their_names_and_bytes(tmp_path: Path, world: dict) -> None:
    for name in ("a", "b"):
        run(score.Config(), world, tmp_path / name)
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert files == ["centroids.safetensors", "heldout.arrow", "part-00000.arrow", "part-00001.arrow", "summary.json"]
    assert [file_sha256(tmp_path / "a" / name) for name in files] == [file_sha256(tmp_path / "b" / n) for n in files]


def test_zero_features_are_counted(tmp_path: Path, world: dict) -> None:
    width, model = 32, file_sha256(world["model"] / "weights.safetensors")
    path = world["pool_embeddings"] / "part-00000.arrow"
    path.unlink()
    batch = pa.array(["street/a", "street/b"]), np.stack([np.zeros(width), np.ones(width)]).astype(np.float32)
    write_embeddings(path, [batch], dimensions=width, model=model, shard="x")
    summary = run(score.Config(), world, tmp_path / "out")
    assert summary.counts["no_direction"] == 1
    assert "1 faces of street have a zero feature" in summary.warnings[0]
    assert read_scores(tmp_path / "out", classes=CLASSES).directed[:2].tolist() == [False, True]


def test_another_class_order_is_refused(tmp_path: Path, world: dict) -> None:
    with pytest.raises(DataError, match="in this order"):
        run(score.Config(), world, tmp_path / "out", classes=("fear", "anger", "neutral"))
    assert not (tmp_path / "out").exists()


def test_features_of_another_checkpoint_are_refused(tmp_path: Path, world: dict, small_primitive) -> None:
    other = small_primitive(seed=1)
    (other / "split.parquet").write_bytes((world["model"] / "split.parquet").read_bytes())
    with pytest.raises(DataError, match=r"another checkpoint.*rerun embed"):
        run(score.Config(), world | {"model": other}, tmp_path / "out")


def test_an_empty_class_leaves_earlier_scores_alone(tmp_path: Path, world: dict) -> None:
    run(score.Config(), world, tmp_path / "out")
    before = file_sha256(tmp_path / "out" / "part-00000.arrow")
    path = world["model"] / "split.parquet"
    table = pq.read_table(path)
    parts = ["heldout" if label == 1 else "fit" for label in table.column("label").to_pylist()]
    pq.write_table(table.set_column(2, "part", pa.array(parts)), path)
    with pytest.raises(DataError, match="no face to make a centroid of for fear") as raised:
        run(score.Config(), world, tmp_path / "out")
    assert "\n" not in str(raised.value)
    assert file_sha256(tmp_path / "out" / "part-00000.arrow") == before


def test_an_anchor_that_was_not_embedded_whole_is_refused(tmp_path: Path, world: dict) -> None:
    (world["anchor_embeddings"] / "part-00001.arrow").unlink()
    with pytest.raises(DataError, match=r"20 faces .* have no embedding"):
        run(score.Config(), world, tmp_path / "out")
