"""What the API measures and logs of requests, as operators see it."""

from typing import Any

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families
from support.script import Script

from kodolly.settings import ApiSettings

from .conftest import Stack

CHAT: dict[str, Any] = {
    "model": "demo",
    "messages": [{"role": "user", "content": "비밀스러운 질문"}],
    "max_tokens": 6,
    "temperature": 0,
}


@pytest.fixture
def settings() -> ApiSettings:
    """As by default."""
    return ApiSettings(max_body=100_000, read_timeout=30, connect_timeout=10)


async def scrape(url: str, **headers: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """All samples of /metrics."""
    async with aiohttp.ClientSession() as http, http.get(f"{url}/metrics", headers=headers) as got:
        assert got.status == 200
        text = await got.text()
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def chat(stack: Stack, path: str = "/v1/chat/completions", **fields: Any) -> tuple[int, str]:
    """Status and body of one request."""
    async with (
        aiohttp.ClientSession() as http,
        http.post(stack.url + path, json=CHAT | fields, headers={"X-Request-Id": "mine"}) as answer,
    ):
        return answer.status, await answer.text()


async def test_every_kind_of_answer_is_counted(stack: Stack) -> None:
    """Whole and streamed, on each face; tokens by the engine's count or by events; refusals by kind."""
    await stack.add(Script(model="demo"))
    assert (await chat(stack))[0] == 200
    assert (await chat(stack, stream=True))[0] == 200
    assert (await chat(stack, stream=True, stream_options={"include_usage": True}))[0] == 200
    assert (await chat(stack, "/v1/messages"))[0] == 200
    assert (await chat(stack, model="other"))[0] == 404
    assert (await chat(stack, max_tokens=-1))[0] == 400
    samples = await scrape(stack.url)

    def value(name: str, **labels: str) -> float:
        return samples[name, frozenset(labels.items())]

    assert value("kodolly_requests_total", model="demo", outcome="ok") == 4
    assert value("kodolly_requests_total", model="none", outcome="bad_request") == 2
    assert value("kodolly_requests_refused_total", reason="model_not_found") == 1
    assert value("kodolly_requests_refused_total", reason="bad_request") == 1
    assert value("kodolly_tokens_total", model="demo", direction="out") == 24
    assert value("kodolly_tokens_total", model="demo", direction="in") > 0
    assert value("kodolly_time_to_first_token_seconds_count", model="demo") == 2
    assert value("kodolly_inter_token_seconds_count", model="demo") == 2
    assert value("kodolly_request_duration_seconds_count", model="demo") == 4
    assert value("kodolly_requests_in_flight", model="demo") == 0
    assert value("kodolly_api_ready_workers", model="demo") == 1


async def test_a_stream_that_moves_is_one_request_that_was_resumed(stack: Stack) -> None:
    """A worker's failure in the middle is a retry and a resume, and the outcome is still ok."""
    await stack.add(Script(model="demo", die_after=3))
    well = await stack.add(Script(model="demo"))
    for worker in stack.table.all():  # the one that fails looks idle, and is asked first
        worker.foreign = 1000 if worker.row.name == well.url else 0
    status, text = await chat(stack, stream=True)
    assert status == 200
    assert "[DONE]" in text
    samples = await scrape(stack.url)
    model = frozenset({("model", "demo")})
    assert samples["kodolly_retries_total", model] == 1
    assert samples["kodolly_resumes_total", model] == 1
    outcome = model | {("outcome", "ok")}
    assert samples["kodolly_requests_total", outcome] == 1
    tokens = samples["kodolly_tokens_total", model | {("direction", "out")}]
    assert tokens == 6, "each token once, whoever made it"
    assert samples["kodolly_time_to_first_token_seconds_count", model] == 1


async def test_the_access_log_has_a_line_for_each_request_and_no_text(
    stack: Stack, capfd: pytest.CaptureFixture[str]
) -> None:
    """With route, id, model, worker and tokens; probes have none."""
    engine = await stack.add(Script(model="demo"))
    capfd.readouterr()
    await chat(stack, stream=True)
    await chat(stack, model="other")
    async with aiohttp.ClientSession() as http:
        for path in ("/health", "/ready", "/metrics", "/v1/models/demo", "/nowhere"):
            async with http.get(stack.url + path):
                pass
    lines = [line for line in capfd.readouterr().err.splitlines() if "kodolly.access" in line]
    first, second, third, fourth = lines
    for word in ("request_id=mine", "model=demo", f"worker={engine.url}", "tokens_out=6"):
        assert word in first
    assert "status=404" in second
    assert "model=-" in second
    assert "path=/v1/models/{model} status=200" in third
    assert "path=(unknown) status=404" in fourth
    assert "비밀" not in "".join(lines)
    assert "nowhere" not in "".join(lines)
