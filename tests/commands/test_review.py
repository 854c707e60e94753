"""`mined sample`, `suggest` and `review` in a small project: lists by brute force, merging, and what is refused."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from fer_pipeline.artifacts.mined import read_rows
from fer_pipeline.artifacts.review import Judgement, merge_reviews, read_review, write_review
from fer_pipeline.artifacts.scores import CENTROIDS, HELDOUT, Centroids, soft_max, write_centroids
from fer_pipeline.cli import app
from fer_pipeline.core.files import read_json
from fer_pipeline.stages import mine
from tests.project import project_settings
from tests.stages.test_mine import CLASSES, simulate, write_file, write_known
from tests.stages.test_mine_review import NOON, picture

NUMBER = 240  # faces of each pool
POOLS = ("street", "garden")


class World:
    """Scores, pictures and mined faces of two pools, in the folder where the commands run."""

    def __init__(self, folder: Path, *, logits: bool = True) -> None:
        self.folder, self.names, cosines = folder, [], []
        for start, pool in enumerate(POOLS):
            cosine = simulate(start, NUMBER)[1]
            names = [f"{pool}/{number}" for number in range(NUMBER)]
            logit = cosine * 9 + np.random.default_rng(start).normal(size=cosine.shape) if logits else None
            for shard, part in enumerate((slice(0, 100), slice(100, NUMBER))):
                path = folder / "data/scores" / pool / f"part-{shard:05d}.arrow"
                write_file(path, names[part], cosine[part], logit=None if logit is None else logit[part])
            held, own = simulate(9, 300)
            path = folder / "data/scores" / pool / HELDOUT
            write_file(path, [f"studio/{n}" for n in range(300)], own, held, own * 9 if logits else None)
            write_centroids(path.parent, Centroids(np.eye(3), np.array([5, 100, 50]), CLASSES))
            assert (path.parent / CENTROIDS).exists()
            write_known(folder / "data", pool, {name: start * 1000 + n for n, name in enumerate(names)})
            self.names += names
            cosines.append((cosine.astype(np.float32), None if logit is None else logit.astype(np.float32)))
        self.cosine = np.concatenate([cosine for cosine, _ in cosines])
        self.logit = np.concatenate([logit for _, logit in cosines]) if logits else None
        self.anchor = np.array([5, 100, 50]) + np.bincount(simulate(9, 300)[0], minlength=3)
        write_review(folder / "data/review.csv", [])
        (folder / ".dvc").mkdir()
        keys = ("classes", "seeds", "anchor", "train", "pools", "targets", "datasets", "recipes")
        settings = project_settings(classes=CLASSES, pools=POOLS, targets=("film",)).model_dump(mode="json")
        settings["recipes"] = {
            name: {key: recipe[key] for key in ("strategy", "sources", "deps")}
            for name, recipe in settings["recipes"].items()
        }
        params = {key: settings[key] for key in keys} | {"mine": {"by": "count", "value": 90}}
        (folder / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")

    def mine(self) -> dict[str, Any]:
        project = project_settings(classes=CLASSES, pools=POOLS, targets=("film",))
        data = self.folder / "data"
        paths = {"scores": data / "scores", "contents": data / "contents", "review": data / "review.csv"}
        mine.run(mine.Config(by="count", value=90), project, out=data / "mined", **paths)
        return read_json(data / "mined" / "summary.json")

    def mined(self) -> list[dict[str, Any]]:
        return read_rows(self.folder / "data/mined", "mined.parquet", classes=CLASSES).to_pylist()


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.chdir(tmp_path)
    made = World(tmp_path)
    made.mine()
    return made


def say(*words: str, fails: bool = False) -> str:
    told = CliRunner().invoke(app, ["mined", *words])
    assert (told.exit_code == 1) == fails, told.output
    return told.output.strip()


def rows_of(path: str) -> list[Judgement]:
    return read_review(Path(path), classes=CLASSES)


def judge(rows: list[Judgement], truth: dict[str, str]) -> list[Judgement]:
    def one(row: Judgement) -> Judgement:
        true = truth[row.face_id]
        verdict = ("right", row.label) if true == row.label else ("other", true)
        return row._replace(verdict=verdict[0], label=verdict[1], who="Ada", when=NOON)

    return [one(row) for row in rows]


def test_a_sample_is_judged_merged_and_measures(world: World) -> None:
    truth = {f"{pool}/{n}": CLASSES[k] for at, pool in enumerate(POOLS) for n, k in enumerate(simulate(at, NUMBER)[0])}
    say("sample", "--n", "30", "--per-class", "--seed", "5")
    drawn, mined = rows_of("reports/sample.csv"), {row["face_id"]: row for row in world.mined()}
    assert Counter(row.label for row in drawn) == dict.fromkeys(CLASSES, 10)
    for row in drawn:
        assert (row.verdict, row.who, row.sample) == ("", "", "5")
        assert CLASSES[mined[row.face_id]["label"]] == row.label
        at, number = POOLS.index(row.set), int(row.face_id.split("/")[1])
        assert row.content == picture(at * 1000 + number)
    assert "is there already" in say("sample", fails=True)
    assert "0 of 30 rows are judged" in say("review", "reports/sample.csv")
    judged = judge(drawn, truth)
    write_review(Path("judged.csv"), judged)
    assert "30 verdicts are new" in (line := say("review", "judged.csv"))
    assert "data/review.csv holds 30 verdicts on 30 faces, 30 in use" in line
    before = Path("data/review.csv").read_bytes()
    assert rows_of("data/review.csv") == merge_reviews(judged)
    assert "0 verdicts are new, 0 changed" in say("review", "judged.csv")
    assert Path("data/review.csv").read_bytes() == before
    summary = world.mine()
    for name in CLASSES:
        own = [row for row in drawn if row.label == name]
        right = sum(truth[row.face_id] == name for row in own)
        assert summary["by_class"][name]["measured"]["precision"] == right / 10
    shown = say("show")
    assert "measured precision" in shown
    assert f"{summary['precision']['measured']['precision']:.3f}" in shown
    # Drawn again: what was judged stands there, also where it is mined no more.
    assert "30 of them judged already" in say("sample", "--n", "36", "--per-class", "--seed", "5", "--out", "more.csv")
    again = rows_of("more.csv")
    assert len(again) == 36
    assert {row for row in again if row.verdict} == {*rows_of("data/review.csv")}


def face(world: World, row: Judgement) -> int:
    return world.names.index(row.face_id)


def test_suggestions_are_those_of_brute_force(world: World) -> None:
    judged = [Judgement(f"street/{n}", "street", picture(n), "wrong", "fear", "Ada", NOON) for n in range(0, 200, 2)]
    write_review(Path("data/review.csv"), judged)
    known = {row.face_id for row in judged}
    free = [at for at, name in enumerate(world.names) if name not in known]
    assert world.logit is not None
    two = np.sort(soft_max(world.logit), axis=1)[:, -2:]
    gap = two[:, 1] - two[:, 0]
    nearest, likeliest = world.cosine.argmax(axis=1), world.logit.argmax(axis=1)

    say("suggest", "--n", "50", "--by", "uncertainty", "--out", "a.csv")
    found = rows_of("a.csv")
    assert [face(world, row) for row in found] == sorted(free, key=lambda at: gap[at])[:50]
    assert [row.label for row in found] == [CLASSES[nearest[face(world, row)]] for row in found]
    assert {row.sample for row in found} == {""}, "they tell nothing of precision"

    split = sorted((at for at in free if nearest[at] != likeliest[at]), key=lambda at: gap[at])
    say("suggest", "--n", "30", "--by", "disagreement", "--out", "b.csv")
    assert [face(world, row) for row in rows_of("b.csv")] == split[:30]
    line = say("suggest", "--n", "400", "--by", "disagreement", "--out", "c.csv")
    assert f"only {len(split)} faces, not 400" in line
    assert len(rows_of("c.csv")) == len(split)

    mined = world.mined()
    counts, names = (
        world.anchor + np.bincount([row["label"] for row in mined], minlength=3),
        {r["face_id"] for r in mined},
    )
    left, meant, total = [at for at in free if world.names[at] not in names], np.zeros(3, int), counts.copy()
    for _ in range(160):
        k = int(np.argmin(total))
        total[k] += 1
        meant[k] += 1
    assert (meant > 0).sum() > 1
    expected: list[int] = []
    for k in np.argsort(counts, kind="stable"):
        nearby = sorted((at for at in left if at not in expected), key=lambda at: -world.cosine[at, k])
        expected += nearby[: meant[k]]
    say("suggest", "--n", "160", "--by", "rare", "--out", "d.csv")
    assert [face(world, row) for row in rows_of("d.csv")] == expected

    lists = []
    for name, seed in (("e", "1"), ("f", "1"), ("g", "2")):
        say("suggest", "--n", "60", "--by", "random", "--seed", seed, "--out", f"{name}.csv")
        lists.append([face(world, row) for row in rows_of(f"{name}.csv")])
    assert lists[0] == lists[1] != lists[2]
    assert {*lists[0]} | {*lists[2]} <= {*free}


def test_without_logits_cosines_say_what_is_uncertain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    world = World(tmp_path, logits=False)
    two = np.sort(world.cosine, axis=1)[:, -2:]
    say("suggest", "--n", "40", "--out", "a.csv")
    gap = two[:, 1] - two[:, 0]
    assert [face(world, row) for row in rows_of("a.csv")] == sorted(range(2 * NUMBER), key=lambda at: gap[at])[:40]
    assert "one learner without logits agrees with itself; choose --by uncertainty" in say(
        "suggest", "--by", "disagreement", "--out", "b.csv", fails=True
    )


def test_lists_filled_in_by_hand_say_once_who_judged(world: World) -> None:
    say("sample", "--n", "6")
    path = Path("reports/sample.csv")
    lines = path.read_text(encoding="utf-8").splitlines()
    lines[1:3] = [line.replace(",,", ",wrong,", 1) for line in lines[1:3]]
    path.write_text("\r\n".join(lines) + "\r\n", encoding="utf-8")
    assert "row 2, does not say who gave the verdict" in say("review", str(path), fails=True)
    say("review", str(path), "--who", "Ada")
    found = rows_of("data/review.csv")
    assert [(row.verdict, row.who) for row in found] == [("wrong", "Ada")] * 2
    before = Path("data/review.csv").read_bytes()
    say("review", str(path), "--who", "Ada")
    assert Path("data/review.csv").read_bytes() == before, (
        "given when the file was changed last, however often it is read"
    )


@pytest.mark.parametrize(
    ("face_id", "pool", "number", "verdict", "label", "fault"),
    [
        ("street/none", "street", 1, "right", "fear", "row 3, judges the face 'street/none' of 'street', which is in"),
        ("street/1", "street", 2, "right", "fear", "row 3, judges the face 'street/1' of 'street', which shows"),
        ("street/1", "film", 1, "right", "fear", "'street/1' of 'film', which is in no pool (street, garden)"),
        ("x" * 300, "street", 1, "right", "fear", "row 3, judges the face 'xxx"),
        ("street/1", "street", 1, "right", "joy", "row 3, has the label 'joy'"),
        ("street/0", "street", 0, "wrong", "fear", "says of the face 'street/0' of 'street' both right fear and wrong"),
    ],
)  # fmt: skip
def test_bad_rows_are_one_line_and_change_nothing(
    world: World, face_id: str, pool: str, number: int, verdict: str, label: str, fault: str
) -> None:
    good = Judgement("street/0", "street", picture(0), "right", "fear", "Ada", NOON)
    write_review(Path("judged.csv"), [good, Judgement(face_id, pool, picture(number), verdict, label, "Ada", NOON)])
    before = Path("data/review.csv").read_bytes()
    line = say("review", "judged.csv", fails=True)
    assert fault in line
    assert "\n" not in line
    assert len(line) < 700
    assert Path("data/review.csv").read_bytes() == before
    if "judges" in fault or "which" in fault:
        assert "1 left out: unknown faces" in say("review", "judged.csv", "--drop-unknown")
        assert [row.face_id for row in rows_of("data/review.csv")] == ["street/0"]


def test_a_verdict_may_be_taken_back_also_of_a_face_that_is_gone(world: World) -> None:
    rows = [Judgement(f"street/{n}", "street", picture(n), "wrong", "fear", "Ada", NOON) for n in range(3)]
    gone = Judgement("street/none", "street", picture(1), "wrong", "fear", "Ada", NOON)
    write_review(Path("data/review.csv"), [*rows, gone])
    later = {"verdict": "withdrawn", "label": "", "when": "2026-11-29T00:00:00.000Z"}
    write_review(Path("back.csv"), [row._replace(**later) for row in (rows[1], gone)])
    line = say("review", "back.csv")
    assert "0 verdicts are new, 0 changed, 2 taken back" in line
    assert "holds 2 verdicts on 2 faces, 2 in use" in line
    assert rows_of("data/review.csv") == [rows[0], rows[2]]


def test_nothing_to_read_or_no_number_is_one_line(world: World) -> None:
    assert "none.csv does not exist" in say("review", "none.csv", fails=True)
    assert "--n must be at least 1, found 0" in say("suggest", "--n", "0", fails=True)
    Path("data/review.csv").unlink()
    assert "data/review.csv does not exist; make it with the line face_id" in say("sample", fails=True)
