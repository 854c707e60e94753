"""Sides of `distill`. In: a ResNet-18 and synthetic images drawn from a seed. A round is one outer step's gradient.

Facts hold a digest of the gradient, so that memory is only compared between equal answers.
"""

from collections.abc import Callable
from typing import Any

Round = Callable[[], dict[str, Any]]
CLASSES, REAL = 7, 14  # synthetic images a step, real images of the outer loss


def ours(steps: int, side: int, weights_kept: int, seed: int) -> Round:
    """Backwards with stored weights, each step computed anew."""
    from fer_pipeline.distillation.unrolled import cross_entropy_of, unrolled_gradients

    network, start, images, sizes, labels, outer = _world(steps, side, seed)
    inner = cross_entropy_of(network)

    def once() -> dict[str, Any]:
        found = unrolled_gradients(inner, outer, start, images, labels, sizes, weights_kept=weights_kept)
        return _facts(found.loss, found.images, found.step_sizes, start)

    return _from_here(once)


def graph(steps: int, side: int, seed: int) -> Round:
    """Plain autograd through all steps, as the published code has it."""
    import torch

    from fer_pipeline.distillation.unrolled import cross_entropy_of

    network, start, images, sizes, labels, outer = _world(steps, side, seed)
    inner = cross_entropy_of(network)

    def once() -> dict[str, Any]:
        x, eta = images.clone().requires_grad_(), sizes.clone().requires_grad_()
        weights = {name: value.clone().requires_grad_() for name, value in start.items()}
        for step in range(steps):
            loss = inner(weights, x[step], labels[step])
            gradients = torch.autograd.grad(loss, tuple(weights.values()), create_graph=True)
            weights = {
                name: value - eta[step] * gradient
                for (name, value), gradient in zip(weights.items(), gradients, strict=True)
            }
        loss = outer(weights)
        by_images, by_sizes = torch.autograd.grad(loss, (x, eta))
        return _facts(loss.detach(), by_images, by_sizes, start)

    return _from_here(once)


def _world(steps: int, side: int, seed: int) -> tuple[Any, ...]:
    import torch
    from torch.nn import functional

    from fer_pipeline.distillation.start import logits_of, trainable
    from fer_pipeline.networks.backbones import build
    from fer_pipeline.networks.settings import NetworkSettings

    network = build(NetworkSettings(name="resnet18", size=side), CLASSES, seed).eval()
    draw = torch.Generator().manual_seed(seed)
    images = torch.randn(steps, CLASSES, 3, side, side, generator=draw)
    real, truth = torch.randn(REAL, 3, side, side, generator=draw), torch.arange(REAL) % CLASSES
    labels = torch.arange(CLASSES).repeat(steps, 1)
    logits = logits_of(network)
    start = {name: value.clone() for name, value in trainable(network).items()}
    return (
        network, start, images, torch.full((steps,), 0.001), labels,
        lambda weights: functional.cross_entropy(logits(weights, real), truth),
    )  # fmt: skip


def _facts(loss: Any, by_images: Any, by_sizes: Any, start: dict[str, Any]) -> dict[str, Any]:
    return {
        "loss": float(loss),
        "by_images": float(by_images.double().norm()),
        "by_sizes": float(by_sizes.double().norm()),
        "weights_mb": sum(value.nbytes for value in start.values()) / 1e6,
    }


def _from_here(once: Round) -> Round:
    """No warm-up: what a first pass leaves behind would hide in the memory above the start."""
    from benchmarks.harness.gauges import memory_starts_here

    memory_starts_here()
    return once
