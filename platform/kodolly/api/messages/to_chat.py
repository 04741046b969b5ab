"""From a request of the Messages API to the body of a chat completion."""

from __future__ import annotations

from typing import Any

import orjson

from kodolly.api.messages.request import (
    Block,
    CountTokensRequest,
    MessageParam,
    MessagesRequest,
    RedactedThinkingBlock,
    TextBlock,
    ThinkingBlock,
    Tool,
    ToolChoice,
    ToolResultBlock,
    ToolUseBlock,
)
from kodolly.errors import BadRequest

Json = dict[str, Any]

CHOICES = {"auto": "auto", "any": "required", "none": "none"}
# How a chat calls what an error may name -> how the client called it.
CLIENT_NAMES = {
    "stop": "stop_sequences",
    "max_completion_tokens": "max_tokens",
    "reasoning_effort": "output_config.effort",
    "thinking_token_budget": "thinking.budget_tokens",
    "response_format": "output_config.format",
    "parallel_tool_calls": "tool_choice.disable_parallel_tool_use",
}


def chat_body(request: CountTokensRequest) -> Json:
    """The chat that asks for the same. Raises BadRequest, which names the block at fault."""
    messages: list[Json] = []
    if request.system:
        messages.append({"role": "system", "content": _content(request.system)})
    for index, message in enumerate(request.messages):
        messages += _messages_of(message, index)
    body: Json = {"model": request.model, "messages": messages}
    if request.messages[-1].role == "assistant":  # its text is the beginning of the answer
        body |= {"continue_final_message": True, "add_generation_prompt": False}
    if request.tools:
        body["tools"] = [_function(tool) for tool in request.tools]
    if request.tool_choice is not None:
        body |= _tool_choice(request.tool_choice)
    if request.thinking is not None:
        body |= _thinking(request)
    if request.output_config is not None:
        body |= _output(request)
    if isinstance(request, MessagesRequest):
        body |= _sampling(request)
    return body


def _sampling(request: MessagesRequest) -> Json:
    given: Json = {
        "max_tokens": request.max_tokens,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "top_k": request.top_k,
        "stop": request.stop_sequences or None,
        "user": request.metadata.user_id if request.metadata else None,
        "stream": request.stream or None,
    }
    if request.stream:  # `message_start` tells the tokens of the prompt
        given["stream_options"] = {"include_usage": True, "continuous_usage_stats": True}
    return {name: value for name, value in given.items() if value is not None}


def _thinking(request: CountTokensRequest) -> Json:
    thinking = request.thinking
    assert thinking is not None
    if thinking.type == "disabled":
        return {"reasoning_effort": "none"}
    if thinking.type == "enabled" and thinking.budget_tokens is not None:
        return {"thinking_token_budget": thinking.budget_tokens}
    return {}


def _output(request: CountTokensRequest) -> Json:
    config = request.output_config
    assert config is not None
    body: Json = {}
    if config.effort is not None:
        body["reasoning_effort"] = config.effort
    if config.format is not None:
        schema = {"name": "answer", "schema": config.format.json_schema, "strict": True}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    return body


def _tool_choice(choice: ToolChoice) -> Json:
    body: Json = {}
    if choice.type == "tool":
        body["tool_choice"] = {"type": "function", "function": {"name": choice.name}}
    else:
        body["tool_choice"] = CHOICES[choice.type]
    if choice.disable_parallel_tool_use:
        body["parallel_tool_calls"] = False
    return body


def _function(tool: Tool) -> Json:
    function: Json = {"name": tool.name, "parameters": {"type": "object", **tool.input_schema}}
    if tool.description is not None:
        function["description"] = tool.description
    if tool.strict is not None:
        function["strict"] = tool.strict
    return {"type": "function", "function": function}


def _content(content: str | list[TextBlock]) -> str | list[Json]:
    """Text as a chat takes it: blocks stay apart, and the template joins them."""
    if isinstance(content, str):
        return content
    if len(content) == 1:
        return content[0].text
    return [{"type": "text", "text": block.text} for block in content]


def _messages_of(message: MessageParam, index: int) -> list[Json]:
    """The chat's messages for one turn: what tools returned are messages of their own."""
    if isinstance(message.content, str):
        return [{"role": message.role, "content": message.content}]
    if message.role == "assistant":
        return [_assistant(message.content, index)]
    messages: list[Json] = []
    texts: list[TextBlock] = []
    for number, block in enumerate(message.content):
        if isinstance(block, TextBlock):
            texts.append(block)
        elif isinstance(block, ToolResultBlock) and message.role == "user":
            if texts:
                messages.append({"role": message.role, "content": _content(texts)})
                texts = []
            messages.append(_result(block))
        else:
            _refuse(block, message.role, index, number)
    if texts:
        messages.append({"role": message.role, "content": _content(texts)})
    return messages


def _assistant(blocks: list[Block], index: int) -> Json:
    texts, thoughts, calls = [], [], []
    for number, block in enumerate(blocks):
        if isinstance(block, TextBlock):
            texts.append(block)
        elif isinstance(block, ThinkingBlock):
            thoughts.append(block.thinking)
        elif isinstance(block, ToolUseBlock):
            function = {"name": block.name, "arguments": orjson.dumps(block.input).decode()}
            calls.append({"id": block.id, "type": "function", "function": function})
        elif not isinstance(block, RedactedThinkingBlock):
            _refuse(block, "assistant", index, number)
    message: Json = {"role": "assistant", "content": _content(texts) if texts else None}
    if thoughts:
        message["reasoning"] = "\n".join(thoughts)
    if calls:
        message["tool_calls"] = calls
    return message


def _result(block: ToolResultBlock) -> Json:
    content = block.content or ""
    text = content if isinstance(content, str) else "\n".join(part.text for part in content)
    return {"role": "tool", "tool_call_id": block.tool_use_id, "content": text}


def _refuse(block: Any, role: str, index: int, number: int) -> None:
    at = f"messages[{index}].content[{number}]"
    raise BadRequest(f"{at}: a {role} message holds no {block.type}", param=at)
