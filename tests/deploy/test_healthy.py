"""`healthy`, the health check of every container: what it takes for healthy, and what it waits for."""

import asyncio
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from starlette.types import ASGIApp, Receive, Scope, Send
from support.apps import serving
from support.certificates import make_certificate

from kodolly.http.tls import server_context
from kodolly.worker.app import LOADING

HEALTHY = Path(__file__).parents[2] / "deploy" / "images" / "healthy"


def answering(*answers: tuple[int, str]) -> ASGIApp:
    """An application that gives these answers one after the other, the last one for ever."""
    left = list(answers)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        status, text = left.pop(0) if len(left) > 1 else left[0]
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": text.encode()})

    return app


async def check(url: str, *limit: str, **environment: str) -> tuple[int, str]:
    """Exit status and output of the script."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-IS", str(HEALTHY), str(urlsplit(url).port), "/ready", *limit),
        env=environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    return process.returncode or 0, output.decode()


LOADS = (503, f"starting, {LOADING}")


@pytest.mark.parametrize(
    ("answers", "limit", "status", "text"),
    [
        ([(200, "ready")], (), 0, "200 ready"),
        ([(503, "stalled")], ("60",), 1, "503 stalled"),
        ([LOADS], (), 1, f"503 {LOADS[1]}"),
        ([LOADS, (200, "ready")], ("60",), 0, "200 ready"),
        (
            [LOADS, (503, "starting: the engine ended")],
            ("60",),
            1,
            "503 starting: the engine ended",
        ),
    ],
)
async def test_it_waits_for_an_engine_that_loads_and_for_nothing_else(
    answers: list[tuple[int, str]], limit: tuple[str, ...], status: int, text: str
) -> None:
    """200 is healthy at once, a fault unhealthy at once; without a limit it never waits."""
    async with serving(answering(*answers)) as url:
        assert await check(url, *limit) == (status, text)


async def test_it_speaks_tls_where_the_process_does(tmp_path: Path) -> None:
    """The certificate is the world's, and the check comes by loopback."""
    files = make_certificate(tmp_path, "chat.example")
    async with serving(
        answering((200, "ok")), tls=server_context(str(files.cert), str(files.key))
    ) as url:
        assert await check(url, KODOLLY_API_TLS_CERT=str(files.cert)) == (0, "200 ok")
        assert (await check(url))[0] == 1


async def test_nobody_at_the_port_is_not_healthy() -> None:
    """A process that is gone is no traceback."""
    async with serving(answering((200, "ok"))) as url:
        pass
    status, text = await check(url)
    assert (status, "no answer on port" in text, "Traceback" in text) == (1, True, False)
