"""The troublesome files with the outcome of each, and what the settings change."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fer_pipeline.alignment.aligner import (
    Aligner,
    AlignmentSettings,
    Crop,
    SeveralFaces,
    alignment_fingerprint,
    choose_face,
)
from fer_pipeline.alignment.cascade import DetectedFace, Detector
from fer_pipeline.alignment.pictures import Rejection, decode_picture
from fer_pipeline.alignment.warp import fit_similarity, scale_template
from fer_pipeline.artifacts.faces import encode

UPRIGHT = "naïve Ünïcode 名前 (1).jpg"
BAD = {
    "alpha.png": "",
    "bitflips.jpg": "damaged",
    "bomb.png": "too_many_pixels",
    "cmyk.jpg": "",
    "empty.jpg": "empty",
    "exif_rotated.jpg": "",
    "gray16.png": "",
    UPRIGHT: "",
    "no_face.jpg": "no_face",
    "palette.gif": "",
    "png_inside.jpg": "",
    "strip.jpg": "too_small",
    "text_renamed.jpg": "not_an_image",
    "tiny.png": "too_small",
    "truncated.jpg": "truncated",
    "two_faces.jpg": "",
}


def aligned(settings: AlignmentSettings, *pictures: bytes | Rejection) -> list[Crop | Rejection]:
    return list(Aligner(settings).align(pictures))


@pytest.fixture(scope="module")
def bad(sample_faces: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in (sample_faces / "bad").iterdir()}


def test_every_troublesome_file_has_its_outcome(bad: dict[str, bytes]) -> None:
    assert set(bad) == set(BAD)
    found = aligned(AlignmentSettings(), *(bad[name] for name in BAD))
    reasons = [result.reason if isinstance(result, Rejection) else "" for result in found]
    assert dict(zip(BAD, reasons, strict=True)) == BAD
    # Eight of them are the same photograph in different wrappings: the crops must show the same.
    crops = {name: result for name, result in zip(BAD, found, strict=True) if isinstance(result, Crop)}
    for name, crop in crops.items():
        if name != "two_faces.jpg":
            assert np.abs(crop.image.astype(float) - crops[UPRIGHT].image).mean() < 4, name  # type: ignore[union-attr]


def test_the_rotated_file_is_searched_upright(bad: dict[str, bytes], detector: Detector) -> None:
    rotated, upright = (detector.detect([decode_picture(bad[name])])[0][0] for name in ("exif_rotated.jpg", UPRIGHT))
    off = np.linalg.norm(rotated.landmarks - upright.landmarks, axis=1)
    assert off.max() < 0.02 * np.linalg.norm(upright.landmarks[0] - upright.landmarks[1])
    assert upright.landmarks[0][0] < upright.landmarks[1][0], "the left eye is on the left"
    assert upright.landmarks[:2, 1].max() < upright.landmarks[3:, 1].min(), "the eyes are above the mouth"


def test_two_faces_follow_the_rule(bad: dict[str, bytes], detector: Detector) -> None:
    picture = decode_picture(bad["two_faces.jpg"])
    left, right = sorted(detector.detect([picture])[0], key=lambda face: float(face.box[0]))
    area = {id(face): float(np.prod(face.box[2:] - face.box[:2])) for face in (left, right)}
    assert area[id(right)] > area[id(left)]
    assert left.score > right.score
    for rule, face in (("largest", right), ("highest_score", left)):
        crop = aligned(AlignmentSettings.model_validate({"several_faces": rule}), bad["two_faces.jpg"])[0]
        assert isinstance(crop, Crop)
        assert crop.score == pytest.approx(face.score, abs=1e-5)
    rejected = aligned(AlignmentSettings(several_faces="reject"), bad["two_faces.jpg"])[0]
    assert isinstance(rejected, Rejection)
    assert rejected.reason == "several_faces"


def test_landmarks_lie_near_the_template(bad: dict[str, bytes]) -> None:
    crop = aligned(AlignmentSettings(crop=64), bad[UPRIGHT])[0]
    assert isinstance(crop, Crop)
    assert crop.image.shape == (64, 64, 3)
    assert crop.landmarks is not None
    assert np.linalg.norm(crop.landmarks - scale_template(64), axis=1).max() < 4
    # A least-squares fit leaves nothing that another similarity could mend.
    np.testing.assert_allclose(fit_similarity(crop.landmarks, scale_template(64)), np.eye(2, 3), atol=1e-3)


def test_without_a_face_the_centre_may_be_cut(bad: dict[str, bytes]) -> None:
    crop = aligned(AlignmentSettings(no_face="centre_crop", crop=200), bad["no_face.jpg"])[0]
    assert isinstance(crop, Crop)
    assert crop.landmarks is None
    assert crop.score is None
    np.testing.assert_array_equal(crop.image, decode_picture(bad["no_face.jpg"]))


def test_grey_crops_are_the_luma(bad: dict[str, bytes]) -> None:
    random = np.random.default_rng(4).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    crop = aligned(AlignmentSettings(grey=True, prealigned=True, crop=32), encode(random, format="png"))[0]
    assert isinstance(crop, Crop)
    np.testing.assert_array_equal(crop.image[..., 0], np.asarray(Image.fromarray(random).convert("L")))
    assert (crop.image == crop.image[..., :1]).all()


def test_prealigned_crops_pass_through() -> None:
    random = np.random.default_rng(4).integers(0, 256, (112, 112, 3), dtype=np.uint8)
    settings = AlignmentSettings(prealigned=True, crop=112)
    crop = aligned(settings, encode(random, format="png"))[0]
    assert isinstance(crop, Crop)
    np.testing.assert_array_equal(crop.image, random)
    assert crop.landmarks is not None
    np.testing.assert_allclose(crop.landmarks, scale_template(112), rtol=1e-6)
    flat = np.full((112, 112, 3), 77, np.uint8)
    found = aligned(
        AlignmentSettings(prealigned=True, crop=48), encode(flat, format="png"), encode(flat[:50], format="png")
    )
    assert isinstance(found[0], Crop)
    np.testing.assert_array_equal(found[0].image, flat[:48, :48])
    assert isinstance(found[1], Rejection)
    assert found[1].reason == "not_square"


def test_results_keep_the_order_of_the_pictures(bad: dict[str, bytes]) -> None:
    given = [Rejection("unreadable"), bad[UPRIGHT], b"", bad["two_faces.jpg"], bad["no_face.jpg"]] * 30
    found = aligned(AlignmentSettings(crop=32), *given)
    outcomes = [result.reason if isinstance(result, Rejection) else "crop" for result in found]
    assert outcomes == ["unreadable", "crop", "empty", "crop", "no_face"] * 30


def test_the_fingerprint_follows_what_changes_crops() -> None:
    plain = AlignmentSettings()
    changes = [
        {"crop": 64},
        {"border": "constant"},
        {"grey": True},
        {"detection": {"min_face": 30}},
        {"prealigned": True},
    ]
    others = [AlignmentSettings.model_validate(change) for change in changes]
    assert len({alignment_fingerprint(settings) for settings in (plain, *others)}) == 6
    ready = [
        AlignmentSettings.model_validate({"prealigned": True, **change})
        for change in ({}, {"detection": {"min_face": 30}})
    ]
    assert alignment_fingerprint(ready[0]) == alignment_fingerprint(ready[1]), "no detection, no dependence on it"


def face(x1: float, y1: float, x2: float, y2: float, score: float) -> DetectedFace:
    return DetectedFace(np.array([x1, y1, x2, y2], np.float32), score, np.zeros((5, 2), np.float32))


LARGE = face(0, 0, 50, 50, 0.8)
CENTRAL = face(90, 40, 110, 60, 0.7)
CERTAIN = face(170, 70, 190, 90, 0.99)


@pytest.mark.parametrize(
    ("rule", "expected"), [("largest", LARGE), ("most_central", CENTRAL), ("highest_score", CERTAIN)]
)
def test_rules(rule: SeveralFaces, expected: DetectedFace) -> None:
    assert choose_face([LARGE, CENTRAL, CERTAIN], height=100, width=200, rule=rule) is expected
    assert choose_face([CERTAIN, CENTRAL, LARGE], height=100, width=200, rule=rule) is expected


@pytest.mark.parametrize("rule", ["largest", "most_central"])
def test_ties_go_to_the_more_certain(rule: SeveralFaces) -> None:
    twin = face(0, 0, 50, 50, 0.9)
    assert choose_face([LARGE, twin], height=50, width=50, rule=rule) is twin


def test_rejections() -> None:
    with pytest.raises(Rejection, match="no_face"):
        choose_face([], height=1, width=1, rule="largest")
    with pytest.raises(Rejection, match="several_faces"):
        choose_face([LARGE, CENTRAL], height=1, width=1, rule="reject")
    assert choose_face([LARGE], height=1, width=1, rule="reject") is LARGE
