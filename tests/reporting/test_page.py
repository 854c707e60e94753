"""The page as a whole: self-contained, escaped, the same bytes again, and honest about what is missing."""

import itertools
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from fer_pipeline.commands import results
from fer_pipeline.core.errors import DataError
from fer_pipeline.evaluation.statistics import Resampling

EVIL = "<script>alert('1')</script>\"&'`{{7*7}}\u202e"


VOID = {"meta", "img", "br", "link", "input", "hr"}


class Elements(HTMLParser):
    """All elements with their attributes, and whether every one was closed in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_nothing_comes_from_outside(whole: Any) -> None:
    elements = Elements(whole.page)
    assert elements.open == []
    tags = {tag for tag, _ in elements.found}
    assert not tags & {"script", "link", "iframe", "object", "embed", "base", "form"}
    identifiers = {attributes["id"] for _, attributes in elements.found if "id" in attributes}
    for tag, attributes in elements.found:
        assert not [name for name in attributes if name.startswith("on")]
        if tag == "img":
            assert attributes["src"].startswith("data:image/")  # type: ignore[union-attr]
            assert attributes["alt"]
        if tag == "a":
            target = str(attributes["href"])
            beside = whole.project.root / "reports" / target
            known = {*identifiers, "gallery/index.html"}
            assert target.removeprefix("#") in known or (beside.parent.name == "learners" and beside.is_file())
    assert "url(" not in whole.page.split("</style>")[0]


def test_every_part_is_there(whole: Any) -> None:
    for words in ("(figure 3)", "(figure 4)", "(figure 5)", "(figure 6)", "(figure 7)", "Margin sweep", "params.yaml"):
        assert words in whole.page
    assert "no fear: left out of the class mean" in whole.page
    assert "on held-out anchor faces with a calibration model that did not see them (the labeller" in whole.page
    assert {path.name for path in (whole.project.root / "reports" / "figures").iterdir()} == {
        "mined_counts.svg",
        "precision.svg",
        "sweep_kept.svg",
        "sweep_precision.svg",
        "sweep_rules.svg",
        "probe_auxiliary.svg",
        "distillation_auxiliary.svg",
        "seconds_per_epoch.svg",
        "validation.svg",
        "training_loss.svg",
    }


def test_what_is_said_of_distilled_images_begins_with_whether_they_beat_their_controls(whole: Any) -> None:
    section = whole.page.split('<section id="distilled">')[1].split("</section>")[0]
    first = section.split("<p>", 1)[1].split("</p>")[0]
    assert first.startswith(
        "<strong>These images do not beat their controls. Trained alone from theta_0, the distilled"
    )
    assert "reach 40.0% mean class accuracy on 120 held-out faces of 14 persons" in first
    assert "they do not beat random real (+2.0 points, 95 % interval -4.0 to +8.0)" in first
    assert "from fresh random weights, the distilled images reach 35.0%" in first
    assert first.endswith("they beat their controls.</strong>")
    rows = whole.table("distilled_controls")
    assert len(rows) == 8
    assert (rows[0]["images"], float(rows[0]["mean_class_accuracy_low"])) == ("distilled", pytest.approx(0.35))


def test_names_from_outside_are_escaped(project: Callable[..., Any], reported: Callable[..., Any]) -> None:
    made = project(odd_name=EVIL)
    lock = made.root / "dvc.lock"
    lock.write_text(
        lock.read_text().replace("--out data/mined", f"--out {EVIL}").replace("  mine:", f'  "{EVIL[:9]}":')
    )
    (made.root / "params.yaml").write_text(f"# {EVIL}\n</pre><script>1</script>")
    page = reported(made, title=EVIL).page
    elements = Elements(page)
    assert elements.open == []
    assert "script" not in {tag for tag, _ in elements.found}
    assert "alert" in page
    assert "49" not in page.split("<title>")[1].split("</title>")[0]
    titles = [attributes["title"] for tag, attributes in elements.found if tag == "figure" and "title" in attributes]
    assert any("<script>" in title for title in titles)  # as words
    assert not any("\u202e" in title for title in titles)


def test_same_inputs_same_bytes_wherever_they_lie(whole: Any, write: Callable[..., Any], tmp_path: Path) -> None:
    def everything(out: Path) -> dict[str, bytes]:
        parts = ("learners", "tables", "figures")
        files = [out / "index.html", *(path for part in parts for path in (out / part).iterdir())]
        return {str(path.relative_to(out)): path.read_bytes() for path in files}

    copy = replace(whole.project, root=tmp_path / "elsewhere")
    shutil.copytree(whole.project.root, copy.root)
    lock = copy.root / "dvc.lock"
    lock.write_text(lock.read_text().replace("deadbeef", "feedf00d"))  # the report's own entry, written after it ran
    write(copy)
    assert everything(copy.root / "reports") == everything(whole.project.root / "reports")


def test_settings_change_the_page(project: Callable[..., Any], reported: Callable[..., Any]) -> None:
    made = project(faces=40)
    pages = [
        reported(made, **settings).page
        for settings in (
            {},
            {"title": "Other"},
            {"baseline": "vas"},
            {"faces_per_class": 3},
            {"failures_per_class": 1},
        )
    ]
    for resampling in ({"bootstrap": 300}, {"bootstrap_seed": 1}, {"by_subject": False}):  # as `evaluate` was told
        made.resampling = Resampling(**{"bootstrap": 200, **resampling})
        for recipe, target in itertools.product(made.recipes, made.targets):
            made.evaluate(recipe, target)
        pages.append(reported(made).page)
    assert len(set(pages)) == len(pages)


def test_a_small_world_says_what_it_lacks(project: Callable[..., Any], reported: Callable[..., Any]) -> None:
    made = project(seeds=(3,), pools=("street",), targets=("film",), recipes={"baseline": "labelled", "vas": "mined"})
    for part in ("data/truth", "reports/timings", "models", "reports/census"):
        shutil.rmtree(made.root / part)
    (made.root / "dvc.lock").unlink()
    found = reported(made)
    for words in (
        "One seed only, so no verdict: Mined faces",
        "One seed: there is no interval over seeds",
        "No control recipe stands beside it",
        "No pool of this run has a known truth",
        "Nothing was distilled in this run",
        "No timings were recorded",
        "No data set was aligned",
        "There is no <code>dvc.lock</code> here",
        "not a git checkout",
    ):
        assert words in found.page
    assert "±" not in found.page.split('aria-label="Results table"')[1].split("</table>")[0]
    assert found.table("precision")[0]["true"] == ""
    assert not (made.root / "reports" / "tables" / "timings.csv").exists()


def test_results_alone_are_enough(project: Callable[..., Any], reported: Callable[..., Any]) -> None:
    made = project()
    for part in ("data", "models", "reports/timings"):
        shutil.rmtree(made.root / part)
    shutil.rmtree(made.root / "reports" / "metrics" / "das" / "film")
    found = reported(made)
    assert "Nothing was mined in this run" in found.page
    assert any("das on film" in warning for warning in found.summary.warnings)


def test_without_a_baseline_it_says_so(project: Callable[..., Any], reported: Callable[..., Any]) -> None:
    made = project(recipes={"vas": "mined", "random_vas": "random"})
    found = reported(made)
    assert any("no recipe “baseline”" in warning for warning in found.summary.warnings)
    assert {(row["recipe"], row["against"]) for row in found.table("differences")} == {("vas", "random_vas")}


def test_few_test_faces_are_a_warning(project: Callable[..., Any], reported: Callable[..., Any]) -> None:
    """Nine faces over three classes: one face is a third of a class and a ninth of the class mean."""
    found = reported(project(faces=9, targets=("film",)))
    assert any(
        "film has few test faces of anger 3" in warning and "11.1 points" in warning
        for warning in found.summary.warnings
    )


def test_damage_and_emptiness_are_one_line(
    project: Callable[..., Any], reported: Callable[..., Any], tmp_path: Path
) -> None:
    made = project(faces=20)
    for name, words in {
        "reports/metrics/vas/film/predictions.parquet": "no readable predictions table",
        "data/truth/street.parquet": "no readable table of face_id and dominant",
        "data/mined/sweep.parquet": "no readable Parquet file",
        "reports/census/studio.json": "not valid JSON",
        "models/final/vas/10/history.csv": "no table of numbers",
    }.items():
        path = made.root / name
        before = path.read_bytes()
        path.write_bytes(b"steps\nx\n")
        with pytest.raises(DataError, match=words) as caught:
            reported(made)
        assert "\n" not in str(caught.value)
        path.write_bytes(before)
    assert not (made.root / "reports" / "index.html").exists()
    shutil.rmtree(made.root / "reports" / "metrics")
    with pytest.raises(DataError, match=r"no results in .* run: dvc repro evaluate"):
        reported(made)


def nest(root: Path, seeds: tuple[int, ...]) -> None:
    """Gives each seed a copy of what the builder mined and distilled, as nested stages lay it out."""
    pools = [
        f"data/{kind}/{pool.name}" for kind in ("scores", "auxiliary") for pool in (root / "data/scores").iterdir()
    ]
    for name in ("data/mined", "data/distilled/auxiliary", *pools):
        (root / name).rename(root / "one")
        for seed in seeds:
            shutil.copytree(root / "one", root / name / str(seed))
        (root / name / "seeds.json").write_text(json.dumps({"seeds": seeds}))
        shutil.rmtree(root / "one")


def test_of_several_mined_sets_the_first_is_shown_and_the_range_told(
    project: Callable[..., Any], reported: Callable[..., Any]
) -> None:
    made = project(seeds=(10, 11))
    before = reported(made)
    nest(made.root, (10, 11))
    mined, summary = made.root / "data/mined/11/mined.parquet", made.root / "data/mined/11/summary.json"
    rows, content = pq.read_table(mined), json.loads(summary.read_text())
    taken, pool = 2, "street"
    gone = [row["face_id"] for row in rows.to_pylist() if (row["pool"], row["label"]) == (pool, 0)][:taken]
    left = rows.filter([name not in gone for name in rows["face_id"].to_pylist()])
    assert len(left) == len(rows) - taken
    pq.write_table(left, mined)
    content["kept"] -= taken
    content["by_class"]["anger"]["kept"] -= taken
    content["by_class"]["anger"]["precision"] = 0.7
    content["precision"]["estimate"] = 0.85
    summary.write_text(json.dumps(content))
    (made.root / "data/distilled/auxiliary/11/controls.json").write_text(json.dumps({"reason": "nobody was held out"}))

    after = reported(made)
    number = len(rows)
    text = f"Over the seeds: {number - taken} to {number} faces, expected precision 85.0 to 90.0 %."
    assert text in after.page
    anger = [row for row in after.table("mined_seeds") if (row["pool"], row["class"]) == ("*", "anger")]
    assert [(row["seed"], float(row["precision"])) for row in anger] == [("10", 0.9), ("11", 0.7)]
    truth = {row["face_id"]: row["dominant"] for one in made.pools
             for row in pq.read_table(made.root / f"data/truth/{one}.parquet").to_pylist()}  # fmt: skip
    for seed, own in (("10", rows), ("11", left)):
        ours = [one for one in own.to_pylist() if one["pool"] == pool]
        right = [truth[one["face_id"]] == made.classes[one["label"]] for one in ours]
        row = next(one for one in after.table("mined_seeds")
                   if (one["seed"], one["pool"], one["class"]) == (seed, pool, "*"))  # fmt: skip
        assert (int(row["faces"]), float(row["true"])) == (len(ours), pytest.approx(np.mean(right), abs=1e-6))

    # The first seed's tables and pictures are those of one set for all.
    for name in ("mined", "mined_classes", "precision", "rules", "sweep", "results", "differences"):
        assert after.table(name) == before.table(name)
    assert after.page.count("<img") == before.page.count("<img")
    first = after.page.split('<section id="results">')[1].split("</p>")[0]
    assert "The stages before the final training ran anew for each seed." in first
    assert "What runs once" in before.page
    assert "runs once" not in after.page.split('<section id="lineage">')[0]
    assert "auxiliary, seed 11</h3>\n<p><strong>Whether these images teach anything is not known: nobody" in after.page
    assert {row["distilled"] for row in after.table("distilled_controls")} == {"auxiliary/10"}
    assert Elements(after.page).open == []
    told = results.run(reports=made.root / "reports").splitlines()
    assert told[0] == "the stages before the final training ran anew for each seed"
    assert any(line.split() == ["seed", "11", str(number - taken), "0.850", "[0.860,", "0.930]"] for line in told)
