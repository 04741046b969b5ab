"""A small model whose chat template has a place for tools, which SmolLM2's own has not."""

from __future__ import annotations

from pathlib import Path

TEMPLATE = """\
{%- set system = namespace(text='') -%}
{%- for message in messages if message.role == 'system' -%}
{%- set system.text = system.text ~ message.content ~ '\\n' -%}
{%- endfor -%}
{%- if system.text or tools -%}
{{- '<|im_start|>system\\n' ~ system.text -}}
{%- if tools -%}
{{- 'You may call these functions, within <tool_call></tool_call>:\\n' -}}
{%- for tool in tools -%}{{- tool | tojson ~ '\\n' -}}{%- endfor -%}
{{- '<tool_call>\\n{"name": NAME, "arguments": ARGUMENTS}\\n</tool_call>\\n' -}}
{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- endif -%}
{%- for message in messages if message.role != 'system' -%}
{%- if message.role == 'tool' -%}
{{- '<|im_start|>user\\n<tool_response>\\n' ~ message.content ~ '\\n</tool_response><|im_end|>\\n' -}}
{%- else -%}
{{- '<|im_start|>' ~ message.role ~ '\\n' ~ (message.content or '') -}}
{%- for call in message.tool_calls or () -%}
{{- '\\n<tool_call>\\n{"name": "' ~ call.function.name ~ '", "arguments": ' -}}
{{- (call.function.arguments if call.function.arguments is string else call.function.arguments | tojson) -}}
{{- '}\\n</tool_call>' -}}
{%- endfor -%}
{{- '<|im_end|>\\n' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""
TEMPLATE_FILE = "chat_template.jinja"


def with_tools(model: Path, folder: Path) -> Path:
    """Makes a model directory in `folder`: the files of `model`, and the template above."""
    folder.mkdir()
    for file in model.iterdir():
        if file.name not in (TEMPLATE_FILE, "model_card.json"):
            (folder / file.name).symlink_to(file.resolve())
    (folder / TEMPLATE_FILE).write_text(TEMPLATE, encoding="utf-8")
    return folder
