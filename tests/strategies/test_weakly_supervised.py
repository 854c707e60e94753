"""Weakly supervised training: targets by hand, supervised training as its limiting case, its rule on made-up curves."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional

from fer_pipeline.core.errors import ConfigError
from fer_pipeline.core.settings import validate
from fer_pipeline.networks.backbones import build
from fer_pipeline.networks.preprocessing import Preprocessing
from fer_pipeline.networks.settings import NetworkSettings, read_card
from fer_pipeline.strategies import supervised, weakly_supervised
from fer_pipeline.strategies.weakly_supervised import Options, WeaklySupervised, has_fallen, kept_confident
from fer_pipeline.training import fit as fit_module
from fer_pipeline.training.augmentation import Augmentation
from fer_pipeline.training.settings import TrainingSettings
from fer_pipeline.training.strategy import BuildContext
from tests.toy_world import SIZE


def test_the_targets_of_labelled_faces_by_hand() -> None:
    p = torch.tensor([[0.8, 0.1, 0.1], [0.6, 0.3, 0.1], [0.8, 0.1, 0.1], [0.1, 0.2, 0.7]])
    targets, set_right = kept_confident(p, torch.tensor([0, 0, 1, 2]), alpha=0.7)
    expected = torch.tensor([[0.8, 0.1, 0.1], [0.7, 0.15, 0.15], [0.15, 0.7, 0.15], [0.15, 0.15, 0.7]])
    torch.testing.assert_close(targets, expected)
    assert set_right.tolist() == [False, True, True, True], "a probability of alpha is not above it"


@pytest.mark.parametrize("window", [1, 2, 5])
def test_the_rule_on_made_up_curves(window: int) -> None:
    """Against the averages themselves, epoch by epoch."""
    random = np.random.default_rng(window)
    for _ in range(50):
        curve, values = random.uniform(0.3, 0.9, 12).round(2), torch.full((window + 1,), torch.nan)
        for epoch, value in enumerate(curve, start=1):
            values = values.roll(-1)
            values[-1] = float(value)
            averages = [curve[max(0, end - window) : end].sum() for end in (epoch - 1, epoch)]
            expected = epoch > window and averages[1] < averages[0] - 1e-9
            assert has_fallen(values) == expected


CURVE = (0.3, 0.2, 0.5, 0.6, 0.7, 0.8, 0.75, 0.6, 0.9)  # two epochs of the first part, then those of the second


def trained_on(train_toy, toy, monkeypatch, curve: tuple[float, ...], options: Options, **settings: Any) -> Any:
    values = iter(curve)

    def played(*_: Any) -> dict[str, float]:
        value = next(values)
        return {"loss": 1 - value, "accuracy": value, "mean_class_accuracy": value}

    monkeypatch.setattr(fit_module, "validate", played)
    sets = {"labelled": toy(30, 0), "unlabelled": toy(30, 5)}
    given = {"epochs": 20, "batch": 15, "options": options, "sets": sets, **settings}
    return train_toy("run", strategy=weakly_supervised, **given)


def test_it_stops_where_the_average_falls_and_keeps_the_best_averaged_epoch(train_toy, toy, monkeypatch) -> None:
    """Averages of two in the second part: 0.55, 0.65, 0.75, 0.775, 0.675; the fourth is of its fifth epoch."""
    options = Options(first_epochs=2, window=2)
    trained, folder = trained_on(train_toy, toy, monkeypatch, CURVE, options)
    assert [row["phase"] for row in trained.fitted.history] == [1, 1, 2, 2, 2, 2, 2, 2]
    assert trained.fitted.epoch == 2 + 5
    assert trained.fitted.best["mean_class_accuracy"] == pytest.approx(0.775)
    assert read_card(folder).training["chosen_epoch"] == 7


@pytest.mark.parametrize(("monitor", "figures"), [("accuracy", (0.5, 0.7, 0.6)), ("loss", (0.5, 0.3, 0.4))])
def test_the_first_part_ends_by_the_same_rule_for_any_figure(train_toy, toy, monkeypatch, monitor, figures) -> None:
    """The second value is better than the first, the third worse, so that a window of one falls at the third."""
    curve = (*(1 - one if monitor == "loss" else one for one in figures), *(0.5 + 0.01 * step for step in range(20)))
    options = Options(window=1)
    trained, _ = trained_on(train_toy, toy, monkeypatch, curve, options, monitor=monitor, epochs=10)
    assert [row["phase"] for row in trained.fitted.history] == [1] * 3 + [2] * 5, "the second part has its own half"


def test_a_second_part_below_the_window_keeps_its_last_epoch_and_says_so(train_toy, toy, monkeypatch) -> None:
    options = Options(first_epochs=4, window=5)
    trained, folder = trained_on(train_toy, toy, monkeypatch, (0.9, 0.8, 0.7, 0.6, 0.5, 0.4), options, epochs=6)
    assert trained.fitted.epoch == 6
    assert any("shorter than the window of 5 epochs" in note for note in read_card(folder).training["notes"])


@pytest.mark.parametrize("norm", ["batch", "group"])
@pytest.mark.parametrize(
    "options",
    [
        {"first_epochs": 0, "replaced": 0, "alpha": 1, "window": 9},
        {"first_epochs": 99, "smoothing": 0},
        {"first_epochs": 99, "smoothing": 0.2},
    ],
)
def test_the_limiting_case_is_supervised_bit_for_bit(train_toy, toy, options, norm: str) -> None:
    """The second part alone, or the first alone; the first smooths as the supervised strategy does."""
    settings = {"network": {"norm": norm, "dropout": 0.3}, "balance": "weights", "select": "last"}
    plain = supervised.Options(smoothing=options.get("smoothing", 0))
    alone, expected = train_toy("plain", options=plain, **settings)
    sets = {"labelled": toy(60, 0), "unlabelled": toy(50, 5)}
    limited, found = train_toy("limit", strategy=weakly_supervised, options=Options(**options), sets=sets, **settings)
    one, two = (load_file(folder / "weights.safetensors") for folder in (expected, found))
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        assert torch.equal(two[name], tensor), name
    rows = [[row["train_labelled"] for row in run.fitted.history] for run in (alone, limited)]
    assert rows[0] == pytest.approx(rows[1], rel=1e-6)


class Watched(WeaklySupervised):
    """Keeps, of every epoch of the second part, what it begins with and what the network says of the pool."""

    seen: list[dict[str, Any]]

    def _begin_epoch(self, run) -> None:
        super()._begin_epoch(run)
        x = Preprocessing(size=SIZE).apply(run.streams["unlabelled"].set.all_pixels())
        with torch.no_grad():
            pool = self.network.eval()(x).softmax(1)
        self.network.train()
        Watched.seen.append({"pool": pool, "guests": dict(self._guests), "targets": dict(self._targets)})


STRATEGY: Any = SimpleNamespace(Options=Options, sources=weakly_supervised.sources, build=Watched)


@pytest.mark.parametrize("with_mined", [False, True])
def test_a_tenth_gives_way_to_confident_pool_faces_with_predicted_targets(train_toy, toy, with_mined: bool) -> None:
    Watched.seen = []
    one, pool = toy(60, 0), toy(50, 5)
    sets = {"labelled": one, "unlabelled": replace(pool, labels=torch.full((50,), -1), truth=pool.labels)}
    sets |= {"mined": toy(40, 7)} if with_mined else {}
    options = Options(first_epochs=6, threshold=0.5, window=9)
    trained, _ = train_toy("run", strategy=STRATEGY, options=options, sets=sets, epochs=8, select="last")
    assert len(Watched.seen) == 2
    assert not torch.equal(Watched.seen[0]["guests"]["labelled"], Watched.seen[1]["guests"]["labelled"])
    for epoch in Watched.seen:
        taken = []
        for name, wanted in {"labelled": 6, **({"mined": 4} if with_mined else {})}.items():
            guests, targets = epoch["guests"][name], epoch["targets"][name]
            places = torch.nonzero(guests >= 0).squeeze(1)
            assert len(places) == wanted
            torch.testing.assert_close(targets[places], epoch["pool"][guests[places]], rtol=1e-4, atol=1e-5)
            assert (epoch["pool"][guests[places]].max(1).values > 0.5).all()
            taken += guests[places].tolist()
        assert len(set(taken)) == len(taken)
        assert torch.equal(
            epoch["targets"]["labelled"].argmax(1)[epoch["guests"]["labelled"] < 0],
            one.labels[epoch["guests"]["labelled"] < 0],
        )
    row, epoch = trained.fitted.history[-1], Watched.seen[-1]
    taken = torch.cat([guests[guests >= 0] for guests in epoch["guests"].values()])
    assert row["train_right"] == pytest.approx((epoch["pool"][taken].argmax(1) == pool.labels[taken]).float().mean())
    assert row["train_confident"] == pytest.approx((epoch["pool"].max(1).values > 0.5).float().mean())
    if not with_mined:
        assert row["train_replaced"] == pytest.approx(0.1, abs=0.04)


@pytest.mark.parametrize("balance", ["none", "weights"])
def test_the_loss_of_the_second_part_is_that_of_its_targets_and_pictures(
    train_toy, toy, monkeypatch, balance: str
) -> None:
    """A pool face weighs as the class of its target, not as that of the face whose place it takes."""
    original, losses = WeaklySupervised.step, []
    sets = {"labelled": toy(32, 0), "unlabelled": toy(50, 5)}

    def watched(self, batches, run):
        network = self.network
        state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        found = original(self, batches, run)
        after = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        network.load_state_dict(state)
        rows, guests = batches["labelled"].rows, self._guests["labelled"]
        pictures = [
            sets["unlabelled"].all_pixels()[guests[row]] if guests[row] >= 0 else sets["labelled"].all_pixels()[row]
            for row in rows.tolist()
        ]
        with torch.no_grad():
            log_p = network(Preprocessing(size=SIZE).apply(torch.stack(pictures))).log_softmax(1)
        network.load_state_dict(after)
        targets = self._targets["labelled"][rows]
        entropies = -(targets * targets.clamp(min=1e-30).log()).sum(1)
        values = functional.kl_div(log_p, targets, reduction="none").sum(1) + entropies
        classes = torch.where(guests[rows] >= 0, targets.argmax(1), sets["labelled"].labels[rows])
        weights = self.context.class_weights["labelled"][classes] if balance == "weights" else torch.ones(len(rows))
        assert balance == "none" or len(weights.unique()) > 1
        by_hand = (weights * values).sum() / weights.sum()
        losses.append((float(found["loss"].detach()), float(by_hand)))
        return found

    monkeypatch.setattr(WeaklySupervised, "step", watched)
    options = Options(first_epochs=0, replaced=0.5, threshold=0.34)
    still = {"augment": {"flip": 0, "translate": 0}, "network": {"norm": "group"}, "epochs": 1, "balance": balance}
    train_toy("run", strategy=weakly_supervised, options=options, sets=sets, **still)
    assert len(losses) == 2
    for found, by_hand in losses:
        assert found == pytest.approx(by_hand, rel=1e-4)


def test_where_nobody_is_confident_nothing_is_replaced_and_the_card_says_so(train_toy, toy) -> None:
    sets = {"labelled": toy(60, 0), "unlabelled": toy(50, 5)}
    options = Options(first_epochs=1, threshold=1.0)
    trained, folder = train_toy("run", strategy=weakly_supervised, options=options, sets=sets)
    rows = trained.fitted.history[1:]
    assert [row["train_replaced"] for row in rows] == [0, 0]
    assert np.isfinite([row["train_loss"] for row in rows]).all()
    assert any(
        note.startswith("in 2 epochs fewer pool faces than wanted") for note in read_card(folder).training["notes"]
    )


@pytest.mark.parametrize("known", [False, True])
def test_how_many_are_right_is_told_of_those_whose_truth_is_known(train_toy, toy, known: bool) -> None:
    """Nothing is told where none is: 0 would say that all are wrong."""
    pool = toy(50, 5)
    truth = torch.where(torch.arange(50) % 2 == 0, pool.labels, -1) if known else torch.full((50,), -1)
    sets = {"labelled": toy(60, 0), "unlabelled": replace(pool, truth=truth)}
    options = Options(first_epochs=6, threshold=0.5, window=9, replaced=0.4)
    trained, _ = train_toy("run", strategy=weakly_supervised, options=options, sets=sets, epochs=7, select="last")
    row = trained.fitted.history[-1]
    assert row["train_replaced"] > 0
    assert ("train_right" in row) is known
    assert not known or row["train_right"] > 0.8, "of those that are known, and not of all"


@pytest.mark.parametrize(
    "values", [{"alpha": 0}, {"replaced": 2}, {"window": 0}, {"first_epochs": -1}, {"smoothing": 1}]
)
def test_options_that_do_not_fit_are_one_line(values) -> None:
    with pytest.raises(ConfigError, match=r"^options: [^\n]+$"):
        validate(Options, values, where="options")


@pytest.mark.parametrize(
    ("first", "length", "expected"),
    [
        (None, {"epochs": 10}, [("first", None, 20), ("second", None, 20)]),
        (2, {"epochs": 10}, [("first", None, 8), ("second", None, 32)]),
        (None, {"epochs": None, "steps": 30}, [("first", None, 16), ("second", None, 14)]),
        (0, {"epochs": 10}, [("second", None, 40)]),
        (99, {"epochs": 10}, [("first", None, 40)]),
        (None, {"epochs": None, "until": {"at_most": 30}}, [("first", None, None), ("second", None, None)]),
        (3, {"epochs": None, "until": {"at_most": 30}}, [("first", 3, None), ("second", None, None)]),
    ],
)
def test_both_parts_are_as_long_as_the_settings_say(first: int | None, length: dict, expected: list) -> None:
    network, view = build(NetworkSettings(size=SIZE, width=4), 3, seed=0), Preprocessing(size=SIZE)
    settings = TrainingSettings.model_validate({"batch": 16, **length})
    context = BuildContext(
        num_classes=3,
        make_network=lambda *_: (network, view),
        augmentation=Augmentation(settings.augment, view),
        settings=settings,
        images={"labelled": 60, "unlabelled": 9},
    )
    phases = WeaklySupervised(Options(first_epochs=first), context).phases()
    assert [(phase.name, phase.epochs, phase.steps) for phase in phases] == expected
