"""MTCNN, which never saw a drawing, finds the drawn faces and puts the landmarks where they were drawn."""

import numpy as np
import pytest

from fer_pipeline.alignment.cascade import Detector
from fer_pipeline.synthesis.sets import Row, SetSettings
from tests.synthesis.drawing import draw_set

STYLES = ("anchor", "film", "press", "wild")


@pytest.fixture(scope="module")
def detections() -> list[tuple[Row, np.ndarray | None]]:
    """Frontal portraits of every style, and the landmarks of the face that was found in each."""
    detector = Detector()
    pairs = []
    for style in STYLES:
        images, rows = draw_set(SetSettings(splits={"test": 60}, styles={style: 1.0}), 100, style)
        for start in range(0, len(images), 16):
            for row, faces in zip(rows[start : start + 16], detector.detect(images[start : start + 16]), strict=True):
                if row.frontal:
                    largest = max(faces, key=lambda face: float(face.box[2] - face.box[0]), default=None)
                    pairs.append((row, None if largest is None else largest.landmarks))
    return pairs


def test_at_least_99_of_100_frontal_faces_are_found(detections: list[tuple[Row, np.ndarray | None]]) -> None:
    assert len(detections) >= 200
    assert np.mean([landmarks is not None for _, landmarks in detections]) >= 0.99


def test_landmarks_lie_on_eyes_nose_and_mouth(detections: list[tuple[Row, np.ndarray | None]]) -> None:
    errors = []
    for row, landmarks in detections:
        if landmarks is not None:
            eyes = np.linalg.norm(row.landmarks[1] - row.landmarks[0])
            errors.append(np.linalg.norm(landmarks - row.landmarks, axis=1) / eyes)
    eyes_and_nose, mouth = np.mean(errors, axis=0)[:3], np.mean(errors, axis=0)[3:]
    assert eyes_and_nose.max() < 0.07
    assert mouth.max() < 0.09  # corners that an expression pulls far out are found a little too near the middle
