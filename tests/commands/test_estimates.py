"""Estimates against arithmetic by hand: hours from recorded rates, bytes from a sample, and what is missing."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fer_pipeline.artifacts.store import Origin, Store, read_checksums, write_checksums
from fer_pipeline.commands.plan import estimate
from fer_pipeline.core.errors import DataError
from fer_pipeline.core.settings import Resources
from fer_pipeline.sharding.jobs import Advance, Job, Maker, Work

TWO = Resources(device="cpu", workers=2)
ONE = Resources(device="cpu", workers=1)


def key(number: int) -> str:
    return f"{number:032x}"


def setup(device: str) -> Maker:
    def make(job: Job[Any], path: Path, advance: Advance) -> None:
        if job.payload == "damaged":
            raise DataError("the shard is damaged")
        path.write_bytes(b"abc" * job.items)

    return make


def work(count: int, payload: str = "") -> Work:
    def jobs() -> Iterator[Job[str]]:
        for number in range(count):
            yield Job(key(number), f"part-{number}", 100, payload)

    def part(job: Job[Any], items: int, folder: Path) -> Job[Any]:
        return replace(job, key=f"{job.key}-{items}", items=min(items, job.items))

    return Work(jobs(), setup, part, unit="faces", total=100 * count)


def finish(store: Path, number: int, *, seconds: float, size: int, device: str = "cpu") -> None:
    written = Store(store, owner="embed@street")
    written.make(key(number), lambda path: path.write_bytes(bytes(size)))
    path = next(store.glob(f"checksums/*/{key(number)}.json"))
    checksums = read_checksums(path)
    assert checksums is not None
    write_checksums(path, replace(checksums, origin=Origin("embed@street", items=100, device=device, seconds=seconds)))


def test_recorded_rates_by_hand(tmp_path: Path) -> None:
    for number, seconds in enumerate((10, 5, 20)):
        finish(tmp_path, number, seconds=seconds, size=1000)
    finish(tmp_path, 3, seconds=0.01, size=1000, device="cuda:0")  # of another device: says nothing of this one
    planned = estimate("embed", "street", work(6), store=tmp_path, resources=TWO, seconds=1)
    assert (planned.shards, planned.missing, planned.items_missing, planned.workers) == (6, 2, 200, 2)
    assert planned.rate == pytest.approx(300 / 35)
    # 200 faces by two workers of 20, 60/7 and 5 faces a second.
    assert planned.seconds == pytest.approx((5.0, 100 / (300 / 35), 20.0))
    assert planned.size == pytest.approx(2000)
    assert planned.basis == "as 3 finished shards took"


def test_a_sample_where_nothing_is_known(tmp_path: Path) -> None:
    planned = estimate("embed", "street", work(4), store=tmp_path, resources=ONE, seconds=0.01)
    assert (planned.shards, planned.missing, planned.items_missing) == (4, 4, 400)
    assert planned.size == pytest.approx(1200), "three bytes a face"
    assert "by a sample of" in planned.basis
    low, likely, high = planned.seconds
    assert 0 < low <= likely <= high
    assert not list(tmp_path.glob("shards/*/*"))
    assert not list(tmp_path.glob(".plan*"))


def test_a_set_that_is_finished_needs_nothing(tmp_path: Path) -> None:
    for number in range(2):
        finish(tmp_path, number, seconds=1, size=10)
    planned = estimate("embed", "street", work(2), store=tmp_path, resources=TWO, seconds=1)
    assert (planned.missing, planned.seconds[1], planned.size) == (0, 0, 0)


def test_a_sample_that_fails_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"the sample failed at part-\d: the shard is damaged; correct it"):
        estimate("embed", "street", work(4, "damaged"), store=tmp_path, resources=ONE, seconds=0.01)
