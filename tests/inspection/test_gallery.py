"""The gallery's files read back against the tables, crops and embeddings of their faces; its server under abuse."""

import base64
import csv
import hashlib
import http.client
import io
import json
import math
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from fer_pipeline.artifacts import faces
from fer_pipeline.artifacts.contents import hash_faces, write_contents
from fer_pipeline.artifacts.embeddings import write_embeddings
from fer_pipeline.artifacts.faces import open_shard
from fer_pipeline.artifacts.review import HEADER
from fer_pipeline.commands.gallery import view
from fer_pipeline.core.errors import DataError
from fer_pipeline.inspection.sheets import COLUMNS, NONE, STATUS
from fer_pipeline.inspection.view import MOST_BYTES, serve
from tests.inspection.conftest import CLASSES, POOLS, SIZE, WIDTH, Project, cosines, crops_of, names_of, vectors_of
from tests.project import project_settings

Say = Callable[..., str]
NUM_STUDIO = 20


def read_script(site: Path, name: str) -> Any:
    """What a script of the site hands to the page; it is plain ASCII, whatever the names hold."""
    text = (site / f"{name}.js").read_text(encoding="ascii")
    head = f"gallery.take({json.dumps(name)},"
    assert text.startswith(head)
    assert text.endswith(")\n")
    return json.loads(text[len(head) : -2])


def read_columns(site: Path, key: str) -> dict[str, np.ndarray]:
    return {
        name: np.frombuffer(base64.b64decode(text), COLUMNS[name])
        for name, text in read_script(site, f"{key}/rows").items()
    }


def lists_of(site: Path, kind: str) -> dict[str, list[dict[str, Any]]]:
    """The faces of each list of a kind, by the list's folder: names, contents, columns, details."""
    index, found = read_script(site, "index"), {}
    for one in (one for one in index["lists"] if one["kind"] == kind):
        key, count = one["key"], one["count"]
        names, columns = read_script(site, f"{key}/names"), read_columns(site, key)
        details = [
            face for path in sorted((site / key).glob("d*.js")) for face in read_script(site, f"{key}/{path.stem}")
        ]
        contents, samples = base64.b64decode(names["content"]), names.get("sample", [""] * count)
        assert {len(details), len(names["face_id"]), *map(len, columns.values())} == {count}
        found[key] = []
        for row, name in enumerate(names["face_id"]):
            face: dict[str, Any] = {column: values[row] for column, values in columns.items()}
            for column in {"label", "truth", "before"} & columns.keys():
                face[column] = None if face[column] == NONE else index["names"][face[column]]
            face |= {"face_id": name, "sample": samples[row], "pool": index["pools"][face["pool"]]}
            face |= {"content": contents[16 * row : 16 * row + 16].hex(), "detail": details[row]}
            found[key].append(face)
    return found


@pytest.fixture
def anchored(copy: Path) -> Path:
    """The project with settings, and an anchor set whose faces are embedded."""
    settings = project_settings(classes=CLASSES, pools=tuple(POOLS)).model_dump(mode="json")
    (copy / "params.yaml").write_text(json.dumps(settings))
    random = np.random.default_rng(5)
    crops = random.integers(0, 256, (NUM_STUDIO, SIZE, SIZE, 3), np.uint8)
    rows = [
        {
            "face_id": f"studio/{n}", "image": {"bytes": faces.encode(crop), "path": None}, "label": n % 3,
            "subject": "", "split": "train", "landmarks": None, "score": None, "source": "x.png",
        }
        for n, crop in enumerate(crops)
    ]  # fmt: skip
    schema = faces.face_schema(CLASSES, crop=SIZE)
    faces.write_shard(copy / "data/faces/studio/train/part-00000.parquet", pa.Table.from_pylist(rows, schema=schema))
    place = copy / "data/embeddings/studio/part-00000.arrow"
    place.parent.mkdir(parents=True)
    names = pa.array([row["face_id"] for row in rows])
    write_embeddings(place, [(names, studio_vectors())], dimensions=WIDTH, model="1", shard="toy")
    return copy


def studio_vectors() -> np.ndarray:
    return np.random.default_rng(6).standard_normal((NUM_STUDIO, WIDTH)).astype(np.float16)


def test_the_columns_are_those_of_the_tables(project: Project, say: Say, tmp_path: Path) -> None:
    site = tmp_path / "site"
    assert "gone" in say("gallery", "--rev", "v3", "--compare", "v1", "--out", str(site))
    before, after = ({(row["pool"], row["face_id"]): row for row in project.rows[rev]} for rev in ("v1", "v3"))
    true = {name: CLASSES[number % 3] for number, name in enumerate(names_of("street"))}
    seen = {}
    for key, rows in lists_of(site, "mined").items():
        assert [row["rank"] for row in rows] == list(range(1, len(rows) + 1))
        for row in rows:
            face = row["pool"], row["face_id"]
            seen[face] = row
            expected, was = after[face], before.get(face)
            assert (row["label"], row["margin"], row["cosine"]) == tuple(
                expected[n] for n in ("label", "margin", "cosine")
            )
            assert key == f"mined-{CLASSES.index(expected['label'])}"
            assert row["truth"] == (true[face[1]] if face[0] == "street" else None)
            assert row["before"] == (was and was["label"])
            assert row["before_rank"] == (was["rank"] if was else 0)
            change = (
                "added"
                if not was
                else "relabelled"
                if was["label"] != row["label"]
                else "moved"
                if was["rank"] != row["rank"]
                else "same"
            )
            assert STATUS[row["status"]] == change
    assert seen.keys() == after.keys()
    gone = {(row["pool"], row["face_id"]): row for rows in lists_of(site, "gone").values() for row in rows}
    assert gone.keys() == before.keys() - after.keys()
    assert all(row["label"] == before[face]["label"] for face, row in gone.items())
    assert {len(seen), len(gone)} == {len(after), len(before.keys() - after.keys())}


def test_a_tile_is_the_thumbnail_of_its_face(project: Project, say: Say, tmp_path: Path) -> None:
    site = tmp_path / "site"
    say("gallery", "--out", str(site))
    crops = {pool: crops_of(project.folder, pool) for pool in POOLS}
    scores = {pool: dict(zip(names_of(pool), cosines(vectors_of(pool, 1)), strict=True)) for pool in POOLS}
    for key, rows in lists_of(site, "mined").items():
        for row, face in enumerate(rows):
            stored = crops[face["pool"]][face["face_id"]]
            encoded, detail = stored["image"]["bytes"], face["detail"]
            assert base64.b64decode(detail["picture"].partition("base64,")[2]) == encoded
            assert face["content"] == detail["content"] == hashlib.blake2b(encoded, digest_size=16).hexdigest()
            assert [detail[name] for name in ("face_id", "source", "subject", "landmarks")] == [
                stored[name] for name in ("face_id", "source", "subject", "landmarks")
            ]
            np.testing.assert_allclose(detail["cosines"], scores[face["pool"]][face["face_id"]], atol=1e-6)
            for letter, side, across in (("t", 112, 4), ("w", 56, 16)):
                sheet = Image.open(site / key / f"{letter}{row // across**2:04d}.jpg")
                assert sheet.size == (side * across,) * 2
                y, x = divmod(row % across**2, across)
                tile = np.asarray(sheet.crop((x * side, y * side, (x + 1) * side, (y + 1) * side)), int)
                small = Image.open(io.BytesIO(encoded)).convert("RGB").resize((side, side), Image.Resampling.LANCZOS)
                alone = io.BytesIO()
                small.save(alone, "JPEG", quality=80, subsampling=0)
                assert np.abs(tile - np.asarray(Image.open(alone), int)).mean() < 3  # two encoders; of another face 60


def test_nearest_anchor_faces_are_those_of_brute_force(anchored: Path, say: Say) -> None:
    say("gallery")
    site, anchors = anchored / "reports/gallery", studio_vectors().astype(np.float64)
    (shown,) = lists_of(site, "anchor").values()
    crops = crops_of(anchored, "studio")
    for face in shown:
        crop = crops[face["face_id"]]["image"]["bytes"]
        assert face["detail"]["content"] == hashlib.blake2b(crop, digest_size=16).hexdigest()
    vectors = {pool: dict(zip(names_of(pool), vectors_of(pool, 1).astype(np.float64), strict=True)) for pool in POOLS}
    for face in (face for rows in lists_of(site, "mined").values() for face in rows):
        vector = vectors[face["pool"]][face["face_id"]]
        cosine = anchors @ vector / np.linalg.norm(anchors, axis=1) / np.linalg.norm(vector)
        best = np.argsort(-cosine)[:6]
        assert [shown[row]["face_id"] for row, _ in face["detail"]["anchors"]] == [f"studio/{n}" for n in best]
        assert [shown[row]["label"] for row, _ in face["detail"]["anchors"]] == [CLASSES[n % 3] for n in best]
        np.testing.assert_allclose([value for _, value in face["detail"]["anchors"]], cosine[best], atol=1e-5)


def test_the_same_input_gives_the_same_bytes(anchored: Path, say: Say, tmp_path: Path) -> None:
    def files(site: Path) -> dict[str, bytes]:
        return {str(path.relative_to(site)): path.read_bytes() for path in sorted(site.rglob("*")) if path.is_file()}

    say("gallery", "--compare", "v1")
    first = files(anchored / "reports/gallery")
    (anchored / "reports/gallery/mined-0/stale.js").write_text("x")
    say("gallery", "--compare", "v1")
    assert files(anchored / "reports/gallery") == first


def test_nothing_but_a_gallery_is_replaced(project: Project, say: Say, tmp_path: Path) -> None:
    for name, text in (("index.js", "require('./src/app')\n"), ("index.js", 'gallery.take("index",{'), ("a.txt", "")):
        place = tmp_path / f"{name} of {len(text)}"
        place.mkdir()
        (place / name).write_text(text)
        assert "is no gallery; name another place" in say("gallery", "--out", str(place), code=1)
        assert "is no gallery; run" in say("view", "--folder", str(place), code=1)
        assert [(one.name, one.read_text()) for one in place.iterdir()] == [(name, text)]
    site = tmp_path / "site"
    say("gallery", "--out", str(site))
    (site / "review.csv").write_text("judged")
    assert "'review.csv' in it is no part of one" in say("gallery", "--out", str(site), code=1)
    assert (site / "review.csv").read_text() == "judged"
    assert sorted(one.name for one in tmp_path.iterdir() if "site" in one.name) == ["site"]


def test_each_project_has_a_name_of_its_own_for_browsers(
    project: Project, copy: Path, say: Say, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = []
    for folder in (copy, project.folder, copy):
        monkeypatch.chdir(folder)
        say("gallery", "--out", str(tmp_path / "site"))
        names.append(read_script(tmp_path / "site", "index")["project"])
        assert str(tmp_path) not in (tmp_path / "site/index.js").read_text()
    assert names[0] == names[2] != names[1]


def test_a_gallery_of_other_faces_than_those_of_the_lock_is_said(copy: Path, say: Say) -> None:
    def warnings() -> tuple[str, ...]:
        return next(iter(view(port=0))).warnings

    settings = project_settings(classes=CLASSES, pools=tuple(POOLS)).model_dump(mode="json")
    (copy / "params.yaml").write_text(json.dumps(settings))
    say("gallery")
    assert warnings() == ()
    lock = (copy / "dvc.lock").read_text()
    mined = read_script(copy / "reports/gallery", "index")["lineage"]["mined"]["data/mined"]
    (copy / "dvc.lock").write_text(lock.replace(mined, f"{'0' * 32}.dir"))
    (warning,) = warnings()
    assert warning.endswith("run: python -m fer_pipeline mined gallery --out reports/gallery")
    (copy / "dvc.lock").unlink()
    assert warnings() == ()


def test_a_detection_without_a_number_is_shown_without(copy: Path, say: Say) -> None:
    shard = copy / "data/faces/garden/train/part-00000.parquet"
    table = open_shard(shard).read()
    rows = table.to_pylist()
    for row in rows:
        row |= {"score": math.nan, "landmarks": [1.0] * 9 + [math.inf]}
    faces.write_shard(shard, pa.Table.from_pylist(rows, schema=table.schema))
    say("gallery")
    changed = {row["face_id"] for row in rows}
    shown = [row for rows in lists_of(copy / "reports/gallery", "mined").values() for row in rows]
    assert changed & {row["face_id"] for row in shown}
    for row in shown:
        known = row["face_id"] not in changed
        assert (row["detail"]["score"] == 0.5, row["detail"]["landmarks"] is not None) == (known, known)


def test_no_revision_and_no_list_are_said_in_a_line(project: Project, say: Say) -> None:
    assert "no revision ''" in say("gallery", "--rev", "", code=1)
    assert "no revision ''" in say("gallery", "--compare", "", code=1)
    assert "mined sample --out nope.csv" in say("gallery", "--faces", "nope.csv", code=1)


def test_a_list_of_faces_has_a_page_of_its_own(anchored: Path, say: Say, tmp_path: Path) -> None:
    random, listed = np.random.default_rng(1), tmp_path / "sample.csv"
    mined = {
        (row["pool"], row["face_id"]): row
        for row in json.loads(say("query", "SELECT * FROM mined", "--format", "json"))
    }
    names = [("street", name) for name in random.permutation(names_of("street"))[:30].tolist()] + [
        ("garden", "garden/3")
    ]
    crops = {pool: crops_of(anchored, pool) for pool in POOLS}
    with listed.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(HEADER.split(","))
        for pool, name in names:
            content = hashlib.blake2b(crops[pool][name]["image"]["bytes"], digest_size=16).hexdigest()
            listed_as = "fear" if name == "garden/3" else ""
            writer.writerow([name, pool, content if name != "garden/3" else "0" * 32, "", listed_as, "", "", "7"])
    told = say("gallery", "--faces", str(listed))
    assert f"{len(names)} chosen" in told
    site = anchored / "reports/gallery"
    assert any("another picture" in note for note in read_script(site, "index")["notes"])
    rows = lists_of(site, "chosen")["chosen"]
    assert [(row["pool"], row["face_id"]) for row in rows] == names
    assert {row["sample"] for row in rows} == {"7"}
    for row in rows:
        vector = cosines(vectors_of(row["pool"], 1))[names_of(row["pool"]).index(row["face_id"])]
        one = mined.get((row["pool"], row["face_id"]))
        assert row["label"] == ("fear" if row["face_id"] == "garden/3" else CLASSES[vector.argmax()])
        assert row["rank"] == (one["rank"] if one else 0)
        assert row["margin"] == pytest.approx(np.sort(vector)[-1] - np.sort(vector)[-2], abs=1e-6)
    listed.write_text(f"{HEADER}\nstreet/none,street,{'0' * 32},,,,,\n")
    assert "1 of 1 faces have no scores" in say("gallery", "--faces", str(listed), code=1)


@pytest.mark.parametrize("before", ["v1", "v2"])
def test_listed_faces_tell_what_they_were(anchored: Path, made: Project, say: Say, before: str) -> None:
    """Of a list of all faces: those that only the revision before has went; with itself nothing went."""
    was, now = ({(row["pool"], row["face_id"]): row for row in made.rows[rev]} for rev in (before, "v2"))
    writer = csv.writer(stream := io.StringIO(newline=""))
    writer.writerow(HEADER.split(","))
    for pool in POOLS:
        writer.writerows([name, pool, "0" * 32, "", "", "", "", ""] for name in names_of(pool))
    Path("list.csv").write_text(stream.getvalue(), encoding="utf-8")
    say("gallery", "--rev", "v2", "--compare", before, "--faces", "list.csv")
    site, seen = anchored / "reports/gallery", set()
    for row in lists_of(site, "chosen")["chosen"]:
        face = row["pool"], row["face_id"]
        one = was.get(face)
        status = None if row["status"] == NONE else STATUS[row["status"]]
        seen.add(status)
        if face not in now:
            assert status == ("removed" if one else None)
        assert (row["before"], row["before_rank"]) == ((one["label"], one["rank"]) if one else (None, 0))
        assert np.array_equal(row["before_margin"], np.float32(one["margin"] if one else np.nan), equal_nan=True)
        assert row["rank"] == (now[face]["rank"] if face in now else 0)
    assert ("removed" in seen) == (before == "v1")
    index = read_script(site, "index")
    assert index["labels"] == list(CLASSES)
    assert len(index["notes"]) == len(set(index["notes"])) == (3 if before == "v1" else 2)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[tuple[http.client.HTTPConnection, str, list[bytes], Path]]:
    """A connection to a server of a small folder, its token, what was posted, and the folder."""
    folder, posted = tmp_path / "site", list[bytes]()
    folder.mkdir()
    (tmp_path / "secret.txt").write_text("secret")
    for name in ("index.html", "index.js", "verdicts.js"):
        (folder / name).write_text("page")
    (folder / "out.js").symlink_to(tmp_path / "secret.txt")
    (folder / "inside").mkdir()
    for name in ("index.html", "index.htm"):
        (folder / name[6:]).mkdir()
        (folder / name[6:] / name).symlink_to(tmp_path / "secret.txt")

    def merge(data: bytes) -> str:
        if b"bad" in data:
            raise DataError("row 2 has\nno label; correct it")
        posted.append(data)
        return "2 verdicts saved"

    with serve(folder, 0, merge=merge, verdicts=lambda: b"fresh") as (server, address):
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=10)
        yield connection, address.partition("token=")[2], posted, folder
        connection.close()
        server.shutdown()
        thread.join()


def ask(site: Any, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, str, Any]:
    connection = site[0]
    connection.close()
    connection.putrequest(method, path, skip_host="Host" in headers)
    for name, value in headers.items():
        connection.putheader(name.replace("_", "-"), value)
    if body is not None and "Content_Length" not in headers:
        connection.putheader("Content-Length", str(len(body)))
    connection.endheaders(body)
    answer = connection.getresponse()
    return answer.status, answer.read().decode(), answer.headers


def test_the_server_answers_its_own_pages_alone(site: Any) -> None:
    status, text, headers = ask(site, "GET", "/")
    assert (status, text) == (200, "page")
    assert "script-src 'self'" in headers["Content-Security-Policy"]
    assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert ask(site, "GET", "/verdicts.js")[1] == "fresh"
    own = f"127.0.0.1:{site[0].port}"
    assert ask(site, "GET", "/index.js", Host=own, Origin=f"http://{own}")[0] == 200
    assert ask(site, "GET", "/index.js", Host="localhost:9", Sec_Fetch_Site="same-origin")[0] == 200  # through a tunnel
    foreign: list[dict[str, Any]] = [
        *({"Host": name} for name in ("evil.example", f"evil.example:{site[0].port}", "127.0.0.1.evil.example")),
        *({"Origin": name} for name in ("null", "http://evil.example", "http://127.0.0.1:1")),
        {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "no-cors"},
    ]
    for headers in foreign:
        assert ask(site, "GET", "/index.js", **headers)[0] == 403, headers
        assert ask(site, "POST", "/review", b"x", X_Token=site[1], **headers)[0] == 403, headers
    assert ask(site, "GET", "/", Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="navigate")[0] == 200  # a link to it
    assert site[2] == []


@pytest.mark.parametrize(
    "path",
    [
        "/../secret.txt",
        "/%2e%2e/secret.txt",
        "/..%2fsecret.txt",
        "/out.js",
        "/inside/",
        "/html/",
        "/htm/",
        "/%00",
        "//etc/passwd",
    ],
)
def test_no_path_leads_out_of_the_gallery(site: Any, path: str) -> None:
    status, text, _ = ask(site, "GET", path)
    assert status == 404
    assert "secret" not in text.replace("secret.txt", "")


def test_a_post_needs_the_token_and_bounds(site: Any) -> None:
    assert ask(site, "POST", "/review", b"rows")[0] == 403
    assert ask(site, "POST", "/review", b"rows", X_Token="wrong")[0] == 403
    assert ask(site, "POST", "/review", b"rows", X_Token=site[1] + "x")[0] == 403
    assert ask(site, "POST", "/other", b"rows", X_Token=site[1])[0] == 404
    assert ask(site, "POST", "/review", b"", X_Token=site[1], Content_Length=str(MOST_BYTES + 1))[0] == 413
    assert ask(site, "POST", "/review", b"", X_Token=site[1], Content_Length="9" * 5000)[0] == 413
    assert ask(site, "POST", "/review", b"", X_Token=site[1], Content_Length="-1")[0] == 411
    assert ask(site, "POST", "/review", X_Token=site[1])[0] == 411
    assert ask(site, "POST", "/review", b"bad", X_Token=site[1])[:2] == (409, "row 2 has no label; correct it\n")
    assert site[2] == []
    assert ask(site, "POST", "/review", b"rows", X_Token=site[1])[:2] == (200, "2 verdicts saved\n")
    assert site[2] == [b"rows"]
    assert ask(site, "PUT", "/review", b"rows", X_Token=site[1])[0] == 501


def test_view_merges_what_is_posted_until_it_is_interrupted(anchored: Path, say: Say) -> None:
    assert "is no gallery" in say("view", code=1)
    say("gallery")
    for pool in POOLS:
        shards = sorted((anchored / "data/faces" / pool / "train").glob("*.parquet"))
        tables = [pa.Table.from_batches(hash_faces(shard)) for shard in shards]
        write_contents(anchored / f"data/contents/{pool}.parquet", tables)
    face = lists_of(anchored / "reports/gallery", "mined")["mined-0"][0]
    command = [sys.executable, "-m", "fer_pipeline", "mined", "view", "--port", "0"]
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a suite in the background ignores it
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        signal.signal(signal.SIGINT, before)
        try:
            judge_in(process, command, face)
        finally:
            process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=20)[1] == ""
    assert process.returncode == 0


def judge_in(process: subprocess.Popen[str], command: list[str], face: dict[str, Any]) -> None:
    assert process.stdout is not None
    line = process.stdout.readline()
    address, token = line.partition("http://")[2].split()[0].split("/#token=")
    connection = http.client.HTTPConnection(address, timeout=10)
    row = [
        face["face_id"],
        face["pool"],
        face["content"],
        "wrong",
        "anger",
        'A "B"',
        "2026-11-28T07:00:00.000Z",
        "",
    ]
    text = io.StringIO(newline="")
    csv.writer(text).writerows([HEADER.split(","), row])
    connection.request("POST", "/review", text.getvalue().encode(), {"X-Token": token})
    answer = connection.getresponse()
    assert (answer.status, answer.read()) == (200, b"1 verdicts saved; data/review.csv has 1\n")
    for old, new, fault in (
        (face["content"], "0" * 32, "which shows another picture now, as 1 of 1 do; nothing was merged; take it back"),
        (f",{face['pool']},", ",attic,", "of 'attic', which is in no pool (street, garden), as 1 of 1 do"),
    ):
        connection.request("POST", "/review", text.getvalue().replace(old, new).encode(), {"X-Token": token})
        answer = connection.getresponse()
        told = answer.read().decode()
        assert (answer.status, told.count("\n")) == (409, 1)
        assert fault in told
        assert told.startswith("what was posted, row 2, judges the face ")
    with Path("data/review.csv").open(newline="", encoding="utf-8") as stream:
        assert [*csv.reader(stream)] == [HEADER.split(","), row]
    before = Path("data/review.csv").read_bytes()
    connection.request("POST", "/review", text.getvalue().replace("wrong", "perhaps").encode(), {"X-Token": token})
    answer = connection.getresponse()
    assert answer.status == 409
    assert b"perhaps" in answer.read()
    assert Path("data/review.csv").read_bytes() == before
    connection.request("GET", "/verdicts.js")
    judged, labels = connection.getresponse().read().decode().splitlines()
    assert json.loads(judged[len('gallery.take("verdicts",') : -1]) == [row]
    assert labels == f'gallery.take("labels",{json.dumps(CLASSES, separators=(",", ":"))})'
    row[3:5], row[6] = ("withdrawn", ""), "2026-11-28T08:00:00.000Z"
    text = io.StringIO(newline="")
    csv.writer(text).writerows([HEADER.split(","), row])
    connection.request("POST", "/review", text.getvalue().encode(), {"X-Token": token})
    assert connection.getresponse().read() == b"0 verdicts saved, 1 taken back; data/review.csv has 0\n"
    assert Path("data/review.csv").read_text() == f"{HEADER}\n"
    other = subprocess.run([*command[:-1], address.partition(":")[2]], capture_output=True, text=True)
    assert other.returncode == 1
    assert other.stderr.startswith("error: cannot listen at port")
    assert other.stderr.count("\n") == 1
