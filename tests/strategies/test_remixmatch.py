"""ReMixMatch: alignment, sharpening, the running mean and MixUp by hand; its loss where nothing is mixed."""

import copy

import pytest
import torch
from torch.nn import functional

from fer_pipeline.networks.preprocessing import Preprocessing
from fer_pipeline.strategies import remixmatch
from fer_pipeline.strategies.remixmatch import Options, align, sharpen
from tests.strategies.driven import SIZE, crops, driven, strategy_of

PLAIN = {"operations": 0, "erase": 0.0, "mixup": 0.0, "rotation_weight": 0.0}
apply = Preprocessing(size=SIZE).apply


def test_alignment_by_hand() -> None:
    """The pool is predicted as neutral too often: 0.8 for a wanted 0.5, so neutral is worth 5/8, the others 5/2."""
    guess = torch.tensor([[0.8, 0.1, 0.1], [0.5, 0.5, 0.0]])
    found = align(guess, torch.tensor([0.5, 0.25, 0.25]), torch.tensor([0.8, 0.1, 0.1]))
    expected = torch.tensor([[0.5, 0.25, 0.25], [0.3125 / 1.5625, 1.25 / 1.5625, 0.0]])
    torch.testing.assert_close(found, expected)
    uniform = torch.full((3,), 1 / 3)
    torch.testing.assert_close(align(guess, uniform, uniform), guess)


def test_sharpening_by_hand() -> None:
    guess = torch.tensor([[0.6, 0.3, 0.1]])
    torch.testing.assert_close(sharpen(guess, 0.5), torch.tensor([[0.36, 0.09, 0.01]]) / 0.46)
    torch.testing.assert_close(sharpen(guess, 1.0), guess)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
@pytest.mark.parametrize("align_to", ["labelled", "uniform", "none"])
def test_the_guess_goes_by_the_mean_of_the_last_steps(align_to: str, temperature: float, monkeypatch) -> None:
    """Predictions by the statistics of their own step are averaged, aligned, and then sharpened; none are recorded."""
    monkeypatch.setattr(remixmatch, "STEPS_AVERAGED", 9)
    chosen = strategy_of(remixmatch, Options(align_to=align_to, temperature=temperature))
    history, run = [], driven(chosen)
    steps = 12
    before = copy.deepcopy(chosen.network.state_dict())
    for step in range(steps):
        weak = apply(crops(5, step).images) * (1 + step / 5)
        with torch.no_grad():
            raw = copy.deepcopy(chosen.network).train()(weak).softmax(1)
        history.append(raw.mean(0))
        guess, found = chosen._guess(weak, run)
        mean = torch.stack(history[-9:]).mean(0)
        torch.testing.assert_close(found, mean)
        wanted = torch.tensor({"labelled": [0.5, 0.3, 0.2]}.get(align_to, [1 / 3] * 3))
        scaled = (raw if align_to == "none" else raw * wanted / mean) ** (1 / temperature)
        torch.testing.assert_close(guess, scaled / scaled.sum(1, keepdim=True), rtol=1e-4, atol=1e-6)
    assert int(chosen.averaged) == steps
    assert chosen.network.training
    torch.testing.assert_close(chosen.network.state_dict(), before, rtol=0, atol=0)


def test_alignment_gives_the_pool_the_wanted_shares_in_the_mean() -> None:
    """Of faces that are all predicted alike, the guess is the wanted distribution."""
    chosen = strategy_of(remixmatch, Options(temperature=1.0))
    weak = apply(crops(1, 0).images).repeat(6, 1, 1, 1)
    guess, _ = chosen._guess(weak, driven(chosen))
    torch.testing.assert_close(guess, torch.tensor([[0.5, 0.3, 0.2]]).expand(6, 3))


def test_mixing_pairs_images_and_targets_alike() -> None:
    """Images that are the one-hot numbers of themselves: image and target tell of the same two, the own one first."""
    chosen, count = strategy_of(remixmatch, Options(mixup=0.75)), 40
    own = torch.eye(count)
    images = own.view(count, 1, 1, count).clone()
    parts, targets = chosen._mix(list(images.split([15, 25])), list(own.split([15, 25])), driven(chosen))
    assert [len(part) for part in parts] == [15, 25]
    mixed = torch.cat(targets)
    torch.testing.assert_close(torch.cat(parts).view(count, count), mixed)
    torch.testing.assert_close(mixed.sum(1), torch.ones(count))
    assert (mixed.diagonal() >= 0.5).all()
    assert ((mixed > 0).sum(1) <= 2).all()
    assert (mixed.diagonal() < 0.99).sum() > 10
    assert ((mixed > 0).sum(0) <= 2).all(), "an image is the partner of one alone"


@pytest.mark.parametrize("joint", [True, False])
def test_the_loss_of_unmixed_plain_views_by_hand(joint: bool) -> None:
    options = Options(weight=1.5, anchor_weight=0.5, ramp=0.5, strong_views=3, joint=joint, **PLAIN)
    chosen, reference = strategy_of(remixmatch, options, norm="group"), strategy_of(remixmatch, options, norm="group")
    labelled, pool = crops(6, 0), crops(5, 1)
    with torch.no_grad():
        guess, found = reference._guess(apply(pool.images), driven(reference))
    log_p = reference.network(apply(pool.images)).log_softmax(1)
    anchored = -(guess * log_p).sum(1).mean()  # the views are all the same
    supervised = functional.cross_entropy(reference.network(apply(labelled.images)), labelled.labels)
    by_hand = supervised + 0.4 * (1.5 + 0.5) * anchored  # the 2nd of 10 steps, over 5 of which the weight rises: 2 / 5
    losses = chosen.step({"labelled": labelled, "unlabelled": pool}, driven(chosen, step=2))
    assert float(losses["loss"].detach()) == pytest.approx(float(by_hand.detach()), rel=1e-5)
    wanted = torch.tensor([0.5, 0.3, 0.2])
    assert float(losses["misalignment"]) == pytest.approx(float((found - wanted).abs().sum() / 2), rel=1e-4)
    assert float(losses["confidence"]) == pytest.approx(float(guess.max(1).values.mean()), rel=1e-5)
    assert float(losses["ramp"]) == pytest.approx(0.4)


def test_the_anchored_view_is_not_mixed_and_all_parts_are_added_by_their_weights() -> None:
    """Equation 3, with mined faces beside the labelled."""
    weights = {"weight": 1.5, "anchor_weight": 0.7, "rotation_weight": 0.3, "mined_weight": 0.4}
    options = Options(**{**PLAIN, "mixup": 0.75, "ramp": 0.5, **weights})
    chosen, reference = (strategy_of(remixmatch, options, norm="group") for _ in range(2))
    pool = crops(5, 1)
    with torch.no_grad():
        guess, _ = reference._guess(apply(pool.images), driven(reference))
        anchored = -(guess * reference.network(apply(pool.images)).log_softmax(1)).sum(1).mean()
    batches = {"labelled": crops(6, 0), "unlabelled": pool, "mined": crops(4, 2)}
    found = chosen.step(batches, driven(chosen, step=2))
    parts = {name: float(value.detach()) for name, value in found.items()}
    assert parts["anchored"] == pytest.approx(float(anchored), rel=1e-5)
    of_pool = 0.4 * (1.5 * parts["pool"] + 0.7 * parts["anchored"])  # the 3rd of 10 steps, over 5 of which it rises
    by_hand = parts["labelled"] + 0.4 * parts["mined"] + of_pool + 0.3 * parts["rotation"]
    assert parts["loss"] == pytest.approx(by_hand, rel=1e-5)


def test_the_turn_of_an_image_is_told_by_a_head_of_its_own() -> None:
    chosen = strategy_of(remixmatch, Options(rotation_weight=1.0))
    images = apply(crops(40, 3).images)
    seen: list[torch.Tensor] = []
    original = chosen.network.features
    chosen.network.features = lambda x: (seen.append(x), original(x))[1]
    run = driven(chosen)
    turns = torch.randint(4, (40,), generator=run.generator("turns"))
    loss = chosen._turned(images, chosen.turn_head, run)
    for image, turned, number in zip(images, seen[0], turns.tolist(), strict=True):
        assert torch.equal(turned, torch.rot90(image, number, (1, 2)))
    assert set(turns.tolist()) == {0, 1, 2, 3}
    loss.backward()
    assert chosen.turn_head.weight.grad is not None
    assert chosen.network.head.weight.grad is None, "the head of expressions learns nothing from turns"
    assert strategy_of(remixmatch, Options(rotation_weight=0.0)).turn_head is None
