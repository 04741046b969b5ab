"""Gateways that need no controller: each is told the engine's URL and started by its own command."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.gateway.environments import Unavailable, environment
from benchmarks.gateway.plan import MODEL
from benchmarks.gateway.processes import free_port

Command = tuple[list[str], dict[str, str]]  # argv, and what its environment has beside ours


@dataclass(frozen=True, slots=True)
class Rival:
    """One of them. `key` names its environment, `package` the pin that says its version."""

    key: str
    name: str
    package: str
    command: Callable[[int, str, Path], Command]  # port, engine's URL, scratch directory


def litellm(port: int, engine: str, directory: Path) -> Command:
    """LiteLLM's proxy: one worker, no database, no retries, nothing fetched at the start."""
    served = {"model": f"hosted_vllm/{MODEL}", "api_base": f"{engine}/v1", "api_key": "none"}
    config = directory / "litellm.yaml"  # JSON is YAML
    config.write_text(
        json.dumps(
            {
                "model_list": [{"model_name": MODEL, "litellm_params": served}],
                "litellm_settings": {"telemetry": False, "num_retries": 0},
            }
        )
    )
    program = environment("litellm") / "litellm"
    argv = [program, "--config", config, "--host", "127.0.0.1", "--port", port]
    env = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR"}
    return [str(word) for word in (*argv, "--num_workers", 1)], env


def vllm_router(port: int, engine: str, directory: Path) -> Command:
    """The Rust router of the vLLM project."""
    program = environment("vllm-router") / "vllm-router"
    argv = [program, *_rust(port, engine), "--log-level", "warning"]
    return [str(word) for word in argv], {}


def smg(port: int, engine: str, directory: Path) -> Command:
    """SMG, the former SGLang router."""
    program = environment("smg") / "smg"
    argv = [program, "launch", *_rust(port, engine), "--log-level", "warn"]
    return [str(word) for word in argv], {}


def _rust(port: int, engine: str) -> list[str | int]:
    told: list[str | int] = ["--host", "127.0.0.1", "--port", port, "--worker-urls", engine]
    return [*told, "--policy", "cache_aware", "--prometheus-port", free_port()]


def production_stack(source: Path | None) -> Callable[[int, str, Path], Command]:
    """The Python router of vLLM's production-stack, from a checkout: no registry has it."""

    def command(port: int, engine: str, directory: Path) -> Command:
        if source is None or not (source / "src" / "vllm_router" / "app.py").is_file():
            raise Unavailable(
                "it is in no package registry; name a checkout with --production-stack DIR"
            )
        python = environment("production-stack") / "python"
        argv = [python, "-m", "vllm_router.app", "--host", "127.0.0.1", "--port", port]
        argv += ["--service-discovery", "static", "--static-backends", engine]
        argv += ["--static-models", MODEL, "--routing-logic", "roundrobin"]
        env = {"PYTHONPATH": str(source / "src")}
        return [str(word) for word in (*argv, "--log-level", "warning")], env

    return command


def rivals(production_stack_source: Path | None) -> dict[str, Rival]:
    """All of them by key."""
    router = production_stack(production_stack_source)
    known = (
        Rival("litellm", "LiteLLM", "litellm", litellm),
        Rival("production-stack", "production-stack", "", router),
        Rival("vllm-router", "vllm-router", "vllm-router", vllm_router),
        Rival("smg", "SMG", "smg", smg),
    )
    return {rival.key: rival for rival in known}
