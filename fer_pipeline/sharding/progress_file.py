"""The state of a running stage in a file, `<store>/progress/<stage>@<set>.json`, for whoever watches from outside."""

import json
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from fer_pipeline.core.progress import Progress, with_listener

SECONDS_BETWEEN_WRITINGS = 2.0


class Bulletin:
    """Watches the progress of one run and its counts of shards; written at most every two seconds, and at the end.

    Fields: `done`, `total`, `unit`, `rate` (units a second), `seconds_left`, `shards` (made, reused, failed),
    `state` (running, finished or failed), `pid`, `host`, `updated`. Numbers that nobody can know are null. Where the
    state is `running` and the process is gone, the run was killed.
    """

    def __init__(self, store: Path, stage: str, name: str) -> None:
        self.shards = {"made": 0, "reused": 0, "failed": 0}
        self._path = store / "progress" / f"{stage}@{name}.json"
        self._about = {"stage": stage, "name": name, "pid": os.getpid(), "host": platform.node()}
        self._last = -SECONDS_BETWEEN_WRITINGS

    @contextmanager
    def watching(self, now: Progress) -> Iterator[None]:
        """Written from the first item to the end of the block, and how it ended."""
        now.listeners.append(self._hear)
        try:
            yield
        except BaseException:
            self._write(now, "failed")
            raise
        self._write(now, "finished")

    @contextmanager
    def overhearing(self) -> Iterator[None]:
        """The same of whatever progress begins in the block, for a stage that makes no shards."""
        heard: list[Progress] = []

        def hear(now: Progress, items: int) -> None:
            heard[:] = [now]
            self._hear(now, items)

        try:
            with with_listener(hear):
                yield
        except BaseException:
            if heard:
                self._write(heard[0], "failed")
            raise
        if heard:
            self._write(heard[0], "finished")

    def _hear(self, now: Progress, items: int) -> None:
        if time.monotonic() - self._last >= SECONDS_BETWEEN_WRITINGS:
            self._write(now, "running")

    def _write(self, now: Progress, state: str) -> None:
        self._last = time.monotonic()
        left = now.seconds_left
        content = {
            **self._about,
            "state": state,
            "done": now.done,
            "total": now.total,
            "unit": now.unit,
            "rate": round(now.rate, 3),
            "seconds_left": None if left is None else round(left, 1),
            "shards": self.shards,
            "updated": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        # Not brought to the disk: it is of no use after a crash of the machine, and would wait for the shards' bytes.
        temporary = self._path.with_name(f".{self._path.name}.{os.getpid()}.tmp")
        try:  # a disk without room for it does not end the run
            self._path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
            temporary.replace(self._path)
        except OSError:
            temporary.unlink(missing_ok=True)
