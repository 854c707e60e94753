"""The batches of coming steps, made ahead by threads: streams in, batches on the device and the time waited for out.

Reading and decoding release Python's lock, so that they go on while the step runs. Batches are functions of their step,
so what a thread does and when changes nothing. Where images lie on the device of the training, nothing is made ahead.
"""

import time
from collections.abc import Generator, Iterable, Mapping
from contextlib import closing

import torch

from fer_pipeline.core.prefetch import prefetch
from fer_pipeline.training.batches import Batch, Stream


class Loader:
    """One training's batches by step. `waited` are the seconds in which the loop had nothing to do."""

    def __init__(self, streams: Mapping[str, Stream], device: torch.device) -> None:
        self.waited = 0.0
        self._streams, self._device = streams, device
        self._threads = max(stream.set.images.threads(device) for stream in streams.values())

    def batches(self, steps: Iterable[int]) -> Generator[dict[str, Batch], None, None]:
        """The batches of every stream for each step; to be closed when it is left early."""
        with closing(prefetch(self._make, steps, threads=self._threads, initializer=self._begin)) as made:
            started = time.perf_counter()
            for found in made:
                batches = {name: batch.to(self._device) for name, batch in found.items()}
                self.waited += time.perf_counter() - started
                yield batches
                started = time.perf_counter()

    def _make(self, step: int) -> dict[str, Batch]:
        pinned = self._device.type == "cuda"
        return {name: stream.batch(step, pinned=pinned) for name, stream in self._streams.items()}

    def _begin(self) -> None:
        if self._device.type == "cuda":  # else pinning memory would open the first GPU in every process
            torch.cuda.set_device(self._device)
