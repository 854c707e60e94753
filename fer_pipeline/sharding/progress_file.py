"""Write the state of a running stage to `<store>/progress/<stage>@<set>.json`, for whoever watches from outside."""

import json
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from fer_pipeline.core.progress import Progress, with_listener

SECONDS_BETWEEN_WRITES = 2.0


class ProgressFile:
    """The progress of one run and its counts of shards, written at most every two seconds and at the end.

    Fields: `done`, `total`, `unit`, `rate` (units a second), `seconds_left`, `shards` (made, reused, failed),
    `state` (running, finished or failed), `pid`, `host`, `updated`. Unknown numbers are null. Where the state is
    `running` and the process is gone, the run was killed.
    """

    def __init__(self, store: Path, stage: str, name: str) -> None:
        self.shards = {"made": 0, "reused": 0, "failed": 0}
        self._path = store / "progress" / f"{stage}@{name}.json"
        self._about = {"stage": stage, "name": name, "pid": os.getpid(), "host": platform.node()}
        self._written = -SECONDS_BETWEEN_WRITES
        self._progress: Progress | None = None

    @contextmanager
    def follow(self) -> Iterator[None]:
        """Writes whatever progress begins in the block, until its end, and how that ended."""
        with with_listener(self._update):
            try:
                yield
            except BaseException:
                self._write("failed")
                raise
            self._write("finished")

    def _update(self, progress: Progress, items: int) -> None:
        self._progress = progress
        if time.monotonic() - self._written >= SECONDS_BETWEEN_WRITES:
            self._write("running")

    def _write(self, state: str) -> None:
        progress = self._progress
        if progress is None:
            return
        self._written = time.monotonic()
        left = progress.seconds_left
        numbers = {"done": progress.done, "total": progress.total, "unit": progress.unit}
        numbers |= {"rate": round(progress.rate, 3), "seconds_left": None if left is None else round(left, 1)}
        updated = datetime.now(UTC).isoformat(timespec="seconds")
        content = {**self._about, "state": state, **numbers, "shards": self.shards, "updated": updated}
        # Not synced to the disk: it is of no use after a crash of the machine, and would wait for the shards' bytes.
        temporary = self._path.with_name(f".{self._path.name}.{os.getpid()}.tmp")
        try:  # a full disk does not end the run here
            self._path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
            temporary.replace(self._path)
        except OSError:
            temporary.unlink(missing_ok=True)
