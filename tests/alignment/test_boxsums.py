"""Sums of boxes out of packed tables against sums of the pixels themselves."""

import numpy as np
import pytest
import torch

from fer_pipeline.alignment import boxsums
from fer_pipeline.alignment.boxsums import BITS, LARGEST, BoxSums


def table(image: np.ndarray) -> torch.Tensor:
    """The packed summed-area table of a picture, in Python's whole numbers, which do not overflow until the end."""
    packed = sum(image[..., channel].astype(object) << BITS * channel for channel in range(3))
    whole = np.zeros((image.shape[0] + 1, image.shape[1] + 1), object)
    whole[1:, 1:] = packed.cumsum(axis=0).cumsum(axis=1)
    wrapped = (whole + 2**63) % 2**64 - 2**63
    return torch.from_numpy(wrapped.astype(np.int64)).flatten()


def assert_sums(image: np.ndarray, rows: list[list[int]], columns: list[list[int]]) -> None:
    edges = [torch.tensor(some) for some in (*rows, *columns)]
    boxes = BoxSums.between((edges[0], edges[1]), (edges[2], edges[3]), pitch=image.shape[1] + 1)
    for channel, found in enumerate(boxes.colours(table(image))):
        expected = [
            [image[top:bottom, left:right, channel].sum(dtype=np.int64) for left, right in zip(*columns, strict=True)]
            for top, bottom in zip(*rows, strict=True)
        ]
        assert found.view(len(rows[0]), len(columns[0])).tolist() == expected


def test_sums_of_random_boxes() -> None:
    image = np.random.default_rng(1).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    assert_sums(image, [[0, 3, 39, 7], [40, 9, 40, 7]], [[0, 49, 12], [50, 50, 13]])


def test_white_boxes_at_and_above_the_largest() -> None:
    image = np.full((130, 130, 3), 255, np.uint8)
    side = int(LARGEST**0.5)
    assert_sums(image, [[0, 3], [side, 3 + side]], [[1], [1 + side]])
    assert_sums(image, [[0, 0, 5], [130, 1, 6]], [[0, 7], [130, 8]])


@pytest.mark.parametrize("largest", [1, 7, 40])
def test_parts_change_nothing(largest: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boxsums, "LARGEST", largest)
    image = np.random.default_rng(2).integers(0, 256, (20, 20, 3), dtype=np.uint8)
    assert_sums(image, [[0, 3, 10], [5, 4, 19]], [[0, 4, 9], [9, 5, 20]])


def test_joined_boxes_follow_each_other() -> None:
    image = np.full((200, 200, 3), 255, np.uint8)
    small = (torch.tensor([0, 2]), torch.tensor([2, 3]))
    large = (torch.tensor([0]), torch.tensor([200]))
    boxes = BoxSums.joined([BoxSums.between(some, some, pitch=201) for some in (small, large, small)])
    first = [4 * 255, 2 * 255, 2 * 255, 255]
    for found in boxes.colours(table(image)):
        assert found.tolist() == [*first, 200 * 200 * 255, *first]


def test_of_two_tables_each_has_its_own_rows() -> None:
    images = [np.full((4, 5, 3), 1, np.uint8), np.full((7, 3, 3), 10, np.uint8)]
    tables = [table(image) for image in images]
    rows = (torch.tensor([[0, 1], [2, 5]]), torch.tensor([[4, 2], [3, 7]]))
    columns = (torch.tensor([[0], [1]]), torch.tensor([[5], [3]]))
    start, pitch = torch.tensor([[0], [len(tables[0])]]), torch.tensor([[6], [4]])
    boxes = BoxSums.between(rows, columns, pitch=pitch, start=start)
    for found in boxes.colours(torch.cat(tables)):
        assert found.tolist() == [20, 5, 20, 40]
