"""Every family builds networks that keep the contract; registering a family is testing it."""

import copy
import hashlib
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fer_pipeline.core.errors import ConfigError
from fer_pipeline.core.plugins import available
from fer_pipeline.embedding.features import Extractor
from fer_pipeline.networks.backbones import build, family, stage_shapes
from fer_pipeline.networks.checkpoints import features_id, load_checkpoint, save_checkpoint
from fer_pipeline.networks.model import stages_of
from fer_pipeline.networks.preprocessing import Preprocessing
from fer_pipeline.networks.settings import Card, NetworkSettings, preprocessing_of

SMALLEST = {  # a network of every family, with its input and its published number of features
    "resnet": ("resnet18", 32, 512),
    "vgg": ("vgg16", 32, 4096),
    "ir_se": ("ir_se50", 32, 512),
    "iresnet": ("iresnet50", 32, 512),
    "timm": ("timm/convnext_atto", 32, 320),
    "small": ("small", 48, 128),
    "dlib_resnet": ("dlib_resnet", 112, 256),
    "expnet": ("expnet", 32, 512),
}
# The channels and side of the map of every stage, counted by hand from the published architectures.
MAPS = {
    "resnet": {"stage1": (64, 8), "stage2": (128, 4), "stage3": (256, 2), "stage4": (512, 1)},
    "vgg": {"stage1": (64, 16), "stage2": (128, 8), "stage3": (256, 4), "stage4": (512, 2), "stage5": (512, 1)},
    "ir_se": {"stage1": (64, 16), "stage2": (128, 8), "stage3": (256, 4), "stage4": (512, 2)},
    "iresnet": {"stage1": (64, 16), "stage2": (128, 8), "stage3": (256, 4), "stage4": (512, 2)},
    "timm": {"stages.0": (40, 8), "stages.1": (80, 4), "stages.2": (160, 2), "stages.3": (320, 1)},
    "small": {"stage1": (16, 24), "stage2": (32, 12), "stage3": (64, 6), "stage4": (128, 3)},
    "dlib_resnet": {
        "stem": (32, 26), "layer1": (32, 26), "layer2": (64, 13), "layer3": (128, 6), "layer4": (256, 3),
        "layer5": (256, 1),
    },
    "expnet": {
        "stage1": (64, 16), "stage2": (128, 8), "stage3": (256, 4), "stage4": (512, 2), "stage5": (512, 1),
        "bridge": (512, 1),
    },
}  # fmt: skip


@pytest.fixture(params=sorted({*available("fer_pipeline.networks.backbones")} - {"joined"}))  # which needs members
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


def noise(size: int, count: int = 2) -> torch.Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0))


def test_every_stage_has_its_map_and_no_later_one_is_computed(case, request) -> None:
    name, size, _ = case
    settings, expected = NetworkSettings(name=name, size=size), MAPS[request.node.callspec.params["case"]]
    backbone = build(settings, 5, seed=3).backbone.eval()
    assert stages_of(backbone) == tuple(expected)
    called: list[nn.Module] = []
    for module in backbone.modules():
        if not list(module.children()):
            module.register_forward_hook(lambda module, *_: called.append(module))
    before = 0
    with torch.no_grad():
        whole = backbone.feature_maps(noise(size))
        for number, (stage, (channels, side)) in enumerate(expected.items(), start=1):
            called.clear()
            maps = backbone.feature_maps(noise(size), last=stage)
            assert list(maps) == list(expected)[:number]
            assert maps[stage].shape == (2, channels, side, side)
            assert all(torch.equal(maps[one], whole[one]) for one in maps)
            assert len(called) > before, "a stage that computes nothing"
            before = len(called)
    assert stage_shapes(settings) == {stage: (channels, side, side) for stage, (channels, side) in expected.items()}


@pytest.mark.parametrize(
    ("family_name", "end"),
    [
        ("resnet", lambda backbone, last: last.mean((2, 3))),
        ("small", lambda backbone, last: last.mean((2, 3))),
        ("vgg", lambda backbone, last: backbone.classifier(backbone.flatten(backbone.avgpool(last)))),
        ("ir_se", lambda backbone, last: backbone.output_layer(last)),
        ("iresnet", lambda backbone, last: backbone.output_layer(last)),
        ("timm", lambda backbone, last: backbone.forward_head(last)),
    ],
)
def test_the_last_map_is_what_the_networks_own_features_are_made_of(family_name: str, end) -> None:
    name, size, _ = SMALLEST[family_name]
    backbone = build(NetworkSettings(name=name, size=size), 5, seed=3).backbone.eval()
    with torch.no_grad():
        last = list(backbone.feature_maps(noise(size)).values())[-1]
        torch.testing.assert_close(end(backbone, last), backbone(noise(size)))


def test_features_of_stages_are_the_means_of_the_cells_of_a_grid() -> None:
    """Side 6 in 4 cells: torch's adaptive pooling lets cell i cover floor(6 i / 4) to ceil(6 (i + 1) / 4)."""
    settings = NetworkSettings(size=48, features={"stage4": 2, "stage3": 4})
    model = build(settings, 5, seed=3).eval()
    with torch.no_grad():
        maps = model.backbone.feature_maps(noise(48))
        found = model.features(noise(48)).numpy()
    cells = []
    for stage, grid in (("stage3", 4), ("stage4", 2)):  # in the network's order, whatever that of the settings
        values, side = maps[stage].numpy().astype(np.float64), maps[stage].shape[-1]
        edges = [(math.floor(side * i / grid), math.ceil(side * (i + 1) / grid)) for i in range(grid)]
        means = [values[:, :, a:b, c:d].mean((2, 3)) for a, b in edges for c, d in edges]
        cells.append(np.stack(means, axis=2).reshape(2, -1))  # channels, rows, columns
    assert model.feature_dim == model.head.in_features == 64 * 16 + 128 * 4
    np.testing.assert_allclose(found, np.concatenate(cells, axis=1), atol=1e-6)


def test_features_of_stages_leave_the_weights_as_they_are_and_end_early() -> None:
    plain, chosen = (build(NetworkSettings(size=48, features=one), 5, seed=3) for one in (None, {"stage2": 3}))
    for name, tensor in plain.backbone.state_dict().items():
        assert torch.equal(tensor, chosen.backbone.state_dict()[name])
    chosen.backbone.blocks.register_forward_hook(lambda *_: pytest.fail("a stage that no one asked for"))
    for block in chosen.backbone.blocks:
        block.register_forward_hook(lambda *_: pytest.fail("a stage that no one asked for"))
    for model in (chosen, copy.deepcopy(chosen)):
        assert model(noise(48)).shape == (2, 5)
    copied = copy.deepcopy(build(NetworkSettings(name="timm/convnext_atto", size=32, features={"stages.1": 2}), 5, 3))
    with torch.no_grad():
        for parameter in copied.backbone.parameters():
            parameter.zero_()
        assert not copied.features(noise(32)).any(), "the copy computes with the weights of its original"


def test_a_checkpoint_knows_its_features(tmp_path: Path) -> None:
    settings = NetworkSettings(size=32, width=8, features={"stage2": 4, "stage4": 1})
    model = build(settings, 2, seed=0).eval()
    for network, folder in ((settings, "chosen"), (NetworkSettings(size=32, width=8), "plain")):
        card = Card(network=network, classes=("anger", "fear"), preprocessing=Preprocessing(size=32))
        save_checkpoint(tmp_path / folder, build(network, 2, seed=0), card)
    faces = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    classifier = load_checkpoint(tmp_path / "chosen")
    with torch.no_grad():
        expected = model.features(Preprocessing(size=32).apply(faces)).numpy()
    extractor = Extractor(classifier, batch_size=2)
    assert extractor.dimensions == 16 * 16 + 64
    np.testing.assert_allclose(extractor(faces), expected, atol=1e-5)
    np.testing.assert_allclose(classifier.features(faces), expected, atol=1e-6)
    mining = Card.model_validate({**classifier.card.model_dump(), "mining_features": {"stage3": 2, "stage1": 1}})
    save_checkpoint(tmp_path / "mining", model, mining)
    ids = [features_id(tmp_path / name) for name in ("chosen", "mining")]
    digest = hashlib.sha256((tmp_path / "chosen" / "weights.safetensors").read_bytes()).hexdigest()
    assert ids == [digest, f"{digest} stage1@1 stage3@2"], "features of other stages must not meet"
    assert '"features"' not in (tmp_path / "plain" / "card.json").read_text(), "cards from before would change"


@pytest.mark.parametrize(
    ("name", "features", "told"),
    [
        ("small", {"stage9": 1}, "small has no stage 'stage9'; there are stage1, stage2, stage3, stage4"),
        ("small", {"stage4": 4}, "a grid of 4 is larger than the map of stage4, 3 x 3 at 48 px; take at most 3"),
        ("timm/mlp", {"stage1": 1}, "timm/mlp has no stage 'stage1'; it has none; leave the setting out"),
    ],
)
def test_stages_that_there_are_not_and_grids_too_fine_are_one_line(name, features, told, monkeypatch) -> None:
    if name == "timm/mlp":  # every network of timm's has maps today
        module = family("timm/convnext_atto")
        nothing = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        nothing.feature_dim, nothing.stage_names = 3, ()
        monkeypatch.setattr(module, "build", lambda settings: nothing)
    with pytest.raises(ConfigError) as raised:
        build(NetworkSettings(name=name, size=48, features=features), 5, seed=0)
    assert str(raised.value) == f"network.features: {told}"


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
