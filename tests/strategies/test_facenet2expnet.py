"""FaceNet2ExpNet: the net's sizes by hand, Caffe's scale at the published rate, a face net that nothing changes."""

import copy
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional

from fer_pipeline.core.errors import ConfigError
from fer_pipeline.core.settings import RecipeSettings, validate
from fer_pipeline.networks.backbones import build, stage_shapes
from fer_pipeline.networks.checkpoints import load_checkpoint
from fer_pipeline.networks.preprocessing import Preprocessing
from fer_pipeline.networks.settings import NetworkSettings
from fer_pipeline.stages import train_final
from fer_pipeline.strategies import facenet2expnet
from fer_pipeline.strategies.facenet2expnet import Adapter, FaceNet2ExpNet, Options, euclidean_loss, stage_map
from fer_pipeline.training.augmentation import Augmentation
from fer_pipeline.training.context import StepContext
from fer_pipeline.training.optimizers import rate_factor
from fer_pipeline.training.settings import AugmentSettings, Sgd, TrainingSettings
from fer_pipeline.training.strategy import BuildContext
from fer_pipeline.training.worker import make_worker
from tests.strategies.test_supervised import crops
from tests.toy_world import CLASSES

EXPNET = NetworkSettings(name="expnet", size=224, feature_dim=256, dropout=0.5)


def test_the_sizes_of_the_layers_and_eleven_million_parameters_by_hand() -> None:
    sides = {"stage1": (64, 112), "stage2": (128, 56), "stage3": (256, 28), "stage4": (512, 14), "stage5": (512, 7)}
    expected = {name: (channels, side, side) for name, (channels, side) in sides.items()}
    assert stage_shapes(EXPNET) == expected | {"bridge": (512, 7, 7)}
    assert stage_shapes(NetworkSettings(name="vgg16", size=224))["stage5"] == (512, 7, 7)
    with torch.device("meta"):
        network = build(EXPNET, 7, seed=0)
    convolutions = sum(i * o * 9 + o for i, o in ((3, 64), (64, 128), (128, 256), (256, 512), (512, 512)))
    rest = (512 * 512 + 512) + (25_088 * 256 + 256) + (256 * 7 + 7)
    assert sum(parameter.numel() for parameter in network.parameters()) == convolutions + rest == 10_598_023


def test_small_images_are_refused_in_one_line() -> None:
    with pytest.raises(ConfigError, match=r"^expnet wants images of at least 32 px, found 31; set network.size$"):
        build(NetworkSettings(name="expnet", size=31), 3, seed=0)
    assert build(NetworkSettings(name="expnet", size=32), 3, seed=0)(torch.zeros(2, 3, 32, 32)).shape == (2, 3)


def test_the_scale_is_that_of_caffe() -> None:
    """1 / (2 N) times the sum over all units, which is 12,544 times the mean over 25,088 of them."""
    found, wanted = torch.randn(2, 4, 512, 7, 7, dtype=torch.float64)
    mean = euclidean_loss(found, wanted).mean().double()
    torch.testing.assert_close(mean, (found - wanted).square().sum() / (2 * 4), rtol=1e-5, atol=0)
    torch.testing.assert_close(mean, 12_544 * functional.mse_loss(found, wanted), rtol=1e-5, atol=0)


def strategy(
    own: NetworkSettings, face: Any, options: Options, *, augment: AugmentSettings | None = None
) -> FaceNet2ExpNet:
    """The strategy with a face net that is given."""
    networks = {"main": build(own, 3, seed=1), "face": face}
    views = {name: Preprocessing(size=own.size or 0) for name in networks}
    chosen = augment or AugmentSettings(flip=0, translate=0)
    context = BuildContext(
        num_classes=3,
        make_network=lambda name, *_: (networks[name], views[name]),
        augmentation=Augmentation(chosen, views["main"]),
        settings=TrainingSettings(batch=8, epochs=1),
        images={"labelled": 8},
    )
    return facenet2expnet.build(options, context)


class Run(StepContext):
    """Steps of a phase with the optimiser that the strategy asks for."""

    def __init__(self, chosen: FaceNet2ExpNet, phase: int) -> None:
        super().__init__(make_worker("cpu", "32-true"), {}, Preprocessing(size=8), seed=0, clip=None, steps_per_epoch=1)
        self.phase = chosen.phases()[phase].name
        plan = chosen.phases()[phase].optimizers["main"]
        settings = plan.optimizer or TrainingSettings().optimizer
        optimizer = torch.optim.SGD(plan.module.parameters(), lr=settings.learning_rate, momentum=settings.momentum)  # pyright: ignore
        self.modules, self.optimizers = (
            {"main": plan.module},
            {"main": SimpleNamespace(optimizer=optimizer, zero_grad=optimizer.zero_grad)},
        )


def face_net(size: int, *, root_mean_square: float) -> Any:
    """A face net whose map has units of a given size: those of networks without norms are large."""
    network = build(NetworkSettings(name="expnet", size=size, features={"bridge": size // 32}), 3, seed=5).eval()
    with torch.no_grad():
        now = stage_map(network, Preprocessing(size=size).apply(crops(4, 0).images)).square().mean().sqrt()
        network.backbone.bridge.weight.mul_(root_mean_square / now)
    return network


def test_the_regression_goes_at_the_published_rates() -> None:
    """Section IV B: 300 epochs at 1e-7 with momentum 0.9, a tenth of it after 100; here one step is an epoch."""
    own = NetworkSettings(size=24, width=4, norm="group")
    first, second = strategy(own, build(own, 3, seed=1), Options(first_epochs=300)).phases()
    plan = first.optimizers["main"]
    assert first.steps == 300
    assert plan.optimizer == Sgd(learning_rate=1e-7, momentum=0.9, weight_decay=0.0)
    factors = [rate_factor(plan.schedule, step, total_steps=1500, steps_per_epoch=5) for step in range(1500)]
    assert factors == pytest.approx([1.0] * 500 + [0.1] * 1000), "it falls after 100 of 300 epochs, once"
    assert second.optimizers["main"].optimizer is second.steps is None, "by the training's settings"


@pytest.mark.parametrize("scale", ["caffe", "mean"])
def test_at_the_published_rate_the_maps_come_near_with_caffes_scale_alone(monkeypatch, scale: str) -> None:
    face = face_net(64, root_mean_square=10.0)
    before = {name: tensor.clone() for name, tensor in face.state_dict().items()}
    if scale == "mean":
        monkeypatch.setattr(
            facenet2expnet, "euclidean_loss", lambda found, wanted: (found - wanted).square().flatten(1).mean(1)
        )
    chosen = strategy(NetworkSettings(name="expnet", size=64, feature_dim=16), face, Options(first_epochs=300))
    assert isinstance(chosen.adapter.bridge, torch.nn.Identity), "both maps have 512 channels"
    head = copy.deepcopy([*chosen.network.neck.state_dict().values(), *chosen.network.head.state_dict().values()])
    run, batch = Run(chosen, 0), crops(8, 0)
    rows = [chosen.step({"labelled": batch}, run) for _ in range(16)]
    left = (rows[-1]["share_of_map"] / rows[0]["share_of_map"]).item()
    assert left < 0.7 if scale == "caffe" else left > 0.99
    assert all(torch.equal(tensor, before[name]) for name, tensor in face.state_dict().items())
    after = [*chosen.network.neck.state_dict().values(), *chosen.network.head.state_dict().values()]
    assert all(torch.equal(one, two) for one, two in zip(head, after, strict=True)), "they are of the second part"


def test_both_networks_see_the_same_views() -> None:
    """A face net that is the expression net itself is met exactly, whatever the views."""
    own = NetworkSettings(size=24, width=4, norm="group")
    face = build(own, 3, seed=1)
    chosen = strategy(own, face, Options(), augment=AugmentSettings(rotate=10, zoom=0.1, erase=0.5))
    found = chosen.step({"labelled": crops(8, 0), "unlabelled": crops(5, 1)}, Run(chosen, 0))
    assert found["distance"].item() == 0


@pytest.mark.parametrize(
    ("own", "wanted"), [((16, 4), (16, 4)), ((16, 4), (32, 4)), ((16, 3), (16, 7)), ((16, 7), (8, 3)), ((4, 1), (4, 5))]
)
def test_a_map_is_brought_to_the_size_of_another(own: tuple[int, int], wanted: tuple[int, int]) -> None:
    sizes = [torch.Size([1, channels, side, side]) for channels, side in (own, wanted)]
    adapter, x = Adapter(*sizes), torch.randn(2, own[0], own[1], own[1])
    found = adapter(x)
    assert found.shape[1:] == sizes[1][1:]
    if own == wanted:
        assert torch.equal(found, x)
        assert not list(adapter.parameters())


def test_the_first_part_needs_no_labels_and_the_second_trains_all(train_toy, toy, monkeypatch) -> None:
    original, seen = FaceNet2ExpNet.step, {}

    def watched(self, batches, run):
        found = original(self, batches, run)
        seen[run.phase] = ({n: p.clone() for n, p in self.network.state_dict().items()}, list(batches), set(found))
        assert not any(name.startswith("_face") for name in self.state_dict())
        return found

    monkeypatch.setattr(FaceNet2ExpNet, "step", watched)
    sets = {"labelled": toy(60, 0), "unlabelled": toy(50, 5), "mined": toy(40, 6)}
    options = Options(face=NetworkSettings(width=8, features={"stage3": 2}), first_epochs=2, rate=1e-3, deviation=0.02)
    network = {"norm": "group", "feature_dim": 64}
    trained, folder = train_toy(
        "run", strategy=facenet2expnet, options=options, sets=sets, network=network, select="last"
    )
    first, second = seen["regression"][0], seen["classification"][0]
    assert {row["phase"] for row in trained.fitted.history} == {1, 2}
    assert first["neck.0.weight"].std().item() == pytest.approx(0.02, rel=0.1)
    assert all(not torch.equal(second[name], tensor) for name, tensor in first.items())
    assert seen["classification"][2] == {"loss", "labelled", "mined"}
    assert seen["regression"][1] == ["labelled", "unlabelled", "mined"]
    assert seen["classification"][1] == ["labelled", "mined"], "faces without a label are not even read"
    rows = trained.fitted.history
    assert rows[1]["train_share_of_map"] < rows[0]["train_share_of_map"]
    assert load_file(folder / "weights.safetensors").keys() == second.keys(), "the checkpoint is any other's"


def test_the_face_net_may_be_another_recipes_model(train_toy, toy, monkeypatch) -> None:
    _, model = train_toy("face", network={"width": 8}, select="last")
    original, seen = FaceNet2ExpNet._regress, []

    def watched(self, batches, run):
        x = Preprocessing(size=24).apply(batches["labelled"].images)
        with torch.no_grad():
            maps = self.adapter(stage_map(self.network, x)), stage_map(load_checkpoint(model).model, x)
        found = original(self, batches, run)
        seen.append((found["distance"].item(), (maps[0] - maps[1]).square().sum().item() / (2 * len(x))))
        return found

    monkeypatch.setattr(FaceNet2ExpNet, "_regress", watched)
    still = {"augment": {"flip": 0, "translate": 0}, "network": {"norm": "group"}, "epochs": 1}
    sets, own = {"labelled": toy(32, 0)}, {"face": model}
    train_toy("run", strategy=facenet2expnet, sets=sets, checkpoints=own, **still)
    assert len(seen) == 2
    assert all(found == pytest.approx(by_hand, rel=1e-4) for found, by_hand in seen)


FOLDER = Path("data/faces/studio/train")


@pytest.mark.parametrize(
    ("options", "sources", "settings", "told"),
    [
        ({}, {}, {}, "no face net to learn from: set the option face_weights, or name models in the source face"),
        ({"face_weights": {"name": "dlib_face"}}, {"face": Path("models/final/face")}, {}, "two face nets: leave out"),
        (
            {"face_weights": {"path": "a"}, "face": {"features": {"stage1": 1, "stage2": 1}}},
            {},
            {},
            "the option face: one",
        ),
        (
            {"face_weights": {"path": "a"}},
            {},
            {"network": {"features": {"stage1": 1, "stage2": 1}}},
            "network: one stage",
        ),
    ],
)
def test_a_recipe_that_cannot_work_is_refused_before_it_does(options, sources, settings, told) -> None:
    named = {"labelled": FOLDER, **sources}
    deps = tuple([*named.values(), FOLDER, FOLDER][:3])
    recipe = RecipeSettings(
        strategy="facenet2expnet", sources=named, deps=deps, overrides={"options": options, **settings}
    )
    with pytest.raises(ConfigError, match=rf"^recipes\.fn \(facenet2expnet\): {re.escape(told)}[^\n]*$"):
        train_final.settle(train_final.Config(), recipe, recipe="fn", classes=CLASSES)


@pytest.mark.parametrize("values", [{"rate": 0}, {"first_epochs": -1}, {"face": {"name": "small", "wide": 1}}])
def test_options_that_do_not_fit_are_one_line(values) -> None:
    with pytest.raises(ConfigError, match=r"^options: [^\n]+$"):
        validate(Options, values, where="options")
