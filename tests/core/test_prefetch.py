"""Results computed ahead: in order, errors in their place, so many ahead and no more, and no thread left running."""

import threading
import time

import pytest

from fer_pipeline.core.prefetch import prefetch


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_items_come_in_order_and_a_fault_with_its_item(threads: int) -> None:
    def make(item: int) -> int:
        time.sleep(0.001 * (item % 4))
        if item == 17:
            raise ZeroDivisionError
        return item * item

    assert list(prefetch(make, range(12), threads=threads)) == [item * item for item in range(12)]
    coming = prefetch(make, range(30), threads=threads)
    assert [next(coming) for _ in range(17)] == [item * item for item in range(17)]
    with pytest.raises(ZeroDivisionError):
        next(coming)


def test_no_more_is_made_ahead_than_two_for_each_thread() -> None:
    made = []
    coming = prefetch(lambda item: made.append(item), range(100), threads=2)
    next(coming)
    time.sleep(0.05)
    assert len(made) <= 5
    coming.close()


def test_so_many_items_are_taken_ahead_as_asked_and_threads_end() -> None:
    taken = []

    def items():
        for item in range(100):
            taken.append(item)
            yield item

    coming = prefetch(str, items(), threads=2, ahead=5)
    assert next(coming) == "0"
    assert len(taken) == 6
    assert next(coming) == "1"
    assert len(taken) == 7
    coming.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]
