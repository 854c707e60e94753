"""Warp a face by its five landmarks to an upright crop of the ArcFace template, at any size and with a stated border.

Source: the least-squares similarity of Umeyama, IEEE PAMI 13(4), 1991, eq. 34-43, without reflection; the template of
ArcFace (Deng et al., arXiv:1801.07698) for 112 px. Coordinates are (x, y), zero-based with pixel centres on integers,
and the template grows with the crop around pixel edges. Differences from the usual `warpAffine`: what shrinks is first
resized with antialiasing, and the sampling is bicubic.
"""

import math
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64, Int64, UInt8

from fer_pipeline.alignment.pictures import Rejection

Border = Literal["reflect", "constant"]
Image = UInt8[np.ndarray, "_ _ 3"]
Crop = UInt8[np.ndarray, "{size} {size} 3"]
Matrix = Float64[np.ndarray, "2 3"]

TEMPLATE_SIZE = 112
TEMPLATE = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)
MAX_SPAN = 4  # a face whose crop spans more than so many times the picture is a misplaced set of landmarks


def scale_template(size: int) -> Float64[np.ndarray, "5 2"]:
    """Returns left eye, right eye, nose and mouth corners in a crop of `size` pixels."""
    return (TEMPLATE + 0.5) * (size / TEMPLATE_SIZE) - 0.5


def fit_similarity(source: Float[np.ndarray, "n 2"], target: Float[np.ndarray, "n 2"]) -> Matrix:
    """Fits the rotation, scale and shift that bring `source` closest to `target` in the sense of least squares."""
    source, target = source.astype(np.float64), target.astype(np.float64)
    source_mean, target_mean = source.mean(axis=0), target.mean(axis=0)
    spread = ((source - source_mean) ** 2).sum()
    if not spread > 1e-9:
        raise Rejection("bad_landmarks")
    u, singular, vt = np.linalg.svd((target - target_mean).T @ (source - source_mean))
    signs = np.array([1.0, np.sign(np.linalg.det(u) * np.linalg.det(vt))])
    turn = (u * signs) @ vt * ((singular * signs).sum() / spread)
    return np.column_stack([turn, target_mean - turn @ source_mean])


def transform_points(points: Float[np.ndarray, "n 2"], matrix: Matrix) -> Float64[np.ndarray, "n 2"]:
    return points @ matrix[:, :2].T + matrix[:, 2]


def fit_centre(height: int, width: int, *, size: int) -> Matrix:
    """Returns the matrix that maps the largest centred square of a picture to a crop."""
    scale = size / min(height, width)
    shift = [(size - 1) / 2 - scale * (width - 1) / 2, (size - 1) / 2 - scale * (height - 1) / 2]
    return np.array([[scale, 0.0, shift[0]], [0.0, scale, shift[1]]])


def warp_image(image: Image, matrix: Matrix, *, size: int, border: Border) -> Crop:
    """Maps a picture by a similarity and returns the first `size` pixels of both axes."""
    turn = np.linalg.inv(matrix[:, :2])
    back = np.column_stack([turn, -turn @ matrix[:, 2]])
    shrink = math.sqrt(abs(np.linalg.det(turn)))  # source pixels for each pixel of the crop
    if not shrink * size <= MAX_SPAN * max(image.shape[:2]):
        raise Rejection("bad_landmarks")
    corners = transform_points(np.array([[0, 0], [size - 1, 0], [0, size - 1], [size - 1, size - 1]], float), back)
    margin = math.ceil(3 * max(shrink, 1))  # what the bicubic kernel and the antialiasing reach beyond
    first = np.floor(corners.min(axis=0)).astype(int) - margin
    last = np.ceil(corners.max(axis=0)).astype(int) + margin
    height, width = image.shape[:2]
    y, x = np.arange(first[1], last[1] + 1), np.arange(first[0], last[0] + 1)
    region = image[_mirror(y, height)][:, _mirror(x, width)]
    if border == "constant":
        region[(y < 0) | (y >= height)] = 0
        region[:, (x < 0) | (x >= width)] = 0
    pixels = torch.from_numpy(region).permute(2, 0, 1)[None]
    if shrink > 1:
        sides = (math.ceil(region.shape[0] / shrink), math.ceil(region.shape[1] / shrink))
        pixels = F.interpolate(pixels, size=sides, mode="bilinear", antialias=True)
    shape = np.array([pixels.shape[3], pixels.shape[2]])
    y, x = np.mgrid[:size, :size]
    points = transform_points(np.stack([x, y], axis=-1).reshape(-1, 2).astype(np.float64), back) - first
    points = (points + 0.5) * (shape / [region.shape[1], region.shape[0]]) - 0.5  # in the (shrunken) region
    grid = torch.from_numpy(2 * points / (shape - 1) - 1).float().view(1, size, size, 2)
    values = F.grid_sample(pixels.float(), grid, mode="bicubic", padding_mode="border", align_corners=True)
    return values[0].round_().clamp_(0, 255).to(torch.uint8).permute(1, 2, 0).contiguous().numpy()


def _mirror(index: Int64[np.ndarray, " n"], size: int) -> Int64[np.ndarray, " n"]:
    """Mirrors indices at the edges of the picture, the edge pixel twice, as often as needed."""
    index = index % (2 * size)
    return np.where(index < size, index, 2 * size - 1 - index)
