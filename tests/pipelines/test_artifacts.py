"""What a person sees: tables with numbers by hand, names that mean nothing in Markdown, faults that hide no more."""

import logging
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from markdown_it import MarkdownIt
from prefect.client.schemas.actions import ArtifactCreate

from pipelines import FlowError, artifacts
from pipelines.artifacts import (
    MINED_FACES,
    Change,
    Results,
    format_difference,
    publish_difference,
    publish_results,
    publish_run,
    publish_stages,
    read_differences,
)
from pipelines.workspace import Stage

HARD = [
    "a|b",
    "`code`",
    "<script>alert(1)</script>",
    "a\nb",
    "**bold**",
    "[x](http://y)",
    "\\|",
    "&lt;b&gt;",
    "_i_",
    "~~s~~",
]


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, Any]]:
    """What was published, by key; keys are checked as the server does."""
    found: dict[str, dict[str, Any]] = {}

    def publish(key: str, **what: Any) -> None:
        found[ArtifactCreate(key=key).key or ""] = what

    for kind in ("link", "markdown", "table"):
        monkeypatch.setattr(artifacts, f"create_{kind}_artifact", publish)
    monkeypatch.setattr(artifacts, "get_run_logger", lambda: logging.getLogger("test"))
    return found


def cells(table: str) -> list[list[str]]:
    """The cells of a Markdown table as a reader sees them, rendered by a Markdown library."""
    tokens = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).parse(table)
    rows: list[list[str]] = []
    for token in tokens:
        if token.type == "tr_open":
            rows.append([])
        elif token.type == "inline" and rows:
            children = token.children or []
            assert {child.type for child in children} <= {"text", "text_special"}, token.content
            rows[-1].append("".join(child.content for child in children))
    return rows


def test_differences_are_a_table_with_numbers_by_hand() -> None:
    found = [
        Change("vas on street: accuracy", 0.5, 0.625),
        Change("mined: kept", 12000.0, 11000.0),
        Change("tiny", 0.0, 0.00001),
        Change("new", None, 1.0),
        Change("gone", -0.25, None),
    ]
    table = format_difference(found, "the last commit")
    assert table.splitlines()[0] == "5 figures differ from the last commit."
    assert cells(table)[1:] == [
        ["vas on street: accuracy", "0.5000", "0.6250", "+0.1250"],
        ["mined: kept", "12,000", "11,000", "-1,000"],
        ["tiny", "0", "1.0e-05", "+1.0e-05"],
        ["new", "-", "1", "-"],
        ["gone", "-0.2500", "-", "-"],
    ]
    assert format_difference(found[:1], "x").splitlines()[0] == "1 figure differs from x."
    assert format_difference([], "the last commit") == "No figure differs from the last commit."


@pytest.mark.parametrize("name", HARD)
def test_names_mean_nothing_in_a_table(name: str, shown: dict[str, dict[str, Any]]) -> None:
    rows = cells(format_difference([Change(name, 1.0, 2.0), Change("next", 1.0, 2.0)], "x"))
    assert rows[1:] == [[name.replace("\n", " "), "1", "2", "+1"], ["next", "1", "2", "+1"]]
    publish_difference([], f"0123456789 ({name})")
    (paragraph,) = [token for token in MarkdownIt().parse(shown["difference"]["markdown"]) if token.type == "inline"]
    assert {child.type for child in paragraph.children or []} <= {"text", "text_special"}


def test_figures_and_mined_faces_are_tables(shown: dict[str, dict[str, Any]]) -> None:
    metrics = {("vas", "street", "accuracy"): 0.5, ("vas", "street", "other"): 9.0, ("das", "x", "macro_f1"): 1 / 3}
    mined = {
        "kept": 12345,
        "margins": {"joy": 0.25, "fear": None},
        "by_class": {"joy": {"kept": 12000, "precision": 0.9, "low": 0.8, "high": 1.0}, "fear": {"kept": 345}},
    }
    metrics |= {("baseline", "street", "accuracy"): 0.75, ("rest", "street", "accuracy"): 0.25}
    withheld = {("das", "street"): "evaluate@das-street: Failed"}
    differences = {("vas", "street"): (-2.0, "-2.0 [-3.0, -1.0] against baseline"), ("rest", "street"): (1.0, "+1.0")}
    publish_results(Results(metrics, mined, withheld), differences)
    assert [list(row.values()) for row in shown["metrics"]["table"]] == [
        ["rest", "street", "", "+1.0", "0.2500", ""],
        ["baseline", "street", "", "", "0.7500", ""],
        ["das", "street", "evaluate@das-street: Failed", "", "", ""],
        ["vas", "street", "", "-2.0 [-3.0, -1.0] against baseline", "0.5000", ""],
        ["das", "x", "", "", "", "0.3333"],
    ]
    columns = ["recipe", "target", "not shown", "difference (points)", "accuracy", "macro_f1"]
    assert {tuple(row) for row in shown["metrics"]["table"]} == {tuple(columns)}, (
        "the page shows those of the first row"
    )
    assert shown["mined"]["table"] == [
        {"class": "joy", "kept": "12,000", "margin": "0.2500", "estimated precision": "0.900 [0.800, 1.000]"},
        {"class": "fear", "kept": "345", "margin": "-", "estimated precision": ""},
    ]
    assert shown["mined"]["description"] == "Mined faces: 12,345 kept"


@pytest.mark.parametrize(
    "mined",
    [{"kept": "many"}, {"by_class": [1]}, {"by_class": {"joy": 3}}, {"margins": 4, "by_class": {"joy": {"kept": "x"}}},
     {"by_class": {"joy": {"precision": "high"}}}, {"by_class": {"joy": {"kept": float("nan")}}}],
)  # fmt: skip
def test_a_broken_account_of_mining_is_shown_without_its_numbers(
    shown: dict[str, dict[str, Any]], mined: dict[str, Any]
) -> None:
    publish_results(Results({}, mined))
    assert all(row == {"class": "joy", "kept": "-", "margin": "-"} for row in shown["mined"]["table"])


def test_nothing_is_shown_where_there_is_nothing(shown: dict[str, dict[str, Any]]) -> None:
    publish_results(Results())
    assert shown == {}


def test_what_is_withheld_is_named_with_its_reason(shown: dict[str, dict[str, Any]]) -> None:
    publish_results(Results(withheld={MINED_FACES: "mine: Failed"}))
    assert shown["mined"]["table"] == [{"not shown": "mine: Failed"}]
    publish_difference([Change("a", 1.0, 2.0)], "v1", {("vas", "a|b"): "evaluate: Failed", MINED_FACES: "mine: Failed"})
    assert shown["difference"]["markdown"].splitlines()[-4:] == [
        "Not compared:", "", "- vas on a\\|b: evaluate: Failed", "- mined faces: mine: Failed",
    ]  # fmt: skip


def test_differences_are_those_of_the_report_of_this_run(tmp_path: Path) -> None:
    (tmp_path / "reports" / "tables").mkdir(parents=True)
    (tmp_path / "dvc.lock").write_text("stages: {report: {outs: [{path: reports/tables}]}}")
    (tmp_path / "reports" / "tables" / "differences.csv").write_text(
        "recipe,against,target,metric,difference,low,high,seeds\n"
        "vas,baseline,street,mean_class_accuracy,0.0125,-0.004,0.029,3\n"
        "vas,baseline,film,mean_class_accuracy,-0.02,,,1\n"
        "vas,random_vas,street,mean_class_accuracy,0.9,0.8,1.0,3\n"
        "vas,baseline,street,accuracy,0.5,0.4,0.6,3\n"
    )
    assert read_differences(tmp_path, {"report": "Completed"}) == {
        ("vas", "street"): (1.25, "+1.2 [-0.4, +2.9] against baseline"),
        ("vas", "film"): (-2.0, "-2.0 against baseline"),
    }
    assert read_differences(tmp_path, {"report": "Skipped"}) == {}
    assert read_differences(tmp_path, {"evaluate": "Completed"}) == {}


@pytest.mark.parametrize("row", ["vas", "vas,b,street,mean_class_accuracy,x,0,0", '"' + "a" * 200_000, "a" * 2_000_000])
def test_a_damaged_table_of_differences_hides_no_other_figure(tmp_path: Path, row: str) -> None:
    (tmp_path / "reports" / "tables").mkdir(parents=True)
    (tmp_path / "dvc.lock").write_text("stages: {report: {outs: [{path: reports/tables}]}}")
    head = "recipe,against,target,metric,difference,seeds_low,seeds_high\n"
    (tmp_path / "reports" / "tables" / "differences.csv").write_text(head + row)
    assert read_differences(tmp_path, {"report": "Completed"}) == {}


@pytest.mark.parametrize("outs", ["5", "[a]", "[{md5: b}]", "[[c]]"])
def test_outputs_of_a_lock_that_are_none_are_one_line(tmp_path: Path, outs: str) -> None:
    (tmp_path / "dvc.lock").write_text(f"stages: {{report: {{outs: {outs}}}}}")
    with pytest.raises(FlowError, match=r"^[^\n]+dvc\.lock is broken: [^\n]+; restore it from git[^\n]+$"):
        read_differences(tmp_path, {"report": "Completed"})


def test_one_fault_hides_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shown: dict[str, dict[str, Any]], caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_workspace: Path, _rev: str) -> Results:
        raise ConnectionError("no remote")

    monkeypatch.setattr(artifacts, "read_results_at", fail)
    monkeypatch.delenv("PIPELINES_REPORT_URL", raising=False)
    (tmp_path / "reports" / "metrics" / "vas").mkdir(parents=True)
    (tmp_path / "reports" / "metrics" / "vas" / "street.json").write_text('{"accuracy": 0.5}')
    (tmp_path / "reports" / "index.html").touch()
    (tmp_path / "dvc.lock").write_text("stages: {a: {outs: [{path: reports/metrics/vas/street.json}]}}")
    stages, runs = {"a": Stage("a", "does a"), "b": Stage("b")}, [uuid4() for _ in range(60)]
    publish_stages(stages, {"a": "RunCache"}, ["mine.value 1 → 2"])
    publish_run(tmp_path, {"a": "RunCache"}, runs[0])
    assert shown["stages"]["table"] == [
        {"stage": "a", "state": "RunCache", "what it does": "does a"},
        {"stage": "b", "state": "not ended", "what it does": ""},
    ]
    assert shown["stages"]["description"].endswith("Changed settings: mine.value 1 → 2")
    assert shown["metrics"]["table"] == [{"recipe": "vas", "target": "street", "accuracy": "0.5000"}]
    kept = tmp_path / "reports" / "runs"
    assert [shown["report"]["link"]] == [path.as_uri() for path in kept.iterdir()]
    assert "not everything could be shown: no remote" in caplog.text
    monkeypatch.setenv("PIPELINES_REPORT_URL", "http://host:1/reports/")
    (tmp_path / "reports" / "index.html").write_text('of the last run: href="gallery/index.html"')
    (tmp_path / "reports" / "gallery").mkdir()
    (tmp_path / "reports" / "gallery" / "index.html").touch()
    for run in runs[1:]:
        publish_run(tmp_path, {"a": "Cached"}, run)  # nothing changed: no other revision is asked for
    links = [path.name for path in kept.iterdir() if path.name.endswith(f"{str(runs[-1])[:8]}.html")]
    assert [shown["report"]["link"]] == [f"http://host:1/reports/runs/{name}" for name in links]
    assert (kept / links[0]).read_text() == 'of the last run: href="../gallery/index.html"'
    assert shown["gallery"]["link"] == "http://host:1/reports/gallery/index.html"
    assert len(list(kept.iterdir())) == 50
