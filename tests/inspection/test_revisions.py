"""What a revision names is read where it lies, nothing else is touched, and all that differs between two is told."""

import threading
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fer_pipeline.artifacts.review import Judgement, changing_review, merge_reviews, read_review, write_review
from fer_pipeline.core.errors import DataError
from fer_pipeline.health.dvc_project import DvcConfig
from fer_pipeline.inspection import sql
from fer_pipeline.inspection.compare import compare_runs
from fer_pipeline.inspection.revisions import WORKSPACE, Revision
from fer_pipeline.inspection.tables import count_right

MD5 = "ab" + "c" * 30


def revision(tmp_path: Path, *paths: str) -> Revision:
    stages = {"made": {"outs": [{"path": path, "md5": MD5} for path in paths]}}
    for name in ("root", "view"):
        (tmp_path / name).mkdir()
    return Revision(WORKSPACE, "", stages, tmp_path / "root", tmp_path / "view", DvcConfig(tmp_path / "cache", {}))


def write_truth(path: Path, *names: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"face_id": names, "dominant": ["anger"] * len(names)}), path)


def test_truth_is_read_of_every_pool_wherever_it_lies(tmp_path: Path) -> None:
    one = revision(tmp_path, "data/truth/street.parquet", "data/truth/garden.parquet")
    write_truth(one.root / "data/truth/street.parquet", "s1", "s2")  # the other is in the cache alone
    write_truth(tmp_path / "cache/files/md5" / MD5[:2] / MD5[2:], "g1")
    columns = {
        "face_id": ["s1", "s2", "g1"],
        "pool": ["street", "street", "garden"],
        "label": ["anger", "fear", "anger"],
    }
    known, right = count_right(one, pa.table(columns))
    assert (known["*"], right["*"]) == (3, 2)


@pytest.mark.parametrize("path", ["data/mined/../../../out.parquet", "../data/mined"])
def test_an_output_that_leads_out_of_its_folder_is_refused(tmp_path: Path, path: str) -> None:
    one = revision(tmp_path, "data/mined/mined.parquet", path)
    inside = path.startswith("data/")
    if inside:
        with pytest.raises(DataError, match="leads out of its folder"):
            one.path("data/mined")
    assert not any(file.is_symlink() for file in tmp_path.rglob("*"))


def test_pools_are_those_of_the_lock_where_it_names_any(tmp_path: Path) -> None:
    one = revision(tmp_path, "data/scores/street")
    for name in ("street", "old_pool"):
        (one.root / "data/scores" / name).mkdir(parents=True)
    assert one.names("data/scores") == ["street"]
    (one.root / "data/other/loose").mkdir(parents=True)
    assert one.names("data/other") == ["loose"]


def test_values_that_differ_where_they_are_cut_are_told_whole() -> None:
    def lock(*classes: str) -> dict:
        params = {"params.yaml": {"classes": list(classes), "none": None}}
        return {"mine": {"cmd": "mine", "outs": [{"path": "data/mined"}], "params": params}}

    names = [f"class{number}" for number in range(12)]
    [row] = compare_runs(lock(*names), lock(*names[:8], "other", *names[9:])).to_pylist()
    assert row["name"] == "classes"
    assert "other" in row["after"]
    assert "other" not in row["before"]
    assert compare_runs(lock(*names), lock(*names)).num_rows == 0


def test_a_name_for_a_column_is_no_table() -> None:
    """What is not read need be in no cache."""
    assert sql._tables_in("SELECT label, count(*) AS faces FROM mined GROUP BY label") == ["mined"]
    assert sql._tables_in("SELECT * FROM scores JOIN faces USING (face_id)") == ["scores", "faces"]
    assert sql._tables_in("EXPLAIN SELECT * FROM Rejected") == ["rejected"]


def test_who_changes_the_verdicts_waits_for_another(tmp_path: Path) -> None:
    kept, classes = tmp_path / "review.csv", ("anger",)
    rows = [Judgement(f"f{n}", "street", "0" * 32, "right", "anger", "Ada", "2026-11-28T12:00:00Z") for n in (1, 2)]
    write_review(kept, [])

    def add(row: Judgement) -> None:
        with changing_review(kept):
            write_review(kept, merge_reviews(read_review(kept, classes=classes), [row]))

    other = threading.Thread(target=add, args=(rows[1],))
    with changing_review(kept):
        before = read_review(kept, classes=classes)
        other.start()
        other.join(0.3)
        assert other.is_alive()
        write_review(kept, merge_reviews(before, rows[:1]))
    other.join()
    assert [row.face_id for row in read_review(kept, classes=classes)] == ["f1", "f2"]
