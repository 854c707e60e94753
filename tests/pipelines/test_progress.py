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
from pipelines import progress as module
from pipelines.progress import format_progress, format_run, percent, read_progress, report_progress


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


class Bar:
    """What was shown: how much is done, and the lines."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.shown: list[tuple[float, list[str]]] = []
        self.id = uuid4()
        monkeypatch.setattr(module, "SECONDS_BETWEEN_LOOKS", 0.01)
        monkeypatch.setattr(module, "get_run_logger", lambda: logging.getLogger("test"))
        monkeypatch.setattr(module, "create_progress_artifact", self.create)
        monkeypatch.setattr(module, "update_progress_artifact", self.update)

    def create(self, value: float, key: str, description: str) -> UUID:
        assert ArtifactCreate(key=key).key == key
        assert self.shown == []
        self.shown.append((value, description.split("\n\n")))
        return self.id

    def update(self, artifact: UUID, value: float, description: str) -> None:
        assert artifact == self.id
        self.shown.append((value, description.split("\n\n")))
        if len(self.shown) == 2:
            raise ConnectionError("the server is away")

    def wait_for(self, *lines: str) -> None:
        deadline = time.monotonic() + 60
        while not (self.shown and self.shown[-1][1] == list(lines)):
            assert time.monotonic() < deadline, self.shown[-3:]
            time.sleep(0.01)


def test_all_stages_of_a_run_have_one_bar_in_which_the_longer_one_has_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bar, outcomes, store = Bar(monkeypatch), dict[str, str](), tmp_path / ".store"
    write(store / "provenance" / "align@studio.json", {"seconds": 30})
    write(store / "provenance" / "mine.json", {"seconds": 10})
    write(store / "progress" / "align@studio.json", {"done": 99, "total": 100})
    os.utime(store / "progress" / "align@studio.json", (0, 0))  # an earlier run's
    with report_progress(tmp_path, ["align@studio", "mine", "report"], outcomes):  # report: as long as the others' mean
        bar.wait_for("0 %")
        write(store / "progress" / "align@studio.json", {"done": 2, "total": 4})
        bar.wait_for("25 %", "align@studio: 2 of 4 items")
        outcomes["align@studio"] = "Completed"
        bar.wait_for("50 %")
        write(store / "progress" / "mine@.json", {"done": 3, "total": None, "unit": "faces"})
        bar.wait_for("50 %", "mine: 3 faces")
        outcomes |= {"mine": "Completed", "report": "Failed"}
    assert bar.shown[-1] == (100.0, ["100 %"])  # looked at once more after the end


def test_a_run_with_nothing_to_do_has_no_bar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bar = Bar(monkeypatch)
    with report_progress(tmp_path, [], {}):
        pass
    assert bar.shown == []


@pytest.mark.parametrize(
    ("share", "seconds", "text"),
    [(0.5, 60, "50 %, about 60 s left"), (0.04, 600, "4 %"), (0.5, 5, "50 %"), (1, 60, "100 %"),
     (0.1, 1800, "10 %, about 4.5 h left")],
)  # fmt: skip
def test_the_time_left_is_told_when_enough_is_done(share: float, seconds: float, text: str) -> None:
    assert format_run(share, seconds) == text


@pytest.mark.parametrize(("stage", "words"), [("align@studio", ("align", "studio")), ("mine", ("mine", ""))])
def test_what_the_stages_write_is_found_and_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str, words: tuple[str, str]
) -> None:
    bar, progress_file = Bar(monkeypatch), ProgressFile(tmp_path / ".store", *words)
    with report_progress(tmp_path, [stage], {}), progress_file.follow():
        with progress("faces", 4, "faces") as advance:
            advance(1, earlier=True)
            advance(2)
    share, (_, line) = bar.shown[-1]
    assert share == 75
    assert line.startswith(f"{stage}: 3 of 4 faces (1 of an earlier run), ")
    assert "left" not in line  # it has ended
