"""What is frozen stays to the bit; loaded layers learn at their own rate; every weight has one optimiser group."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fer_pipeline.core.errors import ConfigError
from fer_pipeline.core.settings import validate
from fer_pipeline.networks.backbones import build
from fer_pipeline.networks.checkpoints import save_checkpoint
from fer_pipeline.networks.preprocessing import Preprocessing
from fer_pipeline.networks.settings import Card, NetworkSettings
from fer_pipeline.networks.weights import WeightSettings, read_tensors
from fer_pipeline.strategies import fixmatch, meta_face2exp, remixmatch
from fer_pipeline.training import fit
from fer_pipeline.training.optimizers import build_optimizer
from fer_pipeline.training.settings import ModelSettings
from tests.toy_world import CLASSES, SIZE
from tests.training.test_fit import PulledError, contents, unplug

PLAIN = {"epochs": 2, "select": "last", "augment": {}}


@pytest.fixture
def start(tmp_path: Path) -> Callable[..., WeightSettings]:
    """Weights of the backbone of another seed: of all its layers, or of some by their beginning."""

    def save(*prefixes: str) -> WeightSettings:
        network = NetworkSettings(width=4, size=SIZE)
        model = build(network, 3, seed=50)
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                torch.nn.init.uniform_(module.running_mean, -0.1, 0.1)
        path = tmp_path / "start"
        save_checkpoint(path, model, Card(network=network, classes=CLASSES, preprocessing=Preprocessing(size=SIZE)))
        if not prefixes:
            return WeightSettings(path=path / "weights.safetensors")
        some = {name: one for name, one in model.state_dict().items() if name.startswith(prefixes)}
        torch.save(some, tmp_path / "some.pt")
        return WeightSettings(path=tmp_path / "some.pt", least_filled=0)

    return save


def trained(train_toy, name: str, weights: WeightSettings | None, **settings) -> dict[str, torch.Tensor]:
    return read_tensors(train_toy(name, weights=weights, **{**PLAIN, **settings})[1] / "weights.safetensors")


@pytest.mark.parametrize(
    ("name", "size", "stage", "frozen"),
    [
        ("small", 48, "stage3", r"stem\."),
        ("small", 48, "stage4", r"stem\.|blocks\.0\."),
        ("resnet18", 32, "stage3", r"(conv1|bn1|layer1|layer2)\."),
        ("vgg16", 32, "stage3", r"features\.[0257]\."),
        ("ir_se50", 32, "stage2", r"input_layer\.|body\.[012]\."),
        ("timm/convnext_atto", 32, "stages.2", r"stem\.|stages\.[01]\."),
    ],
)
def test_what_lies_before_a_stage_is_frozen_and_nothing_else(name: str, size: int, stage: str, frozen: str) -> None:
    model = build(NetworkSettings(name=name, size=size), 3, seed=0)
    model.freeze_before(stage, size=size)
    model.eval().train()
    for key, parameter in model.named_parameters():
        assert parameter.requires_grad != bool(re.match(rf"backbone\.({frozen})", key)), key
    for key, module in model.named_modules():
        if list(module.parameters(recurse=False)):
            assert module.training != bool(re.match(rf"backbone\.({frozen})", f"{key}.")), key


@pytest.mark.parametrize("settings", [{"frozen_until": "stage3"}, {"frozen_until": "stage3", "average": 0.9}])
def test_frozen_tensors_stay_equal_bit_for_bit(train_toy, start, settings) -> None:
    weights = start()
    before, after = read_tensors(weights.path), trained(train_toy, "run", weights, **settings)
    for name, tensor in before.items():
        same = torch.equal(after[name], tensor)
        assert same == name.startswith("backbone.stem."), name


@pytest.mark.parametrize("settings", [{"frozen_until": "stage3"}, {"old_layers_rate": 0.5, "frozen_until": "stage3"}])
@pytest.mark.parametrize("strategy", [fixmatch, remixmatch, meta_face2exp])
def test_learners_of_the_pool_start_from_weights_and_leave_what_is_frozen(
    train_toy, toy, start, strategy, settings
) -> None:
    """They look at networks in several modes; none of these may thaw a frozen layer."""
    weights, options = start(), strategy.Options(unlabelled_ratio=1, cover="none")
    sets = {"labelled": toy(60, 0), "unlabelled": toy(40, 5)}
    before = read_tensors(weights.path)
    after = trained(train_toy, "run", weights, strategy=strategy, options=options, sets=sets, **settings)
    for name, tensor in before.items():
        assert torch.equal(after[name], tensor) == name.startswith("backbone.stem."), name


def test_a_rate_of_nothing_is_frozen(train_toy, start) -> None:
    """Weights of the stages before the third alone: what was loaded is what `frozen_until` freezes."""
    weights = start("backbone.stem.")
    frozen, still = (
        train_toy(name, weights=weights, **PLAIN, **settings)[1]
        for name, settings in (("a", {"frozen_until": "stage3"}), ("b", {"old_layers_rate": 0}))
    )
    assert (frozen / "weights.safetensors").read_bytes() == (still / "weights.safetensors").read_bytes()


def test_loaded_layers_learn_at_their_own_rate(train_toy, start) -> None:
    """One step of plain descent: old layers change by the factor times what they would, new ones as they would."""
    weights = start("backbone.stem.")
    options = {"epochs": None, "steps": 1, "optimizer": {"learning_rate": 0.1, "momentum": 0, "weight_decay": 0}}
    plain = trained(train_toy, "plain", weights, **options)
    slow = trained(train_toy, "slow", weights, **options, old_layers_rate=0.25)
    fast = trained(train_toy, "fast", weights, **options, old_layers_rate=2)
    unmoved = trained(
        train_toy, "none", weights, **{**options, "optimizer": {**options["optimizer"], "learning_rate": 1e-30}}
    )
    for name, tensor in plain.items():
        if "running" not in name and "tracked" not in name:
            change, old = tensor - unmoved[name], name.startswith("backbone.stem.")
            for factor, found in ((0.25, slow), (2.0, fast)):
                expected = change * (factor if old else 1)
                torch.testing.assert_close(found[name] - unmoved[name], expected, atol=1e-6, rtol=1e-3, msg=name)


def test_every_weight_is_in_one_group(train_toy, start, monkeypatch) -> None:
    seen: list[tuple[list[torch.nn.Parameter], torch.optim.Optimizer]] = []

    def spy(parameters, settings, **options):
        parameters = list(parameters)
        seen.append((parameters, build_optimizer(parameters, settings, **options)))
        return seen[-1][1]

    monkeypatch.setattr(fit, "build_optimizer", spy)
    for name, weights, settings, groups in (
        ("a", start("backbone.stem."), {"old_layers_rate": 0.1}, 2),
        ("b", start(), {"old_layers_rate": 0.1, "frozen_until": "stage3"}, 2),
        ("c", start(), {"old_layers_rate": 0}, 1),
        ("d", start(), {}, 1),
    ):
        trained(train_toy, name, weights, **settings)
        parameters, optimizer = seen[-1]
        held = [id(one) for group in optimizer.param_groups for one in group["params"]]
        assert len(optimizer.param_groups) == groups
        assert len(held) == len(set(held))
        assert set(held) == {id(one) for one in parameters if one.requires_grad}


def test_a_network_that_is_frozen_whole_is_one_line(train_toy, start) -> None:
    weights = start().model_copy(update={"head": True})
    with pytest.raises(ConfigError, match=r"old_layers_rate: 0 leaves nothing to learn, since .*; set weights\.head"):
        trained(train_toy, "run", weights, old_layers_rate=0)


def test_a_pause_changes_no_byte(train_toy, start) -> None:
    settings = {"weights": start(), **PLAIN, "frozen_until": "stage2", "old_layers_rate": 0.3}
    whole = contents(train_toy("whole", **settings)[1])
    with pytest.raises(PulledError):
        train_toy("paused", advance=unplug(5), **settings)
    assert contents(train_toy("paused", **settings)[1]) == whole


@pytest.mark.parametrize("setting", [{"frozen_until": "stage3"}, {"old_layers_rate": 0.1}])
def test_without_weights_there_are_no_old_layers(setting) -> None:
    name = next(iter(setting))
    with pytest.raises(ConfigError, match=rf"training\.{name} is about layers that were loaded: set weights"):
        validate(ModelSettings, {"training": setting}, where="train_final")
    assert not {"frozen_until", "old_layers_rate"} & ModelSettings().model_dump()["training"].keys()
    joined = {"name": "joined", "members": [{"name": "dlib_face"}]}  # which brings its weights
    assert validate(ModelSettings, {"network": joined, "training": setting}, where="train_final").training
