"""The operators where they cannot be loaded without their package; what they compute is in test_boxes."""

import subprocess
import sys
from pathlib import Path

# IoU of the first two: 81 / (100 + 100 - 81) = 0.68; the third lies apart.
CALL = """
import torch
from fer_pipeline.alignment.suppression import nms
boxes = torch.tensor([[0., 0., 10., 10.], [1., 1., 11., 11.], [50., 50., 60., 60.]])
print("torchvision" in sys.modules, *(nms(boxes, torch.tensor([1., 3., 2.]), share).tolist() for share in (0.67, 0.69)))
"""
# The library alone is refused, as one that was built for another torch; what the package then loads is not.
OF_ANOTHER_TORCH = """
import sys, torch
load, calls = torch.ops.load_library, []
def refuse_first(path):
    calls.append(path)
    if len(calls) == 1:
        raise OSError("undefined symbol")
    load(path)
torch.ops.load_library = refuse_first
"""


def test_the_package_is_imported_where_its_library_cannot_be_loaded_alone(root: Path) -> None:
    told = subprocess.run([sys.executable, "-c", OF_ANOTHER_TORCH + CALL], cwd=root, capture_output=True, text=True)
    assert told.stdout == "True [1, 2] [1, 2, 0]\n", told.stderr
