"""How fast a training went and what would make it faster: its streams and its clock in, a person's lines out.

They speak of a run and not of its result, so they stand in no artefact that is promised equal.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from fer_pipeline.training.batches import Stream

WORTH_A_WORD = 0.05  # of the time


@dataclass(frozen=True)
class Speed:
    """Seconds of training steps, those of them in which the loop had no images, and what would help."""

    seconds: float
    waited: float
    advice: tuple[str, ...]

    @property
    def words(self) -> str:
        """For the line of a stage."""
        return f"waited for images {self.waited / max(self.seconds, 1e-9):.1%} of the time"


def speed_of(streams: Mapping[str, Stream], *, waited: float, seconds: float) -> Speed:
    """The speed with one line for each fault in how the images are held or fed."""
    speed = Speed(seconds, waited, ())
    lines = [
        f"the {len(stream.set):,} images of {name} do not fit into memory and every step reads them from all over the "
        "shards; set training.order: blocks, or a larger resources.memory_gb"
        for name, stream in streams.items()
        if stream.reads_at_random
    ]
    if waited > WORTH_A_WORD * seconds and any(stream.set.images.streamed for stream in streams.values()):
        lines.append(
            f"the training {speed.words}; raise resources.workers or, so that images are decoded once, "
            "resources.memory_gb"
        )
    return Speed(seconds, waited, tuple(lines))
