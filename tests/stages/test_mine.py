"""`mine` on scores whose result is known by hand, on a simulated pool with truth, and on everything it must refuse."""

import hashlib
import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fer_pipeline.artifacts.contents import CONTENTS, HASHED, write_contents
from fer_pipeline.artifacts.scores import (
    CENTROIDS,
    HELDOUT,
    Centroids,
    read_heldout,
    score_batch,
    score_schema,
    write_centroids,
    write_scores,
)
from fer_pipeline.core.errors import ConfigError, DataError
from fer_pipeline.core.files import file_sha256, read_json
from fer_pipeline.core.settings import RULES, validate
from fer_pipeline.scoring.engines import rank_classes
from fer_pipeline.stages import mine
from tests.project import project_settings

CLASSES = ("anger", "fear", "neutral")


def write_file(
    path: Path,
    names: list[str],
    cosine: np.ndarray,
    label: np.ndarray | None = None,
    logit: np.ndarray | None = None,
) -> None:
    cosine = np.asarray(cosine, np.float32).reshape(-1, 3)
    nearest, margin = rank_classes(cosine)
    logit = None if logit is None else np.asarray(logit, np.float32).reshape(-1, 3)
    schema = score_schema(CLASSES, labelled=label is not None, logits=logit is not None)
    columns = {"cosine": cosine, "nearest": nearest, "margin": margin, "label": label, "logit": logit}
    write_scores(path, schema, [score_batch(schema, face_id=pa.array(names, pa.string()), **columns)])


def simulate(seed: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    """True labels, and cosines that favour them by chance."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 3, n)
    return label, np.clip(0.2 * np.eye(3)[label] + 0.15 * rng.standard_normal((n, 3)), -1, 1)


def write_pool(scores: Path, pool: str, shards: list[tuple[list[str], np.ndarray]], *, heldout: int = 3000) -> None:
    for number, (names, cosine) in enumerate(shards):
        write_file(scores / pool / f"part-{number:05d}.arrow", names, cosine)
    label, cosine = simulate(1234, heldout)
    write_file(scores / pool / HELDOUT, [f"studio/{i}" for i in range(heldout)], cosine, label)
    write_centroids(scores / pool, Centroids(np.eye(3), np.full(3, 5), CLASSES))


def run(config: mine.Config, tmp_path: Path, pools: tuple[str, ...] = ("street",), seed: int = 0, out: str = "mined"):
    project = project_settings(classes=CLASSES, pools=pools, seeds=(seed,), targets=("studio", "film"))
    folder = tmp_path / "contents"
    given = folder if folder.exists() else None
    return mine.run(config, project, scores=tmp_path / "scores", out=tmp_path / out, contents=given)


def pools_of(tmp_path: Path) -> list[dict]:
    return [*read_json(tmp_path / "mined" / "summary.json")["pools"].values()]


def rows(tmp_path: Path, name: str = "mined.parquet", out: str = "mined") -> list[dict]:
    return pq.read_table(tmp_path / out / name).to_pylist()


@pytest.fixture
def by_hand(tmp_path: Path) -> Path:
    """Two pools of few faces; every margin is a multiple of 1/16, which all formats hold exactly."""
    sixteenth = np.array(
        [
            [12, 4, 0],  # s/a anger, margin 8
            [14, 13, 0],  # s/b anger, margin 1
            [3, 3, 0],  # s/c tie of anger and fear
            [0, 0, 0],  # s/d no direction
            [1, 9, 3],  # s/e fear, margin 6
        ]
    )
    write_pool(tmp_path / "scores", "street", [([f"s/{c}" for c in "abcde"], sixteenth / 16)])
    write_pool(tmp_path / "scores", "film", [(["f/a"], [[15 / 16, 8 / 16, 0]]), (["f/b"], [[12 / 16, 0, 6 / 16]])])
    return tmp_path


def write_known(folder: Path, name: str, pictures: dict[str, int], *, split: str = "train") -> None:
    """Says which picture each face of a set is."""
    hashes = [number.to_bytes(16, "big") for number in pictures.values()]
    columns = [[*pictures], [split] * len(pictures), [None] * len(pictures), hashes]
    write_contents(folder / "contents" / f"{name}.parquet", [pa.table(columns, schema=CONTENTS)])


def test_estimates_name_the_model_that_they_rest_on(tmp_path: Path) -> None:
    """A refitted labeller's centroids hold the held-out faces too, which must not count twice in the anchor's mix."""
    cosine, fitted = simulate(5, 300)[1], np.array([100, 5, 20])
    names = [f"s/{number}" for number in range(300)]
    config = mine.Config(by="count", value=60, shares="anchor")
    write_pool(tmp_path / "scores", "street", [(names, cosine)], heldout=90)
    write_centroids(tmp_path / "scores" / "street", Centroids(np.eye(3), fitted, CLASSES))
    plain = run(config, tmp_path, out="plain").line
    before = read_json(tmp_path / "plain" / "summary.json")
    assert "model" not in before["heldout"]
    assert "calibration" not in plain
    held = tmp_path / "scores" / "street" / "calibration"
    held.mkdir()
    for name in (HELDOUT, CENTROIDS):
        (held.parent / name).rename(held / name)
    labels = read_heldout(held, classes=CLASSES).label
    assert labels is not None
    write_centroids(held.parent, Centroids(np.eye(3), fitted + np.bincount(labels, minlength=3), CLASSES))
    assert run(config, tmp_path).line == f"{plain}, by the calibration model"
    after = read_json(tmp_path / "mined" / "summary.json")
    assert after["heldout"].pop("model") == "calibration"
    assert after == before
    assert rows(tmp_path) == rows(tmp_path, out="plain")


def test_two_pools_by_hand(by_hand: Path) -> None:
    summary = run(mine.Config(value=6 / 16), by_hand, pools=("street", "film"))
    found = [
        (row["face_id"], row["pool"], row["label"], row["cosine"] * 16, row["margin"] * 16, row["rank"])
        for row in rows(by_hand)
    ]
    assert found == [
        ("f/a", "film", 0, 15, 7, 1),
        ("f/b", "film", 0, 12, 6, 2),  # as near as s/a: the identifier decides
        ("s/a", "street", 0, 12, 8, 3),
        ("s/e", "street", 1, 9, 6, 1),
    ]
    content = read_json(by_hand / "mined" / "summary.json")
    assert content["pools"]["street"] == {
        "faces": 5,
        "excluded": 0,
        "test_faces": 0,
        "no_direction": 1,
        "below_margin": 2,
        "over_cap": 0,
        "kept": 2,
        "by_class": {"anger": 1, "fear": 1, "neutral": 0},
    }
    assert content["margins"] == dict.fromkeys(CLASSES, 6 / 16)
    assert content["kept"] == 4
    assert content["by_class"]["anger"]["kept"] == 3
    nothing = {"excluded": 0, "test_faces": 0, "over_cap": 0}
    assert summary.counts == {"faces": 7, "no_direction": 1, "below_margin": 2, "kept": 4, **nothing}
    assert "no face was mined for neutral (never predicted" in summary.warnings[0]


def test_a_margin_of_zero_takes_ties_but_no_zero_feature(by_hand: Path) -> None:
    run(mine.Config(value=0), by_hand)
    assert {row["face_id"] for row in rows(by_hand)} == {"s/a", "s/b", "s/c", "s/e"}


def test_caps_keep_the_nearest_and_are_counted(by_hand: Path) -> None:
    summary = run(mine.Config(value=1 / 16, cap=1), by_hand, pools=("street", "film"))
    assert [row["face_id"] for row in rows(by_hand)] == ["f/a", "s/e"]
    assert summary.counts["over_cap"] == 3
    run(mine.Config(value=1 / 16, cap={"anger": 2}), by_hand, pools=("street", "film"))
    assert [row["face_id"] for row in rows(by_hand)] == ["f/a", "s/b", "s/e"]


def test_wanted_count_goes_over_all_pools(by_hand: Path) -> None:
    run(mine.Config(by="count", value=2), by_hand, pools=("street", "film"))
    assert {row["face_id"] for row in rows(by_hand)} == {"s/a", "f/a"}
    assert read_json(by_hand / "mined" / "summary.json")["margins"]["fear"] == 7 / 16
    summary = run(mine.Config(by="count", value=3), by_hand, pools=("street", "film"))
    assert len(rows(by_hand)) == 2, "the third and fourth are tied and stay out together"
    assert "2 faces were kept where 3 were wanted" in " ".join(summary.warnings)


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_excluded_faces_are_left_out_of_everything_and_counted(by_hand: Path, suffix: str) -> None:
    path = by_hand / f"leaks.{suffix}"
    if suffix == "csv":
        path.write_text("face_id,why\ns/a,twin\nx/nowhere,twin\ns/a,again\n")
    else:
        pq.write_table(pa.table({"face_id": ["s/a", "x/nowhere", "s/a"]}), path)
    summary = run(mine.Config(value=1 / 16, exclude=path), by_hand)
    assert [row["face_id"] for row in rows(by_hand)] == ["s/b", "s/e"]
    assert "s/a" not in {row["face_id"] for row in rows(by_hand, "random.parquet")}
    assert summary.counts["excluded"] == 1
    assert read_json(by_hand / "mined" / "summary.json")["exclude"] == {"listed": 2, "found": 1}


def test_an_exclusion_list_is_pinned_by_its_hash(by_hand: Path) -> None:
    path = by_hand / "leaks.csv"
    path.write_text("face_id\ns/a\n")
    digest = hashlib.sha256(b"face_id\ns/a\n").hexdigest()
    warnings = run(mine.Config(value=1 / 16, exclude=path), by_hand).warnings
    assert any(f"mine.exclude_sha256: {digest}" in line for line in warnings)
    pinned = mine.Config(value=1 / 16, exclude=path, exclude_sha256=digest.upper())
    assert not any("exclude" in line for line in run(pinned, by_hand).warnings)
    path.write_text("face_id\ns/b\n")
    with pytest.raises(DataError, match=r"has sha256 .*, but mine.exclude_sha256 is"):
        run(pinned, by_hand)


def test_an_exclusion_list_without_its_column_is_one_line(by_hand: Path) -> None:
    (by_hand / "leaks.csv").write_text("name\ns/a\n")
    with pytest.raises(DataError, match="no column face_id, it has name"):
        run(mine.Config(exclude=by_hand / "leaks.csv"), by_hand)
    with pytest.raises(DataError, match="cannot be read"):
        run(mine.Config(exclude=by_hand / "nowhere.csv"), by_hand)


def test_a_margin_that_keeps_nothing_tells_what_would_and_leaves_the_output_alone(by_hand: Path) -> None:
    run(mine.Config(value=1 / 16), by_hand)
    before = file_sha256(by_hand / "mined" / "mined.parquet")
    with pytest.raises(
        DataError, match=r"a margin of 0.9 keeps none of 4 faces; the largest margin present is 0.5"
    ) as raised:
        run(mine.Config(value=0.9), by_hand)
    assert "0.25 would keep 2" in str(raised.value)
    assert "\n" not in str(raised.value)
    assert file_sha256(by_hand / "mined" / "mined.parquet") == before


def test_an_empty_class_is_an_error_by_setting(by_hand: Path) -> None:
    with pytest.raises(DataError, match=r"no face was mined for neutral .*mine.empty_class to warn"):
        run(mine.Config(value=1 / 16, empty_class="error"), by_hand)
    assert not (by_hand / "mined").exists()


def test_pools_of_different_centroids_do_not_share_a_margin(by_hand: Path) -> None:
    write_centroids(by_hand / "scores" / "film", Centroids(np.eye(3) * 2, np.full(3, 5), CLASSES))
    with pytest.raises(DataError, match="different centroids"):
        run(mine.Config(value=1 / 16), by_hand, pools=("street", "film"))


def test_shared_identifiers_are_refused(by_hand: Path) -> None:
    write_pool(by_hand / "scores", "film", [(["s/a"], [[15 / 16, 8 / 16, 0]])])
    with pytest.raises(DataError, match="share face_ids"):
        run(mine.Config(value=1 / 16), by_hand, pools=("street", "film"))


def test_test_pictures_are_mined_nowhere_and_are_counted(by_hand: Path) -> None:
    """`s/a` and `s/d` are pictures of the training set's test split, `f/a` one of a target, `s/e` of a train split."""
    write_known(by_hand, "street", {f"s/{letter}": number for number, letter in enumerate("abcde")})
    write_known(by_hand, "studio", {"studio/1": 0, "studio/2": 3}, split="test")
    write_known(by_hand, "film", {"f/a": 10, "f/b": 11, "f/test": 10})
    whole = run(mine.Config(value=0), by_hand, pools=("street", "film"))
    assert whole.counts["test_faces"] == 2, "equal faces of the train split of a target are none"
    assert whole.warnings[-1] == (
        "street: 2 faces are test pictures of a target, the anchor or the training set; not mined"
    )
    for name in ("mined.parquet", "random.parquet"):
        assert {row["face_id"] for row in rows(by_hand, name)} == {"s/b", "s/c", "s/e", "f/a", "f/b"}
    content = read_json(by_hand / "mined" / "summary.json")
    assert content["test_faces"] == {"found": 2, "not_checked": []}
    street = content["pools"]["street"]
    assert (street["test_faces"], street["no_direction"]) == (2, 0)
    steps = ("excluded", "test_faces", "no_direction", "below_margin", "over_cap", "kept")
    assert sum(street[step] for step in steps) == street["faces"] == 5

    kept = run(mine.Config(value=0, test_faces="keep"), by_hand, pools=("street", "film"))
    assert kept.counts["test_faces"] == 2
    assert "street: 2 faces are test pictures" in kept.warnings[-1]
    assert "mine.test_faces is keep" in kept.warnings[-1]
    assert {row["face_id"] for row in rows(by_hand)} == {"s/a", "s/b", "s/c", "s/e", "f/a", "f/b"}

    listed = by_hand / "leaks.csv"
    listed.write_text("face_id\ns/a\n")
    both = run(mine.Config(value=0, exclude=listed), by_hand, pools=("street", "film"))
    assert (both.counts["excluded"], both.counts["test_faces"]) == (1, 1), "an excluded face is counted once"


def test_faces_that_look_like_others_are_mined_nowhere_and_are_counted(by_hand: Path) -> None:
    """f/a looks like a test face, f/b like a train face; of s/a, s/b and s/e, all alike, s/a has the largest margin."""

    def known(name: str, faces: dict[str, int], *, split: str = "train") -> pa.Table:
        hashes = [number.to_bytes(32, "little") for number in faces.values()]
        contents = [f"{face}{split}".encode().ljust(16)[:16] for face in faces]
        return pa.table([[*faces], [split] * len(faces), [None] * len(faces), contents, hashes], schema=HASHED)

    def write(name: str, *tables: pa.Table) -> None:
        write_contents(by_hand / "contents" / f"{name}.parquet", tables, HASHED)

    far = [random.Random(seed).getrandbits(256) for seed in range(6)]
    write(
        "street", known("street", {"s/a": far[0], "s/b": far[0] ^ 5, "s/c": far[1], "s/d": far[2], "s/e": far[0] ^ 1})
    )
    write("film", known("film", {"f/a": far[3] ^ 7, "f/b": far[4] ^ 7}))
    write("studio", known("studio", {"x": far[4]}), known("studio", {"y": far[3]}, split="test"))
    run(mine.Config(value=1 / 16), by_hand, pools=("street", "film"), out="off")
    config = mine.Config(value=1 / 16, duplicates={"pool": 2})  # pyright: ignore[reportArgumentType]
    summary = run(config, by_hand, pools=("street", "film"))
    assert [row["face_id"] for row in rows(by_hand)] == ["s/a"]
    assert {row["face_id"] for row in rows(by_hand, "random.parquet")} <= {"s/a", "s/c"}
    found = {key: summary.counts[key] for key in ("near_test_faces", "near_train_faces", "copies")}
    assert found == {"near_test_faces": 1, "near_train_faces": 1, "copies": 2}
    for pool in read_json(by_hand / "mined" / "summary.json")["pools"].values():
        parts = [value for key, value in pool.items() if key not in ("faces", "by_class")]
        assert sum(parts) == pool["faces"]
    pairs = pq.read_table(by_hand / "mined" / "duplicates.parquet").to_pylist()
    assert [(row["face_id"], row["reason"], row["other_face_id"], row["other_set"], row["bits"]) for row in pairs] == [
        ("f/a", "near_test_faces", "y", "studio", 3),
        ("f/b", "near_train_faces", "x", "studio", 3),
        ("s/b", "copies", "s/a", "street", 2),
        ("s/e", "copies", "s/a", "street", 1),
    ]
    assert any("1 like a test picture" in line for line in summary.warnings)
    assert not (by_hand / "off" / "duplicates.parquet").exists()
    assert "duplicates" not in read_json(by_hand / "off" / "summary.json")["rule"]
    kept = run(mine.Config(value=1 / 16, test_faces="keep", duplicates={}), by_hand, pools=("street", "film"))  # pyright: ignore[reportArgumentType]
    assert kept.counts["near_test_faces"] == 1
    assert "f/a" in {row["face_id"] for row in rows(by_hand)}
    write_known(by_hand, "film", {"f/a": 1})
    with pytest.raises(DataError, match=r"film.parquet has no perceptual hashes.* set align.hashes to true"):
        run(config, by_hand, pools=("street", "film"))


def test_a_pool_of_test_pictures_alone_is_one_line(by_hand: Path) -> None:
    for name, split in (("street", "train"), ("studio", "test")):
        write_known(by_hand, name, {f"{name[0]}/{letter}": ord(letter) for letter in "abcde"}, split=split)
    with pytest.raises(DataError, match=r"no face of street is left to mine \(5 are test pictures, which mine\.test_f"):
        run(mine.Config(value=0), by_hand)


def test_without_a_leak_or_without_contents_the_same_faces_are_mined(by_hand: Path) -> None:
    unknown = run(mine.Config(value=1 / 16), by_hand, out="before")
    [line] = [line for line in unknown.warnings if "test pictures" in line]
    assert line.startswith(
        "test pictures in the pools are not found: nothing says which pictures the faces of studio, "
    )
    write_known(by_hand, "street", {f"s/{letter}": number for number, letter in enumerate("abcde")})
    write_known(by_hand, "studio", {"studio/1": 100}, split="test")
    [line] = [line for line in run(mine.Config(value=1 / 16), by_hand, out="part").warnings if "test pictures" in line]
    assert "the faces of film are;" in line
    write_known(by_hand, "film", {"film/1": 101}, split="test")
    assert not [line for line in run(mine.Config(value=1 / 16), by_hand).warnings if "test pictures" in line]
    for name in ("mined.parquet", "random.parquet", "sweep.parquet"):
        hashes = {file_sha256(by_hand / out / name) for out in ("before", "part", "mined")}
        assert len(hashes) == 1
    before, after = (read_json(by_hand / out / "summary.json") for out in ("before", "mined"))
    assert after == before | {"test_faces": {"found": 0, "not_checked": []}}, "no count of what is not there"


@pytest.mark.parametrize(
    ("as_set", "train", "pool"),
    [(False, None, None), (True, None, None), (True, "exact", None), (True, None, "exact"), (True, "exact", "exact")],
)
def test_equal_faces_are_those_that_comparing_all_with_all_finds(
    tmp_path: Path, as_set: bool, train: str | None, pool: str | None
) -> None:
    """Without the section they are counted and mined, as with null; `exact` needs no perceptual hashes."""
    rng = random.Random(7)
    faces = {f"{one}/{i:02d}": rng.randrange(60) for one, number in (("s", 50), ("f", 30)) for i in range(number)}
    cosine = {name: [rng.randrange(0, 16) / 16 for _ in CLASSES] for name in faces}
    for one, name in (("s", "street"), ("f", "film")):
        own = [face for face in faces if face[0] == one]
        write_pool(tmp_path / "scores", name, [(own, np.array([cosine[face] for face in own]))])
        write_known(tmp_path, name, {face: faces[face] for face in own})
    known = {"t": rng.sample(range(70), 8), "l": rng.sample(range(70), 12)}
    splits = [("test", known["t"]), ("train", known["l"])]
    columns = [[f"studio/{k}/{n}" for k, (_, some) in enumerate(splits) for n in some]]
    columns += [[split for split, some in splits for _ in some], [None] * 20]
    columns += [[number.to_bytes(16, "big") for _, some in splits for number in some]]
    write_contents(tmp_path / "contents" / "studio.parquet", [pa.table(columns, schema=CONTENTS)])

    settings = {"test": None, "train": train, "pool": pool}
    config = mine.Config(value=0, **({"duplicates": settings} if as_set else {}))  # pyright: ignore[reportArgumentType]
    summary = run(config, tmp_path, pools=("street", "film"))

    def value(face: str) -> tuple[float, float]:
        top, second, _ = sorted(cosine[face], reverse=True)
        return top - second, top

    measured = {face for face, number in faces.items() if number in known["t"]}
    learned = {face for face, number in faces.items() if number in known["l"]}
    order = [face for face in faces if face not in measured and not (train and face in learned) and any(cosine[face])]
    worse = {
        face
        for k, face in enumerate(order)
        for j, other in enumerate(order)
        if faces[other] == faces[face] and (value(other), -j) > (value(face), -k)
    }
    assert min(len(measured), len(learned - measured), len(worse - learned)) >= 3
    counted = {"test_faces": measured, "train_faces": learned - measured, "equal_copies": worse - learned}
    assert {key: summary.counts[key] for key in counted} == {key: len(some) for key, some in counted.items()}
    left = [face for face in order if not (pool and face in worse)]
    assert {row["face_id"] for row in rows(tmp_path)} == {*left}
    drawn = {row["face_id"] for row in rows(tmp_path, "random.parquet")}
    assert drawn == {*left}, "as many as are mined, which are all"
    told = [line for line in summary.warnings if "`mined duplicates` lists the pairs" in line]
    assert len(told) == 4, "two reasons in each pool"
    assert sum("mine.duplicates.train is not set" in line for line in told) == (0 if train else 2)
    assert sum("mine.duplicates.pool is not set" in line for line in told) == (0 if pool else 2)
    parts = [sum(p[key] for key in p if key not in ("faces", "by_class")) - p["faces"] for p in pools_of(tmp_path)]
    assert (parts == [0, 0]) == bool(train and pool), "what is mined all the same counts twice"


@pytest.fixture
def with_logits(tmp_path: Path) -> Path:
    """Four faces whose nearest class and likeliest class differ; the odds are written as logarithms of shares."""
    cosine = np.array([[12, 4, 0], [0, 13, 9], [1, 9, 3], [0, 0, 8]]) / 16
    logit = np.log([[5, 4, 1], [1, 8, 1], [2, 2, 6], [1, 2, 7]])
    label, heldout = simulate(1234, 300)
    scores = tmp_path / "scores" / "street"
    write_file(scores / "part-00000.arrow", ["s/a", "s/b", "s/c", "s/d"], cosine, logit=logit)
    write_file(scores / HELDOUT, [f"studio/{i}" for i in range(300)], heldout, label, 9 * heldout)
    write_centroids(scores, Centroids(np.eye(3), np.full(3, 5), CLASSES))
    return tmp_path


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"value": 5 / 16}, [("s/a", 0, 8 / 16), ("s/e", 1, 6 / 16), ("s/d", 2, 8 / 16)]),
        ({"by": "probability", "value": 0.7}, [("s/b", 1, 0.8), ("s/d", 2, 0.7)]),
        ({"by": "probability_margin", "value": 0.39}, [("s/b", 1, 0.7), ("s/d", 2, 0.5), ("s/c", 2, 0.4)]),
        ({"by": "count", "value": 2, "rule": "probability"}, [("s/b", 1, 0.8), ("s/d", 2, 0.7)]),
        ({"by": "count", "value": 1, "rule": "probability", "per_class": True}, [("s/a", 0, 0.5), ("s/b", 1, 0.8)]),
    ],
)
def test_every_rule_chooses_names_and_ranks_by_its_own(with_logits: Path, options: dict, expected: list) -> None:
    value = 0.699 if options.get("by") == "probability" else options["value"]
    run(mine.Config(**{**options, "value": value}), with_logits)
    found = rows(with_logits)
    wanted = [("s/c" if face == "s/e" else face, label, margin) for face, label, margin in expected]
    wanted += [("s/d", 2, 0.7)] if options.get("per_class") else []
    assert [(row["face_id"], row["label"]) for row in found] == [row[:2] for row in wanted]
    np.testing.assert_allclose([row["margin"] for row in found], [row[2] for row in wanted], rtol=1e-6)
    cosine = dict(zip("abcd", np.array([[12, 4, 0], [0, 13, 9], [1, 9, 3], [0, 0, 8]]) / 16, strict=True))
    assert [row["cosine"] for row in found] == [cosine[row["face_id"][-1]][row["label"]] for row in found]


def test_rules_are_compared_at_equal_counts(with_logits: Path) -> None:
    run(mine.Config(value=5 / 16), with_logits)
    content = read_json(with_logits / "mined" / "summary.json")
    assert content["ranked_by"] == "margin"
    assert {rule: one["kept"] for rule, one in content["rules"].items()} == dict.fromkeys(RULES, 3)
    by_probability = content["rules"]["probability"]
    assert by_probability["threshold"] == pytest.approx(0.6)
    assert {name: one["kept"] for name, one in by_probability["by_class"].items()} == {
        "anger": 0,
        "fear": 1,
        "neutral": 2,
    }
    kept: dict[int, set[int]] = {}
    for row in pq.read_table(with_logits / "mined" / "sweep.parquet").to_pylist():
        if row["class"] == "*":
            kept.setdefault(row["step"], set()).add(row["kept"])
    assert len(kept) == 102
    assert all(len(counts) == 1 for counts in kept.values()), "no value is tied here"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"value": 5 / 16}, [("s/b", 1, 0.8), ("s/d", 2, 0.7), ("s/c", 2, 0.6)]),  # three by both rules
        ({"value": 7 / 16}, [("s/b", 1, 0.8), ("s/d", 2, 0.7)]),
        ({"by": "count", "value": 1, "per_class": True}, [("s/a", 0, 0.5), ("s/b", 1, 0.8), ("s/d", 2, 0.7)]),
        ({"value": 5 / 16, "cap": 1}, [("s/a", 0, 0.5), ("s/b", 1, 0.8), ("s/d", 2, 0.7)]),  # the cap is its own too
    ],
)
def test_a_second_rule_keeps_as_many_faces_of_its_own(with_logits: Path, options: dict, expected: list) -> None:
    run(mine.Config(**options), with_logits)
    summary = run(mine.Config(**options, second_rule="probability"), with_logits, out="both")
    found = rows(with_logits, "second_rule.parquet", out="both")
    assert [(row["face_id"], row["label"]) for row in found] == [row[:2] for row in expected]
    np.testing.assert_allclose([row["margin"] for row in found], [row[2] for row in expected], rtol=1e-6)
    assert len(found) == summary.counts["kept"]
    said = read_json(with_logits / "both" / "summary.json")["second_rule"]
    assert (said["rule"], said["kept"]) == ("probability", len(expected))
    for label, name in enumerate(CLASSES):
        assert said["by_class"][name]["kept"] == sum(row[1] == label for row in expected)
    for name in ("mined.parquet", "random.parquet", "sweep.parquet"):
        assert file_sha256(with_logits / "mined" / name) == file_sha256(with_logits / "both" / name)
    assert not (with_logits / "mined" / "second_rule.parquet").exists()


def test_a_second_rule_that_falls_short_says_of_which_class(with_logits: Path) -> None:
    """By margin s/b and s/c are taken for fear; by probability s/b alone."""
    options = {"by": "count", "value": 2, "per_class": True, "second_rule": "probability"}
    summary = run(mine.Config(**options), with_logits)
    [said] = [line for line in summary.warnings if "second_rule" in line]
    assert "probability kept fewer faces than margin: fear 1 of 2; " in said
    equal = run(mine.Config(by="margin", value=5 / 16, second_rule="probability"), with_logits, out="equal")
    assert not any("second_rule" in line for line in equal.warnings)


def test_a_second_rule_is_another_one() -> None:
    with pytest.raises(ConfigError, match="second_rule: margin is the rule that chooses; name another"):
        validate(mine.Config, {"by": "count", "value": 5, "second_rule": "margin"}, where="mine")


def test_a_rule_without_logits_is_one_line(by_hand: Path) -> None:
    with pytest.raises(ConfigError, match=r"chooses by probability, but .* holds no logits"):
        run(mine.Config(second_rule="probability"), by_hand)
    with pytest.raises(ConfigError, match=r"chooses by probability, but .* holds no logits.*or choose by margin"):
        run(mine.Config(by="probability", value=0.5), by_hand)


def mixed(seed: int, shares: tuple[float, ...], n: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    label = rng.choice(3, n, p=shares)
    return label, np.clip(0.2 * np.eye(3)[label] + 0.1 * rng.standard_normal((n, 3)), -1, 1)


@pytest.fixture
def rare(tmp_path: Path) -> Path:
    """A pool of which 8 % show anger, where a third of the anchor does; 600 anchor faces are held out."""
    _, cosine = mixed(1, (0.08, 0.27, 0.65), 5_000)
    write_pool(tmp_path / "scores", "street", [([f"street/{i}" for i in range(5_000)], cosine)])
    label, heldout = mixed(2, (1 / 3, 1 / 3, 1 / 3), 600)
    write_file(tmp_path / "scores" / "street" / HELDOUT, [f"studio/{i}" for i in range(600)], heldout, label)
    return tmp_path


def test_quotas_are_filled_by_class_and_what_is_missing_is_said(rare: Path) -> None:
    summary = run(mine.Config(by="count", value={"anger": 1500, "fear": 100, "neutral": 5_000}), rare)
    content = read_json(rare / "mined" / "summary.json")
    kept = {name: one["kept"] for name, one in content["by_class"].items()}
    assert kept["fear"] == 100
    most = np.ceil(content["by_class"]["anger"]["pool_share"]["high"] * 5_000)
    assert 400 < most < 1000, "5,000 faces of which 8 % are truly so"
    beyond, [short] = summary.warnings[0], [line for line in summary.warnings if line.startswith("fewer")]
    assert f"more faces are wanted than the pools hold of anger (1,500 wanted, at most {most:.0f} there)" in beyond
    assert "neutral (5,000" in beyond
    assert f"anger {kept['anger']:,} of 1,500, neutral {kept['neutral']:,} of 5,000" in short
    with pytest.raises(DataError, match=r"more faces are wanted .*or set mine.beyond_pool to warn"):
        run(mine.Config(by="count", value=1500, per_class=True, beyond_pool="error"), rare, out="other")
    assert not (rare / "other").exists()


def test_quotas_by_the_anchors_shares(rare: Path) -> None:
    """The centroids stand on five faces of each class, the held-out faces are those of the fixture."""
    run(mine.Config(by="count", value=615, shares="anchor"), rare)
    label, _ = mixed(2, (1 / 3, 1 / 3, 1 / 3), 600)
    content = read_json(rare / "mined" / "summary.json")
    kept = [content["by_class"][name]["kept"] for name in CLASSES]
    assert kept == (np.bincount(label) + 5).tolist()


def test_precision_of_a_rare_class_is_that_of_the_pool_and_not_of_the_anchor(rare: Path) -> None:
    """Beside every total: counts, estimates and the shares that they rest on."""
    label, _ = mixed(1, (0.08, 0.27, 0.65), 5_000)
    found = {}
    for prior in ("pool", "anchor"):
        summary = run(mine.Config(value=0.05, class_prior=prior), rare, out=prior)
        found[prior] = read_json(rare / prior / "summary.json")["by_class"]["anger"]
    mined = [row for row in rows(rare, out="pool") if row["label"] == 0]
    truth = np.mean([label[int(row["face_id"].split("/")[1])] == 0 for row in mined])
    assert found["anchor"]["low"] > truth + 0.05
    assert found["pool"]["low"] < truth < found["pool"]["high"]
    assert abs(found["pool"]["precision"] - truth) < 0.15
    assert found["pool"]["pool_share"]["low"] < (label == 0).mean() < found["pool"]["pool_share"]["high"]
    assert (
        f"anger {len(mined):,} at {found['anchor']['precision']:.2f} ({found['anchor']['low']:.2f} to" in summary.line
    )


def test_held_out_persons_are_drawn_as_wholes_where_their_names_are_known(rare: Path) -> None:
    """The same faces of 600 persons and of 10: other bounds, the same estimate."""
    found = {}
    for name, number in (("many", 600), ("few", 10)):
        persons = [f"person {i % number}" for i in range(600)]
        hashes = [number.to_bytes(16, "big") for number in range(600)]
        columns = [[f"studio/{i}" for i in range(600)], ["train"] * 600, persons, hashes]
        write_contents(rare / "contents" / "studio.parquet", [pa.table(columns, schema=CONTENTS)])
        run(mine.Config(value=0.05), rare, out=name)
        content = read_json(rare / name / "summary.json")
        assert content["heldout"] == {"faces": 600, "persons": number}
        found[name] = content["by_class"]["anger"]
    assert found["few"]["precision"] == found["many"]["precision"]
    assert found["few"] != found["many"]


@pytest.fixture
def simulated(tmp_path: Path) -> tuple[Path, dict[str, int]]:
    """20,000 pool faces in shards of 6,000 with known labels."""
    label, cosine = simulate(0, 20_000)
    names = [f"street/{i}" for i in range(20_000)]
    starts = range(0, 20_000, 6_000)
    write_pool(tmp_path / "scores", "street", [(names[i : i + 6_000], cosine[i : i + 6_000]) for i in starts])
    return tmp_path, dict(zip(names, label.tolist(), strict=True))


@pytest.mark.parametrize(
    "options",
    [
        {"value": 0.15},
        {"by": "precision", "value": 0.85},
        {"by": "precision", "value": 0.85, "per_class": True},
        {"by": "count", "value": 500, "per_class": True},
        {"value": 0.1, "class_prior": "anchor"},
    ],
)
def test_expected_precision_meets_the_truth(simulated, options: dict) -> None:
    tmp_path, truth = simulated
    run(mine.Config(**options), tmp_path)
    found = rows(tmp_path)
    right = np.mean([truth[row["face_id"]] == row["label"] for row in found])
    content = read_json(tmp_path / "mined" / "summary.json")
    expected = content["precision"]
    deviation = max((expected["high"] - expected["low"]) / 3.92, 1e-3)
    assert abs(expected["estimate"] - right) < 4 * deviation
    if options.get("by") == "precision":
        assert expected["estimate"] >= 0.85
    if options.get("by") == "count":
        assert [content["by_class"][name]["kept"] for name in CLASSES] == [500] * 3
    for row in pq.read_table(tmp_path / "mined" / "sweep.parquet").to_pylist():
        if (
            row["class"] == "*"
            and row["threshold"] == content["margins"]["anger"]
            and len(set(content["margins"].values())) == 1
        ):
            assert row["kept"] == content["kept"]
            assert row["precision"] == pytest.approx(expected["estimate"])


def test_random_control_is_as_large_uniform_and_seeded(simulated) -> None:
    tmp_path, _ = simulated
    run(mine.Config(value=0.15), tmp_path)
    mined, drawn = rows(tmp_path), rows(tmp_path, "random.parquet")
    assert len(drawn) == len(mined)
    assert len({row["face_id"] for row in drawn}) == len(drawn)
    assert min(row["margin"] for row in drawn) < 0.01, "not filtered by the margin"
    numbers = np.array([int(row["face_id"].split("/")[1]) for row in drawn])
    counts = np.bincount(numbers // 2000, minlength=10)
    assert abs(counts - len(drawn) / 10).max() < 5 * np.sqrt(len(drawn) / 10)
    run(mine.Config(value=0.15), tmp_path, seed=1, out="other")
    assert {r["face_id"] for r in rows(tmp_path, "random.parquet", out="other")} != {r["face_id"] for r in drawn}


def test_order_of_shards_changes_no_byte(tmp_path: Path) -> None:
    _, cosine = simulate(5, 900)
    names = [f"street/{i}" for i in range(900)]
    order = np.random.default_rng(0).permutation(900)
    shuffled = ([names[i] for i in order], cosine[order])
    for folder, shards in (
        ("a", [(names, cosine)]),
        ("b", [(shuffled[0][:500], shuffled[1][:500]), (shuffled[0][500:], shuffled[1][500:])]),
    ):
        write_pool(tmp_path / folder / "scores", "street", shards)
        run(mine.Config(by="count", value=100), tmp_path / folder)
    for name in ("mined.parquet", "random.parquet", "summary.json", "sweep.parquet"):
        assert file_sha256(tmp_path / "a" / "mined" / name) == file_sha256(tmp_path / "b" / "mined" / name)


def test_without_held_out_faces_there_is_no_estimate(tmp_path: Path) -> None:
    _, cosine = simulate(6, 300)
    write_pool(tmp_path / "scores", "street", [([f"street/{i}" for i in range(300)], cosine)], heldout=0)
    summary = run(mine.Config(value=0.1), tmp_path)
    content = read_json(tmp_path / "mined" / "summary.json")
    assert content["precision"]["estimate"] is None
    assert "anger (0 held-out faces predicted so, 20 wanted), fear (0" in summary.warnings[0]
    with pytest.raises(DataError, match="keeps none"):
        run(mine.Config(by="precision", value=0.9), tmp_path)
