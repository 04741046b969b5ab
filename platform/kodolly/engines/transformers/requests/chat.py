"""Chats: POST /v1/chat/completions."""

from __future__ import annotations

import contextlib
import json
from functools import cached_property
from typing import Annotated, Any, Self

from pydantic import BaseModel, Field, model_validator

from kodolly.engines.transformers.requests.base import refuse
from kodolly.engines.transformers.requests.sampling import MAX_LOGPROBS, Sampling
from kodolly.engines.transformers.structured.constraint import Constraint, constraint_of
from kodolly.engines.transformers.tools.choice import NamedTool, Tool, ToolUse
from kodolly.errors import BadRequest
from kodolly.protocol import parameters
from kodolly.protocol.openai import MAX_MESSAGES
from kodolly_templates import TemplateError
from kodolly_templates.messages import plain_text

MAX_TOOLS = 256


class Message(BaseModel):
    """One message of a chat. Its content may be a list of parts, if all of them are text."""

    role: str = Field(min_length=1, max_length=32)
    content: str | list[dict[str, Any]] | None = None
    name: str | None = None
    tool_call_id: str | None = None
    tool_calls: list[dict[str, Any]] | None = None

    def plain(self, index: int) -> dict[str, Any]:
        """The message as chat templates expect it: its parts one text, arguments of calls as objects.

        Raises BadRequest for a part that is no text and for arguments that are no JSON object.
        """
        try:
            content = plain_text(self.content, index)
        except TemplateError as error:
            raise BadRequest(
                f"messages[{index}].content: parts must be text: this model reads nothing else",
                param="messages",
            ) from error
        message: dict[str, Any] = {"role": self.role, "content": content}
        for name in ("name", "tool_call_id"):
            if (value := getattr(self, name)) is not None:
                message[name] = value
        if self.tool_calls:
            message["tool_calls"] = [_call(call, index) for call in self.tool_calls]
        return message


def _call(call: dict[str, Any], index: int) -> dict[str, Any]:
    """A tool call with its arguments as an object, which vLLM gives to templates too."""
    function = call.get("function")
    arguments: Any = None
    if isinstance(function, dict):
        with contextlib.suppress(TypeError, ValueError, RecursionError):
            arguments = json.loads(function.get("arguments") or "{}")
    if not isinstance(function, dict) or not isinstance(arguments, dict):
        raise BadRequest(
            f"messages[{index}].tool_calls: function.arguments must be a JSON object as text",
            param="messages",
        )
    return call | {"function": function | {"arguments": arguments}}


class ChatRequest(Sampling):
    """POST /v1/chat/completions."""

    unhonoured = parameters.CHAT

    messages: list[Message] = Field(min_length=1, max_length=MAX_MESSAGES)
    max_completion_tokens: int | None = Field(None, ge=1)
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    echo: bool = False
    logprobs: bool = False
    top_logprobs: int = Field(0, ge=0, le=MAX_LOGPROBS)
    tools: Annotated[list[Tool], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: str | NamedTool | None = None
    parallel_tool_calls: bool = True
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)

    @property
    def limit(self) -> int | None:
        """max_completion_tokens, or max_tokens, its older name."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def alternatives(self) -> int | None:
        """`top_logprobs`, where `logprobs` is true."""
        return self.top_logprobs if self.logprobs else None

    @cached_property
    def tool_use(self) -> ToolUse | None:
        """The tools that the answer may call, if any. Raises BadRequest for a choice that is none."""
        return ToolUse.of(self.tools, self.tool_choice, parallel=self.parallel_tool_calls)

    @cached_property
    def constraint(self) -> Constraint | None:
        """The form that every answer must have: calls of tools, or what response_format says."""
        content = constraint_of(self.response_format, self.structured_outputs)
        return self.tool_use.constraint(content) if self.tool_use is not None else content

    @property
    def hides_special(self) -> bool:
        """Not where tools may be called: for some models the tags around a call are special tokens."""
        return self.skip_special_tokens and self.tool_use is None

    @property
    def template_options(self) -> dict[str, Any]:
        """The options of `Engine.encode_chat`. Tools are in the prompt even if none may be called, as in vLLM."""
        return {
            "tools": [tool.plain() for tool in self.tools or ()],
            "calls": self.tool_use is not None,
            "variables": self.chat_template_kwargs,
            "add_generation_prompt": self.add_generation_prompt,
            "continue_final_message": self.continue_final_message,
        }

    @property
    def echoed(self) -> str:
        """The text that comes before each answer: with `echo`, the assistant's message it goes on with."""
        last = self.messages[-1]
        if not self.echo or (self.add_generation_prompt and last.role != "assistant"):
            return ""
        return plain_text(last.content, len(self.messages) - 1) or ""

    @model_validator(mode="after")
    def _check_fields_together(self) -> Self:
        if self.top_logprobs and not self.logprobs:
            refuse("top_logprobs", "needs logprobs to be true")
        if self.continue_final_message and self.add_generation_prompt:
            refuse("continue_final_message", "needs add_generation_prompt to be false")
        return self
