"""Batches made ahead: the same by any number of threads, and nothing left running."""

import threading
import time
from contextlib import closing

import torch

from fer_pipeline.training.batches import Loader, Stream
from fer_pipeline.training.images import DecodedImages

CPU = torch.device("cpu")


class Slow(DecodedImages):
    """DecodedImages images that take their time and say so."""

    count = 4

    def threads(self, device: torch.device) -> int:
        return self.count

    def take(self, places, *, pinned: bool = False):
        time.sleep(0.002 * (int(places[0]) % 3))
        return super().take(places, pinned=pinned)


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
