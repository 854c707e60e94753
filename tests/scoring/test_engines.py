"""Every engine against the float64 reference, and the reference against cosines computed by hand."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fer_pipeline.core.errors import ConfigError
from fer_pipeline.scoring import engines, kernel
from fer_pipeline.scoring.engines import TOLERANCE, Head, cosine_reference, rank_classes, without_direction

ENGINES = ("numpy", "llvm", "faiss")


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
@pytest.mark.parametrize(("d", "c"), [(512, 7), (128, 8), (33, 2), (2048, 7), (1, 3), (100, 15), (48, 64)])
@pytest.mark.parametrize("positive", [False, True])
def test_engine_equals_reference(name: str, d: int, c: int, positive: bool) -> None:
    features, centroids = world(d + c, d=d, c=c, positive=positive)
    engine = engines.make_engine(name, centroids, device="cpu")
    assert engine.name == name
    found, expected = engine.score([features]), cosine_reference(features, centroids)
    assert found.cosine.dtype == np.float32
    np.testing.assert_allclose(found.cosine, expected, rtol=0, atol=TOLERANCE)
    ordered = np.sort(expected, axis=1)
    np.testing.assert_allclose(found.margin, ordered[:, -1] - ordered[:, -2], rtol=0, atol=2 * TOLERANCE)
    clear = ordered[:, -1] - ordered[:, -2] > 2 * TOLERANCE
    np.testing.assert_array_equal(found.nearest[clear], expected.argmax(axis=1)[clear])


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize(("d", "c"), [(512, 7), (33, 2), (100, 15)])
def test_logits_equal_the_linear_layer_and_change_no_cosine(name: str, d: int, c: int) -> None:
    features, centroids = world(d + c, d=d, c=c)
    rng = np.random.default_rng(c)
    head = Head(rng.standard_normal((c, d)).astype(np.float32), rng.standard_normal(c).astype(np.float32))
    found = engines.make_engine(name, centroids, head, device="cpu").score([features[:99], features[99:]])
    expected = features.astype(np.float64) @ head.weight.T.astype(np.float64) + head.bias
    scale = np.linalg.norm(features.astype(np.float64), axis=1)[:, None]
    np.testing.assert_allclose(found.logit / scale, expected / scale, rtol=0, atol=2e-5)
    plain = engines.make_engine(name, centroids, device="cpu").score([features])
    assert plain.logit is None
    np.testing.assert_array_equal(found.nearest, plain.nearest)
    np.testing.assert_allclose(found.cosine, plain.cosine, rtol=0, atol=0 if name == "llvm" else TOLERANCE)


@pytest.mark.parametrize("name", ENGINES)
def test_a_single_class_is_everybodys_and_its_margin_infinite(name: str) -> None:
    features, centroids = world(7, n=50, d=20, c=1)
    found = engines.make_engine(name, centroids, device="cpu").score([features])
    np.testing.assert_allclose(found.cosine, cosine_reference(features, centroids), rtol=0, atol=TOLERANCE)
    assert found.nearest.tolist() == [0] * 50
    assert found.margin.tolist() == [np.inf] * 50


@pytest.mark.parametrize("name", ENGINES)
def test_scale_of_features_and_centroids_does_not_matter(name: str) -> None:
    features, centroids = world(1, n=300, d=64)
    tiny, huge = (features * np.float16(2.0**-9)), (features * np.float16(2.0**9))
    for scaled, factor in ((tiny, 1e-6), (huge, 1e6)):
        engine = engines.make_engine(name, centroids * factor, device="cpu")
        np.testing.assert_allclose(
            engine.score([scaled]).cosine, cosine_reference(scaled, centroids), rtol=0, atol=TOLERANCE
        )


@pytest.mark.parametrize("name", ENGINES)
def test_the_ends_of_half_precision_are_read_right(name: str) -> None:
    """Subnormal numbers down to 2**-24, and the largest: 65,504."""
    smallest, largest = np.float16(2.0**-24), np.finfo(np.float16).max
    features = np.array([[smallest, 3 * smallest, 0], [largest, -largest, largest], [-smallest, 0, 0]], np.float16)
    centroids = np.array([[1.0, 2.0, 3.0], [-1.0, 0.5, 0.25]])
    found = engines.make_engine(name, centroids, device="cpu").score([features]).cosine
    np.testing.assert_allclose(found, cosine_reference(features, centroids), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", ENGINES)
def test_zero_features_have_cosine_zero_and_no_direction(name: str) -> None:
    features, centroids = world(2, n=5, d=16)
    features[[1, 3]] = 0
    found = engines.make_engine(name, centroids, device="cpu").score([features])
    np.testing.assert_array_equal(without_direction(found.cosine), [False, True, False, True, False])
    assert (found.nearest[[1, 3]] == 0).all()
    assert (found.margin[[1, 3]] == 0).all()


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("c", [1, 7])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_has_no_margin_and_spoils_no_neighbour(name: str, c: int, value: float) -> None:
    features, centroids = world(3, n=9, d=32, c=c)
    engine = engines.make_engine(name, centroids, device="cpu")
    clean = engine.score([features])
    features[4, 5] = value
    found = engine.score([features])
    assert np.flatnonzero(np.isnan(found.margin)).tolist() == [4]
    others = np.arange(9) != 4
    np.testing.assert_allclose(found.cosine[others], clean.cosine[others], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", ENGINES)
def test_exact_ties_go_to_the_lowest_class(name: str) -> None:
    centroids = np.array([[0.0, 1.0, 1.0], [1.0, 2.0, 0.0], [1.0, 2.0, 0.0], [2.0, 4.0, 0.0]])
    features = np.array([[1.0, 2.0, 0.0], [0.3, 0.7, 0.0]], np.float16)
    found = engines.make_engine(name, centroids, device="cpu").score([features])
    np.testing.assert_array_equal(found.nearest, [1, 1])
    np.testing.assert_array_equal(found.margin, [0, 0])


@pytest.mark.parametrize("name", ENGINES)
def test_slices_and_read_only_memory_change_nothing(name: str) -> None:
    features, centroids = world(3, n=4500, d=32)
    features.setflags(write=False)
    engine = engines.make_engine(name, centroids, device="cpu")
    whole = engine.score([features]).cosine
    pieces = engine.score([features[i : i + 999] for i in range(0, len(features), 999)]).cosine
    np.testing.assert_allclose(pieces, whole, rtol=0, atol=TOLERANCE)
    assert engine.score([features[:0]]).cosine.shape == (0, 7)
    assert engine.score([]).cosine.shape == (0, 7)
    assert engine.score([features[:1]]).cosine.shape == (1, 7)


@pytest.mark.parametrize("d", [512, 33])
@pytest.mark.parametrize("at_once", [2, 6, 14])
def test_the_kernel_gives_a_row_the_same_bits_wherever_it_stands(d: int, at_once: int) -> None:
    """Neighbours, parts, slices, memory that is not aligned, and the sums that go together in registers."""
    features, centroids = world(4, n=700, d=d)
    head = Head(np.ascontiguousarray(centroids[::-1], np.float32), np.ones(len(centroids), np.float32))
    whole = engines.make_engine("llvm", centroids, head).score([features])
    cuts = [0, 1, 2, 255, 255, 400, 700]
    parts = [features[start:stop] for start, stop in pairwise(cuts)]
    odd = np.empty(features.nbytes + 1, np.uint8)[1:]
    odd[:] = features.reshape(-1).view(np.uint8)
    other = engines.llvm_engine(centroids, head, at_once=at_once)
    for found in (
        other.score(parts),
        other.score([odd.view(np.float16).reshape(-1, d)]),
        other.score([np.asfortranarray(features)]),
    ):
        assert found.cosine.tobytes() == whole.cosine.tobytes()
        assert found.nearest.tobytes() == whole.nearest.tobytes()
        assert found.margin.tobytes() == whole.margin.tobytes()
        assert found.logit.tobytes() == whole.logit.tobytes()


class Features(dict):
    """What a processor can do, as llvmlite tells it."""

    def flatten(self) -> str:
        return ",".join(f"{'+' if has else '-'}{name}" for name, has in self.items())


@pytest.mark.skipif(not kernel.llvm.get_host_cpu_features().get("avx512f"), reason="this processor has no AVX-512")
def test_a_processor_of_narrower_registers_gives_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    features, centroids = world(10, n=300, d=100, c=9)
    wide = engines.llvm_engine(centroids).score([features])
    able = {name: has and "avx512" not in name for name, has in kernel.llvm.get_host_cpu_features().items()}
    monkeypatch.setattr(kernel.llvm, "get_host_cpu_features", lambda: Features(able))
    monkeypatch.setattr(kernel.llvm, "get_host_cpu_name", lambda: "haswell")
    narrow = engines.llvm_engine(centroids).score([features])
    assert narrow.cosine.tobytes() == wide.cosine.tobytes()
    assert narrow.margin.tobytes() == wide.margin.tobytes()


def test_the_kernels_sums_are_fused_and_folded_in_halves() -> None:
    """The order of every sum is written out here: no processor's vectors may change it."""
    rng = np.random.default_rng(8)
    row, unit = rng.standard_normal(48).astype(np.float16), rng.standard_normal(48)
    unit /= np.linalg.norm(unit)

    def total(one: np.ndarray, other: np.ndarray) -> np.float32:
        lanes = np.zeros(16, np.float32)
        for start in range(0, 48, 16):  # in double precision a product of two singles is exact
            exact = one[start : start + 16].astype(np.float64) * other[start : start + 16].astype(np.float64)
            lanes = (lanes + exact).astype(np.float32)
        while len(lanes) > 1:
            lower, upper = np.split(lanes, 2)
            lanes = lower + upper
        return lanes[0]

    cosine, nearest, margin = np.empty((1, 1), np.float32), np.empty(1, np.int64), np.empty(1, np.float32)
    kernel.Kernel(unit[None]).fill([row[None]], cosine, nearest, margin)
    assert cosine[0, 0] == total(row, unit.astype(np.float32)) / np.sqrt(total(row, row))


def test_the_kernel_ranks_as_numpy_does() -> None:
    """Few different numbers, so that there are many ties, and some rows that are zero or not finite."""
    rng = np.random.default_rng(9)
    centroids = np.concatenate([np.eye(6), np.eye(6)[:3]])
    features = rng.integers(-1, 2, (4000, 6)).astype(np.float16)
    features[::97, 2] = np.inf
    found = engines.make_engine("llvm", centroids).score([features])
    nearest, margin = rank_classes(found.cosine)
    assert found.nearest.tobytes() == nearest.tobytes()
    np.testing.assert_array_equal(found.margin, margin)
    assert np.isnan(found.margin).sum() == len(features[::97])


@given(
    arrays(np.float32, st.tuples(st.integers(0, 30), st.integers(1, 9)), elements=st.sampled_from([-0.5, 0, 0.25, 1]))
)
def test_rank_classes_equals_sorting(cosine: np.ndarray) -> None:
    for laid_out in (cosine, np.asfortranarray(cosine)):
        nearest, margin = rank_classes(laid_out)
        np.testing.assert_array_equal(nearest, cosine.argmax(axis=1))
        best = np.sort(np.concatenate([cosine, np.full((len(cosine), 1), -np.inf, np.float32)], axis=1), axis=1)
        np.testing.assert_array_equal(margin, best[:, -1] - best[:, -2])


def test_slices_keep_every_row_in_order() -> None:
    rows = np.arange(1, 41, dtype=np.float16).reshape(20, 2)
    for cuts in ([0, 20], [0, 1, 1, 4, 17, 20], [0, 3, 6, 9, 12, 15, 18, 20], [0, 0, 20, 20]):
        parts = [rows[start:stop] for start, stop in pairwise(cuts)]
        for size in (1, 3, 6, 20, 50):
            pieces = []

            def cosines(piece: np.ndarray, pieces: list[np.ndarray] = pieces) -> np.ndarray:
                pieces.append(piece)
                return piece.astype(np.float32)

            found = engines.score_in_slices(cosines, np.eye(2), size=size)(parts)
            np.testing.assert_array_equal(found.cosine, rows)
            np.testing.assert_array_equal(np.concatenate(pieces), rows)
            assert [len(piece) for piece in pieces[:-1]] == [size] * (len(pieces) - 1)
    assert engines.score_in_slices(cosines, np.eye(2), size=4)([rows[:0]]).cosine.shape == (0, 2)


def test_auto_takes_what_the_machine_has(monkeypatch: pytest.MonkeyPatch) -> None:
    _, centroids = world(5, d=8)
    monkeypatch.setattr(engines, "num_gpus", lambda: 0)
    assert engines.make_engine("auto", centroids).name == "llvm"
    monkeypatch.setattr(engines, "num_gpus", lambda: 1)
    assert engines.make_engine("auto", centroids, device="cpu").name == "llvm"
    monkeypatch.setattr(kernel.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(kernel.llvm, "get_host_cpu_features", lambda: {"avx": True})
    assert engines.make_engine("auto", centroids, device="cpu").name == "numpy"
    with pytest.raises(ConfigError, match="lacks F16C or FMA") as raised:
        engines.make_engine("llvm", centroids)
    assert "\n" not in str(raised.value)
