"""SIGTERM on the controller's own process."""

import asyncio
import json
import signal
import sys

import aiohttp
from support.processes import eventually, free_port, start
from support.scripted_engine import Script, ScriptedEngine


async def test_sigterm_loses_nothing() -> None:
    """Followers hear the end at once and what is relayed is finished; then the process exits."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    argv = [sys.executable, "-m", "kodolly", "controller", "--port", str(port)]
    script = Script(model="demo", token_delay=0.1)
    async with ScriptedEngine(script) as engine, aiohttp.ClientSession() as http:
        with start(argv) as process:

            async def is_up() -> bool:
                try:
                    async with http.get(f"{url}/health") as answer:
                        return answer.status == 200
                except aiohttp.ClientError:
                    return False

            await eventually(is_up, process=process)
            await engine.register(url)
            body = {"model": "demo", "prompt": "x", "max_new_tokens": 100, "echo": False}
            async with (
                http.get(f"{url}/watch") as watch,
                http.post(f"{url}/worker_generate_stream", json=body) as answer,
            ):
                await watch.content.readline()
                text = await answer.content.readuntil(b"\0")
                process.popen.send_signal(signal.SIGTERM)
                while await watch.content.readline():
                    pass
                assert engine.running == 1  # the watch ended, the relay goes on
                text += await answer.read()
            frames = [json.loads(part) for part in text.split(b"\0") if part]
            assert frames[-1]["text"] == script.text
            assert frames[-1]["finish_reason"] == "stop"
            assert await asyncio.to_thread(process.popen.wait, 20) == 0
