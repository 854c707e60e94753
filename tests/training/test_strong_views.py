"""Strong views: RandAugment's operations as torchvision has them, covers by hand, and draws that a seed decides."""

import pytest
import torch
from torchvision.transforms import InterpolationMode, v2

from fer_pipeline.networks.preprocessing import Preprocessing
from fer_pipeline.training.augmentation import Augmentation
from fer_pipeline.training.batches import Batch
from fer_pipeline.training.settings import AugmentSettings, StrongViews, TrainingSettings
from fer_pipeline.training.strategy import BuildContext
from fer_pipeline.training.strong_views import cover_areas, cover_faces, rand_augment, rand_augment_operations

SIDE = 28
LANDMARKS = {  # eyes, nose, corners of the mouth: x, y
    224: torch.tensor([[76.0, 103, 147, 103, 112, 143, 83, 184, 141, 184]]),
    112: torch.tensor([[38.0, 51, 73, 51, 56, 71, 41, 92, 71, 92]]),
}
FACE = {  # by hand: columns and rows of the patches at eyes, nose and mouth, from and up to
    224: [(51, 101, 93, 113), (122, 172, 93, 113), (87, 137, 123, 163), (87, 137, 164, 204)],
    112: [(26, 51, 46, 56), (61, 86, 46, 56), (44, 69, 61, 81), (44, 69, 82, 102)],
}  # fmt: skip


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def images() -> torch.Tensor:
    low = torch.rand(40, 3, 7, 7, generator=generator(9)) * 255
    smooth = torch.nn.functional.interpolate(low, (SIDE, SIDE), mode="bilinear")
    return smooth.to(torch.uint8).permute(0, 2, 3, 1).contiguous()


@pytest.mark.parametrize("magnitude", [-16, 0, 5, 16, 30])
@pytest.mark.parametrize("name", v2.RandAugment._AUGMENTATION_SPACE)
def test_every_operation_is_torchvisions(name: str, magnitude: int, images) -> None:
    theirs = v2.RandAugment(interpolation=InterpolationMode.BILINEAR, fill=[128.0, 128.0, 128.0])
    amounts, signed = theirs._AUGMENTATION_SPACE[name]
    table = amounts(31, SIDE, SIDE)
    amount = 0.0 if table is None else float(table[abs(magnitude)])
    pixels = images.permute(0, 3, 1, 2)
    expected = theirs._apply_image_or_video_transform(
        pixels,
        name,
        -amount if signed and magnitude < 0 else amount,
        interpolation=theirs.interpolation,
        fill=theirs._fill,
    )
    found = rand_augment_operations(magnitude, SIDE, SIDE)[name](pixels)
    difference = (found.int() - expected.int()).abs().float()
    assert (difference > 1).float().mean() < 0.01, "more than roundings, and a threshold that a pixel equals"
    assert difference.mean() < 0.2


def test_one_operation_is_one_of_the_table_for_each_image(images) -> None:
    found = rand_augment(images, generator(), operations=1, magnitude=20)
    tables = [rand_augment_operations(sign * 20, SIDE, SIDE) for sign in (1, -1)]
    alone = [operation(images.permute(0, 3, 1, 2)) for table in tables for operation in table.values()]
    every = torch.stack(alone).permute(0, 1, 3, 4, 2)  # operations, images
    fits = (every == found).flatten(2).all(2)
    assert fits.any(0).all()
    assert fits.any(1).sum() > 14, "few operations are drawn"


def test_several_operations_follow_each_other_and_none_changes_nothing(images) -> None:
    draws = generator()
    twice = rand_augment(rand_augment(images, draws, operations=1, magnitude=9), draws, operations=1, magnitude=9)
    assert torch.equal(rand_augment(images, generator(), operations=2, magnitude=9), twice)
    assert torch.equal(rand_augment(images, generator(), operations=0, magnitude=9), images)


@pytest.mark.parametrize("side", [224, 112])
def test_covers_by_hand(side: int) -> None:
    patches, forehead = (torch.zeros(side, side, dtype=torch.bool) for _ in range(2))
    for first_x, last_x, first_y, last_y in FACE[side]:
        patches[first_y:last_y, first_x:last_x] = True
    forehead[: 50 * side // 224] = True
    assert patches.sum() == (6000 if side == 224 else 1500)
    expected = {"forehead": forehead, "cover_landmarks": patches | forehead, "keep_landmarks": ~patches}
    for kind, by_hand in expected.items():
        found = cover_areas(LANDMARKS[side], side, side, kind=kind, count=1)
        assert torch.equal(found[0], by_hand), kind


def test_a_patch_that_reaches_into_the_forehead_is_covered_there_whatever_is_kept() -> None:
    high = LANDMARKS[224] - torch.tensor([0.0, 55] * 5)  # eyes at 48
    found = cover_areas(high, 224, 224, kind="keep_landmarks", count=1)[0]
    assert found[:50].all()
    assert not found[50:58, 51:101].any()


def test_covers_go_by_each_faces_own_landmarks_and_leave_a_share_alone() -> None:
    images = torch.full((200, 56, 56, 3), 200, dtype=torch.uint8)
    landmarks = (LANDMARKS[112] / 2).repeat(200, 1)
    landmarks[100:] += 4.0
    black = cover_faces(images, landmarks, generator(), kind="keep_landmarks", share=1.0)[..., 0] == 0
    for number, face in ((3, landmarks[:1]), (150, landmarks[150:151])):
        assert torch.equal(black[number], cover_areas(face, 56, 56, kind="keep_landmarks", count=1)[0])
    some = cover_faces(images, landmarks, generator(), kind="forehead", share=0.25)
    covered = (some == 0).flatten(1).any(1)
    assert 30 < covered.sum() < 70
    assert (some[covered][:, :12] == 0).all()  # 12.5 rows
    assert (some[covered][:, 13:] == 200).all()
    assert torch.equal(cover_faces(images, None, generator(), kind="none", share=1.0), images)


def test_a_generators_seed_is_the_view_and_nothing_asked_is_the_plain_view(images) -> None:
    augmentation = Augmentation(AugmentSettings(flip=0, translate=0), Preprocessing(size=SIDE))
    context = BuildContext(3, lambda *_: None, augmentation, TrainingSettings())  # type: ignore[arg-type]
    batch = Batch(images, torch.zeros(40, dtype=torch.int64), torch.arange(40), prepared=False)
    settings = StrongViews(cover="forehead")
    torch.manual_seed(1)
    first = context.strong_view(batch, generator(1), settings)
    torch.manual_seed(2)  # torch's own generator has no part in it
    again, other = (context.strong_view(batch, generator(seed), settings) for seed in (1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    nothing = StrongViews(operations=0, erase=0.0)
    assert torch.equal(context.strong_view(batch, generator(), nothing), augmentation.plain(images))
