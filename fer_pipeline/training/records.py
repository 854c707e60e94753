"""Record the course of a training, one row an epoch: `history.csv`, and DVCLive's files for DVC's metrics and plots.

DVCLive runs apart from git, DVC's experiments and the network, and without its clock: its files depend on the rows
alone.
"""

import logging
from pathlib import Path
from typing import Any

from fer_pipeline.artifacts.history import Row, write_history

LIVE = "dvclive"


class Record:
    """Follows a training while it runs; on a resume the earlier rows are written again first."""

    def __init__(self, folder: Path, rows: list[Row]) -> None:
        self.folder, self.rows = folder, rows
        self.live = _quiet_live(folder / LIVE)
        for row in rows:
            self._log(row)

    def add(self, row: Row) -> None:
        """One more epoch."""
        self.rows.append(row)
        self._log(row)

    def close(self) -> None:
        """Writes the history and ends DVCLive."""
        write_history(self.folder, self.rows)
        self.live.end()

    def _log(self, row: Row) -> None:
        self.live.step = int(row["epoch"])
        for name, value in row.items():
            if name != "epoch":
                self.live.log_metric(name, value, timestamp=False)
        self.live.make_summary()


def _quiet_live(folder: Path) -> Any:
    # dvclive imports DVC, which takes a second.
    from dvclive.live import Live

    class Apart(Live):
        """DVCLive as a writer of files: it opens (and where there is none, would found) no DVC repository."""

        def _init_dvc(self) -> None:
            self._dvc_file = "dvc.yaml"

        def _init_studio(self) -> None:
            self._studio_events_to_skip |= {"start", "data", "done"}

    logging.getLogger("dvclive").setLevel(logging.ERROR)
    return Apart(dir=str(folder), save_dvc_exp=False, dvcyaml=None, report=None, monitor_system=False)
