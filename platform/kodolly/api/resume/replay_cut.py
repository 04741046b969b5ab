"""A replayed answer, compared with what its client has: the rest of it is what is new.

The two may come in pieces of other sizes. So texts are compared by characters, whatever the field:
content, thoughts, the arguments of each tool call.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from kodolly.api.resume import events
from kodolly.api.resume.delta_fields import (
    DRAWN,
    Fields,
    Path,
    add_to,
    delta_of,
    entries_of,
    fields_of,
    grows,
)
from kodolly.api.resume.journal import Choice

Json = dict[str, Any]
CONTENT: Path = ("content",)
ROLE: Path = ("role",)
TEXT: Path = ("text",)
UNSENT = 4  # tokens that an engine may have made and not sent when it dies


class Diverged(Exception):
    """A replayed answer is another one than the client has."""


@dataclass(frozen=True)
class Rest:
    """What is new to the client in one event. `is_hidden`: nothing, but perhaps its token ids."""

    part: Json
    fields: Fields
    ids: list[int]
    logprobs: int

    @property
    def is_hidden(self) -> bool:
        """Whether the client has all of it but the token ids."""
        return not self.fields and not self.logprobs and self.part.get("finish_reason") is None


class ReplayCut:
    """Takes from a replayed choice what the client has. Its new fields are added to `choice`."""

    def __init__(self, choice: Choice, *, chat: bool) -> None:
        self._choice = choice
        self._chat = chat
        self._text = CONTENT if chat else TEXT
        sent = dict(choice.others)
        if choice.role_sent:
            sent[self._text] = choice.text
            if chat:
                sent[ROLE] = "assistant"
        self._sent = sent
        # Characters of each text that the replay has come by.
        self._repeated = dict.fromkeys((p for p, v in sent.items() if grows(p, v) and v), 0)
        self._tokens = 0
        self._logprobs = 0

    @property
    def is_on_the_way(self) -> bool:
        """Whether the replay is still among tokens that an engine has made once without harm."""
        return self._tokens + UNSENT < len(self._choice.ids)

    def rest(self, part: Json) -> Rest:
        """What is new in one choice of a replayed event. Raises Diverged."""
        ids = self._new_ids(part.get("token_ids") or [])
        delta = (part.get("delta") or {}) if self._chat else {"text": part.get("text") or ""}
        new: Fields = {}
        for path, value in fields_of(delta):
            self._compare(path, value, new)
        logprobs = part.get("logprobs")
        count = entries_of(logprobs) if logprobs else 0
        repeated = min(count, max(0, self._choice.logprobs - self._logprobs))
        self._logprobs += count
        rest = {k: v for k, v in part.items() if k not in ("prompt_token_ids", "delta", "text")}
        rest |= {"delta": delta_of(new)} if self._chat else {"text": new.get(TEXT, "")}
        rest["index"] = self._choice.index
        rest["logprobs"] = events.without_first(logprobs, repeated)
        ends = part.get("finish_reason") is not None
        too_early = ends and 0 < self._tokens < len(self._choice.ids)
        if too_early or (self._repeated and (ends or any(new.values()))):
            raise Diverged("it goes on before it has come by all that was sent")
        return Rest(rest, new, ids, count - repeated)

    def take(self, rest: Rest) -> None:
        """Notes that the client has the rest of an event."""
        choice = self._choice
        for path, value in rest.fields.items():
            add_to(self._sent, path, value)
            if path == self._text:
                choice.parts.append(value)
            elif path != ROLE:
                choice.is_plain_text = False
                add_to(choice.others, path, value)
        if rest.fields and not rest.ids and not self._tokens:
            choice.has_token_ids = False
        choice.role_sent = True
        choice.ids.extend(rest.ids)
        choice.logprobs += rest.logprobs
        choice.is_finished = rest.part.get("finish_reason") is not None

    def _new_ids(self, ids: list[int]) -> list[int]:
        """The tokens beyond those that the client has, with which the others are compared."""
        sent = self._choice.ids
        repeated = ids[: max(0, len(sent) - self._tokens)]
        if repeated != list(sent[self._tokens : self._tokens + len(repeated)]):
            raise Diverged("it has other tokens")
        self._tokens += len(ids)
        return ids[len(repeated) :]

    def _compare(self, path: Path, value: Any, new: Fields) -> None:
        """Adds to `new` what the client does not have of a field."""
        if path not in self._sent:
            new[path] = value
        elif not grows(path, value):
            if path[-1] != DRAWN and self._sent[path] != value:
                raise Diverged(f"its {path[-1]} is another one")
        else:
            if path in self._repeated:
                value = self._beyond_sent(path, value)
            if value:
                new[path] = value

    def _beyond_sent(self, path: Path, value: str) -> str:
        sent, at = self._sent[path], self._repeated[path]
        count = min(len(value), len(sent) - at)
        if not sent.startswith(value[:count], at):
            raise Diverged(f"its {path[-1]} is another one")
        self._repeated[path] += count
        if self._repeated[path] == len(sent):
            del self._repeated[path]
        return value[count:]
