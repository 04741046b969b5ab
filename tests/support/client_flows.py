"""The client libraries of tests/clients, how each is started, and what its flows said."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from support.client_servers import ROOT, Server

HERE = ROOT / "tests" / "clients"
NEWEST, OPENAI_2 = ROOT / ".venv-clients", ROOT / ".venv-clients-openai2"
NODE = HERE / "node"
TIMEOUT = 1200.0  # seconds for all flows of one library


@dataclass(frozen=True)
class Client:
    """A library. `title`: for people; `script`: in flows/, or in node/; `environment`: None for node."""

    title: str
    script: str
    environment: Path | None = NEWEST

    @property
    def argv(self) -> list[str]:
        """The program and its script."""
        if self.environment is None:
            return ["node", str(NODE / self.script)]
        return [str(self.environment / "bin" / "python"), str(HERE / "flows" / self.script)]


CLIENTS = (
    Client("openai-python", "openai_python.py"),
    Client("openai-node", "openai_node.mjs", None),
    Client("anthropic", "anthropic_python.py"),
    Client("Vercel AI SDK", "vercel.mjs", None),
    Client("LangChain", "langchain_clients.py"),
    Client("LlamaIndex", "llama_index_client.py", OPENAI_2),
    Client("litellm", "litellm_client.py", OPENAI_2),
    Client("instructor", "instructor_client.py"),
    Client("llm", "llm_tool.py"),
    Client("pydantic-ai", "pydantic_ai_agents.py"),
    Client("openai-agents", "openai_agents.py"),
    Client("lm-eval", "lm_eval_harness.py", OPENAI_2),
)


def outcomes(client: Client, server: Server, tokenizer: Path) -> dict[str, str | None]:
    """Each flow's error, None where it works. Raises RuntimeError if the script itself fails."""
    env = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()} | {
        "CLIENT_KEY": server.key,
        "CLIENT_TOKENIZER": str(tokenizer),
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_CACHE": str(tokenizer.parent / "datasets"),
        "OPENAI_AGENTS_DISABLE_TRACING": "1",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    }
    done = subprocess.run(
        [*client.argv, server.url, server.model],
        env=env,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"flow"')]
    if not lines:
        raise RuntimeError(f"{client.title}: no flow ran\n{done.stderr[-2000:]}")
    return {line["flow"]: None if line["ok"] else line["error"] for line in lines}
