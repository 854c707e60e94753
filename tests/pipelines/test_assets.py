"""Outputs as assets: what the server knows of them against git, hashlib and tables counted by hand."""

import hashlib
import subprocess
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from prefect.server.events.schemas.automations import EventTrigger
from prefect.server.events.schemas.events import ReceivedEvent
from prefect.settings import PREFECT_API_URL, PREFECT_HOME, temporary_settings

from pipelines.assets import Repository, count_rows, find
from pipelines.reproduce import reproduce
from tests.pipelines.test_reproduce import make_world
from tests.prefect_server import Api

LATEST = 60  # seconds until an event is on the server


def emitted(api: Api, key: str) -> list[dict[str, Any]]:
    """The events about the assets whose keys begin so, the oldest first."""
    answer = api.ask("/events/filter", {"filter": {"event": {"prefix": ["prefect.asset"]}}, "limit": 50})
    found = [one for one in answer["events"] if one["resource"]["prefect.resource.id"].startswith(key)]
    return sorted(found, key=lambda one: one["occurred"])


def test_stages_that_ran_emit_their_outputs_and_cached_ones_none(
    server: str, server_environment: dict[str, str], tmp_path: Path, root: Path
) -> None:
    api, world = Api(server), make_world(tmp_path / "assets")
    author = ["-c", "user.name=t", "-c", "user.email=t@t"]

    def run(targets: list[str], number: int) -> list[dict[str, Any]]:
        with temporary_settings({PREFECT_API_URL: api.url, PREFECT_HOME: server_environment["PREFECT_HOME"]}):
            assert reproduce(workspace=str(world), targets=targets, return_state=True).is_completed()
        deadline = time.monotonic() + LATEST
        while len(events := emitted(api, "dvc://assets/")) < number and time.monotonic() < deadline:
            time.sleep(0.2)
        return events

    events = run(["count@odd"], 3)
    even, odd, count = sorted(events, key=lambda one: ("even", "odd", "count-odd").index(_path(one)))
    revision = subprocess.run(["git", "rev-parse", "HEAD"], cwd=world, capture_output=True, text=True).stdout.strip()
    for event, content in ((even, "2\n4"), (odd, "1\n3\n5"), (count, "3")):
        assert event["event"] == "prefect.asset.materialization.succeeded"
        assert event["resource"]["dvc.changed"] == "true"
        payload = {name: event["payload"][name] for name in ("md5", "size", "files", "rows", "revision")}
        md5 = hashlib.md5(content.encode()).hexdigest()
        assert payload == {"md5": md5, "size": len(content), "files": 1, "rows": {}, "revision": revision}
        assert any(one["prefect.resource.id"].startswith("prefect.task-run.") for one in event["related"])
    upstream = {one["prefect.resource.id"] for one in count["related"] if one["prefect.resource.role"] == "asset"}
    assert upstream == {"dvc://assets/data/odd"}

    # Another even number: `split` runs and `odd` stays what it was; `count@odd` is found unchanged and emits nothing.
    (world / "raw" / "a.txt").write_text("1 2 3 4 5 6")
    subprocess.run(["git", *author, "commit", "-qm", "two", "--allow-empty"], cwd=world, check=True)
    later = run(["count@odd"], 5)[3:]
    assert {(_path(one), one["resource"]["dvc.changed"]) for one in later} == {("even", "true"), ("odd", "false")}
    assert len(run(["count@odd"], 5)) == 5, "a run in which nothing was to do"

    # The automation on changed faces, were they the odd numbers.
    file = root / "pipelines/deployments/automations/mined-changed.yaml"
    trigger: Any = EventTrigger.model_validate(yaml.safe_load(file.read_text(encoding="utf-8"))["trigger"])
    assert trigger.match.root["prefect.resource.name"] == "data/mined"
    trigger.match.root["prefect.resource.name"] = "data/odd"
    assert [trigger.covers(ReceivedEvent.model_validate(one)) for one in (even, odd, count)] == [False, True, False]
    assert not any(trigger.covers(ReceivedEvent.model_validate(one)) for one in later)


def _path(event: dict[str, Any]) -> str:
    return event["resource"]["prefect.resource.name"].removeprefix("data/")


def test_rows_of_shards_are_counted_together(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    for number, rows in enumerate((3, 0, 4)):
        pq.write_table(pa.table({"x": list(range(rows))}), tmp_path / "train" / f"part-{number:05}.parquet")
    table = pa.table({"x": [1, 2]})
    with pa.ipc.new_file(str(tmp_path / "scores.arrow"), table.schema) as writer:
        writer.write_table(table)
    (tmp_path / "damaged.parquet").write_bytes(b"PAR1 and no more")
    (tmp_path / "summary.json").write_text("{}")
    assert count_rows(tmp_path) == {"train/part-*.parquet": 7, "scores.arrow": 2}
    assert count_rows(tmp_path / "scores.arrow") == {"scores.arrow": 2}
    assert count_rows(tmp_path / "absent") == {}


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://user:secret@host/team/faces.git", "faces"),
        ("git@host:faces.git", "faces"),
        ("/mnt/repositories/faces/", "faces"),
        (None, "world"),
    ],
)
def test_assets_are_named_after_the_repository(tmp_path: Path, url: str | None, name: str) -> None:
    world = make_world(tmp_path / "world")
    if url:
        subprocess.run(["git", "remote", "add", "origin", url], cwd=world, check=True)
    subprocess.run(["git", "worktree", "add", "-q", "--detach", "../elsewhere"], cwd=world, check=True)
    (world / "inner").mkdir()
    assert find(world).name == find(tmp_path / "elsewhere").name == find(world / "inner").name == name
    assert find(world / "inner").key("data/mined") == f"dvc://{name}/inner/data/mined"


def test_keys_are_what_prefect_takes(tmp_path: Path) -> None:
    assert Repository("my faces #1", None, "").key("data/50 %/é") == "dvc://my_faces_1/data/50_/_"
    assert len(Repository("r", None, "").key("x" * 2_000)) == 512
    assert find(tmp_path) == Repository(tmp_path.name, None, ""), "no git"
