"""Mean Teacher, Pseudo-Label, FixMatch: their limit is the supervised strategy; the teacher is the average by hand."""

import copy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional

from fer_pipeline.strategies import fixmatch, mean_teacher, pseudo_label, supervised
from fer_pipeline.strategies.mean_teacher import MeanTeacher, Options
from fer_pipeline.training.averaging import averaged_copy
from fer_pipeline.training.strategy import BuildContext


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "weights.safetensors")


@pytest.mark.parametrize("norm", ["batch", "group"])
@pytest.mark.parametrize(
    ("strategy", "options"),
    [
        (mean_teacher, {"weight": 0.0, "keep": "student"}),
        (pseudo_label, {"threshold": 1.0}),
        (pseudo_label, {"weight": 0.0, "threshold": 0.0}),
        (fixmatch, {"threshold": 1.5, "joint": False}),
    ],
)
def test_the_limiting_case_is_supervised_bit_for_bit(train_toy, toy, strategy, options, norm: str) -> None:
    settings = {"network": {"norm": norm, "dropout": 0.3}, "epochs": 3, "balance": "weights"}
    alone, plain = train_toy("plain", options=supervised.Options(smoothing=0.1), **settings)
    sets = {"labelled": toy(60, 0), "unlabelled": toy(50, 5)}
    chosen = strategy.Options(smoothing=0.1, **options)
    limited, other = train_toy("limit", strategy=strategy, options=chosen, sets=sets, **settings)
    expected, found = weights(plain), weights(other)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name
    assert [row["train_labelled"] for row in limited.fitted.history] == [
        row["train_labelled"] for row in alone.fitted.history
    ]


@pytest.mark.parametrize(
    ("strategy", "options"),
    [(mean_teacher, {"keep": "student", "weight": 5.0, "ramp": 0.0}), (pseudo_label, {"threshold": 0.0, "ramp": 0.0})],
)
def test_with_weight_the_pool_matters(train_toy, toy, strategy, options) -> None:
    results = [
        weights(
            train_toy(
                f"run{seed}",
                strategy=strategy,
                options=strategy.Options(**options),
                sets={"labelled": toy(60, 0), "unlabelled": toy(50, seed)},
                select="last",
            )[1]
        )
        for seed in (5, 6)
    ]
    assert any(not torch.equal(results[0][name], tensor) for name, tensor in results[1].items())


def test_the_teacher_is_the_average_by_hand(train_toy, toy, monkeypatch) -> None:
    """a ← d a + (1 - d) w with d = min(decay, 1 - 1 / (t + 1)), t from 1; buffers are copied."""
    original, seen = MeanTeacher.step, []

    def watched(self, batches, run):
        before = copy.deepcopy(self.teacher.state_dict())
        losses = original(self, batches, run)
        seen.append(
            (run.step, before, copy.deepcopy(self.student.state_dict()), copy.deepcopy(self.teacher.state_dict()))
        )
        return losses

    monkeypatch.setattr(MeanTeacher, "step", watched)
    sets = {"labelled": toy(60, 0), "unlabelled": toy(50, 5)}
    _, folder = train_toy("run", strategy=mean_teacher, options=Options(decay=0.8), sets=sets, select="last")
    assert [step for step, *_ in seen] == list(range(12))
    for step, before, student, after in seen:
        decay = min(0.8, 1 - 1 / (step + 2))
        for name, tensor in after.items():
            if "running" in name or "num_batches" in name:
                assert torch.equal(tensor, student[name]), name
            else:
                expected = decay * before[name].double() + (1 - decay) * student[name].double()
                torch.testing.assert_close(tensor.double(), expected, rtol=1e-5, atol=1e-7)
    assert all(torch.equal(tensor, seen[-1][3][name]) for name, tensor in weights(folder).items())


def test_the_consistency_is_between_student_and_teacher(train_toy, toy, monkeypatch) -> None:
    """A known library compares the teacher with itself; then the loss is 0 however far the two are apart."""
    original, differences = BuildContext.consistency, []

    def watched(self, student, teacher, batch, run):
        with torch.no_grad():
            for parameter in teacher.parameters():
                parameter.mul_(1.5)
        found = original(self, student, teacher, batch, run)
        inputs = self.random_view(batch, run.generator("augment", "unlabelled", "student"))
        others = self.random_view(batch, run.generator("augment", "unlabelled", "teacher"))
        student, teacher = averaged_copy(student).eval(), averaged_copy(teacher).eval()
        by_hand = functional.mse_loss(student(inputs).softmax(1), teacher(others).softmax(1))
        differences.append((float(found.detach()), float(by_hand)))
        return found

    monkeypatch.setattr(BuildContext, "consistency", watched)
    sets = {"labelled": toy(60, 0), "unlabelled": toy(50, 5)}
    train_toy("run", strategy=mean_teacher, sets=sets, epochs=1, select="last")
    assert all(found > 0 for found, _ in differences)
    for found, by_hand in differences:
        assert found == pytest.approx(by_hand, rel=1e-4)
