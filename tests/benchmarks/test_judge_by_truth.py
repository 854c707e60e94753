"""A list is judged as the truth says, and what that does not know stays open."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from benchmarks.judge_by_truth import WHEN, WHO, main
from fer_pipeline.artifacts.review import Judgement, read_review, write_review
from tests.project import project_settings


def test_a_list_is_judged_by_the_truth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    settings = project_settings()
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(settings.model_dump(mode="json")), encoding="utf-8")
    (tmp_path / "truth").mkdir()
    shows = {"a": "anger", "b": "fear", "c": None, "d": "contempt"}
    rows = pa.table({"face_id": [*shows], "dominant": pa.array(shows.values(), pa.string())})
    pq.write_table(rows, tmp_path / "truth/street.parquet")
    opened = [Judgement(name, "street", "0" * 32, label="anger", sample="3") for name in "abcde"]
    done = Judgement("f", "street", "0" * 32, "wrong", "anger", "Ada", "2026-11-28T12:00:00.000Z")
    write_review(tmp_path / "list.csv", [*opened, done])
    main(Path("list.csv"), Path("truth"))
    assert "5 of 6 faces are judged" in capsys.readouterr().out
    a, b, c, d, e = opened
    assert read_review(tmp_path / "list.csv", classes=settings.classes) == [
        a._replace(verdict="right", who=WHO, when=WHEN),
        b._replace(verdict="other", label="fear", who=WHO, when=WHEN),
        c._replace(verdict="other", label="", who=WHO, when=WHEN),
        d._replace(verdict="other", label="", who=WHO, when=WHEN),
        e,
        done,
    ]
