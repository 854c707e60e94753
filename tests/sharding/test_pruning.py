"""Pruning removes what no last run uses, keeps what a killed run finished, and touches no store that is in use."""

import json
import os
import time
from pathlib import Path

import pytest

from fer_pipeline.artifacts.store import Store
from fer_pipeline.commands import prune
from fer_pipeline.core.errors import DataError
from fer_pipeline.sharding.locks import lock_for_run


def key(number: int) -> str:
    return f"{number:032x}"


def make(root: Path, owner: str, numbers: list[int], *, ended: bool = True) -> Store:
    store = Store(root, owner=owner)
    for number in numbers:
        store.make(key(number), lambda path: path.write_bytes(b"x" * 1000))
    if ended:
        store.record_run(map(key, numbers))
    return store


def shards(root: Path) -> set[int]:
    return {int(path.name, 16) for path in root.glob("shards/*/*") if not path.name.startswith(".")}


def test_what_the_last_run_of_no_set_uses_is_removed(tmp_path: Path) -> None:
    make(tmp_path, "embed@street", [1, 2, 3])
    make(tmp_path, "embed@studio", [3, 4])
    make(tmp_path, "embed@street", [2, 5])
    told = prune.run(store=tmp_path, dry_run=True)
    assert told == "prune: 1 shards of no last run (1.0 kB) would be removed, 1.0 kB freed; 4 shards kept"
    assert shards(tmp_path) == {1, 2, 3, 4, 5}
    assert prune.run(store=tmp_path) == "prune: 1 shards of no last run (1.0 kB) removed, 1.0 kB freed; 4 shards kept"
    assert shards(tmp_path) == {2, 3, 4, 5}
    assert Store(tmp_path).checksums(key(1)) is None
    assert prune.run(store=tmp_path) == "prune: nothing removed, 0 B freed; 4 shards kept"


def test_what_a_killed_run_finished_is_kept(tmp_path: Path) -> None:
    make(tmp_path, "embed@studio", [1])
    make(tmp_path, "embed@street", [2, 3], ended=False)
    prune.run(store=tmp_path)
    assert shards(tmp_path) == {1, 2, 3}
    make(tmp_path, "embed@street", [3])
    make(tmp_path, "embed@street", [4], ended=False)
    prune.run(store=tmp_path)
    assert shards(tmp_path) == {1, 3, 4}


@pytest.mark.parametrize("hours", [-1000, 1000])
def test_a_clock_that_was_wrong_neither_loses_a_shard_nor_keeps_one(
    tmp_path: Path, hours: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last run ended while the clock was wrong; it was put right before the next one, which was killed."""
    clock = time.time
    with monkeypatch.context() as wrong:
        wrong.setattr(time, "time", lambda: clock() + 3600 * hours)
        make(tmp_path, "embed@street", [1, 2])
    make(tmp_path, "embed@street", [3], ended=False)
    prune.run(store=tmp_path)
    assert shards(tmp_path) == {1, 2, 3}
    make(tmp_path, "embed@street", [2])
    prune.run(store=tmp_path)
    assert shards(tmp_path) == {2}


def test_states_age_by_the_work_on_the_store_and_not_by_the_clock_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make(tmp_path, "train_final@vas", [1])
    state = store.state("train_final", key(8)) / "state.json"
    state.write_text("of a killed training")
    clock, day = time.time, 86400
    with monkeypatch.context() as ahead:
        ahead.setattr(time, "time", lambda: clock() + 100 * day)
        prune.run(store=tmp_path)
    assert state.exists()
    for path in (state, state.parent):  # of a clock that was ahead
        os.utime(path, (clock() + 1000 * day,) * 2)
    prune.run(store=tmp_path, dry_run=True)
    assert state.stat().st_mtime > clock() + 900 * day
    prune.run(store=tmp_path)
    assert state.exists()
    assert state.stat().st_mtime <= clock()
    assert state.parent.stat().st_mtime <= clock()


def test_shards_of_older_code_are_kept_until_their_stage_has_run_again(tmp_path: Path) -> None:
    make(tmp_path, "embed@street", [1, 2])
    record = tmp_path / "last_runs" / "embed@street.json"
    record.write_text(json.dumps({"ended": "2026-01-01T00:00:00+00:00", "keys": [key(1)], "time": 1.0}))
    prune.run(store=tmp_path)
    assert shards(tmp_path) == {1, 2}
    make(tmp_path, "embed@street", [1])
    prune.run(store=tmp_path)
    assert shards(tmp_path) == {1}


@pytest.mark.parametrize("text", ["", "[]", '{"keys": 3}', "{}", '{"keys": ["a"'])
def test_a_damaged_record_of_a_run_stops_pruning_and_no_run(tmp_path: Path, text: str) -> None:
    make(tmp_path, "embed@street", [1])
    (tmp_path / "last_runs" / "embed@street.json").write_text(text)
    with pytest.raises(
        DataError, match=r"embed@street\.json is no record of a run \([^\n]*\); remove it, and its shards "
    ):
        prune.run(store=tmp_path)
    assert shards(tmp_path) == {1}
    make(tmp_path, "embed@street", [2])
    prune.run(store=tmp_path)
    assert shards(tmp_path) == {2}


def test_a_store_of_which_nothing_is_known_keeps_its_shards(tmp_path: Path) -> None:
    make(tmp_path, "embed@street", [1, 2], ended=False)
    for checksums in (tmp_path / "checksums").rglob("*.json"):
        checksums.unlink()
    prune.run(store=tmp_path)
    assert shards(tmp_path) == {1, 2}


def test_leftovers_and_states_of_no_use(tmp_path: Path) -> None:
    store = make(tmp_path, "train_final@vas", [1])
    for name, number in (("finished", 1), ("young", 7), ("old", 8)):
        (store.state("train_final", key(number)) / "state.json").write_text(name)
    long_ago = time.time() - 20 * 86400
    old = store.state("train_final", key(8))
    os.utime(old / "state.json", (long_ago, long_ago))
    os.utime(old, (long_ago, long_ago))
    (store.shard(key(1)).parent / ".half.12345678.tmp").write_bytes(b"x" * 500)
    told = prune.run(store=tmp_path)
    assert "2 states of no use (11 B), 1 leftovers of dead runs (500 B) removed" in told
    assert [path.name for path in tmp_path.glob("states/*/*")] == [key(7)]
    assert shards(tmp_path) == {1}


def test_links_in_outputs_are_told_and_kept(tmp_path: Path) -> None:
    store = make(tmp_path / "store", "embed@street", [1])
    store.link(key(1), tmp_path / "out")
    make(tmp_path / "store", "embed@street", [2])
    told = prune.run(store=tmp_path / "store")
    assert "(1.0 kB) removed, 0 B freed; 1.0 kB more are held by outputs" in told
    assert (tmp_path / "out").read_bytes() == b"x" * 1000


def test_a_store_at_work_and_a_folder_that_is_no_store_are_left_alone(tmp_path: Path) -> None:
    make(tmp_path, "embed@street", [1])
    make(tmp_path, "embed@street", [2])
    with lock_for_run(tmp_path, "align@street"), pytest.raises(DataError, match="align@street is at work"):
        prune.run(store=tmp_path)
    assert shards(tmp_path) == {1, 2}
    (tmp_path / "other").mkdir()
    with pytest.raises(DataError, match="no store of finished shards"):
        prune.run(store=tmp_path / "other")
