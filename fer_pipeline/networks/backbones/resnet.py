"""Build ResNet-18, -34 and -50 (He et al., arXiv:1512.03385) as torchvision builds them, without their classifier."""

from jaxtyping import Float
from torch import Tensor, nn
from torchvision.models import resnet

from fer_pipeline.networks.backbones import IMAGENET, Layout, has, leaving_out, run_stages
from fer_pipeline.networks.settings import NetworkSettings

BLOCKS = {
    "resnet18": (resnet.BasicBlock, [2, 2, 2, 2]),
    "resnet34": (resnet.BasicBlock, [3, 4, 6, 3]),
    "resnet50": (resnet.Bottleneck, [3, 4, 6, 3]),
}
NAMES = tuple(BLOCKS)


def layouts(settings: NetworkSettings) -> dict[str, Layout]:
    return {"torchvision": Layout(IMAGENET, has("layer1.0.conv1.weight", "bn1.weight"), leaving_out("fc."))}


class ResNet(resnet.ResNet):
    """torchvision's network up to the average pool: 512 features, 2048 of ResNet-50."""

    stages = ("stage1", "stage2", "stage3", "stage4")

    def __init__(self, block: type[resnet.BasicBlock | resnet.Bottleneck], counts: list[int]) -> None:
        super().__init__(block, counts)
        self.feature_dim = self.fc.in_features
        self.fc = nn.Identity()

    def feature_maps(self, x: Float[Tensor, "n 3 h w"], last: str | None = None) -> dict[str, Tensor]:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        return run_stages(x, zip(self.stages, (self.layer1, self.layer2, self.layer3, self.layer4), strict=True), last)


def build(settings: NetworkSettings) -> nn.Module:
    return ResNet(*BLOCKS[settings.name])
