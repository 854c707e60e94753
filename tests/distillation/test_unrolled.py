"""The recomputed gradient against three independent truths: a hand calculation, plain autograd, finite differences."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from fer_pipeline.distillation.start import Parameters, logits_of, trainable
from fer_pipeline.distillation.unrolled import (
    cross_entropy_of,
    train,
    unrolled_gradients,
)


class TinyNet(nn.Module):
    """Convolution, batch norm, a smooth and a broken nonlinearity, pooling and a head."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.second = nn.Conv2d(4, 5, 3, stride=2)
        self.head = nn.Linear(5, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.norm(self.conv(x)))
        x = torch.tanh(self.second(functional.max_pool2d(x, 2)))
        return self.head(x.mean((2, 3)))


def _tiny_problem(
    seed: int, *, steps: int, classes: int = 3
) -> tuple[nn.Module, Tensor, Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    model = TinyNet(classes).double()
    assert isinstance(model.norm.running_mean, Tensor)
    assert isinstance(model.norm.running_var, Tensor)
    model.norm.running_mean.copy_(torch.randn(4, generator=generator))
    model.norm.running_var.copy_(torch.rand(4, generator=generator) + 0.5)
    model.eval()
    images = torch.randn(steps, classes, 3, 8, 8, generator=generator, dtype=torch.float64)
    labels = torch.arange(classes).expand(steps, classes)
    step_sizes = torch.rand(steps, generator=generator, dtype=torch.float64) * 0.5 + 0.1
    real = torch.randn(11, 3, 8, 8, generator=generator, dtype=torch.float64)
    truth = torch.randint(classes, (11,), generator=generator)
    return model, images, labels, step_sizes, real, truth


def _outer(model: nn.Module, real: Tensor, truth: Tensor):
    logits = logits_of(model)
    return lambda parameters: functional.cross_entropy(logits(parameters, real), truth)


def _plain(
    model: nn.Module, images: Tensor, labels: Tensor, step_sizes: Tensor, real: Tensor, truth: Tensor, epochs: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Autograd through the whole unrolled graph, as the reference does it."""
    images, step_sizes = images.clone().requires_grad_(), step_sizes.clone().requires_grad_()
    parameters = {name: value.detach().requires_grad_() for name, value in model.named_parameters()}
    for _ in range(epochs):
        for x, y, size in zip(images, labels, step_sizes, strict=True):
            loss = functional.cross_entropy(functional_call(model, parameters, (x,)), y)
            gradients = torch.autograd.grad(loss, tuple(parameters.values()), create_graph=True)
            parameters = {k: v - size * g for (k, v), g in zip(parameters.items(), gradients, strict=True)}
    loss = functional.cross_entropy(functional_call(model, parameters, (real,)), truth)
    by_images, by_sizes = torch.autograd.grad(loss, (images, step_sizes))
    return loss.detach(), by_images, by_sizes


def _relative(found: Tensor, truth: Tensor) -> float:
    return float((found - truth).norm() / truth.norm())


@pytest.mark.parametrize(("steps", "epochs"), [(1, 1), (1, 4), (3, 1), (3, 3)])
def test_equals_plain_autograd_through_the_unrolled_graph(steps: int, epochs: int) -> None:
    model, images, labels, step_sizes, real, truth = _tiny_problem(5, steps=steps)
    found = unrolled_gradients(
        cross_entropy_of(model), _outer(model, real, truth), trainable(model), images, labels, step_sizes, epochs=epochs
    )
    loss, by_images, by_sizes = _plain(model, images, labels, step_sizes, real, truth, epochs)
    assert math.isclose(found.loss.item(), loss.item(), rel_tol=1e-12)
    assert _relative(found.images, by_images) < 1e-10
    assert _relative(found.step_sizes, by_sizes) < 1e-10


@pytest.mark.parametrize("weights_kept", [1, 2, 3, 5, 9])
def test_forgetting_weights_changes_no_bit(weights_kept: int) -> None:
    model, images, labels, step_sizes, real, truth = _tiny_problem(6, steps=3)
    arguments = (cross_entropy_of(model), _outer(model, real, truth), trainable(model), images, labels, step_sizes)
    all_kept = unrolled_gradients(*arguments, epochs=3, weights_kept=50)
    few_kept = unrolled_gradients(*arguments, epochs=3, weights_kept=weights_kept)
    assert torch.equal(all_kept.images, few_kept.images)
    assert torch.equal(all_kept.step_sizes, few_kept.step_sizes)
    assert torch.equal(all_kept.loss, few_kept.loss)


def test_one_step_of_a_scalar_model_by_hand() -> None:
    """Inner loss (w x - 1)^2 / 2 and outer loss w^2 / 2: every derivative fits on one line.

    w1 = w - eta x (w x - 1); L = w1^2 / 2; dL/deta = -w1 x (w x - 1); dL/dx = -w1 eta (2 w x - 1).
    """

    def inner(parameters: Parameters, images: Tensor, labels: Tensor) -> Tensor:
        del labels
        return (parameters["w"] * images - 1).square().sum() / 2

    w, x, eta = 0.7, 1.3, 0.2
    found = unrolled_gradients(
        inner,
        lambda parameters: parameters["w"].square().sum() / 2,
        {"w": torch.tensor([w], dtype=torch.float64)},
        torch.tensor([[[x]]], dtype=torch.float64),
        torch.zeros(1, 1, dtype=torch.int64),
        torch.tensor([eta], dtype=torch.float64),
    )
    after = w - eta * x * (w * x - 1)
    assert found.parameters["w"].item() == pytest.approx(after, rel=1e-14)
    assert found.loss.item() == pytest.approx(after**2 / 2, rel=1e-14)
    assert found.step_sizes.item() == pytest.approx(-after * x * (w * x - 1), rel=1e-13)
    assert found.images.item() == pytest.approx(-after * eta * (2 * w * x - 1), rel=1e-13)


def test_two_steps_of_a_scalar_model_by_hand() -> None:
    """The same loss twice: the first image acts through the second step by the factor 1 - eta2 x2^2."""

    def inner(parameters: Parameters, images: Tensor, labels: Tensor) -> Tensor:
        del labels
        return (parameters["w"] * images - 1).square().sum() / 2

    w, (x1, x2), (eta1, eta2) = 0.4, (1.5, -0.8), (0.3, 0.25)
    found = unrolled_gradients(
        inner,
        lambda parameters: parameters["w"].square().sum() / 2,
        {"w": torch.tensor([w], dtype=torch.float64)},
        torch.tensor([[[x1]], [[x2]]], dtype=torch.float64),
        torch.zeros(2, 1, dtype=torch.int64),
        torch.tensor([eta1, eta2], dtype=torch.float64),
    )
    w1 = w - eta1 * x1 * (w * x1 - 1)
    w2 = w1 - eta2 * x2 * (w1 * x2 - 1)
    through = w2 * (1 - eta2 * x2**2)
    expected_images = [-through * eta1 * (2 * w * x1 - 1), -w2 * eta2 * (2 * w1 * x2 - 1)]
    expected_sizes = [-through * x1 * (w * x1 - 1), -w2 * x2 * (w1 * x2 - 1)]
    assert found.images.flatten().tolist() == pytest.approx(expected_images, rel=1e-13)
    assert found.step_sizes.tolist() == pytest.approx(expected_sizes, rel=1e-13)


def test_soft_max_regression_by_finite_differences() -> None:
    """A linear classifier is smooth everywhere, so central differences of `train` alone give the gradient."""
    generator = torch.Generator().manual_seed(3)
    model = nn.Linear(5, 3).double()
    images = torch.randn(2, 3, 5, generator=generator, dtype=torch.float64)
    labels = torch.arange(3).expand(2, 3)
    step_sizes = torch.tensor([0.5, 0.9], dtype=torch.float64)
    real, truth = torch.randn(7, 5, generator=generator, dtype=torch.float64), torch.arange(7) % 3
    inner, outer, start = cross_entropy_of(model), _outer(model, real, truth), trainable(model)
    found = unrolled_gradients(inner, outer, start, images, labels, step_sizes, epochs=2)

    def loss_at(x: Tensor, sizes: Tensor) -> float:
        return outer(train(inner, start, x, labels, sizes, epochs=2)).item()

    width = 1e-5
    for index in [(0, 0, 0), (0, 2, 4), (1, 1, 2), (1, 0, 3)]:
        up, down = images.clone(), images.clone()
        up[index] += width
        down[index] -= width
        slope = (loss_at(up, step_sizes) - loss_at(down, step_sizes)) / (2 * width)
        assert found.images[index].item() == pytest.approx(slope, rel=1e-5, abs=1e-9)
    for index in range(2):
        up, down = step_sizes.clone(), step_sizes.clone()
        up[index] += width
        down[index] -= width
        slope = (loss_at(images, up) - loss_at(images, down)) / (2 * width)
        assert found.step_sizes[index].item() == pytest.approx(slope, rel=1e-5, abs=1e-9)


def test_one_step_equals_a_step_of_torch_sgd() -> None:
    model, images, labels, step_sizes, *_ = _tiny_problem(8, steps=1)
    found = train(cross_entropy_of(model), trainable(model), images, labels, step_sizes)
    optimizer = torch.optim.SGD(model.parameters(), lr=step_sizes[0].item())
    functional.cross_entropy(model(images[0]), labels[0]).backward()
    optimizer.step()
    for name, value in model.named_parameters():
        torch.testing.assert_close(found[name], value.detach(), rtol=1e-12, atol=1e-14)


def test_running_statistics_stay_frozen() -> None:
    model, images, labels, step_sizes, real, truth = _tiny_problem(9, steps=2)
    before = {name: value.clone() for name, value in model.named_buffers()}
    unrolled_gradients(
        cross_entropy_of(model), _outer(model, real, truth), trainable(model), images, labels, step_sizes
    )
    assert all(torch.equal(value, before[name]) for name, value in model.named_buffers())


def test_frozen_weights_are_not_moved() -> None:
    model, images, labels, step_sizes, real, truth = _tiny_problem(10, steps=2)
    model.get_submodule("conv").requires_grad_(False)
    found = unrolled_gradients(
        cross_entropy_of(model), _outer(model, real, truth), trainable(model), images, labels, step_sizes
    )
    assert set(found.parameters) == {name for name, _ in model.named_parameters()} - {"conv.weight"}
    assert found.images.abs().sum() > 0
