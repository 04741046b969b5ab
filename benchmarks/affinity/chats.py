"""The people: who begins a chat when, what each turn says, how long each thinks in between.

A message is its number and its length in tokens; two messages of one number are the same text.
"""

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass, field

# Tokens of the chat template around each message.
TEMPLATE = 5
LONGEST_CHAT = 8000


@dataclass(frozen=True)
class Message:
    """One message; `tokens` includes the template's."""

    number: int
    role: str
    tokens: int


@dataclass
class Chat:
    """One conversation; `turns` are (question, length of the answer, seconds before it is asked)."""

    begins: float
    system: Message
    turns: list[tuple[Message, Message, float]]
    replica: int
    said: list[Message] = field(default_factory=list)


@dataclass(frozen=True)
class Habits:
    """How people talk. Times in seconds, lengths in tokens; medians of log-normal lengths."""

    rate: float
    seconds: float
    mean_turns: float = 6.0
    mean_pause: float = 15.0
    question: float = 50.0
    answer: float = 180.0
    long_question: float = 1500.0
    long_share: float = 0.1
    systems: int = 8


def chats(habits: Habits, replicas: int, seed: int) -> Iterator[Chat]:
    """Conversations in the order they begin; the same for every policy."""
    rng = random.Random(seed)
    systems = [Message(n, "system", rng.randint(100, 500)) for n in range(habits.systems)]
    weights = [1 / (n + 1) for n in range(habits.systems)]
    now, number = 0.0, habits.systems
    begun = itertools.count()
    while (now := now + rng.expovariate(habits.rate)) < habits.seconds:
        system = rng.choices(systems, weights)[0]
        turns: list[tuple[Message, Message, float]] = []
        length = system.tokens
        while True:
            long = not turns and rng.random() < habits.long_share
            question = Message(
                number, "user", _length(rng, habits.long_question if long else habits.question)
            )
            answer = Message(number + 1, "assistant", _length(rng, habits.answer))
            number += 2
            length += question.tokens + answer.tokens
            pause = rng.expovariate(1 / habits.mean_pause) if turns else 0.0
            turns.append((question, answer, pause))
            if length > LONGEST_CHAT or rng.random() < 1 / habits.mean_turns:
                break
        yield Chat(now, system, turns, next(begun) % replicas)


def _length(rng: random.Random, median: float) -> int:
    return min(4000, max(4, round(median * rng.lognormvariate(0, 0.8)))) + TEMPLATE
