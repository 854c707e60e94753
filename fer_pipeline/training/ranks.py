"""One training in several processes, one a GPU: work and devices in, what the first process gives back out.

Fabric's launcher starts fresh interpreters and joins them into a group; the batch of every step is divided among them.
Where one ends too early all end, with one line. On a CPU the group speaks by gloo, which the tests use.
"""

import importlib
import multiprocessing
from collections.abc import Callable, Sequence
from threading import Thread
from typing import Any, Literal, TypeVar

from fer_pipeline.core.errors import PipelineError
from fer_pipeline.core.settings import Resources
from fer_pipeline.sharding.devices import worker_devices
from fer_pipeline.training.fabric import Place, make_place, quiet

Result = TypeVar("Result")
Advance = Callable[[int], None]

LOST = (
    "a training process was lost (killed, or out of memory) and the others were ended; run again, it goes on from its "
    "last whole epoch"
)
GROUP_BROKEN = ("connection", "gloo", "nccl", "peer", "socket")  # words of the processes that are left


def together(resources: Resources, *, usual: Literal["seeds", "data"]) -> tuple[str, ...]:
    """The devices that train one network together, none where it trains alone; `usual` is what several GPUs do."""
    devices = worker_devices(resources)
    chosen = resources.parallel or (usual if devices[0] != "cpu" else "seeds")
    return devices if chosen == "data" and len(devices) > 1 else ()


def launch(
    work: Callable[[Place, Advance], Result], devices: Sequence[str], *, precision: str, advance: Advance
) -> Result:
    """Calls `work` in a process for every device; it and what it gives back must be picklable."""
    from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException

    assert len(devices) > 1, "one device needs no launcher"
    place = make_place(devices[0], precision, devices=devices)
    told = multiprocessing.get_context("spawn").SimpleQueue()
    faults: list[str] = []
    results: list[Result] = []
    listener = Thread(target=_listen, args=(told, advance, faults, results), daemon=True)
    listener.start()
    try:
        place.fabric.launch(_run, work, place.note, told, _Silence())
        told.put(None)
        listener.join()
        return results[0]
    except ProcessExitedException:
        told.put(None)
        listener.join()
        raise PipelineError(faults[0] if faults else LOST) from None
    except ProcessRaisedException as error:
        if any(word in str(error).lower() for word in GROUP_BROKEN):
            raise PipelineError(LOST) from None
        raise
    finally:
        told.put(None)


def _listen(told: Any, advance: Advance, faults: list[str], results: list[Any]) -> None:
    """Steps are numbers, faults are lines, the result comes in a tuple, and None is the end."""
    while (message := told.get()) is not None:
        if isinstance(message, str):
            faults.append(message)
        elif isinstance(message, tuple):
            results.append(message[0])
        else:
            advance(message)


class _Silence:
    """An argument that keeps Fabric quiet in a fresh process: it comes to it before Fabric joins the group."""

    def __reduce__(self) -> tuple[Callable[[], "_Silence"], tuple[()]]:
        return _silenced, ()


def _silenced() -> _Silence:
    importlib.import_module("lightning_fabric")  # which would raise the voice of its loggers again
    quiet()
    return _Silence()


def _run(fabric: Any, work: Callable[[Place, Advance], object], note: str | None, told: Any, silence: _Silence) -> None:
    """Tells the first process's result itself: Fabric would look for tensors in it and refuses frozen dataclasses."""
    place = Place(fabric, note)
    parent = multiprocessing.parent_process()

    def advance(steps: int) -> None:
        if parent is not None and not parent.is_alive():
            raise SystemExit(1)
        if place.leads:
            told.put(steps)

    try:
        result = work(place, advance)
        if place.leads:
            told.put((result,))
    except PipelineError as error:
        told.put(str(error))
        raise SystemExit(1) from None
