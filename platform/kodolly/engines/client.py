"""Calls to a running engine that answer whole: health, canary, load, token counts, completions.

Every failure is an EngineCallError with the engine's HTTP status, or None if it did not answer.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from typing import Any

import httpx
import orjson

from kodolly.engines.metrics import (
    TOKENIZING,
    EngineSample,
    requests_in_engine,
    steps_of_engine,
    totals,
)
from kodolly.errors import EngineCallError, EngineSilent, NoDescriptor
from kodolly.http import descriptors
from kodolly.http.client import CALL_ERRORS, MAX_STATUS, describe_call_error, read_bounded
from kodolly.protocol.engine_errors import error_message

# Timeouts in seconds.
QUICK = 5.0  # health, load: the whole call
SHORT = 30.0  # models, tokenize: the whole call
GENERATE = 600.0  # a whole answer
CANARY = 120.0  # the first token on a cold CPU that others use too
CONNECT = 5.0  # connecting
TIMEOUT = httpx.Timeout(None, connect=CONNECT)  # asyncio.timeout bounds the whole call

CHAT_PATH, EMBED_PATH = "/v1/chat/completions", "/v1/embeddings"
CANARY_CHAT = [{"role": "user", "content": "1"}]
# Where engines state their context length, if not in the model's card: llama.cpp, vLLM, TGI.
CONTEXT_SOURCES: tuple[tuple[str, str, dict[str, str] | None, tuple[str, ...]], ...] = (
    ("GET", "/props", None, ("default_generation_settings", "n_ctx")),
    ("POST", "/tokenize", {"prompt": "1"}, ("max_model_len",)),
    ("GET", "/info", None, ("max_total_tokens",)),
)

MAX_BODY = 64 * 1024 * 1024  # bytes of an answer with generated text; of others: MAX_STATUS
MAX_METRICS = 16 * 1024 * 1024  # bytes of /metrics, of an engine with many adapters
# Statuses of an endpoint that an engine does not have, or was not started with.
ABSENT = (404, 405, 501)
# Statuses with which an engine refuses a text completion because it only chats.
NO_COMPLETIONS = (*ABSENT, 400, 422)


class EngineClient:
    """Calls one engine. `url` is its root, without `/v1`.

    `chat_only`: it has no /v1/completions, `pooling`: it makes embeddings and no text, as the first
    canary shows.
    """

    def __init__(self, url: str, api_key: str | None, client: httpx.AsyncClient) -> None:
        self.url = url.rstrip("/")
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._client = client
        self.chat_only = self.pooling = False
        self._absent: set[str] = set()  # paths that this engine does not have

    async def healthy(self, *, timeout: float = QUICK) -> bool:
        """Whether `require_health` passes. Raises NoDescriptor as that does."""
        try:
            await self.require_health(timeout=timeout)
        except NoDescriptor:
            raise
        except EngineCallError:
            return False
        return True

    async def require_health(self, *, timeout: float = QUICK) -> None:
        """Raises EngineCallError, with the cause, unless GET /health answers 200.

        An engine without that path (Ollama, llama-cpp-python) passes if it answers at all. Health
        proves little; see `canary`. Raises NoDescriptor if this process has no file descriptor left.
        """
        if await self._call_if_there("/health", timeout) is None:
            try:
                await self._call("GET", "/v1/models", total=timeout)
            except EngineCallError as error:
                if error.status is None:
                    raise

    def forget(self) -> None:
        """Another engine may be at this address by now: all its endpoints are tried again."""
        self._absent.clear()
        self.chat_only = self.pooling = False

    async def models(self) -> list[str]:
        """Names of the models that it serves."""
        return [card["id"] for card in await self.cards()]

    async def cards(self) -> list[dict[str, Any]]:
        """The cards of the models that it serves; each has a text as its `id`."""
        cards = (await self._json("GET", "/v1/models", total=SHORT)).get("data")
        if not isinstance(cards, list):
            raise EngineCallError("the engine's /v1/models answered without a list", 200)
        named = (card for card in cards if isinstance(card, dict))
        return [card for card in named if isinstance(card.get("id"), str) and card["id"]]

    async def canary(self, model: str, *, timeout: float = CANARY) -> None:
        """Asks for one token and returns once it is there. Raises EngineCallError otherwise.

        An engine that refuses it as a completion is asked by a chat, and then for an embedding: it may
        have nothing else.
        """
        if self.pooling:
            return await self._embed(model, timeout)
        body = {"model": model, "max_tokens": 1, "temperature": 0}
        completion, chat = body | {"prompt": "1"}, body | {"messages": CANARY_CHAT}
        if self.chat_only:
            return _check_canary(await self.complete(chat, path=CHAT_PATH, timeout=timeout))
        try:
            return _check_canary(await self.complete(completion, timeout=timeout))
        except EngineCallError as error:
            if error.status not in NO_COMPLETIONS:
                raise
            try:
                _check_canary(await self.complete(chat, path=CHAT_PATH, timeout=timeout))
            except EngineCallError as chat_error:
                if error.status in ABSENT and chat_error.status in ABSENT:
                    with contextlib.suppress(EngineCallError):
                        return await self._embed(model, timeout)
                # Both refuse, most likely for the same reason, such as an unknown model.
                raise (error if chat_error.status in ABSENT else chat_error) from None
            self.chat_only = True

    async def _embed(self, model: str, timeout: float) -> None:
        """Asks for an embedding. Raises EngineCallError if the engine makes none."""
        body = {"model": model, "input": "1"}
        answer = await self._json("POST", EMBED_PATH, body, total=timeout, limit=MAX_BODY)
        if not answer.get("data"):
            raise EngineCallError("the engine answered the canary without an embedding", 200)
        self.pooling = True

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
        text = await self._call_if_there("/metrics", timeout, or_refused=True)
        if text is None:
            return EngineSample(load, None)
        values = totals(text.decode("utf-8", "replace"))
        gauge = requests_in_engine(values)
        load = load if load or gauge is None else gauge
        return EngineSample(load, steps_of_engine(values), values.get(TOKENIZING, 0) > 0)

    async def metrics_text(self) -> bytes:
        """All that the engine's /metrics says. Raises EngineCallError."""
        return await self._call("GET", "/metrics", total=CANARY, limit=MAX_METRICS)

    async def count_tokens(
        self, model: str, prompt: str, *, add_special_tokens: bool = True
    ) -> int:
        """How many tokens a text has. `add_special_tokens`: with those the tokenizer adds itself."""
        body: dict[str, Any] = {
            "model": model,
            "prompt": prompt,
            "add_special_tokens": add_special_tokens,
        }
        answer = await self._json("POST", "/tokenize", body, total=SHORT, limit=MAX_BODY)
        if "count" not in answer:  # llama.cpp names the fields differently
            body = {"content": prompt, "add_special": add_special_tokens}
            answer = await self._json("POST", "/tokenize", body, total=SHORT, limit=MAX_BODY)
        count = answer.get("count")
        if isinstance(count, int):
            return count
        if isinstance(tokens := answer.get("tokens"), list):
            return len(tokens)
        raise EngineCallError("the engine's /tokenize answered without a count", 200)

    async def context_length(self, model: str) -> int | None:
        """Tokens that prompt and answer may have together; None if the engine does not report it."""
        try:
            cards = {card["id"]: card for card in await self.cards()}
        except EngineCallError as error:
            if error.status is None:
                raise
            cards = {}
        if (length := context_of_card(cards.get(model, {}))) is not None:
            return length
        meta = cards.get(model, {}).get("meta") or {}
        for method, path, body, fields in CONTEXT_SOURCES:
            if path == "/tokenize" and (length := _count(meta.get("n_ctx_train"))) is not None:
                return length  # an older llama.cpp, whose /props did not say more
            sent = None if body is None else {"model": model, **body}
            try:
                answer: Any = await self._json(method, path, sent, total=SHORT)
            except EngineCallError:
                continue
            for field in fields:
                answer = answer.get(field) if isinstance(answer, dict) else None
            if (length := _count(answer)) is not None:
                return length
        return None

    async def owner(self, model: str) -> str | None:
        """Who the engine says owns the model, "vllm" in vLLM; None if it says nothing."""
        try:
            owners = [
                card.get("owned_by") for card in await self.cards() if card.get("id") == model
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
        return await self._json(
            "POST", path, body, total=timeout, request_id=request_id, limit=MAX_BODY
        )

    async def _reported_load(self, timeout: float) -> int | None:
        raw = await self._call_if_there("/load", timeout, or_refused=True)
        try:
            answer = None if raw is None else orjson.loads(raw)
        except ValueError:
            answer = None
        load = answer.get("server_load") if isinstance(answer, dict) else None
        return load if isinstance(load, int) and not isinstance(load, bool) else None

    async def _call_if_there(
        self, path: str, timeout: float, *, or_refused: bool = False
    ) -> bytes | None:
        """The answer to a GET; None from an engine without this path, which is not asked again.

        `or_refused`: None for any other error status, too.
        """
        if path in self._absent:
            return None
        try:
            return await self._call("GET", path, total=timeout)
        except EngineCallError as error:
            if error.status in ABSENT:
                self._absent.add(path)
            elif error.status is None or not or_refused:
                raise
            return None

    async def _json(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        total: float,
        request_id: str | None = None,
        limit: int = MAX_STATUS,
    ) -> dict[str, Any]:
        raw = await self._call(method, path, body, total=total, request_id=request_id, limit=limit)
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
        limit: int = MAX_STATUS,
    ) -> bytes:
        """The body of a response with status 200.

        `total`: seconds for the whole call. `limit`: bytes of the body.
        """
        headers = self._headers | ({"X-Request-Id": request_id} if request_id else {})
        content = None if body is None else orjson.dumps(body)
        if content is not None:
            headers = headers | {"Content-Type": "application/json"}
        try:
            async with asyncio.timeout(total):
                response = await self._send(method, self.url + path, content, headers)
                try:
                    answer = await _read(response, limit)
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
    return EngineCallError(f"{path} answered {status}: {error_message(body)}", status)


def context_of_card(card: Mapping[str, Any]) -> int | None:
    """The context length in a card of /v1/models, by the names that vLLM, llama.cpp and others use."""
    meta = card.get("meta")
    stated = [card.get(name) for name in ("max_model_len", "context_length", "context_window")]
    stated.append(meta.get("n_ctx") if isinstance(meta, dict) else None)
    return next((count for count in map(_count, stated) if count is not None), None)


def _count(value: Any) -> int | None:
    return value if type(value) is int and 0 < value < 2**31 else None


def _check_canary(answer: dict[str, Any]) -> None:
    """Raises EngineCallError for an answer without a token."""
    choices = answer.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise EngineCallError("the engine answered the canary without a choice", 200)
    # The token may mark the end of the answer, which has no text. Then its count proves it.
    usage, message = answer.get("usage"), choices[0].get("message")
    count = usage.get("completion_tokens") if isinstance(usage, dict) else None
    content = message.get("content") if isinstance(message, dict) else None
    if not count and not content and not choices[0].get("text"):
        raise EngineCallError("the engine answered the canary without a token", 200)


async def _read(response: httpx.Response, limit: int) -> bytes:
    """The whole body. Raises EngineCallError if it has more than `limit` bytes."""
    try:
        return await read_bounded(response, limit)
    except ValueError as error:
        raise EngineCallError(
            f"the engine's answer is too long: {error}", response.status_code
        ) from error
