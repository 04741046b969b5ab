"""A model directory whose chat template has a place for tools, as Hermes' and Qwen's have."""

from __future__ import annotations

import json
from pathlib import Path

TOOLS_TEMPLATE = """\
{%- if tools %}{{ '<|im_start|>system\\n' }}{% if messages[0].role == 'system' %}{{ messages[0].content + '\\n\\n' }}\
{% endif %}{{ '# Tools\\n\\nFunctions are given within <tools></tools>:\\n<tools>' }}\
{% for tool in tools %}{{ '\\n' + (tool | tojson) }}{% endfor %}\
{{ '\\n</tools>\\n\\nFor each function call return a json object with name and arguments within <tool_call></tool_call>:\\n\
<tool_call>\\n{"name": <function-name>, "arguments": <args-json-object>}\\n</tool_call><|im_end|>\\n' }}\
{% elif messages[0].role != 'system' %}{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}{% endif %}\
{% for message in messages %}{% if not (tools and loop.first and message.role == 'system') %}\
{{ '<|im_start|>' + message.role + '\\n' + (message.content or '') }}\
{% for call in message.tool_calls or [] %}\
{{ '\\n<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' + (call.function.arguments | tojson) + '}\\n</tool_call>' }}\
{% endfor %}{{ '<|im_end|>\\n' }}{% endif %}{% endfor %}\
{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""


def with_tools(model: Path, directory: Path) -> Path:
    """`directory`, filled with links to the files of `model`, with a chat template that takes tools."""
    directory.mkdir(parents=True)
    for file in model.iterdir():
        if file.name not in ("chat_template.jinja", "tokenizer_config.json"):
            (directory / file.name).symlink_to(file.resolve())
    config = json.loads((model / "tokenizer_config.json").read_text(encoding="utf-8"))
    config.pop("chat_template", None)
    (directory / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    (directory / "chat_template.jinja").write_text(TOOLS_TEMPLATE, encoding="utf-8")
    return directory
