"""The shard store: made once, linked anywhere, never half."""

import os
from pathlib import Path

import pytest

from fer_pipeline.artifacts.store import Store


def test_a_shard_is_made_once_and_linked(tmp_path: Path) -> None:
    store, made = Store(tmp_path / "store"), []

    def make(path: Path) -> None:
        made.append(path)
        path.write_bytes(b"shard")

    assert store.make("k1", make) is False
    assert Store(tmp_path / "store").make("k1", make) is True
    assert len(made) == 1
    store.link("k1", tmp_path / "out" / "a.bin")
    assert (tmp_path / "out" / "a.bin").read_bytes() == b"shard"
    assert os.stat(tmp_path / "out" / "a.bin").st_ino == os.stat(store.shard("k1")).st_ino


def test_what_stands_at_the_place_of_a_link_is_replaced(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    store.make("k", lambda path: path.write_bytes(b"new"))
    (tmp_path / "out").write_bytes(b"old")
    store.link("k", tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == b"new"


def test_a_failed_shard_leaves_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path)

    def fail(path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        store.make("k", fail)
    assert not store.has("k")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_shard_of_several_files(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    store.make("k", lambda folder: [(folder / name).write_text(name) for name in "ab"], folder=True)
    store.link("k", tmp_path / "out")
    assert sorted(path.read_text() for path in (tmp_path / "out").iterdir()) == ["a", "b"]


def test_states_are_dropped(tmp_path: Path) -> None:
    store = Store(tmp_path)
    (store.state("train", "k") / "epoch.json").write_text("1")
    store.drop_state("train", "k")
    assert list(store.state("train", "k").iterdir()) == []
