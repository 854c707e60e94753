"""Following experts: a student with the expert's own batches arrives where the expert did; experts resume exactly."""

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from fer_pipeline.core.errors import ConfigError, DataError
from fer_pipeline.distillation.start import Synthetic
from fer_pipeline.distillation.trajectory_matching import (
    TrajectoryMatching,
    distance_from,
    expert_batch,
    expert_steps,
    read_moment,
    train_expert,
)

EXPERTS = {"count": 2, "epochs": 3, "batch_size": 6, "saved_every": 3, "ahead": 1, "latest": 0, "learning_rate": 0.1}


def _files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.safetensors"))}


def test_the_distance_by_hand() -> None:
    start, goal = ({"a": torch.tensor(a), "b": torch.tensor(b)} for a, b in (([0.0, 0.0], [1.0]), ([3.0, 0.0], [5.0])))
    distance = distance_from(start, goal)  # 9 + 16 = 25 away
    assert float(distance(start)) == 1
    assert float(distance(goal)) == 0
    assert float(distance({"a": torch.tensor([3.0, 2.0]), "b": torch.tensor([4.0])})) == pytest.approx(5 / 25)


def test_the_experts_own_batches_in_order_lead_to_its_weights(make_problem) -> None:
    """N = M: three steps on the three batches that the expert saw, of its size, end in its next moment: distance 0."""
    problem = make_problem(
        method="trajectory_matching", steps=3, epochs=1, experts={**EXPERTS, "count": 1, "augment": False}
    )
    method = TrajectoryMatching(problem)
    batches = [problem.real(problem.source, expert_batch(problem, 0, step)) for step in range(3)]
    images, labels = (torch.stack(parts) for parts in zip(*batches, strict=True))
    raw = torch.full((3,), float(np.log(np.expm1(0.1))))
    synthetic = Synthetic(images, raw, labels)
    assert method.set_gradients(synthetic, np.arange(1), step=0)["loss"] < 1e-9
    others = Synthetic(images.flip(0), raw.clone(), labels)
    assert method.set_gradients(others, np.arange(1), step=0)["loss"] > 1e-2


def test_an_expert_is_plain_sgd(make_problem) -> None:
    problem = make_problem(experts={**EXPERTS, "augment": False})
    assert expert_steps(problem) == 12  # 24 images, 6 a batch, 3 epochs
    assert sorted(np.concatenate([expert_batch(problem, 0, step) for step in range(4)]).tolist()) == list(range(24))
    list(train_expert(problem, 1))
    network = problem.initial.network
    with torch.no_grad():
        for name, value in problem.initial.draw("start", 1).items():
            network.get_parameter(name).copy_(value)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    for step in range(6):
        images, labels = problem.real(problem.source, expert_batch(problem, 1, step))
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(network(images), labels).backward()
        optimizer.step()
    for name, value in read_moment(problem, 1, 6).items():
        torch.testing.assert_close(value, network.get_parameter(name).detach(), rtol=1e-3, atol=1e-4)


def test_an_expert_goes_on_where_it_was_stopped(make_problem, tmp_path: Path) -> None:
    problem = make_problem(experts=EXPERTS, theta_0="random")
    list(train_expert(problem, 0))
    whole = _files(tmp_path)
    assert len(whole) == 5  # 0, 3, 6, 9, 12
    for name in list(whole)[1:]:
        (tmp_path / name).unlink()
    assert len(list(islice(train_expert(problem, 0), 7))) == 7  # stopped between two moments
    assert len(_files(tmp_path)) == 3
    assert len(list(train_expert(problem, 0))) == 6  # from step 6
    assert _files(tmp_path) == whole
    assert list(train_expert(problem, 0)) == []


def test_experts_differ_where_their_starts_do(make_problem, tmp_path: Path) -> None:
    TrajectoryMatching(make_problem(method="trajectory_matching", experts=EXPERTS, theta_0="random"))
    first, second = (load_file(tmp_path / "experts" / name / "step-000000.safetensors") for name in ("000", "001"))
    assert not torch.equal(first["head.weight"], second["head.weight"])


def test_what_cannot_be_followed_is_refused(make_problem, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"saves 4 moments and none is 5 after another; lower saved_every"):
        TrajectoryMatching(make_problem(experts={**EXPERTS, "ahead": 5}))
    with pytest.raises(DataError, match=r"lower distill\.experts\.learning_rate"):
        list(train_expert(make_problem(experts={**EXPERTS, "learning_rate": 1e30}), 0))
    path = tmp_path / "experts" / "000" / "step-000000.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")
    with pytest.raises(DataError, match="cannot be read"):
        read_moment(make_problem(experts=EXPERTS), 0, 0)
