"""The form that an answer must have, as a grammar in the notation that llguidance reads."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

from pydantic import BaseModel, Field, model_validator

from kodolly.errors import BadRequest

ANY_OBJECT: dict[str, Any] = {"type": "object"}
# White space between JSON tokens: a space, or a new line and what indents it. Where there may be more, a
# small model may write nothing else until its limit.
WHITE_SPACE = r"( |\r?\n[ \t]{0,40})?"
KINDS = ("json", "json_object", "regex", "choice", "grammar")

Notation = Literal["lark", "regex", "grammar"]


@dataclass(frozen=True, slots=True)
class Constraint:
    """A grammar. `field`: of the request, for messages. `grammar` is Lark's notation or GBNF.

    `marks`: rules of the text that stand for a mark of the model's, such as the tag before a call: name
    and mark. For some models a mark is one token, for others plain text.
    """

    field: str
    notation: Notation
    text: str
    marks: tuple[tuple[str, str], ...] = ()


class StructuredOutputs(BaseModel):
    """vLLM's field `structured_outputs`: exactly one kind of form."""

    json_: str | dict[str, Any] | bool | None = Field(None, alias="json")
    json_object: bool | None = None
    regex: str | None = None
    choice: list[str] | None = Field(None, min_length=1)
    grammar: str | None = None
    structural_tag: Any = None
    disable_any_whitespace: bool = False
    disable_additional_properties: bool = False
    whitespace_pattern: str | None = Field(None, max_length=256)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.structural_tag is not None or self.disable_additional_properties:
            name = "structural_tag" if self.structural_tag is not None else ""
            name = name or "disable_additional_properties"
            raise _refusal(
                f"structured_outputs.{name}: is not supported by the transformers engine"
            )
        values = (self.json_, self.json_object, self.regex, self.choice, self.grammar)
        if sum(value is not None for value in values) != 1:
            raise _refusal(f"structured_outputs: needs exactly one of {', '.join(KINDS)}")
        return self

    def constraint(self) -> Constraint | None:
        """The grammar; None for `json_object: false`. Raises BadRequest."""
        if self.regex is not None:
            return Constraint("structured_outputs.regex", "regex", self.regex)
        if self.grammar is not None:
            return Constraint("structured_outputs.grammar", "grammar", self.grammar)
        if self.choice is not None:
            words = " | ".join(literal(word) for word in self.choice)
            return Constraint("structured_outputs.choice", "lark", f"start: {words}")
        if self.json_ is None:
            schema: Any = ANY_OBJECT
            if not self.json_object:
                return None
        else:
            schema = self._schema()
        space = "" if self.disable_any_whitespace else self.whitespace_pattern or WHITE_SPACE
        return Constraint("structured_outputs", "lark", f"start: {json_rule(schema, space)}")

    def _schema(self) -> Any:
        if not isinstance(self.json_, str):
            return self.json_
        try:
            return json.loads(self.json_)
        except (ValueError, RecursionError) as error:
            raise _refusal(f"structured_outputs.json: is not JSON: {error}") from error


def constraint_of(
    response_format: Mapping[str, Any] | None, structured: StructuredOutputs | None
) -> Constraint | None:
    """What the two fields ask for; response_format comes first, as in vLLM. Raises BadRequest."""
    kind = (response_format or {}).get("type")
    if response_format and kind != "text":
        if kind == "json_object":
            return Constraint("response_format", "lark", f"start: {json_rule(ANY_OBJECT)}")
        if kind != "json_schema":
            raise BadRequest(
                f"response_format.type: {kind!r} is not supported by the transformers engine: "
                "use text, json_object or json_schema",
                param="response_format",
            )
        described = response_format.get("json_schema")
        schema = described.get("schema") if isinstance(described, dict) else None
        if not isinstance(schema, dict):
            raise BadRequest(
                "response_format.json_schema.schema: must be a JSON schema", param="response_format"
            )
        return Constraint("response_format", "lark", f"start: {json_rule(schema)}")
    return structured.constraint() if structured is not None else None


def json_rule(schema: Any, white_space: str = WHITE_SPACE) -> str:
    """The part of a Lark rule that stands for the values of a schema."""
    if not isinstance(schema, dict):
        return f"%json {json.dumps(schema, ensure_ascii=False)}"
    options: dict[str, Any] = {"coerce_one_of": True}
    if white_space:
        options["whitespace_pattern"] = white_space
    else:
        options["whitespace_flexible"] = False
    return f"%json {json.dumps(schema | {'x-guidance': options}, ensure_ascii=False)}"


def literal(text: str) -> str:
    """A text as it stands, in Lark's notation."""
    return json.dumps(text, ensure_ascii=False)


def _refusal(message: str) -> BadRequest:
    return BadRequest(message, param="structured_outputs")
