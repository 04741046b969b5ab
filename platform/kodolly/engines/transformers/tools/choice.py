"""The tools of a request: which the answer may call, and which it must."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from kodolly.engines.transformers.structured.constraint import Constraint, json_rule, literal
from kodolly.errors import BadRequest

BEGIN, END = "<tool_call>", "</tool_call>"
MARKS = (("begin", BEGIN), ("end", END))
OTHER_FORMS = ("<function=", "<tool_call>call:")  # of templates whose calls are no JSON


class Function(BaseModel):
    """What a tool does. `parameters`: the JSON schema of its arguments."""

    model_config = ConfigDict(extra="ignore")

    name: str = Field(min_length=1, max_length=256)
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None

    def plain(self) -> dict[str, Any]:
        """As vLLM gives it to chat templates."""
        plain = {
            "name": self.name,
            "description": self.description,
            "parameters": self.parameters,
        }
        return plain if self.strict is None else plain | {"strict": self.strict}


class Tool(BaseModel):
    """One entry of `tools`."""

    type: Literal["function"] = "function"
    function: Function

    def plain(self) -> dict[str, Any]:
        """As vLLM gives it to chat templates."""
        return {"type": self.type, "function": self.function.plain()}


class FunctionName(BaseModel):
    """The function of a `tool_choice`."""

    name: str = Field(min_length=1)


class NamedTool(BaseModel):
    """A `tool_choice` that names one tool."""

    type: Literal["function"] = "function"
    function: FunctionName


@dataclass(frozen=True, slots=True)
class ToolUse:
    """The tools that an answer may call. `demanded`: it must consist of calls.

    `named`: the client chose the tool, and OpenAI's finish reason is then "stop". `parallel`: there
    may be several calls.
    """

    tools: tuple[Tool, ...]
    demanded: bool
    named: bool
    parallel: bool

    @classmethod
    def of(
        cls, tools: list[Tool] | None, choice: str | NamedTool | None, *, parallel: bool
    ) -> ToolUse | None:
        """From the fields of a request; None if no tool may be called. Raises BadRequest."""
        if choice == "none" or (not tools and choice in (None, "auto")):
            return None
        if not tools:
            raise BadRequest("tool_choice: needs tools", param="tool_choice")
        if isinstance(choice, NamedTool):
            chosen = [tool for tool in tools if tool.function.name == choice.function.name][:1]
            if not chosen:
                name = choice.function.name
                raise BadRequest(f"tool_choice: no tool is named {name!r}", param="tool_choice")
            return cls(tuple(chosen), demanded=True, named=True, parallel=False)
        if choice not in (None, "auto", "required"):
            raise BadRequest(
                "tool_choice: must be none, auto, required, or name a function", param="tool_choice"
            )
        demanded = choice == "required"
        return cls(tuple(tools), demanded=demanded, named=False, parallel=parallel)

    def constraint(self, content: Constraint | None) -> Constraint | None:
        """The grammar of the answer: calls if they are demanded, else calls or `content`."""
        if not self.demanded and content is None:
            return None
        calls = "call" + (' ("\\n" call)*' if self.parallel else "")
        rules = ['call: begin "\\n" body "\\n" end']
        bodies = " | ".join(f"body{index}" for index in range(len(self.tools)))
        rules.append(f"body: {bodies}")
        rules += [f"body{index}: {_body(tool)}" for index, tool in enumerate(self.tools)]
        if self.demanded or content is None:
            text = "\n".join([f"start: {calls}", *rules])
            return Constraint("tools", "lark", text, MARKS)
        if content.notation != "lark":
            raise BadRequest(
                f"{content.field}: cannot be used beside tools that need not be called",
                param=content.field.partition(".")[0],
            )
        answer = content.text.replace("start:", "answer:", 1)
        text = "\n".join(["start: answer | calls", f"calls: {calls}", answer, *rules])
        return Constraint("tools", "lark", text, MARKS)


def _body(tool: Tool) -> str:
    """A call of one tool: the name comes first, so that a stream can say early which tool it is."""
    name = json.dumps(tool.function.name, ensure_ascii=False)
    head = literal('{"name": ' + name + ', "arguments": ')
    schema = tool.function.parameters or {}
    return f'{head} {json_rule({"type": "object"} | schema)} "}}"'
