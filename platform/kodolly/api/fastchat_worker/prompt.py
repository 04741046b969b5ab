"""The prompt that a FastChat worker gets, made from its own conversation template."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kodolly.api.prepare import append_context
from kodolly.errors import BadRequest
from kodolly_templates import TemplateError, neutralise
from kodolly_templates.guard import is_key
from kodolly_templates.messages import read_dialogue

if TYPE_CHECKING:
    from fastchat.conversation import Conversation

KNOWN_ROLES = ("system", "developer", "user", "assistant")
# A string of a template with one of these and a letter is no everyday text, as "USER:" is.
KEY_MARKS = frozenset("#<>[]{}|")


def conversation_of(conv: dict[str, Any]) -> Conversation:
    """A worker's template as fschat's own object. Raises KeyError or ValueError for an odd one."""
    from fastchat.conversation import Conversation, SeparatorStyle

    names = ("name", "system_template", "system_message", "roles", "offset", "sep", "sep2")
    return Conversation(
        **{name: conv[name] for name in names if name in conv},
        messages=[list(m) for m in conv.get("messages") or ()],
        sep_style=SeparatorStyle(conv["sep_style"]),
    )


def chat_prompt(conv: dict[str, Any], messages: list[dict[str, Any]]) -> str:
    """The prompt that fschat's Conversation makes of OpenAI messages, its keys in them made harmless.

    `conv` is the template as the worker sends it. Raises BadRequest for a role or content that no
    template of FastChat's can hold.
    """
    conversation, keys = conversation_of(conv), template_keys(conv)
    texts = []
    for index, message in enumerate(messages):
        text = neutralise(_text_of(append_context(message), index), keys)
        if message["role"] not in KNOWN_ROLES:
            raise BadRequest(
                f"messages[{index}].role: this model knows no {message['role']!r}",
                param=f"messages[{index}].role",
            )
        texts.append({"role": message["role"], "content": text})
    try:
        dialogue = read_dialogue(texts, strip=False)
    except TemplateError as error:
        raise BadRequest(f"messages: {error}", param="messages") from error
    if dialogue.system:
        conversation.set_system_message(dialogue.system)
    for turn in dialogue.turns:
        conversation.append_message(conversation.roles[turn.is_answer], turn.text)
    conversation.append_message(conversation.roles[1], None)
    return str(conversation.get_prompt())


def completion_prompt(body: dict[str, Any]) -> str:
    """The prompt of a plain completion. Raises BadRequest for token ids and several prompts."""
    prompt = body["prompt"]
    if not isinstance(prompt, str):
        raise BadRequest("prompt: this model takes one text as its prompt", param="prompt")
    return prompt


def template_keys(conv: dict[str, Any]) -> list[str]:
    """Strings of a template by which a text could forge a turn, if they are no everyday text.

    "### Human:", "<|im_end|>" and "</s>" are; "USER:" is not, and stays as the user wrote it.
    """
    separators = [conv.get("sep") or "", conv.get("sep2") or ""]
    strings = [*separators, *as_list(conv.get("stop_str"))]
    for role in conv["roles"]:
        strings += [role, *(f"{separator}{role}:" for separator in separators)]
    keys = [string.strip() for string in strings]
    return list(dict.fromkeys(key for key in keys if is_key(key) and _is_special(key)))


def as_list(stop: str | list[str] | None) -> list[str]:
    """Stop strings, of which OpenAI and FastChat take one or several."""
    return [stop] if isinstance(stop, str) else stop or []


def _is_special(key: str) -> bool:
    return not KEY_MARKS.isdisjoint(key) and any(map(str.isalnum, key))


def _text_of(message: dict[str, Any], index: int) -> str:
    content = message.get("content") or ""
    if isinstance(content, str):
        return content
    if any(part.get("type") != "text" for part in content):
        field = f"messages[{index}].content"
        raise BadRequest(f"{field}: this model reads text only", param=field)
    return "\n".join(str(part.get("text", "")) for part in content)
