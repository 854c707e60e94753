"""Folded batch norms give the same features, and networks that cannot be folded stay as they are."""

import pytest
import torch
from torch import nn
from torchvision.models import resnet18

from fer_pipeline.embedding.features import fuse_batch_norms


def warmed(network: nn.Module) -> nn.Module:
    """Running statistics and affine weights far from their start."""
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    return network.eval()


def test_residual_network_keeps_its_function_and_loses_its_norms() -> None:
    network = warmed(resnet18())
    folded, done = fuse_batch_norms(network, size=32)
    assert done
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    assert any(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    x = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        torch.testing.assert_close(folded(x), network(x), rtol=1e-3, atol=1e-4)


class Branching(nn.Module):
    """The convolution feeds its batch norm and the output."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        return (self.norm(y) + y).flatten(1)


class Shared(nn.Module):
    """One convolution under two batch norms."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.one, self.two = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.two(self.conv(self.one(self.conv(x)))).flatten(1)


@pytest.mark.parametrize("kind", [Branching, Shared])
def test_what_cannot_be_folded_stays(kind: type[nn.Module]) -> None:
    network = warmed(kind())
    folded, done = fuse_batch_norms(network, size=8)
    assert not done
    assert folded is network


def test_a_network_without_norms_stays() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten()).eval()
    assert fuse_batch_norms(network, size=8) == (network, False)
