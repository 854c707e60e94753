"""What a person sees: tables with numbers by hand, names that mean nothing in Markdown, faults that hide no more."""

import logging
from pathlib import Path
from typing import Any

import pytest
from markdown_it import MarkdownIt
from prefect.client.schemas.actions import ArtifactCreate
from prefect.states import Completed

from pipelines import artifacts
from pipelines.artifacts import Change, Results, format_difference, publish_difference, publish_results, publish_run
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
    publish_results(Results(metrics, mined))
    assert shown["metrics"]["table"] == [
        {"recipe": "vas", "target": "street", "accuracy": "0.5000"},
        {"recipe": "das", "target": "x", "macro_f1": "0.3333"},
    ]
    assert shown["mined"]["table"] == [
        {"class": "joy", "kept": "12,000", "margin": "0.2500", "estimated precision": "0.900 [0.800, 1.000]"},
        {"class": "fear", "kept": "345", "margin": "-"},
    ]
    assert shown["mined"]["description"] == "Mined faces: 12,345 kept"


@pytest.mark.parametrize(
    "mined",
    [{"kept": "many"}, {"by_class": [1]}, {"by_class": {"joy": 3}}, {"margins": 4, "by_class": {"joy": {"kept": "x"}}},
     {"by_class": {"joy": {"precision": 0.5}}}, {"by_class": {"joy": {"kept": float("nan")}}}],
)  # fmt: skip
def test_a_broken_account_of_mining_is_shown_without_its_numbers(
    shown: dict[str, dict[str, Any]], mined: dict[str, Any]
) -> None:
    publish_results(Results({}, mined))
    assert all(row == {"class": "joy", "kept": "-", "margin": "-"} for row in shown["mined"]["table"])


def test_nothing_is_shown_where_there_is_nothing(shown: dict[str, dict[str, Any]]) -> None:
    publish_results(Results())
    assert shown == {}


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
    stages = {"a": Stage("a", "does a"), "b": Stage("b")}
    publish_run(tmp_path, stages, {"a": Completed(name="RunCache")})
    assert shown["stages"]["table"] == [{"stage": "a", "state": "RunCache", "what it does": "does a"}]
    assert shown["metrics"]["table"] == [{"recipe": "vas", "target": "street", "accuracy": "0.5000"}]
    assert shown["report"]["link"] == (tmp_path / "reports" / "index.html").as_uri()
    assert "not everything could be shown: no remote" in caplog.text
    monkeypatch.setenv("PIPELINES_REPORT_URL", "http://host:1/reports/")
    publish_run(tmp_path, stages, {"a": Completed(name="Cached")})  # nothing changed: no other revision is asked for
    assert shown["report"]["link"] == "http://host:1/reports/index.html"
