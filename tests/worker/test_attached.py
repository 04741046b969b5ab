"""Workers beside engines of other makers: what they lack is no reason to wait for ever."""

import json
import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from support.apps import serving, serving_aiohttp
from support.dialects import Dialect, llama_cpp, ollama, tgi
from support.processes import eventually

from kodolly.controller.app import Controller, create_app
from kodolly.controller.dispatch import Dispatcher
from kodolly.controller.registry import Registry
from kodolly.engines.client import EngineClient
from kodolly.engines.openai import Offer
from kodolly.errors import EngineCallError, SettingsError
from kodolly.http.client import new_client
from kodolly.protocol.wire import WorkerRow
from kodolly.settings import WorkerSettings
from kodolly.worker import agent as agent_module
from kodolly.worker.app import Worker
from kodolly.worker.attached import attached_model


@asynccontextmanager
async def attached(dialect: Dialect, tmp_path: Path, **fields: Any) -> AsyncIterator[Registry]:
    """The table of a controller to which a worker beside such an engine belongs."""
    controller = Controller(Registry(90, 600), Dispatcher("shortest_queue"), None)
    async with AsyncExitStack() as stack:
        engine = await stack.enter_async_context(serving_aiohttp(dialect.app()))
        url = await stack.enter_async_context(serving(create_app(controller)))
        client = await stack.enter_async_context(new_client())
        settings = WorkerSettings(
            engine="openai",
            engine_url=engine,
            controller=url,
            heart_beat_interval=0.1,
            drain_timeout=0,
            canary_interval=0,
            **fields,
        )
        worker = Worker(settings, tmp_path)
        agent = worker.agent(worker.describe(await worker.discover()), None, client, client)
        agent.start()
        stack.push_async_callback(agent.drain)
        yield controller.registry


async def ready_row(registry: Registry) -> WorkerRow:
    await eventually(registry.ready)
    return registry.ready()[0]


async def test_no_health_and_several_models(tmp_path: Path) -> None:
    """Ollama has no /health: its first token makes it ready, with every model it lists."""
    dialect = ollama()
    async with attached(dialect, tmp_path) as registry:
        row = await ready_row(registry)
        assert row.model_names == ["llama3.2:latest", "exaone:7b", "qwen3:4b"]
        counts = dict(dialect.calls)
        await eventually(lambda: dialect.calls["/v1/models"] > counts["/v1/models"] + 3)
    # What is not there is asked for once, not twice a second.
    assert all(dialect.calls[path] <= 2 for path in ("/health", "/load", "/metrics"))


async def test_only_the_named_models(tmp_path: Path) -> None:
    """--model-name says which of them are served, in its order."""
    async with attached(ollama(), tmp_path, model_name="qwen3:4b, exaone:7b") as registry:
        assert (await ready_row(registry)).model_names == ["qwen3:4b", "exaone:7b"]


async def test_only_chat(tmp_path: Path) -> None:
    """An engine without /v1/completions proves itself by a chat, and is known for it."""
    for status in (404, 405, 501, 400):
        dialect = Dialect(completions_status=status)
        async with attached(dialect, tmp_path) as registry:
            row = await ready_row(registry)
            assert row.kodolly is not None
            assert row.kodolly.chat_only


async def test_no_list_of_models(tmp_path: Path) -> None:
    """Without /v1/models the names that the operator gives are believed."""
    dialect = Dialect(models_status=404, health_status=404)
    async with attached(dialect, tmp_path, model_name="a,b") as registry:
        assert (await ready_row(registry)).model_names == ["a", "b"]


@pytest.mark.parametrize(("dialect", "context"), [(tgi(), 4096), (llama_cpp(), 8192)])
async def test_context_lengths(dialect: Dialect, context: int, tmp_path: Path) -> None:
    """Each maker states it elsewhere."""
    async with attached(dialect, tmp_path) as registry:
        row = await ready_row(registry)
        assert row.kodolly is not None
        assert row.kodolly.context_length == context


async def test_each_model_has_its_context(tmp_path: Path) -> None:
    """Models of one engine may differ; each is told with its own length."""
    cards: list[dict[str, Any]] = [
        {"id": "a", "max_model_len": 8192},
        {"id": "b", "max_model_len": 2048},
        {"id": "c"},
    ]
    async with attached(Dialect(models=cards), tmp_path) as registry:
        extension = (await ready_row(registry)).kodolly
        assert extension is not None
        assert [extension.context_of(name) for name in "abc"] == [8192, 2048, 8192]


async def test_the_last_cause_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine that loads says why it is not ready: one line for one cause, and one at the end."""
    monkeypatch.setattr(agent_module, "POLL_INTERVAL", 0.02)
    body = b'{"error": {"code": 503, "message": "Loading model", "type": "unavailable_error"}}'
    dialect = Dialect(health_status=503, health_body=body)
    with caplog.at_level(logging.INFO, "kodolly.worker.agent"):
        async with attached(dialect, tmp_path, start_timeout=0.5):
            await eventually(lambda: "made no token within" in caplog.text)
            await eventually(lambda: dialect.calls["/health"] > 5)
    lines = [r.getMessage() for r in caplog.records if "Loading model" in r.getMessage()]
    assert any("made no token within" in line for line in lines)
    waits = [line for line in lines if line.startswith("no token yet")]
    assert len(waits) < 5 < dialect.calls["/health"]


async def test_a_replaced_engine_is_asked_anew() -> None:
    """What one engine at an address lacks, the next one may have."""
    dialect = Dialect(health_status=404)
    async with serving_aiohttp(dialect.app()) as url, new_client() as http:
        client = EngineClient(url, None, http)
        await client.require_health()
        dialect.health_status = 503
        await client.require_health()  # not asked again
        client.forget()
        with pytest.raises(EngineCallError, match="503"):
            await client.require_health()


async def test_an_unknown_model_is_not_taken_for_chat_only() -> None:
    """Both paths refuse it: the first one's reason is told."""
    dialect = Dialect(completions_status=404, chat_status=404)
    dialect.refusal = b'{"error": "model \'x\' not found"}'
    async with serving_aiohttp(dialect.app()) as url, new_client() as http:
        client = EngineClient(url, None, http)
        with pytest.raises(EngineCallError, match="model 'x' not found"):
            await client.canary("x")
        assert not client.chat_only


def settings(**fields: Any) -> WorkerSettings:
    return WorkerSettings(engine="openai", engine_url="http://127.0.0.1:1", **fields)


def model_directory(path: Path) -> Path:
    path.mkdir()
    added = [{"id": 0, "content": "<|im_end|>", "special": True}]
    (path / "tokenizer.json").write_text(json.dumps({"added_tokens": added}))
    (path / "config.json").write_text("{}")
    return path


def test_a_model_directory_describes_one_model(tmp_path: Path, caplog: Any) -> None:
    """Its template and tokens are that model's and its adapters': others are left out, and said so."""
    offers = [Offer("base"), Offer("lora", parent="base"), Offer("other")]
    files = str(model_directory(tmp_path / "m"))
    model = attached_model(settings(model=files), "http://e", offers)
    assert model.names == ("base", "lora")
    assert model.parents == {"lora": "base"}
    assert "other" in caplog.text


def test_an_unknown_name_is_refused() -> None:
    """With the names that there are."""
    with pytest.raises(SettingsError, match="--model-name: 'c' is not served there: a, b"):
        attached_model(settings(model_name="a,c"), "http://e", [Offer("a"), Offer("b")])


def test_the_guard_needs_tokens(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Without them one line says that turns can be forged; --tokenizer brings them."""
    unguarded = attached_model(settings(), "http://e", [Offer("a")])
    assert unguarded.guard == []
    assert caplog.text.count("forged turns are not guarded against") == 1
    caplog.clear()
    attached_model(settings(conv_template="dolly-ko"), "http://e", [Offer("a")])
    assert "its special tokens are not known here" in caplog.text  # its template's keys alone are
    caplog.clear()
    files = model_directory(tmp_path / "m")
    guarded = attached_model(settings(tokenizer=str(files)), "http://e", [Offer("a")])
    assert guarded.guard == ["<|im_end|>"]
    assert guarded.template is None
    assert "guarded" not in caplog.text


def test_a_hub_id_out_of_reach_is_not_guarded_either(
    tmp_path: Path, caplog: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For an engine of ours, too: its small files cannot be read, which the log says."""
    pytest.importorskip("huggingface_hub")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    worker = Worker(WorkerSettings(model="org/name"), tmp_path)
    assert worker.describe([]).guard == []
    assert "org/name: its small files cannot be fetched" in caplog.text
    assert "--tokenizer DIR" in caplog.text
    files = str(model_directory(tmp_path / "m"))
    worker = Worker(WorkerSettings(model="org/name", tokenizer=files), tmp_path)
    assert worker.describe([]).guard == ["<|im_end|>"]


@pytest.mark.parametrize("tokenizer", ["/nowhere", "./nowhere", "name", "a/b/c"])
def test_a_tokenizer_that_is_not_there(tokenizer: str) -> None:
    """It is an error that names the flag."""
    with pytest.raises(SettingsError, match="--tokenizer: no directory"):
        attached_model(settings(tokenizer=tokenizer), "http://e", [Offer("a")])


def test_a_directory_without_a_tokenizer(tmp_path: Path) -> None:
    """Nor does one pass that has no such file, or none with special tokens."""
    with pytest.raises(SettingsError, match=r"has none of tokenizer\.json"):
        attached_model(settings(tokenizer=str(tmp_path)), "http://e", [Offer("a")])
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(SettingsError, match="no special tokens"):
        attached_model(settings(tokenizer=str(tmp_path)), "http://e", [Offer("a")])


def test_a_hub_id_s_tokenizer_comes_from_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a network what was fetched before is used; what was not is an error in one line."""
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    files = model_directory(tmp_path / "m")

    def snapshot(name: str, **_: Any) -> str:
        if name != "org/here":
            raise FileNotFoundError("not in the cache")
        return str(files)

    monkeypatch.setattr(hub, "snapshot_download", snapshot)
    here = attached_model(settings(tokenizer="org/here"), "http://e", [Offer("a")])
    assert here.guard == ["<|im_end|>"]
    with pytest.raises(SettingsError, match="--tokenizer: org/away is no directory and cannot"):
        attached_model(settings(tokenizer="org/away"), "http://e", [Offer("a")])


@pytest.mark.parametrize("host", ["::1", "[::1]"])
def test_ipv6_addresses_have_brackets(host: str, tmp_path: Path) -> None:
    """The worker's name and its engine's URL are URLs that others can use."""
    worker = Worker(WorkerSettings(host=host.strip("[]"), advertise=host, model="org/m"), tmp_path)
    assert worker.name == "http://[::1]:21002"
    assert worker.engine_url == "http://[::1]:22002"


def test_an_address_nobody_can_use_is_refused_at_start(tmp_path: Path) -> None:
    """Before the engine loads, not by the controller after it."""
    with pytest.raises(SettingsError, match="--advertise a b"):
        Worker(WorkerSettings(advertise="a b", model="org/m"), tmp_path)
