"""The supervised strategy: its losses by hand, its limiting cases, and what distilled images must leave alone."""

import copy

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from fer_pipeline.core.errors import ConfigError
from fer_pipeline.core.settings import validate
from fer_pipeline.networks.backbones import build
from fer_pipeline.networks.preprocessing import Preprocessing
from fer_pipeline.networks.settings import NetworkSettings
from fer_pipeline.strategies import supervised
from fer_pipeline.strategies.supervised import Options, Supervised
from fer_pipeline.training.augmentation import Augmentation
from fer_pipeline.training.batch_norm import frozen_statistics
from fer_pipeline.training.batches import Batch
from fer_pipeline.training.context import StepContext
from fer_pipeline.training.settings import AugmentSettings, TrainingSettings
from fer_pipeline.training.strategy import BuildContext
from fer_pipeline.training.worker import make_worker

SIZE = 24
PLAIN = AugmentSettings(flip=0, translate=0)


def plain_context(*, norm: str = "group", weights=None) -> BuildContext:
    """A context of one small network, whose faces are not augmented."""
    network = build(NetworkSettings(size=SIZE, width=4, norm=norm), 3, seed=1)
    augmentation = Augmentation(PLAIN, Preprocessing(size=SIZE))
    return BuildContext(
        num_classes=3,
        make_network=lambda *_: (network, augmentation.preprocessing),
        augmentation=augmentation,
        settings=TrainingSettings(augment=PLAIN),
        class_weights=weights or {},
    )


def strategy(options: Options, *, norm: str = "group", weights=None) -> Supervised:
    return supervised.build(options, plain_context(norm=norm, weights=weights))


def crops(count: int, seed: int) -> Batch:
    random = np.random.default_rng(seed)
    images = torch.from_numpy(random.integers(0, 256, (count, SIZE, SIZE, 3), dtype=np.uint8))
    return Batch(images, torch.from_numpy(random.integers(0, 3, count)), torch.arange(count), prepared=False)


def inputs(seed: int) -> Batch:
    images = 3 * torch.randn(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))
    return Batch(images, torch.arange(3), torch.arange(3), prepared=True)


class Watched(StepContext):
    """A context that keeps the losses it is given and updates nothing."""

    def __init__(self, seen: list[Tensor]) -> None:
        super().__init__(make_worker("cpu", "auto"), {}, Preprocessing(size=SIZE), seed=0, clip=None, steps_per_epoch=1)
        self.seen = seen

    def update(self, loss: Tensor, *names: str) -> None:
        self.seen.append(loss)


def total_of(chosen: Supervised, batches: dict[str, Batch]) -> float:
    seen: list[Tensor] = []
    losses = chosen.step(batches, Watched(seen))
    assert len(seen) == 1
    assert seen[0] is losses["loss"]
    return seen[0].item()


def values(chosen: Supervised, batch: Batch) -> Tensor:
    x = batch.images if batch.prepared else Preprocessing(size=SIZE).apply(batch.images)
    return functional.cross_entropy(chosen.network(x), batch.labels, reduction="none")


def test_alone_it_is_cross_entropy() -> None:
    chosen = strategy(Options())
    assert total_of(chosen, {"labelled": crops(8, 0)}) == pytest.approx(
        float(values(chosen, crops(8, 0)).mean().detach())
    )


def test_pooled_is_one_mean_over_both_sets() -> None:
    chosen, labelled, mined = strategy(Options(mined_weight=0.5)), crops(6, 0), crops(10, 1)
    own, other = values(chosen, labelled), values(chosen, mined)
    by_hand = (own.sum() + 0.5 * other.sum()) / (6 + 0.5 * 10)
    assert total_of(chosen, {"labelled": labelled, "mined": mined}) == pytest.approx(float(by_hand), rel=1e-5)


def test_beside_is_the_sum_of_two_means() -> None:
    chosen, labelled, mined = strategy(Options(mix="beside", mined_weight=0.5)), crops(6, 0), crops(10, 1)
    by_hand = values(chosen, labelled).mean() + 0.5 * values(chosen, mined).mean()
    assert total_of(chosen, {"labelled": labelled, "mined": mined}) == pytest.approx(float(by_hand), rel=1e-5)


@pytest.mark.parametrize("options", [{"mined_weight": 0.0}, {"mix": "beside", "mined_weight": 0.0}])
def test_a_weight_of_zero_is_the_labelled_set_alone(options) -> None:
    chosen = strategy(Options(**options))
    both = total_of(chosen, {"labelled": crops(6, 0), "mined": crops(6, 1)})
    assert both == pytest.approx(total_of(chosen, {"labelled": crops(6, 0)}), rel=1e-5)


def test_class_weights_are_a_weighted_mean() -> None:
    weights = torch.tensor([1.0, 2.0, 0.5])
    chosen, batch = strategy(Options(), weights={"labelled": weights}), crops(9, 0)
    expected = functional.cross_entropy(
        chosen.network(Preprocessing(size=SIZE).apply(batch.images)), batch.labels, weights
    )
    assert total_of(chosen, {"labelled": batch}) == pytest.approx(float(expected), rel=1e-5)


def test_distilled_images_add_their_weighted_loss() -> None:
    chosen, labelled, images = strategy(Options(distilled_weight=0.3)), crops(6, 0), inputs(4)
    by_hand = values(chosen, labelled).mean() + 0.3 * values(chosen, images).mean()
    assert total_of(chosen, {"labelled": labelled, "distilled": images}) == pytest.approx(float(by_hand), rel=1e-5)


def test_distilled_images_leave_the_running_statistics_alone_but_teach_scales() -> None:
    with_them = strategy(Options(distilled_weight=1.0), norm="batch").train()
    without = copy.deepcopy(with_them)
    seen: list[Tensor] = []
    with_them.step({"labelled": crops(8, 0), "distilled": inputs(4)}, Watched(seen))
    seen[0].backward()
    without.step({"labelled": crops(8, 0)}, Watched(seen))
    seen[1].backward()
    for (name, one), two in zip(with_them.named_buffers(), without.buffers(), strict=True):
        assert torch.equal(one, two), name
    norms = [name for name, _ in with_them.named_parameters() if "norm1.weight" in name]
    grads = [dict(module.named_parameters()) for module in (with_them, without)]
    assert norms
    assert all(not torch.equal(grads[0][name].grad, grads[1][name].grad) for name in norms)


def test_frozen_statistics_are_thawed_even_after_a_fault() -> None:
    network = build(NetworkSettings(size=SIZE, width=4), 3, seed=1).train()

    def fault() -> None:
        with frozen_statistics(network):
            assert not network.backbone.stem[1].training
            assert network.training
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fault()
    assert network.backbone.stem[1].training


@pytest.mark.parametrize(
    ("options", "images", "expected"),
    [
        ({}, {"labelled": 900}, {"labelled": 64}),
        ({}, {"labelled": 100, "mined": 900}, {"labelled": 6, "mined": 58}),
        ({"anchor_share": 0.5}, {"labelled": 100, "mined": 900}, {"labelled": 32, "mined": 32}),
        ({"anchor_share": 0.001}, {"labelled": 100, "mined": 900}, {"labelled": 1, "mined": 63}),
        ({"mix": "beside"}, {"labelled": 100, "mined": 900}, {"labelled": 64, "mined": 64}),
        ({"mix": "beside", "mined_ratio": 3}, {"labelled": 1, "mined": 9}, {"labelled": 64, "mined": 192}),
        ({}, {"labelled": 900, "distilled": 7}, {"labelled": 64, "distilled": 0}),
        ({}, {"labelled": 900, "random_real": 7}, {"labelled": 64, "random_real": 0}),
        ({}, {"labelled": 900, "noise": 7}, {"labelled": 64, "noise": 0}),
    ],
)
def test_batch_sizes_by_hand(options, images, expected) -> None:
    assert strategy(Options(**options)).batch_sizes(64, images) == expected


@pytest.mark.parametrize("values", [{"mix": "beside", "anchor_share": 0.5}, {"mined_ratio": 2.0}, {"smothing": 0.1}])
def test_options_that_do_not_fit_are_one_line(values) -> None:
    with pytest.raises(ConfigError, match=r"^options: [^\n]+$"):
        validate(Options, values, where="options")
