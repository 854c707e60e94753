"""The toy world, trained on in memory."""

from tests.toy_world import toy, train_toy  # noqa: F401
