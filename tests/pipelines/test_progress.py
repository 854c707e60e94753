"""Progress of stages: what the stages' own writer writes, rubbish and half files, keys that Prefect takes."""

import json
import logging
import os
import time
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from prefect.client.schemas.actions import ArtifactCreate

from fer_pipeline.core.progress import progress
from fer_pipeline.sharding.run import ProgressFile
from pipelines import artifacts as module
from pipelines.artifacts import artifact_key, format_progress, percent, read_progress, report_progress


def write(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return path


@pytest.mark.parametrize(
    "content",
    [b"", b'{"done": 3, "tot', b"[3]", b"7", b"\xff", {}, {"done": "3"}, {"done": True}, {"done": None}, {"done": -1},
     b'{"done": NaN}', b'{"done": Infinity}'],
)  # fmt: skip
def test_rubbish_is_no_progress(tmp_path: Path, content: Any) -> None:
    assert read_progress(write(tmp_path / "x.json", content), since=0) is None


def test_what_an_earlier_run_wrote_is_no_progress(tmp_path: Path) -> None:
    path = write(tmp_path / "x.json", {"done": 3})
    os.utime(path, (1000, 1000))
    assert read_progress(path, since=1000.5) is None
    assert read_progress(path, since=999.5) == {"done": 3}
    assert read_progress(tmp_path / "none.json", since=0) is None
    assert read_progress(tmp_path, since=0) is None


@pytest.mark.parametrize(
    ("now", "percentage", "line"),
    [
        ({"done": 45120, "total": 58000, "unit": "pictures", "rate": 310.4, "seconds_left": 720, "state": "running"},
         77.793, "a@b: 45,120 of 58,000 pictures, 310/s, 12 min left"),
        ({"done": 5, "total": 10, "rate": 0.25, "seconds_left": 20, "state": "running"},
         50, "a@b: 5 of 10 items, 0.2/s, 20 s left"),
        ({"done": 10, "total": 10, "rate": 0, "seconds_left": 0, "state": "done"}, 100, "a@b: 10 of 10 items"),
        ({"done": 12, "total": 10}, 100, "a@b: 12 of 10 items"),
        ({"done": 12, "total": None, "rate": None, "seconds_left": None, "state": "running"}, 0, "a@b: 12 items"),
        ({"done": 1, "total": "9", "rate": "fast", "seconds_left": [1], "state": "running"}, 0, "a@b: 1 items"),
        ({"done": 1, "total": 8, "rate": float("nan"), "seconds_left": 8000, "state": "running"},
         12.5, "a@b: 1 of 8 items, 2.2 h left"),
    ],
)  # fmt: skip
def test_progress_reads_as_a_line_and_a_percentage(
    tmp_path: Path, now: dict[str, Any], percentage: float, line: str
) -> None:
    found = read_progress(write(tmp_path / "x.json", now), since=0)
    assert found is not None
    assert format_progress("a@b", found) == line
    assert percent(found) == pytest.approx(percentage, abs=1e-3)


@pytest.mark.parametrize("stage", ["align@studio", "Mine", "sub/dvc.yaml:x@Ü_ß.1", "evaluate@vas-straße", "训练@集"])
def test_prefect_takes_the_key_of_any_stage(stage: str) -> None:
    assert ArtifactCreate(key=artifact_key(stage)).key == artifact_key(stage)


def test_a_stage_is_followed_from_its_own_file_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[tuple[float, str | None]] = []
    ids: list[UUID] = []

    def create(value: float, key: str, description: str) -> UUID:
        shown.append((value, description))
        ids.append(uuid4())
        return ids[-1]

    def update(artifact: UUID, value: float, description: str) -> None:
        assert artifact == ids[0]
        shown.append((value, description))
        if len(shown) == 2:
            raise ConnectionError("the server is away")

    monkeypatch.setattr(module, "SECONDS_BETWEEN_LOOKS", 0.01)
    monkeypatch.setattr(module, "create_progress_artifact", create)
    monkeypatch.setattr(module, "update_progress_artifact", update)
    write(tmp_path / ".store" / "progress" / "align@studio.json", {"done": 99, "total": 100})
    os.utime(tmp_path / ".store" / "progress" / "align@studio.json", (0, 0))  # an earlier run's
    with report_progress(tmp_path, "align@studio", logging.getLogger("test")):
        for done in (1, 2, 3):
            time.sleep(0.05)
            write(tmp_path / ".store" / "progress" / "align@studio.json", {"done": done, "total": 4})
    assert len(ids) == 1
    assert shown[0][0] < 99
    assert shown[-1] == (75.0, "align@studio: 3 of 4 items")  # read once more after the end


@pytest.mark.parametrize(("stage", "words"), [("align@studio", ("align", "studio")), ("mine", ("mine", ""))])
def test_what_the_stages_write_is_found_and_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str, words: tuple[str, str]
) -> None:
    shown: list[str] = []
    monkeypatch.setattr(module, "create_progress_artifact", lambda value, key, description: shown.append(description))
    progress_file = ProgressFile(tmp_path / ".store", *words)
    with report_progress(tmp_path, stage, logging.getLogger("test")), progress_file.follow():
        with progress("faces", 4, "faces") as advance:
            advance(3)
    assert len(shown) == 1
    assert shown[0].startswith(f"{stage}: 3 of 4 faces, ")
    assert "left" not in shown[0]  # it has ended
