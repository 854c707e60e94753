"""Start training processes: independent seeds side by side, or one training divided among several devices.

`run_shares` gives each of several fresh processes its share of independent items at once, so that it reads its data
once; this process takes the first share, since it has loaded already what fresh interpreters must load first (a forked
torch may hang on its threads). `run_group` starts one process a device, which Fabric joins into a group that divides
the batch of every step; on CPUs it speaks by gloo, which the tests use.

A process whose parent is gone, or has failed, ends at its next step.
"""

import importlib
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
_steps_done: Any = None  # in a process of `run_shares`: the counter that it shares with its parent, …
_stop: Any = None  # … and whether the parent has failed


def run_shares(
    work: Callable[[Sequence[Item], Advance], None], items: Sequence[Item], *, workers: int, advance: Advance
) -> None:
    """Calls `work` with all items, or in each of `workers` processes with its share; both must be picklable."""
    if workers <= 1 or len(items) <= 1:
        work(items, advance)
        return
    workers = min(workers, len(items))
    context = multiprocessing.get_context("spawn")
    counter, stop = context.Value("q", 0), context.Value("b", 0)
    seen = 0

    def advance_all(steps: int) -> None:
        """Counts steps made here, and those that the others have made since the last look."""
        nonlocal seen
        now = counter.value
        advance(steps + now - seen)
        seen = now

    with ProcessPoolExecutor(workers - 1, mp_context=context, initializer=_begin, initargs=(counter, stop)) as pool:
        running = {pool.submit(_run_share, work, items[start::workers]) for start in range(1, workers)}
        finished = set()
        try:
            work(items[::workers], advance_all)
            while running:
                ended, running = wait(running, timeout=SECONDS_BETWEEN_LOOKS)
                finished |= ended
                advance_all(0)
        except BaseException:
            stop.value = 1
            raise
    for future in finished:
        try:
            future.result()
        except BrokenProcessPool:
            raise PipelineError(
                "a training process was killed (out of memory?); finished seeds are kept: run again, "
                "with a smaller resources.workers if memory is short"
            ) from None


def _begin(counter: Any, stop: Any) -> None:
    global _steps_done, _stop
    _steps_done, _stop = counter, stop


def _run_share(work: Callable[[Sequence[Item], Advance], None], items: Sequence[Item]) -> None:
    parent = multiprocessing.parent_process()

    def advance(steps: int) -> None:
        if _stop.value or (parent is not None and not parent.is_alive()):
            raise SystemExit(1)
        with _steps_done.get_lock():
            _steps_done.value += steps

    work(items, advance)


def group_devices(resources: Resources, *, usual: Literal["seeds", "data"]) -> tuple[str, ...]:
    """The devices that train one network together, none where it trains alone; `usual` is what several GPUs do."""
    devices = worker_devices(resources)
    chosen = resources.parallel or (usual if devices[0] != "cpu" else "seeds")
    return devices if chosen == "data" and len(devices) > 1 else ()


def run_group(
    work: Callable[[Worker, Advance], Result], devices: Sequence[str], *, precision: str, advance: Advance
) -> Result:
    """Calls `work` in a process for every device and gives back the leader's result; both must be picklable.

    Where one process ends too early all end, with one line.
    """
    from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException

    assert len(devices) > 1, "one device needs no group"
    worker = make_worker(devices[0], precision, devices=devices)
    messages = multiprocessing.get_context("spawn").SimpleQueue()
    errors: list[str] = []
    results: list[Result] = []
    listener = Thread(target=_listen, args=(messages, advance, errors, results), daemon=True)
    listener.start()
    try:
        worker.fabric.launch(_run_rank, work, worker.note, messages, _Silence())
        messages.put(None)
        listener.join()
        return results[0]
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


def _listen(messages: Any, advance: Advance, errors: list[str], results: list[Any]) -> None:
    """Steps are numbers, errors are lines, the result comes in a tuple, and None is the end."""
    while (message := messages.get()) is not None:
        if isinstance(message, str):
            errors.append(message)
        elif isinstance(message, tuple):
            results.append(message[0])
        else:
            advance(message)


class _Silence:
    """An argument that keeps Fabric quiet in a fresh process: it comes to it before Fabric joins the group."""

    def __reduce__(self) -> tuple[Callable[[], "_Silence"], tuple[()]]:
        return _make_silence, ()


def _make_silence() -> _Silence:
    importlib.import_module("lightning_fabric")  # which would raise the voice of its loggers again
    silence_fabric()
    return _Silence()


def _run_rank(
    fabric: Any, work: Callable[[Worker, Advance], object], note: str | None, messages: Any, silence: _Silence
) -> None:
    """Sends the leader's result itself: Fabric would look for tensors in it and refuses frozen dataclasses."""
    worker = Worker(fabric, note)
    parent = multiprocessing.parent_process()

    def advance(steps: int) -> None:
        if parent is not None and not parent.is_alive():
            raise SystemExit(1)
        if worker.is_leader:
            messages.put(steps)

    try:
        result = work(worker, advance)
        if worker.is_leader:
            messages.put((result,))
    except PipelineError as error:
        messages.put(str(error))
        raise SystemExit(1) from None
