"""Malformed and odd HTTP requests, made from a seed: the same number is always the same bytes."""

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

METHODS = ("GET", "POST", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "CONNECT", "BREW")
VERSIONS = (
    "HTTP/1.1",
    "HTTP/1.0",
    "HTTP/0.9",
    "HTTP/2.0",
    "HTTP/9.9",
    "http/1.1",
    "",
    "HTTP/1.1 x",
)
ODD_PATHS = (
    "//", "/%00", "/%2e%2e/%2e%2e/etc/passwd", "/../../etc/passwd", "/%ff%fe", "*", "/a b", "/\u00e9",
    "/" + "a" * 9000, "/?" + "a=b&" * 3000, "/v1/models/%0d%0aX:y", "http://elsewhere/", "/;a=b", "/#f",
)  # fmt: skip
ODD_HEADERS = (
    b"Content-Length: -1", b"Content-Length: +5", b"Content-Length: 5, 6", b"Content-Length: 0x5",
    b"Content-Length: 99999999999999999999", b"Content-Length: 5\r\nContent-Length: 6",
    b"Transfer-Encoding: chunked\r\nContent-Length: 3", b"Transfer-Encoding: xchunked",
    b"Transfer-Encoding: chunked, identity", b"Transfer-Encoding : chunked", b"Transfer-Encoding:\x0bchunked",
    b"Host: a\r\nHost: b", b"No colon here", b": empty", b"A\x00B: c", b"A: b\x00c", b" Folded: x", b"A: b\r\n\tc",
    "Authorization: Bearer \u2603".encode(), b"Authorization: Basic ////", b"Authorization: Bearer",
    b"Expect: 100-continue", b"Expect: 200-ok", b"Upgrade: websocket\r\nConnection: Upgrade",
    b"Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings", b"Connection: close, keep-alive",
    b"Content-Encoding: gzip", b"Content-Type: multipart/form-data; boundary=", b"Content-Type: \xff",
    b"Origin: null", b"X-Request-Id: " + b"i" * 5000, b"Cookie: " + b"a=b; " * 2000, b"Range: bytes=0-,0-,0-",
    b"X-Forwarded-For: \r\nX-Forwarded-Proto: gopher", b"Accept: " + b"*/*;q=0.1," * 500,
)  # fmt: skip
ODD_CHUNKS = (
    b"ffffffffffffffff\r\n", b"-1\r\n", b"0x3\r\nabc\r\n0\r\n\r\n", b"3\nabc\n0\n\n", b"3;" + b"e" * 70_000,
    b"3\r\nabcdef\r\n0\r\n\r\n", b"\r\n\r\n", b"0\r\nHost: evil\r\n\r\n", b"0\r\n" + b"t: x\r\n" * 200 + b"\r\n",
    b"1;a=b\r\nx\r\n" * 500 + b"0\r\n\r\n",
)  # fmt: skip
ODD_JSON = (
    b"", b"null", b"[]", b"5", b'"text"', b"{", b'{"a":1}{"b":2}', b"\xff\xfe{\x00}\x00", b'{"a":NaN}', b"[" * 5000,
    b'{"a":' * 300 + b"1" + b"}" * 300, b"[" * 900 + b"]" * 900, b'{"a":1e999}', b'{"a":"\\ud800"}', b'{"a":' + b"9" * 4000 + b"}",
    b"a=b&c=d", b"\x1f\x8b\x08\x00", b'{"model":null}', b'{"__proto__":{}}', b'{"data":[],"fn_index":-1,"session_hash":"x"}',
)  # fmt: skip
NOT_HTTP = (
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"SSH-2.0-x\r\n", b"\r\n" * 3000,
    b"\x00" * 4096, b"EHLO x\r\n", b"*1\r\n$4\r\nPING\r\n", b"HTTP/1.1 200 OK\r\n\r\n", b"\n\n\nGET / HTTP/1.1\n\n",
)  # fmt: skip
ODD_VALUES: tuple[Any, ...] = (
    None, True, 5, -1, 1e308, "", "x" * 3000, [], [None], {}, {"a": {}}, [[[]]], "\u0000", "\ud7ff", 2**63, [1e300],
)  # fmt: skip
FIELDS = (
    "model", "messages", "prompt", "n", "stream", "stop", "max_tokens", "temperature", "logit_bias", "tools", "seed",
    "response_format", "stream_options", "logprobs", "top_p", "echo", "suffix", "worker_name", "data", "session_hash",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Target:
    """One attacked process: where it listens, what it serves, and a header that opens it ("" for none)."""

    name: str
    host: str
    port: int
    gets: tuple[str, ...]
    posts: tuple[str, ...]
    key: str = ""


def case(target: Target, number: int, seed: int) -> bytes:
    """The bytes of one case."""
    chance = random.Random(f"{seed}/{target.name}/{number}")
    return chance.choice(KINDS)(chance, target)


def _request(chance: random.Random, target: Target, body: bytes | None = None) -> bytes:
    """A good request, which the others spoil."""
    method = "GET" if body is None else "POST"
    path = chance.choice(target.gets if body is None else target.posts)
    lines = [f"{method} {path} HTTP/1.1", f"Host: {target.host}:{target.port}"]
    if target.key and chance.random() < 0.5:
        lines.append(f"Authorization: Bearer {target.key}")
    if body is not None:
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, "", ""]).encode() + (body or b"")


def _fields(chance: random.Random) -> bytes:
    """A JSON object with known names and odd values."""
    body = {name: chance.choice(ODD_VALUES) for name in chance.sample(FIELDS, 6)}
    good = {"model": "demo", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
    return json.dumps(good | body if chance.random() < 0.7 else body).encode()


def _start_line(chance: random.Random, target: Target) -> bytes:
    path = chance.choice((*ODD_PATHS, *target.gets, *target.posts))
    line = f"{chance.choice(METHODS)} {path} {chance.choice(VERSIONS)}\r\nHost: x\r\n\r\n"
    return line.encode("utf-8", "replace")


def _headers(chance: random.Random, target: Target) -> bytes:
    head, _, body = _request(chance, target, _fields(chance)).partition(b"\r\n\r\n")
    return (
        b"\r\n".join([head, *chance.sample(ODD_HEADERS, chance.randint(1, 3))]) + b"\r\n\r\n" + body
    )


def _chunks(chance: random.Random, target: Target) -> bytes:
    path = chance.choice(target.posts)
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    return head + chance.choice(ODD_CHUNKS)


def _spoilt(chance: random.Random, target: Target) -> bytes:
    """A good request of which some bytes are changed, taken away or doubled."""
    data = bytearray(_request(chance, target, _fields(chance)))
    for _ in range(chance.randint(1, 12)):
        place = chance.randrange(len(data))
        data[place : place + chance.randint(0, 2)] = chance.randbytes(chance.randint(0, 3))
    return bytes(data)


def _cut(chance: random.Random, target: Target) -> bytes:
    data = _request(chance, target, _fields(chance))
    return data[: chance.randrange(1, len(data))]


def _json(chance: random.Random, target: Target) -> bytes:
    return _request(chance, target, chance.choice(ODD_JSON))


def _values(chance: random.Random, target: Target) -> bytes:
    return _request(chance, target, _fields(chance))


def _pipelined(chance: random.Random, target: Target) -> bytes:
    return b"".join(
        _request(chance, target, chance.choice((None, _fields(chance))))
        for _ in range(chance.randint(2, 12))
    )


def _not_http(chance: random.Random, _: Target) -> bytes:
    return chance.choice((*NOT_HTTP, chance.randbytes(chance.randint(1, 3000))))


KINDS: tuple[Callable[[random.Random, Target], bytes], ...] = (
    _start_line,
    _headers,
    _chunks,
    _spoilt,
    _cut,
    _json,
    _values,
    _pipelined,
    _not_http,
)
