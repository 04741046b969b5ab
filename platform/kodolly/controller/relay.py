"""Passes a worker's stream of tokens on to a client of the controller."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import AsyncIterator
from typing import Any

import orjson

from kodolly.http.upstream import Broken, Connection, Pool, Unreachable
from kodolly.log_safe import describe_error
from kodolly.protocol.wire import frame

log = logging.getLogger(__name__)

CONNECT_TIMEOUT = 5.0  # seconds to reach a worker
READ_TIMEOUT = 100.0  # seconds without any byte of a stream
NO_WORKER, WORKER_TIMEOUT = 50005, 50006  # values of fastchat.constants.ErrorCode


class StreamRelay:
    """Relays streams of FastChat's workers, byte for byte."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        """`tls`: which workers' certificates are trusted."""
        self._pool = Pool(CONNECT_TIMEOUT, tls)

    async def run(self) -> None:
        """Closes idle connections, until cancelled."""
        await self._pool.run()

    async def stream(
        self, address: str, params: dict[str, Any], headers: dict[str, str]
    ) -> AsyncIterator[bytes]:
        """The stream of the worker at `address` for `params`. An error is a frame of its own.

        `address`: the worker's base URL, or "" if no worker serves the model. `headers`: its token's.
        """
        if not address:
            yield frame({"text": "no worker serves this model", "error_code": NO_WORKER})
            return
        url = f"{address}/worker_generate_stream"
        connection: Connection | None = None
        try:
            async with asyncio.timeout(READ_TIMEOUT):
                connection = await self._pool.post(url, headers, orjson.dumps(params))
            if connection.status != 200:
                raise Broken(f"status {connection.status}")
            while chunk := await _read(connection):
                yield chunk
        except (Unreachable, Broken, TimeoutError) as error:
            log.warning("relay to %s broke: %s", address, describe_error(error))
            yield frame({"text": "the worker does not answer", "error_code": WORKER_TIMEOUT})
        finally:
            if connection is not None:
                connection.release()


async def _read(connection: Connection) -> bytes:
    async with asyncio.timeout(READ_TIMEOUT):
        return await connection.read()
