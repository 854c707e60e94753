"""The whole cascade against another implementation's landmarks, and that batches do not change what is found."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fer_pipeline.alignment import cascade
from fer_pipeline.alignment.cascade import DetectedFace, DetectionSettings, Detector


def largest(faces: list[DetectedFace]) -> DetectedFace:
    return max(faces, key=lambda face: (face.box[2] - face.box[0]) * (face.box[3] - face.box[1]))


def eye_distance(landmarks: np.ndarray) -> float:
    return float(np.linalg.norm(landmarks[0] - landmarks[1]))


def test_landmarks_agree_with_another_implementation(sample_faces: Path, detector: Detector) -> None:
    """All 881 pictures; the other implementation's faces are chosen as its default does, by area."""
    lines = (sample_faces / "reference" / "landmarks.jsonl").read_text(encoding="utf-8").splitlines()
    references = [json.loads(line) for line in lines]
    images = [
        np.asarray(Image.open(sample_faces / "lfw" / "images" / one["image"]).convert("RGB")) for one in references
    ]
    found = detector.detect(images)
    assert len(found) == 881
    assert sum(map(bool, found)) >= 0.995 * len(found)
    distances = []
    for faces, reference in zip(found, references, strict=True):
        if faces and reference["landmarks"]:
            areas = [(x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in reference["boxes"]]
            expected = np.array(reference["landmarks"][int(np.argmax(areas))])
            off = np.linalg.norm(largest(faces).landmarks - expected, axis=1)
            distances.append(off / eye_distance(expected))
    assert len(distances) >= 0.995 * len(found)
    assert np.median(distances) <= 0.02
    assert np.percentile(distances, 99) <= 0.10
    # The two are in fact the same arithmetic, which is what makes the percentile hold: see `beyond_frame`.
    assert np.max(distances) <= 0.001


def assert_same(ours: list[DetectedFace], theirs: list[DetectedFace]) -> None:
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one.box, other.box, atol=0.05)
        np.testing.assert_allclose(one.landmarks, other.landmarks, atol=0.05)
        assert one.score == pytest.approx(other.score, abs=1e-4)


@pytest.mark.parametrize("beyond_frame", ["squeeze", "pad"])
def test_what_else_is_in_the_batch_changes_nothing(portraits: list[np.ndarray], beyond_frame: str) -> None:
    """Pictures of one size, of other sizes and without a face, together, alone, in another order."""
    random = np.random.default_rng(0)
    images = [
        *portraits[:4],
        portraits[4][20:300, :310],
        random.integers(0, 256, (64, 90, 3), dtype=np.uint8),
        np.asarray(Image.fromarray(portraits[5]).resize((112, 112))),
        np.zeros((8, 200, 3), np.uint8),
        portraits[6][:200],
    ]
    detector = Detector(DetectionSettings.model_validate({"beyond_frame": beyond_frame}))
    together = detector.detect(images)
    assert sum(map(bool, together)) >= 6
    for faces, image in zip(together, images, strict=True):
        assert_same(faces, detector.detect([image])[0])
    for faces, again in zip(together, reversed(detector.detect(images[::-1])), strict=True):
        assert_same(faces, again)


def test_small_calls_find_the_same(
    portraits: list[np.ndarray], detector: Detector, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = detector.detect(portraits[:5])
    monkeypatch.setattr(cascade, "PIXELS_PER_CALL", 1)
    monkeypatch.setattr(cascade, "CROPS_PER_CALL", 3)
    monkeypatch.setattr(cascade, "IMAGES_PER_CHUNK", 2)
    for ours, theirs in zip(whole, detector.detect(portraits[:5]), strict=True):
        assert_same(ours, theirs)


def test_a_large_picture_is_searched_in_a_shrunken_copy(portraits: list[np.ndarray]) -> None:
    plain = Detector(DetectionSettings()).detect(portraits[:3])
    big = [np.repeat(np.repeat(image, 3, axis=0), 3, axis=1) for image in portraits[:3]]
    found = Detector(DetectionSettings(max_side=350)).detect(big)
    for ours, theirs in zip(found, plain, strict=True):
        # Three pixels for each: the centre of the first is at 1.
        np.testing.assert_allclose(ours[0].landmarks, 3 * theirs[0].landmarks + 1, atol=0.1)
        np.testing.assert_allclose(ours[0].box, 3 * theirs[0].box, atol=0.1)


@settings(max_examples=60, deadline=None)
@given(height=st.integers(65, 400), width=st.integers(65, 400), share=st.floats(0.16, 0.99), seed=st.integers(0, 99))
def test_the_shrunken_copy_is_torchs_to_the_bit(height: int, width: int, share: float, seed: int) -> None:
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    image[: height // 2] = image[0, 0]  # equal pixels, whose mean no rounding may lower
    most = max(64, int(share * max(height, width)))
    size = [max(1, round(side * (most / max(height, width)))) for side in (height, width)]
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    expected = torch.nn.functional.interpolate(pixels, size=size, mode="area")[0].permute(1, 2, 0).to(torch.uint8)
    assert torch.equal(cascade._shrink(image, most, torch.device("cpu")), expected)


def test_faces_cut_by_the_frame_are_better_padded(portraits: list[np.ndarray]) -> None:
    """Landmarks of whole faces are the truth for the same faces cut to their boxes."""
    detectors = {mode: Detector(DetectionSettings(beyond_frame=mode)) for mode in ("squeeze", "pad")}
    whole = [np.pad(image, ((150, 150), (150, 150), (0, 0)), mode="edge") for image in portraits]
    errors: dict[str, list[float]] = {"squeeze": [], "pad": []}
    for image, faces in zip(whole, detectors["pad"].detect(whole), strict=True):
        if not faces:
            continue
        truth = largest(faces)
        x1, y1, x2, y2 = truth.box.round().astype(int)
        cut = np.ascontiguousarray(image[max(y1, 0) : y2, max(x1, 0) : x2])
        for mode, detector in detectors.items():
            for face in detector.detect([cut])[0][:1]:
                off = np.linalg.norm(face.landmarks + np.maximum([x1, y1], 0) - truth.landmarks, axis=1)
                errors[mode].append(float(np.median(off)) / eye_distance(truth.landmarks))
    assert len(errors["pad"]) >= 8
    assert np.median(errors["pad"]) < 0.04 < np.median(errors["squeeze"])


def test_a_larger_smallest_face_leaves_small_faces_out(portraits: list[np.ndarray]) -> None:
    small = np.full((300, 300, 3), 127, np.uint8)
    small[100:160, 100:160] = np.asarray(Image.fromarray(portraits[3]).resize((60, 60)))
    assert len(Detector(DetectionSettings(min_face=20)).detect([small])[0]) == 1
    assert Detector(DetectionSettings(min_face=120)).detect([small]) == [[]]


def test_nothing_in_nothing_out(detector: Detector) -> None:
    assert detector.detect([]) == []
    assert detector.detect([np.zeros((1, 1, 3), np.uint8)]) == [[]]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU")
def test_a_gpu_finds_the_same(portraits: list[np.ndarray], detector: Detector) -> None:
    for ours, theirs in zip(Detector(device="cuda").detect(portraits), detector.detect(portraits), strict=True):
        np.testing.assert_allclose(ours[0].landmarks, theirs[0].landmarks, atol=0.5)
