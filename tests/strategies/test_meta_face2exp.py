"""Meta-Face2Exp: the feedback coefficient against finite differences, its sign, and who learns from what."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional

from fer_pipeline.core.errors import ConfigError
from fer_pipeline.networks.backbones import build
from fer_pipeline.networks.preprocessing import Preprocessing
from fer_pipeline.networks.settings import NetworkSettings
from fer_pipeline.strategies import meta_face2exp
from fer_pipeline.strategies.meta_face2exp import Options
from fer_pipeline.training.batch_norm import unrecorded_statistics
from fer_pipeline.training.settings import Adam, ModelSettings, TrainingSettings
from tests.strategies.driven import SIZE, crops, driven, strategy_of

PLAIN = {"operations": 0, "erase": 0.0, "cover": "none"}
apply = Preprocessing(size=SIZE).apply
LABELLED, POOL = crops(6, 0), crops(12, 1)


def labelled_loss(network: nn.Module) -> torch.Tensor:
    """The loss by which A is judged; no dropout, batch norm by the batch, in float64."""
    return functional.cross_entropy(network(apply(LABELLED.images).double()), LABELLED.labels)


def moved(network: nn.Module, direction: list[torch.Tensor], amount: float) -> nn.Module:
    """A copy whose parameters went `amount` times the direction."""
    other = copy.deepcopy(network)
    with torch.no_grad():
        for parameter, part in zip(other.parameters(), direction, strict=True):
            parameter += amount * part
    return other


def coefficient(feedback: str, rate: float, pseudo: torch.Tensor, norm: str = "batch") -> float:
    chosen = strategy_of(meta_face2exp, Options(feedback=feedback, **PLAIN), norm=norm, precise=True)
    run = driven(chosen, rate=rate)
    found, _ = chosen._adapt(apply(LABELLED.images).double(), LABELLED, apply(POOL.images).double(), pseudo, run)
    return float(found)


@pytest.mark.parametrize("norm", ["batch", "group"])
@pytest.mark.parametrize("rate", [0.5, 0.05])
def test_the_exact_coefficient_is_a_directional_derivative(norm: str, rate: float) -> None:
    """Equation 6 at the *new* weights, along the gradient of the very batch that A learned from; central difference."""
    chosen = strategy_of(meta_face2exp, Options(**PLAIN), norm=norm, precise=True)
    a = chosen.adaptation
    loss = functional.cross_entropy(a(apply(POOL.images).double()), POOL.labels)
    gradient = list(torch.autograd.grad(loss, list(a.parameters())))
    new = moved(a, gradient, -rate)
    step = 1e-7
    with torch.no_grad():
        ahead, behind = (labelled_loss(moved(new, gradient, sign * step)) for sign in (1, -1))
    expected = rate * float(ahead - behind) / (2 * step)
    assert coefficient("exact", rate, POOL.labels, norm) == pytest.approx(expected, rel=2e-4)


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_both_forms_agree_as_the_rate_goes_to_zero(norm: str) -> None:
    rates = (1e-3, 1e-4, 1e-5, 1e-6)
    pairs = [[coefficient(form, rate, POOL.labels, norm) for form in ("exact", "finite_difference")] for rate in rates]
    errors = [abs(exact - finite) / abs(exact) for exact, finite in pairs]
    assert errors[-1] < 1e-5
    assert errors[2] > 5 * errors[3], "the error is not of first order in the rate"
    assert errors == sorted(errors, reverse=True)


@pytest.mark.parametrize("form", ["exact", "finite_difference"])
def test_a_pool_batch_that_helps_has_a_positive_coefficient(form: str) -> None:
    """The pool is the labelled batch itself: with its true labels A's step helps, with a wrong class it harms."""
    found = {}
    for name, pseudo in (("true", LABELLED.labels), ("wrong", (LABELLED.labels + 1) % 3)):
        chosen = strategy_of(meta_face2exp, Options(feedback=form, **PLAIN), precise=True)
        view = apply(LABELLED.images).double()
        before = float(labelled_loss(copy.deepcopy(chosen.adaptation)).detach())
        found[name] = float(chosen._adapt(view, LABELLED, view, pseudo, driven(chosen, rate=0.01))[0])
        gain = before - float(labelled_loss(copy.deepcopy(chosen.adaptation)).detach())
        assert (gain > 0) == (found[name] > 0)
        if form == "finite_difference":
            assert found[name] == pytest.approx(gain, rel=1e-5)
    assert found["true"] > 0 > found["wrong"]


@pytest.mark.parametrize("feedback_view", ["plain", "strong"])
@pytest.mark.parametrize("adaptation_view", ["plain", "strong"])
@pytest.mark.parametrize("joint", [True, False])
def test_a_step_is_equations_1_to_5_by_hand_and_no_gradient_leaks(
    monkeypatch, feedback_view: str, adaptation_view: str, joint: bool
) -> None:
    """Both networks move by the gradients of their own losses, in which the other one's outputs are numbers.

    Mined faces are B's alone: they have no part in how A is judged.
    """
    rate, strong_crops = 0.05, crops(12, 7)
    options = Options(
        feedback_view=feedback_view,
        adaptation_view=adaptation_view,
        joint=joint,
        consistency_weight=0.8,
        feedback_weight=30.0,
        feedback="finite_difference",
        mined_weight=0.6,
        **PLAIN,
    )
    mined = crops(5, 9)
    chosen = strategy_of(meta_face2exp, options, norm="group", precise=True)
    strong = apply(strong_crops.images).double()
    monkeypatch.setattr(type(chosen.context), "strong_view", lambda self, batch, generator, settings: strong)
    a, b = copy.deepcopy(chosen.adaptation), copy.deepcopy(chosen.base)
    plain, view = apply(POOL.images).double(), apply(LABELLED.images).double()

    logits, strong_logits = b(plain), b(strong)
    pseudo = logits.argmax(1)
    of_a = functional.cross_entropy(a(strong if adaptation_view == "strong" else plain), pseudo)
    gradient = list(torch.autograd.grad(of_a, list(a.parameters())))
    new_a = moved(a, gradient, -rate)
    f = float((labelled_loss(a) - labelled_loss(new_a)).detach())
    judged, classes = (logits, pseudo) if feedback_view == "plain" else (strong_logits, strong_logits.argmax(1))
    consistency = -(logits.softmax(1).detach() * strong_logits.log_softmax(1)).sum(1).mean()
    total = functional.cross_entropy(b(view), LABELLED.labels) + 0.8 * consistency
    total = total + 30.0 * f * functional.cross_entropy(judged, classes)
    total = total + 0.6 * functional.cross_entropy(b(apply(mined.images).double()), mined.labels)
    new_b = moved(b, list(torch.autograd.grad(total, list(b.parameters()))), -rate)

    batches = {"labelled": LABELLED, "unlabelled": POOL, "mined": mined}
    found = chosen.step(batches, driven(chosen, rate=rate))
    assert float(found["feedback"]) == pytest.approx(f, rel=1e-4)
    assert float(found["consistency"].detach()) == pytest.approx(float(consistency.detach()), rel=1e-5)
    for mine, expected in ((chosen.adaptation, new_a), (chosen.base, new_b)):
        for one, two in zip(mine.parameters(), expected.parameters(), strict=True):
            torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-6)


def test_consistency_exceeds_the_targets_own_entropy_only_where_views_differ(monkeypatch) -> None:
    chosen = strategy_of(meta_face2exp, Options(**PLAIN), norm="group")
    with torch.no_grad():
        p = chosen.base(apply(POOL.images)).softmax(1)
    entropy = float(-(p * p.log()).sum(1).mean())
    other = copy.deepcopy(chosen)
    same = other.step({"labelled": LABELLED, "unlabelled": POOL}, driven(other))
    assert float(same["consistency"].detach()) == pytest.approx(entropy, rel=1e-5)
    views = apply(crops(12, 7).images)
    monkeypatch.setattr(type(chosen.context), "strong_view", lambda self, batch, generator, settings: views)
    differing = chosen.step({"labelled": LABELLED, "unlabelled": POOL}, driven(chosen))
    assert float(differing["consistency"].detach()) > entropy + 1e-4


def test_judging_a_records_nothing_and_weighs_labels_as_their_class() -> None:
    weights, view = torch.tensor([1.0, 3.0, 8.0]), apply(LABELLED.images).double()
    chosen = strategy_of(meta_face2exp, Options(feedback="finite_difference", **PLAIN), precise=True)
    chosen.context = replace(chosen.context, class_weights={"labelled": weights})
    once, judge = copy.deepcopy(chosen.adaptation), copy.deepcopy(chosen.adaptation)
    once(apply(POOL.images).double())

    def judged(network: nn.Module) -> float:
        return float(functional.cross_entropy(network(view), LABELLED.labels, weight=weights.double()).detach())

    before = judged(judge)
    found, _ = chosen._adapt(view, LABELLED, apply(POOL.images).double(), POOL.labels, driven(chosen, rate=0.05))
    for (name, one), two in zip(once.named_buffers(), chosen.adaptation.buffers(), strict=True):
        torch.testing.assert_close(two, one, msg=name)
    assert float(found) == pytest.approx(before - judged(chosen.adaptation), rel=1e-4)


def test_at_the_end_a_alone_learns_from_labelled_faces_at_a_constant_rate(train_toy, toy) -> None:
    sets = {"labelled": toy(60, 0), "unlabelled": toy(50, 5)}
    options = Options(fine_tune_epochs=2, fine_tune_learning_rate=1e-4, unlabelled_ratio=2, **PLAIN)
    trained, _ = train_toy("run", strategy=meta_face2exp, options=options, sets=sets, epochs=2)
    rows = trained.fitted.history
    assert [row["phase"] for row in rows] == [1, 1, 2, 2]
    assert [row["learning_rate"] for row in rows[2:]] == [1e-4, 1e-4]
    assert all("train_feedback" in row for row in rows[:2])
    assert all("train_feedback" not in row for row in rows[2:])
    assert trained.fitted.epoch > 2, "the epoch is chosen in the last phase"
    # Four steps an epoch, of 16 labelled faces in all four and 32 of the pool in the first two.
    assert trained.times_seen == pytest.approx({"labelled": 16 * 16 / 60, "unlabelled": 8 * 32 / 50})

    chosen = strategy_of(meta_face2exp, options)
    base = copy.deepcopy(chosen.base.state_dict())
    adaptation = copy.deepcopy(chosen.adaptation)
    chosen.step({"labelled": LABELLED}, driven(chosen, phase=1, rate=0.1))
    assert all(torch.equal(tensor, base[name]) for name, tensor in chosen.base.state_dict().items())
    loss = functional.cross_entropy(adaptation(apply(LABELLED.images)), LABELLED.labels)
    expected = moved(adaptation, list(torch.autograd.grad(loss, list(adaptation.parameters()))), -0.1)
    for one, two in zip(chosen.adaptation.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-6)


def test_the_rates_of_both_networks(train_toy, toy) -> None:
    plans = strategy_of(meta_face2exp, Options(adaptation_rate=0.1)).phases()
    own = plans[0].optimizers["adaptation"].optimizer
    assert own.learning_rate == pytest.approx(0.005)  # a tenth of the default
    assert plans[0].optimizers["base"].optimizer is None
    last = plans[1].optimizers["adaptation"]
    assert (last.optimizer.momentum, last.optimizer.weight_decay) == (0, 0), "plain SGD, whatever the training's is"
    assert [plan.name for plan in strategy_of(meta_face2exp, Options(fine_tune_epochs=0)).phases()] == ["train"]


def test_exact_feedback_is_refused_where_a_step_is_no_gradient_step() -> None:
    config = ModelSettings(training=TrainingSettings(epochs=1, optimizer=Adam(name="adamw")))
    with pytest.raises(ConfigError, match=r"and the optimizer is adamw; set the option feedback: finite_difference$"):
        meta_face2exp.check(config, Options(), ["labelled"], ["a"])
    meta_face2exp.check(config, Options(feedback="finite_difference"), ["labelled"], ["a"])
    meta_face2exp.check(ModelSettings(), Options(), ["labelled"], ["a"])


def test_a_begins_where_other_recipes_do_and_is_kept() -> None:
    """`main` is the initial network that all recipes of a seed share; B is another draw."""
    chosen = strategy_of(meta_face2exp, Options(**PLAIN))
    main, base = (chosen.context.make_network(name)[0] for name in ("main", "base"))
    assert chosen.predictor() is chosen.adaptation
    for network, expected in ((chosen.adaptation, main), (chosen.base, base)):
        assert all(torch.equal(*pair) for pair in zip(network.parameters(), expected.parameters(), strict=True))
    assert not torch.equal(chosen.adaptation.head.weight, chosen.base.head.weight)


def test_being_judged_records_nothing_and_takes_the_batchs_statistics() -> None:
    network = build(NetworkSettings(size=SIZE, width=4, dropout=0.5), 3, seed=1).train()
    network.backbone.stem[1].eval()  # as a frozen stage is
    before, modes = copy.deepcopy(network.state_dict()), [module.training for module in network.modules()]
    x = apply(POOL.images)
    with unrecorded_statistics(network):
        found = [network(x) for _ in range(2)]
        assert not network.backbone.stem[1].training
    assert torch.equal(*found), "something was dropped"
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert [module.training for module in network.modules()] == modes
    network.dropout.eval()
    torch.testing.assert_close(network(x), found[0])
    assert any(not torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
