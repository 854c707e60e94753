"""Checkpoints for sides: the name of a network and a seed in, a checkpoint with weights drawn from that seed out."""

import tempfile
from pathlib import Path


def saved(scratch: Path, name: str, crop: int, *, seed: int) -> Path:
    """A folder of its own for each side, with the same bytes in it."""
    from fer_pipeline.core.expressions import BASIC_7
    from fer_pipeline.networks.backbones import build
    from fer_pipeline.networks.checkpoints import save_checkpoint
    from fer_pipeline.networks.settings import Card, NetworkSettings, preprocessing_of

    settings = NetworkSettings(name=name, size=crop)
    folder = Path(tempfile.mkdtemp(dir=scratch)) / "model"
    card = Card(network=settings, classes=tuple(BASIC_7), preprocessing=preprocessing_of(settings, None))
    save_checkpoint(folder, build(settings, len(card.classes), seed=seed), card)
    return folder
