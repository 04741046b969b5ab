"""The libraries people use, as they are published, against KoDolly on either engine.

Marked `clients` (and `vllm`): `make test-clients` installs the libraries and runs it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.client_flows import CLIENTS, Client, outcomes
from support.client_servers import ROOT, Server, Servers, servers
from support.tools_model import with_tools

pytestmark = pytest.mark.clients
MODEL = Path(os.environ.get("KODOLLY_TEST_MODEL", ROOT / ".kodolly/models/smollm2-135m-instruct"))
VLLM = ROOT / ".venv-vllm" / "bin" / "python"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_tools(MODEL, tmp_path_factory.mktemp("model") / "smollm2-tools")


@pytest.fixture(scope="module")
def started(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    with servers(tmp_path_factory.mktemp("logs"), model) as running:
        yield running


@pytest.fixture(
    scope="module", params=["transformers", pytest.param("vllm", marks=pytest.mark.vllm)]
)
def server(request: pytest.FixtureRequest, started: Servers) -> Server:
    """KoDolly on one engine; the model is called as the engine."""
    return started.transformers() if request.param == "transformers" else started.vllm(VLLM)


@pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.title)
def test_every_flow_works(client: Client, server: Server, model: Path) -> None:
    """Whatever the library's users do first works unmodified."""
    errors = {
        flow: error for flow, error in outcomes(client, server, model).items() if error is not None
    }
    assert errors == {}
