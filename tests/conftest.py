"""Hypothesis as every test uses it: set before any test is read, since `@given` looks when it is applied.

And logs: a command run in a test's own process leaves no handler that writes to that test's stderr.
"""

import logging
import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile(
    "kodolly",
    deadline=None,  # no timings in tests: the machine may be busy
    derandomize=bool(os.environ.get("CI")),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
settings.load_profile("kodolly")


@pytest.fixture(autouse=True)
def root_handlers() -> Iterator[None]:
    """Takes back the handlers that the test added to the root logger; pytest sees to its own."""
    root = logging.getLogger()
    before = (root.level, root.handlers[:])
    yield
    root.setLevel(before[0])
    for handler in root.handlers[:]:
        if handler not in before[1] and not type(handler).__module__.startswith("_pytest"):
            root.removeHandler(handler)
