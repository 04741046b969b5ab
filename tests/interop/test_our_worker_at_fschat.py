"""Our worker in FastChat's house: the real controller and API server of fschat 0.2.36."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from interop.conftest import Town
from support.processes import Process, free_port, wait_http, wait_until
from support.scripted_engine import Script

from kodolly_templates import get_template

pytestmark = pytest.mark.stack

MODEL = "ko-demo"  # FastChat would ask OpenAI's moderation for a name with "gpt" in it
QUESTION = [
    {"role": "user", "content": "대한민국의 수도는 어디인가요? 꿈 🙂"},
    {"role": "assistant", "content": "서울입니다."},
    {"role": "user", "content": "그럼 한강은 어디를 흐르나요?"},
]


class FastChatHouse:
    """FastChat's controller and API server, our worker, and the scripted engine behind it."""

    def __init__(self, town: Town, http: httpx.Client) -> None:
        self.http = http
        self._town = town
        self._engine_port, self._controller_port = free_port(), free_port()
        worker_port, api_port = free_port(), free_port()
        self.engine = f"http://127.0.0.1:{self._engine_port}"
        self.controller = f"http://127.0.0.1:{self._controller_port}"
        self.worker = f"http://127.0.0.1:{worker_port}"
        self.api = f"http://127.0.0.1:{api_port}"
        self.engine_process = self.start_engine()
        self.controller_process = self.start_controller()
        town.run(
            "fastchat.serve.openai_api_server", f"--controller-address={self.controller}",
            port=api_port,
        )  # fmt: skip
        town.run(
            "kodolly worker", "--engine=openai", f"--engine-url={self.engine}/v1",
            f"--controller={self.controller}", "--conv-template=dolly-ko",
            "--heart-beat-interval=0.3", port=worker_port,
        )  # fmt: skip

    def start_engine(self) -> Process:
        flags = ("--model", MODEL, "--record", "--max-model-len", "2048")
        return self._town.run("support.scripted_engine", *flags, port=self._engine_port)

    def start_controller(self) -> Process:
        return self._town.run("fastchat.serve.controller", port=self._controller_port)

    def listed(self) -> bool:
        """Whether FastChat's controller would send requests for our model to our worker."""
        answer = self.http.post(self.controller + "/get_worker_address", json={"model": MODEL})
        return bool(answer.json()["address"] == self.worker)

    def heartbeats(self) -> int:
        """Heartbeats FastChat's controllers have noted so far."""
        log = self.controller_process.log
        return log.read_text().count("Receive heart beat") if log else 0

    def chat(self, **body: Any) -> httpx.Response:
        """A question at FastChat's API server."""
        given = {"model": MODEL, "messages": QUESTION, **body}
        return self.http.post(self.api + "/v1/chat/completions", json=given)

    def seen_by_engine(self) -> dict[str, Any]:
        """The last request that reached the engine, canaries aside."""
        requests = self.http.get(self.engine + "/scripted").json()["requests"]
        last = [seen["body"] for seen in requests if seen["body"].get("max_tokens", 0) > 1][-1]
        assert isinstance(last, dict)
        return last


@pytest.fixture(scope="module")
def house(town: Town, http: httpx.Client) -> FastChatHouse:
    """The whole house, once it is ready to answer."""
    house = FastChatHouse(town, http)
    _until_listed(house)
    wait_http(house.api + "/v1/models")
    return house


def _until_listed(house: FastChatHouse) -> None:
    def listed() -> bool:
        try:
            return house.listed()
        except httpx.TransportError:
            return False

    wait_until(listed, what="registration at FastChat's controller")


def test_our_worker_is_listed_by_fastchat(house: FastChatHouse) -> None:
    """FastChat's controller knows its model and status, its API server offers it to clients."""
    models = house.http.post(house.controller + "/list_models").json()["models"]
    status = house.http.post(house.controller + "/worker_get_status").json()
    offered = house.http.get(house.api + "/v1/models").json()["data"]
    assert models == [MODEL]
    assert status == {"model_names": [MODEL], "speed": 1, "queue_length": 0}
    assert [card["id"] for card in offered] == [MODEL]


def test_fastchat_serves_our_worker(house: FastChatHouse) -> None:
    """A chat at FastChat's API server brings the engine's Korean whole, its reason and its usage."""
    script = Script()
    answer = house.chat(max_tokens=100)
    assert answer.status_code == 200, answer.text
    choice = answer.json()["choices"][0]
    prompt = get_template("dolly-ko").prompt(QUESTION)
    asked, made = len(prompt.encode()), len(script.answer(100).steps)
    assert choice["message"] == {"role": "assistant", "content": script.text}
    assert choice["finish_reason"] == "stop"
    assert answer.json()["usage"] == {
        "prompt_tokens": asked,
        "completion_tokens": made,
        "total_tokens": asked + made,
    }


def test_the_engine_gets_our_template_s_own_prompt(house: FastChatHouse) -> None:
    """What FastChat renders from our conversation is the prompt we trained on, to the character."""
    house.chat(max_tokens=7, temperature=0.25, top_p=0.5, stop="멈춤")
    body = house.seen_by_engine()
    template = get_template("dolly-ko")
    assert body["prompt"] == template.prompt(QUESTION)
    assert (body["max_tokens"], body["temperature"], body["top_p"]) == (7, 0.25, 0.5)
    assert set(body["stop"]) == {"멈춤", *template.stop}


def test_fastchat_stops_and_counts_as_asked(house: FastChatHouse) -> None:
    """The client's bound and stop string end the answer, each with its own reason."""
    short = house.chat(max_tokens=5).json()["choices"][0]
    stopped = house.chat(stop=["모델"]).json()["choices"][0]
    assert short["message"]["content"] == Script().answer(5).text
    assert short["finish_reason"] == "length"
    assert stopped["message"]["content"] == Script().answer(100, ["모델"]).text
    assert stopped["finish_reason"] == "stop"


def test_two_choices_are_two_answers(house: FastChatHouse) -> None:
    """FastChat asks our worker twice at once for n=2."""
    choices = house.chat(n=2, max_tokens=9).json()["choices"]
    assert [choice["message"]["content"] for choice in choices] == [Script().answer(9).text] * 2


def test_a_prompt_beyond_the_context_is_refused_by_fastchat(house: FastChatHouse) -> None:
    """FastChat reads length and context from our worker and refuses with its own code."""
    messages = [{"role": "user", "content": "가" * 800}]
    answer = house.chat(messages=messages)
    assert (answer.status_code, answer.json()["code"]) == (400, 40303)
    assert "2048 tokens" in answer.json()["message"]


def test_the_worker_outlives_its_engine(house: FastChatHouse) -> None:
    """While the engine is dead a chat is refused at once; when it is back, chats go on."""
    house.engine_process.kill()
    refusal = house.chat(max_tokens=5)
    assert (refusal.status_code, refusal.json()["code"]) == (400, 50001)
    house.engine_process = house.start_engine()
    wait_until(lambda: house.chat(max_tokens=5).status_code == 200, what="answer after the engine")
    assert house.listed()


def test_the_worker_registers_again_at_a_new_controller(house: FastChatHouse) -> None:
    """A restarted FastChat controller knows nobody until our worker's next heartbeat."""
    wait_http(house.worker + "/ready")
    before = house.heartbeats()
    wait_until(lambda: house.heartbeats() > before, what="heartbeat, not a first registration")
    house.controller_process.kill()
    house.controller_process = house.start_controller()
    _until_listed(house)
    answer = house.chat(max_tokens=5)
    assert answer.json()["choices"][0]["message"]["content"] == Script().answer(5).text
