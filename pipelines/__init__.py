"""Run the DVC graph in Prefect flows: parallel, restartable, scheduled. Imports nothing of `fer_pipeline`."""

from pipelines.documents import one_line

TELEMETRY_OFF = {
    "DO_NOT_TRACK": "1",
    "DVC_NO_ANALYTICS": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_UI_V2_ENABLED": "false",  # that UI loads the settings of its telemetry all the same
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
}
# In memory, as by default, a server that is started again would never free the slots of a dead run.
LEASES_ON_DISK = {"PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem"}


class FlowError(Exception):
    """A fault of settings, workspace or machine that a user can fix: one line of what was found and what to do.

    It may hold names from files of strangers: line breaks and terminal escapes are taken out of it here, before it is
    printed, logged or shown by Prefect.
    """

    def __str__(self) -> str:
        return one_line(super().__str__())


class RefusedError(FlowError):
    """A run that must not begin now: another one holds the workspace, or it holds what is not committed."""
