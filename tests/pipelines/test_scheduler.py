"""Order, cores and GPUs of a scheduler: random graphs, ends and machines, checked step by step against the rules."""

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.workspace import UNSUCCESSFUL, Cores, Needs, Outcome, Scheduler, Stage, Start

ENDS = [Outcome.COMPLETED, Outcome.RUN_CACHE, Outcome.CACHED, Outcome.FAILED, Outcome.CANCELLED]


@st.composite
def graphs(draw: st.DrawFn) -> dict[str, Stage]:
    """Up to twelve stages, upstream first, with needs of all kinds; some stand on stages that it does not have."""
    stages: dict[str, Stage] = {}
    cores: st.SearchStrategy[Cores] = st.one_of(st.none(), st.just("all"), st.integers(1, 6))
    for number in range(draw(st.integers(0, 12))):
        upstream = draw(st.sets(st.sampled_from([*stages, "elsewhere"]), max_size=4))
        needs = Needs(gpu=draw(st.booleans()), cores=draw(cores))
        stages[f"s{number}"] = Stage(
            f"s{number}", upstream=tuple(sorted(upstream)), needs=needs, stale=draw(st.booleans())
        )
    return stages


def upstream_of(stages: dict[str, Stage], stage: Stage) -> set[str]:
    """All that a stage stands on within the scheduler, directly or not."""
    direct = {one for one in stage.upstream if one in stages}
    return direct.union(*(upstream_of(stages, stages[one]) for one in direct))


@settings(max_examples=150, deadline=None)
@given(
    stages=graphs(),
    ends=st.lists(st.sampled_from(ENDS), min_size=12, max_size=12),
    number_cores=st.integers(1, 5),
    gpus=st.lists(st.sampled_from("abc"), unique=True),
    choose=st.randoms(use_true_random=False),
)
def test_a_walk_keeps_its_rules(stages, ends, number_cores, gpus, choose) -> None:
    scheduler = Scheduler(stages, cores=range(number_cores), gpus=gpus)
    expected = scheduler.list_expected()
    assert expected == [
        address
        for address, stage in stages.items()
        if any(stages[one].stale for one in {address, *upstream_of(stages, stage)})
    ]
    own_ends = dict(zip(stages, ends, strict=False))
    running: dict[str, Start] = {}
    began: list[str] = []
    while not scheduler.done:
        for start in scheduler.start_ready():
            address = start.stage.address
            upstream = {
                scheduler.outcomes[one] for one in start.stage.upstream if one in stages
            }  # all of them have ended
            assert (start.outcome is Outcome.SKIPPED) == bool(upstream & UNSUCCESSFUL)
            if start.outcome is not Outcome.SKIPPED:
                assert (start.outcome is Outcome.CACHED) == (not start.stage.stale and upstream <= {Outcome.CACHED})
            runs = start.outcome is None
            assert not runs or address in expected
            wanted = start.stage.needs.cores
            least = number_cores if wanted == "all" else min(wanted or 1, number_cores)
            assert (len(start.cores) >= least) if runs else not start.cores
            assert wanted is None or not runs or len(start.cores) == least
            assert (start.gpu is not None) == (runs and start.stage.needs.gpu and bool(gpus))
            running[address] = start
            began.append(address)
        cores = [core for start in running.values() for core in start.cores]
        held = [start.gpu for start in running.values() if start.gpu is not None]
        assert len(set(cores)) == len(cores) <= number_cores
        assert set(cores) <= set(range(number_cores))
        assert len(set(held)) == len(held)
        assert set(held) <= set(gpus)
        assert running, "nothing runs and nothing can start"
        address = choose.choice(sorted(running))
        scheduler.finish(address, running.pop(address).outcome or own_ends[address])
    assert sorted(began) == sorted(stages) == sorted(scheduler.outcomes)
    behind = {
        name
        for name, stage in stages.items()
        if any(scheduler.outcomes[one] in {Outcome.FAILED, Outcome.CANCELLED} for one in upstream_of(stages, stage))
    }
    assert {name for name, outcome in scheduler.outcomes.items() if outcome is Outcome.SKIPPED} == behind


@settings(max_examples=30, deadline=None)
@given(stages=graphs())
def test_on_one_core_the_order_is_that_of_the_graph(stages: dict[str, Stage]) -> None:
    stages = {name: Stage(name, upstream=stage.upstream, needs=stage.needs) for name, stage in stages.items()}
    scheduler = Scheduler(stages, cores=[7], gpus=["a"])
    order = []
    while not scheduler.done:
        (start,) = scheduler.start_ready()
        assert start.cores == (7,)
        order.append(start.stage.address)
        scheduler.finish(start.stage.address, Outcome.COMPLETED)
    assert order == list(stages)


def began(scheduler: Scheduler) -> dict[str, Start]:
    return {start.stage.address: start for start in scheduler.start_ready()}


def many(*needs: Needs, upstream: Sequence[str] = ()) -> dict[str, Stage]:
    """Stages `0`, `1`, … side by side."""
    return {str(number): Stage(str(number), upstream=tuple(upstream), needs=one) for number, one in enumerate(needs)}


def test_where_nothing_is_stale_nothing_runs() -> None:
    stages = {name: Stage(name, upstream=("a",) * (name != "a"), stale=False) for name in "abc"}
    scheduler = Scheduler(stages, cores=[0])
    assert {name: start.outcome for name, start in began(scheduler).items()} == {"a": Outcome.CACHED}
    scheduler.finish("a", Outcome.CACHED)
    assert {name: start.outcome for name, start in began(scheduler).items()} == dict.fromkeys("bc", Outcome.CACHED)


def test_cores_are_shared_equally_and_freed() -> None:
    scheduler = Scheduler(many(*[Needs()] * 3), cores=[0, 1, 2, 3, 4, 5])
    assert {name: start.cores for name, start in began(scheduler).items()} == {"0": (0, 1), "1": (2, 3), "2": (4, 5)}
    scheduler = Scheduler(many(*[Needs()] * 5), cores=[0, 1])
    assert list(began(scheduler)) == ["0", "1"]
    scheduler.finish("1", Outcome.COMPLETED)
    assert {name: start.cores for name, start in began(scheduler).items()} == {"2": (1,)}


def test_a_stage_that_takes_all_cores_is_alone() -> None:
    scheduler = Scheduler(many(Needs(cores="all"), Needs(), Needs(cores=99)), cores=[0, 1])
    assert {name: start.cores for name, start in began(scheduler).items()} == {"0": (0, 1)}
    scheduler.finish("0", Outcome.COMPLETED)
    assert {name: start.cores for name, start in began(scheduler).items()} == {"1": (0,)}
    assert not began(scheduler)
    scheduler.finish("1", Outcome.FAILED)
    assert {name: start.cores for name, start in began(scheduler).items()} == {"2": (0, 1)}


def test_one_gpu_is_for_one_stage_and_the_others_go_on_beside_it() -> None:
    stages = many(Needs(gpu=True, cores=1), Needs(gpu=True, cores=1), Needs(cores=1))
    scheduler = Scheduler(stages, cores=[0, 1, 2], gpus=["GPU-4f"])
    assert {name: start.gpu for name, start in began(scheduler).items()} == {"0": "GPU-4f", "2": None}
    scheduler.finish("0", Outcome.CANCELLED)
    assert {name: start.gpu for name, start in began(scheduler).items()} == {"1": "GPU-4f"}
    assert len(began(Scheduler(stages, cores=[0, 1, 2]))) == 3  # without any they share the cores


def test_what_is_skipped_names_the_stage_that_failed() -> None:
    stages = {name: Stage(name, upstream=up) for name, up in {"a": (), "b": ("a",), "c": ("b",)}.items()}
    for outcome, told in ((Outcome.FAILED, "not run: a failed"), (Outcome.CANCELLED, "not run: a was cancelled")):
        scheduler = Scheduler(stages, cores=[0])
        began(scheduler)
        scheduler.finish("a", outcome)
        for name in "bc":
            assert began(scheduler)[name].reason == told
            scheduler.finish(name, Outcome.SKIPPED)
        assert scheduler.done


def test_a_machine_without_cores_is_refused() -> None:
    with pytest.raises(ValueError, match="core"):
        Scheduler(many(Needs()), cores=[])
