"""Boxes against arithmetic by hand and brute force; the operators where they cannot be loaded alone."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from fer_pipeline.alignment import cascade as boxes


def test_a_cell_lies_where_the_window_lay() -> None:
    found = boxes.place_cells(torch.tensor([0, 3]), torch.tensor([0, 5]), scale=0.5, stride=2, cell=12)
    # Cell (x 3, y 5) starts at the pixel (6, 10) of the half-sized picture: one-based 7 to 18 and 11 to 22, doubled.
    assert found.tolist() == [[2, 2, 24, 24], [14, 22, 36, 44]]


def test_regression_moves_by_fractions_of_the_sides() -> None:
    box = torch.tensor([[10.0, 20.0, 29.0, 59.0]])
    offsets = torch.tensor([[0.1, 0.1, -0.1, 0.5]])
    assert boxes.regress(box, offsets, inclusive=True).tolist() == [[12.0, 24.0, 27.0, 79.0]]
    np.testing.assert_allclose(boxes.regress(box, offsets, inclusive=False), [[11.9, 23.9, 27.1, 78.5]], rtol=1e-6)


def test_squares_keep_the_centre() -> None:
    assert boxes.make_square(torch.tensor([[0.0, 0.0, 10.0, 20.0]])).tolist() == [[-5.0, 0.0, 15.0, 20.0]]


def test_windows_are_whole_pixels_and_never_empty() -> None:
    found = boxes.to_pixels(torch.tensor([[1.0, 1.0, 12.0, 12.0], [-3.5, 2.9, 5.2, 7.7], [4.0, 4.0, 1.0, 1.0]]))
    assert found.tolist() == [[0, 0, 12, 12], [-5, 1, 5, 7], [3, 3, 4, 4]]


def overlap(a: np.ndarray, b: np.ndarray, *, smaller: bool) -> float:
    one = float(smaller)  # pixels are counted inclusively where the smaller area divides
    width = min(a[2], b[2]) - max(a[0], b[0]) + one
    height = min(a[3], b[3]) - max(a[1], b[1]) + one
    shared = max(width, 0) * max(height, 0)
    areas = [(box[2] - box[0] + one) * (box[3] - box[1] + one) for box in (a, b)]
    return shared / (min(areas) if smaller else sum(areas) - shared)


@pytest.mark.parametrize("smaller", [False, True])
def test_suppression_equals_brute_force(smaller: bool) -> None:
    random = np.random.default_rng(3)
    corner = random.uniform(0, 60, (200, 2))
    drawn = np.concatenate([corner, corner + random.uniform(5, 40, (200, 2))], axis=1).astype(np.float32)
    scores = random.permutation(200).astype(np.float32)
    groups = random.integers(0, 4, 200)
    expected = []
    for group in range(4):
        alive: list[int] = []
        for index in sorted(np.flatnonzero(groups == group), key=lambda index: -scores[index]):
            if all(overlap(drawn[index], drawn[kept], smaller=smaller) <= 0.5 for kept in alive):
                alive.append(int(index))
        expected += alive
    call = boxes.suppress_by_smaller if smaller else boxes.suppress
    found = call(torch.from_numpy(drawn), torch.from_numpy(scores), torch.from_numpy(groups), threshold=0.5)
    assert found.tolist() == expected


def test_of_equal_scores_the_later_wins_where_the_smaller_area_decides() -> None:
    same = torch.tensor([[0.0, 0.0, 9.0, 9.0], [0.0, 0.0, 9.0, 9.0]])
    found = boxes.suppress_by_smaller(same, torch.tensor([0.9, 0.9]), torch.tensor([0, 0]), threshold=0.7)
    assert found.tolist() == [1]


def test_nothing_in_nothing_out() -> None:
    empty = torch.zeros((0, 4))
    for call in (boxes.suppress, boxes.suppress_by_smaller):
        assert call(empty, torch.zeros(0), torch.zeros(0, dtype=torch.int64), threshold=0.5).tolist() == []


# IoU of the first two: 81 / (100 + 100 - 81) = 0.68; the third lies apart.
CALL = """
import torch
import fer_pipeline.alignment.cascade
nms = torch.ops.torchvision.nms
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
    run = subprocess.run([sys.executable, "-c", OF_ANOTHER_TORCH + CALL], cwd=root, capture_output=True, text=True)
    assert run.stdout == "True [1, 2] [1, 2, 0]\n", run.stderr
