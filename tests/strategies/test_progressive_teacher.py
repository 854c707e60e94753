"""Progressive Teacher: schedules by hand, who selects for whom, Mean Teacher as the limiting case, noise rejected."""

import copy
import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from fer_pipeline.core.errors import ConfigError, DataError
from fer_pipeline.core.settings import validate
from fer_pipeline.networks.backbones import build
from fer_pipeline.networks.checkpoints import load_checkpoint
from fer_pipeline.networks.preprocessing import Preprocessing
from fer_pipeline.networks.settings import NetworkSettings
from fer_pipeline.stages import train_final
from fer_pipeline.strategies import confidence, progressive_teacher
from fer_pipeline.strategies.progressive_teacher import (
    Options,
    ProgressiveTeacher,
    average_decay,
    consistency_weight,
    select_smallest,
    selected_share,
)
from fer_pipeline.training.augmentation import Augmentation
from fer_pipeline.training.batches import Batch
from fer_pipeline.training.context import StepContext
from fer_pipeline.training.label_noise import LabelNoise, add_noise
from fer_pipeline.training.settings import TrainingSettings
from fer_pipeline.training.sources import Checkpoints
from fer_pipeline.training.strategy import BuildContext
from fer_pipeline.training.worker import make_worker
from tests.strategies.test_supervised import PLAIN, SIZE, crops
from tests.toy_world import CLASSES


@pytest.mark.parametrize(
    ("step", "reject", "share"), [(1, 0.3, 0.999), (150, 0.3, 0.85), (300, 0.05, 0.95), (9000, 0.05, 0.95), (7, 0, 1)]
)
def test_the_selected_share_by_hand(step: int, reject: float, share: float) -> None:
    assert selected_share(step, reject=reject, reject_steps=300) == pytest.approx(share)


@pytest.mark.parametrize(
    ("step", "decay"), [(1, 0.5), (3, 0.75), (9, 0.9), (998, 998 / 999), (999, 0.999), (5000, 0.999)]
)
def test_the_factor_of_the_average_by_hand(step: int, decay: float) -> None:
    assert average_decay(step, most=0.999) == pytest.approx(decay, abs=1e-12)


@pytest.mark.parametrize(("epoch", "weight"), [(1, 0.31048), (3, 2.86505), (5, 8.70325), (6, 10), (8, 10)])
def test_the_weight_of_the_consistency_by_hand(epoch: int, weight: float) -> None:
    """exp(-125 / 36), exp(-1.25), exp(-5 / 36); what goes on after the last epoch keeps its weight."""
    assert consistency_weight(epoch, 6, most=10) == pytest.approx(weight, rel=1e-5)


def context(norm: str = "group", **changes: Any) -> BuildContext:
    """Networks of two draws, without random views."""
    networks = {
        name: build(NetworkSettings(size=SIZE, width=4, norm=norm), 3, seed=i)  # pyright: ignore[reportArgumentType]
        for i, name in enumerate("ab")
    }
    augmentation = Augmentation(PLAIN, Preprocessing(size=SIZE))
    return BuildContext(
        num_classes=3,
        make_network=lambda name: (networks["a" if name == "main" else "b"], augmentation.preprocessing),
        augmentation=augmentation,
        settings=TrainingSettings(augment=PLAIN),
        images={"labelled": 40, "unlabelled": 40},
        **changes,
    )


class Run(StepContext):
    """A step of two optimisers; the losses that it is given are kept."""

    def __init__(self, chosen: ProgressiveTeacher, *, rate: float = 0.1) -> None:
        super().__init__(
            make_worker("cpu", "32-true"), {}, Preprocessing(size=SIZE), seed=0, clip=None, steps_per_epoch=1
        )
        self.phase_steps, self.losses = 1, []
        for name, plan in chosen.phases()[0].optimizers.items():
            optimizer = torch.optim.SGD(plan.module.parameters(), lr=rate)
            self.modules[name] = plan.module
            self.optimizers[name] = SimpleNamespace(optimizer=optimizer, zero_grad=optimizer.zero_grad)

    def update(self, loss: torch.Tensor, *names: str) -> None:
        self.losses.append(loss.item())
        super().update(loss, *names)


def inputs(batch: Batch) -> torch.Tensor:
    return Preprocessing(size=SIZE).apply(batch.images)


def test_each_teacher_moves_towards_its_own_student_after_the_students_step() -> None:
    """In the first step a = 1 / 2; the first teacher is the one that is kept."""
    chosen = ProgressiveTeacher(Options(orders="shared"), context())
    before = copy.deepcopy(chosen.teachers)
    chosen.step({"labelled": crops(6, 0), "unlabelled": crops(6, 1)}, Run(chosen))
    for old, new, student in zip(before, chosen.teachers, chosen.students, strict=True):
        for one, two, three in zip(old.parameters(), new.parameters(), student.parameters(), strict=True):
            torch.testing.assert_close(two, (one + three) / 2)
    assert chosen.predictor() is chosen.teachers[0]


def test_teachers_and_students_draw_their_views_apart(monkeypatch) -> None:
    chosen, drawn = ProgressiveTeacher(Options(orders="shared"), context()), []
    original = type(chosen.context).random_view
    monkeypatch.setattr(
        type(chosen.context),
        "random_view",
        lambda self, batch, generator: (drawn.append(generator.initial_seed()), original(self, batch, generator))[1],
    )
    chosen.step({"labelled": crops(6, 0), "unlabelled": crops(6, 1)}, Run(chosen))
    assert len(drawn) == len(set(drawn)) == 2 * 2 * 2, "two pairs, two networks of each, two kinds of faces"


def test_so_many_are_selected_with_the_smallest_values() -> None:
    run = Run(ProgressiveTeacher(Options(), context()))
    values = torch.tensor([3.0, 1.0, 5.0, 2.0, 4.0])
    for share, expected in {0.61: [1, 1, 0, 1, 1], 0.6: [1, 1, 0, 1, 0], 0.01: [0, 1, 0, 0, 0], 1.0: [1] * 5}.items():
        assert select_smallest(values, share, run).tolist() == expected


def stacked(batches: list[Batch]) -> Batch:
    """The rows of some batches, one after the other."""
    parts = {name: [getattr(batch, name) for batch in batches] for name in ("images", "labels", "rows")}
    return Batch(**{name: torch.cat(tensors) for name, tensors in parts.items()}, prepared=False)


@pytest.mark.parametrize("orders", ["own", "shared"])
def test_each_teacher_selects_for_the_other_student_and_guides_it(orders: str) -> None:
    """The two teachers are told apart by what they predict: one class always, another for each."""
    chosen = ProgressiveTeacher(Options(reject=0.5, reject_steps=1, weight=2, orders=orders), context())
    for teacher, index in zip(chosen.teachers, (0, 2), strict=True):
        teacher.head.weight.data.zero_()
        teacher.head.bias.data = 3.0 * functional.one_hot(torch.tensor(index), 3).float()
    students = copy.deepcopy(chosen.students)
    labels = torch.tensor([0, 0, 0, 0, 2, 2, 2, 2])
    seeds = (0, 0) if orders == "shared" else (0, 4)  # one batch for both, or one for each
    faces = [replace(crops(8, seed), labels=labels) for seed in seeds]
    pools = [crops(6, seed + 1) for seed in seeds]
    run, count = Run(chosen), 1 if orders == "shared" else 2
    chosen.step({"labelled": stacked(faces[:count]), "unlabelled": stacked(pools[:count])}, run)
    expected = 0.0
    # Teacher 1 says 0, so it selects the faces labelled 0, for student 2; and the other way round.
    for number, (student, rows, says) in enumerate(((students[0], slice(4, 8), 2), (students[1], slice(0, 4), 0))):
        x = torch.cat([inputs(faces[number]), inputs(pools[number])])
        wanted = (3.0 * functional.one_hot(torch.tensor(says), 3).float()).softmax(0)
        supervised = functional.cross_entropy(student(x)[:8][rows], labels[rows])
        expected += (supervised + 2 * (student(x).softmax(1) - wanted).square().sum(1).mean()).item()
    assert run.losses == [pytest.approx(expected, rel=1e-5)]


def test_teachers_predict_by_their_running_statistics_and_labels_weigh_as_their_class() -> None:
    weights = torch.tensor([1.0, 3.0, 8.0])
    own = context("batch", class_weights={"labelled": weights})
    chosen = ProgressiveTeacher(Options(reject=0, weight=2, orders="shared"), own).train()
    for teacher in chosen.teachers:
        for name, buffer in teacher.named_buffers():
            if name.endswith("running_mean"):
                buffer.add_(0.5)
    students, teachers = copy.deepcopy(chosen.students).train(), copy.deepcopy(chosen.teachers).eval()
    faces, pool = crops(9, 0), crops(6, 1)
    run = Run(chosen)
    chosen.step({"labelled": faces, "unlabelled": pool}, run)
    x, expected = torch.cat([inputs(faces), inputs(pool)]), 0.0
    for student, teacher in zip(students, (teachers[1], teachers[0]), strict=True):
        logits = student(x)
        supervised = functional.cross_entropy(logits[:9], faces.labels, weight=weights)
        expected += (supervised + 2 * (logits.softmax(1) - teacher(x).softmax(1)).square().sum(1).mean()).item()
    assert run.losses == [pytest.approx(expected, rel=1e-5)]


def test_two_equal_pairs_that_reject_nothing_are_mean_teacher() -> None:
    """The reference is a loop of its own: cross-entropy, squared distance over all faces, SGD, moving average."""
    chosen = ProgressiveTeacher(Options(reject=0, weight=3, decay=0.7, orders="shared"), context())
    for pair in (chosen.students, chosen.teachers):
        pair[1].load_state_dict(pair[0].state_dict())
    student, teacher = copy.deepcopy(chosen.students[0]), copy.deepcopy(chosen.teachers[0])
    optimizer, run = torch.optim.SGD(student.parameters(), lr=0.1), Run(chosen)
    for step in range(5):
        batches = {"labelled": crops(6, 2 * step), "unlabelled": crops(10, 2 * step + 1)}
        run.step = run.phase_step = step
        chosen.step(batches, run)
        x = torch.cat([inputs(batches["labelled"]), inputs(batches["unlabelled"])])
        logits = student(x)
        distance = (logits.softmax(1) - teacher(x).softmax(1).detach()).square().sum(1).mean()
        loss = functional.cross_entropy(logits[:6], batches["labelled"].labels) + 3 * distance
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        decay = min(1 - 1 / (step + 2), 0.7)
        with torch.no_grad():
            for own, new in zip(teacher.parameters(), student.parameters(), strict=True):
                own.copy_(decay * own + (1 - decay) * new)
    for pair, reference in ((chosen.students, student), (chosen.teachers, teacher)):
        for network in pair:
            for one, two in zip(network.parameters(), reference.parameters(), strict=True):
                torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("orders", ["own", "shared"])
def test_each_student_sees_every_labelled_face_once_an_epoch(train_toy, toy, monkeypatch, orders: str) -> None:
    """In an order of its own, or in the same one."""
    original, seen = ProgressiveTeacher._learn, ([], [])

    def watched(self, number, batches, run, **kept):
        parts = 2 if orders == "own" else 1
        seen[number].extend(batches["labelled"].part(number % parts, parts).rows.tolist())
        return original(self, number, batches, run, **kept)

    monkeypatch.setattr(ProgressiveTeacher, "_learn", watched)
    sets = {"labelled": toy(60, 0), "unlabelled": toy(50, 5)}
    trained, _ = train_toy(
        "run", strategy=progressive_teacher, options=Options(orders=orders), sets=sets, epochs=2, batch=20
    )
    for rows in seen:
        assert [sorted(rows[first : first + 60]) for first in (0, 60)] == [[*range(60)]] * 2
    assert (seen[0] == seen[1]) is (orders == "shared")
    assert trained.times_seen == pytest.approx({"labelled": 2.0, "unlabelled": 6 * 60 / 50})


def test_the_sizes_of_batches_by_hand() -> None:
    images = {"labelled": 100, "unlabelled": 900}
    for orders in ("own", "shared"):
        sizes = ProgressiveTeacher(Options(orders=orders), context()).batch_sizes(50, images)
        assert sizes == {"labelled": 50, "unlabelled": 150}
    mined = ProgressiveTeacher(Options(orders="shared"), context()).batch_sizes(50, images | {"mined": 300})
    assert mined == {"labelled": 12, "mined": 38, "unlabelled": 150}


@pytest.mark.parametrize("stream", ["labelled", "mined"])
def test_most_planted_wrong_labels_are_rejected(train_toy, toy, stream: str) -> None:
    """Also where they are pseudo-labels of mined faces whose truth is known."""
    noisy = add_noise(toy(120, 0), LabelNoise(kind="symmetric", rate=0.2), CLASSES)
    sets = {"labelled": toy(60, 1) if stream == "mined" else noisy, "unlabelled": toy(50, 5), "mined": noisy}
    sets = sets if stream == "mined" else {name: one for name, one in sets.items() if name != "mined"}
    share = 0.2 if stream == "labelled" else 0.2 * 2 / 3  # of all that have labels
    options = Options(reject=share + 0.1, reject_steps=40, weight=1, decay=0.9, unlabelled_ratio=1)
    settings = {"epochs": 12 if stream == "labelled" else 24, "network": {"norm": "group"}}
    trained, _ = train_toy("run", strategy=progressive_teacher, options=options, sets=sets, **settings)
    ends = [trained.fitted.history[place] for place in (0, -1)]
    rejected = [row["train_wrong_rejected"] / row["train_wrong"] for row in ends]
    right = [row["train_selected_right"] / row["train_selected_known"] for row in ends]
    assert rejected[1] > 0.8 > rejected[0]
    assert right[1] > 0.93 > right[0]
    assert ends[1]["train_selected"] == pytest.approx(1 - share - 0.1, abs=0.05)


def test_what_the_history_says_of_the_selected_faces_by_hand() -> None:
    """Of eight faces half is selected, one is kept besides; six have a known truth, which three labels miss."""
    chosen = ProgressiveTeacher(Options(reject=0.5, reject_steps=1, orders="shared"), context())
    for teacher in chosen.teachers:  # both say 0
        teacher.head.weight.data.zero_()
        teacher.head.bias.data = torch.tensor([3.0, 0.0, 0.0])
    chosen._keep = lambda own, labels, run, number: torch.tensor([0.0, 0, 0, 0, 1, 0, 0, 0])
    labels, truth = torch.tensor([0, 0, 0, 0, 1, 1, 2, 2]), torch.tensor([0, 0, 1, -1, 1, -1, 1, 0])
    batch = replace(crops(8, 0), labels=labels, truth=truth)
    students = copy.deepcopy(chosen.students)
    found = chosen.step({"labelled": batch, "unlabelled": crops(4, 1)}, Run(chosen))
    learned = [functional.cross_entropy(student(inputs(batch))[:5], labels[:5]).item() for student in students]
    assert float(found["labelled"].detach()) == pytest.approx(sum(learned) / 2, rel=1e-5)
    shares = {"selected": 5, "kept_besides": 1, "selected_known": 4, "selected_right": 3, "wrong": 3}
    shares["wrong_rejected"] = 2
    assert {name: 8 * float(found[name]) for name in shares} == pytest.approx(shares)


def test_a_face_that_is_not_selected_is_kept_where_the_estimator_is_sure_or_its_class_is_reserved(tmp_path) -> None:
    options = Options(reject=0.5, reject_steps=1, confident=0.9, reserve=(1.0, 0.0, 0.0))
    chosen = ProgressiveTeacher(options, context(checkpoints={"confidence": tmp_path}))
    chosen.confidence_labelled.copy_(torch.linspace(0, 1, 40))
    rows = torch.tensor([35, 36, 37, 39, 0, 1])
    batch = Batch(crops(6, 0).images, torch.tensor([1, 1, 2, 2, 0, 1]), rows, prepared=False)
    run = Run(chosen)
    run.streams = {"labelled": SimpleNamespace(set=np.zeros(40))}  # pyright: ignore[reportAttributeAccessIssue]
    keep = chosen._keep({"labelled": batch}, batch.labels, run, 0)
    assert keep.tolist() == [0, 1, 1, 1, 1, 0]


def test_the_confidences_are_those_of_the_source(train_toy, toy) -> None:
    sets = {"labelled": toy(60, 0), "unlabelled": toy(50, 5)}
    _, model = train_toy("estimator", strategy=confidence, sets=sets, epochs=1)
    seen: list[torch.Tensor] = []
    options = Options(confident=0.5)

    class Told(ProgressiveTeacher):
        def end_epoch(self, run, validation) -> bool:
            seen.append(self.get_buffer("confidence_labelled").clone())
            return False

    strategy = SimpleNamespace(Options=Options, sources=progressive_teacher.sources, build=Told)
    own = {"confidence": model}
    train_toy("run", strategy=strategy, options=options, sets=sets, checkpoints=own, epochs=2)
    network = load_checkpoint(model).model
    x = Preprocessing(size=SIZE).apply(sets["labelled"].all_pixels())
    expected = network.with_confidence(x)[1].sigmoid().detach()
    assert len(seen) == 2
    for found in seen:
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_checkpoint_that_will_not_do_is_one_line(train_toy, tmp_path) -> None:
    _, folder = train_toy("models/3")
    (tmp_path / "models/3-state").rename(tmp_path / "state")
    for seed, classes, told in (
        (3, CLASSES, r"has no head of confidence; name the models of a recipe with strategy: confidence$"),
        (3, (*CLASSES, "fear"), r"models/3 does not know the class 'fear'; its classes are anger, happiness, neutral$"),
        (4, CLASSES, r"^no checkpoint in [^\n]+models/4; train it first"),
    ):
        source = Checkpoints(one=True, confidence=True)
        with pytest.raises((ConfigError, DataError), match=told):
            source.class_counts(source.of_seed(folder.parent, seed), classes)


def test_a_source_of_one_network_is_that_of_the_seed_where_each_has_one(train_toy, tmp_path) -> None:
    _, folder = train_toy("models/3")
    (tmp_path / "models/3-state").rename(tmp_path / "state")
    assert Checkpoints(one=True).of_seed(folder.parent, 3) == folder
    assert Checkpoints(one=True).of_seed(folder, 4) == folder, "one for all seeds"
    assert Checkpoints().of_seed(folder.parent, 3) == folder.parent, "all of them"


@pytest.mark.parametrize("values", [{"reject": 1}, {"reserve": [1.5]}, {"orders": "both"}, {"reject_steps": 0}])
def test_options_that_do_not_fit_are_one_line(values) -> None:
    with pytest.raises(ConfigError, match=r"^options: [^\n]+$"):
        validate(Options, values, where="options")


def test_a_reserve_for_other_classes_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^the option reserve has 2 probabilities, expected one for each of the 3"):
        progressive_teacher.check(train_final.Config(), Options(reserve=(0.5, 1.0)), (), CLASSES)
    assert math.isclose(Options().reject, 0.05)
