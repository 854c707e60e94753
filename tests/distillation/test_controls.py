"""Trainings on images alone: figures by hand, a set that teaches all and one that teaches nothing, and what is said."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from fer_pipeline.artifacts.distilled import Controls
from fer_pipeline.distillation.controls import compare_with_controls, resample, train_by_steps, train_plainly
from fer_pipeline.distillation.start import InitialWeights, Synthetic, start_synthetic, trainable

QUICK = {"draws": 2, "steps": 40, "bootstrap": 200, "learning_rate": 0.3}


def _linear() -> dict[str, InitialWeights]:
    """Soft-max regression on mean colours: quick, and surely able to learn them."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 3))
    weights = trainable(network)
    draw = lambda kind, number: weights  # noqa: E731
    return {"initial": InitialWeights(network, True, draw), "fresh": InitialWeights(network, False, draw)}  # pyright: ignore


def test_resampling_by_hand() -> None:
    """Two classes of 2 and 1 faces: the mean over classes of each draw, and replicates with weights that are given."""
    right = np.array([[True, False, True], [True, True, False]])
    labels, weights = np.array([0, 0, 1]), np.array([[2.0, 0.0, 1.0], [0.0, 2.0, 0.0]])
    estimate, replicates = resample(right, labels, weights, seed=0)
    assert estimate == pytest.approx(((0.5 + 1) / 2 + (1 + 0) / 2) / 2)
    assert set(np.round(replicates, 6)[:1]) <= {
        1.0,
        0.75,
        0.5,
    }  # draws 1 and 1, 1 and 2, 2 and 2 of the first replicate
    assert set(np.round(replicates, 6)[1:]) <= {0.0, 0.5, 1.0}  # the second lacks class 1, which is left out


def test_a_plain_training_without_augmentation_is_adamw(make_problem) -> None:
    problem = make_problem(start="real", per_class=2, augment=None, controls={"steps": 1, "learning_rate": 0.01})
    synthetic = start_synthetic(problem.settings, problem.source, problem.preprocessing, seed=3, device=problem.device)
    start = problem.initial.draw("control", 0)
    found = train_plainly(problem, problem.initial, start, synthetic, seed=0)
    network = problem.initial.network
    with torch.no_grad():
        for name, value in start.items():
            network.get_parameter(name).copy_(value.clone())
    before = {name: value.clone() for name, value in start.items()}
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.01)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(0))
    torch.nn.functional.cross_entropy(network(synthetic.images[0][order]), synthetic.labels[0][order]).backward()
    optimizer.step()
    for name, value in network.named_parameters():
        torch.testing.assert_close(found[name], value.detach(), rtol=1e-4, atol=1e-6)
        assert not torch.equal(found[name], before[name]) or "bias" in name


def test_real_images_of_a_clear_kind_beat_noise_and_other_labels_but_not_themselves(make_problem) -> None:
    """Coloured classes: a set of real images teaches them, noise and permuted labels do not, other real ones do too."""
    problem = replace(make_problem(start="real", per_class=4, augment=None, controls=QUICK), **_linear())
    synthetic = start_synthetic(problem.settings, problem.source, problem.preprocessing, seed=3, device=problem.device)
    content = compare_with_controls(problem, [synthetic], has_step_sizes=False)
    controls = Controls.model_validate(content)
    assert content == compare_with_controls(problem, [synthetic], has_step_sizes=False)
    assert (controls.heldout_images, controls.heldout_persons, controls.start) == (12, 2, "theta_0")
    assert {row.start for row in controls.trainings} == {"theta_0", "fresh"}
    assert controls.best("theta_0", "distilled").mean_class_accuracy.mean > 0.9
    assert controls.best("theta_0", "permuted_labels").mean_class_accuracy.mean < 0.2
    assert {row.against for row in controls.unbeaten("theta_0")} == {"random_real"}
    assert "they do not beat random real (" in controls.sentence("theta_0")
    worse = Synthetic(synthetic.images, synthetic.raw_sizes, (synthetic.labels + 1) % 3)
    lost = Controls.model_validate(compare_with_controls(problem, [worse], has_step_sizes=True))
    assert {row.training for row in lost.trainings} == {"steps", "plain"}
    assert {row.against for row in lost.unbeaten("theta_0")} >= {"random_real"}


def test_steps_of_the_distillation_use_the_learned_sizes(make_problem) -> None:
    problem = make_problem(start="real", per_class=2, epochs=1)
    synthetic = start_synthetic(problem.settings, problem.source, problem.preprocessing, seed=3, device=problem.device)
    none = Synthetic(synthetic.images, torch.full((1,), -200.0), synthetic.labels)  # softplus: a size of 0
    start = problem.initial.draw("control", 0)
    assert all(
        torch.equal(value, start[name])
        for name, value in train_by_steps(problem, problem.initial, start, synthetic, none).items()
    )
    moved = train_by_steps(problem, problem.initial, start, none, synthetic)
    assert not torch.equal(moved["head.weight"], start["head.weight"])


def test_nothing_held_out_is_said(make_problem) -> None:
    problem = make_problem()
    empty = problem.heldout.take(np.array([], dtype=int))
    content = compare_with_controls(replace(problem, heldout=empty), [], has_step_sizes=True)
    assert Controls.model_validate(content).reason.startswith("no image of the source is held out")
