"""Embeddings by OpenAI's published clients."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.client_flows import Client, outcomes
from support.client_servers import Server, servers
from support.tiny_encoder import LONGEST, make_tiny_encoder

pytestmark = pytest.mark.clients
CLIENTS = (
    Client("openai-python", "openai_embeddings.py"),
    Client("openai-node", "openai_embeddings.mjs", None),
)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_encoder(tmp_path_factory.mktemp("model") / "encoder")


@pytest.fixture(scope="module")
def server(encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with servers(tmp_path_factory.mktemp("logs"), encoder) as running:
        controller = running.controller("encoder")
        yield running.api(controller, "transformers", "--max-model-len", LONGEST)


@pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.title)
def test_embeddings(client: Client, server: Server, encoder: Path) -> None:
    """Vectors come in both encodings, one for each text."""
    made = outcomes(client, server, encoder)
    assert {flow: error for flow, error in made.items() if error is not None} == {}
