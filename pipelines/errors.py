"""Define the errors that a user can fix: one line with what was found, what was expected and what to do."""

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from prefect.client.schemas.objects import State
from prefect.states import Failed


class FlowError(Exception):
    """A fault of settings, workspace or machine; its message is all that a person needs."""


class DvcBusyError(Exception):
    """DVC's own lock was held for too long; the stage may be tried again."""


P = ParamSpec("P")
T = TypeVar("T")


def fail_in_one_line(function: Callable[P, T]) -> Callable[P, T | State[Any]]:
    """Make a FlowError of a flow's or task's function a failed state with its message, instead of a traceback."""

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T | State[Any]:
        try:
            return function(*args, **kwargs)
        except FlowError as error:
            return Failed(message=str(error))

    return call
