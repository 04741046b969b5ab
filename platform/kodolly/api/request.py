"""A client's request, checked, as every other part of the API passes it on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from kodolly.observe.requests import Measurement

EMBEDDINGS, TOKENIZE, DETOKENIZE = "/v1/embeddings", "/tokenize", "/detokenize"
# The paths of requests for which an engine makes no text -> the field that each answer has.
TEXTLESS = {EMBEDDINGS: "data", TOKENIZE: "tokens", DETOKENIZE: "prompt"}


# Defaults for which a client's own field may have another name; those that only a chat has.
OTHER_NAMES = {"max_tokens": "max_completion_tokens"}
CHAT_ONLY = frozenset({"chat_template_kwargs"})


@dataclass(frozen=True)
class Preset:
    """What a request by some name is for: the model, and the fields that a client leaves to it."""

    model: str
    defaults: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ApiRequest:
    """One client's request. `path` is the engine's own, such as /v1/chat/completions.

    `size`: bytes of the body as it came, so that its texts have no more; 0 if it was not counted.
    `measurement`: what is measured of it.
    """

    path: str
    body: dict[str, Any]
    request_id: str
    chat: bool
    size: int = 0
    measurement: Measurement = field(default_factory=Measurement, compare=False, repr=False)

    @property
    def model(self) -> str:
        """Name of the model that is to answer."""
        return str(self.body["model"])

    @property
    def embeds(self) -> bool:
        """Whether it is for embeddings."""
        return self.path == EMBEDDINGS

    @property
    def answer_field(self) -> str:
        """The field that every answer to it has."""
        return TEXTLESS.get(self.path, "choices")

    @property
    def prompt_field(self) -> str:
        """The field with the text."""
        return "messages" if self.chat else "input" if self.embeds else "prompt"

    @property
    def choices(self) -> int:
        """How many answers it gets: `n` for each prompt, or one for each text to embed."""
        if self.embeds:
            texts = self.body["input"]
            return len(texts) if isinstance(texts, list) and not isinstance(texts[0], int) else 1
        n = int(self.body.get("n") or 1)
        return n * len(self.body["prompt"]) if self._has_several_prompts else n

    @property
    def _has_several_prompts(self) -> bool:
        prompt = None if self.chat else self.body.get("prompt")
        return isinstance(prompt, list) and bool(prompt) and not isinstance(prompt[0], int)

    @property
    def least_tokens(self) -> int:
        """Tokens that it needs room for at the least: a prompt of ids, and the answer's bound."""
        prompt = None if self.chat else self.body.get("prompt")
        answer = self.body.get("max_completion_tokens") or self.body.get("max_tokens") or 1
        ids = isinstance(prompt, list) and not self._has_several_prompts
        return answer + (len(prompt) if prompt and ids else 1)

    def prompt_of(self, index: int) -> Any:
        """The prompt, as the client wrote it, of the answer number `index` to a completion."""
        prompt = self.body["prompt"]
        if not self._has_several_prompts:
            return prompt
        return prompt[index // int(self.body.get("n") or 1)]

    @property
    def wants_usage(self) -> bool:
        """Whether the stream ends with an event that counts tokens."""
        return bool((self.body.get("stream_options") or {}).get("include_usage"))

    @property
    def wants_token_ids(self) -> bool:
        """Whether the client itself set `return_token_ids`."""
        return bool(self.body.get("return_token_ids"))


def with_preset(request: ApiRequest, preset: Preset) -> ApiRequest:
    """The request for the preset's model, with its defaults where the client said nothing."""
    body = request.body | {"model": preset.model}
    allowed = () if request.path in (EMBEDDINGS, DETOKENIZE) else preset.defaults.items()
    for name, value in allowed:
        is_said = name in body or OTHER_NAMES.get(name) in body
        is_wanted = request.chat if name in CHAT_ONLY else request.path != TOKENIZE
        if is_wanted and not is_said:
            body[name] = value
    return replace(request, body=body)
