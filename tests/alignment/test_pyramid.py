"""Area resizes from summed tables against torch's own area interpolation and against means by hand."""

import numpy as np
import torch
import torch.nn.functional as F

from fer_pipeline.alignment.pyramid import CELL, Pictures, pyramid_scales

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
    levels = Pictures.of([picture(20, 9), *images]).pyramids([1, 3], sizes)
    for level, size in zip(levels, sizes, strict=True):
        for row, image in zip(level, (images[0], images[2]), strict=True):
            np.testing.assert_allclose(row, area(image, *size), atol=2e-6)


def test_a_large_picture_shrinks_to_one_cell() -> None:
    image = picture(1400, 1150)
    for level in Pictures.of([image]).pyramids([0], [(12, 12), (50, 40), (1, 1)]):
        np.testing.assert_allclose(level[0], area(image, level.shape[2], level.shape[3]), atol=2e-6)


def test_crops_of_pictures_of_many_sizes_equal_area_interpolation() -> None:
    images = [picture(50, 70), picture(33, 31), picture(200, 90)]
    windows = torch.tensor([[3, 4, 40, 41], [0, 0, 31, 31], [10, 100, 70, 160], [5, 5, 17, 17], [60, 0, 61, 1]])
    image = torch.tensor([0, 1, 2, 2, 0])
    found = Pictures.of(images).crops(image, windows, size=24)
    for row, (index, (x1, y1, x2, y2)) in enumerate(zip(image.tolist(), windows.tolist(), strict=True)):
        np.testing.assert_allclose(found[row], area(images[index][y1:y2, x1:x2], 24, 24), atol=2e-6)


def test_what_lies_outside_the_frame_is_mid_grey() -> None:
    image = picture(20, 30)
    found = Pictures.of([image]).crops(
        torch.tensor([0, 0]), torch.tensor([[-10, -4, 14, 20], [100, 100, 124, 124]]), size=24
    )
    padded = np.full((24, 24, 3), 127.5)
    padded[4:, 10:] = image[:20, :14]
    np.testing.assert_allclose(found[0].permute(1, 2, 0), (padded - 127.5) / 128, atol=2e-6)
    assert not found[1].any()


def test_the_largest_allowed_picture_does_not_overflow() -> None:
    image = torch.full((2800, 2800, 3), 255, dtype=torch.uint8)
    found = Pictures.of([image]).crops(torch.tensor([0]), torch.tensor([[0, 0, 2800, 2800]]), size=24)
    np.testing.assert_allclose(found, (255 - 127.5) / 128, atol=2e-6)


def test_scales_run_from_the_smallest_face_to_one_cell() -> None:
    scales = pyramid_scales(350, 500, min_face=20, factor=0.709)
    assert scales[0] == CELL / 20
    assert 350 * scales[-1] >= CELL > 350 * scales[-1] * 0.709
    np.testing.assert_allclose(np.divide(scales[1:], scales[:-1]), 0.709)
    assert pyramid_scales(19, 500, min_face=20, factor=0.709) == []
