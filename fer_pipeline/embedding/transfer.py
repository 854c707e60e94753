"""Compute features of batch after batch while a GPU receives the next crops and sends the last features back.

Two buffers of page-locked memory take turns. While one batch is computed, the next is copied to the device on a stream
of its own and the features of the last come back; the host waits for nothing but finished features.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from torch import Tensor

NUM_BUFFERS = 2

Compute = Callable[[UInt8[Tensor, "n h w 3"]], Float32[Tensor, "n d"]]


def compute_overlapped(
    batches: Iterable[UInt8[np.ndarray, "_ _ _ 3"]],
    compute: Compute,
    *,
    device: torch.device,
    batch_size: int,
    dimensions: int,
) -> Iterator[Float32[np.ndarray, "_ d"]]:
    """Yields `compute` of each batch of at most `batch_size` crops, in order; it maps tensors on the device.

    On a CPU the same buffers take the same turns, one thing after the other.
    """
    copying = torch.cuda.Stream(device) if device.type == "cuda" else None
    buffers: deque[TransferBuffer] = deque()
    for images in batches:
        if len(buffers) < NUM_BUFFERS:
            buffer = TransferBuffer(batch_size, dimensions, device, copying)
        else:
            buffer = buffers.popleft()
            yield buffer.receive()
        buffer.send(images, compute)
        buffers.append(buffer)
    for buffer in buffers:
        yield buffer.receive()


class TransferBuffer:
    """Memory for one batch on its way to the device and for its features on their way back."""

    def __init__(
        self, batch_size: int, dimensions: int, device: torch.device, copying: "torch.cuda.Stream | None"
    ) -> None:
        self.batch_size, self.device, self.copying = batch_size, device, copying
        self.features = torch.empty((batch_size, dimensions), pin_memory=copying is not None)
        self.images = torch.empty(0, dtype=torch.uint8)
        self.returned = None if copying is None else torch.cuda.Event()
        self.rows = 0

    def send(self, images: UInt8[np.ndarray, "_ h w 3"], compute: Compute) -> None:
        """Starts a batch on its way; the buffer must have been emptied by `receive`."""
        assert len(images) <= self.batch_size
        self.rows = len(images)
        if self.images.shape[1:] != images.shape[1:]:
            shape = (self.batch_size, *images.shape[1:])
            self.images = torch.empty(shape, dtype=torch.uint8, pin_memory=self.copying is not None)
        source = self.images[: self.rows]
        source.numpy()[:] = images
        if self.copying is None:
            self.features[: self.rows] = compute(source)
            return
        assert self.returned is not None
        working = torch.cuda.current_stream(self.device)
        with torch.cuda.stream(self.copying):
            batch = source.to(self.device, non_blocking=True)
        working.wait_stream(self.copying)
        batch.record_stream(working)  # or its memory would be given to the next copy while it is still read
        self.features[: self.rows].copy_(compute(batch), non_blocking=True)
        self.returned.record(working)

    def receive(self) -> Float32[np.ndarray, "_ d"]:
        """Waits for the features of the batch that was sent and returns them."""
        if self.returned is not None:
            self.returned.synchronize()
        return self.features[: self.rows].numpy().copy()
