"""Matching of mean embeddings: against numbers by hand and autograd in plain sight, and where it must be zero."""

import numpy as np
import torch

from fer_pipeline.core.seeds import derive
from fer_pipeline.distillation.augmentation import augment
from fer_pipeline.distillation.distribution_matching import DistributionMatching, class_means
from fer_pipeline.distillation.settings import AugmentSettings
from fer_pipeline.distillation.start import Synthetic, start_synthetic

ROWS = np.arange(12)


def test_class_means_by_hand() -> None:
    embedded = torch.tensor([[1.0, 2.0], [3.0, 6.0], [5.0, 5.0]])
    means = class_means(embedded, torch.tensor([2, 2, 0]), 4)
    assert means.tolist() == [[5, 5], [0, 0], [2, 4], [0, 0]]


def test_the_gradient_is_that_of_the_formula(make_problem) -> None:
    """Equation 5 written out: loops over classes and images, the network called as it is, its last map by hand."""
    problem = make_problem(per_class=2, augment=None, draws=2)
    synthetic = start_synthetic(problem.settings, problem.source, problem.preprocessing, seed=3, device=problem.device)
    row = DistributionMatching(problem).set_gradients(synthetic, ROWS, step=7)
    images = synthetic.images.clone().requires_grad_()
    real, truth = problem.real(problem.source, ROWS)
    loss, expected = 0.0, torch.zeros_like(synthetic.images)
    for number in (14, 15):  # step 7 with two draws
        backbone = problem.fresh.network.backbone
        with torch.no_grad():
            for name, value in problem.fresh.draw("match", number).items():
                problem.fresh.network.get_parameter(name).copy_(value)
        for index in range(3):
            means = [
                torch.stack([backbone.blocks(backbone.stem(x[None]))[0].flatten() for x in one]).mean(0)
                for one in (real[truth == index], images[0][synthetic.labels[0] == index])
            ]
            part = (means[0] - means[1]).square().sum() / 2
            expected += torch.autograd.grad(part, images)[0]
            loss += float(part.detach())
    assert abs(row["loss"] / loss - 1) < 1e-5
    assert synthetic.images.grad is not None
    assert (synthetic.images.grad - expected).norm() < 1e-3 * expected.norm()  # float32, in another order
    assert synthetic.raw_sizes.grad is None


def test_the_real_batch_itself_has_no_loss(make_problem) -> None:
    """Also augmented: a class's real and synthetic images change alike."""
    problem = make_problem(per_class=4)
    real, truth = problem.real(problem.source, ROWS)
    order = truth.argsort(stable=True)
    synthetic = Synthetic(real[order][None].clone(), torch.zeros(1), truth[order][None])
    row = DistributionMatching(problem).set_gradients(synthetic, ROWS, step=0)
    assert abs(row["loss"]) < 1e-9
    assert synthetic.images.grad is not None
    assert synthetic.images.grad.abs().max() < 1e-5
    other = make_problem(per_class=4, start="real")
    far = start_synthetic(other.settings, other.source, other.preprocessing, seed=0, device=other.device)
    assert DistributionMatching(other).set_gradients(far, ROWS, step=0)["loss"] > 1e-3


def test_a_group_changes_alike_and_groups_apart() -> None:
    image = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)).expand(4, -1, -1, -1)
    generator = torch.Generator().manual_seed(derive(1, "x"))
    changed = augment(image, torch.tensor([0, 1, 0, 2]), AugmentSettings(), generator, 3)
    assert torch.equal(changed[0], changed[2])
    assert not torch.allclose(changed[0], changed[1], atol=0.05)
    assert not torch.allclose(changed[1], changed[3], atol=0.05)


def test_augmentation_by_hand() -> None:
    """A flip alone mirrors; a cut-out alone zeroes a square of the side that was asked for."""
    image = torch.arange(2.0 * 3 * 8 * 8).view(2, 3, 8, 8) + 1
    none = {"flip": 0, "translate": 0, "rotate": 0, "zoom": 0, "brightness": 0, "contrast": 0, "cutout": 0}
    groups = torch.arange(2)

    def change(**only: float) -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        return augment(image, groups, AugmentSettings.model_validate({**none, **only}), generator, 2)

    torch.testing.assert_close(change(), image, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(change(flip=1), image.flip(3), rtol=1e-5, atol=1e-4)
    cut = change(cutout=0.25) == 0
    assert cut.sum((2, 3)).tolist() == [[4, 4, 4]] * 2
    moved = change(brightness=2.0) - image
    assert moved.std((1, 2, 3)).max() < 1e-3
    assert moved.mean((1, 2, 3)).abs().max() <= 2
    turned = augment(image.requires_grad_(), groups, AugmentSettings(), torch.Generator().manual_seed(2), 2)
    (gradient,) = torch.autograd.grad(turned.sum(), image)
    assert gradient.abs().sum() > 0
