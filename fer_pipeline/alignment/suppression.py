"""torchvision's compiled non-maximum suppression without the rest of torchvision.

`import torchvision` brings every model and torch's compiler with it, two seconds of CPU in each process that looks for
faces. The operators are a library of their own in that package; a package that keeps them elsewhere is imported whole.
"""

from importlib.util import find_spec
from pathlib import Path

import torch
from jaxtyping import Float, Int64
from torch import Tensor


def nms(boxes: Float[Tensor, "n 4"], scores: Float[Tensor, " n"], threshold: float) -> Int64[Tensor, " k"]:
    """The kept boxes, highest score first: each that overlaps no kept one by more than `threshold` of their union."""
    return torch.ops.torchvision.nms(boxes, scores, threshold)


def load_operators() -> None:
    """Makes `torch.ops.torchvision` known."""
    spec = find_spec("torchvision")  # looks for it and does not run it
    places = spec.submodule_search_locations if spec else None
    for library in sorted(path for place in places or () for path in Path(place).glob("_C*") if path.is_file()):
        try:
            torch.ops.load_library(library)
        except OSError:  # built for another torch: the import says so better
            break
    if not hasattr(torch.ops.torchvision, "nms"):
        import torchvision.ops  # noqa: F401


load_operators()
