"""Scoring on a GPU. No GPU is needed for the arithmetic and for the order of what is read ahead.

The streams, the page-locked memory and FAISS's own search run only in the tests marked `gpu`: they were written without
one at hand, so run these first where you have one.
"""

import threading
from collections.abc import Iterator, Sequence

import faiss
import numpy as np
import pytest
import torch

from fer_pipeline.scoring import gpu
from fer_pipeline.scoring.engines import TOLERANCE, ClassScores, Head, cosine_reference, make_engine, rank_classes


class Standing(gpu.Search):
    """What `Search` promises, by numpy; it notes on which thread each batch was read."""

    def __init__(self, centroids: np.ndarray) -> None:
        self.centroids, self.threads = centroids, set()

    def upload(self, parts: Sequence[np.ndarray]) -> gpu.Upload:
        self.threads.add(threading.current_thread())
        return gpu.Upload(torch.from_numpy(np.concatenate(parts)), None)

    def score(self, upload: gpu.Upload) -> ClassScores:
        cosine = cosine_reference(upload.features.numpy(), self.centroids).astype(np.float32)
        return ClassScores(cosine, *rank_classes(cosine))


def standing_engine() -> tuple[gpu.GpuEngine, Standing]:
    search = Standing(np.random.default_rng(0).standard_normal((4, 6)))
    return gpu.GpuEngine("faiss", lambda parts: pytest.fail("only streams are scored"), search=search), search


def test_batches_come_in_order_and_are_read_by_one_other_thread() -> None:
    engine, search = standing_engine()
    batches = [[np.random.default_rng(i).standard_normal((i + 1, 6)).astype(np.float16)] for i in range(7)]
    found = list(engine.stream((number, batch) for number, batch in enumerate(batches)))
    assert [number for number, _ in found] == list(range(7))
    for (_, scores), batch in zip(found, batches, strict=True):
        expected = cosine_reference(batch[0], search.centroids).astype(np.float32)
        np.testing.assert_array_equal(scores.cosine, expected)
    assert len(search.threads) == 1
    assert threading.main_thread() not in search.threads
    assert list(engine.stream([])) == []


def test_no_more_is_read_than_is_in_work() -> None:
    """Memory does not grow with the pool: reading waits for the scores to be taken."""
    engine, _ = standing_engine()
    read = 0

    def batches() -> Iterator[tuple[int, list[np.ndarray]]]:
        nonlocal read
        for number in range(50):
            read += 1
            yield number, [np.ones((2, 6), np.float16)]

    for done, _ in enumerate(engine.stream(batches()), start=1):
        assert read <= done + gpu.READ_AHEAD
    assert read == 50


def test_a_fault_of_the_reader_reaches_the_caller() -> None:
    engine, _ = standing_engine()

    def batches() -> Iterator[tuple[int, list[np.ndarray]]]:
        yield 0, [np.ones((2, 6), np.float16)]
        raise OSError("the disk is gone")

    taken = []
    with pytest.raises(OSError, match="the disk is gone"):
        taken.extend(number for number, _ in engine.stream(batches()))


def test_what_faiss_finds_is_put_in_the_order_of_the_classes() -> None:
    """With the index of the processor, whose answers have the same shape; -1 where nothing was found."""
    rng = np.random.default_rng(1)
    features, units = rng.standard_normal((9, 8)).astype(np.float16), np.eye(3, 8, dtype=np.float32)
    features[4] = 0
    features[6, 1] = np.inf
    index = faiss.IndexFlatIP(8)
    index.add(units)
    wide = features.astype(np.float32)
    found, order = index.search(wide, 3)
    order[6] = -1
    cosine = gpu.cosines_of(torch.from_numpy(found), torch.from_numpy(order), torch.from_numpy(wide)).numpy()
    clean = np.arange(9) != 6
    expected = cosine_reference(features[clean], units)
    np.testing.assert_allclose(cosine[clean], expected, rtol=0, atol=TOLERANCE)
    assert (cosine[4] == 0).all()
    assert np.isnan(cosine[6]).all()


def test_logits_of_a_gpu_equal_a_linear_layer() -> None:
    layer, features = torch.nn.Linear(8, 3), torch.from_numpy(np.random.default_rng(2).standard_normal((9, 8)))
    head = Head(layer.weight.detach().numpy(), layer.bias.detach().numpy())
    columns = torch.from_numpy(np.column_stack([head.weight, head.bias]))
    torch.testing.assert_close(gpu.logits_of(features.float(), columns), layer(features.float()).detach())


def big_world() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(6)
    centroids = rng.standard_normal((7, 512))
    return (centroids[rng.integers(0, 7, 200_000)] + 3 * rng.standard_normal((200_000, 512))).astype(
        np.float16
    ), centroids


@pytest.mark.gpu
def test_faiss_on_the_gpu_equals_reference() -> None:
    if faiss.get_num_gpus() == 0:
        pytest.skip("no NVIDIA GPU here")
    features, centroids = big_world()
    engine = make_engine("auto", centroids)
    assert isinstance(engine, gpu.GpuEngine)
    expected = cosine_reference(features, centroids)
    np.testing.assert_allclose(engine.score([features]).cosine, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.gpu
def test_streaming_to_the_gpu_equals_one_batch() -> None:
    if faiss.get_num_gpus() == 0:
        pytest.skip("no NVIDIA GPU here")
    features, centroids = big_world()
    features[1234, 5] = np.nan
    head = Head(centroids.astype(np.float32), np.arange(7, dtype=np.float32))
    engine = make_engine("faiss", centroids, head)
    pieces = [(start, [features[start : start + 9999]]) for start in range(0, len(features), 9999)]
    found = list(engine.stream(pieces))
    assert [start for start, _ in found] == [start for start, _ in pieces]
    joined = np.concatenate([scores.cosine for _, scores in found])
    assert np.flatnonzero(np.isnan(joined).any(axis=1)).tolist() == [1234]
    clean = np.arange(len(features)) != 1234
    expected = cosine_reference(features[clean], centroids)
    np.testing.assert_allclose(joined[clean], expected, rtol=0, atol=TOLERANCE)
    logits = np.concatenate([scores.logit for _, scores in found])[clean]
    exact = features[clean].astype(np.float64) @ centroids.astype(np.float32).T + head.bias
    np.testing.assert_allclose(logits, exact, rtol=1e-4, atol=1e-2)
