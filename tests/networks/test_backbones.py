"""Every family builds networks that keep the contract; registering a family is testing it."""

import pytest
import torch

from fer_pipeline.core.errors import ConfigError
from fer_pipeline.core.plugins import available
from fer_pipeline.networks.backbones import build, family
from fer_pipeline.networks.settings import NetworkSettings, preprocessing_of

SMALLEST = {  # a network of every family, with its input and its published number of features
    "resnet": ("resnet18", 32, 512),
    "vgg": ("vgg16", 32, 4096),
    "ir_se": ("ir_se50", 32, 512),
    "iresnet": ("iresnet50", 32, 512),
    "timm": ("timm/convnext_atto", 32, 320),
    "small": ("small", 48, 128),
    "dlib_resnet": ("dlib_resnet", 112, 256),
}


@pytest.fixture(params=available("fer_pipeline.networks.backbones"))
def case(request) -> tuple[str, int, int]:
    assert request.param in SMALLEST, f"name the smallest network of the family {request.param} here"
    return SMALLEST[request.param]


def test_features_and_logits_have_their_shapes(case) -> None:
    name, size, features = case
    model = build(NetworkSettings(name=name, size=size), 5, seed=3).eval()
    x = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = model.features(x)
        assert found.shape == (2, features)
        assert model.feature_dim == model.head.in_features == features
        torch.testing.assert_close(model(x), model.head(found))


def test_a_seed_is_a_network_and_leaves_the_global_generator_alone() -> None:
    settings = NetworkSettings(size=32)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, again, other = (build(settings, 5, seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["head.weight"], other["head.weight"])


@pytest.mark.parametrize("name", ["resnet19", "vgg19", "ir_se100", "iresnet18", "timm/convnext_atom", "tiny"])
def test_unknown_names_are_refused_in_one_line(name: str) -> None:
    with pytest.raises(ConfigError, match=r"^[^\n]*(there|choose|near)[^\n]*$"):
        build(NetworkSettings(name=name, size=32), 5, seed=0)


def test_timm_names_near_the_wrong_one_are_named() -> None:
    with pytest.raises(ConfigError, match="timm/convnext_atto"):
        build(NetworkSettings(name="timm/convnext_atte", size=32), 5, seed=0)


def test_transformers_of_timm_take_the_size_of_the_crops() -> None:
    model = build(NetworkSettings(name="timm/vit_tiny_patch16_224", size=48), 5, seed=0).eval()
    assert model.features(torch.zeros(1, 3, 48, 48)).shape == (1, 192)


def test_the_smallest_picture_of_dlib_leaves_every_convolution_a_window() -> None:
    network = NetworkSettings(name="dlib_resnet128", size=103)
    assert build(network, 5, seed=0).features(torch.zeros(1, 3, 103, 103)).shape == (1, 128)
    with pytest.raises(ConfigError, match="at least 103 px, found 102"):
        build(network.sized(0).model_copy(update={"size": 102}), 5, seed=0)


def test_drawn_weights_of_dlib_keep_the_scale_of_pictures_and_learn() -> None:
    """Without batch norms every block might double the variance: 14 of them by 16,000."""
    model = build(NetworkSettings(name="dlib_resnet", size=112), 5, seed=0)
    x = torch.randn(2, 3, 112, 112, generator=torch.Generator().manual_seed(0))
    maps = model.backbone.feature_maps(x)
    assert tuple(maps) == model.backbone.stages
    assert [tuple(one.shape[1:]) for one in maps.values()] == [
        (32, 26, 26), (32, 26, 26), (64, 13, 13), (128, 6, 6), (256, 3, 3), (256, 1, 1),
    ]  # fmt: skip
    assert all(0.1 < float(one.std()) < 10 for one in maps.values())
    model(x).square().sum().backward()
    assert all(float(one.grad.abs().max()) > 0 for one in model.parameters())


def test_small_is_small_and_follows_its_settings() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    model = build(NetworkSettings(size=48), 7, seed=0).eval()
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 3, 48, 48))
    assert 8e6 < counter.get_total_flops() < 12e6
    assert build(NetworkSettings(size=48, width=8), 7, seed=0).feature_dim == 64
    grouped = build(NetworkSettings(size=48, norm="group"), 7, seed=0)
    assert not list(grouped.buffers())
    assert list(model.buffers())


def test_group_norm_treats_an_image_alike_in_any_batch() -> None:
    model = build(NetworkSettings(size=32, norm="group"), 7, seed=0).train()
    x = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(model(x)[:1], model(x[:1]))


def test_a_feature_layer_and_dropout_stand_between_backbone_and_head() -> None:
    settings = NetworkSettings(size=32, feature_dim=10, dropout=0.9)
    model = build(settings, 7, seed=0)
    x = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert model.features(x).shape == (4, 10)
    assert (model.features(x) >= 0).all()
    model.eval()
    with torch.no_grad():
        assert torch.equal(model(x), model(x))
        model.dropout.train()
        assert not torch.equal(model(x), model(x))


def test_preprocessing_is_the_settings_then_the_weights_then_plain() -> None:
    from fer_pipeline.networks.preprocessing import Normalisation

    weights = Normalisation(mean=(0.1, 0.2, 0.3))
    own = Normalisation(mean=(0.7, 0.8, 0.9))
    assert preprocessing_of(NetworkSettings(size=9), None).mean == (0.5, 0.5, 0.5)
    assert preprocessing_of(NetworkSettings(size=9, grey=True), weights).mean == (0.1, 0.2, 0.3)
    assert preprocessing_of(NetworkSettings(size=9, normalisation=own), weights).mean == (0.7, 0.8, 0.9)


def test_every_family_says_its_layouts() -> None:
    for name, size, _ in SMALLEST.values():
        layouts = family(name).layouts(NetworkSettings(name=name, size=size))
        assert all(layout.normalisation.scale > 0 for layout in layouts.values())
