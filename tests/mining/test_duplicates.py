"""Searches over perceptual hashes find what comparing all with all finds, and planted copies of photographs."""

import io
import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image, ImageOps

from fer_pipeline.alignment.aligner import Aligner, AlignmentSettings, Crop
from fer_pipeline.alignment.cascade import DetectionSettings
from fer_pipeline.alignment.perceptual import POSES, hash_crops
from fer_pipeline.artifacts.contents import HASHED, MIRROR, Hashes, write_contents
from fer_pipeline.artifacts.scores import read_scores
from fer_pipeline.mining import duplicates
from fer_pipeline.mining.candidates import collect_candidates
from fer_pipeline.mining.duplicates import DuplicateSettings, close_pairs, find_lookalikes, find_near_test, group_faces
from tests.project import project_settings
from tests.stages.test_mine import CLASSES, write_pool


def flip_bits(hashes: Hashes, number: int, rng: np.random.Generator) -> Hashes:
    """The hashes with that many other bits each."""
    bits = np.unpackbits(hashes.view(np.uint8).reshape(len(hashes), -1), axis=1)
    for row in bits:
        row[rng.choice(256, number, replace=False)] ^= 1
    return np.packbits(bits, axis=1).view("<u8")


def draw_hashes(number: int, rng: np.random.Generator) -> Hashes:
    """Random hashes, of which a third are near others, mirrored or not, or equal to them."""
    plain = rng.integers(0, 2**64, (number, 4), np.uint64)
    near = [flip_bits(plain[k : k + 1] ^ MIRROR * (k % 2), k % 40, rng) for k in range(number // 2)]
    hashes = np.concatenate([plain, *near])
    return hashes[rng.permutation(len(hashes))]


def all_bits(first: Hashes, second: Hashes) -> np.ndarray:
    return np.bitwise_count(first[:, None] ^ second[None]).sum(axis=2)


@pytest.mark.parametrize(("bits", "chunk"), [(0, 2**21), (15, 2**21), (16, 2**21), (31, 2**21), (15, 3)])
def test_buckets_find_what_comparing_all_finds(bits: int, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "PAIRS_AT_A_TIME", chunk)
    rng = np.random.default_rng(bits)
    first = draw_hashes(30 if chunk == 3 else 300, rng)
    second = np.concatenate([flip_bits(first[:30], max(bits, 1), rng), draw_hashes(40, rng)])
    for other in (second, first):
        between = all_bits(first, other)
        expected = {pair: between[pair] for pair in zip(*np.nonzero(between <= bits), strict=True)}
        if other is first:
            expected = {(i, j): value for (i, j), value in expected.items() if i < j}
        parts = close_pairs(first, other, bits)
        met = {(i, j): n for part in parts for i, j, n in zip(*(one.tolist() for one in part), strict=True)}
        if other is first:
            met = {(min(pair), max(pair)): value for pair, value in met.items()}
        assert met == expected


@pytest.mark.parametrize("held", [1, 2**23])
def test_groups_are_the_chains_of_all_pairs(held: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "MOST_PAIRS", held)
    hashes = draw_hashes(200, np.random.default_rng(4))
    hashes = np.concatenate([hashes, hashes[:60]])
    near = np.minimum(all_bits(hashes, hashes), all_bits(hashes, hashes ^ MIRROR)) <= 12
    label = np.arange(len(hashes))
    for _ in range(len(hashes)):  # the least number of a chain spreads along it
        spread = np.where(near, label, len(label)).min(axis=1)
        if (spread == label).all():
            break
        label = spread
    expected = {tuple(np.flatnonzero(label == one)) for one in label if (label == one).sum() > 1}
    members, group = group_faces(hashes, 12)
    assert {tuple(members[group == one]) for one in group} == expected
    assert len(expected) > 60


def write_hashes(path: Path, split: str, hashes: list[Hashes]) -> None:
    """A file of contents: of each face its hashes."""
    name, number = path.stem, len(hashes)
    columns = [
        [f"{name}/{i}" for i in range(number)], [split] * number, [None] * number,
        [i.to_bytes(16, "big") for i in range(number)], [one.tobytes() for one in hashes],
    ]  # fmt: skip
    write_contents(path, [pa.table(columns, schema=HASHED)], HASHED)


def test_a_test_face_is_near_by_any_of_its_poses(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    tests = [rng.integers(0, 2**64, (5, 4), np.uint64) for _ in range(20)]
    pool = [flip_bits(one[k % 5][None] ^ MIRROR * (k % 2), 3 * k, rng)[0] for k, one in enumerate(tests)]
    for face, one in zip(pool, tests, strict=True):
        face[0] = one[0, 0] ^ np.uint64(rng.integers(0, 2**16))  # of the first word the first pose decides
    hashes = np.array([*pool, *draw_hashes(300, rng)])
    write_hashes(tmp_path / "film.parquet", "test", tests)
    pairs, names = find_near_test(hashes, tmp_path / "film.parquet", 64)
    both = [[np.minimum(all_bits(hashes, one), all_bits(hashes, one ^ MIRROR)).min(axis=1)] for one in tests]
    first = np.stack([one[0] for one in tests])
    low = [np.bitwise_count(hashes[:, :1] ^ one[:, 0]) for one in (first, first ^ MIRROR)]
    near = np.where(np.minimum(*low).T <= duplicates.COARSE, np.concatenate(both), 999)
    rows = np.flatnonzero(near.min(axis=0) <= 64)
    assert len(rows) >= 10
    assert pairs.row.tolist() == rows.tolist()
    assert pairs.bits.tolist() == near.min(axis=0)[rows].tolist()
    assert [names[k].as_py() for k in pairs.other] == [f"film/{k}" for k in near.argmin(axis=0)[rows]]


def encode(picture: Image.Image, quality: int = 95) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=quality)
    return stream.getvalue()


PLANTED: dict[str, Callable[[Image.Image], Image.Image]] = {
    "exact": lambda picture: picture,
    "flipped": ImageOps.mirror,
    "resized": lambda picture: picture.resize(
        (picture.width * 9 // 10, picture.height * 9 // 10), Image.Resampling.BICUBIC
    ),
    "brightened": lambda picture: picture.point([min(255, round(1.2 * value)) for value in range(256)] * 3),
}


def test_no_two_of_the_sample_photographs_look_alike(sample_faces: Path, tmp_path: Path) -> None:
    """Each picture of LFW is another one: no false pair within the pool, nor with some of them as test faces."""
    files = sorted((sample_faces / "lfw" / "images").iterdir())
    aligner = Aligner(AlignmentSettings(border="constant", detection=DetectionSettings(beyond_frame="pad")))
    found = aligner.align([file.read_bytes() for file in files])
    crops = np.stack([one.image for one in found if isinstance(one, Crop)])
    assert len(crops) > 870
    tests, others = crops[::16], crops[np.arange(len(crops)) % 16 > 0]
    write_hashes(tmp_path / "film.parquet", "test", [hash_crops(one[None], POSES)[0].view("<u8") for one in tests])
    write_hashes(tmp_path / "street.parquet", "train", [*hash_crops(others).view("<u8")])
    project = project_settings(pools=("street",), targets=("film",))
    assert find_lookalikes(tmp_path, project, DuplicateSettings(pool=31)).pairs.to_pylist() == []


def test_planted_copies_of_photographs_are_found_and_no_others(sample_faces: Path, tmp_path: Path) -> None:
    """Of test photographs by all their variants, each through the detector; persons of the train split are in none."""
    files = sorted((sample_faces / "lfw" / "images").iterdir())[::55]
    pictures = [Image.open(file).convert("RGB") for file in files]
    detection = DetectionSettings(beyond_frame="pad")
    aligner = Aligner(AlignmentSettings(border="constant", detection=detection))

    def hashes(encoded: list[bytes], poses: tuple = POSES[:1]) -> list[Hashes | None]:
        return [
            hash_crops(one.image[None], poses)[0].view("<u8") if isinstance(one, Crop) else None
            for one in aligner.align(encoded)
        ]

    half = len(pictures) // 2
    tests, others = pictures[:half], pictures[half:]
    measured = hashes([*map(encode, tests)], POSES)
    write_hashes(tmp_path / "film.parquet", "test", [one for one in measured if one is not None])
    assert all(one is not None for one in measured)
    planted = [[encode(change(one)) for one in tests] for change in PLANTED.values()]
    planted.append([encode(one, quality=60) for one in tests])
    found = [(k % half, one) for k, one in enumerate(hashes([*itertools.chain(*planted)])) if one is not None]
    number = len(found)  # a face that the detector loses is in no pool
    assert number >= len(planted) * half - 1
    pool = [one for _, one in found] + [one for one in hashes([*map(encode, others)]) if one is not None]
    write_hashes(tmp_path / "street.parquet", "train", pool)
    project = project_settings(pools=("street",), targets=("film",))
    alike = find_lookalikes(tmp_path, project, DuplicateSettings(pool=0))
    pairs = [row for row in alike.pairs.to_pylist() if row["reason"] == "near_test_faces"]
    assert [row["face_id"] for row in pairs] == [f"street/{k}" for k in range(number)]
    assert [row["other_face_id"] for row in pairs] == [f"film/{k}" for k, _ in found]


def test_a_test_face_that_is_kept_is_dropped_for_any_other_reason(tmp_path: Path) -> None:
    """It counts by its first reason all the same."""
    names = ["test", "near", "other", "free"]
    write_pool(tmp_path, "street", [(names, np.tile([0.9, 0.1, 0.0], (4, 1)))])
    scores = read_scores(tmp_path / "street", classes=CLASSES)
    alike = {
        "near_test_faces": {"street": pa.array(["near"])},
        "near_train_faces": {"street": pa.array(["test", "near", "other"])},
    }
    for kept in ((), ("test_faces", "near_test_faces")):
        found = collect_candidates(
            {"street": scores},
            exclude=pa.array([], pa.string()),
            test_faces={"street": pa.array(["test"])},
            kept=kept,
            alike=alike,
        )
        counts = found.counts["street"]
        assert [counts[key] for key in ("test_faces", "near_test_faces", "near_train_faces")] == [1, 1, 1]
        assert [*found.face_ids(np.arange(len(found)))] == ["free"]
