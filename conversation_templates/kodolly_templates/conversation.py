"""The FastChat rendering: a Conversation whose get_prompt() is the generation prompt."""

from __future__ import annotations

from fastchat.conversation import Conversation, SeparatorStyle

from .dialect import Dialect
from .messages import SEPARATOR, Messages


def build_conversation(template: Dialect, messages: Messages = ()) -> Conversation:
    """A Conversation for `template`, filled with `messages` and open for an answer.

    FastChat's own `set_system_message` replaces the introduction; here it stays, as in all renderings.
    Raises TemplateError as `Template.dialogue` does.
    """
    conversation = _bare(template)
    if not messages:
        return conversation
    dialogue = template.dialogue(messages)
    turns = list(dialogue.turns)
    preamble = template.preamble(dialogue.system)
    if turns and turns[0].is_answer:  # FastChat's separators alternate, beginning with a user's
        preamble += template.turn(turns.pop(0)) + SEPARATOR
    conversation.set_system_message(preamble.removesuffix(SEPARATOR))
    if preamble:
        conversation.system_template = "{system_message}" + SEPARATOR
    for turn in turns:
        conversation.append_message(conversation.roles[turn.is_answer], turn.text)
    conversation.append_message(conversation.roles[1], None)
    return conversation


def _bare(template: Dialect) -> Conversation:
    style, roles, end = _style(template)
    return Conversation(
        name=template.name,
        system_template="{system_message}" + (SEPARATOR if template.introduction else ""),
        system_message=template.introduction,
        roles=roles,
        messages=[],
        sep_style=style,
        sep=SEPARATOR,
        sep2=end,
        stop_str=list(template.stop),
    )


def _style(template: Dialect) -> tuple[SeparatorStyle, tuple[str, str], str]:
    """(style, roles, sep2) that spell this dialect in FastChat's terms.

    Keys on a line of their own could use DOLLY, but its number on the wire is 11 in fschat 0.2.36 and 12
    in its repository: NO_COLON_TWO gives the same text and is 5 in both.
    """
    keys = (template.instruction_key, template.response_key)
    if template.response_lead:
        roles = (keys[0].removesuffix(": "), keys[1].removesuffix(": "))
        return SeparatorStyle.DEEPSEEK_CHAT, roles, template.end + SEPARATOR
    return SeparatorStyle.NO_COLON_TWO, keys, template.end + SEPARATOR
