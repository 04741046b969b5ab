"""Stored answers: hundreds of Responses at a time, each attached again elsewhere while what makes it is killed.

A client creates an answer at one API process, leaves in the middle, and attaches at the other one after the
last event that it has; so it does after every break. At the end the text that came by events, and the text of the
response object, must be the script's to the character.
"""

import asyncio
import itertools
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import aiohttp
import orjson
from support.script import Script, chat_prompt

from benchmarks.chaos import report
from benchmarks.chaos.asks import SUBJECTS
from benchmarks.chaos.checks import differences
from benchmarks.chaos.clients import Crowd
from benchmarks.chaos.faults import Chaos
from benchmarks.chaos.plan import MODEL, STORED_FAULTS, Plan
from benchmarks.chaos.stack import Stack
from benchmarks.chaos.watch import Watch

Json = dict[str, Any]
EXAMPLES = 10
PAUSE = 0.2  # seconds before the next API process is tried
LONGEST = 240.0  # seconds for one answer, over all its attachments
DELTAS = ("response.output_text.delta", "response.function_call_arguments.delta")
OBJECT = {"type": "object"}
# Of five answers, who asks what; temperature 0, so that any engine may repeat them.
KINDS: tuple[tuple[str, Json], ...] = (
    ("text", {}),
    ("text", {}),
    ("text", {}),
    ("schema", {"text": {"format": {"type": "json_schema", "name": "story", "schema": OBJECT}}}),
    (
        "tool",
        {
            "tools": [{"type": "function", "name": "f", "parameters": OBJECT}],
            "tool_choice": "required",
        },
    ),
)


@dataclass(frozen=True, slots=True)
class Ask:
    """One request, and the text that its answer must have. `leave_after`: events before the client leaves."""

    kind: str
    body: Json
    expected: str
    leave_after: int


@dataclass(slots=True)
class Answer:
    """What one client has of an answer. `error`: why it gave up; None for an answer that ended well."""

    ask: Ask
    response_id: str = ""
    last: int = -1  # sequence number
    text: str = ""
    attachments: int = 0
    repeated: int = 0  # events whose number it had already
    end: Json = field(default_factory=dict)  # the response object
    error: str | None = None


@dataclass(slots=True)
class Totals:
    """The figures of all stored answers."""

    answers: int = 0
    kinds: dict[str, int] = field(default_factory=dict)
    attachments: int = 0
    never_attached: int = 0  # answers that their creator read to the end
    failures: dict[str, int] = field(default_factory=dict)
    characters_lost: int = 0
    characters_doubled: int = 0
    characters_elsewhere: int = 0
    events_repeated: int = 0
    objects_wrong: int = 0  # responses whose own text is not the script's

    @property
    def good(self) -> bool:
        """Whether nothing failed, and nothing was lost, doubled or wrong."""
        characters = self.characters_lost + self.characters_doubled + self.characters_elsewhere
        return bool(self.answers) and not (
            self.failures or characters or self.events_repeated or self.objects_wrong
        )


class StoredCrowd:
    """Clients in a closed loop: each has one answer at a time."""

    def __init__(self, doors: list[str], plan: Plan) -> None:
        self.doors = doors
        self.answers: list[Answer] = []
        self.is_stopping = False
        self._plan = plan

    async def run(self) -> None:
        """Until `is_stopping`; then every client reads its answer to the end."""
        asks = scripted(self._plan)
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=5, sock_read=self._plan.silence)
        connector = aiohttp.TCPConnector(limit=0, force_close=True)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as http:
            await asyncio.gather(
                *(self._client(slot, asks, http) for slot in range(self._plan.streams))
            )

    async def _client(self, slot: int, asks: Iterator[Ask], http: aiohttp.ClientSession) -> None:
        await asyncio.sleep(slot * 0.02)
        for turn in itertools.count(slot):
            if self.is_stopping:
                return
            answer = Answer(next(asks))
            try:
                async with asyncio.timeout(LONGEST):
                    await self._read(answer, turn, http)
            except TimeoutError:
                answer.error = "no end in time"
            self.answers.append(answer)

    async def _read(self, answer: Answer, turn: int, http: aiohttp.ClientSession) -> None:
        """Creates an answer and attaches to it until it has ended."""
        for door in itertools.islice(itertools.cycle(self.doors), turn % len(self.doors), None):
            try:
                if not answer.response_id:
                    await self._create(answer, door, http)
                else:
                    await self._attach(answer, door, http)
            except (aiohttp.ClientError, ConnectionError, TimeoutError):
                pass
            if answer.end or answer.error:
                return
            await asyncio.sleep(PAUSE)

    async def _create(self, answer: Answer, door: str, http: aiohttp.ClientSession) -> None:
        body = answer.ask.body | {"stream": True}
        async with http.post(f"{door}/v1/responses", json=body) as response:
            if response.status != 200:
                answer.error = f"status {response.status} when it was created"
                return
            events = 0
            async for _ in self._events(answer, response):
                events += 1
                if events >= answer.ask.leave_after:
                    return

    async def _attach(self, answer: Answer, door: str, http: aiohttp.ClientSession) -> None:
        query = {"stream": "true", "starting_after": str(answer.last)}
        url = f"{door}/v1/responses/{answer.response_id}"
        async with http.get(url, params=query) as response:
            if response.status != 200:
                answer.error = f"status {response.status} when it was attached to"
                return
            answer.attachments += 1
            async for _ in self._events(answer, response):
                pass

    async def _events(
        self, answer: Answer, response: aiohttp.ClientResponse
    ) -> AsyncIterator[Json]:
        async for line in response.content:
            if not line.startswith(b"data: "):
                continue
            event = orjson.loads(line[6:])
            if event["sequence_number"] <= answer.last:
                answer.repeated += 1
            answer.last = event["sequence_number"]
            if event["type"] in DELTAS:
                answer.text += event["delta"]
            if (own := event.get("response")) is not None:
                answer.response_id = own["id"]
                if own["status"] == "failed":
                    answer.error = f"failed: {(own['error'] or {}).get('message')}"
                elif own["status"] not in ("in_progress", "queued"):
                    answer.end = own
            yield event


def scripted(plan: Plan) -> Iterator[Ask]:
    """Requests without end, each of another prompt and length."""
    script = Script(model=MODEL)
    for name, value in plan.script().items():
        setattr(script, name, value)
    low, high = plan.tokens
    chance = random.Random(1)
    for number in itertools.count():
        kind, fields = KINDS[number % len(KINDS)]
        limit = low + number * 37 % (high - low + 1)
        question = f"{number}번째 긴 질문: {SUBJECTS[number % len(SUBJECTS)]} 이야기를 해 주세요."
        prompt = script.encode(chat_prompt({"messages": [{"role": "user", "content": question}]}))
        body = {"model": MODEL, "input": question, "max_output_tokens": limit, "temperature": 0}
        text = script.answer(limit, prompt=prompt).text
        yield Ask(kind, body | fields, text, chance.randint(4, low))


@dataclass(frozen=True, slots=True)
class Run:
    """What a run has shown. `faults`: in words; `examples`: of answers that are not right."""

    totals: Totals
    faults: list[str]
    seconds: float
    examples: list[str]

    def text(self) -> str:
        """Markdown."""
        made = self.totals
        figures = [
            ("stored answers", f"{made.answers:,}{_list(made.kinds)}"),
            ("attached again, after a break or a leave", f"{made.attachments:,}"),
            ("read to the end where they were created", f"{made.never_attached:,}"),
            ("failures", f"{sum(made.failures.values()):,}{_list(made.failures)}"),
            ("characters lost", f"{made.characters_lost:,}"),
            ("characters doubled", f"{made.characters_doubled:,}"),
            ("characters that belong nowhere", f"{made.characters_elsewhere:,}"),
            ("events that came twice", f"{made.events_repeated:,}"),
            ("response objects with another text", f"{made.objects_wrong:,}"),
        ]
        head = f"Stored answers, {self.seconds:.0f} s; SIGKILL: {', '.join(self.faults)}."
        return "\n".join([head, "", *report.table(["", "figure"], figures), *self.examples, ""])

    def as_dict(self) -> Json:
        """The same for machines."""
        return asdict(self)


async def run_stored(plan: Plan, stack: Stack) -> Run:
    """Load, the faults, the last answers' end."""
    doors = [api.url for api in stack.apis]
    begin = time.monotonic()
    crowd, watch = StoredCrowd(doors, plan), Watch(stack.controller.url, stack.token)
    watching, load = asyncio.create_task(watch.run()), asyncio.create_task(crowd.run())
    chaos = Chaos(stack, Crowd(doors, plan.silence), watch, plan)
    await asyncio.sleep(plan.warmup + 1)
    await chaos.run(list(STORED_FAULTS) * plan.rounds)
    crowd.is_stopping = True
    await load
    watching.cancel()
    faults = [f"{fault.kind} ({fault.target})" for fault in chaos.faults]
    bad = [
        f"not right: {answer.response_id} {answer.error}"
        for answer in crowd.answers
        if not is_right(answer)
    ]
    return Run(totals(crowd.answers), faults, time.monotonic() - begin, bad[:EXAMPLES])


def is_right(answer: Answer) -> bool:
    """Whether it ended well, with the script's text by events and in its object."""
    return not answer.error and answer.text == text_of(answer.end) == answer.ask.expected


def totals(answers: list[Answer]) -> Totals:
    """Everything added up."""
    made = Totals(
        answers=len(answers),
        kinds=dict(Counter(answer.ask.kind for answer in answers)),
        attachments=sum(answer.attachments for answer in answers),
        never_attached=sum(not answer.attachments for answer in answers),
        failures=dict(
            Counter(f"{answer.error} ({answer.ask.kind})" for answer in answers if answer.error)
        ),
        events_repeated=sum(answer.repeated for answer in answers),
    )
    for answer in answers:
        ended = not answer.error
        lost, doubled, other = differences(answer.ask.expected, answer.text, ended=ended)
        made.characters_lost += lost
        made.characters_doubled += doubled
        made.characters_elsewhere += other
        made.objects_wrong += ended and text_of(answer.end) != answer.ask.expected
    return made


def text_of(response: Json) -> str:
    """The text, or the arguments of the call, of a response object."""
    return "".join(
        item.get("arguments") or "".join(part["text"] for part in item.get("content") or ())
        for item in response["output"]
    )


def _list(counts: dict[str, int]) -> str:
    return f": {', '.join(f'{count} x {name}' for name, count in counts.items())}" if counts else ""
