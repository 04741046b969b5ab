"""The Jinja rendering: a chat template for transformers and vLLM that also checks and neutralises."""

from __future__ import annotations

from .dialect import SEPARATOR, Dialect
from .guard import WORD_JOINER, breaks

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
    {%- elif content | rejectattr("type", "equalto", "text") | list -%}
      {{- raise_exception("message " ~ index ~ ": only content parts of type text are supported") -}}
    {%- endif -%}
    {{- content | map(attribute="text") | join("\\n") -}}
  {%- endif -%}
{%- endmacro -%}
{%- set first = 1 if messages and messages[0]["role"] == "system" else 0 -%}
{%- set system = safe(plain(messages[0]["content"], 0)) if first else "" -%}
{%- if messages | length == first -%}
  {{- raise_exception("message " ~ first ~ ": a conversation needs a user message") -}}
{%- endif -%}
{{- @BEGIN@ -}}
{%- if system -%}
  {{- system ~ @SEPARATOR@ -}}
{%- endif -%}
{%- for message in messages[first:] -%}
  {%- set index = loop.index0 + first -%}
  {%- set expected = "assistant" if loop.index0 % 2 else "user" -%}
  {%- if message["role"] != expected -%}
    {{- raise_exception("message " ~ index ~ ": expected role " ~ expected ~ ", got " ~ message["role"]) -}}
  {%- endif -%}
  {%- set text = safe(plain(message["content"], index)) -%}
  {%- if not text -%}
    {{- raise_exception("message " ~ index ~ ": content is empty") -}}
  {%- endif -%}
  {%- set context = safe(message["context"] or "") -%}
  {%- if expected == "user" -%}
    {%- if not loop.first -%}
      {{- @SEPARATOR@ -}}
    {%- endif -%}
    {{- @INSTRUCTION@ ~ text -}}
    {%- if context -%}
      {{- @SEPARATOR@ ~ @CONTEXT@ ~ context -}}
    {%- endif -%}
    {{- @SEPARATOR@ -}}
  {%- else -%}
    {{- @RESPONSE@ -}}
    {%- generation -%}
      {{- @LEAD@ ~ text ~ @END@ -}}
    {%- endgeneration -%}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
  {%- if messages[-1]["role"] != "user" -%}
    {{- raise_exception("message " ~ (messages | length - 1) ~ ": the last message must be the user's") -}}
  {%- endif -%}
  {{- @RESPONSE@ -}}
{%- endif -%}
"""


def build_jinja(template: Dialect, bos_token: str = "") -> str:
    """The chat template of one dialect, with its guard keys and `bos_token` as literals."""
    values = {
        "GUARD": "[" + ", ".join(literal(key) for key in breaks(template.guard)) + "]",
        "JOINER": literal(WORD_JOINER),
        "BEGIN": literal(bos_token + template.preamble("")),
        "SEPARATOR": literal(SEPARATOR),
        "INSTRUCTION": literal(template.instruction_key),
        "CONTEXT": literal(template.context_key),
        "RESPONSE": literal(template.response_prompt),
        "LEAD": literal(template.response_lead),
        "END": literal(template.end),
    }
    source = SOURCE.replace("@NAME@", template.name)
    for name, value in values.items():
        source = source.replace(f"@{name}@", value)
    return source


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
