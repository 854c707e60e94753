"""The command from end to end on a tiny measure: table, files of the day, exit codes."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from benchmarks import measures
from benchmarks.harness.records import keep, record
from benchmarks.harness.rounds import Rounds
from benchmarks.harness.rows import Row
from benchmarks.harness.works import available, chosen
from benchmarks.run import main
from fer_pipeline.core.errors import ConfigError


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(measures, "__path__", [str(Path(__file__).parent / "measures")])
    application = typer.Typer()
    application.command()(main)
    return lambda *arguments: CliRunner().invoke(application, [str(each) for each in arguments])


def test_a_run_is_kept_with_its_rows_rounds_and_machine(run, tmp_path: Path) -> None:
    out, scratch = tmp_path / "results", tmp_path / "scratch"
    scratch.mkdir()
    told = run("tiny", "--quick", "--out", out, "--scratch", scratch)
    assert told.exit_code == 1, "a side could not be measured"
    assert not list(scratch.iterdir()), "the scratch folder is removed"

    (kept,) = out.glob("bench-*.json")
    report = json.loads(kept.read_text())
    work = report["works"]["tiny"]
    assert report["quick"] is True
    assert [(row["ours"], row["ratio"], row["met"]) for row in work["rows"]] == [
        (4, 2.0, True),
        (4, None, False),
        (None, None, None),
    ]
    assert work["rows"][2]["note"] == "broken: ValueError: no such picture"
    assert [(side["side"], len(side["cpu"])) for side in work["sides"]] == [("ours", 2), ("broken", 0)]

    page = kept.with_suffix(".md").read_text()
    assert "| tiny | counted | 4 | 2 | 2.00× | ≥ 2× | met |  |" in page
    assert "| tiny | counted | 4 |  |  | ≤ 3 | missed | four \\| is more |" in page
    assert "Targets: 1 met, 1 missed." in page
    assert "| tiny | broken | ValueError: no such picture |" in page
    assert "| tiny | ours | step 2 |" in page
    assert re.search(rf"^\| tiny \| \d{{4}}-.* UTC \| {work['commit']}", page, re.M)
    assert "not measured" in told.output


def test_a_failing_measure_is_a_row_and_keeps_the_others(run, tmp_path: Path) -> None:
    assert run("tiny", "--quick", "--out", tmp_path).exit_code == 1
    assert run("wrong", "--quick", "--out", tmp_path).exit_code == 1
    (kept,) = tmp_path.glob("bench-*.json")
    works = json.loads(kept.read_text())["works"]
    assert set(works) == {"tiny", "wrong"}
    first, last = works["wrong"]["rows"]
    assert (last["figure"], last["note"]) == ("not measured", "KeyError: 'labels'")
    assert not Path(first["figure"]).exists()


def test_small_sizes_are_kept_nowhere_unless_asked(run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("benchmarks.run.RESULTS", tmp_path / "results")
    run("wrong", "--quick")
    assert not (tmp_path / "results").exists()


def test_an_unknown_work_is_one_line(run) -> None:
    told = run("tinny")
    assert told.exit_code == 1
    assert told.stderr == "error: unknown benchmark 'tinny'; choose from tiny, wrong\n"


def test_the_true_measures_stand_in_order() -> None:
    names = available()
    assert chosen([]) == names
    assert chosen(names[::-1]) == names
    with pytest.raises(ConfigError):
        chosen(["no_such_work"])


def test_a_record_holds_only_what_json_can() -> None:
    rounds = Rounds("ours", facts=[{"share": float("nan"), "labels": [1, "/tmp/here/x", "/a/b/c"]}])
    kept = record(
        [Row("w", "f", np.float32(0.5), math.inf, None, "", np.bool_(True))],
        [rounds],
        {"load": 1.0},
        {"/tmp/here": "SCRATCH"},
    )
    assert [kept["rows"][0][key] for key in ("ours", "peer", "met")] == [0.5, None, True]
    assert kept["load"] == 1.0
    assert kept["sides"][0]["facts"] == [{"share": None, "labels": [1, "SCRATCH/x", "…/c"]}]
    assert json.loads(json.dumps(kept, allow_nan=False)) == kept


def test_a_long_list_is_kept_as_its_digest() -> None:
    one, other = (
        record([], [Rounds("ours", facts=[{"boxes": [[0.0, last]] * 101}])], {}, {})["sides"][0]["facts"][0]["boxes"]
        for last in (1.0, 2.0)
    )
    assert one.startswith("101 entries, SHA-256 ")
    assert one != other


def test_records_of_another_machine_or_size_stand_in_files_of_their_own(tmp_path: Path) -> None:
    def kept(cores: int, quick: bool, name: str) -> tuple[str, set[str]]:
        work = {"rows": [], "sides": [], "commit": "abc", "changed": False, "load": 0.1, "measured": "", "seconds": 6.0}
        work["packages"] = {"numpy": {"a": "2.4", "b": "2.5"}[name]}
        machine = {"processor": "", "cores": cores, "memory_gb": 1, "system": "", "python": "", "gpu": None}
        page = keep(tmp_path, "2026-01-02", machine, quick, {name: work}, ["b", "a"])
        works = json.loads(page.with_suffix(".json").read_text())["works"]
        assert ("numpy 2.4 or 2.5." in page.read_text()) == (len(works) == 2)
        assert [line.split()[1] for line in page.read_text().splitlines()[-len(works) :]] == sorted(works)[::-1]
        return page.name, set(works)

    assert kept(2, False, "a") == ("bench-2026-01-02.md", {"a"})
    assert kept(2, False, "b") == ("bench-2026-01-02.md", {"a", "b"})
    assert kept(4, False, "a") == ("bench-2026-01-02-2.md", {"a"})
    assert kept(2, True, "a") == ("bench-2026-01-02-3.md", {"a"})
    assert kept(4, False, "b") == ("bench-2026-01-02-2.md", {"a", "b"})
    assert kept(2, False, "a") == ("bench-2026-01-02.md", {"a", "b"})
