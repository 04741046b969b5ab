"""Calls to a running engine that answer whole: health, canary, load, token counts, completions.

Every failure is an EngineCallError with the engine's HTTP status, or None if it did not answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import httpx
import orjson

from kodolly.engines.metrics import EngineSample, requests_in_engine, steps_of_engine, totals
from kodolly.errors import EngineCallError, EngineSilent, NoDescriptor
from kodolly.http import descriptors
from kodolly.http.client import CALL_ERRORS, describe_call_error

# Timeouts in seconds.
QUICK = 5.0  # health, load: the whole call
SHORT = 30.0  # models, tokenize: the whole call
GENERATE = 600.0  # a whole answer
CANARY = 120.0  # the first token on a cold CPU that others use too
CONNECT = 5.0  # connecting
TIMEOUT = httpx.Timeout(None, connect=CONNECT)  # asyncio.timeout bounds the whole call

MAX_BODY = 64 * 1024 * 1024  # bytes of one answer
MESSAGE_LENGTH = 500  # characters of an engine's own message that an error repeats


class EngineClient:
    """Calls one engine. `url` is its root, without `/v1`."""

    def __init__(self, url: str, api_key: str | None, client: httpx.AsyncClient) -> None:
        self.url = url.rstrip("/")
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._client = client

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

    async def owner(self, model: str) -> str | None:
        """Who the engine says owns the model, "vllm" in vLLM; None if it says nothing."""
        try:
            owners = [
                card.get("owned_by") for card in await self._cards() if card.get("id") == model
            ]
        except EngineCallError:
            return None
        return owners[0] if owners and isinstance(owners[0], str) else None

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
        """The body of a response with status 200. `total`: seconds for the whole call."""
        headers = self._headers | ({"X-Request-Id": request_id} if request_id else {})
        content = None if body is None else orjson.dumps(body)
        if content is not None:
            headers = headers | {"Content-Type": "application/json"}
        try:
            async with asyncio.timeout(total):
                response = await self._send(method, self.url + path, content, headers)
                try:
                    answer = await read_bounded(response)
                finally:
                    await response.aclose()
        except (TimeoutError, httpx.TimeoutException):
            raise EngineSilent(f"the engine's {path} did not answer in time") from None
        except CALL_ERRORS as error:
            reason = describe_call_error(error)
            if descriptors.are_exhausted(error):
                raise NoDescriptor(f"the engine's {path} was not asked: {reason}") from error
            raise EngineCallError(f"the engine's {path} failed: {reason}") from error
        if response.status_code != 200:
            raise status_error(path, response.status_code, answer)
        return answer

    async def _send(
        self, method: str, url: str, content: bytes | None, headers: Mapping[str, str]
    ) -> httpx.Response:
        """Sends a request, and once more if the engine closed the connection without a response.

        uvicorn closes an idle connection after five seconds. That may happen just as the next
        request is written to it.
        """

        async def once() -> httpx.Response:
            request = self._client.build_request(
                method, url, content=content, headers=headers, timeout=TIMEOUT
            )
            return await self._client.send(request, stream=True)

        try:
            return await once()
        except (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError):
            return await once()


def status_error(path: str, status: int, body: bytes) -> EngineCallError:
    """The error for a response with another status than 200."""
    return EngineCallError(f"{path} answered {status}: {error_text(body)}", status)


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


async def read_bounded(response: httpx.Response) -> bytes:
    """The whole body. Raises EngineCallError if it has more than MAX_BODY bytes."""
    body = bytearray()
    async for chunk in response.aiter_bytes():
        body += chunk
        if len(body) > MAX_BODY:
            raise EngineCallError("the engine's answer is beyond all bounds", response.status_code)
    return bytes(body)
