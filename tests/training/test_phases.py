"""A made-up strategy that uses the whole contract: phases, two learning rates, gradients as values, relabelling."""

import copy
import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

from fer_pipeline.core.progress import Progress
from fer_pipeline.core.settings import Settings
from fer_pipeline.networks.backbones import build as build_network
from fer_pipeline.networks.model import ExpressionNet
from fer_pipeline.networks.preprocessing import Preprocessing
from fer_pipeline.networks.settings import NetworkSettings
from fer_pipeline.training.batches import Batch
from fer_pipeline.training.context import StepContext
from fer_pipeline.training.losses import smoothed_cross_entropy, weighted_mean
from fer_pipeline.training.settings import Constant, Sgd
from fer_pipeline.training.shares import ignore_steps
from fer_pipeline.training.sources import Faces, Source
from fer_pipeline.training.strategy import BuildContext, Optimization, Phase, Strategy
from fer_pipeline.training.worker import Worker, make_worker, run_group


class Options(Settings):
    """How the made-up strategy goes."""

    by_gradients: bool = False  # gradients and apply in the place of update
    stop_after: int | None = None  # epochs of the second phase


def sources(options: Options) -> dict[str, Source]:
    """A labelled stream and the pool."""
    return {"labelled": Faces(required=True), "unlabelled": Faces(None, required=True)}


def build(options: Options, context: BuildContext) -> "MadeUp":
    """The strategy."""
    return MadeUp(options, context)


class MadeUp(Strategy):
    """First the head alone, then all with two rates; after each epoch the pool is labelled anew."""

    def __init__(self, options: Options, context: BuildContext) -> None:
        super().__init__()
        self.options, self.context = options, context
        self.network = context.network()
        self.judge, self.judge_view = context.other_network("judge", NetworkSettings(width=8, norm="group"))
        self.judge.requires_grad_(False)
        self.register_buffer("targets", torch.full((context.images["unlabelled"], context.num_classes), -1.0))
        self.register_buffer("epochs", torch.zeros((), dtype=torch.int64))

    def phases(self) -> Sequence[Phase]:
        rates = {"backbone": 0.005, "head": 0.05}
        both = {
            name: Optimization(getattr(self.network, name), Sgd(learning_rate=rate), Constant(name="constant"))
            for name, rate in rates.items()
        }
        head = {"head": Optimization(self.network.head)}
        return [Phase("none", head, epochs=0), Phase("head", head, epochs=2), Phase("all", both, steps=7)]

    def batch_sizes(self, batch: int, images: Mapping[str, int]) -> dict[str, int]:
        return {"labelled": batch, "unlabelled": batch // 2}

    def step(self, batches: Mapping[str, Batch], run: StepContext) -> dict[str, Tensor]:
        labelled, pool = batches["labelled"], batches["unlabelled"]
        views = {name: self.context.random_view(batch, run.generator(name)) for name, batch in batches.items()}
        supervised = weighted_mean(smoothed_cross_entropy(self.network(views["labelled"]), labelled.labels))
        targets = self.targets[pool.rows]
        confident = (targets.max(1).values > 0.36).float()  # at first none
        pseudo = smoothed_cross_entropy(self.network(views["unlabelled"]), targets.argmax(1))
        judged = self.judge(self.judge_view.plain(labelled.images)).mean().detach()
        loss = supervised + weighted_mean(pseudo, confident)
        if self.options.by_gradients:
            names = list(run.optimizers)
            values = [run.gradients(loss, name, retain_graph=name != names[-1]) for name in names]
            for name, gradients in zip(names, values, strict=True):
                run.apply(gradients, name)
        else:
            run.update(loss)
        rates = {f"rate_{name}": torch.tensor(run.rate(name)) for name in run.optimizers}
        return {"loss": loss, "confident": weighted_mean(confident), "judged": judged, **rates}

    def end_epoch(self, run: StepContext, validation: Mapping[str, float]) -> bool:
        self.targets.copy_(run.predict("unlabelled", self.network))
        self.epochs += run.phase == "all"
        return self.options.stop_after is not None and int(self.epochs) >= self.options.stop_after


ITSELF: Any = SimpleNamespace(Options=Options, sources=sources, build=build)


class PulledError(Exception):
    """The plug."""


def unplug(after: int) -> Callable[[int], None]:
    done = 0

    def advance(steps: int, **more: int) -> None:
        nonlocal done
        done += steps
        if steps and done >= after:
            raise PulledError

    return advance


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def train_made_up(train_toy, toy):
    sets = {"labelled": toy(60, 0), "unlabelled": toy(41, 5)}
    return partial(train_toy, strategy=ITSELF, sets=sets, batch=16)


def test_phases_have_their_own_length_rates_and_optimisers(train_made_up) -> None:
    trained, _ = train_made_up("run", optimizer={"learning_rate": 0.02}, schedule={"name": "constant"})
    rows = trained.fitted.history
    assert [(row["epoch"], row["phase"], row["steps"]) for row in rows] == [
        (1, 2, 4),
        (2, 2, 8),
        (3, 3, 12),
        (4, 3, 15),
    ]
    assert [row["train_rate_head"] for row in rows] == pytest.approx([0.02, 0.02, 0.05, 0.05])
    assert [row.get("train_rate_backbone") for row in rows[2:]] == pytest.approx([0.005, 0.005])
    assert trained.fitted.steps == 15
    assert trained.fitted.epoch > 2, "the epoch is chosen in the last phase"


def test_a_phase_reads_the_streams_that_it_names(train_toy, toy) -> None:
    """Nothing is seen in a phase that does not read it: 15 steps of 16 labelled faces, 7 of 8 faces of the pool."""
    seen: dict[str, set[str]] = {}

    class Reading(MadeUp):
        def phases(self) -> Sequence[Phase]:
            nothing, first, second = super().phases()
            return [nothing, replace(first, streams=("labelled", "unknown")), second]

        def step(self, batches: Mapping[str, Batch], run: StepContext) -> dict[str, Tensor]:
            seen[run.phase] = {*batches}
            return super().step({"unlabelled": self.last, **batches} if "unlabelled" not in batches else batches, run)

        last = Batch(
            torch.zeros(8, 24, 24, 3, dtype=torch.uint8), torch.zeros(8).long(), torch.arange(8), prepared=False
        )

    strategy: Any = SimpleNamespace(Options=Options, sources=sources, build=Reading)
    sets = {"labelled": toy(60, 0), "unlabelled": toy(41, 5)}
    trained, _ = train_toy("run", strategy=strategy, sets=sets, batch=16)
    assert seen == {"head": {"labelled"}, "all": {"labelled", "unlabelled"}}
    assert trained.times_seen == {"labelled": 15 * (16 / 60), "unlabelled": 7 * (8 / 41)}


def test_an_empty_mask_is_no_nan_and_the_pool_is_labelled_after_an_epoch(train_made_up) -> None:
    rows = train_made_up("run")[0].fitted.history
    assert rows[0]["train_confident"] == 0
    assert np.isfinite(rows[0]["train_loss"])
    assert rows[-1]["train_confident"] > 0


def test_the_first_phase_leaves_the_backbone_alone(train_made_up, monkeypatch) -> None:
    original, seen = MadeUp.step, []

    def watched(self, batches, run):
        losses = original(self, batches, run)
        seen.append((run.phase, [p.detach().clone() for p in self.network.backbone.parameters()]))
        return losses

    monkeypatch.setattr(MadeUp, "step", watched)
    train_made_up("run")
    first = [parameters for phase, parameters in seen if phase == "head"]
    assert all(torch.equal(a, b) for a, b in zip(first[0], first[-1], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first[-1], seen[-1][1], strict=True))


@pytest.mark.parametrize("stop_after", [None, 1])
def test_a_pause_changes_no_byte_wherever_it_falls(train_made_up, stop_after: int | None) -> None:
    """Also on the border of the phases (8), before and after the first step of the second, and at the end (15)."""
    options = Options(stop_after=stop_after)
    whole = contents(train_made_up("whole", options=options)[1])
    for step in (3, 4, 7, 8, 9) if stop_after else (3, 4, 7, 8, 9, 13, 15):
        paused = f"paused-{step}"
        with pytest.raises(PulledError):
            train_made_up(paused, options=options, advance=unplug(step))
        torch.manual_seed(99)
        assert contents(train_made_up(paused, options=options)[1]) == whole, f"paused after step {step}"


def test_a_training_that_stopped_early_stays_stopped(train_made_up, tmp_path: Path) -> None:
    options = Options(stop_after=1)
    trained, folder = train_made_up("run", options=options)
    assert trained.fitted.steps == 12
    before = contents(folder)
    for path in folder.rglob("*"):  # killed between its last epoch and its checkpoint
        if path.is_file():
            path.unlink()
    again, _ = train_made_up("run", options=options)
    assert again.fitted.steps == 12
    assert contents(folder) == before


def test_gradients_as_values_are_those_of_update(train_made_up) -> None:
    settings = {"clip": 0.5, "select": "last"}
    by_update = train_made_up("update", options=Options(), **settings)[1]
    by_values = train_made_up("values", options=Options(by_gradients=True), **settings)[1]
    one, two = (load_file(folder / "weights.safetensors") for folder in (by_update, by_values))
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-5, atol=1e-6)


class Scaled:
    """Fabric's view of one process in 16-mixed precision, played on the CPU: losses are scaled, gradients too large."""

    device, global_rank, world_size, is_global_zero = torch.device("cpu"), 0, 1, True

    def __init__(self, scale: float) -> None:
        self._precision = SimpleNamespace(scaler=torch.amp.GradScaler("cpu", init_scale=scale))

    def backward(self, loss: Tensor) -> None:
        self._precision.scaler.scale(loss).backward()


def context_of(network: ExpressionNet, fabric: Any) -> StepContext:
    run = StepContext(Worker(fabric), {}, Preprocessing(size=24), seed=0, clip=None, steps_per_epoch=1)
    run.modules = {"main": network}
    run.optimizers = {"main": SimpleNamespace(optimizer=torch.optim.SGD(network.parameters(), lr=0.1))}
    return run


def test_gradients_are_free_of_the_loss_scale_and_an_overflow_is_no_step() -> None:
    network = build_network(NetworkSettings(size=24, width=4), 3, seed=1)
    inputs, labels = torch.randn(6, 3, 24, 24), torch.arange(6) % 3

    def loss() -> Tensor:
        return smoothed_cross_entropy(network(inputs), labels).mean()

    plain = torch.autograd.grad(loss(), list(network.parameters()))
    run = context_of(network, Scaled(1024.0))
    found = run.gradients(loss())
    assert all(gradient.dtype == torch.float32 for gradient in found)
    for one, two in zip(found, plain, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-6)

    before = copy.deepcopy(network.state_dict())
    run.apply(found)
    for (name, parameter), gradient in zip(network.named_parameters(), found, strict=True):
        torch.testing.assert_close(parameter.detach(), before[name] - 0.1 * gradient)

    after = [parameter.detach().clone() for parameter in network.parameters()]
    huge = run.gradients(loss() * 1e38)
    assert run.worker.fabric._precision.scaler.get_scale() == 512.0
    run.apply(huge)
    for parameter, expected in zip(network.parameters(), after, strict=True):
        assert torch.equal(parameter.detach(), expected)


def test_the_loss_scale_grows_where_gradients_alone_are_asked_for() -> None:
    """No optimiser steps by the scaler then, so nothing else would ever raise a scale that one overflow lowered."""
    layer = torch.nn.Linear(2, 1)
    run = context_of(layer, Scaled(1024.0))
    scaler = run.worker.fabric._precision.scaler
    scaler._growth_interval = 2
    scales = []
    for factor in (1e38, 1.0, 1.0, 1.0, 1.0):
        run.gradients(layer(torch.ones(3, 2)).sum() * factor)
        scales.append(scaler.get_scale())
    assert scales == [512.0, 512.0, 1024.0, 1024.0, 2048.0]


def test_two_optimisers_take_one_loss_scale() -> None:
    """Fabric's step changes the scale after each optimiser: the second would be unscaled by another one."""
    weights = {name: torch.nn.Linear(1, 1, bias=False) for name in ("one", "two", "unused")}
    for layer in weights.values():
        torch.nn.init.zeros_(layer.weight)
    run = context_of(weights["one"], Scaled(1024.0))
    run.worker.fabric._precision.scaler._growth_interval = 1
    run.modules = dict(weights)
    run.optimizers = {
        name: SimpleNamespace(optimizer=optimizer, zero_grad=optimizer.zero_grad)
        for name, layer in weights.items()
        for optimizer in [torch.optim.SGD(layer.parameters(), lr=1.0)]
    }
    run.update(weights["one"](torch.ones(1, 1)).sum() + weights["two"](torch.ones(1, 1)).sum())
    assert [layer.weight.item() for layer in weights.values()] == [-1.0, -1.0, 0.0]
    assert run.worker.fabric._precision.scaler.get_scale() == 2048.0


def test_a_second_update_of_a_step_sees_the_first() -> None:
    layer = torch.nn.Linear(4, 1, bias=False)
    run = context_of(layer, make_worker("cpu", "32-true").fabric)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    run.optimizers = {"main": SimpleNamespace(optimizer=optimizer, zero_grad=optimizer.zero_grad, step=optimizer.step)}
    with torch.autocast("cpu", torch.bfloat16):
        before = layer(torch.ones(1, 4))
        run.update(before.float().sum())
        after = layer(torch.ones(1, 4))
    assert float((after - before).detach()) == pytest.approx(-4.0, abs=0.1)


@pytest.mark.parametrize("factor", [1.0, 50.0, 1e6])
def test_the_gradient_of_an_empty_mask_is_zero(factor: float) -> None:
    values = torch.ones(3, requires_grad=True)
    (factor * weighted_mean(values, torch.zeros(3))).backward()
    assert values.grad is not None
    assert values.grad.tolist() == [0.0] * 3


def test_gradients_under_autocast_are_float32() -> None:
    network = build_network(NetworkSettings(size=24, width=4, norm="group"), 3, seed=1)
    fabric = make_worker("cpu", "32-true").fabric
    run = context_of(network, fabric)
    torch.manual_seed(0)
    inputs, labels = torch.randn(6, 3, 24, 24), torch.arange(6) % 3
    with torch.autocast("cpu", torch.bfloat16):
        found = run.gradients(smoothed_cross_entropy(network(inputs), labels).mean())
    plain = run.gradients(smoothed_cross_entropy(network(inputs), labels).mean())
    assert all(gradient.dtype == torch.float32 for gradient in found)
    one, two = (torch.cat([gradient.flatten() for gradient in gradients]) for gradients in (found, plain))
    assert 0.99 < functional.cosine_similarity(one, two, dim=0) < 1, "the forward pass was in bfloat16"


GROUP = """
import runpy
from types import SimpleNamespace

def work(toy_world, made_up, root, name, choices, worker, advance):
    world, strategy = runpy.run_path(toy_world), SimpleNamespace(**runpy.run_path(made_up))
    sets = {"labelled": world["bands"](61, 0), "unlabelled": world["bands"](41, 2)}
    steps = []
    for number, options in enumerate(choices):
        trained, _ = world["train_in"](
            root, f"{name}-{number}", sets=sets, strategy=strategy, options=strategy.Options(**options),
            network={"norm": "group"}, device=worker, advance=advance, augment={"flip": 0, "translate": 0}, batch=16,
        )
        steps.append(trained.fitted.steps)
    return steps, worker.world_size
"""


def test_two_processes_train_the_network_of_one(tmp_path: Path, monkeypatch) -> None:
    """Gradients are averaged, as losses and as values, predictions gathered, and both stop at the same epoch."""
    (tmp_path / "works_of_phases.py").write_text(GROUP)
    monkeypatch.syspath_prepend(tmp_path)
    works: ModuleType = importlib.import_module("works_of_phases")
    here = Path(__file__)
    choices = [{"stop_after": 1}, {"by_gradients": True}]
    work = partial(works.work, str(here.parents[1] / "toy_world.py"), str(here), tmp_path)
    both = partial(work, "two", choices)
    progress = Progress("train", 0, "steps")
    assert run_group(both, ("cpu", "cpu"), precision="auto", advance=progress) == ([12, 15], 2)
    assert progress.done == progress.total == 12 + 15
    assert work("one", choices, make_worker("cpu", "auto"), ignore_steps) == ([12, 15], 1)
    for number in range(len(choices)):
        one, two = (load_file(tmp_path / f"{name}-{number}" / "weights.safetensors") for name in ("one", "two"))
        for name, tensor in one.items():
            torch.testing.assert_close(two[name], tensor, rtol=1e-3, atol=1e-5)
