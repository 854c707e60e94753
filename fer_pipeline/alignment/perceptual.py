"""Hash aligned crops so that pictures which look alike have hashes that differ in few bits.

A hash is the signs of the 16 x 16 lowest frequencies of a cosine transform of the grey face, without their mean: 255
bits, and a zero in its place. The lowest 8 x 8 come first. The middle of the crop is hashed alone, 5/7 of its side:
what surrounds a face differs with the border and the background. A mirrored picture has the other sign at every odd
horizontal frequency, so that its hash needs no picture.

A picture that was resized or encoded again is found by the detector a few pixels elsewhere, and its crop is turned,
scaled and moved a little. A test face therefore has hashes of `POSES` too: the crop as such landmarks would have cut
it. Source: the perceptual hash of images by cosine transform (Zauner, Implementation and Benchmarking of Perceptual
Image Hash Functions, 2010); the window, the poses, and the sign instead of the comparison with the median are ours.
"""

import itertools
import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float64, UInt8

from fer_pipeline.artifacts.contents import FREQUENCIES, HASH_ORDER
from fer_pipeline.artifacts.faces import decode_crop, stack_images

VERSION = 1
SIDE = 64
WINDOW = 5 / 7
TEMPLATE = 112  # the side in whose pixels poses are moved
UPRIGHT = (0.0, 1.0, 0.0, 0.0)
POSES = (  # degrees, scale, and pixels to the right and down
    UPRIGHT,
    *(
        pose
        for pose in itertools.product((-6.0, -3, 0, 3, 6), (0.94, 1, 1.06), (-3.0, 0, 3), (-6.0, -3, 0, 3, 6))
        if pose != UPRIGHT
    ),
)
# Of a grey level: coefficients below it are rounding, and their sign would differ between machines.
ZERO = 1e-6


def hash_encoded(images: Sequence[memoryview], *, poses: bool, where: str) -> list[bytes]:
    """Returns the hashes of encoded crops, one after another for each; `where` they are is for the error."""
    crops = stack_images([decode_crop(image, where) for image in images])
    return [hashes.tobytes() for hashes in hash_crops(crops, POSES if poses else POSES[:1])]


def hash_crops(
    crops: UInt8[np.ndarray, "n s s 3"], poses: Sequence[tuple[float, float, float, float]] = POSES[:1]
) -> UInt8[np.ndarray, "n p 32"]:
    """Returns a hash for each crop and pose."""
    red, green, blue = (torch.from_numpy(np.ascontiguousarray(crops[..., k], np.float64)) for k in range(3))
    grey = (0.299 * red + 0.587 * green + 0.114 * blue)[:, None]
    if grey.shape[-1] > TEMPLATE:  # sampling finer pictures would see single pixels
        grey = F.interpolate(grey, (TEMPLATE, TEMPLATE), mode="area")
    steps = torch.arange(SIDE, dtype=torch.float64) + 0.5
    waves = torch.cos(math.pi / SIDE * torch.arange(FREQUENCIES)[:, None] * steps)
    hashes = np.empty((len(crops), len(poses), FREQUENCIES**2 // 8), np.uint8)
    for number, pose in enumerate(poses):
        grid = _grid(*pose).expand(len(grey), -1, -1, -1)
        face = F.grid_sample(grey, grid, padding_mode="border", align_corners=False)[:, 0]
        bits = (waves @ face @ waves.T).reshape(len(crops), -1)[:, HASH_ORDER].numpy() > ZERO
        bits[:, 0] = False
        hashes[:, number] = np.packbits(bits, axis=1)
    return hashes


def _grid(degrees: float, scale: float, right: float, down: float) -> Float64[torch.Tensor, "1 h w 2"]:
    cosine, sine = (WINDOW * scale * turn(math.radians(degrees)) for turn in (math.cos, math.sin))
    right, down = 2 * right / TEMPLATE, 2 * down / TEMPLATE
    matrix = torch.tensor([[[cosine, -sine, right], [sine, cosine, down]]], dtype=torch.float64)
    return F.affine_grid(matrix, [1, 1, SIDE, SIDE], align_corners=False)
