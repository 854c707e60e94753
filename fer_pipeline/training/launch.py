"""Start training processes: independent seeds side by side, or one training divided among several devices.

`run_shares` gives each of several fresh processes its share of independent items at once, so that it reads its data
once; this process takes the first share, since it has loaded already what fresh interpreters must load first (a forked
torch may hang on its threads). `run_group` starts one process a device, which Fabric joins into a group that divides
the batch of every step; on CPUs it speaks by gloo, which the tests use.

A process whose parent is gone, or has failed, ends at its next step.
"""

import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from threading import Thread
from typing import Any, Literal, TypeVar

from fer_pipeline.core.errors import PipelineError
from fer_pipeline.core.settings import Resources
from fer_pipeline.sharding.devices import worker_devices
from fer_pipeline.training.worker import Worker, make_worker, silence_fabric

Item = TypeVar("Item")
Result = TypeVar("Result")
Advance = Callable[[int], None]

SECONDS_BETWEEN_LOOKS = 0.5
GROUP_LOST = (
    "a training process was lost (killed, or out of memory) and the others were ended; run again, it goes on from its "
    "last whole epoch"
)
GROUP_BROKEN = ("connection", "gloo", "nccl", "peer", "socket")  # words in the faults of the processes that are left
_shared: list[Any] = []  # in a process of `run_shares`: the counter of steps, and whether its parent has failed
if multiprocessing.parent_process() is not None:  # else Fabric would raise its voice in a fresh process
    silence_fabric()


def run_shares(
    work: Callable[[Sequence[Item], Advance], None], items: Sequence[Item], *, workers: int, advance: Advance
) -> None:
    """Calls `work` with all items, or in each of `workers` processes with its share; both must be picklable."""
    workers = min(workers, len(items))
    if workers <= 1:
        work(items, advance)
        return
    context = multiprocessing.get_context("spawn")
    counter, stop = context.Value("q", 0), context.Event()
    seen = 0

    def advance_all(steps: int) -> None:
        nonlocal seen
        now = counter.value
        advance(steps + now - seen)
        seen = now

    with ProcessPoolExecutor(workers - 1, context, _begin, (counter, stop)) as pool:
        futures = [pool.submit(_run_share, work, items[start::workers]) for start in range(1, workers)]
        try:
            work(items[::workers], advance_all)
            while wait(futures, timeout=SECONDS_BETWEEN_LOOKS).not_done:
                advance_all(0)
            advance_all(0)
        except BaseException:
            stop.set()
            raise
    try:
        for future in futures:
            future.result()
    except BrokenProcessPool:
        raise PipelineError(
            "a training process was killed (out of memory?); finished seeds are kept: run again, "
            "with a smaller resources.workers if memory is short"
        ) from None


def _begin(*shared: Any) -> None:
    _shared.extend(shared)


def _run_share(work: Callable[[Sequence[Item], Advance], None], items: Sequence[Item]) -> None:
    counter, stop = _shared

    def advance(steps: int) -> None:
        if stop.is_set():
            raise SystemExit(1)
        _end_with_parent()
        with counter.get_lock():
            counter.value += steps

    work(items, advance)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None and not parent.is_alive():
        raise SystemExit(1)


def group_devices(resources: Resources, *, usual: Literal["seeds", "data"]) -> tuple[str, ...]:
    """The devices that train one network together, none where it trains alone; `usual` is what several GPUs do."""
    devices = worker_devices(resources)
    chosen = resources.parallel or (usual if devices[0] != "cpu" else "seeds")
    return devices if chosen == "data" and len(devices) > 1 else ()


def run_group(
    work: Callable[[Worker, Advance], Result], devices: Sequence[str], *, precision: str, advance: Advance
) -> Result:
    """Calls `work` in a process for every device and gives back the leader's result (no dataclass: Fabric looks for tensors in it).

    Where one process ends too early all end, with one line.
    """
    from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException

    assert len(devices) > 1, "one device needs no group"
    worker = make_worker(devices[0], precision, devices=devices)
    messages = multiprocessing.get_context("spawn").SimpleQueue()
    errors: list[str] = []

    def listen() -> None:
        """Steps are numbers, errors are lines, and None is the end."""
        while (message := messages.get()) is not None:
            if isinstance(message, str):
                errors.append(message)
            else:
                advance(message)

    listener = Thread(target=listen, daemon=True)
    listener.start()
    try:
        return worker.fabric.launch(_run_rank, work, worker.note, messages)
    except ProcessExitedException:
        messages.put(None)
        listener.join()
        raise PipelineError(errors[0] if errors else GROUP_LOST) from None
    except ProcessRaisedException as error:
        if any(word in str(error).lower() for word in GROUP_BROKEN):
            raise PipelineError(GROUP_LOST) from None
        raise
    finally:
        messages.put(None)
        listener.join()


def _run_rank(fabric: Any, work: Callable[[Worker, Advance], Result], note: str | None, messages: Any) -> Result:
    worker = Worker(fabric, note)

    def advance(steps: int) -> None:
        _end_with_parent()
        if worker.is_leader:
            messages.put(steps)

    try:
        return work(worker, advance)
    except PipelineError as error:
        messages.put(str(error))
        raise SystemExit(1) from None
