"""Which of vLLM's grammar backends makes valid JSON: real answers to schemas whose strings have bounds.

    PYTHONPATH=.:tests python -m benchmarks.grammars.run --write benchmarks/grammars/results/vllm.md
    ... --requests 50 --backends guidance      a part of it

Needs `make model` and `make vllm-env`. Each backend runs in an engine of its own, one after the other, on
the CPU. Ends with 1 if the backend that KoDolly's workers use made an answer that is not valid.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
from support.processes import free_port, start, wait_http

from kodolly.engines import vllm
from kodolly.engines.command import EngineOptions

ROOT = Path(__file__).parents[2]
MODEL = ROOT / ".kodolly" / "models" / "smollm2-135m-instruct"
PYTHON = ROOT / ".venv-vllm" / "bin" / "python"
BACKENDS = ("xgrammar", "guidance", "outlines", "lm-format-enforcer", "auto")
START, ANSWER = 900.0, 600.0  # seconds
AT_ONCE = 16
MAX_TOKENS = 160
KEYS = {"type": "object", "additionalProperties": False}
SCHEMAS: dict[str, dict[str, Any]] = {
    "bounded strings": KEYS
    | {
        "properties": {
            "title": {"type": "string", "minLength": 1, "maxLength": 30},
            "line": {"type": "string", "minLength": 10, "maxLength": 60},
            "year": {"type": "integer", "minimum": 0, "maximum": 3000},
        },
        "required": ["title", "line", "year"],
    },
    "plain strings": KEYS
    | {
        "properties": {
            "title": {"type": "string"},
            "tags": {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": 3},
        },
        "required": ["title", "tags"],
    },
    "a list of bounded strings": KEYS
    | {
        "properties": {
            "lines": {
                "type": "array",
                "minItems": 2,
                "maxItems": 3,
                "items": {"type": "string", "minLength": 4, "maxLength": 20},
            }
        },
        "required": ["lines"],
    },
}
PROMPTS = (
    'Write a poem of four lines, with line breaks and the title in "quotes".',
    "Show a Python program with tabs and a Windows path such as C:\\temp\\new.",
    "한국어로 짧은 시를 써 주세요. 줄을 바꾸고 따옴표도 쓰세요.",
    'She said: "Who\'s there?"\nHe said: "Me."\nGo on with the dialogue.',
)
# Tokens that a model which writes code or poems wants in its strings.
WANTED = ("\n", "\t", "\\", '\\"', "\\n", "\r")
_open = urllib.request.build_opener(urllib.request.ProxyHandler({})).open


@dataclass
class Tally:
    """What the answers of one backend were."""

    counts: Counter[str] = field(default_factory=Counter)
    example: str = ""

    def add(self, verdict: str, text: str) -> None:
        self.counts[verdict] += 1
        if verdict == "not JSON" and not self.example:
            self.example = text


@contextmanager
def engine(backend: str, logs: Path) -> Iterator[str]:
    """vLLM with a backend; yields its address."""
    port = free_port()
    options = EngineOptions(
        model=str(MODEL),
        served_model_name="model",
        host="127.0.0.1",
        port=port,
        max_model_len=1024,
        max_num_seqs=AT_ONCE,
        dtype="float32",
        python=str(PYTHON),
        extra_args=(f"--structured-outputs-config.backend={backend}",),
    )
    command = vllm.command(options)
    log = logs / f"{backend}.log"
    with start(command.argv, dict(command.env), cwd=ROOT, log=log) as process:
        address = f"http://127.0.0.1:{port}"
        wait_http(f"{address}/health", process=process, timeout=START)
        yield address


def call(url: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    data = json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    try:
        with _open(request, timeout=ANSWER) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, {"text": error.read().decode()}


def requests(number: int, bias: dict[str, float]) -> Iterator[dict[str, Any]]:
    """`number` requests, half of them with a wish for line breaks, tabs, quotes and backslashes."""
    names = list(SCHEMAS)
    for index in range(number):
        name = names[index % len(names)]
        yield {
            "model": "model",
            "messages": [{"role": "user", "content": PROMPTS[index % len(PROMPTS)]}],
            "temperature": (1.0, 1.5, 2.0)[index // 2 % 3],
            "seed": index,
            "max_tokens": MAX_TOKENS,
            "logit_bias": bias if index % 2 else {},
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "answer", "schema": SCHEMAS[name], "strict": True},
            },
        }


def judge(body: dict[str, Any], status: int, answer: dict[str, Any]) -> tuple[str, str]:
    """The verdict on an answer, and its text."""
    if status != 200:
        return f"refused with {status}", str(answer)
    choice = answer["choices"][0]
    text = choice["message"]["content"] or ""
    if choice["finish_reason"] == "length":
        return "cut at max_tokens", text
    schema = body["response_format"]["json_schema"]["schema"]
    try:
        value = json.loads(text)
        jsonschema.validate(value, schema)
    except ValueError:
        return "not JSON", text
    except jsonschema.ValidationError:
        return "not of the schema", text
    return "valid with an escape" if "\\" in text else "valid", text


def measure(backend: str, number: int, logs: Path) -> Tally:
    tally = Tally()
    with engine(backend, logs) as address, ThreadPoolExecutor(AT_ONCE) as pool:
        bias: dict[str, float] = {}
        for text in WANTED:
            body = {"model": "model", "prompt": text, "add_special_tokens": False}
            ids = call(f"{address}/tokenize", body)[1]["tokens"]
            bias |= {str(ids[0]): 6.0} if len(ids) == 1 else {}
        bodies = list(requests(number, bias))
        url = f"{address}/v1/chat/completions"
        answers = pool.map(lambda body: call(url, body), bodies)
        for body, (status, answer) in zip(bodies, answers, strict=True):
            tally.add(*judge(body, status, answer))
    print(backend, dict(tally.counts), repr(tally.example), flush=True)
    return tally


def page(results: dict[str, Tally], number: int) -> str:
    verdicts = sorted({verdict for tally in results.values() for verdict in tally.counts})
    lines = [
        "# Grammar backends of vLLM 0.32",
        "",
        f"`benchmarks/grammars/run.py`: {number} chats a backend, SmolLM2-135M-Instruct in float32 on the CPU,",
        "temperatures 1, 1.5 and 2, three JSON schemas; every second chat has a bias of 6 towards line breaks, tabs,",
        "quotes and backslashes. Counts of answers:",
        "",
        "| backend | " + " | ".join(verdicts) + " |",
        "|---|" + "---:|" * len(verdicts),
    ]
    for backend, tally in results.items():
        lines.append(
            f"| {backend} | "
            + " | ".join(str(tally.counts[verdict]) for verdict in verdicts)
            + " |"
        )
    for backend, tally in results.items():
        if tally.example:
            lines += ["", f"Not JSON, from {backend}: `{tally.example!r}`"]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--requests", type=int, default=300, help="chats for each backend")
    parser.add_argument("--backends", nargs="+", default=list(BACKENDS))
    parser.add_argument("--write", type=Path, help="the page to write")
    parser.add_argument("--logs", type=Path, help="keep the logs here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        logs = options.logs or Path(scratch)
        results = {name: measure(name, options.requests, logs) for name in options.backends}
    text = page(results, options.requests)
    print(text)
    if options.write:
        options.write.write_text(text, encoding="utf-8")
    ours = results.get("guidance", Tally()).counts
    return 1 if ours["not JSON"] or ours["not of the schema"] else 0


if __name__ == "__main__":
    sys.exit(main())
