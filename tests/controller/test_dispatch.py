"""How /get_worker_address counts what it handed out, between heartbeats and after them."""

from typing import Any

import aiohttp
from support.apps import serving

from kodolly.controller.app import Controller, create_app
from kodolly.controller.dispatch import Dispatcher
from kodolly.controller.registry import Registry


async def test_a_heartbeat_ends_the_count_also_if_it_tells_the_same_queue() -> None:
    """Requests that came and went between two beats no longer speak against their workers."""
    app = create_app(Controller(Registry(90, 3), Dispatcher("shortest_queue"), None))
    async with serving(app) as url, aiohttp.ClientSession(url) as http:

        async def post(path: str, body: Any) -> Any:
            async with http.post(path, json=body) as answer:
                assert answer.status == 200
                return await answer.json()

        async def register(name: str) -> None:
            status = {"model_names": ["m"], "queue_length": 0}
            await post("/register_worker", {"worker_name": name, "worker_status": status})

        async def handed(count: int) -> list[str]:
            told = [await post("/get_worker_address", {"model": "m"}) for _ in range(count)]
            return sorted(each["address"] for each in told)

        await register("http://a")
        await register("http://b")
        assert await handed(4) == ["http://a"] * 2 + ["http://b"] * 2

        for name in ("http://a", "http://b"):
            await post("/receive_heart_beat", {"worker_name": name, "queue_length": 0})
        await register("http://c")
        assert await handed(3) == ["http://a", "http://b", "http://c"]
