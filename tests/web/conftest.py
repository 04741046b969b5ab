"""A chat in front of a scripted engine that stands for the API."""

from collections.abc import AsyncIterator

import pytest
from support.scripted_engine import Script, ScriptedEngine

from kodolly.web.chat import Chat
from kodolly.web.client import api_client


@pytest.fixture
async def engine() -> AsyncIterator[ScriptedEngine]:
    async with ScriptedEngine(Script(model="demo")) as engine:
        yield engine


@pytest.fixture
async def chat(engine: ScriptedEngine) -> AsyncIterator[Chat]:
    async with api_client(engine.url, None) as client:
        yield Chat(client)
