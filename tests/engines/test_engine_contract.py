"""The scripted engine keeps the contract that real engines keep, so that leaning on it is fair."""

import pytest
from support.engine_contract import CHECKS, Check, a_key_is_asked_for
from support.scripted_engine import Script, ScriptedEngine


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
async def test_the_scripted_engine_keeps_the_contract(check: Check) -> None:
    """Each check of the engine contract holds for the scripted engine."""
    async with ScriptedEngine(Script(length=600, token_delay=0.002)) as engine:
        await check(engine.url, engine.script.model)


async def test_the_scripted_engine_asks_for_its_key() -> None:
    """With a key set, only requests that carry it are served."""
    async with ScriptedEngine(Script(api_key="secret")) as engine:
        await a_key_is_asked_for(engine.url, engine.script.model, "secret")
