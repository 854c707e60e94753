"""Shared ground of the tests: one thread, no network, and the sample faces where they are present."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
for name in ("DO_NOT_TRACK", "DVC_NO_ANALYTICS", "HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
    os.environ.setdefault(name, "1")

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def root() -> Path:
    """The project's folder."""
    return ROOT


@pytest.fixture(scope="session")
def sample_faces() -> Path:
    """The folder of sample photographs, which the project does not ship."""
    folder = Path(os.environ.get("FER_SAMPLE_FACES", ROOT.parent / "shared" / "faces"))
    if not folder.is_dir():
        pytest.skip(f"no sample faces in {folder}; set FER_SAMPLE_FACES")
    return folder
