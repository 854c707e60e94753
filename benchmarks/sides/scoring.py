"""Sides of `scoring`. In: a folder of embeddings. A round scores all of them: cosines, nearest class and margin.

The peers get the same views of the files as ours, a record batch of 256 rows at a time: of 256 to 32,768 rows, tried by
powers of two, all of them are fastest with so few. Their facts hold the digest of the labels, so that speed is only
compared between equal answers.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

BUFFER = 8 * 2**20
BLOCK_ROWS = 32768

Round = Callable[[], dict[str, Any]]
Score = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray]]


def reading(folder: str, seed: int) -> Round:
    """Every file into one buffer of 8 MB: what no scoring from files can do without."""
    buffer = memoryview(bytearray(BUFFER))
    paths = sorted(Path(folder).glob("part-*.arrow"))

    def once() -> dict[str, Any]:
        total = 0
        for path in paths:
            with path.open("rb", buffering=0) as stream:
                while count := stream.readinto(buffer):
                    total += count
        return {"bytes": total}

    once()
    return once


def ours(folder: str, seed: int) -> Round:
    """Our engine over the same blocks as the stage, without writing."""
    from fer_pipeline.artifacts.embeddings import stream_embeddings
    from fer_pipeline.scoring.engines import make_engine

    centroids, paths = centroids_and_paths(folder, seed)
    engine = make_engine("auto", centroids, device="cpu")

    def over(chosen: list[Path]) -> dict[str, Any]:
        digest, faces = hashlib.sha256(), 0
        for path in chosen:
            for block in stream_embeddings(path, rows=BLOCK_ROWS):
                found = engine.score(block.parts)
                digest.update(found.nearest.astype(np.int8).tobytes())
                faces += len(block)
        return {"faces": faces, "labels": digest.hexdigest()[:16], "engine": engine.name}

    over(paths[:2])
    return lambda: over(paths)


def ours_written(folder: str, out: str, seed: int) -> Round:
    """What the stage does with a pool: the same, and the scores on the disk."""
    import shutil

    from fer_pipeline.artifacts.scores import score_schema
    from fer_pipeline.scoring.engines import make_engine
    from fer_pipeline.scoring.shards import score_shards

    centroids, paths = centroids_and_paths(folder, seed)
    engine = make_engine("auto", centroids, device="cpu")
    schema = score_schema([f"class {k}" for k in range(len(centroids))])

    def over(chosen: list[Path]) -> dict[str, Any]:
        counts = score_shards(
            chosen, out=Path(out), schema=schema, engine=engine, dimensions=centroids.shape[1], workers=1
        )
        return {"faces": sum(shard.faces for shard in counts)}

    def once() -> dict[str, Any]:
        shutil.rmtree(out, ignore_errors=True)
        Path(out).mkdir()
        return over(paths)

    Path(out).mkdir(exist_ok=True)
    over(paths[:2])
    return once


def with_numpy(folder: str, seed: int) -> Round:
    """numpy: widened, one product, the squares by vecdot. Most of its time is the widening."""
    units = unit_centroids(folder, seed).T.copy()

    def score(features: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        wide = features.astype(np.float32)
        cosine = wide @ units
        cosine /= np.sqrt(np.vecdot(wide, wide))[:, None]
        top = np.partition(cosine, -2, axis=1)[:, -2:]
        return cosine, cosine.argmax(axis=1), top[:, 1] - top[:, 0]

    return by_parts(folder, score)


def with_torch(folder: str, seed: int, classes_first: bool = False) -> Round:
    """torch in single precision; `classes_first` multiplies the other way round, which its kernels like far better."""
    import warnings

    import torch

    warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    units = torch.from_numpy(unit_centroids(folder, seed))
    columns = units.T.contiguous()

    def score(features: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        wide = torch.from_numpy(features).float()
        cosine = (units @ wide.T).T if classes_first else wide @ columns
        cosine = cosine / torch.linalg.vector_norm(wide, dim=1, keepdim=True)
        best = cosine.topk(2, dim=1)
        return cosine.numpy(), best.indices[:, 0].numpy(), (best.values[:, 0] - best.values[:, 1]).numpy()

    return by_parts(folder, score)


def with_faiss(folder: str, seed: int) -> Round:
    """faiss on the CPU: features of length 1 against a flat index; all classes come sorted, with the margin in them."""
    import faiss

    faiss.omp_set_num_threads(1)
    units = unit_centroids(folder, seed)
    index = faiss.IndexFlatIP(units.shape[1])
    index.add(units)

    def score(features: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        wide = features.astype(np.float32)
        faiss.normalize_L2(wide)
        found, order = index.search(wide, len(units))
        cosine = np.empty_like(found)
        np.put_along_axis(cosine, order, found, axis=1)
        return cosine, order[:, 0], found[:, 0] - found[:, 1]

    return by_parts(folder, score)


def with_simsimd(folder: str, seed: int) -> Round:
    """SimSIMD's cosine distance in half precision: the centroids lose their lower digits, so labels differ here."""
    import simsimd  # pyright: ignore[reportMissingImports]

    units = unit_centroids(folder, seed)
    halves = (units * np.sqrt(units.shape[1])).astype(np.float16)

    def score(features: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        cosine = 1 - np.asarray(simsimd.cdist(features, halves, metric="cosine")).astype(np.float32)
        top = np.partition(cosine, -2, axis=1)[:, -2:]
        return cosine, cosine.argmax(axis=1), top[:, 1] - top[:, 0]

    return by_parts(folder, score)


def checked(folder: str, seed: int) -> Round:
    """Ours beside float64, row by row."""
    from fer_pipeline.artifacts.embeddings import stream_embeddings
    from fer_pipeline.scoring.engines import TOLERANCE, cosine_reference, make_engine

    centroids, paths = centroids_and_paths(folder, seed)
    engine = make_engine("auto", centroids, device="cpu")

    def once() -> dict[str, Any]:
        faces = ties = other = wrong = 0
        largest = 0.0
        for path in paths:
            for block in stream_embeddings(path, rows=BLOCK_ROWS):
                found = engine.score(block.parts)
                truth = np.concatenate([cosine_reference(part, centroids) for part in block.parts])
                top = np.partition(truth, -2, axis=1)[:, -2:]
                clear = top[:, 1] - top[:, 0] > 2 * TOLERANCE
                differs = found.nearest != truth.argmax(axis=1)
                faces, ties = faces + len(block), ties + int((~clear).sum())
                other, wrong = other + int(differs.sum()), wrong + int((differs & clear).sum())
                largest = max(largest, float(np.abs(found.cosine - truth).max()))
        return {"faces": faces, "ties": ties, "other": other, "wrong": wrong, "largest": largest}

    return once


def by_parts(folder: str, score: Score) -> Round:
    """A peer's round, one record batch at a time."""
    from fer_pipeline.artifacts.embeddings import stream_embeddings

    paths = sorted(Path(folder).glob("part-*.arrow"))

    def over(chosen: list[Path]) -> dict[str, Any]:
        digest, faces = hashlib.sha256(), 0
        for path in chosen:
            for block in stream_embeddings(path, rows=BLOCK_ROWS):
                for part in block.parts:
                    _, nearest, _ = score(part)
                    digest.update(nearest.astype(np.int8).tobytes())
                faces += len(block)
        return {"faces": faces, "labels": digest.hexdigest()[:16]}

    over(paths[:2])
    return lambda: over(paths)


def centroids_and_paths(folder: str, seed: int) -> tuple[np.ndarray, list[Path]]:
    """The centres that the pool was drawn around, and its shards."""
    from benchmarks.pools.embeddings import class_centres
    from fer_pipeline.artifacts.embeddings import embedding_paths, read_model_and_width

    paths = embedding_paths(Path(folder))
    return class_centres(read_model_and_width(paths[0])[1], seed=seed), paths


def unit_centroids(folder: str, seed: int) -> np.ndarray:
    """The centres with length 1 in single precision."""
    from fer_pipeline.scoring.engines import unit_rows

    return unit_rows(centroids_and_paths(folder, seed)[0]).astype(np.float32)
