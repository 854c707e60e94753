"""Area resizes against torch's own area interpolation and means by hand; sums of boxes against sums of pixels."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fer_pipeline.alignment import resize
from fer_pipeline.alignment.resize import BITS, CELL, MAX_PIXELS, BoxSums, SummedAreaTables, pyramid_scales

RANDOM = np.random.default_rng(11)


def picture(height: int, width: int) -> torch.Tensor:
    return torch.from_numpy(RANDOM.integers(0, 256, (height, width, 3), dtype=np.uint8))


def area(pixels: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """[h w 3] by torch, in float64, normalised."""
    resized = F.interpolate(pixels.permute(2, 0, 1)[None].double(), size=(height, width), mode="area")[0]
    return (resized - 127.5) / 128


def test_pyramids_equal_area_interpolation() -> None:
    sizes = [(30, 40), (7, 5), (61, 83), (90, 100)]
    images = [picture(61, 83) for _ in range(3)]
    levels = SummedAreaTables.from_images([picture(20, 9), *images]).resize([1, 3], sizes)
    for level, size in zip(levels, sizes, strict=True):
        for row, image in zip(level, (images[0], images[2]), strict=True):
            np.testing.assert_allclose(row, area(image, *size), atol=2e-6)


def test_a_large_picture_shrinks_to_one_cell() -> None:
    image = picture(1400, 1150)
    for level in SummedAreaTables.from_images([image]).resize([0], [(12, 12), (50, 40), (1, 1)]):
        np.testing.assert_allclose(level[0], area(image, level.shape[2], level.shape[3]), atol=2e-6)


def test_crops_of_pictures_of_many_sizes_equal_area_interpolation() -> None:
    images = [picture(50, 70), picture(33, 31), picture(200, 90)]
    windows = torch.tensor([[3, 4, 40, 41], [0, 0, 31, 31], [10, 100, 70, 160], [5, 5, 17, 17], [60, 0, 61, 1]])
    image = torch.tensor([0, 1, 2, 2, 0])
    found = SummedAreaTables.from_images(images).crop(image, windows, size=24)
    for row, (index, (x1, y1, x2, y2)) in enumerate(zip(image.tolist(), windows.tolist(), strict=True)):
        np.testing.assert_allclose(found[row], area(images[index][y1:y2, x1:x2], 24, 24), atol=2e-6)


def test_what_lies_outside_the_frame_is_mid_grey() -> None:
    image = picture(20, 30)
    found = SummedAreaTables.from_images([image]).crop(
        torch.tensor([0, 0]), torch.tensor([[-10, -4, 14, 20], [100, 100, 124, 124]]), size=24
    )
    padded = np.full((24, 24, 3), 127.5)
    padded[4:, 10:] = image[:20, :14]
    np.testing.assert_allclose(found[0].permute(1, 2, 0), (padded - 127.5) / 128, atol=2e-6)
    assert not found[1].any()


def test_the_largest_allowed_picture_does_not_overflow() -> None:
    image = torch.full((2800, 2800, 3), 255, dtype=torch.uint8)
    found = SummedAreaTables.from_images([image]).crop(torch.tensor([0]), torch.tensor([[0, 0, 2800, 2800]]), size=24)
    np.testing.assert_allclose(found, (255 - 127.5) / 128, atol=2e-6)


def test_scales_run_from_the_smallest_face_to_one_cell() -> None:
    scales = pyramid_scales(350, 500, min_face=20, factor=0.709)
    assert scales[0] == CELL / 20
    assert 350 * scales[-1] >= CELL > 350 * scales[-1] * 0.709
    np.testing.assert_allclose(np.divide(scales[1:], scales[:-1]), 0.709)
    assert pyramid_scales(19, 500, min_face=20, factor=0.709) == []


def table(image: np.ndarray) -> torch.Tensor:
    """The packed summed-area table of a picture, in Python's whole numbers, which do not overflow until the end."""
    packed = sum(image[..., channel].astype(object) << BITS * channel for channel in range(3))
    whole = np.zeros((image.shape[0] + 1, image.shape[1] + 1), object)
    whole[1:, 1:] = packed.cumsum(axis=0).cumsum(axis=1)
    wrapped = (whole + 2**63) % 2**64 - 2**63
    return torch.from_numpy(wrapped.astype(np.int64)).flatten()


def assert_sums(image: np.ndarray, rows: list[list[int]], columns: list[list[int]]) -> None:
    edges = [torch.tensor(some) for some in (*rows, *columns)]
    boxes = BoxSums.from_grid((edges[0], edges[1]), (edges[2], edges[3]), pitch=image.shape[1] + 1)
    for channel, found in enumerate(boxes.sum_channels(table(image))):
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
    side = int(MAX_PIXELS**0.5)
    assert_sums(image, [[0, 3], [side, 3 + side]], [[1], [1 + side]])
    assert_sums(image, [[0, 0, 5], [130, 1, 6]], [[0, 7], [130, 8]])


@pytest.mark.parametrize("largest", [1, 7, 40])
def test_parts_change_nothing(largest: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resize, "MAX_PIXELS", largest)
    image = np.random.default_rng(2).integers(0, 256, (20, 20, 3), dtype=np.uint8)
    assert_sums(image, [[0, 3, 10], [5, 4, 19]], [[0, 4, 9], [9, 5, 20]])


def test_joined_boxes_follow_each_other() -> None:
    image = np.full((200, 200, 3), 255, np.uint8)
    small = (torch.tensor([0, 2]), torch.tensor([2, 3]))
    large = (torch.tensor([0]), torch.tensor([200]))
    boxes = BoxSums.concatenate([BoxSums.from_grid(some, some, pitch=201) for some in (small, large, small)])
    first = [4 * 255, 2 * 255, 2 * 255, 255]
    for found in boxes.sum_channels(table(image)):
        assert found.tolist() == [*first, 200 * 200 * 255, *first]


def test_of_two_tables_each_has_its_own_rows() -> None:
    images = [np.full((4, 5, 3), 1, np.uint8), np.full((7, 3, 3), 10, np.uint8)]
    tables = [table(image) for image in images]
    rows = (torch.tensor([[0, 1], [2, 5]]), torch.tensor([[4, 2], [3, 7]]))
    columns = (torch.tensor([[0], [1]]), torch.tensor([[5], [3]]))
    start, pitch = torch.tensor([[0], [len(tables[0])]]), torch.tensor([[6], [4]])
    boxes = BoxSums.from_grid(rows, columns, pitch=pitch, start=start)
    for found in boxes.sum_channels(torch.cat(tables)):
        assert found.tolist() == [20, 5, 20, 40]
