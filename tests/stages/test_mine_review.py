"""`mine` with verdicts: what they change by hand, that they change nothing else, and what they say of precision."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy import stats

from fer_pipeline.artifacts.mined import mined_schema, read_chosen, read_rows
from fer_pipeline.artifacts.review import Judgement, write_review
from fer_pipeline.core.errors import DataError
from fer_pipeline.core.files import file_sha256, read_json
from fer_pipeline.core.settings import Summary
from fer_pipeline.mining.review import Opinion, draw_order, draw_sample, measure
from fer_pipeline.stages import mine
from tests.project import project_settings
from tests.stages.test_mine import CLASSES, by_hand, simulate, write_known, write_pool  # noqa: F401

NOON = "2026-11-28T12:00:00.000Z"


def picture(number: int) -> str:
    return number.to_bytes(16, "big").hex()


def judged(
    face_id: str, number: int, words: str, who: str = "Ada", pool: str = "street", sample: str = ""
) -> Judgement:
    verdict, _, label = words.partition(" ")
    return Judgement(face_id, pool, picture(number), verdict, label, who, NOON, sample)


def run(config: mine.Config, folder: Path, rows: list[Judgement], *pools: str, out: str = "mined") -> Summary:
    write_review(folder / "review.csv", rows)
    project = project_settings(classes=CLASSES, pools=pools or ("street",), seeds=(0,), targets=("studio", "film"))
    paths = {name: folder / name for name in ("scores", "contents")}
    return mine.run(config, project, out=folder / out, review=folder / "review.csv", **paths)


def table(folder: Path, name: str = "mined.parquet", out: str = "mined") -> list[dict[str, Any]]:
    return pq.read_table(folder / out / name).to_pylist()


def test_verdicts_by_hand(by_hand: Path) -> None:  # noqa: F811
    """The rule alone keeps f/a, f/b and s/a as anger, s/e as fear."""
    write_known(by_hand, "street", {f"s/{name}": number for number, name in enumerate("abcde", 1)})
    write_known(by_hand, "film", {"f/a": 11, "f/b": 12})
    rows = [
        judged("f/b", 12, "wrong anger", pool="film"),
        judged("s/e", 5, "other neutral"),
        judged("s/a", 1, "right anger"),
        judged("s/a", 1, "wrong fear", "Bob"),  # no contradiction
        judged("s/b", 2, "other neutral"),  # below the margin
        judged("s/c", 99, "wrong anger"),  # another picture
        judged("s/d", 4, "right fear"),  # no direction: nothing mines it
        judged("s/x", 1, "right fear"),
        judged("g/a", 1, "right fear", pool="no_pool"),
        judged("f/a", 11, "right anger", pool="film"),
        judged("f/a", 11, "other", "Bob", pool="film"),
    ]
    summary = run(mine.Config(value=6 / 16), by_hand, rows, "street", "film")
    found = [
        (row["face_id"], row["label"], row["cosine"] * 16, row["margin"] * 16, row["rank"]) for row in table(by_hand)
    ]
    assert found == [("f/a", 0, 15, 7, 1), ("s/a", 0, 12, 8, 2), ("s/e", 2, 9, 6, 1)]
    columns = ("face_id", "pool", "label", "rank", "judged_label")
    assert [tuple(row[name] for name in columns) for row in table(by_hand, "reviewed.parquet")] == [
        ("f/b", "film", 0, 2, -1),
        ("s/a", "street", 0, 3, 0),
        ("s/b", "street", 0, 0, 2),
        ("s/e", "street", 1, 1, 2),
    ]
    content = read_json(by_hand / "mined" / "summary.json")
    assert content["review"] == {
        "judged": 9, "changed": 1, "gone": 2, "contradicted": 1, "no_candidates": 1, "used": 4,
    }  # fmt: skip
    counts = {
        name: [pool[key] for key in ("over_cap", "judged_wrong", "relabelled", "kept")]
        for name, pool in content["pools"].items()
    }
    assert counts == {"street": [0, 0, 1, 2], "film": [0, 1, 0, 1]}
    assert (summary.counts["judged_wrong"], summary.counts["relabelled"], summary.counts["kept"]) == (1, 1, 3)
    assert "; 1 left out and 1 relabelled by verdicts" in summary.line
    told = "\n".join(summary.warnings)
    assert (
        "1 judged faces show another picture now, and their verdicts are not used; the first is 's/c' of 'street'"
        in told
    )
    assert "2 judged faces are gone, and their verdicts are not used; the first is 'g/a' of 'no_pool'" in told
    assert (
        "contradiction, and their verdicts are not used; the first is 'f/a' of 'film': 'Ada' right anger, 'Bob' other"
        in told
    )
    assert "measured" not in content["precision"], "nothing was drawn at random"
    chosen = read_chosen(by_hand / "mined", classes=CLASSES).sort_by([("label", "ascending"), ("rank", "ascending")])
    run(mine.Config(value=6 / 16), by_hand, [], "street", "film")
    assert chosen.to_pylist() == table(by_hand), "what the rule chose is known whatever was judged"


@pytest.fixture
def large(tmp_path: Path) -> tuple[Path, dict[str, str]]:
    """A pool of 3,000 faces with their true labels."""
    label, cosine = simulate(7, 3000)
    names = [f"street/{number}" for number in range(3000)]
    write_pool(tmp_path / "scores", "street", [(names[:1000], cosine[:1000]), (names[1000:], cosine[1000:])])
    write_known(tmp_path, "street", {name: number for number, name in enumerate(names)})
    return tmp_path, {name: CLASSES[k] for name, k in zip(names, label.tolist(), strict=True)}


def number_of(face_id: str) -> int:
    return int(face_id.split("/")[1])


@pytest.mark.parametrize("options", [{"value": 0.15}, {"value": 0.1, "cap": 300}, {"by": "count", "value": 900}])
def test_wrong_verdicts_remove_exactly_those(large: tuple[Path, dict[str, str]], options: dict[str, Any]) -> None:
    folder, _ = large
    config = mine.Config(second_rule=None, **options)
    run(config, folder, [], out="before")
    assert not (folder / "before" / "reviewed.parquet").exists()
    before = {row["face_id"]: row for row in table(folder, out="before")}
    chosen = np.random.default_rng(0).permutation(sorted(before))[:50].tolist()
    rows = [judged(name, number_of(name), f"wrong {CLASSES[before[name]['label']]}") for name in chosen]
    run(config, folder, rows)
    after = {row["face_id"]: row for row in table(folder)}
    assert before.keys() - after.keys() == set(chosen)
    assert after.keys() <= before.keys()
    for name, row in after.items():
        ahead = [
            one for one in chosen if before[one]["label"] == row["label"] and before[one]["rank"] < before[name]["rank"]
        ]
        assert row == before[name] | {"rank": before[name]["rank"] - len(ahead)}
    for name in ("margins", "passed", "rules"):
        assert read_json(folder / "mined/summary.json")[name] == read_json(folder / "before/summary.json")[name]
    pool = read_json(folder / "mined/summary.json")["pools"]["street"]
    assert pool["faces"] == sum(pool[key] for key in mine.COUNTS[1:]) + pool["judged_wrong"] == 3000
    # Without verdicts every byte is what it is without the file.
    project = project_settings(classes=CLASSES, pools=("street",), seeds=(0,), targets=("studio", "film"))
    mine.run(config, project, scores=folder / "scores", out=folder / "none", contents=folder / "contents")
    names = sorted(path.name for path in (folder / "none").iterdir())
    assert names == sorted(path.name for path in (folder / "before").iterdir())
    assert all(file_sha256(folder / "none" / name) == file_sha256(folder / "before" / name) for name in names)


def test_a_judged_sample_measures_precision(large: tuple[Path, dict[str, str]]) -> None:
    """By class SciPy's Wilson interval; faces that a looser margin brings in are counted as not judged."""
    folder, truth = large
    run(mine.Config(value=0.2), folder, [], out="strict")
    strict = read_rows(folder / "strict", "mined.parquet", classes=CLASSES)
    drawn = strict.take(draw_sample(strict, number=90, per_class=True, seed=4, num_classes=3)).to_pylist()
    rows = []
    for row in drawn:
        name = row["face_id"]
        words = f"right {truth[name]}" if truth[name] == CLASSES[row["label"]] else f"other {truth[name]}"
        rows.append(judged(name, number_of(name), words, sample="4 11"))
    suggested = [row for row in strict.to_pylist() if row not in drawn][:40]
    rows += [judged(row["face_id"], number_of(row["face_id"]), f"wrong {CLASSES[row['label']]}") for row in suggested]
    run(mine.Config(value=0.2), folder, rows)
    content = read_json(folder / "mined" / "summary.json")
    for k, name in enumerate(CLASSES):
        own = [row for row in drawn if row["label"] == k]
        right = sum(truth[row["face_id"]] == name for row in own)
        bounds = stats.binomtest(right, 30).proportion_ci(0.95, method="wilson")
        assert content["by_class"][name]["measured"] == {
            "drawn": 30,
            "judged": 30,
            "precision": pytest.approx(right / 30),
            "low": pytest.approx(bounds.low),
            "high": pytest.approx(bounds.high),
        }
    assert content["precision"]["measured"]["seed"] == 4, "of the draw 11 few faces before the last one are judged"
    assert content["precision"]["measured"]["judged"] == 90
    run(mine.Config(value=0.05), folder, rows, out="loose")
    loose = read_chosen(folder / "loose", classes=CLASSES)
    order, known = draw_order(loose, 4), {row.face_id: row for row in rows}
    marked, parts = {row.face_id for row in rows if row.sample}, []
    for k, name in enumerate(CLASSES):
        own = [(int(at), row["face_id"]) for at, row in zip(order, loose.to_pylist(), strict=True) if row["label"] == k]
        last = max(at for at, face_id in own if face_id in marked)
        reached = [known.get(face_id) for at, face_id in own if at <= last]
        answers = [row.verdict != "wrong" and row.label == name for row in reached if row]
        low = stats.binomtest(sum(answers), len(reached)).proportion_ci(0.95, method="wilson").low
        lacking = len(reached) - len(answers)
        high = stats.binomtest(sum(answers) + lacking, len(reached)).proportion_ci(0.95, method="wilson").high
        found = read_json(folder / "loose/summary.json")["by_class"][name]["measured"]
        assert (found["drawn"], found["judged"]) == (len(reached), len(answers))
        assert lacking > 0
        assert (found["low"], found["high"]) == (pytest.approx(low), pytest.approx(high))
        parts.append((len(own), sum(answers) / len(reached), low))
    sizes, least, lows = (np.array(column) for column in zip(*parts, strict=True))
    whole = read_json(folder / "loose/summary.json")["precision"]["measured"]
    lowest = ((sizes * least).sum() - np.sqrt((sizes**2 * (least - lows) ** 2).sum())) / sizes.sum()
    assert whole["low"] == pytest.approx(lowest), "what nobody judged is wrong in all classes at once"


def test_of_several_draws_that_tell_as_much_the_answers_do_not_choose() -> None:
    """A draw of faces that are all right has the narrowest interval; to choose by that would say too much."""
    names = [f"street/{number}" for number in range(400)]
    label = np.zeros(400, np.int64)
    columns = [names, ["street"] * 400, label, np.zeros(400, np.float32), np.zeros(400, np.float32), label]
    faces = pa.Table.from_arrays([pa.array(column) for column in columns], schema=mined_schema(CLASSES))
    drawn = {
        seed: {*draw_sample(faces, number=30, per_class=False, seed=seed, num_classes=3).tolist()} for seed in (1, 2)
    }
    assert len(drawn[2] - drawn[1]) > 20
    opinions = {
        ("street", names[row]): Opinion(
            CLASSES[0] if row in drawn[2] or row % 2 else "",
            frozenset(),
            frozenset(seed for seed in drawn if row in drawn[seed]),
        )
        for row in drawn[1] | drawn[2]
    }
    found = measure(faces, opinions, CLASSES, level=0.95)
    assert found is not None
    assert (found[1]["seed"], found[1]["judged"]) == (1, 30)
    assert found[1]["precision"] < 0.9


def test_a_random_sample_of_200_covers_the_true_precision() -> None:
    """In 100 draws from a pool of 4,000 mined faces, of each class and of all together."""
    rng, sizes, shares = np.random.default_rng(3), (2500, 1200, 300), (0.95, 0.8, 0.6)
    label = np.repeat([0, 1, 2], sizes)
    right = rng.random(4000) < np.repeat(shares, sizes)
    names = [f"street/{number}" for number in range(4000)]
    columns = [names, ["street"] * 4000, label, np.zeros(4000, np.float32), np.zeros(4000, np.float32), label]
    faces = pa.Table.from_arrays([pa.array(column) for column in columns], schema=mined_schema(CLASSES))
    for per_class in (False, True):
        covered = np.zeros(4, int)
        for seed in range(100):
            drawn = draw_sample(faces, number=200, per_class=per_class, seed=seed, num_classes=3)
            assert len(drawn) == len({*drawn.tolist()}) == 200
            shown = {row: CLASSES[label[row]] if right[row] else "" for row in drawn.tolist()}
            opinions = {
                ("street", names[row]): Opinion(shows, frozenset(), frozenset({seed})) for row, shows in shown.items()
            }
            found = measure(faces, opinions, CLASSES, level=0.95)
            assert found is not None
            by_class, whole = found
            for place, (one, truth) in enumerate(
                [(whole, right.mean()), *((by_class[name], right[label == k].mean()) for k, name in enumerate(CLASSES))]
            ):
                covered[place] += one["low"] <= truth <= one["high"]
                assert one["drawn"] == one["judged"] == (200 if one is whole else (label[drawn] == place - 1).sum())
        assert covered.min() >= 90, covered


def test_a_larger_draw_holds_a_smaller_one_and_a_class_gives_all_it_has() -> None:
    label = np.repeat([0, 1, 2], [50, 10, 3])
    columns = [[f"street/{number}" for number in range(63)], ["street"] * 63, label]
    columns += [np.zeros(63, np.float32), np.zeros(63, np.float32), label]
    faces = pa.Table.from_arrays([pa.array(column) for column in columns], schema=mined_schema(CLASSES))

    def draw(number: int, *, per_class: bool, seed: int = 0) -> list[int]:
        return draw_sample(faces, number=number, per_class=per_class, seed=seed, num_classes=3).tolist()

    counts = {per: np.bincount(label[draw(30, per_class=per)], minlength=3).tolist() for per in (False, True)}
    assert counts == {False: [24, 5, 1], True: [17, 10, 3]}  # shares of 63: 23.8, 4.8 and 1.4
    for per_class in (False, True):
        assert {*draw(12, per_class=per_class)} < {*draw(30, per_class=per_class)}
        assert sorted(draw(99, per_class=per_class)) == [*range(63)]
    assert draw(12, per_class=True) != draw(12, per_class=True, seed=1)


def test_verdicts_without_contents_or_that_leave_nothing_are_refused(by_hand: Path) -> None:  # noqa: F811
    rows = [judged("s/a", 1, "wrong anger"), judged("s/e", 2, "wrong fear")]
    with pytest.raises(DataError, match="bound to pictures, and nothing says which pictures the faces of street are"):
        run(mine.Config(value=6 / 16), by_hand, rows)
    write_known(by_hand, "street", {"s/a": 1, "s/e": 2})
    with pytest.raises(DataError, match=r"verdicts leave none of 2 faces that the rule chose; change mine\.value"):
        run(mine.Config(value=6 / 16), by_hand, rows)
    assert not (by_hand / "mined").exists()
