"""Change crops strongly: cover parts of faces by their landmarks, and apply RandAugment's operations.

All draws are made on the CPU by the given generator, so that a seed means the same on every device; the crops, bytes
before and after, are worked on where they are. Images with the same operation are changed together. Covers come first,
while landmarks are where they say.

Sources: RandAugment (arXiv:1909.13719) with torchvision's operations and ranges, magnitudes from 0 to 30; what comes
into the picture is grey. The expression-specific cover of Meta-Face2Exp (CVPR 2022, section 3.3): at 224 px patches of
50 by 20 pixels at the eyes, 50 by 40 at the nose and at the middle between the corners of the mouth, and 224 by 50 at
the forehead, in proportion at other sizes. Its text covers "areas unrelated to facial expression", its released code
the forehead alone, and whether the other patches are kept or covered cannot be told: hence three kinds.
"""

import math
from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Bool, Float32
from torch import Generator, Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

from fer_pipeline.networks.preprocessing import Crops

GREY = [128.0, 128.0, 128.0]
STRONGEST = 30
COVER_SIDE = 224  # pixels of the image in which the sizes are stated
PATCHES = ((50, 20), (50, 20), (50, 40), (50, 40))  # width and height at the eyes, the nose and the mouth
FOREHEAD = 50  # rows
Operation = Callable[[Tensor], Tensor]  # of uint8 images [n, 3, h, w]


def rand_augment(images: Crops, generator: Generator, *, operations: int, magnitude: int) -> Crops:
    """Applies random operations to every image, `operations` one after the other; signs are random too."""
    pixels = images.permute(0, 3, 1, 2)
    choices = [rand_augment_operations(sign * magnitude, *pixels.shape[-2:]) for sign in (1, -1)]
    for _ in range(operations):
        chosen = torch.randint(len(choices[0]), (len(pixels),), generator=generator)
        negative = torch.randint(2, (len(pixels),), generator=generator)
        changed = pixels.clone()
        for sign, table in enumerate(choices):
            for number, operation in enumerate(table.values()):
                rows = torch.nonzero((chosen == number) & (negative == sign)).flatten().to(pixels.device)
                if len(rows):
                    changed.index_copy_(0, rows, operation(pixels.index_select(0, rows)))
        pixels = changed
    return pixels.permute(0, 2, 3, 1).contiguous()


def rand_augment_operations(magnitude: int, height: int, width: int) -> dict[str, Operation]:
    """RandAugment's 14 operations at a magnitude from -30 to 30; the sign says into which direction some go."""
    share, strength = magnitude / STRONGEST, abs(magnitude) / STRONGEST
    change, tilt = 0.9 * share, math.degrees(math.atan(0.3 * share))
    drawn = {"interpolation": InterpolationMode.BILINEAR, "fill": GREY}
    sheared = partial(functional.affine, angle=0.0, translate=[0, 0], scale=1.0, center=[0, 0], **drawn)
    moved = partial(functional.affine, angle=0.0, scale=1.0, shear=[0.0, 0.0], **drawn)
    across, down = (int(150 / 331 * side * share) for side in (width, height))
    return {
        "Identity": lambda images: images,
        "ShearX": partial(sheared, shear=[tilt, 0.0]),
        "ShearY": partial(sheared, shear=[0.0, tilt]),
        "TranslateX": partial(moved, translate=[across, 0]),
        "TranslateY": partial(moved, translate=[0, down]),
        "Rotate": partial(functional.rotate, angle=30 * share, **drawn),
        "Brightness": partial(functional.adjust_brightness, brightness_factor=1 + change),
        "Color": partial(functional.adjust_saturation, saturation_factor=1 + change),
        "Contrast": partial(functional.adjust_contrast, contrast_factor=1 + change),
        "Sharpness": partial(functional.adjust_sharpness, sharpness_factor=1 + change),
        "Posterize": partial(functional.posterize, bits=8 - round(4 * strength)),
        "Solarize": partial(functional.solarize, threshold=255 * (1 - strength)),
        "AutoContrast": functional.autocontrast,
        "Equalize": functional.equalize,
    }


def cover_faces(
    images: Crops, landmarks: Float32[Tensor, "n 10"] | None, generator: Generator, *, kind: str, share: float
) -> Crops:
    """Makes the areas of `cover_areas` black, in about a `share` of the images; `none` is no cover."""
    if kind == "none":
        return images
    chosen = (torch.rand(len(images), generator=generator) < share).view(-1, 1, 1).to(images.device)
    areas = cover_areas(landmarks, *images.shape[1:3], kind=kind, count=len(images), device=images.device)
    return images.masked_fill((areas & chosen).unsqueeze(3), 0)


def cover_areas(
    landmarks: Float32[Tensor, "n 10"] | None,
    height: int,
    width: int,
    *,
    kind: str,
    count: int,
    device: torch.device | None = None,
) -> Bool[Tensor, "n h w"]:
    """Says which pixels of each face are covered.

    `forehead`: the uppermost rows; `cover_landmarks`: these and the patches at eyes, nose and mouth; `keep_landmarks`:
    all but these patches. A patch of an odd or fractional size holds the pixels whose centres lie in it, the left and
    upper edge included.
    """
    rows, columns = (torch.arange(side, device=device).view(1, 1, -1) for side in (height, width))
    forehead = (rows < FOREHEAD * height / COVER_SIDE).view(1, -1, 1).expand(count, height, width)
    if kind == "forehead":
        return forehead
    assert landmarks is not None, "a strategy whose cover goes by landmarks asks its source for them"
    points = landmarks.view(-1, 5, 2)
    centres = torch.cat([points[:, :3], points[:, 3:].mean(1, keepdim=True)], 1)
    sizes = torch.tensor(PATCHES, device=device) * torch.tensor([width, height], device=device) / COVER_SIDE
    inside = [
        (offset >= -half) & (offset < half)
        for offset, half in (
            (columns - centres[:, :, :1], sizes[:, :1] / 2),
            (rows - centres[:, :, 1:], sizes[:, 1:] / 2),
        )
    ]
    patches = (inside[1].unsqueeze(3) & inside[0].unsqueeze(2)).any(1)
    return patches | forehead if kind == "cover_landmarks" else ~patches | forehead
