"""`mined …` on three committed subsets and an experiment, each compared with what `mine` had written at the time."""

import csv
import io
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from dvc.repo import Repo
from typer.testing import CliRunner

from fer_pipeline.cli import app
from pipelines.repository import run_git
from tests.inspection.conftest import CLASSES, POOLS, STRANGE, Project, cosines, names_of, vectors_of

Say = Callable[..., str]
REVISIONS = ("v1", "v2", "v3", "wide")
LEARNER = {"v1": 0, "v2": 0, "v3": 1, "wide": 1}


def state_of(folder: Path) -> tuple[Any, ...]:
    """What git and DVC say of the workspace, and every file of it with its time."""
    status = subprocess.run(["git", "status", "--porcelain"], cwd=folder, capture_output=True, text=True).stdout
    with Repo(str(folder)) as repo:
        stale = repo.status()
    files = {
        path: path.stat().st_mtime_ns
        for path in folder.rglob("*")
        if path.is_file() and ".dvc" not in path.parts and ".git" not in path.parts
    }
    return status, stale, files, (folder / ".git/index").read_bytes(), (folder / ".git/HEAD").read_bytes()


@pytest.mark.parametrize("rev", REVISIONS)
def test_each_revision_shows_its_own_counts(project: Project, say: Say, rev: str) -> None:
    shown = {row["class"]: row for row in json.loads(say("show", "--rev", rev, "--format", "json"))}
    summary, rows = project.summaries[rev], project.rows[rev]
    counts = Counter(row["label"] for row in rows)
    assert {name: row["kept"] for name, row in shown.items()} == {**counts, "*": len(rows)}
    assert {name: shown[name]["margin"] for name in CLASSES} == summary["margins"]
    assert {name: shown[name]["precision"] for name in CLASSES} == {
        name: counts["precision"] for name, counts in summary["by_class"].items()
    }
    true = {name: CLASSES[number % 3] for number, name in enumerate(names_of("street"))}
    known = [row for row in rows if row["pool"] == "street"]
    right = [row for row in known if true[row["face_id"]] == row["label"]]
    assert shown["*"]["known"] == len(known)
    assert shown["*"]["true_precision"] == pytest.approx(len(right) / len(known))
    assert f"{len(rows):,} faces" in say("show", "--rev", rev)


def test_the_workspace_is_what_lies_there(project: Project, say: Say) -> None:
    assert say("show", "--format", "json") == say("show", "--rev", "wide", "--format", "json")
    assert say("show").startswith("workspace: ")


@pytest.mark.parametrize(("old", "new"), [*permutations(REVISIONS, 2)])
def test_a_difference_is_that_of_sets(project: Project, say: Say, old: str, new: str) -> None:
    found = json.loads(say("diff", old, new, "--format", "json"))
    before, after = ({(row["pool"], row["face_id"]): row for row in project.rows[rev]} for rev in (old, new))
    expected = {
        "added": after.keys() - before.keys(),
        "removed": before.keys() - after.keys(),
        "relabelled": {key for key in before.keys() & after.keys() if before[key]["label"] != after[key]["label"]},
    }
    expected["moved"] = {
        key for key in before.keys() & after.keys() if before[key]["rank"] != after[key]["rank"]
    } - expected["relabelled"]
    faces = {
        change: {(row["pool"], row["face_id"]) for row in found["faces"] if row["change"] == change}
        for change in expected
    }
    assert faces == expected
    assert len(found["faces"]) == sum(map(len, expected.values()))
    for row in found["faces"]:
        for side, rows in (("before", before), ("after", after)):
            one = rows.get((row["pool"], row["face_id"]), {})
            for name in ("label", "rank", "margin"):
                assert row[f"{name}_{side}"] == one.get(name)
    for row in found["classes"]:
        label = row["class"]
        assert row["before"] == sum(one["label"] == label for one in before.values())
        assert row["after"] == sum(one["label"] == label for one in after.values())
        assert row["added"] == sum(after[key]["label"] == label for key in expected["added"])
        assert row["removed"] == sum(before[key]["label"] == label for key in expected["removed"])
        assert row["relabelled_to"] == sum(after[key]["label"] == label for key in expected["relabelled"])
        assert row["relabelled_from"] == sum(before[key]["label"] == label for key in expected["relabelled"])
        stayed = row["after"] - row["added"] - row["relabelled_to"]
        assert stayed == row["moved"] + row["unchanged"]


def test_what_made_them_differ_is_that_of_the_locks(project: Project, say: Say) -> None:
    margins = json.loads(say("diff", "v1", "v2", "--format", "json"))["causes"]
    assert [row for row in margins if row["kind"] != "data"] == [
        {"kind": "parameter", "name": "mine.value", "stages": "mine", "before": "0.1", "after": "0.3"}
    ]
    causes = json.loads(say("diff", "v2", "v3", "--format", "json"))["causes"]
    by_kind = {(row["kind"], row["name"]) for row in causes}
    assert {name for kind, name in by_kind if kind == "code"} == {"fer_pipeline/rule.txt"}
    assert {name for kind, name in by_kind if kind == "weights"} == {"models/primitive"}
    assert {name for kind, name in by_kind if kind == "data"} == {
        *(f"data/embeddings/{pool}" for pool in POOLS), *(f"data/scores/{pool}" for pool in POOLS), "data/scores",
    }  # fmt: skip
    assert json.loads(say("diff", "v1", "v1", "--format", "json"))["causes"] == []
    assert "both runs had the same settings" in say("diff", "v1", "v1")


def test_a_difference_in_markdown_is_text(project: Project, say: Say) -> None:
    text = say("diff", "v1", "wide", "--format", "markdown", "--faces", "500")
    table = [line for line in text.splitlines() if line.startswith("| ")]
    assert "<b>" not in text
    assert "\x1b" not in text
    for rows in (table[:5],):  # as many cells as the header has, whatever stands in them
        cells = {len(line.replace("\\|", "").split(" | ")) for line in rows}
        assert len(cells) == 1
    assert "| anger | " in text


def test_the_log_has_a_row_for_each_subset(project: Project, say: Say) -> None:
    rows = json.loads(say("log", "--format", "json"))
    assert [(row["kind"], row["subject"].partition(" |")[0]) for row in rows] == [
        ("workspace", ""), ("commit", "margin 0.3"), ("commit", "margin 0.3"), ("commit", "margin 0.1"),
        ("experiment", rows[-1]["subject"]),
    ]  # fmt: skip
    assert rows[-1]["revision"] == "wide"
    for row, rev in zip(rows, ("wide", "v3", "v2", "v1", "wide"), strict=True):
        margin = {"v1": 0.1, "v2": 0.3, "v3": 0.3, "wide": 0.0}[rev]
        assert row["kept"] == len(project.rows[rev])
        assert row["kept_by_class"] == {
            name: counts["kept"] for name, counts in project.summaries[rev]["by_class"].items()
        }
        assert set(row["margins"].values()) == {margin}
        assert row["accuracies"] == pytest.approx({"vas on studio": 0.5 + margin, "vas on film": 0.25 + margin})
        assert row["missing"] is None
    line = next(line for line in say("log").splitlines() if "0.1 | <b>" in line)
    assert line.endswith("0.475")  # the mean over the targets
    assert json.loads(say("log", "--rev", "v2", "--format", "json"))[0]["subject"].startswith("margin 0.3")
    assert len(json.loads(say("log", "--rev", "v1", "--format", "json"))) == 2


def test_the_log_shows_the_measured_precision_of_each_version(copy: Path, say: Say) -> None:
    assert "measured" not in say("log"), "nothing was judged in any version"
    path = copy / "data/mined/summary.json"
    summary = json.loads(path.read_text())
    summary["precision"]["measured"] = {"drawn": 20, "judged": 18, "precision": 0.5, "low": 0.3, "high": 0.8}
    path.unlink()  # a link into the cache
    path.write_text(json.dumps(summary))
    with Repo(str(copy)) as repo:
        repo.commit(force=True)
        run_git(copy, "commit", "--all", "--quiet", "-m", "judged")
        repo.experiments.save(name="reviewed")
    rows = {row["revision"]: row for row in json.loads(say("log", "--format", "json"))}
    told = [rows["reviewed"][name] for name in ("drawn", "judged", "measured_precision", "measured_low")]
    assert told == [20, 18, 0.5, 0.3]
    assert {row["measured_high"] for name, row in rows.items() if row["subject"] != "judged"} == {None, 0.8}
    assert rows["wide"]["judged"] is None
    heads, *lines = say("log").splitlines()
    assert heads.index("estimated precision") < heads.index("measured precision") < heads.index("vas")
    for line in lines[1:]:
        judged = "judged" in line or "reviewed" in line
        assert ("0.500 [0.300, 0.800], 18 of 20 drawn" in line) == judged
        assert ("not known" in line) == (not judged)


def test_a_precision_by_another_model_than_the_labeller_says_so(copy: Path, say: Say) -> None:
    assert "calibration" not in say("show") + say("log")
    path = copy / "data/mined/summary.json"
    summary = json.loads(path.read_text())
    summary["heldout"]["model"] = "calibration"
    path.unlink()  # a link into the cache
    path.write_text(json.dumps(summary))
    assert "faces, precision estimated by the calibration model, which did not see the held-out faces" in say("show")
    with Repo(str(copy)) as repo:
        repo.commit(force=True)
    rows = json.loads(say("log", "--format", "json"))
    assert [row["model"] for row in rows if row["revision"] == "workspace"] == ["calibration"]
    assert [line.count("by calibration model") for line in say("log").splitlines() if "workspace" in line] == [1]


@pytest.mark.parametrize("rev", REVISIONS)
def test_sql_over_every_table(project: Project, say: Say, rev: str) -> None:
    def ask(sql: str) -> list[dict[str, Any]]:
        return json.loads(say("query", sql, "--rev", rev, "--format", "json"))

    assert ask("SELECT * FROM mined") == [pytest.approx(row) for row in project.rows[rev]]
    for pool in POOLS:
        cosine = cosines(vectors_of(pool, LEARNER[rev]))
        rows = ask(f"SELECT face_id, nearest, cosine FROM scores WHERE pool = '{pool}'")
        assert [row["face_id"] for row in rows] == names_of(pool)
        assert [row["nearest"] for row in rows] == [CLASSES[best] for best in cosine.argmax(axis=1)]
        assert np.array([row["cosine"] for row in rows], np.float32).tolist() == cosine.tolist()
    assert ask("SELECT dataset, count(*) AS n FROM faces GROUP BY ALL ORDER BY n") == [
        {"dataset": "garden", "n": 50}, {"dataset": "street", "n": 90},
    ]  # fmt: skip
    # A table that is read anew for every scan gives each of them all of its rows.
    assert ask("SELECT count(*) AS n FROM faces a JOIN faces b USING (face_id)") == [{"n": 140}]
    assert ask("SELECT DISTINCT reason FROM rejected") == [{"reason": "no_face"}]
    assert ask("show tables;") == [{"name": name} for name in ("mined", "scores", "faces", "rejected")]
    counts = Counter(row["label"] for row in project.rows[rev])
    pivot = "PIVOT (SELECT label FROM mined) ON label IN ('{}') USING count(*)".format("', '".join(CLASSES))
    assert ask(pivot) == [{name: counts[name] for name in CLASSES}]
    joined = ask("SELECT count(*) AS n, count(m.label) AS m FROM mined m JOIN faces f ON m.face_id = f.face_id")
    assert joined == [{"n": len(project.rows[rev]), "m": len(project.rows[rev])}]


def test_names_of_strangers_are_text_in_every_form(project: Project, say: Say) -> None:
    sql = "SELECT face_id FROM faces WHERE dataset = 'street' LIMIT 4"
    assert [row["face_id"] for row in json.loads(say("query", sql, "--format", "json"))] == [*STRANGE]
    table, text = say("query", sql), say("query", sql, "--format", "csv")
    for letter in "\x1b\x07\u202e":
        assert letter not in table + text
    assert max(map(len, table.splitlines())) <= 60
    rows = [row[0] for row in csv.reader(io.StringIO(text))]
    assert rows[1] == STRANGE[0]
    assert rows[3:] == [STRANGE[2], f"'{STRANGE[3]}"]


@pytest.mark.parametrize(
    ("sql", "fault"),
    [
        ("SELEC 1", "syntax error"),
        ("SELECT nope FROM mined", '"nope" not found'),
        ("SELECT * FROM nowhere", "the tables are mined, scores, faces, rejected"),
        ("", "0 statements"),
        ("SELECT 1; SELECT 2", "2 statements"),
        ("CREATE TABLE x AS SELECT 1", "CREATE is not allowed"),
        ("INSERT INTO mined VALUES (1)", "INSERT is not allowed"),
        ("UPDATE mined SET rank = 1", "UPDATE is not allowed"),
        ("COPY mined TO 'stolen.csv'", "COPY is not allowed"),
        ("EXPORT DATABASE 'stolen'", "EXPORT is not allowed"),
        ("ATTACH 'stolen.db'", "ATTACH is not allowed"),
        ("INSTALL httpfs", "LOAD is not allowed"),
        ("LOAD json", "LOAD is not allowed"),
        ("SET enable_external_access = true", "SET is not allowed"),
        ("SET lock_configuration = false", "SET is not allowed"),
        ("PRAGMA enable_profiling", "PRAGMA is not allowed"),
        ("CALL pragma_version()", "CALL is not allowed"),
        ("SELECT * FROM 'params.yaml'", "Table with name params.yaml"),
        ("SELECT * FROM read_csv('params.yaml')", "disabled by configuration"),
        ("SELECT * FROM read_text('params.yaml')", "disabled by configuration"),
        ("SELECT * FROM read_parquet('data/mined/mined.parquet')", "disabled by configuration"),
        ("SELECT * FROM glob('*')", "disabled by configuration"),
        ("SELECT * FROM scannable", "Table with name scannable"),  # a variable of the program
        ("SELECT list(a.range) FROM range(1000000000) a", "of memory"),
        ("SELECT repeat('x', 1000) FROM range(1000000)", "bytes; add a LIMIT"),
        ("SELECT 1 / 'x'", "Could not convert"),
        ("PIVOT mined ON label USING count(*)", "name them: PIVOT … ON label IN ("),
    ],
)
def test_sql_that_is_wrong_writes_or_reads_other_files(project: Project, say: Say, sql: str, fault: str) -> None:
    assert fault in say("query", sql, code=1)
    assert not list(project.folder.glob("stolen*"))


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (("show", "--rev", "nope"), "no revision 'nope'"),
        (("show", "--rev", ""), "no revision ''"),
        (("show", "--rev", "--all"), "no revision '--all'"),
        (("show", "--rev", "^v1"), "no revision '^v1'"),
        (("show", "--rev", "v1..v2"), "no revision 'v1..v2'"),
        (("show", "--rev", "a\nb\x1b[2J"), "no revision"),
        (("show", "--rev", "v1:dvc.lock"), "no revision"),
        (("show", "--rev", ":/no such text"), "no revision ':/no such text'"),
        (("show", "--rev", "before"), "has no data/mined: it has no dvc.lock that names a stage"),
        (("diff", "before", "v1"), "has no data/mined"),
        (("log", "--rev", "nope"), "no revision"),
        (("diff", "v1"), "missing argument 'rev_b'"),
        (("diff",), "missing argument 'rev_a'"),
        (("query", "SELECT 1 FROM mined", "--rows", "0"), "--rows must be at least 1"),
        (("diff", "v1", "v2", "--faces", "-1"), "--faces must be at least 0"),
        (("export", "--out", "params.yaml"), "is there already"),
        (
            ("export", "--out", "s.csv"),
            "s.csv would hold parquet, which its name contradicts; give --format csv, or a name",
        ),
        (("export", "--out", "s.parquet", "--format", "images"), "give --format parquet, or a name without .parquet"),
        (("export", "--out", "x", "--format", "atlas", "--neighbours", "0"), "--neighbours must be at least 1"),
    ],
)
def test_what_is_asked_wrongly_is_one_line(project: Project, say: Say, words: tuple[str, ...], fault: str) -> None:
    assert fault in say(*words, code=1)


def test_a_commit_is_found_by_its_text_and_a_long_name_is_cut(project: Project, say: Say) -> None:
    by_text, by_tag = (json.loads(say("show", "--rev", one, "--format", "json")) for one in (":/margin 0.1", "v1"))
    assert by_text == by_tag
    assert len(say("show", "--rev", "x" * 5000, code=1)) < 300


def test_the_log_has_the_accuracies_of_older_entries_than_one_without_final_models(copy: Path, say: Say) -> None:
    header = say("log").splitlines()[0].split()
    lock = yaml.safe_load((copy / "dvc.lock").read_text(encoding="utf-8"))
    lock["stages"] = {k: v for k, v in lock["stages"].items() if not k.startswith(("train_final", "evaluate"))}
    (copy / "dvc.lock").write_text(yaml.safe_dump(lock), encoding="utf-8")
    subprocess.run(["git", "commit", "--quiet", "-am", "mined alone"], cwd=copy, check=True)
    table = say("log").splitlines()
    assert table[0].split() == header
    accuracies = [line.split()[-1] for line in table if "<b>by</b>" in line]
    assert accuracies == ["0.675", "0.675", "0.475"], "means of the two targets of v3, v2 and v1"


def test_nothing_is_touched(project: Project, say: Say, tmp_path: Path) -> None:
    before = state_of(project.folder)
    say("show", "--rev", "v1")
    say("query", "SELECT * FROM scores, rejected", "--rev", "v2")
    say("query", "SELECT * FROM faces", "--rev", "wide")
    say("diff", "v1", "workspace")
    say("log")
    say("export", "--rev", "v3", "--out", str(tmp_path / "new" / "map.parquet"), "--format", "atlas")
    assert state_of(project.folder) == before


def test_what_the_cache_lacks_comes_from_the_remote(copy: Path, made: Project, say: Say) -> None:
    shutil.rmtree(copy / ".dvc/cache")
    shutil.rmtree(copy / "data/mined")
    git, _, *files = state_of(copy)  # what is in the cache again is no longer missing there
    rows = json.loads(say("query", "SELECT * FROM mined", "--rev", "v1", "--format", "json"))
    assert [row["face_id"] for row in rows] == [row["face_id"] for row in made.rows["v1"]]
    fetched = [path for path in (copy / ".dvc/cache/files/md5").rglob("*") if path.is_file()]
    assert len(fetched) == 3  # the list, the rows and the summary; not the random faces, nor the sweep
    assert [row["missing"] for row in json.loads(say("log", "--format", "json"))] == [None] * 5
    after = state_of(copy)
    assert (after[0], [*after[2:]]) == (git, files)


def test_what_is_nowhere_is_named_with_a_remedy(copy: Path, say: Say) -> None:
    shutil.rmtree(copy / ".dvc/cache")
    shutil.rmtree(copy / "data/mined")
    shutil.rmtree(copy.parent / "remote")
    text = say("show", "--rev", "v1", code=1)
    assert "data/mined of v1" in text
    assert "neither in DVC's cache nor fetched from a remote" in text
    assert "dvc push --all-commits" in text
    rows = json.loads(say("log", "--format", "json"))
    assert [row["kept"] for row in rows][1:] == [None] * 4
    assert all("data/mined" in row["missing"] for row in rows[1:])
    config = (copy / ".dvc/config").read_text()
    (copy / ".dvc/config").write_text(config.partition("    remote =")[0])
    assert "no remote" in say("diff", "v1", "v2", code=1)


def test_damaged_bytes_are_found_by_fsck(copy: Path, made: Project, say: Say) -> None:
    for path in (copy / ".dvc/cache/files/md5").rglob("*"):
        if path.is_file() and path.read_bytes()[:4] == b"PAR1":
            path.chmod(0o644)
            path.write_bytes(path.read_bytes()[:100])
    text = say("show", "--rev", "v1", code=1)
    assert text.startswith("error: v1 (")
    assert "data/mined/mined.parquet is no readable Parquet file" in text
    assert "fsck" in text
    assert "/tmp" not in text
    assert "no readable" in say("query", "SELECT * FROM faces", "--rev", "v1", code=1)
    lock = copy / "dvc.lock"
    lock.write_text("stages: [")
    subprocess.run(["git", "commit", "--quiet", "-am", "broken"], cwd=copy, check=True)
    assert "dvc.lock of HEAD is broken" in say("show", "--rev", "HEAD", code=1)
    rows = json.loads(say("log", "--format", "json"))
    assert "is broken" in rows[1]["missing"]
    assert "estimated precision" in say("log").splitlines()[0]
    assert say("log").splitlines()[0].split()[-1] in ("vas", "das"), (
        "the newest lock that can be read names the recipes"
    )
    shutil.rmtree(copy / ".dvc/cache")
    shutil.rmtree(copy / "data/mined")
    (copy / ".dvc/config").write_text("", encoding="utf-8")  # no remote either
    assert "140" not in say("log"), "no row has mined faces"
    assert len(rows) == 6  # the others are listed all the same


def test_a_workspace_that_was_not_recorded_is_told(copy: Path, say: Say) -> None:
    def warned(*words: str) -> bool:
        result = CliRunner().invoke(app, ["mined", *words])
        assert result.exit_code == 0
        return "data/mined here is not what dvc.lock records" in result.stderr

    assert not warned("show")
    shutil.copy(copy / "data/mined/random.parquet", copy / "data/mined/other.parquet")
    assert warned("show")
    assert warned("diff", "v1", "workspace", "--format", "json")
    assert not warned("diff", "v1", "v2")


def test_what_is_no_number_of_json_is_null(project: Project, say: Say) -> None:
    sql = (
        "SELECT 'nan'::DOUBLE AS a, ['inf'::FLOAT] AS b, 1.5 AS c, DATE '2026-01-02' AS d, 1 AS a, sum(2::BIGINT) AS e"
    )
    expected = [{"a": None, "b": [None], "c": 1.5, "d": "2026-01-02", "a_2": 1, "e": 2}]
    assert json.loads(say("query", sql, "--format", "json")) == expected


def test_two_experiments_of_one_name_are_told_apart(copy: Path, say: Say) -> None:
    commit = subprocess.run(["git", "rev-parse", "v1"], cwd=copy, capture_output=True, text=True).stdout.strip()
    other = f"refs/exps/{commit[:2]}/{commit[2:]}/wide"
    subprocess.run(["git", "update-ref", other, "v1"], cwd=copy, check=True)
    assert other in say("show", "--rev", "wide", code=1)
    assert say("show", "--rev", other, "--format", "csv") == say("show", "--rev", "v1", "--format", "csv")


def test_of_a_folder_for_each_seed_the_first_or_the_named_is_read(copy: Path, made: Project, say: Say) -> None:
    (copy / "data/mined").rename(copy / "other")
    for seed in (7, 8):
        shutil.copytree(copy / "other", copy / "data/mined" / str(seed))
    summary = json.loads((copy / "data/mined/8/summary.json").read_text())
    (copy / "data/mined/8/summary.json").unlink()  # a link into the cache
    (copy / "data/mined/8/summary.json").write_text(json.dumps(summary | {"kept": 1_234}))
    (copy / "data/mined/seeds.json").write_text('{"seeds": [7, 8]}')
    first = f"workspace, seed 7 of 7, 8: {len(made.rows['wide']):,} faces"
    telling = "workspace: this is of the seed 7 alone; --seed reads another (8)"
    for words, title in {(): first, ("--seed", "8"): "workspace, seed 8 of 7, 8: 1,234 faces"}.items():
        result = CliRunner().invoke(app, ["mined", "show", *words])
        assert title in result.stdout
        assert (telling in result.stderr) == (not words)
    assert "data/mined has the seeds 7, 8, not 9; name one of them" in say("show", "--seed", "9", code=1)
    assert "for all seeds; leave --seed out" in say("show", "--rev", "v1", "--seed", "7", code=1)
    assert "for all seeds; leave --seed out" in say("log", "--rev", "v2", "--seed", "7", code=1)
    with Repo(str(copy)) as repo:
        repo.commit(force=True)
    subprocess.run(["git", "commit", "--quiet", "-am", "seeds"], cwd=copy, check=True)
    shutil.rmtree(copy / "data/mined")
    assert f"{len(made.rows['wide']):,} faces" in say("show", "--rev", "HEAD")
    logged = [json.loads(say("log", "--format", "json", *words))[0] for words in ((), ("--seed", "8"))]
    assert [(row["seed"], row["seeds"], row["kept"]) for row in logged] == [
        (7, "7, 8", len(made.rows["wide"])), (8, "7, 8", 1_234)
    ]  # fmt: skip


def test_a_mistake_is_one_line_of_a_process_too(project: Project, root: Path) -> None:
    """What is left of a database when Python ends, its library would list on many lines."""
    command = [sys.executable, "-m", "fer_pipeline", "mined", "query", "SELECT nope FROM mined"]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run(command, cwd=project.folder, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1), done.stderr


def test_without_git_the_workspace_is_read(copy: Path, say: Say) -> None:
    shutil.rmtree(copy / ".git")
    assert say("show").startswith("workspace: ")
    assert "in no git repository" in say("show", "--rev", "v1", code=1)
    shutil.rmtree(copy / ".dvc")
    assert "no .dvc folder" in say("show", code=1)
