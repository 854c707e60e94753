"""Draw whole sets in memory."""

from typing import Any

import numpy as np

from fer_pipeline.synthesis.sets import PortraitSet, Row, SetSettings


def draw_set(
    settings: SetSettings, seed: int, name: str, *, size: int = 128, styles: dict[str, dict[str, Any]] | None = None
) -> tuple[list[np.ndarray], list[Row]]:
    """Returns the decoded pictures of a set before JPEG, and their rows."""
    portraits = PortraitSet(settings, seed=seed, name=name, size=size, styles=styles)
    pairs = [portraits.draw(key) for key in portraits.keys()]
    return [image for image, _ in pairs], [row for _, row in pairs]
