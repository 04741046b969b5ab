"""OpenAI bodies in the byte shapes of vLLM 0.32: key order, compact separators, raw UTF-8."""

import json
from dataclasses import dataclass
from typing import Any

FINGERPRINT = "scripted-engine"
DONE = b"data: [DONE]\n\n"

Body = dict[str, Any]


def dumps(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def usage(prompt_tokens: int, completion_tokens: int) -> Body:
    return {
        "prompt_tokens": prompt_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "completion_tokens": completion_tokens,
    }


def error(message: str, kind: str, code: int, param: str | None = None) -> Body:
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def event(value: object) -> bytes:
    return b"data: " + dumps(value) + b"\n\n"


@dataclass(frozen=True, slots=True)
class Wire:
    """The chunks of one response. Constant parts are encoded once: a step costs a join of bytes."""

    chat: bool
    id: str
    created: int
    model: str
    token_ids: bool
    head: bytes

    @classmethod
    def of(cls, chat: bool, response_id: str, created: int, model: str, token_ids: bool) -> "Wire":
        kind = "chat.completion.chunk" if chat else "text_completion"
        base = {"id": response_id, "object": kind, "created": created, "model": model}
        head = b"data: " + dumps(base)[:-1] + b',"choices":['
        return cls(chat, response_id, created, model, token_ids, head)

    def role(self, index: int, prompt_ids: list[int]) -> bytes:
        """The first chat event: role, empty content, and the prompt's ids if asked for."""
        choice = {
            "index": index,
            "delta": {"role": "assistant", "content": ""},
            "logprobs": None,
            "finish_reason": None,
        }
        ids = dumps(prompt_ids) if self.token_ids else b"null"
        tail = b'],"prompt_token_ids":' + ids + b',"prompt_text":null}\n\n'
        return self.head + dumps(choice) + tail

    def step(
        self,
        index: int,
        text: bytes,
        token_id: int,
        prompt_ids: list[int] | None,
        logprobs: bytes = b"null",
        delta: bytes | None = None,
    ) -> bytes:
        """A chunk with text; `text` is an encoded JSON string, `logprobs` an encoded object.

        `delta`: one of a chat that is not just content, encoded.
        """
        ids = b"[%d]" % token_id if self.token_ids else b"null"
        if self.chat:
            return (
                b'%b{"index":%d,"delta":%b,"logprobs":%b,"finish_reason":null,'
                b'"token_ids":%b}]}\n\n'
                % (self.head, index, delta or b'{"content":%b}' % text, logprobs, ids)
            )
        prompt = dumps(prompt_ids) if self.token_ids and prompt_ids is not None else b"null"
        return (
            b'%b{"index":%d,"text":%b,"logprobs":%b,"finish_reason":null,"stop_reason":null,'
            b'"prompt_token_ids":%b,"token_ids":%b}]}\n\n'
            % (self.head, index, text, logprobs, prompt, ids)
        )

    def finish(
        self,
        index: int,
        text: bytes,
        token_id: int,
        why: tuple[str, str | None],
        last: bool,
        logprobs: bytes = b"null",
        delta: bytes | None = None,
    ) -> bytes:
        """The chunk that ends a choice. `last`: no usage chunk follows, so it is stamped."""
        ids = b"[%d]" % token_id if self.token_ids else b"null"
        reason, stop = dumps(why[0]), dumps(why[1])
        body = b'"text":%b' % text
        if self.chat:
            body = b'"delta":' + (delta or b'{"content":%b}' % text)
        prompt = b"" if self.chat else b'"prompt_token_ids":null,'
        stamp = b',"system_fingerprint":"%b"' % FINGERPRINT.encode() if last else b""
        return (
            b'%b{"index":%d,%b,"logprobs":%b,"finish_reason":%b,"stop_reason":%b,%b"token_ids":%b}]'
            b"%b}\n\n" % (self.head, index, body, logprobs, reason, stop, prompt, ids, stamp)
        )

    def usage(self, prompt_tokens: int, completion_tokens: int) -> bytes:
        """The chunk without choices that `stream_options.include_usage` asks for."""
        counts = dumps(usage(prompt_tokens, completion_tokens))
        stamp = dumps(FINGERPRINT)
        return self.head + b'],"usage":' + counts + b',"system_fingerprint":' + stamp + b"}\n\n"

    def whole(self, choices: list[Body], counts: Body, prompt_ids: list[int]) -> Body:
        """The body of an answer that is not streamed."""
        body: Body = {
            "id": self.id,
            "object": "chat.completion" if self.chat else "text_completion",
            "created": self.created,
            "model": self.model,
            "choices": choices,
            "service_tier": None,
            "system_fingerprint": FINGERPRINT,
            "usage": counts,
        }
        if self.chat:
            body["prompt_token_ids"] = prompt_ids if self.token_ids else None
        return body

    def choice(
        self,
        index: int,
        text: str,
        ids: list[int],
        why: tuple[str, str | None],
        prompt: list[int],
        logprobs: Body | None = None,
    ) -> Body:
        """One choice of an answer that is not streamed."""
        said: Body = {"index": index}
        if self.chat:
            said["message"] = {"role": "assistant", "content": text, "refusal": None}
        else:
            said["text"] = text
        said |= {"logprobs": logprobs, "finish_reason": why[0], "stop_reason": why[1]}
        said["token_ids"] = ids if self.token_ids else None
        if not self.chat:
            said["prompt_token_ids"] = prompt if self.token_ids else None
        return said
