"""Calls to a running engine: health, canary, load, token counts, completions.

Every failure is an EngineCallError with the engine's HTTP status, or None if it did not answer.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import orjson

from kodolly.engines.metrics import EngineSample, requests_in_engine, steps_of_engine, totals
from kodolly.errors import EngineCallError, EngineSilent, NoDescriptor
from kodolly.http import descriptors

# Timeouts in seconds.
QUICK = 5.0  # health, load: the whole call
SHORT = 30.0  # models, tokenize: the whole call
GENERATE = 600.0  # a whole answer; in a stream, the pause between two chunks
CANARY = 120.0  # the first token on a cold CPU that others use too
CONNECT = 5.0  # connecting

MAX_BODY = 64 * 1024 * 1024  # bytes of one answer, or of one event of a stream
MESSAGE_LENGTH = 500  # characters of an engine's own message that an error repeats
LINE_END = re.compile(rb"\r\n|\n|\r")


class EngineClient:
    """Calls one engine. `url` is its root, without `/v1`."""

    def __init__(self, url: str, api_key: str | None, session: aiohttp.ClientSession) -> None:
        self.url = url.rstrip("/")
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._session = session

    async def healthy(self, *, timeout: float = QUICK) -> bool:
        """Whether GET /health answers 200. That proves little; see `canary`.

        Raises NoDescriptor if this process has no file descriptor left for the call.
        """
        try:
            await self._call("GET", "/health", total=timeout)
        except NoDescriptor:
            raise
        except EngineCallError:
            return False
        return True

    async def models(self) -> list[str]:
        """Names of the models that it serves."""
        return [str(card.get("id")) for card in await self._cards()]

    async def canary(self, model: str, *, timeout: float = CANARY) -> None:
        """Asks for one token and returns once it is there. Raises EngineCallError otherwise."""
        body = {"model": model, "prompt": "1", "max_tokens": 1, "temperature": 0}
        answer = await self.complete(body, timeout=timeout)
        choices = answer.get("choices")
        if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
            raise EngineCallError("the engine answered the canary without a choice", 200)
        # The token may mark the end of the answer, which has no text. Then its count proves it.
        usage = answer.get("usage") or {}
        if not usage.get("completion_tokens") and not choices[0].get("text"):
            raise EngineCallError("the engine answered the canary without a token", 200)

    async def load(self) -> int | None:
        """Requests running plus waiting; None if the engine does not report it, or does not answer."""
        try:
            return (await self.sample(timeout=QUICK)).load
        except EngineCallError:
            return None

    async def sample(
        self, *, timeout: float, tracks_load: bool = False, need_steps: bool = True
    ) -> EngineSample:
        """The engine's load and step counters, from /load and, where needed, /metrics.

        `timeout`: seconds for each of the two calls. `tracks_load`: its /load can be believed; a
        vLLM started without load tracking always says 0. /metrics is then called only if there is
        load and `need_steps`. Raises EngineSilent when the engine does not answer in time,
        EngineCallError when nobody answers at its address.
        """
        load = await self._reported_load(timeout)
        if tracks_load and load is not None and (load == 0 or not need_steps):
            return EngineSample(load, None)
        try:
            text = await self._call("GET", "/metrics", total=timeout)
        except EngineCallError as error:
            if error.status is None:
                raise
            return EngineSample(load, None)
        values = totals(text.decode("utf-8", "replace"))
        gauge = requests_in_engine(values)
        return EngineSample(load if load or gauge is None else gauge, steps_of_engine(values))

    async def count_tokens(
        self, model: str, prompt: str, *, add_special_tokens: bool = True
    ) -> int:
        """How many tokens a text has. `add_special_tokens`: with those the tokenizer adds itself."""
        body: dict[str, Any] = {
            "model": model,
            "prompt": prompt,
            "add_special_tokens": add_special_tokens,
        }
        answer = await self._json("POST", "/tokenize", body, total=SHORT)
        if "count" not in answer:  # llama.cpp names the fields differently
            body = {"content": prompt, "add_special": add_special_tokens}
            answer = await self._json("POST", "/tokenize", body, total=SHORT)
        count = answer.get("count")
        if isinstance(count, int):
            return count
        if isinstance(tokens := answer.get("tokens"), list):
            return len(tokens)
        raise EngineCallError("the engine's /tokenize answered without a count", 200)

    async def context_length(self, model: str) -> int | None:
        """Tokens that prompt and answer may have together; None if the engine does not report it."""
        for card in await self._cards():
            if card.get("id") == model:
                meta = card.get("meta") or {}
                stated = (card.get("max_model_len"), meta.get("n_ctx"), meta.get("n_ctx_train"))
                for length in stated:
                    if isinstance(length, int):
                        return length
        try:
            answer = await self._json(
                "POST", "/tokenize", {"model": model, "prompt": "1"}, total=SHORT
            )
        except EngineCallError:
            return None
        length = answer.get("max_model_len")
        return length if isinstance(length, int) else None

    async def complete(
        self,
        body: Mapping[str, Any],
        *,
        path: str = "/v1/completions",
        request_id: str | None = None,
        timeout: float = GENERATE,
    ) -> dict[str, Any]:
        """The engine's response to a completion request, without streaming. `timeout`: seconds."""
        body = {**body, "stream": False}
        return await self._json("POST", path, body, total=timeout, request_id=request_id)

    async def stream(
        self,
        body: Mapping[str, Any],
        *,
        path: str = "/v1/completions",
        request_id: str | None = None,
        pause: float = GENERATE,
    ) -> AsyncGenerator[dict[str, Any], None]:
        """The events of a streamed completion, one decoded JSON object each.

        `pause`: seconds without any byte after which the engine counts as hung. Closing the
        iterator closes the connection, on which the engine aborts the request. Raises
        EngineCallError, also for an error event and for a stream that ends before `[DONE]`.
        """
        limits = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT, sock_read=pause)
        request = self._open("POST", path, {**body, "stream": True}, limits, request_id)
        async with request as response:
            parser = EventParser()
            async for chunk in response.content.iter_any():
                for data in parser.feed(chunk):
                    if data == b"[DONE]":
                        return
                    yield decode_event(data)
        raise EngineCallError(f"the engine ended its stream of {path} before it was done")

    async def _reported_load(self, timeout: float) -> int | None:
        try:
            answer = await self._json("GET", "/load", total=timeout)
        except EngineCallError as error:
            if error.status is None:
                raise
            return None
        load = answer.get("server_load")
        return load if isinstance(load, int) and not isinstance(load, bool) else None

    async def _cards(self) -> list[dict[str, Any]]:
        cards = (await self._json("GET", "/v1/models", total=SHORT)).get("data")
        if not isinstance(cards, list):
            raise EngineCallError("the engine's /v1/models answered without a list", 200)
        return [card for card in cards if isinstance(card, dict)]

    async def _json(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        total: float,
        request_id: str | None = None,
    ) -> dict[str, Any]:
        raw = await self._call(method, path, body, total=total, request_id=request_id)
        try:
            answer = orjson.loads(raw)
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise EngineCallError(f"the engine's {path} did not answer with a JSON object", 200)
        return answer

    async def _call(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        total: float,
        request_id: str | None = None,
    ) -> bytes:
        limits = aiohttp.ClientTimeout(total=total, sock_connect=CONNECT)
        async with self._open(method, path, body, limits, request_id) as response:
            return await read_bounded(response)

    @asynccontextmanager
    async def _open(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None,
        limits: aiohttp.ClientTimeout,
        request_id: str | None,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """A successful response, closed (not only released) at the end if it was not read whole."""
        headers = self._headers | ({"X-Request-Id": request_id} if request_id else {})
        data = None if body is None else orjson.dumps(body)
        if data is not None:
            headers = headers | {"Content-Type": "application/json"}
        try:
            response = await self._send(method, self.url + path, data, headers, limits)
            try:
                if response.status != 200:
                    text = error_text(await read_bounded(response))
                    raise EngineCallError(
                        f"{path} answered {response.status}: {text}", response.status
                    )
                yield response
            finally:
                response.close()
        except TimeoutError:
            raise EngineSilent(f"the engine's {path} did not answer in time") from None
        except aiohttp.ClientError as error:
            reason = str(error) or type(error).__name__
            if descriptors.are_exhausted(error):
                raise NoDescriptor(f"the engine's {path} was not asked: {reason}") from error
            raise EngineCallError(f"the engine's {path} failed: {reason}") from error

    async def _send(
        self,
        method: str,
        url: str,
        data: bytes | None,
        headers: Mapping[str, str],
        limits: aiohttp.ClientTimeout,
    ) -> aiohttp.ClientResponse:
        """Send a request; once more if a pooled connection turned out to be closed by then.

        uvicorn closes an idle connection after five seconds, about the beat we call at, and
        aiohttp itself sends only GET again.
        """
        try:
            return await self._session.request(
                method, url, data=data, headers=headers, timeout=limits, allow_redirects=False
            )
        except aiohttp.ClientConnectorError:
            raise
        except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError):
            return await self._session.request(
                method, url, data=data, headers=headers, timeout=limits, allow_redirects=False
            )


class EventParser:
    """Finds the server-sent events in a stream, whose chunks may end anywhere.

    Lines may end in LF, CRLF or CR. Comments and fields other than `data` are skipped.
    https://html.spec.whatwg.org/multipage/server-sent-events.html
    """

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []
        self._after_cr = False

    def feed(self, chunk: bytes) -> list[bytes]:
        """The data of every event that this chunk completes."""
        text = chunk
        if self._after_cr:  # the chunk before may have ended inside a CRLF
            text = chunk.removeprefix(b"\n")
        self._after_cr = chunk.endswith(b"\r")
        *lines, self._rest = LINE_END.split(self._rest + text)
        if len(self._rest) > MAX_BODY:
            raise EngineCallError("the engine sent an event beyond all bounds", 200)
        return [event for line in lines if (event := self._line(line)) is not None]

    def _line(self, line: bytes) -> bytes | None:
        if line.startswith(b"data:"):
            self._data.append(line[5:].removeprefix(b" "))
        elif not line and self._data:
            event = b"\n".join(self._data)
            self._data.clear()
            return event
        return None


def decode_event(data: bytes) -> dict[str, Any]:
    """The JSON object of one event. Raises EngineCallError for anything else, and for an error."""
    try:
        event = orjson.loads(data)
    except ValueError:
        event = None
    if not isinstance(event, dict):
        raise EngineCallError("the engine sent an event that is no JSON object", 200)
    if event.get("error"):
        error = event["error"]
        code = error.get("code") if isinstance(error, dict) else None
        status = code if isinstance(code, int) else 500
        raise EngineCallError(f"the engine broke off: {error_text(data)}", status)
    return event


def error_text(body: bytes) -> str:
    """The message in an error response: from OpenAI's envelope, a shorter form of it, or the text."""
    try:
        answer = orjson.loads(body)
    except ValueError:
        answer = None
    if isinstance(answer, dict):
        error = answer.get("error") or answer.get("detail") or answer.get("message")
        message = error.get("message") if isinstance(error, dict) else error
        if message:
            return str(message)[:MESSAGE_LENGTH]
    return body.decode("utf-8", "replace")[:MESSAGE_LENGTH] or "no reason given"


async def read_bounded(response: aiohttp.ClientResponse) -> bytes:
    """A whole body of at most MAX_BODY bytes."""
    body = bytearray()
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) > MAX_BODY:
            raise EngineCallError("the engine's answer is beyond all bounds", response.status)
    return bytes(body)
