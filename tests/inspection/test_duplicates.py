"""`mined duplicates` on planted pairs: what is listed, what became of it, and the page with their pictures."""

import base64
import hashlib
import json
from collections.abc import Callable, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from dvc.repo import Repo
from typer.testing import CliRunner

from fer_pipeline.artifacts import faces
from fer_pipeline.artifacts.arrow import ParquetFile
from fer_pipeline.artifacts.contents import HASHED, hash_faces, write_contents
from fer_pipeline.artifacts.mined import LIKE_OTHERS
from fer_pipeline.cli import app
from fer_pipeline.inspection.duplicates import BEST
from fer_pipeline.stages import mine
from pipelines.repository import run_git
from tests.inspection.conftest import CLASSES, POOLS, SIZE, STRANGE
from tests.project import project_settings

Say = Callable[..., str]
EQUAL, NEAR_TEST, NEAR_TRAIN = STRANGE[0], "street/20", "street/21"  # of the pool
COPIES = ("garden/4", "garden/5", "garden/6")
LEARNED, TWICE = "street/22", ("garden/7", "garden/8")  # equal to a train face, and to each other


def crops_of(folder: Path) -> dict[str, bytes]:
    paths = sorted(folder.rglob("part-*.parquet"))
    return {row["face_id"]: row["image"]["bytes"] for path in paths for row in pq.read_table(path).to_pylist()}


class Planted:
    """The project with a labelled set of which faces stand in the pool, and faces that equal or look like others."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.crops = {pool: crops_of(folder / "data/faces" / pool) for pool in POOLS}
        random = np.random.default_rng(8)
        self.tests = {"t/equal": self.crops["street"][EQUAL], "t/near": self.draw(random)}
        self.trains = {"s/near": self.draw(random), "s/equal": self.crops["street"][LEARNED]}
        near = {
            self.crops["street"][NEAR_TEST]: (self.tests["t/near"], 7),
            self.crops["street"][NEAR_TRAIN]: (self.trains["s/near"], 3),
            **{self.crops["garden"][name]: (self.crops["garden"][COPIES[0]], k) for k, name in enumerate(COPIES)},
        }

        def look(images: Sequence[memoryview]) -> list[bytes]:
            pairs = [near.get(bytes(image), (bytes(image), 0)) for image in images]
            hashes = [int.from_bytes(hashlib.blake2b(one, digest_size=32).digest(), "little") ^ k for one, k in pairs]
            return [one.to_bytes(32, "little") for one in hashes]

        for split, crops in (("test", self.tests), ("train", self.trains)):
            rows = [
                {
                    "face_id": name, "image": {"bytes": crop, "path": None}, "label": 1, "subject": "", "split": split,
                    "landmarks": None, "score": None, "source": "x.png",
                }
                for name, crop in crops.items()
            ]  # fmt: skip
            table = pa.Table.from_pylist(rows, schema=faces.face_schema(CLASSES, crop=SIZE))
            faces.write_shard(folder / f"data/faces/studio/{split}/part-00000.parquet", table)
        for name in (*POOLS, "studio"):
            shards = sorted((folder / "data/faces" / name).rglob("part-*.parquet"))
            batches = [batch for shard in shards for batch in hash_faces(shard, look)]
            rows = {row["face_id"]: row for batch in batches for row in batch.to_pylist()}
            for first, second in [TWICE] if name == "garden" else []:
                rows[second] |= {key: rows[first][key] for key in ("content", "hashes")}
            table = pa.Table.from_pylist([*rows.values()], schema=HASHED)
            write_contents(folder / f"data/contents/{name}.parquet", [table], HASHED)
        self.settings = project_settings(classes=CLASSES, pools=tuple(POOLS), targets=("studio",))
        (folder / "params.yaml").write_text(
            json.dumps(self.settings.model_dump(mode="json") | {"align": {}, "mine": {}})
        )

    @staticmethod
    def draw(random: np.random.Generator) -> bytes:
        return faces.encode(random.integers(0, 256, (SIZE, SIZE, 3), np.uint8))

    def mine(self, **options: Any) -> dict[str, Any]:
        data = self.folder / "data"
        config = mine.Config(by="margin", value=0.0, **{"duplicates": {"pool": 4}, **options})
        mine.run(config, self.settings, scores=data / "scores", contents=data / "contents", out=data / "mined")
        return json.loads((data / "mined/summary.json").read_text())


@pytest.fixture
def planted(copy: Path) -> Planted:
    return Planted(copy)


def test_every_planted_pair_is_listed_with_what_became_of_it(planted: Planted, say: Say) -> None:
    summary = planted.mine()
    rows = json.loads(say("duplicates", "--format", "json"))

    best = next(row for row in pq.read_table("data/mined/mined.parquet").to_pylist() if row["face_id"] in COPIES)
    twice = next(row for row in pq.read_table("data/mined/mined.parquet").to_pylist() if row["face_id"] in TWICE)
    copies = [
        ("perceptual", "copies", name, COPIES[0], bits, name == best["face_id"])
        for name, bits in zip(COPIES[1:], (1, 1), strict=True)
    ]
    copies.insert(0, ("exact", "equal_copies", TWICE[1], TWICE[0], 0, TWICE[1] == twice["face_id"]))
    keys = ("kind", "reason", "face_id", "other_face_id", "bits", "mined")
    assert [tuple(row[key] for key in keys) for row in rows] == [
        ("exact", "test_faces", EQUAL, "t/equal", 0, False),
        ("exact", "train_faces", LEARNED, "s/equal", 0, False),
        ("perceptual", "near_test_faces", NEAR_TEST, "t/near", 3, False),
        ("perceptual", "near_train_faces", NEAR_TRAIN, "s/near", 2, False),
        *copies,
    ]
    assert [(row["other_set"], row["other_split"]) for row in rows] == [
        ("studio", "test"), ("studio", "train"), ("studio", "test"), ("studio", "train"),
        ("garden", "train"), ("garden", "train"), ("garden", "train"),
    ]  # fmt: skip
    assert [row["outcome"] for row in rows] == [
        "removed: it is a test picture",
        "removed: it is a train picture",
        "removed: it looks like a test picture",
        "removed: it looks like a train picture",
        *(
            BEST if row[5] else f"removed: {(twice if row[2] in TWICE else best)['face_id']} of its group is mined"
            for row in copies
        ),
    ]
    for reason in ("test_faces", *LIKE_OTHERS):
        counted = sum(pool[reason] for pool in summary["pools"].values())
        assert sum(row["reason"] == reason for row in rows) == counted, "as many as mine counts"
    assert "workspace: 7 pairs of faces, 3 exact, 4 perceptual" in say("duplicates").splitlines()[0]
    assert "and 5 more rows" in say("duplicates", "--rows", "2")

    planted.mine(test_faces="keep", duplicates={"pool": 4, "train": None})
    kept = {row["face_id"]: row for row in json.loads(say("duplicates", "--format", "json"))}
    for name in (EQUAL, NEAR_TEST):
        assert (kept[name]["mined"], kept[name]["outcome"]) == (True, "not removed: mine.test_faces is keep")
    assert NEAR_TRAIN not in kept
    assert (kept[LEARNED]["mined"], kept[LEARNED]["outcome"]) == (True, "not removed: mine.duplicates.train is not set")

    planted.mine(duplicates=None)
    default = [(row["face_id"], row["other_face_id"], row["mined"], row["outcome"]) for row in json.loads(
        say("duplicates", "--format", "json")
    )]  # fmt: skip
    assert default == [
        (EQUAL, "t/equal", False, "removed: it is a test picture"),
        (LEARNED, "s/equal", True, "not removed: mine.duplicates.train is not set"),
        (TWICE[1], TWICE[0], True, "not removed: mine.duplicates.pool is not set"),
    ]
    assert "1 test faces, 1 train faces not left out\n" in f"{say('show')}\n"


class Page(HTMLParser):
    """What a browser would make of the page: pictures by their texts, and all elements."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.images, self.tags, self.policy = list[tuple[str, bytes]](), set[str](), ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        about = {name: value or "" for name, value in attrs}
        if tag == "img":
            head, _, data = about["src"].partition(";base64,")
            assert head in ("data:image/png", "data:image/jpeg")
            self.images.append((about["alt"], base64.b64decode(data)))
        if about.get("http-equiv") == "Content-Security-Policy":
            self.policy = about["content"]


def test_the_page_shows_both_pictures_and_opens_no_test_label(
    planted: Planted, say: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted.mine()
    opened = list[str]()

    def watch(name: str) -> None:
        read = getattr(ParquetFile, name)

        def told(self: ParquetFile, *words: Any, **options: Any) -> Any:
            if "/test/" in str(self.path):
                columns = next((one for one in (*words, *options.values()) if isinstance(one, list)), None)
                opened.extend(["all"] if columns is None else columns)
            return read(self, *words, **options)

        monkeypatch.setattr(ParquetFile, name, told)

    for name in ("read", "read_row_group", "iter_batches"):
        watch(name)
    rows = json.loads(say("duplicates", "--format", "json", "--sheet", "sheets/pairs.html"))
    assert {*opened} == {"face_id", "image"}
    page = Page(Path("sheets/pairs.html").read_text(encoding="utf-8"))
    crops = planted.crops | {"studio": planted.tests | planted.trains}
    expected = [
        crops[row[dataset]][row[name]]
        for row in rows
        for dataset, name in (("pool", "face_id"), ("other_set", "other_face_id"))
    ]
    assert [picture for _, picture in page.images] == expected
    assert page.images[0][0] == f"street: {EQUAL}", "text, whatever it holds"
    assert "b" not in page.tags
    assert page.policy.startswith("default-src 'none'; img-src data:;")
    assert "is there already; name another place with --sheet" in say(
        "duplicates", "--sheet", "sheets/pairs.html", code=1
    )
    say("duplicates", "--sheet", "two.html", "--rows", "2")
    assert len(Page(Path("two.html").read_text(encoding="utf-8")).images) == 4
    assert "--rows must be at least 1" in say("duplicates", "--rows", "0", "--sheet", "three.html", code=1)
    assert not Path("three.html").exists()


def test_a_revision_lists_what_it_has_and_says_what_it_lacks(planted: Planted, say: Say) -> None:
    """The graph of this project makes no contents, so that of a commit alone those that look alike are known."""
    planted.mine()
    with Repo(str(planted.folder)) as repo:
        repo.commit(force=True)
    run_git(planted.folder, "commit", "--all", "--quiet", "-m", "planted")
    planted.mine(duplicates={"test": None, "train": None})
    assert [row["reason"] for row in json.loads(say("duplicates", "--format", "json"))] == [
        "test_faces", "train_faces", "equal_copies",
    ]  # fmt: skip
    told = CliRunner().invoke(app, ["mined", "duplicates", "--rev", "HEAD", "--format", "json"])
    assert [(row["face_id"], row["reason"], row["bits"]) for row in json.loads(told.stdout)] == [
        (EQUAL, "near_test_faces", 0), (NEAR_TEST, "near_test_faces", 3),
        (LEARNED, "near_train_faces", 0), (NEAR_TRAIN, "near_train_faces", 2),
        (TWICE[1], "copies", 0), (COPIES[1], "copies", 1), (COPIES[2], "copies", 1),
    ]  # fmt: skip
    assert "does not say which pictures the faces of studio, garden, street are" in told.stderr
    told = CliRunner().invoke(app, ["mined", "duplicates", "--rev", "v1", "--format", "csv"])
    assert told.stdout.splitlines() == [
        "kind,reason,pool,face_id,other_set,other_split,other_face_id,bits,mined,outcome"
    ]
    assert "was mined without mine.duplicates, so that faces that look alike are not known" in told.stderr
    say("duplicates", "--rev", "HEAD", "--sheet", "sheet.html", code=1)
    assert not Path("sheet.html").exists()


@pytest.mark.parametrize(("column", "value"), [("reason", "because"), ("pool", "../street"), ("other_set", "/etc")])
def test_a_changed_list_of_pairs_is_one_line(planted: Planted, say: Say, column: str, value: str) -> None:
    planted.mine()
    path = Path("data/mined/duplicates.parquet")
    table = pq.read_table(path)
    place = table.column_names.index(column)
    path.unlink()
    pq.write_table(table.set_column(place, column, pa.array([value] * len(table))), path)
    assert "has a reason or a set of no known name; remove it and run: dvc repro mine" in say("duplicates", code=1)
