"""A worker of FastChat's own make in our house: registered at our controller, served by our API."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any

import httpx
import pytest
from interop.conftest import Town
from interop.fschat_worker import ANSWER, CONTEXT_LENGTH, steps
from support.processes import Process, free_port, wait_http, wait_until

pytestmark = pytest.mark.stack

MODEL = "stock-dolly"
TOKEN = "interop-secret"
UNFINISHED = "\ufffd"
# fschat's dolly_v2 as its own Conversation renders it.
PROMPT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes"
    " the request.\n\n### Instruction:\n{}\n\n### Response:\n"
)


class OurHouse:
    """Our controller and API, and a FastChat worker."""

    def __init__(self, town: Town, http: httpx.Client, door: tuple[str, str]) -> None:
        self.http = http
        self.controller, self.api = door
        self.worker, self.process = start_worker(town, self.controller)
        wait_http(self.worker + "/scripted", process=self.process)
        wait_http(self.api + "/ready", process=self.process)

    def chat(self, text: str = "안녕?", **body: Any) -> httpx.Response:
        """A question at our API."""
        given = {"model": MODEL, "messages": [{"role": "user", "content": text}], **body}
        return self.http.post(self.api + "/v1/chat/completions", json=given)

    def stream(self, text: str = "안녕?", **body: Any) -> list[dict[str, Any]]:
        """The chunks of a streamed answer that ends with [DONE]."""
        answer = self.chat(text, stream=True, **body)
        assert answer.status_code == 200, answer.text
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert UNFINISHED not in answer.text
        chunks, done = events(answer.text)
        assert done
        return chunks

    def at_worker(self) -> dict[str, Any]:
        """What the worker was asked and how many steps it made."""
        state = self.http.get(self.worker + "/scripted").json()
        assert isinstance(state, dict)
        return state


def start_worker(town: Town, controller: str) -> tuple[str, Process]:
    """A FastChat worker process: its base URL and itself."""
    port = free_port()
    flags = ("--controller-address", controller, "--model-name", MODEL)
    process = town.run("interop.fschat_worker", *flags, port=port)
    return f"http://127.0.0.1:{port}", process


def events(body: str) -> tuple[list[dict[str, Any]], bool]:
    """The JSON events of an event stream, and whether [DONE] ended it."""
    data = [line.removeprefix("data: ") for line in body.split("\n\n") if line]
    return [json.loads(line) for line in data if line != "[DONE]"], data[-1] == "[DONE]"


def said(chunks: Iterable[dict[str, Any]], index: int = 0) -> str:
    """The text of one choice, its deltas put together."""
    choices = [c for chunk in chunks for c in chunk["choices"] if c["index"] == index]
    return "".join(choice["delta"].get("content") or "" for choice in choices)


def reasons(chunks: Iterable[dict[str, Any]]) -> list[str]:
    """Every finish reason told, in order."""
    return [c["finish_reason"] for chunk in chunks for c in chunk["choices"] if c["finish_reason"]]


@pytest.fixture(scope="module")
def house(town: Town, http: httpx.Client, our_door: Callable[..., tuple[str, str]]) -> OurHouse:
    """The whole house, once a FastChat worker is ready in it."""
    return OurHouse(town, http, our_door())


def test_a_fastchat_worker_is_listed(house: OurHouse) -> None:
    """It registers in FastChat's words; our controller hands it out, our API offers its model."""
    answer = house.http.post(house.controller + "/get_worker_address", json={"model": MODEL})
    rows = house.http.get(house.controller + "/workers").json()["workers"]
    models = house.http.get(house.api + "/v1/models").json()["data"]
    assert answer.json() == {"address": house.worker}
    assert [(row["name"], row["state"], row["kodolly"]) for row in rows] == [
        (house.worker, "ready", None)
    ]
    assert [card["id"] for card in models] == [MODEL]


def test_its_answer_comes_whole(house: OurHouse) -> None:
    """A plain chat brings the Korean text, the finish reason and the usage, as OpenAI shapes them."""
    answer = house.chat(max_tokens=100).json()
    asked, made = len(PROMPT.format("안녕?").encode()), len(steps())
    assert answer["object"] == "chat.completion"
    assert [choice["message"] for choice in answer["choices"]] == [
        {"role": "assistant", "content": ANSWER}
    ]
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["usage"] == {
        "prompt_tokens": asked,
        "completion_tokens": made,
        "total_tokens": asked + made,
    }


def test_its_stream_says_the_same_as_its_answer(house: OurHouse) -> None:
    """Deltas put together are the whole answer, though the worker's frames end inside syllables."""
    assert any(text.endswith(UNFINISHED) for text in steps())
    chunks = house.stream()
    assert said(chunks) == house.chat().json()["choices"][0]["message"]["content"] == ANSWER
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert len(chunks) > 10
    assert reasons(chunks) == ["stop"]
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert all("usage" not in chunk for chunk in chunks)


def test_usage_ends_a_stream_that_asks_for_it(house: OurHouse) -> None:
    """With include_usage the last chunk has no choice but the whole answer's usage."""
    chunks = house.stream(stream_options={"include_usage": True})
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"] == house.chat().json()["usage"]


def test_two_choices_are_two_answers(house: OurHouse) -> None:
    """n=2 asks the worker twice: two whole texts, two reasons, and the prompt counted once."""
    answer = house.chat(n=2).json()
    chunks = house.stream(n=2)
    single = house.chat().json()["usage"]
    assert [choice["message"]["content"] for choice in answer["choices"]] == [ANSWER, ANSWER]
    assert [choice["index"] for choice in answer["choices"]] == [0, 1]
    assert answer["usage"]["completion_tokens"] == 2 * single["completion_tokens"]
    assert answer["usage"]["prompt_tokens"] == single["prompt_tokens"]
    assert [said(chunks, 0), said(chunks, 1)] == [ANSWER, ANSWER]
    assert reasons(chunks) == ["stop", "stop"]


def test_stop_reaches_the_worker(house: OurHouse) -> None:
    """The client's stop string ends the answer before it, streamed or not."""
    whole = ANSWER[: ANSWER.index("꿈")]
    answer = house.chat(stop="꿈").json()["choices"][0]
    assert (answer["message"]["content"], answer["finish_reason"]) == (whole, "stop")
    assert said(house.stream(stop=["꿈"])) == whole
    assert house.at_worker()["asked"][-1]["stop"] == ["꿈"]


@pytest.mark.parametrize("bound", [3, 5, 7])
def test_max_tokens_ends_the_answer_on_a_whole_character(house: OurHouse, bound: int) -> None:
    """A bound inside a syllable leaves that syllable out, streamed or not."""
    whole = steps()[bound - 1].rstrip(UNFINISHED)
    answer = house.chat(max_tokens=bound).json()
    chunks = house.stream(max_completion_tokens=bound)
    assert answer["choices"][0]["message"]["content"] == said(chunks) == whole
    assert answer["choices"][0]["finish_reason"] == "length"
    assert reasons(chunks) == ["length"]
    assert answer["usage"]["completion_tokens"] == bound


def test_the_worker_s_own_template_makes_the_prompt(house: OurHouse) -> None:
    """The prompt is what fschat's dolly_v2 renders, and an open bound is the context's room."""
    house.chat("대한민국의 수도는?", temperature=0.25, top_p=0.5)
    asked = house.at_worker()["asked"][-1]
    prompt = PROMPT.format("대한민국의 수도는?")
    assert asked["prompt"] == prompt
    assert asked["max_new_tokens"] == CONTEXT_LENGTH - len(prompt.encode())
    assert (asked["temperature"], asked["top_p"], asked["echo"]) == (0.25, 0.5, False)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("mark", "status", "code"),
    [("[overflow]", 400, "context_length_exceeded"), ("[fault]", 502, "engine_error")],
)
def test_an_error_frame_is_an_openai_error(
    house: OurHouse, mark: str, status: int, code: str, stream: bool
) -> None:
    """FastChat's error in a 200 answer becomes a status and OpenAI's envelope, streamed or not."""
    answer = house.chat(f"{mark} 안녕?", stream=stream)
    assert answer.status_code == status
    assert answer.json()["error"]["code"] == code
    assert answer.json()["error"]["message"]


def test_a_prompt_beyond_the_context_is_refused(house: OurHouse) -> None:
    """The worker would cut such a prompt silently; we count first, whatever bound is asked for."""
    answer = house.chat("가" * CONTEXT_LENGTH, max_tokens=5)
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "context_length_exceeded"


def test_an_error_in_the_middle_ends_the_stream_with_an_error_event(house: OurHouse) -> None:
    """What came before stands, an error in OpenAI's shape follows, and no [DONE]."""
    answer = house.chat("[break] 안녕?", stream=True)
    chunks, done = events(answer.text)
    assert answer.status_code == 200
    assert said(chunks[:-1]) == steps()[2].rstrip(UNFINISHED)
    assert chunks[-1]["error"]["message"] == "broke in the middle"
    assert chunks[-1]["error"]["type"] == "server_error"
    assert not done


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_ends_the_generation(house: OurHouse, stream: bool) -> None:
    """Seconds after the client left, the worker makes no further token."""
    before = house.at_worker()["made"]
    messages = [{"role": "user", "content": "[slow] 안녕?"}]
    body = {"model": MODEL, "messages": messages, "max_tokens": 2000, "stream": stream}
    wait = httpx.Timeout(30, read=30 if stream else 1)
    try:
        with house.http.stream(
            "POST", house.api + "/v1/chat/completions", json=body, timeout=wait
        ) as answer:
            for _ in zip(range(3), answer.iter_raw(), strict=False):
                pass
    except httpx.ReadTimeout:
        assert not stream
    assert house.at_worker()["made"] > before
    _until_quiet(house)


def _until_quiet(house: OurHouse) -> None:
    """Two looks, several steps apart, that find the same count."""
    looks: list[int] = []

    def quiet() -> bool:
        looks.append(house.at_worker()["made"])
        return len(looks) > 10 and looks[-1] == looks[-10]

    wait_until(quiet, 10, what="end of the generation")


def test_a_fastchat_worker_needs_the_token_in_its_controller_address(
    town: Town,
    http: httpx.Client,
    our_door: Callable[..., tuple[str, str]],
) -> None:
    """With a token set, http://worker:TOKEN@host is let in and served, a plain address is not."""
    controller, api = our_door(TOKEN)
    _, stranger = start_worker(town, controller)
    place = controller.removeprefix("http://")
    name, friend = start_worker(town, f"http://worker:{TOKEN}@{place}")
    wait_http(name + "/scripted", process=friend)
    wait_http(api + "/ready", process=friend)
    wait_until(lambda: not stranger.running, what="end of the refused worker")
    assert stranger.popen.returncode != 0
    assert "r.status_code == 200" in stranger.output()
    headers = {"Authorization": f"Bearer {TOKEN}"}
    rows = http.get(controller + "/workers", headers=headers).json()["workers"]
    assert [row["name"] for row in rows] == [name]
    assert http.post(controller + "/list_models").status_code == 401
    body = {"model": MODEL, "messages": [{"role": "user", "content": "안녕?"}]}
    answer = http.post(api + "/v1/chat/completions", json=body)
    assert answer.json()["choices"][0]["message"]["content"] == ANSWER
