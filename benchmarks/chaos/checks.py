"""Whether an answer is what it must be: text by character, tokens by id, and all that frames them."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson
from support.engine_logprobs import logprob

from benchmarks.chaos.asks import Ask, Expected


@dataclass(slots=True)
class Said:
    """What one choice said."""

    text: str = ""
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    roles: int = 0
    calls: int = 0  # tool calls that were begun
    reasons: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Answer:
    """What a client got. `error` is the kind of failure, None for an answer that ended well."""

    choices: dict[int, Said] = field(default_factory=dict)
    names: set[str] = field(default_factory=set)  # the answer's id, if all is well only one
    usage: list[dict[str, Any]] = field(default_factory=list)
    framing: list[str] = field(default_factory=list)
    error: str | None = None

    def choice(self, index: int) -> Said:
        """The choice of an index, made when it is first heard of."""
        return self.choices.setdefault(index, Said())


@dataclass(slots=True)
class Verdict:
    """Lost and doubled characters and tokens, and everything else that was wrong."""

    lost: int = 0
    doubled: int = 0
    other: int = 0
    lost_tokens: int = 0
    doubled_tokens: int = 0
    wrong: list[str] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        """Nothing is wrong."""
        return not (self.lost or self.doubled or self.other or self.wrong) and not (
            self.lost_tokens or self.doubled_tokens
        )


def read_stream(raw: bytes) -> Answer:
    """The events of a stream's body, whole or broken off."""
    answer = Answer()
    events = raw.split(b"\n\n")
    if events.pop():
        answer.framing.append("half an event at the end")
    done = [event for event in events if event == b"data: [DONE]"]
    if len(done) == 1 and events[-1] != done[0]:
        answer.framing.append("events after [DONE]")
    for event in events:
        if event.startswith(b":") or event == b"data: [DONE]":
            continue
        try:
            take(answer, orjson.loads(event.removeprefix(b"data: ")))
        except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
            answer.framing.append(f"no event of ours: {event[:60]!r}")
    if answer.error is None and len(done) != 1:
        answer.error = "cut off" if not done else f"{len(done)} times [DONE]"
    return answer


def read_whole(raw: bytes) -> Answer:
    """The body of an answer that was not streamed."""
    answer = Answer()
    try:
        take(answer, orjson.loads(raw))
    except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
        answer.error = "cut off"
    return answer


def take(answer: Answer, body: dict[str, Any]) -> None:
    """One event, or the body of an answer that was not streamed."""
    if "error" in body:
        answer.error = f"error event: {body['error'].get('code')}"
        return
    answer.names.add(str(body["id"]))
    if body.get("usage"):
        answer.usage.append(body["usage"])
    for part in body["choices"]:
        said = answer.choice(part["index"])
        delta = part.get("delta") or part.get("message") or {}
        said.text += part.get("text") or delta.get("content") or ""
        for call in delta.get("tool_calls") or ():
            said.text += call["function"].get("arguments") or ""
            said.calls += bool(call.get("id"))
        said.roles += "role" in delta and delta["role"] is not None
        said.ids += part.get("token_ids") or []
        said.logprobs += _values(part.get("logprobs"))
        if part.get("finish_reason"):
            said.reasons.append(part["finish_reason"])


def _values(logprobs: dict[str, Any] | None) -> list[float]:
    if not logprobs:
        return []
    if "token_logprobs" in logprobs:
        return list(logprobs["token_logprobs"])
    return [entry["logprob"] for entry in logprobs["content"] or []]


def judge(ask: Ask, answer: Answer) -> Verdict:
    """Compares an answer with what the script must give. Of a failed one, as far as it went."""
    verdict = Verdict(wrong=list(answer.framing))
    ended = answer.error is None
    for index, expected in enumerate(ask.expected):
        said = answer.choices.get(index, Said())
        lost, doubled, other = differences(expected.text, said.text, ended=ended)
        verdict.lost += lost
        verdict.doubled += doubled
        verdict.other += other
        if ask.wants("return_token_ids"):
            lost, doubled, other = differences(expected.ids, said.ids, ended=ended)
            verdict.lost_tokens += lost
            verdict.doubled_tokens += doubled
            verdict.wrong += ["other token ids"] * bool(other)
        if ended:
            verdict.wrong += _faults(ask, expected, said)
    if len(answer.names) > 1:
        verdict.wrong.append("more than one id")
    if len(answer.choices) > len(ask.expected):
        verdict.wrong.append("a choice too many")
    if ended:
        verdict.wrong += _usage(ask, answer)
    return verdict


def _faults(ask: Ask, expected: Expected, said: Said) -> list[str]:
    wrong = []
    if said.reasons != [expected.finish_reason]:
        wrong.append(f"finish reason {said.reasons} for {expected.finish_reason}")
    if ask.chat and said.roles != 1:
        wrong.append(f"{said.roles} roles")
    if said.calls != ask.wants("tools"):
        wrong.append(f"{said.calls} tool calls")
    if ask.wants("logprobs") and said.logprobs != [logprob(i) for i in expected.ids]:
        wrong.append("log probabilities")
    return wrong


def _usage(ask: Ask, answer: Answer) -> list[str]:
    options = ask.body.get("stream_options") or {}
    asked = not ask.body.get("stream") or bool(options.get("include_usage"))
    if len(answer.usage) != asked:
        return [f"usage {len(answer.usage)} times"]
    made = sum(len(choice.ids) for choice in ask.expected)
    for usage in answer.usage:
        given = (usage["prompt_tokens"], usage["completion_tokens"])
        if given != (ask.prompt_tokens, made):
            return [f"usage {given} for {(ask.prompt_tokens, made)}"]
        if usage["total_tokens"] != usage["prompt_tokens"] + usage["completion_tokens"]:
            return ["usage that does not add up"]
    return []


def differences(
    expected: Sequence[Any], got: Sequence[Any], *, ended: bool
) -> tuple[int, int, int]:
    """Items lost, items said twice, and items that belong nowhere.

    Of an answer that did not end, what is missing at its end is not lost: the client knows.
    """
    got = got if isinstance(expected, str) else tuple(got)
    if got == expected or (not ended and expected[: len(got)] == got):
        return 0, 0, 0
    lost = doubled = other = 0
    matcher = difflib.SequenceMatcher(None, expected, got, autojunk=False)
    for tag, i1, i2, j1, j2 in matcher.get_opcodes():
        if tag == "delete" and not ended and i2 == len(expected):
            continue
        lost += (i2 - i1) if tag in ("delete", "replace") else 0
        if tag in ("insert", "replace"):
            twice = _contains(expected, got[j1:j2])
            doubled += (j2 - j1) if twice else 0
            other += 0 if twice else j2 - j1
    return lost, doubled, other


def explain(ask: Ask, answer: Answer) -> list[str]:
    """Each place where an answer differs from what it must be, in words."""
    told = []
    for index, expected in enumerate(ask.expected):
        said = answer.choices.get(index, Said())
        pairs: list[tuple[Sequence[Any], Sequence[Any]]] = [(expected.text, said.text)]
        if ask.wants("return_token_ids"):
            pairs.append((expected.ids, tuple(said.ids)))
        for wanted, got in pairs:
            codes = difflib.SequenceMatcher(None, wanted, got, autojunk=False).get_opcodes()
            told += [
                f"choice {index}, {tag} at {i1} of {len(wanted)}: {wanted[i1:i2]!r} -> {got[j1:j2]!r}"
                for tag, i1, i2, j1, j2 in codes
                if tag != "equal"
            ]
    return told


def _contains(whole: Sequence[Any], part: Sequence[Any]) -> bool:
    if isinstance(whole, str):
        return str(part) in whole
    return any(whole[at : at + len(part)] == part for at in range(len(whole)))
