"""What becomes of each field of a request that an engine has no use for: it is refused by name, or
what it asks for is so already.

The fields are those of OpenAI's reference and of vLLM 0.32. A field that neither of them lists is
ignored, where OpenAI refuses it: vLLM ignores it too, clients send fields of other servers along,
and a request that one engine takes must not fail on the other. The API passes it on, since an
engine may be newer than this table.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Any

from kodolly.errors import BadRequest


class Everything(Container[object]):
    """Contains every value: the field changes no answer, whatever it holds."""

    def __contains__(self, value: object) -> bool:
        return True


ANY = Everything()
UNSET: tuple[object, ...] = ()

# Whom a request is for, and how it is counted, kept or made faster: no answer depends on it.
# An id is given by the header X-Request-Id. Nothing is ever stored (`store`).
BOOKKEEPING = (
    "user",
    "metadata",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
    "prediction",
    "store",
    "request_id",
    "session_id",
    "cache_salt",
    "include_reasoning",
    "mm_payload",
    "return_mm_kwargs",
    "return_token_offsets",
    "spaces_between_special_tokens",
)
# Field -> the values that ask for nothing. Every other value is refused.
_BOTH: dict[str, Container[object]] = {
    **dict.fromkeys(BOOKKEEPING, ANY),
    "use_beam_search": (False,),
    "length_penalty": (1,),
    "logprob_token_ids": ([],),
    "thinking_token_budget": UNSET,
    "watermarking": (False,),
    "guided_json": UNSET,
    "guided_regex": UNSET,
    "guided_choice": UNSET,
    "guided_grammar": UNSET,
    "guided_decoding_backend": UNSET,
    "guided_whitespace_pattern": UNSET,
    "structural_tag": UNSET,
    "logits_processors": ([],),
    "priority": (0,),
    "routed_experts_prompt_start": (0,),
    "return_prompt_text": (False,),
    "kv_transfer_params": UNSET,
    "ec_transfer_params": UNSET,
    "repetition_detection": UNSET,
}
CHAT: Mapping[str, Container[object]] = {
    **_BOTH,
    "add_special_tokens": (False,),
    "documents": ([],),
    "chat_template": UNSET,
    "media_io_kwargs": ({},),
    "mm_processor_kwargs": ({},),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "audio": UNSET,
    "web_search_options": UNSET,
    "reasoning_effort": ("none",),
    "verbosity": ("medium",),
}
COMPLETION: Mapping[str, Container[object]] = {
    **_BOTH,
    "best_of": (1,),
    "prompt_embeds": UNSET,
}
TOKENIZE: Mapping[str, Container[object]] = {
    name: CHAT[name] for name in ("chat_template", "media_io_kwargs", "mm_processor_kwargs")
}

# What vLLM 0.32 takes for a field that it does not know, and drops with a line in its own log.
_VLLM_DROPS_BOTH: dict[str, Container[object]] = {
    name: _BOTH[name]
    for name in (
        "guided_json",
        "guided_regex",
        "guided_choice",
        "guided_grammar",
        "structural_tag",
        "logits_processors",
    )
}
VLLM_DROPS_CHAT: Mapping[str, Container[object]] = {
    **_VLLM_DROPS_BOTH,
    **{
        name: CHAT[name]
        for name in ("functions", "function_call", "modalities", "audio", "web_search_options")
    },
}
VLLM_DROPS_COMPLETION: Mapping[str, Container[object]] = {
    **_VLLM_DROPS_BOTH,
    "best_of": COMPLETION["best_of"],
}
# Of /v1/embeddings and /tokenize: fields that engines drop without a word, or that would let a client
# write the prompt's frame itself.
EMBEDDING_REFUSED: Mapping[str, Container[object]] = {
    "messages": UNSET,
    "stream": (False,),
    "chat_template": UNSET,
    "chat_template_kwargs": ({},),
    "mm_processor_kwargs": ({},),
    "embed_dtype": ("float32",),
    "endianness": ("native", "little"),
    "bytes_only": (False,),
}
# Of /v1/embeddings, what KoDolly's own engine for them has no use for.
EMBEDDER: Mapping[str, Container[object]] = {
    **dict.fromkeys(("user", "request_id", "cache_salt", "truncation_side"), ANY),
    "truncate_prompt_tokens": UNSET,
    "priority": (0,),
    "padding": ("do_not_pad",),
    "use_activation": UNSET,
}
TOKENIZE_REFUSED: Mapping[str, Container[object]] = {
    "chat_template": UNSET,
    "media_io_kwargs": ({},),
    "mm_processor_kwargs": ({},),
}
INSTEAD = {
    "functions": "use tools",
    "function_call": "use tool_choice",
    "guided_json": 'use structured_outputs: {"json": ...}',
    "guided_regex": 'use structured_outputs: {"regex": ...}',
    "guided_choice": 'use structured_outputs: {"choice": [...]}',
    "guided_grammar": 'use structured_outputs: {"grammar": ...}',
}


def refuse_unhonoured(
    body: Mapping[str, Any], table: Mapping[str, Container[object]], engine: str
) -> None:
    """Raises BadRequest for the first field of `table` that asks for something. Null never does."""
    for name in table.keys() & body.keys():
        value = body[name]
        if value is not None and value not in table[name]:
            instead = f"; {INSTEAD[name]}" if name in INSTEAD else ""
            raise BadRequest(f"{name} is not supported by the {engine} engine{instead}", param=name)
