"""SIGTERM on an API process: the answers under way have their time."""

import asyncio
import os
import signal

from support.processes import eventually
from support.script import Script

from .test_prefork import api, ask, engine_and_controller, is_ready


async def test_an_answer_under_way_is_finished_at_its_own_pace() -> None:
    """One that takes seconds longer than the process was told to live is not cut off."""
    async with engine_and_controller(Script(token_delay=0.1)) as (engine, controller):
        with api(controller) as (process, url):
            await eventually(lambda: is_ready(url))
            asking = asyncio.create_task(ask(url))
            await eventually(lambda: engine.running == 1)
            os.kill(process.pid, signal.SIGTERM)
            assert (await asking).endswith("data: [DONE]\n\n")
            await eventually(lambda: not process.running)
            assert process.popen.returncode == 0
