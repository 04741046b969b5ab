"""Hypothesis as every test uses it: set before any test is read, since `@given` looks when it is applied."""

import os

from hypothesis import HealthCheck, settings

settings.register_profile(
    "kodolly",
    deadline=None,  # no timings in tests: the machine may be busy
    derandomize=bool(os.environ.get("CI")),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
settings.load_profile("kodolly")
