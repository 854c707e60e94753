"""MixTrain: its loss and its batches by hand; an other set without weight has no effect."""

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

from fer_pipeline.strategies import mix_train
from fer_pipeline.training.batches import divide_batch
from tests.strategies.test_supervised import Watched, crops, plain_context


def test_the_loss_is_one_mean_over_both_sets() -> None:
    context = plain_context(weights={"labelled": torch.tensor([1.0, 2.0, 0.5])})
    network, augmentation = context.network(), context.augmentation
    chosen = mix_train.build(mix_train.Options(other_weight=0.25), context)
    own, other = crops(6, 0), crops(10, 1)
    seen: list[Tensor] = []
    losses = chosen.step({"labelled": own, "other": other}, Watched(seen))
    first, second = (
        functional.cross_entropy(network(augmentation.plain(one.images)), one.labels, reduction="none")
        for one in (own, other)
    )
    weights = torch.tensor([1.0, 2.0, 0.5])[own.labels]
    by_hand = ((weights * first).sum() + 0.25 * second.sum()) / (weights.sum() + 0.25 * 10)
    assert seen[0] is losses["loss"]
    assert seen[0].item() == pytest.approx(by_hand.item(), rel=1e-5)
    assert losses["other"].item() == pytest.approx(second.mean().item(), rel=1e-5)


def test_a_weight_of_zero_leaves_the_other_set_out(train_toy, toy) -> None:
    settings = {"network": {"norm": "group"}, "batch": 16, "select": "last"}
    results = []
    for seed in (5, 6):
        options = mix_train.Options(labelled_share=0.5, other_weight=0.0)
        sets = {"labelled": toy(40, 0), "other": toy(60, seed)}
        _, folder = train_toy(f"run{seed}", strategy=mix_train, options=options, sets=sets, **settings)
        results.append(load_file(folder / "weights.safetensors"))
    for name, tensor in results[0].items():
        torch.testing.assert_close(results[1][name], tensor, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("share", "images", "expected"),
    [(None, (100, 900), (6, 58)), (0.5, (100, 900), (32, 32)), (0.001, (100, 900), (1, 63)), (None, (999, 1), (63, 1))],
)
def test_batches_are_divided_by_hand(share, images, expected) -> None:
    names = mix_train.NAMES
    found = divide_batch(64, dict(zip(names, images, strict=True)), names, share)
    assert found == dict(zip(names, expected, strict=True))
