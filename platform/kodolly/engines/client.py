"""How a running engine is asked: health, proof of a token, load, tokens, completions.

Every failure is an EngineCallError with the engine's HTTP status, or None when no answer came.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import orjson

from kodolly.engines.metrics import Pulse, requests_in_engine, steps_of_engine, totals
from kodolly.errors import EngineCallError, EngineSilent, NoDescriptor
from kodolly.http import descriptors

QUICK = 5.0  # seconds, whole call: health, load
SHORT = 30.0  # seconds, whole call: models, tokenize
GENERATE = 600.0  # seconds: a whole answer, or the pause between two events of a stream
CANARY = 120.0  # seconds: a first token on a cold, shared CPU
CONNECT = 5.0  # seconds to a TCP connection
MAX_BODY = 64 * 1024 * 1024  # bytes of one answer, or of one event of a stream

MESSAGE_LENGTH = 500  # characters of an engine's own words that an error repeats
LINE_END = re.compile(rb"\r\n|\n|\r")


class EngineClient:
    """One engine at `url` (its root, without `/v1`), asked through a shared session."""

    def __init__(self, url: str, api_key: str | None, session: aiohttp.ClientSession) -> None:
        self.url = url.rstrip("/")
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._session = session

    async def healthy(self, *, patience: float = QUICK) -> bool:
        """Whether GET /health answers 200. It says little: only `canary` proves a token.

        Raises NoDescriptor where it could not be asked.
        """
        try:
            await self._call("GET", "/health", total=patience)
        except NoDescriptor:
            raise
        except EngineCallError:
            return False
        return True

    async def models(self) -> list[str]:
        """Names of the models it serves."""
        return [str(card.get("id")) for card in await self._cards()]

    async def canary(self, model: str, *, timeout: float = CANARY) -> None:
        """Return once the engine has made one token; EngineCallError if it does not in time."""
        body = {"model": model, "prompt": "1", "max_tokens": 1, "temperature": 0}
        answer = await self.complete(body, timeout=timeout)
        choices = answer.get("choices")
        if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
            raise EngineCallError("the engine answered the canary without a choice", 200)
        # The first token may be an end mark with no text: its count is proof enough.
        usage = answer.get("usage") or {}
        if not usage.get("completion_tokens") and not choices[0].get("text"):
            raise EngineCallError("the engine answered the canary without a token", 200)

    async def load(self) -> int | None:
        """Requests running plus waiting, or None when the engine tells in no way known here."""
        try:
            return (await self.pulse(patience=QUICK)).load
        except EngineCallError:
            return None

    async def pulse(self, *, patience: float, tracked: bool = False, steps: bool = True) -> Pulse:
        """How much it has to do and whether it steps, from /load and /metrics.

        `patience`: seconds for each of the two. A vLLM that does not track its load says 0 on /load
        whatever it does, so with `tracked` alone a 0 there is the whole answer, and any load is if
        its `steps` need not be known. Raises EngineSilent when it does not answer in time,
        EngineCallError when nobody is there to answer.
        """
        load = await self._tracked_load(patience)
        if tracked and load is not None and (load == 0 or not steps):
            return Pulse(load, None)
        try:
            text = await self._call("GET", "/metrics", total=patience)
        except EngineCallError as error:
            if error.status is None:
                raise
            return Pulse(load, None)
        values = totals(text.decode("utf-8", "replace"))
        counted = requests_in_engine(values)
        return Pulse(load if load or counted is None else counted, steps_of_engine(values))

    async def count_tokens(
        self, model: str, prompt: str, *, add_special_tokens: bool = True
    ) -> int:
        """Tokens of a text, with the marks the tokenizer adds unless told otherwise."""
        body: dict[str, Any] = {
            "model": model,
            "prompt": prompt,
            "add_special_tokens": add_special_tokens,
        }
        answer = await self._json("POST", "/tokenize", body, total=SHORT)
        if "count" not in answer:  # llama.cpp reads other names
            body = {"content": prompt, "add_special": add_special_tokens}
            answer = await self._json("POST", "/tokenize", body, total=SHORT)
        count = answer.get("count")
        if isinstance(count, int):
            return count
        if isinstance(tokens := answer.get("tokens"), list):
            return len(tokens)
        raise EngineCallError("the engine's /tokenize answered without a count", 200)

    async def context_length(self, model: str) -> int | None:
        """Tokens that prompt and answer may have together, or None if the engine does not say."""
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
        """The whole answer to a completion request, as the engine gave it."""
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

        `pause`: seconds without a byte after which the engine counts as hung. Closing the
        iterator closes the connection, and the engine aborts the request. Raises EngineCallError
        for an error event too, and for a stream that ends before `[DONE]`.
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

    async def _tracked_load(self, patience: float) -> int | None:
        try:
            answer = await self._json("GET", "/load", total=patience)
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
    """Server-sent events out of byte chunks, wherever the chunks were cut.

    Lines may end in LF, CRLF or CR; comments and fields other than `data` are passed over.
    https://html.spec.whatwg.org/multipage/server-sent-events.html
    """

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []
        self._after_cr = False

    def feed(self, chunk: bytes) -> list[bytes]:
        """The data of every event that this chunk completes."""
        text = chunk
        if self._after_cr:  # a CRLF may have been cut in two
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
    """One event's JSON object. Raises EngineCallError if it is none, or tells an error."""
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
    """The message of an error body: OpenAI's envelope, its short forms, or the text itself."""
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
