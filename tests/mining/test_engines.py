"""Every engine against the float64 reference, and the reference against cosines computed by hand."""

import faiss
import numpy as np
import pytest
import simsimd

from fer_pipeline.mining import engines
from fer_pipeline.mining.cosine import TOLERANCE, cosine_reference, rank_classes, without_direction

ENGINES = ("numpy", "simsimd", "faiss")


def world(
    seed: int, *, n: int = 5000, d: int = 512, c: int = 7, positive: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Features near centroids that are not representable in half precision."""
    rng = np.random.default_rng(seed)
    centroids = rng.standard_normal((c, d)) * np.exp(rng.standard_normal((c, 1)))
    features = centroids[rng.integers(0, c, n)] + 3 * rng.standard_normal((n, d)) * rng.random((n, 1))
    if positive:
        centroids, features = np.abs(centroids), np.abs(features)
    return features.astype(np.float16), centroids


def test_reference_by_hand() -> None:
    features = np.array([[3.0, 4.0], [0.0, 0.0], [-2.0, 0.0]], np.float16)
    centroids = np.array([[2.0, 0.0], [0.0, 5.0]])
    np.testing.assert_allclose(cosine_reference(features, centroids), [[0.6, 0.8], [0, 0], [-1, 0]], atol=1e-15)


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize(("d", "c"), [(512, 7), (128, 8), (33, 2), (2048, 7), (1, 3)])
@pytest.mark.parametrize("positive", [False, True])
def test_engine_equals_reference(name: str, d: int, c: int, positive: bool) -> None:
    features, centroids = world(d + c, d=d, c=c, positive=positive)
    chosen, engine = engines.make_engine(name, centroids, device="cpu")
    assert chosen == name
    found, expected = engine(features), cosine_reference(features, centroids)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)
    nearest, margin = rank_classes(found)
    ordered = np.sort(expected, axis=1)
    np.testing.assert_allclose(margin, ordered[:, -1] - ordered[:, -2], rtol=0, atol=2 * TOLERANCE)
    clear = ordered[:, -1] - ordered[:, -2] > 2 * TOLERANCE
    np.testing.assert_array_equal(nearest[clear], expected.argmax(axis=1)[clear])


@pytest.mark.parametrize("name", ENGINES)
def test_scale_of_features_and_centroids_does_not_matter(name: str) -> None:
    features, centroids = world(1, n=300, d=64)
    tiny, huge = (features * np.float16(2.0**-9)), (features * np.float16(2.0**9))
    for scaled, factor in ((tiny, 1e-6), (huge, 1e6)):
        _, engine = engines.make_engine(name, centroids * factor, device="cpu")
        np.testing.assert_allclose(engine(scaled), cosine_reference(scaled, centroids), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", ENGINES)
def test_zero_features_have_cosine_zero_and_no_direction(name: str) -> None:
    features, centroids = world(2, n=5, d=16)
    features[[1, 3]] = 0
    _, engine = engines.make_engine(name, centroids, device="cpu")
    cosine = engine(features)
    np.testing.assert_array_equal(without_direction(cosine), [False, True, False, True, False])
    nearest, margin = rank_classes(cosine)
    assert (nearest[[1, 3]] == 0).all()
    assert (margin[[1, 3]] == 0).all()


@pytest.mark.parametrize("name", ENGINES)
def test_exact_ties_go_to_the_lowest_class(name: str) -> None:
    centroids = np.array([[0.0, 1.0, 1.0], [1.0, 2.0, 0.0], [1.0, 2.0, 0.0], [2.0, 4.0, 0.0]])
    features = np.array([[1.0, 2.0, 0.0], [0.3, 0.7, 0.0]], np.float16)
    _, engine = engines.make_engine(name, centroids, device="cpu")
    nearest, margin = rank_classes(engine(features))
    np.testing.assert_array_equal(nearest, [1, 1])
    np.testing.assert_array_equal(margin, [0, 0])


@pytest.mark.parametrize("name", ENGINES)
def test_slices_and_read_only_memory_change_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    features, centroids = world(3, n=4500, d=32)
    features.setflags(write=False)
    _, engine = engines.make_engine(name, centroids, device="cpu")
    whole = engine(features)
    pieces = np.concatenate([engine(features[i : i + 999]) for i in range(0, len(features), 999)])
    np.testing.assert_allclose(pieces, whole, rtol=0, atol=TOLERANCE)
    assert engine(features[:0]).shape == (0, 7)
    assert engine(features[:1]).shape == (1, 7)


def test_rank_classes_by_hand() -> None:
    cosine = np.array([[0.5, 0.25, 0.5], [-0.5, 0.75, 0.25]], np.float32)
    nearest, margin = rank_classes(cosine)
    np.testing.assert_array_equal(nearest, [0, 1])
    np.testing.assert_array_equal(margin, np.array([0, 0.5], np.float32))


def test_simsimd_without_avx512_keeps_the_tolerance() -> None:
    capabilities = [name for name in ("sapphire", "genoa", "ice", "skylake") if simsimd.get_capabilities().get(name)]
    features, centroids = world(4)
    _, engine = engines.make_engine("simsimd", centroids)
    try:
        for name in capabilities:
            simsimd.disable_capability(name)
        np.testing.assert_allclose(engine(features), cosine_reference(features, centroids), rtol=0, atol=TOLERANCE)
    finally:
        for name in capabilities:
            simsimd.enable_capability(name)


def test_auto_takes_faiss_only_where_a_gpu_may_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    _, centroids = world(5, d=8)
    monkeypatch.setattr(engines, "num_gpus", lambda: 0)
    assert engines.make_engine("auto", centroids)[0] == "simsimd"
    monkeypatch.setattr(engines, "num_gpus", lambda: 1)
    assert engines.make_engine("auto", centroids, device="cpu")[0] == "simsimd"


@pytest.mark.gpu
def test_faiss_on_the_gpu_equals_reference() -> None:
    if faiss.get_num_gpus() == 0:
        pytest.skip("no NVIDIA GPU here")
    features, centroids = world(6, n=200_000)
    _, engine = engines.make_engine("auto", centroids)
    np.testing.assert_allclose(engine(features), cosine_reference(features, centroids), rtol=0, atol=TOLERANCE)
