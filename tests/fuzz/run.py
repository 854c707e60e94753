"""Read changed files in child processes: count what each reader accepts and refuses, and what ends its process.

    python -m tests.fuzz.run [--inputs 2500] [--seed 0] [READER ...]       a table, and every fault with its command
    python -m tests.fuzz.run --only 1234 --keep FOLDER READER              one input again, its files left in a folder

An input is made from the reader's name, the seed and its number alone. A reader accepts, or refuses by the error that
its user sees as one line. Anything else is a fault: another exception, more than one line, a process that ends or is
stuck, and more memory over the start than `ACCEPTED` or `REFUSED`. Input 0 is the file as it was written.
"""

import argparse
import faulthandler
import multiprocessing
import os
import resource
import shutil
import signal
import sys
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random
from typing import Any, Literal, NamedTuple

from tests.fuzz.mutations import mutate
from tests.fuzz.readers import READERS, Reader

ACCEPTED, REFUSED = 300_000_000, 100_000_000  # bytes over the start
SECONDS = 20  # of the processor for an input; a reader that takes more, or six times as long in all, is stuck
TIMERS = ((signal.ITIMER_PROF, SECONDS), (signal.ITIMER_REAL, 6 * SECONDS))  # each ends the process by its signal
ADDRESS_SPACE = 8_000_000_000  # bytes over the start, so that no input takes the machine's memory

ROOT = Path(__file__).resolve().parents[2]
Outcome = Literal["accepted", "refused", "fault", "died"]


class Result(NamedTuple):
    number: int
    outcome: Outcome
    said: str = ""
    memory: int = 0


@dataclass
class Count:
    """What came of a reader's inputs."""

    reader: str
    seed: int
    results: list[Result] = field(default_factory=list)

    def of(self, outcome: Outcome) -> int:
        return sum(result.outcome == outcome for result in self.results)

    @property
    def memory(self) -> int:
        return max((result.memory for result in self.results), default=0)

    @property
    def faults(self) -> list[str]:
        """Every fault in a line, with what repeats it."""
        again = f"python -m tests.fuzz.run --seed {self.seed} --only"
        lines = []
        for number, outcome, said, memory in self.results:
            limit = {"accepted": ACCEPTED, "refused": REFUSED}.get(outcome)
            if limit is None:
                lines.append(f"{self.reader} {number}: {said} ({again} {number} {self.reader})")
            elif memory > limit:
                lines.append(
                    f"{self.reader} {number}: {outcome} with {memory:,} bytes ({again} {number} {self.reader})"
                )
        if self.results and self.results[0].number == 0 and self.results[0].outcome != "accepted":
            lines.append(f"{self.reader} 0: the file as it was written is not accepted: {self.results[0].said}")
        return lines


def count(name: str, inputs: int, *, seed: int = 0, method: str = "forkserver") -> Count:
    """Gives a reader so many inputs, in as many processes as it ends, and one more; `method` is how they start."""
    context: Any = multiprocessing.get_context(method)
    context.set_forkserver_preload(["tests.fuzz.readers"])  # so that children start with all imported
    counted = Count(name, seed)
    with tempfile.TemporaryDirectory() as folder:
        while len(counted.results) < inputs:
            receiver, sender = context.Pipe(duplex=False)
            first = len(counted.results)
            shutil.rmtree(folder)
            child = context.Process(target=_read_all, args=(name, seed, first, inputs, Path(folder), sender))
            child.start()
            sender.close()
            try:
                while True:
                    counted.results.append(Result(*receiver.recv()))
            except EOFError:
                child.join()
            if child.exitcode:
                number = len(counted.results)
                ending = signal.Signals(-child.exitcode).name if child.exitcode < 0 else f"exit code {child.exitcode}"
                counted.results.append(Result(number, "died", f"the process ended by {ending}"))
    return counted


def _read_all(name: str, seed: int, first: int, end: int, folder: Path, sender: Connection) -> None:
    reader = READERS[name]
    faulthandler.disable()  # a test's own, which would tell of a death in the middle of its report
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())  # C libraries write there
    warnings.simplefilter("ignore")
    space = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + ADDRESS_SPACE
    resource.setrlimit(resource.RLIMIT_AS, (space, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    files = write_files(reader, folder)
    change(name, files, seed, 0, folder)
    run(reader, folder)  # what is loaded at the first use is no input's
    for number in range(first, end):
        change(name, files, seed, number, folder)
        for timer, seconds in TIMERS:
            signal.setitimer(timer, seconds)
        sender.send((number, *run(reader, folder)))
    sender.close()
    os._exit(0)  # what the process that was forked has registered for its end is none of this one's


def write_files(reader: Reader, folder: Path) -> dict[Path, bytes]:
    """Writes what the reader reads, and returns the files that are changed."""
    folder.mkdir(parents=True)
    reader.write(folder)
    found = sorted({path for pattern in reader.files for path in folder.rglob(pattern) if path.is_file()})
    assert found, f"{reader.files} name no file of the reader"
    return {path: path.read_bytes() for path in found}


def change(name: str, files: dict[Path, bytes], seed: int, number: int, folder: Path) -> None:
    """Puts the input of this number in place; a file is never written in place, since it may still be mapped."""
    random, reader = Random(f"{name} {seed} {number}"), READERS[name]
    chosen = random.choice(list(files)) if number else None
    for path, data in files.items():
        if path == chosen:
            data = mutate(path.name, data, random, [other for one, other in files.items() if one.suffix == path.suffix])
        path.unlink(missing_ok=True)
        if path == chosen or not reader.one_at_a_time or (number == 0 and path == next(iter(files))):
            path.write_bytes(data)


def run(reader: Reader, folder: Path) -> tuple[Outcome, str, int]:
    """Reads once, and returns what came of it and the memory that it took at most."""
    before = _reset_peak()
    try:
        reader.read(folder)
        outcome, said = "accepted", ""
    except reader.refusals as error:
        said = str(error)
        is_line = said and said.replace("\t", " ").isprintable() and len(said) < 5000
        outcome, said = ("refused", said) if is_line else ("fault", f"no line for a person: {said[:300]!r}")
    except BaseException as error:
        outcome, said = "fault", f"{type(error).__name__}: {str(error)[:200]!r}{_place(error)}"
    return outcome, said[:500], _peak() - before


def _place(error: BaseException) -> str:
    trace, place = error.__traceback__, ""
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        if Path(file).is_relative_to(ROOT) and "tests" not in Path(file).relative_to(ROOT).parts[:1]:
            place = f" at {Path(file).relative_to(ROOT)}:{trace.tb_lineno}"
        trace = trace.tb_next
    return place


def _reset_peak() -> int:
    try:
        Path("/proc/self/clear_refs").write_text("5")
        return _status("VmRSS")
    except OSError:  # no Linux: only what is more than ever before is seen
        return _peak()


def _peak() -> int:
    try:
        return _status("VmHWM")
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def table(counts: Iterator[Count]) -> Iterator[str]:
    """Yields the lines of the table as they come, then the faults."""
    columns = ("inputs", "accepted", "refused", "exceptions", "dead", "MB")
    yield f"{'reader':24}" + "".join(f"{name:>12}" for name in columns)
    faults: list[str] = []
    for one in counts:
        outcomes = [one.of(outcome) for outcome in ("accepted", "refused", "fault", "died")]
        yield f"{one.reader:24}" + "".join(f"{n:>12,}" for n in (len(one.results), *outcomes, one.memory // 10**6))
        faults += one.faults
    yield from faults
    yield f"{len(faults):,} faults"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("readers", nargs="*", metavar="READER", help=f"of {', '.join(READERS)}; all without")
    parser.add_argument("--inputs", type=int, default=2500, help="for each reader")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, metavar="NUMBER", help="one input, in this process")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="a new folder for its files")
    options = parser.parse_args()
    if unknown := set(options.readers) - set(READERS):
        parser.error(f"unknown: {', '.join(unknown)}")
    if options.only is not None:
        (name,) = options.readers
        folder = options.keep or Path(tempfile.mkdtemp()) / "input"
        change(name, write_files(READERS[name], folder), options.seed, options.only, folder)
        print(folder)
        READERS[name].read(folder)
        return
    last = ""
    for last in table(count(name, options.inputs, seed=options.seed) for name in options.readers or READERS):
        print(last, flush=True)
    sys.exit(0 if last == "0 faults" else 1)


if __name__ == "__main__":
    main()
