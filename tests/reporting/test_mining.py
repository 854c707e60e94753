"""Estimated and true precision, the sweep and the gallery, counted by hand from what the builder wrote."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from fer_pipeline.artifacts.faces import encode
from fer_pipeline.artifacts.mined import MINED, read_rows, read_summary
from fer_pipeline.artifacts.scores import read_scores
from fer_pipeline.artifacts.truth import Truth, read_truth
from fer_pipeline.core.files import read_json
from fer_pipeline.evaluation.statistics import share_interval
from fer_pipeline.reporting.formatting import crop_uri, data_uri
from fer_pipeline.reporting.mining import combine_estimates, compute_precisions, load_crops, load_mined_faces
from tests.project import project_settings


def truth_of(root: Path, pool: str) -> dict[str, str | None]:
    rows = pq.read_table(root / "data" / "truth" / f"{pool}.parquet").to_pylist()
    return {row["face_id"]: row["dominant"] for row in rows}


@pytest.mark.parametrize("kind", ["mined", "random"])
def test_true_precision_counts_mixed_faces_as_wrong(whole: Any, kind: str) -> None:
    root, classes = whole.project.root, whole.project.classes
    table = {(row["kind"], row["pool"], row["class"]): row for row in whole.table("precision")}
    for pool in whole.project.pools:
        true = truth_of(root, pool)
        rows = [
            row for row in pq.read_table(root / "data" / "mined" / f"{kind}.parquet").to_pylist() if row["pool"] == pool
        ]
        right = sum(true[row["face_id"]] == classes[row["label"]] for row in rows)
        found = table[kind, pool, "*"]
        assert int(found["faces"]) == len(rows)
        assert float(found["true"]) == pytest.approx(right / len(rows), abs=1e-6)
        low = share_interval(right, len(rows)).low
        assert float(found["true_low"]) == pytest.approx(low, abs=1e-6)
        assert any(true[row["face_id"]] is None for row in rows) or kind == "mined"
    assert float(table["mined", "street", "*"]["estimated"]) == pytest.approx(0.9)


def test_faces_of_a_second_rule_are_measured_like_mined_ones(whole: Any, tmp_path: Path) -> None:
    """The mined faces again, as if a second rule had chosen them: the same figures under its own name."""
    root, built = whole.project.root, whole.project
    project = project_settings(classes=tuple(built.classes), pools=tuple(built.pools))
    summary, truth = read_summary(root / "data" / "mined"), read_truth(root / "data" / "truth", project.pools)
    for name in ("mined", "second_rule"):
        shutil.copyfile(root / "data" / "mined" / "mined.parquet", tmp_path / f"{name}.parquet")
    second = {"rule": "probability", "by_class": summary["by_class"]}
    rows = compute_precisions(tmp_path, {**summary, "second_rule": second}, None, project, truth)
    mined, again = ([row for row in rows if row.kind == kind] for kind in ("mined", "second rule"))
    assert len(mined) > len(project.pools)
    assert [replace(row, kind="mined") for row in again] == mined


def test_combined_estimate_is_the_weighted_mean_and_one_class_is_itself() -> None:
    by_class = {
        "a": {"precision": 0.9, "low": 0.8, "high": 0.95},
        "b": {"precision": 0.5, "low": 0.3, "high": 0.6},
        "c": {"precision": None, "low": None, "high": None},
    }
    alone = combine_estimates(by_class, {"a": 7})
    assert alone is not None
    assert (alone.mean, alone.low, alone.high) == pytest.approx((0.9, 0.8, 0.95))
    both = combine_estimates(by_class, {"a": 3, "b": 1, "c": 9})
    assert both is not None
    assert both.mean == pytest.approx(0.8)
    known = 4 / 13  # the nine faces of c are wrong at the low end and right at the high one
    assert both.low == pytest.approx(known * (0.8 - np.hypot(0.75 * 0.1, 0.25 * 0.2)))
    assert both.high == pytest.approx(1 - known * (0.2 - np.hypot(0.75 * 0.05, 0.25 * 0.1)))
    by_class["b"]["low"] = None  # may be absent: nothing of it need be right
    open_end = combine_estimates(by_class, {"a": 3, "b": 1})
    assert open_end is not None
    assert open_end.low == pytest.approx(0.75 * 0.8)
    assert combine_estimates(by_class, {"c": 5}) is None


def test_true_curve_of_the_sweep_by_brute_force(whole: Any) -> None:
    root, classes = whole.project.root, whole.project.classes
    rows = [row for row in whole.table("sweep") if row["class"] == "*"]
    scores, true = read_scores(root / "data" / "scores" / "street", classes=classes), truth_of(root, "street")
    faces = scores.face_id.to_pylist()
    assert {row["rule"] for row in rows} == {"margin", "probability"}
    for row in rows:
        ranking = scores.rankings[row["rule"]]
        kept = [i for i in range(len(faces)) if float(ranking.value[i]) >= float(row["threshold"])]
        if kept:
            share = np.mean([true[faces[i]] == classes[ranking.label[i]] for i in kept])
            assert float(row["true_street"]) == pytest.approx(share, abs=1e-6)
        else:
            assert row["true_street"] == ""


def test_rules_stand_side_by_side_and_what_is_not_known_is_said(whole: Any) -> None:
    rows = {(row["rule"], row["class"]): row for row in whole.table("rules")}
    assert len(rows) == 2 * (1 + len(whole.project.classes))
    assert float(rows["margin", "*"]["precision"]) == 0.9
    assert float(rows["probability", "*"]["precision"]) == 0.85
    assert rows["margin", "*"]["kept"] == rows["probability", "*"]["kept"]
    last = whole.table("mined_classes")[-1]
    assert (last["low"], last["reason"]) == ("", "its share of the pool may be 0")
    assert float(last["pool_share"]) == 0.2
    assert "Rules at equal counts" in whole.page
    assert (
        whole.page.count('90.0 <span class="small">? to 96.0</span>') == 3
    )  # of the last class, by itself and by rule
    assert (whole.project.root / "reports" / "figures" / "sweep_rules.svg").is_file()


def test_gallery_goes_from_the_first_rank_to_the_last(whole: Any) -> None:
    project = whole.project
    truth = read_truth(project.root / "data" / "truth", project.pools)
    data, classes = project.root / "data", project.classes
    rows = read_rows(data / "mined", MINED, classes=classes)
    gallery = load_mined_faces(data, classes=classes, truth=truth, per_class=5, seed=10)
    assert gallery.keys() == set(classes)
    for name, faces in gallery.items():
        ranks = [face["rank"] for face in faces]
        kept = rows["label"].to_pylist().count(classes.index(name))
        assert (ranks[0], ranks[-1], len(ranks)) == (1, kept, 5)
        assert ranks == sorted(ranks)
        assert [face["cosine"] for face in faces] == sorted((face["cosine"] for face in faces), reverse=True)
        for face in faces:
            assert face["right"] == (truth_of(project.root, face["pool"])[face["face_id"]] == name)
            assert face["picture"].startswith("data:image/jpeg;base64,")
    assert len({face["pool"] for faces in gallery.values() for face in faces}) == 2


def test_crops_are_found_in_any_row_group(whole: Any) -> None:
    folder = whole.project.root / "data" / "auxiliary" / "street" / "anger"
    everyone = pq.read_table(folder / "part-00000.parquet").to_pylist()
    wanted = {everyone[0]["face_id"], everyone[-1]["face_id"]}
    assert load_crops(folder, wanted).keys() == wanted
    assert load_crops(folder, set()) == {}
    assert load_crops(folder / "missing", wanted) == {}


def test_truth_knows_several_faces_of_one_picture() -> None:
    truth = Truth({"pool": {"pool/a": "fear", "pool/b": None, "pool/c#1": "anger"}})
    assert truth.right("pool", "pool/a#1", "fear")
    assert truth.right("pool", "pool/b", "fear") is False
    assert truth.label("pool", "pool/b") == "mixed"
    assert truth.label("pool", "pool/c#1") == "anger"
    assert truth.right("pool", "pool/zzz", "fear") is None
    assert truth.right("other", "pool/a", "fear") is None


def test_large_crops_are_made_small_and_kinds_follow_from_the_bytes() -> None:
    noise = np.random.default_rng(0).integers(0, 255, (224, 224, 3), dtype=np.uint8)
    small = np.random.default_rng(0).integers(0, 255, (112, 112, 3), dtype=np.uint8)
    assert len(crop_uri(noise)) < 1.2 * len(crop_uri(small))
    assert data_uri(encode(small, format="png")).startswith("data:image/png;base64,")


def test_faces_that_the_truth_does_not_name_are_counted(
    project: Callable[..., Any], reported: Callable[..., Any]
) -> None:
    made = project()
    path = made.root / "data" / "truth" / "street.parquet"
    mined = pq.read_table(made.root / "data" / "mined" / "mined.parquet").to_pylist()
    lost = next(row["face_id"] for row in mined if row["pool"] == "street")
    table = pq.read_table(path)
    pq.write_table(table.filter([face != lost for face in table["face_id"].to_pylist()]), path)
    row = next(row for row in reported(made).table("precision") if (row["kind"], row["class"]) == ("mined", "*"))
    assert row["truth_unknown"] == "1"


def test_experiments_are_compared_by_the_measured_precision_too(
    project: Callable[..., Any], reported: Callable[..., Any]
) -> None:
    """`reports/tables/mined.json` is what `dvc exp show` reads; unless somebody judged, it says nothing of that."""
    made = project(faces=20)

    def figures() -> dict[str, Any]:
        reported(made)
        return read_json(made.root / "reports" / "tables" / "mined.json")

    before, path = figures(), made.root / "data/mined/summary.json"
    summary, name = read_json(path), made.classes[0]
    measured = {"drawn": 9, "judged": 8, "precision": 0.75, "low": 0.4, "high": 0.9}
    summary["precision"]["measured"] = measured
    summary["by_class"][name]["measured"] = measured | {"judged": 0, "precision": None, "low": None}
    path.write_text(json.dumps(summary), encoding="utf-8")
    after = figures()
    assert {key: after.pop(key) for key in ("judged", "measured_precision", "measured_low")} == {
        "judged": 8, "measured_precision": 0.75, "measured_low": 0.4,
    }  # fmt: skip
    assert after["by_class"][name].pop("judged") == 0
    assert after == before
