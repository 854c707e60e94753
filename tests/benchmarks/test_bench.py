"""Sides in processes of their own: turns, accounts of CPU and memory, faults. Nothing is held against a clock."""

import os
from pathlib import Path

import pytest

from benchmarks.harness import process
from benchmarks.harness.bench import Bench
from benchmarks.harness.rounds import Side

SIDES = "tests.benchmarks.sides"
MB_OF_32_MIB = (32 << 20) / 1e6
TICK = 0.02  # of the kernel's account of living processes


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(quick=True, scratch=tmp_path, patience=60)


def alive(pid: int) -> bool:
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_sides_take_turns_and_may_print(bench: Bench) -> None:
    rounds = bench.alternate(
        {"by 1": Side(f"{SIDES}:counting", {"step": 1}), "by 5": Side(f"{SIDES}:counting", {"step": 5})}, rounds=3
    )
    assert [fact["total"] for fact in rounds["by 1"].facts] == [1, 2, 3]
    assert [fact["total"] for fact in rounds["by 5"].facts] == [5, 10, 15]
    assert rounds["by 1"].facts[0]["threads"] == "1"
    assert all(len(each.cpu) == len(each.wall) == len(each.peak_mb) == 3 for each in rounds.values())
    assert [each.side for each in bench.taken] == ["by 1", "by 5"]
    logs = [log.read_text() for log in bench.scratch.glob("*.log")]
    assert [log.count("noise") for log in logs] == [3, 3]


def test_cpu_is_that_of_the_side_and_of_all_below_it(bench: Bench) -> None:
    rounds = bench.alternate(
        {
            "itself": Side(f"{SIDES}:spinning", {"seconds": 0.2}),
            "waited": Side(f"{SIDES}:spinning_below", {"seconds": 0.2, "wait": True}),
            "living": Side(f"{SIDES}:spinning_below", {"seconds": 0.2, "wait": False}),
        },
        rounds=2,
    )
    for name, each in rounds.items():
        assert each.fault is None
        for cpu, wall, fact in zip(each.cpu, each.wall, each.facts, strict=True):
            assert fact["cpu"] - TICK <= cpu <= 2 * wall + TICK, name  # at most two of its processes run at once
    assert not any(alive(fact["pid"]) for fact in rounds["living"].facts), "a side's processes end with it"


def test_memory_counts_from_the_first_round_or_from_the_mark(bench: Bench) -> None:
    sides = {
        name: Side(f"{SIDES}:holding", {"mebibytes": 32, "marked": marked})
        for name, marked in {"first round": False, "mark": True}.items()
    }
    rounds = bench.alternate(sides, rounds=2)
    for name, rise in {"first round": MB_OF_32_MIB, "mark": 2 * MB_OF_32_MIB}.items():
        for figures in (rounds[name].peak_mb, rounds[name].anon_mb):
            assert figures == pytest.approx([rise, rise], abs=4), name


def test_mapped_files_are_resident_but_not_anonymous(bench: Bench) -> None:
    path = bench.scratch / "mapped"
    path.write_bytes(b"\1" * (32 << 20))
    rounds = bench.alternate({"mapping": Side(f"{SIDES}:mapping", {"path": str(path)})}, rounds=1)["mapping"]
    assert rounds.facts == [{"sum": (32 << 20) // 4096}]
    assert rounds.peak_mb == pytest.approx([MB_OF_32_MIB], abs=4)
    assert rounds.anon_mb == pytest.approx([0], abs=4)


def test_a_failing_side_leaves_and_the_others_go_on(bench: Bench) -> None:
    rounds = bench.alternate(
        {
            "dying": Side(f"{SIDES}:dying"),
            "failing": Side(f"{SIDES}:failing"),
            "stopping": Side(f"{SIDES}:stopping"),
            "unknown": Side(f"{SIDES}:no_such_side"),
            "well": Side(f"{SIDES}:counting", {"step": 1}),
        },
        rounds=2,
    )
    assert rounds["dying"].fault == "the process died (SIGKILL)"
    assert rounds["failing"].fault == "ValueError: no such picture"
    assert rounds["stopping"].fault == "SystemExit: enough"
    assert (rounds["unknown"].fault or "").startswith(
        "AttributeError: module 'tests.benchmarks.sides' has no attribute"
    )
    assert rounds["well"].fault is None
    assert len(rounds["well"].cpu) == 2


def test_patience_ends(tmp_path: Path) -> None:
    bench = Bench(quick=True, scratch=tmp_path, patience=1)
    assert bench.alternate({"s": Side(f"{SIDES}:sleeping")}, rounds=1)["s"].fault == "no answer within 1 s"


def test_peers_need_their_environment(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "PEERS", Path(os.devnull) / "python")
    fault = bench.alternate({"p": Side(f"{SIDES}:spinning", {"seconds": 0.0}, peer=True)})["p"].fault
    assert fault == "the peers' environment is missing; run make bench-peers"
