"""Infer FastChat's terms for a chat template by rendering it with marker texts.

A template fits `SeparatorStyle.NO_COLON_TWO` when its text for two turns is
    head + question + answer prompt + lead + answer + turn end + question + answer prompt
with the same pieces for any text. Whitespace that a template puts between the answer prompt and an
answer (`lead`, as in Llama 2) has no field in FastChat and rides in the message.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import takewhile
from typing import Any

from fastchat.conversation import Conversation, SeparatorStyle

from .errors import TemplateError
from .messages import Dialogue, Messages

SYSTEM, ASK, ANSWER, ASK_AGAIN = (f"Marker{letter}9x" for letter in "KLMN")


@dataclass(frozen=True, slots=True)
class Shape:
    """A chat template in FastChat's terms; all texts, `system_*` None when it takes no system text."""

    head: str  # before the first question, when there is no system text
    system_head: str | None
    system_tail: str | None
    roles: tuple[str, str]
    sep: str
    sep2: str
    lead: str
    stop: str | None  # the special token that ends a turn, if one does

    @property
    def default_system(self) -> str | None:
        """The system text the template fills in by itself, or None when it fills in none."""
        start, end = self.system_head, self.system_tail
        if start is None or end is None or len(self.head) < len(start) + len(end):
            return None
        if not (self.head.startswith(start) and self.head.endswith(end)):
            return None
        return self.head[len(start) : len(self.head) - len(end)]

    def conversation(self, *, has_system: bool) -> Conversation:
        """An empty Conversation; its system text is the template's own default, if any."""
        default = self.default_system
        if has_system or default is not None:
            system_template = (
                f"{_braced(self.system_head)}{{system_message}}{_braced(self.system_tail)}"
            )
        else:
            system_template = _braced(self.head)
        return Conversation(
            name="tokenizer",
            system_template=system_template,
            system_message=default or "",
            roles=self.roles,
            messages=[],
            sep_style=SeparatorStyle.NO_COLON_TWO,
            sep=self.sep,
            sep2=self.sep2,
            stop_str=self.stop,
        )


def probe(prompt_of: Callable[[Messages], str], guard: Sequence[str]) -> Shape:
    """The shape of a template; TemplateError when it has none that FastChat can express.

    `prompt_of` renders messages with a generation prompt; `guard` holds the template's special tokens.
    """
    ask = {"role": "user", "content": ASK}
    answer = {"role": "assistant", "content": ANSWER}
    again = {"role": "user", "content": ASK_AGAIN}
    one = _split(prompt_of([ask]), ASK)
    two = _split(prompt_of([ask, answer, again]), ASK, ANSWER, ASK_AGAIN)
    head, prompt = one
    if two[0] != head or two[3] != prompt or not two[1].startswith(prompt):
        raise TemplateError("the chat template writes a turn differently at different places")
    lead = two[1][len(prompt) :]
    if lead.strip():
        raise TemplateError(f"the chat template puts {lead!r} between the prompt and an answer")
    system = _probe_system(prompt_of, ask, prompt)
    starts = [head, two[2]] + ([system[1]] if system else [])
    stop = next((token for token in guard if two[2].lstrip().startswith(token)), None)
    user_role = _common_suffix(starts)
    if stop and stop in user_role:  # a turn always stands before this one: its end is not the role
        user_role = user_role.partition(stop)[2].lstrip()
    turn_end = two[2].removesuffix(user_role)
    sep = _common_prefix(prompt, turn_end)
    return Shape(
        head=head.removesuffix(user_role),
        system_head=system[0] if system else None,
        system_tail=system[1].removesuffix(user_role) if system else None,
        roles=(user_role, prompt.removeprefix(sep)),
        sep=sep,
        sep2=turn_end,
        lead=lead,
        stop=stop,
    )


def fill(shape: Shape, dialogue: Dialogue) -> Conversation:
    """A Conversation that holds the dialogue and is open for an answer."""
    if dialogue.system and shape.system_head is None:
        raise TemplateError("the chat template takes no system message")
    conversation = shape.conversation(has_system=bool(dialogue.system))
    if dialogue.system:
        conversation.set_system_message(dialogue.system)
    for position, turn in enumerate(dialogue.turns):
        if turn.is_answer is not bool(position % 2):
            raise TemplateError("FastChat's Conversation begins with the user's turn")
        lead = shape.lead if turn.is_answer else ""
        conversation.append_message(conversation.roles[turn.is_answer], lead + turn.text)
    conversation.append_message(conversation.roles[1], None)
    return conversation


def _probe_system(
    prompt_of: Callable[[Messages], str], ask: dict[str, Any], prompt: str
) -> tuple[str, str] | None:
    """(text before, text after) a system message, or None when the template refuses or drops it."""
    try:
        rendered = prompt_of([{"role": "system", "content": SYSTEM}, ask])
    except TemplateError:
        return None
    if SYSTEM not in rendered:
        return None
    before, after, rest = _split(rendered, SYSTEM, ASK)
    if rest != prompt:
        raise TemplateError("the chat template writes the turn after a system message differently")
    return before, after


def _split(text: str, *markers: str) -> list[str]:
    """The pieces of `text` around markers that must occur once each and in this order."""
    pieces = []
    for marker in markers:
        if text.count(marker) != 1:
            raise TemplateError("the chat template drops, repeats or reorders messages")
        piece, _, text = text.partition(marker)
        pieces.append(piece)
    return [*pieces, text]


def _common_prefix(one: str, other: str) -> str:
    same = takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))
    return "".join(character for character, _ in same)


def _common_suffix(texts: list[str]) -> str:
    return reduce(_common_prefix, (text[::-1] for text in texts))[::-1]


def _braced(text: str | None) -> str:
    """`text` as str.format sees it."""
    return (text or "").replace("{", "{{").replace("}", "}}")
