"""FixMatch: its loss by hand, an empty mask, and what the history says of the selected faces."""

from functools import partial

import numpy as np
import pytest
import torch
from torch.nn import functional

from fer_pipeline.core.errors import ConfigError
from fer_pipeline.core.settings import validate
from fer_pipeline.networks.preprocessing import Preprocessing
from fer_pipeline.strategies import fixmatch
from fer_pipeline.strategies.fixmatch import Options
from tests.strategies.driven import SIZE, crops, driven, strategy_of

PLAIN = {"operations": 0, "erase": 0.0}
apply = Preprocessing(size=SIZE).apply


@pytest.mark.parametrize("joint", [True, False])
@pytest.mark.parametrize("mined", [True, False])
def test_the_loss_is_equation_4_by_hand(joint: bool, mined: bool) -> None:
    """Without augmentation both views are the face itself; the threshold divides the pool."""
    batches = {"labelled": crops(6, 0), "unlabelled": crops(10, 1)} | ({"mined": crops(4, 2)} if mined else {})
    learner = strategy_of(fixmatch, Options(**PLAIN), norm="group")
    network = learner.network
    p = network(apply(batches["unlabelled"].images)).softmax(1).max(1).values.detach()
    threshold = float(p.sort().values[6])  # the 7th of ten: four are selected
    options = Options(threshold=threshold, weight=0.7, mined_weight=0.3, joint=joint, **PLAIN)
    chosen = strategy_of(fixmatch, options, norm="group")
    values = {
        name: functional.cross_entropy(network(apply(batch.images)), batch.labels)
        for name, batch in batches.items()
        if name != "unlabelled"
    }
    logits = network(apply(batches["unlabelled"].images))
    own = functional.cross_entropy(logits, logits.argmax(1), reduction="none")[p >= threshold]
    by_hand = values["labelled"] + 0.3 * values.get("mined", 0.0) + 0.7 * own.sum() / 10
    found = chosen.step(batches, driven(chosen))
    assert float(found["selected"]) == pytest.approx(0.4)
    assert float(found["loss"].detach()) == pytest.approx(float(by_hand.detach()), rel=1e-5)
    assert float(found["confidence"]) == pytest.approx(float(p.mean()), rel=1e-5)


def test_an_empty_mask_is_zero_and_finite() -> None:
    chosen = strategy_of(fixmatch, Options(threshold=1.1))
    found = chosen.step({"labelled": crops(6, 0), "unlabelled": crops(10, 1)}, driven(chosen))
    assert float(found["pseudo"].detach()) == 0
    assert float(found["selected"]) == 0
    assert all(bool(torch.isfinite(value)) for value in found.values())
    assert all(bool(parameter.isfinite().all()) for parameter in chosen.parameters())


def test_the_target_comes_from_the_weak_view_and_no_gradient_goes_through_it(monkeypatch) -> None:
    chosen = strategy_of(fixmatch, Options(threshold=0.0, **PLAIN), norm="group")
    pool, labelled = crops(8, 1), crops(4, 0)
    other = apply(crops(8, 5).images)
    context = chosen.context
    monkeypatch.setattr(type(context), "strong_view", lambda self, batch, generator, settings: other)
    expected = strategy_of(fixmatch, Options(), norm="group").network
    with torch.no_grad():
        target = expected(apply(pool.images)).argmax(1)
    loss = functional.cross_entropy(expected(apply(labelled.images)), labelled.labels)
    loss = loss + functional.cross_entropy(expected(other), target)
    gradients = torch.autograd.grad(loss, list(expected.parameters()))
    before = [parameter.detach().clone() for parameter in chosen.network.parameters()]
    chosen.step({"labelled": labelled, "unlabelled": pool}, driven(chosen, rate=0.1))
    for one, parameter, gradient in zip(before, chosen.network.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.detach(), one - 0.1 * gradient, rtol=1e-4, atol=1e-6)


def test_precision_among_known_faces_is_right_by_known() -> None:
    chosen = strategy_of(fixmatch, Options(threshold=0.0, **PLAIN))
    batch = crops(10, 1)
    with torch.no_grad():
        chosen.network.eval()
        joined = chosen.network.train()(apply(torch.cat([crops(6, 0).images, batch.images, batch.images])))[6:16]
    predicted = joined.argmax(1)
    truth = predicted.clone()
    truth[:3], truth[7:] = (predicted[:3] + 1) % 3, -1
    fresh = strategy_of(fixmatch, Options(threshold=0.0, **PLAIN))
    found = fresh.step({"labelled": crops(6, 0), "unlabelled": crops(10, 1, truth=truth)}, driven(fresh))
    assert [float(found[f"selected{name}"]) for name in ("", "_known", "_right")] == pytest.approx([1.0, 0.7, 0.4])
    none = fresh.step({"labelled": crops(6, 0), "unlabelled": batch}, driven(fresh))
    assert not {"selected_known", "selected_right"} & set(none)


@pytest.mark.parametrize("values", [{"threshold": -0.1}, {"operations": 11}, {"magnitude": 31}, {"cover": "all"}])
def test_wrong_options_are_one_line(values) -> None:
    with pytest.raises(ConfigError, match=r"^options: [^\n]+$"):
        validate(Options, values, where="options")


def test_batch_sizes_by_hand() -> None:
    sizes = partial(strategy_of(fixmatch, Options(mined_ratio=0.5)).batch_sizes, 64)
    assert sizes({"labelled": 9, "unlabelled": 9}) == {"labelled": 64, "unlabelled": 448}
    assert sizes({"labelled": 9, "unlabelled": 9, "mined": 9}) == {"labelled": 64, "unlabelled": 448, "mined": 32}
    assert np.isclose(Options().unlabelled_ratio, 7)
