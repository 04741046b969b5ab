"""Made-up records of the text sources, with the lengths and the flaws of the real ones.

Rates are those measured on the real files where one is known (models-and-data notes of the project's
documentation); where none is, a flaw is rare enough to leave the lengths alone: 1 in 500 and fewer.
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import Any

from benchmarks.convert.korean import CODE, ENGLISH, Korean

NEAR_COPIES = 0.05  # of rows and of conversations: an earlier one, a word or two changed
# Spellings of "no input" that translation left in the input field: 150 of 12,761 rows.
NO_INPUT = (
    "입력 없음",
    "<입력 없음>",
    "입력이 없습니다.",
    "<노인입력>",
    "NoInput",
    "N/A",
    "noinput",
)
_SEPARATORS = (" ",) * 12 + ("\n\n", "\n- ", "\n1. ")
_RECENT = 400  # earlier rows that a near copy may be of


class Conversations:
    """Records of ko_dataset.json: {"id", "conversations": [{"from", "value"}]}."""

    def __init__(self, random: Random) -> None:
        self.random, self.korean = random, Korean(random)
        self._recent: list[list[dict[str, str]]] = []

    def good(self, number: int, pairs: int) -> dict[str, Any]:
        """A conversation of `pairs` pairs in which a human asks first."""
        random = self.random
        if self._recent and random.random() < NEAR_COPIES:
            turns = self._copy(random.choice(self._recent), pairs)
        else:
            turns = []
        newline = "\r\n" if random.random() < 0.3 else "\n"
        while len(turns) < 2 * pairs:
            turns.append({"from": "human", "value": self.question()})
            turns.append({"from": "gpt", "value": self.answer(newline)})
        self._remember(turns)
        return {"id": self._id(number), "conversations": self._flawed(turns)}

    def broken(self, number: int) -> dict[str, Any]:
        """A conversation without a pair: no turns, or one that the machine begins and nobody answers."""
        if self.random.random() < 0.3:
            turns = []
        else:
            turns = [{"from": "gpt", "value": self.answer("\n", 900)}]
        return {"id": f"{self._id(number)}b", "conversations": turns}

    def _id(self, number: int) -> str:
        return f"K{number:06d}_{number % 7}"

    def question(self) -> str:
        """What a person asks: mostly a line, sometimes with pages to work on."""
        length = self.random.lognormvariate(4.15, 1.15)
        if length < 70:
            return self.korean.question(int(length) + 6)
        return f"{_text(self.korean, min(length, 12_000))} {self.korean.question(24)}"

    def answer(self, newline: str, mean: float | None = None) -> str:
        """What the machine answers: empty or English now and then, else Korean of any length."""
        random = self.random
        kind = random.random()
        if kind < 0.002:
            return ""
        if kind < 0.03:
            return " ".join(random.choices(ENGLISH, k=random.randint(1, 8)))
        length = mean or min(random.lognormvariate(6.18, 0.85), 12_000)
        text = _text(self.korean, length)
        if kind < 0.08:
            text += f"\n\n{random.choice(CODE)}"
        if kind > 0.995:
            text = text.replace(" ", " \u200b", 2)
        return text.replace("\n", newline) if newline != "\n" else text

    def _flawed(self, turns: list[dict[str, str]]) -> list[dict[str, str]]:
        """Now and then other roles, a role twice, or a last question without an answer."""
        kind = self.random.random()
        if kind < 0.001:
            turns = [{**turn, "from": _OTHER_ROLES[turn["from"]]} for turn in turns]
        elif kind < 0.002:
            turns = [turns[0], {"from": "human", "value": self.question()}, *turns[1:]]
        elif kind < 0.003:
            turns = [{"from": "system", "value": self.korean.sentence()}, *turns]
        elif kind < 0.013:
            turns = [*turns, {"from": "human", "value": self.question()}]
        return turns

    def _copy(self, turns: list[dict[str, str]], pairs: int) -> list[dict[str, str]]:
        return [
            {**turn, "value": near_copy(turn["value"]) if turn["from"] == "gpt" else turn["value"]}
            for turn in turns[: 2 * pairs]
        ]

    def _remember(self, turns: list[dict[str, str]]) -> None:
        if len(self._recent) < _RECENT:
            self._recent.append(turns)
        else:
            self._recent[self.random.randrange(_RECENT)] = turns


_OTHER_ROLES = {"human": "user", "gpt": "chatgpt"}


def near_copy(text: str) -> str:
    """The same with a word more."""
    head, _, tail = text.partition(" ")
    return f"{head} 정말 {tail}" if tail else text


def _text(korean: Korean, length: float) -> str:
    """Sentences of about `length` characters, in paragraphs and lists."""
    run = korean.run(int(length))
    marks = korean.random.choices(_SEPARATORS, k=len(run))
    return "".join([part for pair in zip(run, marks, strict=True) for part in pair]).strip()


def long_instructions(random: Random, count: int) -> Iterator[dict[str, str]]:
    """Records of ko_alpaca_style_dataset.json: first turns of conversations, some 2,090 bytes each."""
    maker = Conversations(random)
    recent: list[dict[str, str]] = []
    for _ in range(count):
        if recent and random.random() < NEAR_COPIES:
            row = dict(random.choice(recent))
            row["output"] = near_copy(row["output"])
        else:
            row = {
                "instruction": maker.question(),
                "input": "",
                "output": maker.answer("\r\n" if random.random() < 0.3 else "\n"),
            }
        _keep(recent, row, random)
        yield row


def instructions(random: Random, count: int) -> Iterator[dict[str, str]]:
    """Records of ko_alpaca_data.json: short, 58 % without an input, 1.2 % with a bogus one."""
    korean = Korean(random, size=20_000)
    recent: list[dict[str, str]] = []
    for _ in range(count):
        if recent and random.random() < NEAR_COPIES:
            row = dict(random.choice(recent))
            if random.random() > 0.01:  # the rest are exact copies
                row["output"] = near_copy(row["output"])
        else:
            row = _instruction(random, korean)
        _keep(recent, row, random)
        yield row


def _instruction(random: Random, korean: Korean) -> dict[str, str]:
    kind = random.random()
    length = min(max(random.lognormvariate(3.3, 0.32), 8), 180)
    given = ""
    if kind < 0.012:
        given = random.choice(NO_INPUT)
    elif kind < 0.42:
        wanted = min(random.lognormvariate(2.95, 0.98), 744)
        given = _text(korean, wanted) if wanted > 20 else korean.phrase(int(wanted) + 1)
    output = _text(korean, min(max(random.lognormvariate(4.0, 0.66), 17), 777))
    if random.random() < 0.036:  # without any Hangul: a number, English, code
        output = random.choice((str(random.randint(1, 10_000)), *ENGLISH))
    elif random.random() < 0.0001:
        output = ""
    elif random.random() < 0.1:
        output = output.rstrip(".")
    elif random.random() < 0.002:
        output = ": " + output
    return {"instruction": korean.question(int(length)), "input": given, "output": output}


def _keep(recent: list[dict[str, str]], row: dict[str, str], random: Random) -> None:
    if len(recent) < _RECENT:
        recent.append(row)
    else:
        recent[random.randrange(_RECENT)] = row


def article(korean: Korean, questions: list[int], number: int) -> dict[str, Any]:
    """An article of KorQuAD 1.0: a paragraph for every count of `questions`; every offset is exact."""
    paragraphs = []
    for count in questions:
        paragraphs.append(_paragraph(korean, count, number))
        number += count
    return {"paragraphs": paragraphs, "title": korean.title()}


def _paragraph(korean: Korean, count: int, number: int) -> dict[str, Any]:
    random = korean.random
    wanted = min(max(random.lognormvariate(6.17, 0.33), 349), 2_946)
    context = " ".join(korean.run(int(wanted) + 15))
    qas: list[dict[str, Any]] = []
    for place in range(count):
        if qas and random.random() < 0.002:  # the same question twice
            qas.append({**qas[-1], "id": f"{number}-{place}"})
            continue
        start = context.rfind(" ", 0, random.randrange(len(context) - 50)) + 1
        end = min(start + random.choice((2, 3, 4, 5, 6, 7, 9, 14)), len(context))
        text = context[start:end].rstrip()
        question = korean.question(int(min(max(random.gauss(34, 10), 8), 105)))
        if random.random() < 0.04:
            question += " "
        answer = {"text": text, "answer_start": start}
        qas.append({"answers": [answer], "id": f"{number}-{place}", "question": question})
    return {"qas": qas, "context": context}
