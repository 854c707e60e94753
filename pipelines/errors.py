"""The errors that a user can mend: one line with what was found, what was expected and what to do."""

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from prefect.client.schemas.objects import State
from prefect.states import Failed


class FlowError(Exception):
    """A fault of settings, workspace or surroundings; its message is all that a person needs."""


class Busy(Exception):  # noqa: N818 - no fault: DVC's own lock was held for too long, and it may be tried again
    """DVC could not get one of its short locks in time."""


P = ParamSpec("P")
T = TypeVar("T")


def told_in_one_line(work: Callable[P, T]) -> Callable[P, T | State[Any]]:
    """A flow's or task's function whose FlowError becomes a failed state with its message, instead of a traceback."""

    @functools.wraps(work)
    def call(*args: P.args, **kwargs: P.kwargs) -> T | State[Any]:
        try:
            return work(*args, **kwargs)
        except FlowError as error:
            return Failed(message=str(error))

    return call
