"""The Jinja rendering: a chat template for transformers and vLLM that also checks and neutralises."""

from __future__ import annotations

from collections.abc import Sequence

from .dialect import Dialect
from .guard import WORD_JOINER, breaks
from .messages import PART_TYPES, ROLES, SEPARATOR, SYSTEM_ROLES

# Names in @at signs@ are replaced by Jinja literals. Errors read as those of messages.py.
SOURCE = """\
{#- @NAME@: written by kodolly_templates; edit the dialect, not this file -#}
{%- set guard = @GUARD@ -%}
{%- macro safe(text) -%}
  {%- set ns = namespace(text=text | trim) -%}
  {%- for key in guard -%}
    {%- if key in ns.text -%}
      {%- set ns.text = ns.text | replace(key, key[0] ~ @JOINER@ ~ key[1:]) -%}
    {%- endif -%}
  {%- endfor -%}
  {{- ns.text -}}
{%- endmacro -%}
{%- macro plain(content, index) -%}
  {%- if content is string -%}
    {{- content -}}
  {%- elif content is defined and content is not none -%}
    {%- if content is mapping or content is not iterable -%}
      {{- raise_exception("message " ~ index ~ ": content is neither text nor a list of parts") -}}
    {%- endif -%}
    {%- for part in content -%}
      {%- set said = part[part["type"]] if part is mapping and part["type"] in @PARTS@ else none -%}
      {%- if said is not string -%}
        {{- raise_exception("message " ~ index ~ ": only content parts of type text are supported") -}}
      {%- endif -%}
      {{- ("" if loop.first else "\\n") ~ said -}}
    {%- endfor -%}
  {%- endif -%}
{%- endmacro -%}
{%- set now = namespace(answer="", side="") -%}
{{- @BEGIN@ -}}
{%- for message in messages -%}
  {%- set index = loop.index0 -%}
  {%- set role = message["role"] -%}
  {%- if role not in @ROLES@ -%}
    {{- raise_exception("message " ~ index ~ ": unknown role " ~ role) -}}
  {%- endif -%}
  {%- set text = safe(plain(message["content"], index)) -%}
  {%- set context = safe(message["context"] or "") if role == "user" else "" -%}
  {%- if context and not text -%}
    {{- raise_exception("message " ~ index ~ ": a context needs a content beside it") -}}
  {%- elif not text -%}
    {#- nothing was said -#}
  {%- elif role in @SYSTEM@ and now.side in ("", "system") -%}
    {%- set now.side = "system" -%}
    {{- text ~ @SEPARATOR@ -}}
  {%- elif role == "assistant" -%}
    {%- if now.side == "user" -%}
      {{- @SEPARATOR@ -}}
    {%- endif -%}
    {%- set now.answer = now.answer ~ @SEPARATOR@ ~ text if now.side == "assistant" else text -%}
    {%- set now.side = "assistant" -%}
  {%- else -%}
    {%- if now.side == "assistant" -%}
      @ANSWER@
      {{- @SEPARATOR@ -}}
    {%- endif -%}
    {{- (@SEPARATOR@ if now.side == "user" else @INSTRUCTION@) ~ text -}}
    {%- if context -%}
      {{- @SEPARATOR@ ~ @CONTEXT@ ~ context -}}
    {%- endif -%}
    {%- set now.side = "user" -%}
  {%- endif -%}
{%- endfor -%}
{%- if now.side == "" -%}
  {{- raise_exception("the conversation has no text") -}}
{%- elif now.side == "user" -%}
  {{- @SEPARATOR@ -}}
{%- elif now.side == "assistant" -%}
  @ANSWER@
  {%- if add_generation_prompt -%}
    {{- @SEPARATOR@ -}}
  {%- endif -%}
{%- endif -%}
{%- if add_generation_prompt -%}
  {{- @RESPONSE@ -}}
{%- endif -%}
"""
# Not a macro: transformers finds the learned characters only in the template's own output.
ANSWER = """\
{{- @RESPONSE@ -}}
{%- generation -%}
  {{- @LEAD@ ~ now.answer ~ @END@ -}}
{%- endgeneration -%}"""


def build_jinja(template: Dialect, bos_token: str = "") -> str:
    """The chat template of one dialect, with its guard keys and `bos_token` as literals."""
    values = {
        "GUARD": literals(breaks(template.guard)),
        "PARTS": literals(PART_TYPES),
        "ROLES": literals(ROLES),
        "SYSTEM": literals(SYSTEM_ROLES),
        "JOINER": literal(WORD_JOINER),
        "BEGIN": literal(bos_token + template.preamble("")),
        "SEPARATOR": literal(SEPARATOR),
        "INSTRUCTION": literal(template.instruction_key),
        "CONTEXT": literal(template.context_key),
        "RESPONSE": literal(template.response_prompt),
        "LEAD": literal(template.response_lead),
        "END": literal(template.end),
    }
    source = SOURCE.replace("@NAME@", template.name).replace("@ANSWER@", ANSWER)
    for name, value in values.items():
        source = source.replace(f"@{name}@", value)
    return source


def literals(texts: Sequence[str]) -> str:
    """`texts` as a Jinja list."""
    return "[" + ", ".join(map(literal, texts)) + "]"


def literal(text: str) -> str:
    """`text` as a Jinja string literal; what a reader could mangle or cannot see is escaped."""
    return '"' + "".join(_escaped(character) for character in text) + '"'


def _escaped(character: str) -> str:
    is_jamo = "\u1100" <= character <= "\u11ff"  # a tool that composes the file would undo them
    if character in '\\"':
        return "\\" + character
    if character in "\n\r@" + WORD_JOINER or is_jamo:
        return f"\\u{ord(character):04x}"
    return character
