"""Whether the files of a model directory can be read at all, before an engine is started on them.

An engine would end with a traceback on a broken file, and be started again, and again.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from kodolly.engines.weights import model_tensors
from kodolly.errors import SettingsError

CONFIG = "config.json"
# What engines and tokenizers read. Each is a JSON object where it is there.
OBJECTS = (
    CONFIG,
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.json",
    "model_card.json",
)
MAX_JSON = 256 * 2**20  # bytes; the largest tokenizer.json of a published model has about 35 MB
SIZES = ("max_position_embeddings", "vocab_size", "hidden_size", "num_hidden_layers")


def read_object(file: Path) -> dict[str, Any]:
    """The JSON object in a file, {} when there is none. Raises SettingsError, which names the file."""
    try:
        if file.stat().st_size > MAX_JSON:
            raise SettingsError(f"{file}: larger than {MAX_JSON // 2**20} MiB")
        data = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise SettingsError(f"{file}: cannot be read: {error.strerror}") from error
    except RecursionError as error:
        raise SettingsError(f"{file}: nested too deeply to be read") from error
    except ValueError as error:  # no JSON, or no UTF-8
        raise SettingsError(f"{file}: not JSON: {error}") from error
    if not isinstance(data, dict):
        raise SettingsError(f"{file}: a JSON object is expected, not {type(data).__name__}")
    return data


def check_model_files(directory: Path) -> None:
    """Reads every JSON file and the heads of the weights. Raises SettingsError, which names the file.

    Only headers of safetensors are read: milliseconds, whatever the model's size.
    """
    if not (directory / CONFIG).is_file():
        raise SettingsError(f"{directory} has no {CONFIG}; it is no model directory")
    config, *_ = [read_object(directory / name) for name in OBJECTS]
    for name in SIZES:
        if not isinstance(value := config.get(name, 1), int | None):
            raise SettingsError(f"{directory / CONFIG}: {name} must be a number, not {value!r}")
    model_tensors(directory)
