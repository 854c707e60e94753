"""The cascade with its weights, loaded once, and sample pictures."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fer_pipeline.alignment.cascade import DetectionSettings, Detector


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def detector() -> Detector:
    """The cascade with its default settings."""
    return Detector(DetectionSettings())


@pytest.fixture(scope="session")
def portraits(sample_faces: Path) -> list[np.ndarray]:
    """Twelve photographs with a face each."""
    files = sorted((sample_faces / "lfw" / "images").iterdir())[:12]
    return [np.asarray(Image.open(file).convert("RGB")) for file in files]
