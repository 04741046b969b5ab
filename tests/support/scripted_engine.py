"""The one fake of the project: an engine whose answers are scripted.

It speaks the OpenAI dialect of vLLM (`engine_wire`) and FastChat's worker wire (`fastchat_face`),
fails on purpose when its script says so, and remembers every request.

In a test:     async with ScriptedEngine(Script(model="demo")) as engine: ... engine.url ...
As a process:  PYTHONPATH=tests python -m support.scripted_engine --port 22002 --model demo
It takes vLLM's flags, so a worker agent can start it as its engine. While the process runs,
GET /scripted tells its counters and POST /scripted changes fields of its script.
"""

import argparse
import asyncio
import json
import os
import sys
import time
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from aiohttp import web
from support import engine_logprobs, engine_wire
from support.engine_wire import Body, Wire, dumps
from support.fastchat_face import FastChatFace
from support.registration import Registration
from support.script import FIRST_ID, Answer, Script, ScriptedError, Seen, Step, chat_prompt

__all__ = ["Script", "ScriptedEngine", "Seen"]

GENERATES = ("/v1/chat/completions", "/v1/completions", "/worker_generate")


class ScriptedEngine:
    """A server on loopback, started by `async with`; port 0 takes a free one.

    `requests` holds what it saw (not with record=False), `running` the answers being made,
    `aborted` the answers given up because the client left, `tokens` all tokens made and
    `late_tokens` those made although the client had left. `journal` is a file that gets a line of
    JSON for every request as it arrives, so that it outlives a process that is killed: the time,
    the request's id, and with how many tokens of the answer in its prompt it came.
    """

    def __init__(
        self,
        script: Script | None = None,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        record: bool = True,
        journal: Path | None = None,
    ) -> None:
        self.journal = journal
        self.script = script or Script()
        self.host, self.port, self.record = host, port, record
        self.requests: list[Seen] = []
        self.running = self.aborted = self.tokens = self.late_tokens = 0
        self._closing = False
        self._registrations: list[Registration] = []
        self._runner = web.AppRunner(
            self._app(), handler_cancellation=True, access_log=None, shutdown_timeout=0.2
        )

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    async def __aenter__(self) -> Self:
        await self._runner.setup()
        site = web.TCPSite(self._runner, self.host, self.port)
        await site.start()
        self.port = self._runner.addresses[0][1]
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._closing = True
        for registration in self._registrations:
            await registration.stop()
        await self._runner.cleanup()

    async def register(self, controller: str, **options: Any) -> Registration:
        """Join a FastChat-protocol controller and keep beating; see `Registration`."""
        registration = Registration(self, controller, **options)
        self._registrations.append(registration)
        await registration.start()
        return registration

    def _app(self) -> web.Application:
        app = web.Application(middlewares=[self._guard], client_max_size=64 * 2**20)
        app.router.add_get("/health", self._health)
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/v1/chat/completions", self._generate)
        app.router.add_post("/v1/completions", self._generate)
        app.router.add_post("/v1/embeddings", self._embed)
        app.router.add_post("/tokenize", self._tokenize)
        app.router.add_post("/detokenize", self._detokenize)
        app.router.add_get("/load", self._load)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/scripted", self._state)
        app.router.add_post("/scripted", self._change)
        FastChatFace(self).add_routes(app)
        return app

    # -- what every request passes -------------------------------------------------------------

    @web.middleware
    async def _guard(self, request: web.Request, handler: Any) -> web.StreamResponse:
        key = self.script.api_key
        given = request.headers.get("Authorization")
        if key and request.path.startswith("/v1/") and given != f"Bearer {key}":
            return web.json_response({"error": "Unauthorized"}, status=401)
        if self.script.fail_status and request.path.startswith(GENERATES):
            self.see(request, await request.json()).outcome = "refused"
            return _error("scripted failure", "InternalServerError", self.script.fail_status)
        try:
            response: web.StreamResponse = await handler(request)
        except json.JSONDecodeError as failure:
            return _error(f"The body is not JSON: {failure}", "BadRequestError", 400)
        return response

    def see(self, request: web.Request, body: Body) -> Seen:
        """Record one generation request."""
        seen = Seen(request.path, request.headers.copy(), body)
        if self.record:
            self.requests.append(seen)
        return seen

    async def steps(
        self, request: web.Request, seen: Seen, answer: Answer
    ) -> AsyncIterator[tuple[int, Step]]:
        """The answer at the script's pace, with its faults. Always consume to the end.

        Raises ScriptedError for `error_after`; CancelledError when the client leaves.
        """
        pace = 1 + self.running * self.script.crowding
        self.running += 1
        begin = time.monotonic() + self.script.first_delay * pace
        try:
            for index, step in enumerate(answer.steps):
                due = begin + index * self.script.token_delay * pace
                await asyncio.sleep(due - time.monotonic())
                await self._fault(request, seen, index)
                self._count(request, seen)
                yield index, step
            await self._fault(request, seen, len(answer.steps))
            seen.outcome = "finished"
        except asyncio.CancelledError:
            if seen.outcome == "running" and not self._closing:
                seen.outcome = "aborted"
                self.aborted += 1
            raise
        finally:
            self.running -= 1

    def _count(self, request: web.Request, seen: Seen) -> None:
        seen.tokens += 1
        self.tokens += 1
        if request.transport is None or request.transport.is_closing():
            self.late_tokens += 1

    async def _fault(self, request: web.Request, seen: Seen, made: int) -> None:
        script = self.script
        while script.hang_after is not None and made >= script.hang_after:
            await asyncio.sleep(0.02)
        if script.error_after is not None and made >= script.error_after:
            seen.outcome = "refused"
            raise ScriptedError("scripted failure")
        if script.die_after is not None and made >= script.die_after:
            seen.outcome = "died"
            if request.transport is not None:
                request.transport.abort()
            await asyncio.sleep(60)  # ends at once: the lost connection cancels this handler

    # -- OpenAI ----------------------------------------------------------------------------------

    async def _generate(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        seen = self.see(request, body)
        if self.script.pooling:
            return _error("Not Found", "NotFoundError", 404)
        refusal = self._refusal(body)
        if refusal is not None:
            seen.outcome = "refused"
            return refusal
        chat = request.path.endswith("/chat/completions")
        prompts = [chat_prompt(body)] if chat else _prompts(body["prompt"])
        jobs = [self._job(body, chat, prompt) for prompt in prompts]
        if self.journal:
            self._note(request, prompts)
        if any(len(ids) + 1 > self.script.context_length for ids, _ in jobs):
            seen.outcome = "refused"
            message = f"This model's maximum context length is {self.script.context_length} tokens."
            return _error(message, "BadRequestError", 400, "input_tokens")
        return await self._answer(request, seen, chat, jobs)

    def _note(self, request: web.Request, prompts: list[str] | list[str | list[int]]) -> None:
        had = sum(self.script.resume_point(p) for p in prompts if isinstance(p, list))
        line = {"time": time.time(), "id": request.headers.get("X-Request-Id"), "had": had}
        assert self.journal is not None
        with self.journal.open("ab") as file:
            file.write(dumps(line) + b"\n")

    async def _answer(
        self, request: web.Request, seen: Seen, chat: bool, jobs: list[tuple[list[int], Answer]]
    ) -> web.StreamResponse:
        given = request.headers.get("X-Request-Id") or uuid.uuid4().hex
        wire = Wire.of(
            chat,
            ("chatcmpl-" if chat else "cmpl-") + given,
            int(time.time()),
            self.script.model,
            bool(seen.body.get("return_token_ids")),
        )
        headers = {"X-Request-Id": given}
        if not seen.body.get("stream"):
            return await self._whole(request, seen, wire, jobs, headers)
        response = web.StreamResponse(headers=headers)
        response.content_type = "text/event-stream"
        response.charset = "utf-8"
        await response.prepare(request)
        try:
            await self._stream(request, seen, wire, jobs, response)
        except ScriptedError as failure:
            code = self.script.error_code
            body = engine_wire.error(str(failure), "InternalServerError", code)
            await response.write(engine_wire.event(body))
        await response.write(engine_wire.DONE)
        return response

    async def _stream(
        self,
        request: web.Request,
        seen: Seen,
        wire: Wire,
        jobs: list[tuple[list[int], Answer]],
        response: web.StreamResponse,
    ) -> None:
        copies = int(seen.body.get("n") or 1)
        options = seen.body.get("stream_options") or {}
        with_usage = bool(options.get("include_usage"))
        with_logprobs = engine_logprobs.wanted(seen.body, wire.chat)
        made = 0
        for number, (prompt_ids, answer) in enumerate(jobs):
            indices = range(number * copies, (number + 1) * copies)
            last = len(answer.steps) - 1
            why = (answer.finish_reason, answer.stop_reason)
            shape = "tool" if seen.body.get("tool_choice") == "required" else self.script.shape
            if wire.chat and shape == "tool" and why[0] == "stop":
                why = ("tool_calls", None)
            said, logprobs = 0, b"null"
            async for at, step in self.steps(request, seen, answer):
                if self.script.abort_after is not None and at >= self.script.abort_after:
                    seen.outcome = "died"
                    for i in indices:
                        await response.write(
                            wire.finish(i, b'""', step.token_id, ("abort", None), True)
                        )
                    return
                if at == 0 and wire.chat:
                    await response.write(b"".join(wire.role(i, prompt_ids) for i in indices))
                text = dumps(step.text)
                delta = _delta(shape, at, step.text, len(answer.steps)) if wire.chat else None
                if with_logprobs:
                    logprobs = dumps(self._logprobs([step], wire.chat, said))
                    said += len(step.text)
                for i in indices:
                    if at == last:
                        chunk = wire.finish(
                            i, text, step.token_id, why, not with_usage, logprobs, delta
                        )
                    else:
                        first = prompt_ids if at == 0 else None
                        chunk = wire.step(i, text, step.token_id, first, logprobs, delta)
                    await response.write(chunk)
            made += copies * len(answer.steps)
        if with_usage:
            await response.write(wire.usage(sum(len(ids) for ids, _ in jobs), made))

    async def _whole(
        self,
        request: web.Request,
        seen: Seen,
        wire: Wire,
        jobs: list[tuple[list[int], Answer]],
        headers: dict[str, str],
    ) -> web.Response:
        copies = int(seen.body.get("n") or 1)
        choices: list[Body] = []
        made = 0
        for prompt_ids, answer in jobs:
            try:
                async for _ in self.steps(request, seen, answer):
                    pass
            except ScriptedError as failure:
                return _error(str(failure), "InternalServerError", self.script.error_code)
            ids = [step.token_id for step in answer.steps]
            why = (answer.finish_reason, answer.stop_reason)
            asked = engine_logprobs.wanted(seen.body, wire.chat)
            logprobs = self._logprobs(list(answer.steps), wire.chat) if asked else None
            for _ in range(copies):
                at = len(choices)
                choices.append(wire.choice(at, answer.text, ids, why, prompt_ids, logprobs))
                made += len(ids)
        counts = engine_wire.usage(sum(len(ids) for ids, _ in jobs), made)
        body = dumps(wire.whole(choices, counts, jobs[0][0]))
        return web.Response(body=body, content_type="application/json", headers=headers)

    def _logprobs(self, steps: list[Step], chat: bool, said: int = 0) -> Body:
        return engine_logprobs.of_steps(steps, self.script.piece, chat=chat, offset=said)

    def _refusal(self, body: Body) -> web.Response | None:
        if body.get("model", self.script.model) != self.script.model:
            message = f"The model `{body['model']}` does not exist."
            return _error(message, "NotFoundError", 404, "model")
        if self.script.refuse_canary and self._max_tokens(body) == 1:
            return _error("scripted failure of the canary", "ServiceUnavailableError", 503)
        for name, low, high in (("temperature", 0.0, 2.0), ("max_tokens", 1, 2**31)):
            value = body.get(name)
            if value is not None and not low <= value <= high:
                return _error(f"{name} must be in [{low}, {high}]", "BadRequestError", 400, name)
        return None

    def _max_tokens(self, body: Body) -> int:
        given = body.get("max_completion_tokens") or body.get("max_tokens")
        return int(given or self.script.context_length)

    def _job(self, body: Body, chat: bool, prompt: str | list[int]) -> tuple[list[int], Answer]:
        """A prompt's ids and the answer it gets: a prompt that ends on our text is continued."""
        start = self._begin(body)
        if isinstance(prompt, list):
            ids, start = prompt, self.script.resume_point(prompt)
        else:
            ids = self.script.encode(prompt)
            if not chat or body.get("continue_final_message"):
                start = self.script.resume_point_in_text(prompt) or start
        stop = body.get("stop") or []
        stops = [stop] if isinstance(stop, str) else stop
        limit = self._max_tokens(body)
        question = ids[:-start] if start and isinstance(prompt, list) else ids
        return ids, self.script.answer(limit, stops, start, question)

    def _begin(self, body: Body) -> int:
        """Which token of the script an answer begins with."""
        ids = (body.get("vllm_xargs") or {}).get("kd_ids")
        if ids and self.script.forces_ids and not self.script.numbered:
            return int(ids[0]) - FIRST_ID
        return self.script.begins_at

    async def _health(self, request: web.Request) -> web.Response:
        return web.Response(status=self.script.health_status)

    async def _models(self, request: web.Request) -> web.Response:
        card = {
            "id": self.script.model,
            "object": "model",
            "created": int(time.time()),
            "owned_by": "vllm",
            "root": self.script.model,
            "parent": None,
            "max_model_len": self.script.context_length,
            "permission": [],
        }
        return web.json_response({"object": "list", "data": [card]})

    async def _embed(self, request: web.Request) -> web.Response:
        """One vector a text: its bytes' count, twice."""
        body = await request.json()
        seen = self.see(request, body)
        if not self.script.pooling:
            return _error("Not Found", "NotFoundError", 404)
        if self.script.die_after is not None:
            await self._fault(request, seen, 0)
        lengths = [
            len(text) if isinstance(text, list) else len(text.encode())
            for text in _prompts(body["input"])
        ]
        seen.outcome = "finished"
        data = [
            {"object": "embedding", "index": index, "embedding": [float(length)] * 2}
            for index, length in enumerate(lengths)
        ]
        usage = {"prompt_tokens": sum(lengths), "total_tokens": sum(lengths)}
        return web.json_response(
            {"object": "list", "data": data, "model": self.script.model, "usage": usage}
        )

    async def _tokenize(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.see(request, body)
        prompt = chat_prompt(body) if "messages" in body else body["prompt"]
        ids = self.script.encode(prompt)
        limit = self.script.context_length
        return web.json_response(
            {"count": len(ids), "max_model_len": limit, "tokens": ids, "token_strs": None}
        )

    async def _detokenize(self, request: web.Request) -> web.Response:
        body = await request.json()
        return web.json_response({"prompt": self.script.decode(body["tokens"])})

    async def _load(self, request: web.Request) -> web.Response:
        claimed = self.script.load
        return web.json_response({"server_load": self.running if claimed is None else claimed})

    async def _metrics(self, request: web.Request) -> web.Response:
        label = f'{{model_name="{self.script.model}",engine="0"}}'
        lines = (
            "# TYPE vllm:num_requests_running gauge",
            f"vllm:num_requests_running{label} {float(self.running)}",
            "# TYPE vllm:num_requests_waiting gauge",
            f"vllm:num_requests_waiting{label} 0.0",
            "# TYPE vllm:generation_tokens_total counter",
            f"vllm:generation_tokens_total{label} {float(self.tokens)}",
            "# TYPE vllm:iteration_tokens_total histogram",
            f"vllm:iteration_tokens_total_count{label} {float(self.tokens)}",
        )
        return web.Response(text="\n".join(lines) + "\n", content_type="text/plain")

    # -- for tests that run it as a process ------------------------------------------------------

    async def _state(self, request: web.Request) -> web.Response:
        names = ("running", "aborted", "tokens", "late_tokens")
        state: Body = {name: getattr(self, name) for name in names}
        state["requests"] = [_plain(seen) for seen in self.requests]
        return web.json_response(state)

    async def _change(self, request: web.Request) -> web.Response:
        for name, value in (await request.json()).items():
            if name not in Script.__slots__:
                return _error(f"a script has no {name}", "BadRequestError", 400, name)
            setattr(self.script, name, value)
        return await self._state(request)


def _delta(shape: str, at: int, text: str, size: int) -> bytes | None:
    """The delta of step `at` of `size`, if it holds something else than content."""
    if shape == "thought" and at < size // 2:
        return dumps({"reasoning": text})
    if shape != "tool":
        return None
    call: Body = {"index": 0, "function": {"arguments": text}}
    if at == 0:
        call |= {"id": f"call-{uuid.uuid4().hex}", "type": "function"}
        call["function"] = {"name": "f", "arguments": text}
    return dumps({"tool_calls": [call]} if text or at == 0 else {})


def _error(message: str, kind: str, status: int, param: str | None = None) -> web.Response:
    return web.json_response(engine_wire.error(message, kind, status, param), status=status)


def _plain(seen: Seen) -> Body:
    fields = {name: getattr(seen, name) for name in Seen.__slots__}
    return fields | {"headers": dict(seen.headers)}


def _prompts(prompt: Any) -> list[str | list[int]]:
    """The four shapes of a completion prompt: str, [str], [int], [[int]]."""
    if isinstance(prompt, str) or (prompt and isinstance(prompt[0], int)):
        return [prompt]
    return list(prompt)


def _parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m support.scripted_engine", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0: a free one, printed on start")
    parser.add_argument("--model", default="demo", help="a name, or a directory as for vLLM")
    parser.add_argument("--served-model-name")
    parser.add_argument("--max-model-len", type=int, default=16384)
    parser.add_argument("--script", type=json.loads, default={}, help="JSON of Script fields")
    parser.add_argument("--start-delay", type=float, default=0.0, help="seconds before it listens")
    parser.add_argument("--record", action="store_true", help="keep requests for GET /scripted")
    parser.add_argument("--journal", type=Path, help="file that gets a line for every request")
    parser.add_argument("--register", action="append", default=[], metavar="URL")
    parser.add_argument("--register-kodolly", action="append", default=[], metavar="URL")
    parser.add_argument("--token", help="shared secret of the controller")
    parser.add_argument("--heart-beat", type=float, default=5.0, help="seconds between heartbeats")
    options, _ = parser.parse_known_args(arguments)  # vLLM's other flags mean nothing here
    return options


async def _serve(options: argparse.Namespace) -> None:
    script = Script(
        model=options.served_model_name or os.path.basename(options.model.rstrip("/")),
        context_length=options.max_model_len,
        api_key=os.environ.get("VLLM_API_KEY") or None,
    )
    for name, value in options.script.items():
        setattr(script, name, value)
    await asyncio.sleep(options.start_delay)
    engine = ScriptedEngine(
        script,
        host=options.host,
        port=options.port,
        record=options.record,
        journal=options.journal,
    )
    async with engine:
        kept = {"token": options.token, "interval": options.heart_beat}
        for controller in options.register:
            await engine.register(controller, **kept)
        for controller in options.register_kodolly:
            await engine.register(controller, kodolly={}, **kept)
        sys.stdout.write(f"ready {engine.url}\n")
        sys.stdout.flush()
        await asyncio.Event().wait()


def main() -> None:
    options = _parse()
    try:
        import uvloop
    except ImportError:
        run = asyncio.run
    else:
        run = uvloop.run
    try:
        run(_serve(options))
    except KeyboardInterrupt:
        sys.exit(0)


if __name__ == "__main__":
    main()
