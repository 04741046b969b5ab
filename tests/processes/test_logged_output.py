"""A child's lines in our own log: whole and in order."""

import logging
import subprocess
import sys

import pytest
from support.processes import wait_until

from kodolly.processes.logged_output import MAX_LINE, logged_output

CHILD = """
import os, sys
os.write(1, b"first\\n\\n" + "둘\\x1b[2J".encode() + b"\\n")
os.write(2, b"\\xff bad bytes\\n" + b"x" * 70000 + b"\\n" + b"without an end")
"""


def test_every_line_of_a_child_is_a_record(caplog: pytest.LogCaptureFixture) -> None:
    """Standard output and error, bytes that are no UTF-8, a line beyond the bound, a last half line."""
    log = logging.getLogger("engine-of-a-test")
    with caplog.at_level(logging.INFO, log.name), logged_output(log) as output:
        child = subprocess.run(
            [sys.executable, "-c", CHILD], stdout=output, stderr=output, check=True
        )
        output.close()
        wait_until(lambda: "without an end" in caplog.messages)
    assert child.returncode == 0
    long = "x" * MAX_LINE, "x" * (70000 - MAX_LINE)
    assert caplog.messages == ["first", "둘\x1b[2J", "\\xff bad bytes", *long, "without an end"]
