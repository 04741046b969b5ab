"""`kodolly top`: looks at controller and API again and again, and shows what it sees."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence

from kodolly.errors import KodollyError
from kodolly.http.client import new_client
from kodolly.http.tls import client_context
from kodolly.settings import TopSettings, load
from kodolly.settings.common import checked_url
from kodolly.top.sample import take
from kodolly.top.view import page

CLEAR = "\x1b[H\x1b[2J"  # the terminal's cursor home, and an empty screen
FIRST_GAP = 1.0  # seconds between the two looks that the first table needs


def main(argv: Sequence[str]) -> int:
    """Shows tables until Ctrl-C; with --once a single one. Raises KodollyError if nobody answers."""
    settings = load(TopSettings, argv, "Workers and models, live in a terminal.")
    asyncio.run(_show(settings))
    return 0


async def _show(settings: TopSettings) -> None:
    controller = checked_url("--controller", settings.controller)
    api, token = checked_url("--api", settings.api), settings.secret()
    async with new_client(client_context(settings.tls_ca)) as client:
        before = await take(client, controller, api, token)
        if not before.workers and not before.metrics and before.problems:
            raise KodollyError("; ".join(before.problems))
        await asyncio.sleep(min(FIRST_GAP, settings.interval))
        while True:
            now = await take(client, controller, api, token)
            screen = "" if settings.once or not sys.stdout.isatty() else CLEAR
            sys.stdout.write(screen + page(before, now))
            sys.stdout.flush()
            if settings.once:
                return
            before = now
            await asyncio.sleep(settings.interval)
