"""Streams: batches are functions of their step, and processes that train together divide them."""

import numpy as np
import pytest
import torch

from fer_pipeline.core.errors import ConfigError
from fer_pipeline.training.batches import Stream
from fer_pipeline.training.worker import Worker, make_worker


class Two:
    """Fabric's view of the second of two processes."""

    device = torch.device("cpu")
    global_rank, world_size = 1, 2


@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("order", ["rows", "blocks"])
def test_batches_are_functions_of_the_step(toy, order: str, balanced: bool) -> None:
    images = toy(20, 0)
    stream = Stream(images, 8, seed=1, balanced=balanced, num_classes=3, order=order, buffer_rows=100)
    later = stream.batch(9)
    for step in range(9):
        stream.batch(step)
    again = stream.batch(9)
    assert torch.equal(later.rows, again.rows)
    assert torch.equal(later.images, images.all_pixels()[later.rows])
    assert torch.equal(later.labels, images.labels[later.rows])


@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("order", ["rows", "blocks"])
def test_orders_are_of_the_same_images_and_each_process_has_its_part_of_every_one(toy, order, balanced) -> None:
    """The first is that of a stream of one order; batches of 7 cannot be divided evenly."""
    settings = {"balanced": balanced, "num_classes": 3, "order": order, "buffer_rows": 100}
    alone, stream = (Stream(toy(21, 0), 7, seed=1, orders=orders, **settings) for orders in (1, 2))
    second = Stream(toy(21, 0), 7, seed=1, orders=2, **settings).for_worker(Worker(Two()))
    parts = [[stream.batch(step).part(number, 2).rows.tolist() for step in range(9)] for number in (0, 1)]
    assert parts[0] == [alone.batch(step).rows.tolist() for step in range(9)]
    assert parts[0] != parts[1]
    if not balanced:
        for turn in range(3):
            rows = [np.concatenate(part[3 * turn : 3 * turn + 3]) for part in parts]
            assert [sorted(one.tolist()) for one in rows] == [[*range(21)]] * 2
    batch = second.batch(4)
    assert [batch.part(number, 2).rows.tolist() for number in (0, 1)] == [part[4][4:] for part in parts]
    assert torch.equal(batch.part(1, 2).images, batch.images[3:])


def test_size_zero_is_the_whole_set_every_time(toy) -> None:
    stream = Stream(toy(5, 0), 0, seed=1).for_worker(make_worker("cpu", "auto"))
    assert [stream.batch(step).rows.tolist() for step in (0, 7)] == [[0, 1, 2, 3, 4]] * 2


def test_a_view_is_its_rows(toy) -> None:
    images = toy(30, 0)
    view = images.take(np.array([3, 4, 17])).take(np.array([0, 2]))
    assert view.face_id.tolist() == ["toy/0-3", "toy/0-17"]
    assert view.blocks.tolist() == [0, 1]
    assert torch.equal(view.all_pixels(), images.all_pixels()[[3, 17]])
    assert torch.equal(view.labels, images.labels[[3, 17]])


def test_two_processes_divide_the_batch_of_one_but_not_what_is_taken_whole(toy) -> None:
    whole, second = Stream(toy(20, 0), 7, seed=1), Stream(toy(20, 0), 7, seed=1).for_worker(Worker(Two()))
    assert second.batch(5).rows.tolist() == whole.batch(5).rows.tolist()[4:]
    assert len(Stream(toy(5, 0), 0, seed=1).for_worker(Worker(Two())).batch(0)) == 5
    with pytest.raises(ConfigError, match="1 images of a step cannot be divided among 2 processes; set a larger"):
        Stream(toy(20, 0), 1, seed=1).for_worker(Worker(Two()))
