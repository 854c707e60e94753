"""Losses, schedules, averages, precision and validation against hand-sized truths."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional

from fer_pipeline.core.errors import ConfigError
from fer_pipeline.core.settings import validate as validate_settings
from fer_pipeline.networks.backbones import build
from fer_pipeline.networks.devices import deterministic
from fer_pipeline.networks.preprocessing import Preprocessing
from fer_pipeline.networks.settings import NetworkSettings
from fer_pipeline.training.averaging import averaged_copy, update_average
from fer_pipeline.training.losses import balancing_weights, smoothed_cross_entropy, weighted_mean
from fer_pipeline.training.optimizers import build_optimizer, rate_factor
from fer_pipeline.training.settings import Constant, Cosine, Step, TrainingSettings
from fer_pipeline.training.validation import better, validate
from fer_pipeline.training.worker import choose_precision, make_worker


def test_no_smoothing_is_torchs_cross_entropy() -> None:
    logits, labels = torch.randn(9, 4, dtype=torch.float64), torch.randint(0, 4, (9,))
    expected = functional.cross_entropy(logits.float(), labels, reduction="none")
    torch.testing.assert_close(smoothed_cross_entropy(logits, labels), expected)


def test_smoothing_is_equation_2_by_hand() -> None:
    logits, labels = torch.tensor([[1.0, 2.0, 0.5], [0.0, 0.0, 3.0]]), torch.tensor([1, 0])
    log_p = functional.log_softmax(logits, 1)
    q = torch.tensor([[0.05, 0.9, 0.05], [0.9, 0.05, 0.05]])
    torch.testing.assert_close(smoothed_cross_entropy(logits, labels, smoothing=0.1), -(q * log_p).sum(1))


def test_balancing_weights_make_classes_count_alike() -> None:
    weights = balancing_weights(np.array([10, 30, 0, 20]))
    assert weights.tolist() == pytest.approx([2.0, 60 / 90, 0.0, 1.0])
    labels = torch.tensor([0] * 10 + [1] * 30 + [3] * 20)
    values = torch.arange(60.0)
    by_class = [values[labels == index].mean() for index in (0, 1, 3)]
    torch.testing.assert_close(weighted_mean(values, weights[labels]), torch.stack(by_class).mean())


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (Cosine(), {0: 1.0, 50: 0.5, 100: 0.0}),
        (Cosine(floor=0.2), {0: 1.0, 50: 0.6, 100: 0.2}),
        (Cosine(warmup_epochs=2), {0: 0.05, 9: 0.5, 19: 1.0, 20: 1.0, 60: 0.5}),
        (Step(name="step", every=3, factor=0.1), {0: 1.0, 29: 1.0, 30: 0.1, 59: 0.1, 60: 0.01}),
        (Constant(name="constant", warmup_epochs=1), {0: 0.1, 9: 1.0, 99: 1.0}),
    ],
)
def test_rates_by_hand(schedule, expected) -> None:
    for step, factor in expected.items():
        assert rate_factor(schedule, step, total_steps=100, steps_per_epoch=10) == pytest.approx(factor)


def test_cosine_is_torchs() -> None:
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = build_optimizer([parameter], TrainingSettings().optimizer)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=40)
    for step in range(40):
        expected = optimizer.param_groups[0]["lr"]
        assert 0.05 * rate_factor(Cosine(), step, total_steps=40, steps_per_epoch=4) == pytest.approx(expected)
        optimizer.step()
        theirs.step()


def test_frozen_parameters_are_not_optimised() -> None:
    frozen = torch.nn.Parameter(torch.ones(1), requires_grad=False)
    optimizer = build_optimizer([frozen, torch.nn.Parameter(torch.ones(1))], TrainingSettings().optimizer)
    assert len(optimizer.param_groups[0]["params"]) == 1


def test_the_average_is_the_recurrence_by_hand() -> None:
    model = build(NetworkSettings(size=16, width=4), 2, seed=0)
    average = averaged_copy(model)
    expected = model.head.weight.detach().clone()
    for step in range(12):
        with torch.no_grad():
            model.head.weight.add_(1.0)
            model.backbone.stem[1].running_mean.add_(1.0)
        decay = min(0.5, (1 + step) / (10 + step))
        update_average(average, model, decay=decay)
        expected = decay * expected + (1 - decay) * model.head.weight.detach()
    torch.testing.assert_close(average.head.weight, expected)
    assert torch.equal(average.backbone.stem[1].running_mean, model.backbone.stem[1].running_mean)


def test_validation_is_the_plain_computation(toy) -> None:
    images = toy(300, 0)
    model = build(NetworkSettings(size=24, width=4), 3, seed=0).train()
    preprocessing = Preprocessing(size=24)
    found = validate(model, images, preprocessing, ("a", "b", "c"), torch.device("cpu"))
    assert model.training
    with torch.no_grad():
        logits = model.eval()(preprocessing.apply(images.all_pixels()))
    right = logits.argmax(1) == images.labels
    recalls = [right[images.labels == index].float().mean().item() for index in range(3)]
    assert found["loss"] == pytest.approx(functional.cross_entropy(logits, images.labels).item(), rel=1e-5)
    assert found["accuracy"] == pytest.approx(right.float().mean().item())
    assert found["mean_class_accuracy"] == pytest.approx(sum(recalls) / 3)


def test_better_prefers_the_measure_then_the_loss_then_the_earlier() -> None:
    base = {"loss": 1.0, "accuracy": 0.5, "mean_class_accuracy": 0.5}
    assert better(base, None, "accuracy")
    assert better({**base, "accuracy": 0.6, "loss": 9.0}, base, "accuracy")
    assert not better({**base, "accuracy": 0.6, "loss": 9.0}, base, "loss")
    assert better({**base, "loss": 0.9}, base, "accuracy")
    assert not better(base, base, "accuracy")
    assert not better({**base, "loss": math.nan}, base, "loss")


def test_precision_falls_back_and_says_so() -> None:
    cpu = torch.device("cpu")
    assert choose_precision("auto", cpu) == ("32-true", None)
    assert choose_precision("32-true", cpu) == ("32-true", None)
    for wanted in ("16-mixed", "bf16-mixed"):
        precision, note = choose_precision(wanted, cpu)
        assert precision == "32-true"
        assert note is not None
        assert wanted in note


def test_fabric_is_quiet(capfd, recwarn) -> None:
    worker = make_worker("cpu", "auto")
    assert (worker.device.type, worker.note, worker.rank, worker.world_size) == ("cpu", None, 0, 1)
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""
    assert not [warning for warning in recwarn if "lightning" in str(warning.filename)]


def test_deterministic_gives_everything_back() -> None:
    torch.manual_seed(1)
    expected = torch.rand(2)
    torch.manual_seed(1)
    threads = torch.get_num_threads()
    with deterministic(threads=2):
        assert torch.get_num_threads() == 2
        assert torch.are_deterministic_algorithms_enabled()
        torch.manual_seed(8)
    assert torch.get_num_threads() == threads
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.equal(torch.rand(2), expected)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"epochs": 3, "steps": 3}, "set one of epochs, steps and until"),
        ({"epochs": None}, "set one of epochs, steps and until"),
        ({"optimizer": {"nesterov": True, "momentum": 0}}, "nesterov needs a momentum"),
        ({"optimizer": {"name": "adam", "momentum": 0.9}}, "momentum"),
        ({"schedule": {"every": 3}}, "every"),
        ({"augment": {"erase_area": [0.5, 0.1]}}, "erase_area must rise"),
        ({"epoch": 3}, "known keys are"),
        ({"balance": "both"}, "balance"),
    ],
)
def test_impossible_settings_are_one_line(values, words: str) -> None:
    with pytest.raises(ConfigError, match=rf"^params.yaml, x: [^\n]*{words}[^\n]*$"):
        validate_settings(TrainingSettings, values, where="params.yaml, x")
