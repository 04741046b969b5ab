"""A recipe: everything that decides a training run, as one TOML file.

docs/train.md explains every key. Unknown keys and values out of range are refused with their place.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from kodolly_adapters.errors import OptionError, RecipeError
from kodolly_templates import Template, TemplateError, get_template
from kodolly_templates.tokenizer import TOKENIZER

Method = Literal["full", "lora", "qlora"]
# A list of names, for which one name alone may be written.
AsList = BeforeValidator(lambda value: [value] if isinstance(value, str) else value)
Names = Annotated[list[str], AsList]
# Values that --set shows as an example where a key has no default to show, by the start of pydantic's error types.
EXAMPLES = {"list": '["one", "two"]', "int": "8", "float": "0.5", "string": "name"}
LINE = re.compile(r"""\s*(?:\[\s*([\w.-]+)\s*\]|["']?([\w.-]+)["']?\s*=)""")  # a table, or a key


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Data(_Strict):
    """Where the rows are and how they become sequences of tokens.

    `format`: "rows" are Dolly rows or dialogues ({"messages": [...]}); "text" is running text ({"text": ...} lines or
    plain .txt), every token of which is learned. `validation` files win over `validation_share`.
    """

    train: Names = Field(min_length=1)
    validation: Names = []
    validation_share: float = Field(default=0.01, ge=0, lt=0.5)
    format: Literal["rows", "text"] = "rows"
    max_length: int = Field(default=2048, ge=16)  # tokens of a sequence
    packing: bool = True
    max_rows: int | None = Field(default=None, ge=1)
    repeat: int = Field(default=1, ge=1)  # times the training rows are read an epoch


class Lora(_Strict):
    """The adapter. `targets` empty: all linear layers of the family."""

    r: int = Field(default=16, ge=1)
    alpha: int = Field(default=32, ge=1)
    dropout: float = Field(default=0.05, ge=0, lt=1)
    targets: Names = []
    rslora: bool = False
    dora: bool = False
    train_new_tokens: bool = True  # rows of keys that the template adds to the vocabulary


class Train(_Strict):
    """How it is optimised. `batch_size` is sequences a device; effective batch = that x accumulation x devices."""

    epochs: float = Field(default=3.0, gt=0)
    max_steps: int = Field(default=-1, ge=-1)
    learning_rate: float = Field(default=2e-4, gt=0)
    scheduler: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "cosine"
    warmup_ratio: float = Field(default=0.03, ge=0, lt=1)
    weight_decay: float = Field(default=0.0, ge=0)
    batch_size: int = Field(default=4, ge=1)
    accumulation: int = Field(default=8, ge=1)
    optimizer: str = "adamw_torch"  # a name of transformers' OptimizerNames
    max_grad_norm: float = Field(default=1.0, gt=0)
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    gradient_checkpointing: bool = True
    seed: int = 42
    eval_steps: int | None = Field(default=None, ge=1)  # None: ten times a run
    save_steps: int | None = Field(default=None, ge=1)  # None: with every evaluation
    eval_share: float = Field(default=0.1, gt=0, le=1)  # of the run's time at most; 1: no bound
    keep: int = Field(default=2, ge=1)  # checkpoints
    early_stopping: int | None = Field(default=None, ge=1)  # evaluations without a better loss
    report_to: Annotated[list[Literal["tensorboard", "wandb"]], AsList] = ["tensorboard"]


class Distributed(_Strict):
    """Across devices: `strategy` picks accelerate's plugin; `config` is a DeepSpeed JSON or an accelerate YAML."""

    strategy: Literal["none", "ddp", "fsdp", "deepspeed"] = "none"
    config: str | None = None


class Recipe(_Strict):
    """One training run. `base` is a model directory or a hub name.

    `start = "random"` begins from random weights of the base's config: pre-training.
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")
    base: str
    revision: str | None = None
    template: str = "dolly-ko"  # a name of kodolly_templates, or "tokenizer": the base's own
    method: Method = "lora"
    start: Literal["weights", "random"] = "weights"
    study: str = ""  # the row of the study's table this stands for
    notes: str = ""
    data: Data
    lora: Lora = Lora()
    train: Train = Train()
    distributed: Distributed = Distributed()

    @model_validator(mode="after")
    def _agree(self) -> Recipe:
        if self.start == "random" and self.method != "full":
            raise ValueError(
                'start = "random" needs method = "full": an adapter on noise learns nothing'
            )
        return self

    def dialect(self) -> Template | None:
        """The dialect of the template; None for the base's own. Raises RecipeError for an unknown name."""
        if self.template == TOKENIZER:
            return None
        try:
            return get_template(self.template)
        except TemplateError as error:
            raise RecipeError(f"template: {error}") from None


def load(name: str | Path, changes: Mapping[str, Any] | None = None) -> Recipe:
    """The built-in recipe `name`, or the file of that path; `changes` are dotted keys, {"train.epochs": 1}.

    Paths in it are left as written: relative to where the command runs. Raises RecipeError naming file and key.
    """
    place, origin = _place(name)
    try:
        text = place.read_text(encoding="utf-8")
        values = tomllib.loads(text)
        for key, value in (changes or {}).items():
            _put(values, key, value)
        return Recipe.model_validate(values)
    except FileNotFoundError:
        names = ", ".join(built_in())
        raise RecipeError(
            f"{name}: neither a file nor a built-in recipe; the built-in recipes are {names}"
        ) from None
    except ValidationError as error:
        faults = [_fault(dict(fault), origin, text, changes or {}) for fault in error.errors()]
        raise RecipeError("; ".join(faults)) from None
    except tomllib.TOMLDecodeError as error:  # "... (at line 3, column 9)"
        line = re.search(r"at line (\d+)", str(error))
        raise RecipeError(f"{origin}{f':{line[1]}' if line else ''}: {error}") from None
    except (OSError, ValueError) as error:  # no text
        raise RecipeError(f"{origin}: {error}") from None


@contextmanager
def naming(name: str, changes: Mapping[str, Any]) -> Iterator[None]:
    """Puts the recipe's file and line before a RecipeError about a key of it, or `--set` where that gave the key."""
    try:
        yield
    except RecipeError as error:
        place, origin = _place(name)
        key = str(error).partition(":")[0].partition(" ")[0]
        line = _line_of(key, place.read_text(encoding="utf-8")) if place.is_file() else None
        if key in changes or line is None:
            raise
        raise RecipeError(f"{origin}:{line}: {error}") from None


def _place(name: str | Path) -> tuple[Any, str]:
    """(the recipe's file, what errors call it) of a built-in name or a path."""
    place: Any = resources.files("kodolly_adapters.recipes").joinpath(f"{name}.toml")
    if "/" in str(name) or not place.is_file():
        return Path(name), str(name)
    return place, f"recipe {name}"


def _fault(fault: dict[str, Any], origin: str, text: str, changes: Mapping[str, Any]) -> str:
    """One of pydantic's errors in a line: where the value is from, what is wrong, and for --set an example."""
    parts = [str(part) for part in fault["loc"] if not isinstance(part, int)]
    key = ".".join(parts) or "recipe"
    message = "there is no such key" if fault["type"] == "extra_forbidden" else fault["msg"]
    if key in changes:
        example = "" if fault["type"] == "extra_forbidden" else _example(parts, fault["type"])
        return f"--set {key}: {message}{example}"
    line = _line_of(key, text)
    return f"{origin}{f':{line}' if line else ''}: {key}: {message}"


def _example(parts: Sequence[str], kind: str) -> str:
    """How --set is written for a key: with the key's default, else with a value of its kind."""
    fields: Any = Recipe
    for part in parts[:-1]:
        fields = fields.model_fields[part].annotation
    default = fields.model_fields[parts[-1]].default
    value = next((text for name, text in EXAMPLES.items() if kind.startswith(name)), "8")
    if isinstance(default, (int, float, str)) and default != -1:
        value = json.dumps(default).strip('"')
    quote = "'" if '"' in value else ""
    return f"; for example --set {quote}{'.'.join(parts)}={value}{quote}"


def _line_of(key: str, text: str) -> int | None:
    """The line of a dotted key in a TOML text; None where it is not written there by its own line."""
    table = ""
    for number, line in enumerate(text.splitlines(), 1):
        if match := LINE.match(line):
            if match[1]:
                table = f"{match[1]}."
            if key == (match[1] or table + match[2]):
                return number
    return None


def overrides(pairs: Sequence[str]) -> dict[str, Any]:
    """`--set KEY=VALUE` pairs for load(); a VALUE that is no TOML is taken as text. Raises OptionError."""
    changes: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key.strip():
            raise OptionError(f"--set {pair}: write KEY=VALUE, for example train.epochs=1")
        try:
            changes[key.strip()] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            changes[key.strip()] = value
    return changes


def built_in() -> list[str]:
    """Names of the recipes that come with KoDolly."""
    files = resources.files("kodolly_adapters.recipes").iterdir()
    return sorted(
        place.name.removesuffix(".toml") for place in files if place.name.endswith(".toml")
    )


def _put(values: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key. Raises RecipeError where a part of it is no table."""
    *tables, last = key.split(".")
    for table in tables:
        values = values.setdefault(table, {})
        if not isinstance(values, dict):
            raise RecipeError(f"--set {key}: {table} is no table")
    values[last] = value
