"""Every rule picks another one of three faces."""

import numpy as np
import pytest

from fer_pipeline.alignment.cascade import FoundFace
from fer_pipeline.alignment.pictures import Rejection
from fer_pipeline.alignment.selection import SeveralFaces, choose


def face(x1: float, y1: float, x2: float, y2: float, score: float) -> FoundFace:
    return FoundFace(np.array([x1, y1, x2, y2], np.float32), score, np.zeros((5, 2), np.float32))


LARGE = face(0, 0, 50, 50, 0.8)
CENTRAL = face(90, 40, 110, 60, 0.7)
CERTAIN = face(170, 70, 190, 90, 0.99)


@pytest.mark.parametrize(
    ("rule", "expected"), [("largest", LARGE), ("most_central", CENTRAL), ("highest_score", CERTAIN)]
)
def test_rules(rule: SeveralFaces, expected: FoundFace) -> None:
    assert choose([LARGE, CENTRAL, CERTAIN], height=100, width=200, several=rule) is expected
    assert choose([CERTAIN, CENTRAL, LARGE], height=100, width=200, several=rule) is expected


@pytest.mark.parametrize("rule", ["largest", "most_central"])
def test_ties_go_to_the_more_certain(rule: SeveralFaces) -> None:
    twin = face(0, 0, 50, 50, 0.9)
    assert choose([LARGE, twin], height=50, width=50, several=rule) is twin


def test_rejections() -> None:
    with pytest.raises(Rejection, match="no_face"):
        choose([], height=1, width=1, several="largest")
    with pytest.raises(Rejection, match="several_faces"):
        choose([LARGE, CENTRAL], height=1, width=1, several="reject")
    assert choose([LARGE], height=1, width=1, several="reject") is LARGE
