"""Batches made ahead: in order, the same by any number of threads, faults in their place, and nothing left running."""

import threading
import time
from contextlib import closing

import pytest
import torch

from fer_pipeline.training.batches import Stream
from fer_pipeline.training.images import DecodedImages
from fer_pipeline.training.loader import Loader, ahead

CPU = torch.device("cpu")


class Slow(DecodedImages):
    """DecodedImages images that take their time and say so."""

    count = 4

    def threads(self, device: torch.device) -> int:
        return self.count

    def take(self, places, *, pinned: bool = False):
        time.sleep(0.002 * (int(places[0]) % 3))
        return super().take(places, pinned=pinned)


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_items_come_in_order_and_a_fault_with_its_item(threads: int) -> None:
    def make(item: int) -> int:
        time.sleep(0.001 * (item % 4))
        if item == 17:
            raise ZeroDivisionError
        return item * item

    assert list(ahead(make, range(12), threads=threads)) == [item * item for item in range(12)]
    coming = ahead(make, range(30), threads=threads)
    assert [next(coming) for _ in range(17)] == [item * item for item in range(17)]
    with pytest.raises(ZeroDivisionError):
        next(coming)


def test_no_more_is_made_ahead_than_two_for_each_thread() -> None:
    made = []
    coming = ahead(lambda item: made.append(item), range(100), threads=2)
    next(coming)
    time.sleep(0.05)
    assert len(made) <= 5
    coming.close()


def test_leaving_early_leaves_no_thread(toy) -> None:
    before = threading.active_count()
    streams = {"labelled": Stream(toy(20, 0), 4, seed=1)}
    streams["labelled"].set.images.__class__ = Slow
    with closing(Loader(streams, CPU).batches(range(1000))) as coming:
        next(coming)
        assert threading.active_count() > before
    assert threading.active_count() == before


def test_batches_do_not_depend_on_threads_and_waiting_is_counted(toy) -> None:
    streams = {name: Stream(toy(20, seed), 4, seed=seed) for seed, name in enumerate(("labelled", "mined"))}
    plain = list(Loader(streams, CPU).batches(range(5, 30)))
    for stream in streams.values():
        stream.set.images.__class__ = Slow
    loader = Loader(streams, CPU)
    for one, two in zip(plain, loader.batches(range(5, 30)), strict=True):
        for name in streams:
            assert torch.equal(one[name].images, two[name].images)
            assert torch.equal(one[name].rows, two[name].rows)
    assert 0 < loader.waited < 25 * 0.1
