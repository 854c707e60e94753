"""The confidence estimator: its losses and its price by hand; faces that show nothing get little confidence."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional

from fer_pipeline.core.errors import ConfigError
from fer_pipeline.core.settings import validate
from fer_pipeline.networks.checkpoints import load_checkpoint
from fer_pipeline.networks.preprocessing import Preprocessing
from fer_pipeline.networks.settings import read_card
from fer_pipeline.strategies import confidence
from fer_pipeline.strategies.confidence import Confidence, Options, asking_losses
from fer_pipeline.training.sets import image_set
from tests.strategies.driven import crops, driven, strategy_of
from tests.toy_world import SIZE


def test_the_losses_by_hand() -> None:
    """p = (0.2, 0.5, 0.3), label 0, c = 0.6: p' = 0.6 * 0.2 + 0.4 = 0.52 for who may ask, else 0.2."""
    p, c = torch.tensor([[0.2, 0.5, 0.3]] * 2), torch.tensor([0.6, 0.6])
    answered, asked = asking_losses(p.log(), c.logit(), torch.zeros(2, dtype=torch.int64), torch.tensor([1.0, 0.0]))
    torch.testing.assert_close(answered.exp(), torch.tensor([1 / 0.52, 1 / 0.2]))
    torch.testing.assert_close(asked.exp(), torch.tensor([1 / 0.6] * 2))


def test_full_confidence_is_cross_entropy() -> None:
    logits, labels = torch.randn(7, 3), torch.arange(7) % 3
    answered, asked = asking_losses(logits, torch.full((7,), 40.0), labels, torch.ones(7))
    torch.testing.assert_close(answered, functional.cross_entropy(logits, labels, reduction="none"))
    assert asked.max() < 1e-12


@pytest.mark.parametrize("budget", [0.3, 0.72, None])
def test_the_price_follows_the_budget(train_toy, monkeypatch, budget: float | None) -> None:
    original, seen = Confidence.step, []

    def watched(self, batches, run):
        found = original(self, batches, run)
        seen.append((float(found["price"]), float(found["asking"].detach()), float(self.price)))
        return found

    monkeypatch.setattr(Confidence, "step", watched)
    train_toy("run", strategy=confidence, options=Options(budget=budget), epochs=4)
    assert len(seen) == 16
    expected = 0.1
    for before, asking, after in seen:
        assert before == pytest.approx(expected)
        if budget is not None:
            expected /= 0.99 if asking >= budget else 1.01
        assert after == pytest.approx(expected)
    if budget == 0.72:
        assert {asking >= budget for _, asking, _ in seen} == {True, False}, "both directions were tried"


def test_faces_that_show_nothing_get_less_confidence_and_the_checkpoint_says_so(train_toy, toy) -> None:
    """A third of the images are noise with a random label: nothing tells it, so that asking pays."""
    clear, other = toy(80, 0), toy(40, 1)
    noise = torch.randint(40, 140, (40, SIZE, SIZE, 3), generator=torch.Generator().manual_seed(3), dtype=torch.uint8)
    pixels, labels = torch.cat([clear.all_pixels(), noise]), torch.cat([clear.labels, other.labels])
    names, subjects = (torch.arange(120).numpy().astype(str).astype(object) for _ in range(2))
    sets = {"labelled": image_set(pixels, labels, names, subjects)}
    options = Options(decay=0.9)
    trained, folder = train_toy("run", strategy=confidence, options=options, sets=sets, epochs=15, select="last")
    assert read_card(folder).confidence
    model = load_checkpoint(folder).model
    _, score = model.with_confidence(Preprocessing(size=SIZE).apply(pixels))
    sure = score.sigmoid().detach()
    assert sure[:80].mean() > sure[80:].mean() + 0.15
    assert trained.fitted.history[-1]["train_labelled"] < trained.fitted.history[0]["train_labelled"]


def test_other_checkpoints_say_nothing_of_it(train_toy) -> None:
    _, folder = train_toy("plain")
    assert "confidence" not in json.loads((folder / "card.json").read_text())
    assert load_checkpoint(folder).model.confidence is None


def test_where_labels_were_changed_the_history_tells_their_confidence(train_toy, toy) -> None:
    one = toy(60, 0)
    sets = {"labelled": replace(one, truth=(one.labels + (torch.arange(60) % 4 == 0)) % 3)}
    rows = train_toy("run", strategy=confidence, sets=sets, epochs=1)[0].fitted.history
    assert rows[0]["train_wrong"] == pytest.approx(15 / 60, abs=0.03), "four batches of 16"
    assert 0 < rows[0]["train_confidence_wrong"] < rows[0]["train_confidence"] * 0.4


def test_the_loss_of_a_step_by_hand() -> None:
    """All may ask: -log p' - lambda log c on labelled faces, and the squared distance to the teacher on others."""
    options = Options(hints=1.0, price=0.2, consistency=5.0, ramp=0.4, decay=0.5)
    chosen, batch, pool = strategy_of(confidence, options, norm="group"), crops(6, 0), crops(8, 1)
    with torch.no_grad():
        for parameter in chosen.teacher.parameters():
            parameter.mul_(1.5)
    x, y = (Preprocessing(size=SIZE).apply(one.images) for one in (batch, pool))
    with torch.no_grad():
        logits, score = chosen.student.with_confidence(x)
        c, own = score.sigmoid(), logits.softmax(1)[torch.arange(6), batch.labels]
        asking = -c.log().mean()
        distance = (chosen.student(y).softmax(1) - chosen.teacher(y).softmax(1)).square().mean()
    by_hand = -(c * own + 1 - c).log().mean() + 0.2 * asking + 5.0 * 0.5 * distance  # the 3rd of 10 steps: 2 / 4
    run = driven(chosen, step=2)
    run.streams = {"labelled": SimpleNamespace(set=range(6))}  # pyright: ignore[reportAttributeAccessIssue]
    found = chosen.step({"labelled": batch, "unlabelled": pool}, run)
    assert float(found["loss"].detach()) == pytest.approx(float(by_hand), rel=1e-5)
    assert float(found["weight"]) == pytest.approx(2.5)


def test_what_wrong_labels_add_to_the_confidence_by_hand() -> None:
    """Also in a batch without any; what is not known is not wrong."""
    for truth, wrong in ((lambda labels: labels, []), (lambda labels: torch.tensor([-1, 0, 1, 2, 0, 1]), [1, 4])):
        chosen = strategy_of(confidence, Options(), norm="group")
        batch = replace(crops(6, 0), labels=torch.tensor([0, 1, 1, 2, 1, 1]))
        with torch.no_grad():
            score = chosen.student.with_confidence(Preprocessing(size=SIZE).apply(batch.images))[1]
        run = driven(chosen)
        run.streams = {"labelled": SimpleNamespace(set=range(6))}  # pyright: ignore[reportAttributeAccessIssue]
        found = chosen.step({"labelled": replace(batch, truth=truth(batch.labels))}, run)
        assert float(found["wrong"]) == pytest.approx(len(wrong) / 6)
        assert float(found["confidence_wrong"]) == pytest.approx(float(score.sigmoid()[wrong].sum()) / 6)


@pytest.mark.parametrize("values", [{"hints": 0}, {"price": 0}, {"budget": -1}, {"keep": "both"}])
def test_options_that_do_not_fit_are_one_line(values) -> None:
    with pytest.raises(ConfigError, match=r"^options: [^\n]+$"):
        validate(Options, values, where="options")
