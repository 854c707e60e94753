"""Published layouts of weights, rebuilt here from their lists of names, against our networks.

The reference passes below compute straight from the published names with torch's functions, so that a wrong mapping,
order or missing layer shows in the features and not only in the names.
"""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional
from torchvision.models import resnet18, resnet50

from fer_pipeline.core.errors import ConfigError
from fer_pipeline.networks.backbones import build, family, vgg
from fer_pipeline.networks.settings import NetworkSettings
from fer_pipeline.networks.weights import WeightSettings, choose_layout, fit_shape, load_weights

CHANNELS, UNITS, SIZE = (64, 128, 256, 512), (3, 4, 14, 3), 32
Weights = dict[str, Tensor]


class Maker:
    """Random tensors under published names."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(0)
        self.made: Weights = {}

    def normal(self, name: str, *shape: int) -> None:
        self.made[name] = torch.randn(shape, generator=self.generator) / max(1, torch.tensor(shape[1:]).prod().sqrt())

    def norm(self, name: str, channels: int) -> None:
        for part in ("weight", "running_var"):
            self.made[f"{name}.{part}"] = torch.rand(channels, generator=self.generator) + 0.5
        for part in ("bias", "running_mean"):
            self.made[f"{name}.{part}"] = torch.randn(channels, generator=self.generator) * 0.1
        self.made[f"{name}.num_batches_tracked"] = torch.tensor(7)

    def prelu(self, name: str, channels: int) -> None:
        self.made[name] = torch.rand(channels, generator=self.generator)


def norm(weights: Weights, name: str, x: Tensor) -> Tensor:
    parts = [weights[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
    return functional.batch_norm(x, *parts)


def ir_se50_weights() -> Weights:
    """The names of ir_se50.pth: 24 units, first of a stage with stride 2, a projection only where channels change."""
    make = Maker()
    make.normal("input_layer.0.weight", 64, 3, 3, 3)
    make.norm("input_layer.1", 64)
    make.prelu("input_layer.2.weight", 64)
    unit, inner = 0, 64
    for channels, count in zip(CHANNELS, UNITS, strict=True):
        for _ in range(count):
            name = f"body.{unit}"
            if inner != channels:
                make.normal(f"{name}.shortcut_layer.0.weight", channels, inner, 1, 1)
                make.norm(f"{name}.shortcut_layer.1", channels)
            make.norm(f"{name}.res_layer.0", inner)
            make.normal(f"{name}.res_layer.1.weight", channels, inner, 3, 3)
            make.prelu(f"{name}.res_layer.2.weight", channels)
            make.normal(f"{name}.res_layer.3.weight", channels, channels, 3, 3)
            make.norm(f"{name}.res_layer.4", channels)
            make.normal(f"{name}.res_layer.5.fc1.weight", channels // 16, channels, 1, 1)
            make.normal(f"{name}.res_layer.5.fc2.weight", channels, channels // 16, 1, 1)
            unit, inner = unit + 1, channels
    make.norm("output_layer.0", 512)
    make.normal("output_layer.3.weight", 512, 512 * (SIZE // 16) ** 2)
    make.normal("output_layer.3.bias", 512)
    make.norm("output_layer.4", 512)
    return make.made


def ir_se50_features(w: Weights, x: Tensor) -> Tensor:
    x = functional.conv2d(x, w["input_layer.0.weight"], padding=1)
    x = functional.prelu(norm(w, "input_layer.1", x), w["input_layer.2.weight"])
    firsts = {0, 3, 7, 21}
    for unit in range(24):
        name, stride = f"body.{unit}", 2 if unit in firsts else 1
        y = functional.conv2d(norm(w, f"{name}.res_layer.0", x), w[f"{name}.res_layer.1.weight"], padding=1)
        y = functional.prelu(y, w[f"{name}.res_layer.2.weight"])
        y = functional.conv2d(y, w[f"{name}.res_layer.3.weight"], stride=stride, padding=1)
        y = norm(w, f"{name}.res_layer.4", y)
        gate = functional.relu(functional.conv2d(y.mean((2, 3), keepdim=True), w[f"{name}.res_layer.5.fc1.weight"]))
        y = y * torch.sigmoid(functional.conv2d(gate, w[f"{name}.res_layer.5.fc2.weight"]))
        if f"{name}.shortcut_layer.0.weight" in w:
            x = functional.conv2d(x, w[f"{name}.shortcut_layer.0.weight"], stride=stride)
            x = norm(w, f"{name}.shortcut_layer.1", x)
        else:
            x = x[:, :, ::stride, ::stride]
        x = y + x
    x = norm(w, "output_layer.0", x).flatten(1)
    return norm(w, "output_layer.4", functional.linear(x, w["output_layer.3.weight"], w["output_layer.3.bias"]))


def iresnet50_weights() -> Weights:
    """The names of InsightFace's backbone.pth; the first unit of every stage has a stride and a downsample."""
    make = Maker()
    make.normal("conv1.weight", 64, 3, 3, 3)
    make.norm("bn1", 64)
    make.prelu("prelu.weight", 64)
    inner = 64
    for stage, (channels, count) in enumerate(zip(CHANNELS, UNITS, strict=True), start=1):
        for index in range(count):
            name = f"layer{stage}.{index}"
            make.norm(f"{name}.bn1", inner)
            make.normal(f"{name}.conv1.weight", channels, inner, 3, 3)
            make.norm(f"{name}.bn2", channels)
            make.prelu(f"{name}.prelu.weight", channels)
            make.normal(f"{name}.conv2.weight", channels, channels, 3, 3)
            make.norm(f"{name}.bn3", channels)
            if index == 0:
                make.normal(f"{name}.downsample.0.weight", channels, inner, 1, 1)
                make.norm(f"{name}.downsample.1", channels)
            inner = channels
    make.norm("bn2", 512)
    make.normal("fc.weight", 512, 512 * (SIZE // 16) ** 2)
    make.normal("fc.bias", 512)
    make.norm("features", 512)
    return make.made


def iresnet50_features(w: Weights, x: Tensor) -> Tensor:
    x = functional.prelu(norm(w, "bn1", functional.conv2d(x, w["conv1.weight"], padding=1)), w["prelu.weight"])
    for stage, count in enumerate(UNITS, start=1):
        for index in range(count):
            name, stride = f"layer{stage}.{index}", 2 if index == 0 else 1
            y = functional.conv2d(norm(w, f"{name}.bn1", x), w[f"{name}.conv1.weight"], padding=1)
            y = functional.prelu(norm(w, f"{name}.bn2", y), w[f"{name}.prelu.weight"])
            y = norm(w, f"{name}.bn3", functional.conv2d(y, w[f"{name}.conv2.weight"], stride=stride, padding=1))
            if index == 0:
                x = functional.conv2d(x, w[f"{name}.downsample.0.weight"], stride=stride)
                x = norm(w, f"{name}.downsample.1", x)
            x = y + x
    x = functional.linear(norm(w, "bn2", x).flatten(1), w["fc.weight"], w["fc.bias"])
    return norm(w, "features", x)


@pytest.mark.parametrize(
    ("name", "weights", "features"),
    [("ir_se50", ir_se50_weights, ir_se50_features), ("iresnet50", iresnet50_weights, iresnet50_features)],
)
def test_arcface_layouts_give_the_features_of_their_own_names(tmp_path: Path, name, weights, features) -> None:
    published = weights()
    save_file(published, tmp_path / "published.safetensors")
    network = NetworkSettings(name=name, size=SIZE)
    model = build(network, 7, seed=0).eval()
    report = load_weights(model, network, WeightSettings(path=tmp_path / "published.safetensors"))
    assert report.filled == 1.0
    assert report.layout == "arcface"
    assert not report.missing
    assert not report.unexpected
    assert not report.misshaped
    assert report.normalisation.mean == (127.5,) * 3
    assert report.normalisation.std == (128.0,) * 3
    x = torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(model.features(x), features(published, x), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("maker", [resnet18, resnet50])
def test_torchvision_layout_gives_torchvisions_features(tmp_path: Path, maker) -> None:
    theirs = maker(weights=None).eval()
    torch.save(
        {"state_dict": {f"module.{key}": value for key, value in theirs.state_dict().items()}}, tmp_path / "w.pth"
    )
    network = NetworkSettings(name=maker.__name__, size=64)
    model = build(network, 7, seed=0).eval()
    report = load_weights(model, network, WeightSettings(path=tmp_path / "w.pth"))
    assert report.filled == 1.0
    assert report.layout == "torchvision"
    assert {name for name in report.left_out if not name.endswith("num_batches_tracked")} == {"fc.weight", "fc.bias"}
    assert report.normalisation.mean == (0.485, 0.456, 0.406)
    x = torch.randn(2, 3, 64, 64)
    theirs.fc = torch.nn.Identity()
    with torch.no_grad():
        torch.testing.assert_close(model.features(x), theirs(x))


VGG_LAYERS = {  # published name: torchvision's index in `features`
    "1_1": 0, "1_2": 2, "2_1": 5, "2_2": 7, "3_1": 10, "3_2": 12, "3_3": 14,
    "4_1": 17, "4_2": 19, "4_3": 21, "5_1": 24, "5_2": 26, "5_3": 28,
}  # fmt: skip


@pytest.mark.parametrize(("prefix", "layout"), [("conv", "vgg_face_dag"), ("conv_", "vgg_face")])
def test_vgg_face_names_lead_to_torchvisions_modules(prefix: str, layout: str) -> None:
    network = NetworkSettings(name="vgg16", size=32)
    rename = family("vgg16").layouts(network)[layout].rename
    for published, index in VGG_LAYERS.items():
        for part in ("weight", "bias"):
            assert rename(f"{prefix}{published}.{part}") == f"features.{index}.{part}"
    assert rename("fc6.weight") == "classifier.0.weight"
    assert rename("fc7.bias") == "classifier.3.bias"
    assert rename("fc8.weight") is None
    assert rename("features.28.bias") == "features.28.bias"
    assert rename("classifier.6.weight") is None
    names = [f"{prefix}{published}.weight" for published in VGG_LAYERS]
    fitting = [name for name, found in family("vgg16").layouts(network).items() if found.recognises(names)]
    assert fitting == [layout]


def test_vgg_face_normalisations_differ_by_channel_order_alone() -> None:
    bgr, rgb = vgg.BGR, vgg.RGB
    assert (bgr.channels, rgb.channels) == ("bgr", "rgb")
    assert bgr.mean == rgb.mean[::-1]
    assert rgb.mean[0] == 129.1863  # faces are red before they are blue


def test_torchvision_names_of_vgg_must_be_said() -> None:
    keys, network = ("features.0.weight", "classifier.0.weight"), NetworkSettings(name="vgg16", size=32)
    with pytest.raises(ConfigError, match="could be torchvision or vgg_face; say which"):
        choose_layout(network, WeightSettings(path=Path("w.safetensors")), keys)
    assert choose_layout(network, WeightSettings(path=Path("w.safetensors"), layout="vgg_face"), keys)[0] == "vgg_face"


def test_fc6_published_as_a_convolution_is_flattened() -> None:
    kernel = torch.arange(4 * 3 * 2 * 2.0).reshape(4, 3, 2, 2)
    assert torch.equal(fit_shape(kernel, torch.zeros(4, 12)), kernel.reshape(4, 12))
    assert fit_shape(kernel, torch.zeros(4, 11)) is None
    assert fit_shape(kernel[0], torch.zeros(3, 4)) is None


def test_timm_layout_gives_timms_features(tmp_path: Path) -> None:
    import timm

    theirs = timm.create_model("convnext_atto", pretrained=False, num_classes=5).eval()
    save_file(theirs.state_dict(), tmp_path / "w.safetensors")
    network = NetworkSettings(name="timm/convnext_atto", size=64)
    model = build(network, 7, seed=0).eval()
    report = load_weights(model, network, WeightSettings(path=tmp_path / "w.safetensors"))
    assert report.filled == 1.0
    assert set(report.unexpected) == {"head.fc.weight", "head.fc.bias"}
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(model.features(x), theirs.forward_head(theirs.forward_features(x), pre_logits=True))
