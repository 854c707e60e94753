"""Shards keep their content where a set gains, loses or renames samples: only those around the change differ."""

import random

import pytest

from fer_pipeline.alignment.cuts import Cut, ends_shard

ROWS = 40
IDS = [f"images/{number:06d}.jpg" for number in range(8000)]


def shards(ids: list[str], *, rows: int = ROWS, cut: Cut = "ids") -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = []
    waiting: list[str] = []
    for one in ids:
        waiting.append(one)
        if ends_shard(one, len(waiting), rows=rows, cut=cut):
            found.append(tuple(waiting))
            waiting = []
    return [*found, tuple(waiting)] if waiting else found


def test_nothing_is_lost_and_lengths_are_bounded() -> None:
    found = shards(IDS)
    assert [one for shard in found for one in shard] == IDS
    lengths = [len(shard) for shard in found[:-1]]
    assert min(lengths) >= ROWS // 4
    assert max(lengths) <= 2 * ROWS
    # Ten and a geometric law of one in forty, cut at 80: 10 + 40 (1 - (39/40)^70) = 43.2 on average.
    assert sum(lengths) / len(lengths) == pytest.approx(43.2, abs=4)


def test_by_count_all_have_one_length() -> None:
    assert {len(shard) for shard in shards(IDS, cut="count")} == {ROWS}


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_small_shards(rows: int) -> None:
    assert {len(shard) for shard in shards(IDS[:500], rows=rows)} <= set(range(1, 2 * rows + 1))


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("change", ["lost", "gained", "renamed"])
def test_a_change_anywhere_moves_few_shards(change: str, seed: int) -> None:
    place = random.Random(seed).randrange(len(IDS))
    new = [] if change == "lost" else [f"new/{seed}.jpg"]
    changed = IDS[:place] + new + IDS[place + (change != "gained") :]
    before, after = set(shards(IDS)), set(shards(changed))
    assert 1 <= len(after - before) <= 6
    assert len(set(shards(changed, cut="count")) - set(shards(IDS, cut="count"))) > (6 if place < 7000 else 0) or (
        change == "renamed"
    )


def test_a_set_that_grows_at_its_end_keeps_all_but_the_last() -> None:
    before, after = shards(IDS), shards([*IDS, "more/1.jpg", "more/2.jpg"])
    assert after[: len(before) - 1] == before[:-1]
