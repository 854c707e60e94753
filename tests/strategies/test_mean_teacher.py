"""Mean Teacher, Pseudo-Label, FixMatch: their limit is the supervised strategy; the teacher is the average by hand."""

import copy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional

from fer_pipeline.networks.preprocessing import Preprocessing
from fer_pipeline.strategies import fixmatch, mean_teacher, pseudo_label, supervised
from fer_pipeline.strategies.mean_teacher import MeanTeacher, Options
from fer_pipeline.training.averaging import averaged_copy
from fer_pipeline.training.strategy import BuildContext
from tests.strategies.driven import SIZE, crops, driven, strategy_of


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


@pytest.mark.parametrize("step", [0, 2, 4, 9])
@pytest.mark.parametrize("strategy", [mean_teacher, pseudo_label])
def test_the_loss_by_hand_with_mined_faces_and_a_rising_weight(strategy, step: int) -> None:
    """One mean over all faces with labels; the weight rises over 4 of 10 steps; the threshold divides the pool."""
    own, mined = crops(6, 0), crops(3, 2)
    truth = torch.tensor([-1, 0, 0, 0, 1, 1, 1, 2, 2, 2])
    pool = crops(10, 1, truth=truth)
    reference = strategy_of(strategy, strategy.Options(), norm="group")
    x = Preprocessing(size=SIZE).apply(pool.images)
    if strategy is mean_teacher:
        options, network = Options(weight=3.0), reference.student
        with torch.no_grad():
            for parameter in reference.teacher.parameters():
                parameter.mul_(1.5)
        of_pool = (network(x).softmax(1) - reference.teacher(x).softmax(1)).square().mean()
    else:
        network = reference.network
        confidence, guess = network(x).detach().softmax(1).max(1)
        options = pseudo_label.Options(weight=3.0, threshold=float(confidence.sort().values[5]))
        chosen_faces = confidence > options.threshold
        assert int(chosen_faces.sum()) == 4
        of_pool = functional.cross_entropy(network(x), guess, reduction="none")[chosen_faces].sum() / 10
    faces = torch.cat([Preprocessing(size=SIZE).apply(one.images) for one in (own, mined)])
    supervised = functional.cross_entropy(network(faces), torch.cat([own.labels, mined.labels]))
    weight = 3.0 * min(1, step / 4)
    chosen = strategy_of(strategy, options, norm="group")
    if strategy is mean_teacher:
        chosen.teacher.load_state_dict(reference.teacher.state_dict())
    found = chosen.step({"labelled": own, "unlabelled": pool, "mined": mined}, driven(chosen, step=step))
    assert float(found["weight"]) == pytest.approx(weight)
    assert float(found["loss"].detach()) == pytest.approx(float((supervised + weight * of_pool).detach()), rel=1e-5)
    if strategy is pseudo_label:
        known = chosen_faces & (truth >= 0)
        shares = {
            "selected": 4,
            "selected_known": int(known.sum()),
            "selected_right": int((guess == truth)[known].sum()),
        }
        assert {name: 10 * float(found[name]) for name in shares} == pytest.approx(shares)


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
        before = copy.deepcopy(student.state_dict())
        found = original(self, student, teacher, batch, run)
        assert all(torch.equal(tensor, before[name]) for name, tensor in student.state_dict().items())
        inputs = self.random_view(batch, run.generator("augment", "unlabelled", "student"))
        others = self.random_view(batch, run.generator("augment", "unlabelled", "teacher"))
        # The student's norms have the statistics of this batch, the teacher's those that were recorded.
        student, teacher = averaged_copy(student).train(), averaged_copy(teacher).eval()
        by_hand = functional.mse_loss(student(inputs).softmax(1), teacher(others).softmax(1))
        differences.append((float(found.detach()), float(by_hand)))
        return found

    monkeypatch.setattr(BuildContext, "consistency", watched)
    sets = {"labelled": toy(60, 0), "unlabelled": toy(50, 5)}
    train_toy("run", strategy=mean_teacher, sets=sets, epochs=1, select="last")
    assert all(found > 0 for found, _ in differences)
    for found, by_hand in differences:
        assert found == pytest.approx(by_hand, rel=1e-4)
