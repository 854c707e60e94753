"""What is kept in the store belongs to the `VERSION`s of the code that made it.

Whoever changes the bytes of crops or shards raises the `VERSION` beside what was changed and writes the new digest down
here: else the stage would go on linking old shards. Landmarks are rounded to what other processors agree on.
"""

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from fer_pipeline.alignment import aligner, cascade, shards
from fer_pipeline.alignment.aligner import Aligner, AlignmentSettings, Crop
from fer_pipeline.alignment.cascade import DetectionSettings, Detector
from fer_pipeline.alignment.shards import LabelledSample, ShardFormat, ShardJob, make_shard
from fer_pipeline.artifacts.faces import encode
from fer_pipeline.core.samples import Sample
from fer_pipeline.core.settings import DatasetSettings
from fer_pipeline.datasets import fer2013
from fer_pipeline.stages import align
from fer_pipeline.synthesis.sets import SetSettings
from tests.project import project_settings
from tests.synthesis.drawing import draw_set


def digest(*parts: bytes) -> str:
    return hashlib.sha256(b"|".join(parts)).hexdigest()[:16]


@pytest.fixture(scope="module")
def drawings() -> list[np.ndarray]:
    """Six drawn portraits of 128 px; one of them enlarged, so that it is searched in a shrunken copy."""
    images, _ = draw_set(SetSettings(splits={"test": 6}, styles={"anchor": 0.5, "wild": 0.5}), 3, "versions")
    # Two machines draw some last bits differently; what the alignment makes of both is the same.
    drawn = digest(*(image.tobytes() for image in images))
    assert drawn in ("6bed1ddee700dec0", "d9ccbf7719142e08"), "the drawings changed, not the alignment"
    return [*images[:5], np.repeat(np.repeat(images[5], 5, axis=0), 5, axis=1)]


@pytest.fixture(scope="module")
def photographs(sample_faces: Path) -> list[np.ndarray]:
    files = sorted((sample_faces / "lfw" / "images").iterdir())[20:26]
    return [np.asarray(Image.open(file).convert("RGB")) for file in files]


def detections(images: list[np.ndarray], **settings: Any) -> str:
    """The digest of boxes and landmarks rounded to half a pixel, and of scores to hundredths."""
    found = Detector(DetectionSettings.model_validate(settings)).detect(images)
    rows = [[[*face.box, *face.landmarks.ravel(), 50 * face.score] for face in faces] for faces in found]
    return digest(json.dumps([np.rint(np.multiply(2, row)).tolist() for row in rows]).encode())


def test_detections_belong_to_the_version_of_the_cascade(drawings: list[np.ndarray]) -> None:
    assert cascade.VERSION == 1
    assert detections(drawings, max_side=512) == "15ee74468d6b39ac"
    assert detections([image[20:100, :90] for image in drawings], beyond_frame="pad", min_face=30) == "374cae324c9d276d"


def test_photographs_belong_to_the_version_of_the_cascade(photographs: list[np.ndarray]) -> None:
    assert cascade.VERSION == 1
    assert detections(photographs) == "4ce531feac81be78"
    assert (
        detections([image[20:, 30:330] for image in photographs], beyond_frame="pad", max_side=150)
        == "ddcd5fa6b78755b3"
    )


def crops(images: list[np.ndarray], **settings: Any) -> str:
    """The digest of the crops' pixels and of their landmarks rounded to half a pixel."""
    results = list(Aligner(AlignmentSettings.model_validate(settings)).align(encode(image) for image in images))
    parts = [
        result.image.tobytes() + np.rint(2 * (0 if result.landmarks is None else result.landmarks)).tobytes()
        if isinstance(result, Crop)
        else result.reason.encode()
        for result in results
    ]
    return digest(*parts)


CROPS = {
    "default": ({}, "0b8907c0cd3acf21"),
    "small": ({"crop": 48, "border": "constant", "grey": True}, "a91ffc360e160f10"),
    "several": ({"several_faces": "most_central", "no_face": "centre_crop", "crop": 64}, "49ca256d5b816aa6"),
    "prealigned": ({"prealigned": True, "crop": 64}, "0ab0d81f81ea1cf9"),
}


@pytest.mark.parametrize("name", CROPS)
def test_crops_belong_to_the_version_of_the_aligner(name: str, drawings: list[np.ndarray]) -> None:
    settings, expected = CROPS[name]
    assert (aligner.VERSION, cascade.VERSION) == (2, 1)
    noise = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    pair = np.concatenate([drawings[0][20:120, 20:110], np.zeros((100, 60, 3), np.uint8), drawings[1][:100]], axis=1)
    assert crops([*drawings, pair, noise, noise[:, :90], noise[:9]], **settings) == expected


def test_crops_of_photographs_belong_to_the_version_of_the_aligner(photographs: list[np.ndarray]) -> None:
    assert (aligner.VERSION, cascade.VERSION) == (2, 1)
    assert crops(photographs) == "82340752401e6761"


@pytest.mark.parametrize(("format", "expected"), [("png", "85b69084f7b24b2a"), ("jpeg", "20fbd903de98b7a5")])
def test_shards_belong_to_their_version(format: Any, expected: str, drawings: list[np.ndarray], tmp_path: Path) -> None:
    """Columns, metadata, values, decoded pixels and the manifest; not Parquet's own bytes."""
    samples = [
        LabelledSample(Sample(f"{number}", "train", None, f"p{number}", Path("x")), label, f"x#{number}")
        for number, label in enumerate((1, None, 0, 1, None, 0, None))
    ]
    pictures = [*map(encode, drawings[:5]), b"", b"no picture"]
    make_shard(
        tmp_path,
        ShardJob("set", "train", 0, tuple(samples)),
        format=ShardFormat(("anger", "joy"), format, 90),
        aligner=Aligner(AlignmentSettings(prealigned=True, crop=48)),
        read=lambda sample: pictures[int(sample.id)],
        advance=lambda items: None,
    )
    file = pq.ParquetFile(tmp_path / shards.FACES)
    rows = file.read().to_pylist()
    pixels = [np.asarray(Image.open(io.BytesIO(row.pop("image")["bytes"]))).tobytes() for row in rows]
    schema = file.schema_arrow
    columns = [(field.name, str(field.type)) for field in schema]
    texts = repr((columns, sorted((schema.metadata or {}).items()), rows)).encode()
    manifest = (tmp_path / "manifest.json").read_bytes()
    assert shards.VERSION == 1
    assert digest(texts, *pixels, manifest) == expected


def key(tmp_path: Path, **config: Any) -> str:
    """The key of the first shard of a row of FER2013."""
    (tmp_path / "fer2013.csv").write_text("emotion,pixels,Usage\n0,1 2 3 4,Training\n")
    dataset = DatasetSettings(adapter="fer2013", path=tmp_path, options={"size": 2})
    settings = align.Config.model_validate(config)
    project = project_settings(datasets={"set": dataset})
    work = align.plan(settings, project, name="set", store=tmp_path / "store")
    return next(iter(work.jobs)).key


@pytest.mark.parametrize("module", [cascade, aligner, shards, fer2013])
def test_every_version_is_part_of_the_key(module: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, prealigned = key(tmp_path), key(tmp_path, prealigned=True)
    monkeypatch.setattr(module, "VERSION", 99)
    assert key(tmp_path) != before
    assert (key(tmp_path, prealigned=True) != prealigned) == (module is not cascade), "no detection, no dependence"


def test_the_key_holds_what_the_shards_say_of_themselves(tmp_path: Path) -> None:
    """Also of prealigned sets, whose crops do not depend on it: `predict` reads it there."""
    keys = {key(tmp_path, prealigned=True, **change) for change in ({}, {"detection": {"min_face": 30}})}
    assert len(keys) == 2
