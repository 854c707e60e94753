"""The rule of dominance on blends made by hand, and the shares of the kinds by counting."""

import numpy as np
import pytest

from fer_pipeline.core.expressions import BASIC_7
from fer_pipeline.synthesis.people import Acting, Units, dominant, draw_performance, prototype

RULE = Acting(visible=0.3, faint=0.12, clear=2.0)
STILL = {"unit_spread": 0.0, "asymmetry": 0.0, "companions": 0.0, "stray": 0.0}


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ({}, "neutral"),
        ({"anger": 0.1}, "neutral"),  # nothing to see
        ({"anger": 0.2}, None),  # something, but not clearly
        ({"anger": 0.3}, "anger"),
        ({"anger": 0.8, "fear": 0.4}, "anger"),  # exactly twice
        ({"anger": 0.8, "fear": 0.41}, None),
        ({"fear": 0.35, "happiness": 0.9}, "happiness"),
        ({"fear": 0.5, "happiness": 0.5}, None),
    ],
)
def test_dominance(weights: dict[str, float], expected: str | None) -> None:
    assert dominant(weights, RULE) == expected


def perform(acting: Acting, count: int = 400, expression: str = "anger"):
    rng = np.random.default_rng(0)
    return [draw_performance(rng, acting, expression, BASIC_7) for _ in range(count)]


def test_a_still_actor_shows_the_prototype_exactly() -> None:
    performance = perform(Acting(intensity=(0.7, 0.7), **STILL), 1, "sadness")[0]
    np.testing.assert_allclose(performance.aus, prototype("sadness", 0.7), atol=1e-6)
    assert (performance.kind, performance.dominant, performance.intensity) == (
        "prototype",
        "sadness",
        pytest.approx(0.7),
    )


def test_shares_of_the_kinds() -> None:
    kinds = [performance.kind for performance in perform(Acting(weak=0.2, mixed=0.3, other=0.1), 2000)]
    shares = {kind: kinds.count(kind) / 2000 for kind in ("weak", "mixed", "other", "prototype")}
    assert shares == pytest.approx({"weak": 0.2, "mixed": 0.3, "other": 0.1, "prototype": 0.4}, abs=0.035)


def test_truth_of_each_kind() -> None:
    for performance in perform(Acting(weak=0.25, mixed=0.25, other=0.25)):
        names = performance.detail.split("+")
        if performance.kind == "other":
            assert performance.dominant is None
        elif performance.kind == "mixed":
            assert names[0] == "anger"
            assert len(set(names)) == 2
            assert performance.dominant in (None, "anger")
        elif performance.kind == "weak":
            assert performance.dominant == (
                "anger" if performance.intensity >= 0.3 else "neutral" if performance.intensity < 0.12 else None
            )
        else:
            assert performance.dominant == "anger"


def test_a_neutral_face_is_neutral_and_almost_still() -> None:
    for performance in perform(Acting(), 50, "neutral"):
        assert performance.dominant == "neutral"
        assert performance.aus.max() <= 2 * Acting().stray


def test_blends_pair_only_what_the_classes_know() -> None:
    rng = np.random.default_rng(1)
    for _ in range(100):
        performance = draw_performance(rng, Acting(mixed=1.0), "neutral", ("anger", "fear", "neutral"))
        assert set(performance.detail.split("+")) == {"anger", "fear"}


def test_units_stay_between_0_and_1() -> None:
    for performance in perform(Acting(mixed=0.5, other=0.5, unit_spread=1.0, asymmetry=1.0)):
        assert performance.aus.min() >= 0
        assert performance.aus.max() <= 1


def test_contempt_shows_on_one_side_only() -> None:
    rng = np.random.default_rng(2)
    acting = Acting(intensity=(1.0, 1.0), **STILL)
    sides = [Units(draw_performance(rng, acting, "contempt", ("contempt", "neutral")).aus)[14] for _ in range(20)]
    assert {tuple(side) for side in sides} == {(0.0, 1.0), (1.0, 0.0)}
