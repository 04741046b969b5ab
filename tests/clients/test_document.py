"""schemathesis over the OpenAPI document: requests that it allows or forbids, and whether it is right."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from support.client_flows import NEWEST
from support.client_servers import servers

pytestmark = pytest.mark.clients
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
)
# A list with more items than are allowed makes a body with more bytes than are read.
CONFIG = """\
[checks.negative_data_rejection]
expected-statuses = [400, 401, 404, 405, 413, 415]
"""


def test_what_the_document_says_is_so(tmp_path: Path) -> None:
    """Every example, and every bound of every field from both sides: about 1,300 requests."""
    config = tmp_path / "schemathesis.toml"
    config.write_text(CONFIG)
    with servers(tmp_path, tmp_path) as running:
        url = running.scripted().url
        argv = [str(NEWEST / "bin" / "schemathesis"), "--config-file", str(config), "run"]
        bounds = ["--phases", "examples,coverage", "--request-timeout", "30", "--no-color"]
        done = subprocess.run(
            [*argv, f"{url}/openapi.json", *bounds, "--checks", ",".join(CHECKS)],
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
            cwd=tmp_path,
        )
    assert done.returncode == 0, done.stdout[-6000:]
