"""The loop: it learns, it resumes to the byte, every setting counts, and a broken loss stops it in one line."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from fer_pipeline.artifacts.history import read_history
from fer_pipeline.core.errors import DataError, PipelineError
from fer_pipeline.core.progress import Progress
from fer_pipeline.networks.settings import read_card
from fer_pipeline.strategies.supervised import Options
from fer_pipeline.training.fit import length
from fer_pipeline.training.settings import TrainingSettings, Until
from fer_pipeline.training.validation import find_end

FILES = ("weights.safetensors", "card.json", "history.csv", "dvclive/metrics.json")


class PulledError(Exception):
    """The plug."""


def unplug(after: int):
    """An `advance` that raises after so many steps."""
    done = 0

    def advance(steps: int, **more: int) -> None:
        nonlocal done
        done += steps
        if done >= after:
            raise PulledError

    return advance


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_it_learns_the_toy_world_from_chance(train_toy) -> None:
    trained, folder = train_toy("run", epochs=10)
    rows = read_history(folder)
    assert rows[0]["train_loss"] > 0.8
    assert rows[-1]["train_loss"] < 0.3
    assert rows[-1]["validation_accuracy"] > 0.9
    assert trained.fitted.steps == 40
    assert [row["steps"] for row in rows] == list(range(4, 44, 4))


def test_equal_seeds_give_equal_bytes_and_other_seeds_do_not(train_toy) -> None:
    first, again, other = (contents(train_toy(name, seed=seed)[1]) for name, seed in (("a", 3), ("b", 3), ("c", 4)))
    assert first == again
    assert set(FILES) <= set(first)
    assert first["weights.safetensors"] != other["weights.safetensors"]


@pytest.mark.parametrize(
    "settings",
    [
        {"network": {"dropout": 0.4}, "average": 0.9, "balance": "sampling"},
        {
            "optimizer": {"name": "adamw", "learning_rate": 0.01},
            "select": "last",
            "augment": {"erase": 0.5, "rotate": 9},
        },
        {"epochs": None, "until": {"at_most": 12, "patience": 1, "smallest_gain": 0.2, "decay": 0.5}},
    ],
)
def test_a_pause_changes_no_byte(train_toy, settings) -> None:
    whole = contents(train_toy("whole", **settings)[1])
    for step in (1, 4, 5, 9):
        paused = f"paused-{step}"
        with pytest.raises(PulledError):
            train_toy(paused, advance=unplug(step), **settings)
        torch.manual_seed(99)  # whatever the process did in between
        assert contents(train_toy(paused, **settings)[1]) == whole, f"paused after step {step}"


KILLED = """
import runpy, sys
from pathlib import Path
world = runpy.run_path(sys.argv[1])
world["train_in"](Path(sys.argv[2]), "killed", epochs=15)
"""


def test_a_killed_process_is_resumed_to_the_byte(train_toy, tmp_path: Path) -> None:
    here = Path(__file__)
    command = [sys.executable, "-c", KILLED, str(here.parents[1] / "toy_world.py"), str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(here.parents[2]), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    state = tmp_path / "killed-state" / "epoch.pt"
    while not state.exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    _, told = process.communicate()
    assert process.returncode == -signal.SIGKILL, told.decode()
    assert state.exists()
    seen: list[tuple[int, bool]] = []

    def advance(steps: int, *, earlier: bool = False, planned: int = 0) -> None:
        seen.append((steps, earlier))

    resumed = contents(train_toy("killed", epochs=15, advance=advance)[1])
    assert seen[0][0] > 0, "nothing was taken up"
    assert [earlier for _, earlier in seen] == [True] + [False] * (len(seen) - 1)
    assert resumed == contents(train_toy("whole", epochs=15)[1])


def test_a_damaged_state_is_named(train_toy, tmp_path: Path) -> None:
    with pytest.raises(PulledError):
        train_toy("paused", advance=unplug(5))
    (tmp_path / "paused-state" / "epoch.pt").write_bytes(b"half a file")
    with pytest.raises(DataError, match=r"epoch\.pt is damaged .*; remove it"):
        train_toy("paused")


BASE = {"epochs": 2, "batch": 16}
CHANGES = [
    {"epochs": 3},
    {"epochs": None, "steps": 5},
    {"batch": 12},
    {"optimizer": {"learning_rate": 0.01}},
    {"optimizer": {"momentum": 0.5}},
    {"optimizer": {"nesterov": True}},
    {"optimizer": {"weight_decay": 0.1}},
    {"optimizer": {"name": "adam"}},
    {"optimizer": {"name": "adamw", "weight_decay": 0.1}},
    {"optimizer": {"name": "adam", "betas": [0.5, 0.9]}},
    {"optimizer": {"name": "adam", "weight_decay": 0.1}},
    {"schedule": {"floor": 0.5}},
    {"schedule": {"warmup_epochs": 1}},
    {"schedule": {"name": "step", "every": 1}},
    {"schedule": {"name": "step", "every": 1, "factor": 0.5}},
    {"schedule": {"name": "step", "every": 1, "warmup_epochs": 1}},
    {"schedule": {"name": "constant"}},
    {"schedule": {"name": "constant", "warmup_epochs": 1}},
    {"augment": {"flip": 0.0}},
    {"augment": {"translate": 0.2}},
    {"augment": {"rotate": 20}},
    {"augment": {"zoom": 0.2}},
    {"augment": {"brightness": 0.3}},
    {"augment": {"contrast": 0.3}},
    {"augment": {"saturation": 0.9}},
    {"augment": {"grey": 0.7}},
    {"augment": {"erase": 0.7}},
    {"augment": {"erase": 0.7, "erase_area": [0.3, 0.4]}},
    {"order": "blocks"},
    {"order": "blocks", "buffer_rows": 200},
    {"balance": "weights"},
    {"balance": "sampling"},
    {"balance": "dataset"},
    {"balance": "dataset", "balance_per_class": 5},
    {"clip": 0.1},
    {"average": 0.9},
]


def test_every_setting_changes_the_weights(train_toy) -> None:
    found = {}
    for index, change in enumerate([{}, *CHANGES]):
        _, folder = train_toy(f"run{index}", **{**BASE, "select": "last", "augment": {}, "optimizer": {}, **change})
        digest = hashlib.sha256((folder / "weights.safetensors").read_bytes()).hexdigest()
        assert digest not in found, f"{change} gives the same network as {found[digest]}"
        found[digest] = change
    tried = {name for change in CHANGES for name in change}
    untried = {"until", "select", "monitor", "precision", "threads"}  # tested below and in test_parts.py
    untried |= {"frozen_until", "old_layers_rate"}  # in test_freezing.py
    assert tried | untried == set(TrainingSettings.model_fields)


def test_select_and_monitor_choose_the_epoch(train_toy) -> None:
    history = train_toy("last", select="last", epochs=5)[0].fitted
    assert history.epoch == 5
    for monitor, pick in (("loss", min), ("accuracy", max), ("mean_class_accuracy", max)):
        fitted = train_toy(monitor, monitor=monitor, epochs=5)[0].fitted
        values = [row[f"validation_{monitor}"] for row in fitted.history]
        assert values[fitted.epoch - 1] == pick(values)
        ties = [
            row["validation_loss"] for row, value in zip(fitted.history, values, strict=True) if value == pick(values)
        ]
        assert fitted.history[fitted.epoch - 1]["validation_loss"] == min(ties)


def test_a_loss_that_breaks_is_one_line(train_toy) -> None:
    with pytest.raises(PipelineError, match=r"became NaN or infinite in epoch 1; lower the learning rate"):
        train_toy("run", optimizer={"learning_rate": 1e30})


def test_the_length_depends_on_the_labelled_images_alone(train_toy, toy) -> None:
    alone = train_toy("alone")[0]
    mixed = train_toy("mixed", sets={"labelled": toy(60, 0), "mined": toy(600, 2)})[0]
    assert alone.fitted.steps == mixed.fitted.steps == 12
    assert alone.steps_per_own_epoch == 4
    assert mixed.steps_per_own_epoch == 42  # ceil(660 / 16): the paper's ten times as long epoch
    assert length(TrainingSettings(epochs=None, steps=7), 60) == (7, 1)


@pytest.mark.parametrize(
    ("values", "settings", "cosine", "found"),
    [
        # Two checks without a gain after the third epoch: the rate falls from the fifth on, for 0.25 * 5 epochs.
        ([0.1, 0.2, 0.3, 0.3, 0.3], {"patience": 2}, True, (5, 7, True)),
        ([0.1, 0.2, 0.3, 0.3, 0.3, 0.9, 0.9], {"patience": 2}, True, (5, 7, True)),  # what follows changes nothing
        ([0.1, 0.2, 0.3, 0.3, 0.3], {"patience": 2}, False, (5, 5, True)),
        ([0.1, 0.2, 0.3, 0.3, 0.3], {"patience": 3}, True, (None, 20, False)),
        ([0.1, 0.2, 0.3, 0.305, 0.31], {"patience": 2, "smallest_gain": 0.02}, False, (5, 5, True)),
        ([0.1, 0.2, 0.3, 0.3, 0.3], {"patience": 2, "at_least": 6}, False, (None, 20, False)),
        ([0.1, 0.2, 0.3, 0.3, 0.3, 0.3], {"patience": 2, "at_least": 6}, False, (6, 6, True)),
        # Means of two: 0.2, 0.3, 0.25: one check without a gain.
        ([0.1, 0.3, 0.2, 0.4, 0.1, 0.4], {"patience": 1, "checks_every": 2}, False, (6, 6, True)),
        ([0.02 * epoch for epoch in range(16)], {"patience": 1}, True, (16, 20, False)),  # 16 + 4 are at_most
        ([0.02 * epoch for epoch in range(20)], {"patience": 1}, False, (20, 20, False)),
    ],
)
def test_the_rule_that_ends_a_training_by_hand(values, settings, cosine: bool, found) -> None:
    until = Until(at_most=20, **settings)
    assert find_end(values, until, monitor="accuracy", cosine=cosine) == found
    assert find_end([-value for value in values], until, monitor="loss", cosine=cosine) == found


def test_a_training_ends_when_its_validation_has_stopped_rising(train_toy) -> None:
    """One rule, another length for each: the rate is constant up to there, then falls to nothing; both are told."""
    until = {"at_most": 40, "patience": 2, "smallest_gain": 0.05, "decay": 0.5}
    watched = Progress("train", 0, "steps")
    result, folder = train_toy("run", epochs=None, until=until, optimizer={"learning_rate": 0.02}, advance=watched)
    assert (watched.done, watched.total) == (result.fitted.steps, result.fitted.steps)
    rows = read_history(folder)
    values = [row["validation_mean_class_accuracy"] for row in rows]
    start, end, stopped = find_end(values, Until(**until), monitor="mean_class_accuracy", cosine=True)
    assert stopped is result.fitted.stopped_rising is True
    assert start is not None
    assert len(rows) == end < 40
    assert {row["learning_rate"] for row in rows[:start]} == {0.02}
    rates = [row["learning_rate"] for row in rows[start:]]
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] < 0.002
    card = read_card(folder).training
    assert card["steps"] == result.fitted.steps == 4 * end
    assert card["times_seen"] == result.times_seen == {"labelled": 4 * end * 16 / 60}
    assert card["stopped_rising"] is True
    short = train_toy("short", epochs=None, until=until | {"at_most": 3, "smallest_gain": 0.0, "patience": 9})[0]
    assert (short.fitted.steps, short.fitted.stopped_rising) == (12, False)
    assert train_toy("fixed")[0].fitted.stopped_rising is None


def test_history_holds_no_clock_and_all_epochs(train_toy) -> None:
    _, folder = train_toy("run", options=Options(smoothing=0.1))
    tsv = (folder / "dvclive/plots/metrics/validation_accuracy.tsv").read_text().splitlines()
    assert tsv[0].split("\t") == ["step", "validation_accuracy"]
    expected = [row["validation_accuracy"] for row in read_history(folder)]
    assert [float(line.split("\t")[1]) for line in tsv[1:]] == expected
    assert not list(folder.rglob("dvc.yaml"))
    assert not list(folder.rglob(".dvc"))
