"""The served model, as far as it is known before the engine runs: its names and its template."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import kodolly_templates
from kodolly.engines.lora import LoraAdapter
from kodolly.engines.model_files import CONFIG, check_model_files, read_object
from kodolly.engines.openai import Offer
from kodolly.engines.token_bytes import longest_token_of
from kodolly.engines.vllm_parsers import Parsers, choose
from kodolly.errors import SettingsError
from kodolly.worker.card import CARD, ServingCard, read_serving_card
from kodolly.worker.tokenizer_files import small_files, tokenizer_directory
from kodolly_templates import Template, TemplateError, TokenizerTemplate

log = logging.getLogger(__name__)

POOLING = "modules.json"  # sentence-transformers: how a network's outputs become one vector
ChatTemplate = Template | TokenizerTemplate


@dataclass(frozen=True)
class ServedModel:
    """A model and the adapters that are served with it, each under its own name.

    `template`: shared by all of them; None if no template is known. `special_tokens`: the
    tokenizer's, such as `<|end|>`. `token_bytes`: of text, that one token stands for at most; None if that
    is not known. `pooling`: the model makes embeddings. `model_type`: of its config.json.
    """

    name: str
    path: str
    template: ChatTemplate | None
    special_tokens: tuple[str, ...] = ()
    adapters: tuple[LoraAdapter, ...] = ()
    others: tuple[Offer, ...] = ()  # further models of an attached engine
    token_bytes: int | None = None
    card: ServingCard = field(default_factory=ServingCard)
    pooling: bool = False
    model_type: str | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """All model names a request may use, the base model's first."""
        adapters = (adapter.name for adapter in self.adapters)
        return (self.name, *adapters, *(offer.name for offer in self.others))

    @property
    def parents(self) -> dict[str, str]:
        """Adapter name -> name of the base model that it is served on."""
        own = {adapter.name: self.name for adapter in self.adapters}
        return own | {offer.name: offer.parent for offer in self.others if offer.parent}

    @property
    def stop(self) -> list[str]:
        """Stop strings: every answer of this model ends at the first of them."""
        return list(self.template.stop) if self.template else []

    @property
    def guard(self) -> list[str]:
        """Strings that mark turns in a prompt. A user must not be able to write them there."""
        markers = self.template.guard if self.template else ()
        return list(dict.fromkeys([*markers, *self.special_tokens]))

    @property
    def template_knows(self) -> list[str] | None:
        """What the template has a place for beside plain messages; None if no template is known."""
        return None if self.template is None else list(self.template.knows)

    def parsers(self, settings: Mapping[str, str | None]) -> Parsers:
        """vLLM's parsers for this model. `settings`: kind -> what the operator says, None for nothing."""
        named = {kind: name or self.card.parsers.get(kind) for kind, name in settings.items()}
        template = self.template.source if isinstance(self.template, TokenizerTemplate) else None
        takes_tools = "tools" in (self.template_knows or ())
        return choose(self.model_type, template, takes_tools=takes_tools, named=named)

    def write_chat_template(self, directory: Path) -> Path | None:
        """Writes the template as a Jinja file for the engine; None if the engine uses the model's."""
        if isinstance(self.template, Template):
            source = self.template.jinja(extra_guard=self.special_tokens)
        elif self.template is not None and self.adapters:  # it may be from an adapter's directory
            source = self.template.jinja()
        else:
            return None
        file = directory / f"{self.template.name}.jinja"
        file.write_text(source, encoding="utf-8")
        return file


def describe(
    model: str, name: str | None, conv_template: str | None, runner: str = "auto"
) -> ServedModel:
    """Reads a model directory. Raises SettingsError when it cannot be served.

    `model` may also be a hub id, whose small files are fetched to be read; the engine fetches the weights.
    `runner`: as the option --runner says.
    """
    directory = Path(model)
    path: Path | None = directory
    if directory.is_dir():
        try:
            check_model_files(directory)
        except SettingsError as error:
            raise SettingsError(f"--model: {error}") from error
        card = read_object(directory / CARD)
        name = name or str(card.get("name") or directory.resolve().name)
        served = str(directory.resolve())
    elif model.startswith((".", "/")):
        raise SettingsError(f"--model: no directory {model}")
    else:
        path = small_files(model) if model.count("/") == 1 else None
        name, served = name or model, model
    pooling = runner == "pooling"
    if path is None:
        return ServedModel(name, served, named_template(conv_template), pooling=pooling)
    pooling = pooling or (runner == "auto" and (path / POOLING).is_file())
    return ServedModel(
        name,
        served,
        None if pooling else _template(path, conv_template),
        _special_tokens(path),
        token_bytes=longest_token_of(path),
        card=read_serving_card(path),
        pooling=pooling,
        model_type=_model_type(path),
    )


def capabilities(engine: str, model: ServedModel, tool_parser: str | None) -> list[str] | None:
    """What clients may ask a worker of this model for; None for a server that somebody else runs.

    `tool_parser`: that vLLM reads its calls with, or the other engine would; None: none.
    """
    if model.pooling:
        return ["embeddings"]
    if engine == "openai":
        return None
    names = ["completions"] if model.template is None else ["chat", "completions"]
    # KoDolly's own engine reads calls of the form that vLLM's parser hermes is for.
    if tool_parser == "hermes" or (tool_parser is not None and engine == "vllm"):
        names.append("tools")
    return [*names, "structured_outputs"]


def with_tokenizer(model: ServedModel, tokenizer: str | None) -> ServedModel:
    """The model guarded by the special tokens of `tokenizer`, a directory or a hub id.

    Only the guard changes. Where special tokens are not known, one line of the log says that users
    can write turns of their own. Raises SettingsError if the tokenizer cannot be read.
    """
    if tokenizer is not None:
        directory = tokenizer_directory(tokenizer)
        try:
            tokens = kodolly_templates.special_tokens_of(directory)
        except TemplateError as error:
            raise SettingsError(f"--tokenizer: {error}") from error
        if not tokens:
            raise SettingsError(f"--tokenizer: {tokenizer} has no special tokens to guard by")
        model = replace(
            model, special_tokens=tuple(dict.fromkeys([*model.special_tokens, *tokens]))
        )
    if model.pooling:
        return model  # its texts have no turns
    if not model.guard or not (model.special_tokens or Path(model.path).is_dir()):
        log.warning(
            "%s: forged turns are not guarded against, since its special tokens are not known here:"
            " a user's text may pass for another speaker's. Name its files by --tokenizer DIR",
            model.name,
        )
    return model


def named_template(name: str | None) -> Template | None:
    """The conversation template of this name. Raises SettingsError if there is none."""
    if name is None:
        return None
    try:
        return kodolly_templates.get_template(name)
    except TemplateError as error:
        raise SettingsError(f"--conv-template: {error}") from error


def _model_type(path: Path) -> str | None:
    kind = read_object(path / CONFIG).get("model_type")
    return kind if isinstance(kind, str) else None


def _special_tokens(path: Path) -> tuple[str, ...]:
    try:
        return tuple(kodolly_templates.special_tokens_of(path))
    except TemplateError as error:
        raise SettingsError(f"--model: {error}") from error


def _template(path: Path, override: str | None) -> ChatTemplate | None:
    try:
        return kodolly_templates.load(path, override)
    except TemplateError as error:
        if override is not None:
            raise SettingsError(f"--conv-template: {error}") from error
        # A base model without a template still completes; chat will be refused by the engine.
        log.warning("%s: %s", path, error)
        return None
