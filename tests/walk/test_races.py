"""Edits and kills at random moments of a run through DVC: what is recorded is what ran, and what is current is right.

`FER_RACES` sets the number of rounds, `FER_RACES_SEED` the moments.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet as pq
import yaml
from PIL import Image

ROUNDS, SEED = (int(os.environ.get(name, usual)) for name, usual in (("FER_RACES", "4"), ("FER_RACES_SEED", "0")))
FSCK = [sys.executable, "-m", "fer_pipeline", "fsck"]
STEPS, FACTORS, PICTURES = (3, 4, 5), ("1.0", "0.5"), (0, 1)
LOSS = "run.update(total"
WEIGHTS = "models/primitive/weights.safetensors"


class State(NamedTuple):
    """What a result is made of: a setting, a number in the code, and which of two bytes a raw picture has."""

    steps: int = STEPS[0]
    factor: str = FACTORS[0]
    picture: int = PICTURES[0]

    def other(self, dice: random.Random) -> "State":
        """The same with one of the three changed."""
        field, values = dice.choice([("steps", STEPS), ("factor", FACTORS), ("picture", PICTURES)])
        return self._replace(**{field: dice.choice([value for value in values if value != getattr(self, field)])})


class Race:
    """A project with a folder of pictures as its anchor, of which DVC makes the primitive learner."""

    def __init__(self, project: Any) -> None:
        self.project, self.state = project, State()
        project.dvc("repro", "synthesize@studio")
        folder = project / "own"
        rows = pq.read_table(project / "data/raw/studio", columns=["image", "label", "split"]).to_pylist()
        for number, row in enumerate(rows):
            file = folder / row["split"] / row["label"] / f"{number:03}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            image = row["image"]["bytes"] if isinstance(row["image"], dict) else row["image"]
            Image.open(BytesIO(image)).save(file)
        self.picture, second, *_ = sorted((folder / "train" / "happiness").iterdir())
        self.bytes = [self.picture.read_bytes(), second.read_bytes()]
        self.code = project / "fer_pipeline/strategies/supervised.py"
        self.source = self.code.read_text(encoding="utf-8")
        assert LOSS in self.source
        datasets = {**project.params["datasets"], "studio": {"adapter": "image_folder", "path": "own"}}
        synthesize = project.params["synthesize"]
        drawn = {name: one for name, one in synthesize["sets"].items() if name != "studio"}
        project.write({**project.params, "datasets": datasets, "synthesize": {**synthesize, "sets": drawn}})
        self.put(self.state, all_of_it=True)

    def put(self, state: State, *, all_of_it: bool = False) -> None:
        """Edits the files that differ from a state, as an editor does: at once."""
        before, self.state = self.state, state
        if all_of_it or state.steps != before.steps:
            params = self.project.params
            params["train_primitive"]["training"]["steps"] = state.steps
            replace(self.project / "params.yaml", yaml.safe_dump(params, sort_keys=False).encode())
        if all_of_it or state.factor != before.factor:
            replace(self.code, self.source.replace(LOSS, f"{LOSS} * {state.factor}").encode())
        if all_of_it or state.picture != before.picture:
            replace(self.picture, self.bytes[state.picture])

    def start(self, *options: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "dvc", "repro", *options, "train_primitive"]
        return subprocess.Popen(
            command,
            cwd=self.project.folder,
            env=self.project.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def is_recorded_near(self, edits: list[float]) -> bool:
        """Whether a stage had just ended at one of these times, so that DVC may have seen an edit that it has not."""
        ends = [path.stat().st_mtime for path in (self.project / ".store/provenance").glob("*.json")]
        return any(0 <= edit - end < 3 for edit in edits for end in ends)

    def reproduce(self, *options: str) -> str:
        process = self.start(*options)
        told, _ = process.communicate()
        assert process.returncode == 0, told[-4000:]
        return told

    def weights(self) -> bytes:
        return (self.project / WEIGHTS).read_bytes()

    def is_current(self) -> bool:
        return "up to date" in self.project.dvc("status", "align@studio", "train_primitive")

    def recorded_steps(self) -> tuple[int, int] | None:
        """What dvc.lock and the model's card say, where there are both."""
        card = self.project / "models/primitive/card.json"
        lock = self.project / "dvc.lock"
        stage = (
            yaml.safe_load(lock.read_text(encoding="utf-8"))["stages"].get("train_primitive") if lock.exists() else {}
        )
        if not stage or not card.exists():
            return None
        locked = stage["params"]["params.yaml"]["train_primitive"]["training"]["steps"]
        return locked, json.loads(card.read_bytes())["training"]["settings"]["steps"]


def replace(path: Path, content: bytes) -> None:
    beside = path.with_name(f".{path.name}")
    beside.write_bytes(content)
    beside.replace(path)


def test_edits_and_kills_at_random_moments(project: Callable[[str], Any]) -> None:
    """No edit while a stage runs passes; one of the moment in which DVC records it is found by `fsck`, or mended here.

    That moment lies between a stage's last look at what it read and DVC's own, some hundredths of a second later.
    """
    race, dice = Race(project("race")), random.Random(SEED)
    began = time.monotonic()
    race.reproduce()
    seconds = time.monotonic() - began
    expected = {race.state: race.weights()}
    late = 0
    for number in range(ROUNDS):
        act = dice.choice(["edit", "edit", "edit and take back", "kill", "edit and kill"])
        before = race.state
        race.put(race.state.other(dice))  # so that there is something to do
        process, edits = race.start(), []
        time.sleep(dice.uniform(0, seconds))
        if "edit" in act:
            race.put(race.state.other(dice))
            edits.append(time.time())
        if "back" in act:
            time.sleep(dice.uniform(0, seconds / 2))
            race.put(before)
            edits.append(time.time())
        if "kill" in act:
            os.killpg(process.pid, signal.SIGKILL)
        told, _ = process.communicate()
        about = f"round {number}: {act}, {before} → {race.state}, exit {process.returncode}\n{told[-3000:]}"
        print(about)
        assert process.returncode in (0, 255, -signal.SIGKILL), about
        if race.is_recorded_near(edits):
            late += 1
            pair = race.recorded_steps()
            found = subprocess.run(FSCK, cwd=race.project.folder, env=race.project.environment, capture_output=True)
            if pair and pair[0] != pair[1] and "kill" not in act:
                assert b"train_primitive.training.steps" in found.stdout, about
            race.reproduce("--force")
        if race.is_current():
            assert race.recorded_steps() == (race.state.steps, race.state.steps), about
            assert race.weights() == expected.setdefault(race.state, race.weights()), about
        else:
            race.reproduce()
        assert race.is_current(), about
        assert race.recorded_steps() == (race.state.steps, race.state.steps), about
        assert race.weights() == expected.setdefault(race.state, race.weights()), about
    print(f"{late} of {ROUNDS} edits came when DVC records")
    assert len({*expected.values()}) == len(expected), "each state has a result of its own"

    alone = Race(project("alone"))
    for state, weights in expected.items():
        alone.put(state)
        alone.project.dvc("repro", "--no-run-cache", "train_primitive")
        assert alone.weights() == weights, state
