"""No changed file makes a reader do anything but accept it, or refuse it in a line, within bounds of memory."""

import mmap
import os
import signal
from pathlib import Path

import pytest

from tests.fuzz import run
from tests.fuzz.readers import READERS, Reader


@pytest.mark.parametrize("name", READERS)
def test_a_changed_file_is_accepted_or_refused(name: str) -> None:
    counted = run.count(name, 500)
    assert not counted.faults, "\n".join(counted.faults)
    assert counted.of("accepted") + counted.of("refused") == 500


class Refused(Exception):  # noqa: N818 - as the readers say it
    """What the reader below says to its user, as it stands."""


def take(size: int) -> None:
    """Touches pages that are surely new: a large process may have freed as many, which its fork would take again."""
    with mmap.mmap(-1, size) as memory:
        for start in range(0, size, mmap.PAGESIZE):
            memory[start] = 1


def misbehave(folder: Path) -> None:
    """Does what no reader may, by the number of the input."""
    number = int((folder / "number").read_text())
    if number == 1:
        os.kill(os.getpid(), signal.SIGSEGV)
    if number == 2:
        raise KeyError("column")
    if number == 3:
        raise Refused("two\nlines")
    if number == 4:
        take(run.ACCEPTED + 50_000_000)
    if number == 5:
        take(run.REFUSED + 50_000_000)
        raise Refused("one line")
    if number == 6:
        os._exit(3)
    if number == 8:
        raise Refused("one line")


def test_every_kind_of_fault_is_counted_with_what_repeats_it(monkeypatch: pytest.MonkeyPatch) -> None:
    reader = Reader(lambda folder: (folder / "number").write_text("0"), ("number",), misbehave, refusals=(Refused,))
    monkeypatch.setitem(READERS, "misbehaving", reader)
    monkeypatch.setattr(run, "change", lambda *known: (known[-1] / "number").write_text(str(known[-2])))
    counted = run.count("misbehaving", 9, seed=7, method="fork")  # whose children know this reader
    outcomes = ["accepted", "died", "fault", "fault", "accepted", "refused", "died", "accepted", "refused"]
    assert [result.outcome for result in counted.results] == outcomes
    said = ["by SIGSEGV", "KeyError", "no line for a person", "accepted with", "refused with", "by exit code 3"]
    assert len(counted.faults) == len(said)
    for number, (fault, words) in enumerate(zip(counted.faults, said, strict=True), 1):
        assert words in fault
        assert f"--seed 7 --only {number} misbehaving" in fault
    assert abs(counted.memory - run.ACCEPTED - 50_000_000) < 10_000_000
    *_, row, first, _, _, _, _, _, last = run.table(iter([counted]))
    assert row.split() == ["misbehaving", "9", "3", "2", "2", "2", str(counted.memory // 10**6)]
    assert (first, last) == (counted.faults[0], "6 faults")


def test_an_input_is_made_by_its_number_alone(tmp_path: Path) -> None:
    """What is reported can be made again, whatever came before it; another number or seed gives another input."""
    reader, made = READERS["census"], []
    for seed, number in ((0, 7), (0, 8), (1, 7), (0, 7)):
        folder = tmp_path / str(len(made))
        files = run.write_files(reader, folder)
        run.change("census", files, seed, number, folder)
        made.append([path.read_bytes() for path in files])
    assert made[0] == made[3]
    assert made[0] != made[1]
    assert made[0] != made[2]
