"""Where the unrolled steps start: at what the final training starts from, tensor by tensor."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from fer_pipeline.core.errors import ConfigError
from fer_pipeline.core.settings import validate
from fer_pipeline.distillation.settings import DistillSettings
from fer_pipeline.distillation.start import final_weights
from fer_pipeline.networks.backbones import build
from fer_pipeline.networks.settings import NetworkSettings
from fer_pipeline.networks.weights import WeightSettings, initial_network
from fer_pipeline.training.fit import Execution, TrainingJob, train
from fer_pipeline.training.sets import ImageSet
from fer_pipeline.training.settings import TrainingSettings
from fer_pipeline.training.worker import make_worker

NETWORK = NetworkSettings(name="small", width=8, size=32)
CPU = torch.device("cpu")


def _published(tmp_path: Path) -> WeightSettings:
    """A checkpoint of ours with running statistics of its own."""
    model = build(NETWORK, 5, seed=9)
    for name, value in model.state_dict().items():
        if "running" in name:
            value.uniform_(0.5, 1.5)
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    return WeightSettings(path=tmp_path / "weights.safetensors")


@pytest.mark.parametrize("from_file", [False, True])
def test_the_initial_start_is_the_very_tensors_that_the_final_training_starts_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, from_file: bool
) -> None:
    """What `train` hands to a strategy is caught as the strategy is built."""
    weights = _published(tmp_path) if from_file else None
    caught: dict[str, torch.Tensor] = {}

    class CaughtError(Exception):
        pass

    def catch(context):
        caught.update({name: value.clone() for name, value in context.network().state_dict().items()})
        raise CaughtError

    job = TrainingJob(
        network=NETWORK,
        weights=weights,
        classes=("a", "b", "c"),
        seed=17,
        settings=TrainingSettings(),
        build=catch,
        sources={},
        about={},
        data={},
    )
    empty: dict[str, ImageSet] = {}
    with pytest.raises(CaughtError):
        train(job, empty, None, Execution(make_worker("cpu", "32-true"), tmp_path, tmp_path))
    initial, _ = final_weights(NETWORK, weights, num_classes=3, seed=1, first_seed=17, device=CPU)
    found = initial.draw("start", 4)
    assert initial.is_fixed
    names = {name for name in caught if "running" not in name and "batches" not in name}
    assert set(found) == names
    assert all(torch.equal(found[name], caught[name]) for name in names)
    if from_file:  # statistics from outside stay, frozen
        assert all(torch.equal(value, caught[name]) for name, value in initial.network.named_buffers())
    else:
        assert not list(initial.network.named_buffers())


def test_fresh_draws_of_a_network_with_weights_have_another_head_alone(tmp_path: Path) -> None:
    weights = _published(tmp_path)
    fresh, _ = final_weights(NETWORK, weights, num_classes=3, seed=1, first_seed=None, device=CPU)
    first, second = fresh.draw("start", 0), fresh.draw("start", 1)
    different = {name for name in first if not torch.equal(first[name], second[name])}
    assert different == {"head.weight", "head.bias"}
    loaded, _, _ = initial_network(NETWORK, weights, num_classes=3, seed=3)
    assert torch.equal(first["backbone.stem.0.weight"], loaded.get_parameter("backbone.stem.0.weight"))


def test_fresh_draws_differ_by_use_and_number_and_repeat() -> None:
    fresh, _ = final_weights(NETWORK, None, num_classes=3, seed=1, first_seed=None, device=CPU)
    name = "head.weight"
    draws = [fresh.draw("start", 0), fresh.draw("start", 1), fresh.draw("control", 0)]
    assert len({draw[name].numpy().tobytes() for draw in draws}) == 3
    assert torch.equal(fresh.draw("start", 1)[name], draws[1][name])


def test_group_norms_keep_what_batch_norms_would_learn() -> None:
    """On a batch of one image and one group a channel, both normalise alike: the same logits."""
    fresh, preprocessing = final_weights(NETWORK, None, num_classes=3, seed=1, first_seed=17, device=CPU)
    assert preprocessing.size == 32
    scores = fresh.logits(fresh.draw("start", 0), torch.randn(3, 3, 32, 32), batch=2)
    assert scores.shape == (3, 3)
    assert np.isfinite(scores.numpy()).all()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({"start": "fixed"}, "theta_0: primitive"),
        ({"start": "random"}, "theta_0: random"),
        ({"initial": "real"}, "start: real"),
    ],
)
def test_old_forms_are_refused_with_the_new_one(old: dict[str, str], new: str) -> None:
    with pytest.raises(ConfigError, match=new):
        validate(DistillSettings, old, where="distill")
