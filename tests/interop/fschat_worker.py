"""A worker on FastChat's own BaseModelWorker whose answers are scripted; for test_fschat_worker_at_ours.

Run in a folder of its own (FastChat drops log files):
    python -m interop.fschat_worker --port N --controller-address URL --model-name NAME

It makes ANSWER four bytes at a time, so most frames end inside a syllable and carry U+FFFD there,
as frames of FastChat's model_worker do. A mark in the prompt asks for something special:
[overflow] and [fault]: an error frame at once; [break]: one after three steps; [slow]: STEP_DELAY
before every step. GET /scripted tells what was asked and how many steps were made.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from typing import Any

ANSWER = '물론이죠! 한국어로 답합니다 🙂 꿈을 꾸는 밤, "뷁" 𠮷.\n끝 👩\u200d💻'
STEP = 4  # bytes; a Hangul syllable has three
STEP_DELAY = 0.05
CONTEXT_LENGTH = 4096
ERRORS = {"[overflow]": ("too long for this model", 40303), "[fault]": ("out of order", 50001)}
SLOW_REPEATS = 40


class ByteCounter:
    """Stands where FastChat looks for a tokenizer that knows only to count."""

    def num_tokens(self, prompt: str) -> int:
        return len(prompt.encode())

    def __call__(self, prompt: str) -> Any:
        raise TypeError("count me with num_tokens")


def steps(answer: str = ANSWER) -> list[str]:
    """The text so far after each step, cut characters shown as U+FFFD."""
    raw = answer.encode()
    ends = [*range(STEP, len(raw), STEP), len(raw)]
    return [raw[:end].decode("utf-8", "replace") for end in ends]


def frames(params: dict[str, Any]) -> Iterator[tuple[dict[str, Any], float]]:
    """The frames FastChat's model_worker would send for `params`, and the pause before each."""
    prompt, wanted = params["prompt"], int(params["max_new_tokens"])
    if error := next((e for mark, e in ERRORS.items() if mark in prompt), None):
        yield {"text": error[0], "error_code": error[1]}, 0.0
        return
    lead = prompt if params.get("echo", True) else ""
    slow = "[slow]" in prompt
    texts = steps(ANSWER * SLOW_REPEATS if slow else ANSWER)
    reason, frame = "stop" if len(texts) <= wanted else "length", {}
    for count, text in enumerate(texts[:wanted], start=1):
        cuts = [text.index(word) for word in params.get("stop") or () if word in text]
        frame = _frame(lead + text[: min(cuts, default=None)], len(prompt.encode()), count)
        yield frame, STEP_DELAY if slow else 0.0
        if "[break]" in prompt and count == 3:
            yield {"text": "broke in the middle", "error_code": 50001}, 0.0
            return
        if cuts:
            reason = "stop"
            break
    yield frame | {"finish_reason": reason}, 0.0


def _frame(text: str, asked: int, made: int) -> dict[str, Any]:
    usage = {"prompt_tokens": asked, "completion_tokens": made, "total_tokens": asked + made}
    return {"text": text, "error_code": 0, "usage": usage, "finish_reason": None}


def main() -> None:
    import uvicorn
    from fastchat.conversation import get_conv_template
    from fastchat.serve.base_model_worker import BaseModelWorker, app

    class ScriptedWorker(BaseModelWorker):  # type: ignore[misc]
        """FastChat's routes, registration and heartbeats; only the answer is ours."""

        asked: list[dict[str, Any]]
        made = 0

        def make_conv_template(self, conv_template: str = "", model_path: str = "") -> Any:
            # FastChat's own hook; its default imports every model adapter, and torch with them.
            return get_conv_template(conv_template)

        def generate_stream_gate(self, params: dict[str, Any]) -> Iterator[bytes]:
            self.asked.append(params)
            for frame, pause in frames(params):
                time.sleep(pause)
                self.made += 1
                yield json.dumps(frame).encode() + b"\0"

        def generate_gate(self, params: dict[str, Any]) -> Any:
            return [json.loads(frame[:-1]) for frame in self.generate_stream_gate(params)][-1]

    parser = argparse.ArgumentParser()
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--controller-address", required=True)
    parser.add_argument("--model-name", required=True)
    parser.add_argument("--conv-template", default="dolly_v2")
    options = parser.parse_args()
    worker = ScriptedWorker(
        options.controller_address,
        f"http://{options.host}:{options.port}",
        "scripted",
        options.model_name,
        [options.model_name],
        limit_worker_concurrency=8,
        conv_template=options.conv_template,
    )
    worker.asked = []
    worker.tokenizer, worker.context_len = ByteCounter(), CONTEXT_LENGTH
    app.get("/scripted")(lambda: {"asked": worker.asked, "made": worker.made})
    worker.init_heart_beat()
    uvicorn.run(app, host=options.host, port=options.port, log_level="warning")


if __name__ == "__main__":
    main()
