"""Makes rows by rule: reading questions whose answer is in the text, and small sums.

A small model needs far more examples than anyone can write by hand to learn to look things up in its context,
and more names than it can learn by heart. Apart from the sums, no row is true outside its text.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from kodolly_ko import words as w
from kodolly_ko.variations import vary
from kodolly_ko.words import object_of, topic

Row = dict[str, str]
Pair = tuple[str, str]  # question and answer


@dataclass(frozen=True, slots=True)
class Fact:
    """One sentence, and questions that it answers; every answer is a whole sentence."""

    sentence: str
    pairs: tuple[Pair, ...]


def _went(draw: random.Random, who: str) -> Fact:
    place, day = draw.choice(w.PLACES), draw.choice(w.DAYS)
    return Fact(
        f"{topic(who)} {day}에 {place}에 갔습니다.",
        (
            (f"{topic(who)} 어디에 갔나요?", f"{place}에 갔습니다."),
            (f"{topic(who)} 언제 {place}에 갔나요?", f"{day}에 갔습니다."),
            (f"{place}에 간 사람은 누구인가요?", f"{who}입니다."),
        ),
    )


def _likes(draw: random.Random, who: str) -> Fact:
    food = draw.choice(w.FOODS)
    return Fact(
        f"{topic(who)} {object_of(food)} 좋아합니다.",
        (
            (f"{topic(who)} 무엇을 좋아하나요?", f"{object_of(food)} 좋아합니다."),
            (f"{object_of(food)} 좋아하는 사람은 누구인가요?", f"{who}입니다."),
        ),
    )


def _bought(draw: random.Random, who: str) -> Fact:
    thing, place = (
        draw.choice(w.THINGS + w.FOODS),
        draw.choice(["시장", "가게", "백화점", "편의점", *w.SHOPS]),
    )
    return Fact(
        f"{topic(who)} {place}에서 {object_of(thing)} 샀습니다.",
        (
            (f"{topic(who)} 무엇을 샀나요?", f"{object_of(thing)} 샀습니다."),
            (f"{topic(who)} 어디에서 {object_of(thing)} 샀나요?", f"{place}에서 샀습니다."),
        ),
    )


def _did(draw: random.Random, who: str) -> Fact:
    verb = draw.choice(["먹었", "받았", "잃어버렸", "찾았", "만들었", "가져왔", "빌렸", "골랐"])
    thing = draw.choice(w.FOODS if verb == "먹었" else w.THINGS)
    return Fact(
        f"{topic(who)} {object_of(thing)} {verb}습니다.",
        (
            (f"{topic(who)} 무엇을 {verb}나요?", f"{object_of(thing)} {verb}습니다."),
            (f"누가 {object_of(thing)} {verb}나요?", f"{who}입니다."),
        ),
    )


def _colour(draw: random.Random, who: str) -> Fact:
    thing, colour = draw.choice(w.THINGS), draw.choice(w.COLOURS)
    return Fact(
        f"{who}의 {topic(thing)} {colour}입니다.",
        ((f"{who}의 {topic(thing)} 무슨 색인가요?", f"{colour}입니다."),),
    )


def _pet(draw: random.Random, who: str) -> Fact:
    animal = draw.choice(w.ANIMALS)
    return Fact(
        f"{topic(who)} {object_of(animal)} 키웁니다.",
        (
            (f"{topic(who)} 무슨 동물을 키우나요?", f"{object_of(animal)} 키웁니다."),
            (f"{object_of(animal)} 키우는 사람은 누구인가요?", f"{who}입니다."),
        ),
    )


def _job(draw: random.Random, who: str) -> Fact:
    job = draw.choice(w.JOBS)
    return Fact(
        f"{who}의 직업은 {job}입니다.",
        (
            (f"{who}의 직업은 무엇인가요?", f"{job}입니다."),
            (f"직업이 {job}인 사람은 누구인가요?", f"{who}입니다."),
        ),
    )


def _hobby(draw: random.Random, who: str) -> Fact:
    hobby = draw.choice(w.HOBBIES)
    return Fact(
        f"{who}의 취미는 {hobby}입니다.",
        (
            (f"{who}의 취미는 무엇인가요?", f"{hobby}입니다."),
            (f"취미가 {hobby}인 사람은 누구인가요?", f"{who}입니다."),
        ),
    )


def _lives(draw: random.Random, who: str) -> Fact:
    city = draw.choice(w.PLACES[: w.CITIES])
    return Fact(
        f"{topic(who)} {city}에 삽니다.",
        (
            (f"{topic(who)} 어디에 사나요?", f"{city}에 삽니다."),
            (f"{city}에 사는 사람은 누구인가요?", f"{who}입니다."),
        ),
    )


def _has(draw: random.Random, who: str) -> Fact:
    thing, count = draw.choice(w.THINGS), draw.choice(w.COUNTS)
    return Fact(
        f"{topic(who)} {object_of(thing)} {count} 개 가지고 있습니다.",
        (
            (
                f"{topic(who)} {object_of(thing)} 몇 개 가지고 있나요?",
                f"{count} 개 가지고 있습니다.",
            ),
        ),
    )


def _price(draw: random.Random, _who: str) -> Fact:
    food, price = draw.choice(w.FOODS + w.THINGS), draw.choice(w.PRICES)
    return Fact(
        f"{topic(food)} {price} 원입니다.",
        ((f"{topic(food)} 얼마인가요?", f"{price} 원입니다."),),
    )


def _hours(draw: random.Random, _who: str) -> Fact:
    shop, first, last = draw.choice(w.SHOPS), draw.randint(6, 11), draw.randint(1, 11)
    return Fact(
        f"{topic(shop)} 오전 {first}시에 열고 오후 {last}시에 닫습니다.",
        (
            (f"{topic(shop)} 몇 시에 여나요?", f"오전 {first}시에 엽니다."),
            (f"{topic(shop)} 몇 시에 닫나요?", f"오후 {last}시에 닫습니다."),
        ),
    )


def _closed(draw: random.Random, _who: str) -> Fact:
    shop, day = draw.choice(w.SHOPS), draw.choice(w.DAYS[: w.WEEKDAYS])
    return Fact(
        f"{topic(shop)} {day}에 쉽니다.",
        ((f"{topic(shop)} 무슨 요일에 쉬나요?", f"{day}에 쉽니다."),),
    )


def _event(draw: random.Random, _who: str) -> Fact:
    event, day, hour = draw.choice(w.EVENTS), draw.choice(w.DAYS[: w.WEEKDAYS]), draw.randint(1, 11)
    place = draw.choice(w.HALLS)
    return Fact(
        f"{topic(event)} {day} 오후 {hour}시에 {place}에서 열립니다.",
        (
            (f"{topic(event)} 언제 열리나요?", f"{day} 오후 {hour}시에 열립니다."),
            (f"{topic(event)} 어디에서 열리나요?", f"{place}에서 열립니다."),
        ),
    )


def _spot(draw: random.Random, who: str) -> Fact:
    thing, spot = draw.choice(w.THINGS), draw.choice(w.SPOTS)
    return Fact(
        f"{who}의 {topic(thing)} {spot}에 있습니다.",
        ((f"{who}의 {topic(thing)} 어디에 있나요?", f"{spot}에 있습니다."),),
    )


def _card(draw: random.Random, who: str) -> Fact:
    job, city, hobby = (
        draw.choice(w.JOBS),
        draw.choice(w.PLACES[: w.CITIES]),
        draw.choice(w.HOBBIES),
    )
    return Fact(
        f"이름: {who}, 직업: {job}, 사는 곳: {city}, 취미: {hobby}.",
        (
            ("이름을 찾아 주세요.", f"{who}입니다."),
            ("직업을 찾아 주세요.", f"{job}입니다."),
            ("사는 곳을 찾아 주세요.", f"{city}입니다."),
            ("취미를 찾아 주세요.", f"{hobby}입니다."),
        ),
    )


KINDS: tuple[Callable[[random.Random, str], Fact], ...] = (
    _went, _likes, _bought, _did, _colour, _pet, _job, _hobby, _lives, _has, _price, _hours,
    _closed, _event, _spot, _card,
)  # fmt: skip


def passages(seed: int, longest: int = 4) -> Iterator[tuple[str, list[Pair]]]:
    """Endless (text, question-answer pairs): one to `longest` sentences, and every question they answer.

    The same `seed` gives the same passages. Every question has one answer in its text. In half of the
    passages all sentences are of one kind, so that only the names tell them apart.
    """
    draw = random.Random(seed)
    while True:
        facts = _facts(draw, draw.randint(1, longest))
        pairs = [(vary(draw, question), answer) for f in facts for question, answer in f.pairs]
        draw.shuffle(pairs)
        text = " ".join(fact.sentence for fact in facts)
        whole = text + "".join(question for question, _ in pairs)
        # A dropped space can make one of these names: 같은 우산 without its space contains 은우.
        if not any(name in whole for name in w.HELD_OUT_NAMES):
            yield text, pairs


def _facts(draw: random.Random, number: int) -> list[Fact]:
    names = w.people(draw, number)
    first = draw.choice(KINDS)
    kinds = [first] * number if draw.random() < 0.5 else draw.choices(KINDS, k=number)
    facts: list[Fact] = []
    for kind, name in zip(kinds, names, strict=True):
        fact = kind(draw, name)
        if not any(_share_a_question(fact, other) for other in facts):
            facts.append(fact)
    return facts


def _share_a_question(one: Fact, other: Fact) -> bool:
    """Do both facts answer the same question, which would then have two answers?"""
    return not {question for question, _ in one.pairs}.isdisjoint(q for q, _ in other.pairs)


def reading_rows(seed: int, longest: int = 3) -> Iterator[Row]:
    """Endless Dolly rows, one question about a passage each; one in four has the text in its instruction."""
    draw = random.Random(seed)
    for text, pairs in passages(seed, longest):
        question, answer = draw.choice(pairs)
        inline = draw.random() < 0.25
        yield {
            "instruction": f"{text} {question}" if inline else question,
            "context": "" if inline else text,
            "response": answer,
            "category": "closed_qa",
        }


def lists(seed: int) -> Iterator[str]:
    """Endless short texts: lines with a name and a thing, then the same lines in another order."""
    draw = random.Random(seed)
    pools = (w.FOODS, w.THINGS, w.COLOURS, w.ANIMALS, w.JOBS, w.HOBBIES, w.PLACES)
    while True:
        names = w.people(draw, draw.randint(2, 4))
        things = draw.sample(draw.choice(pools), len(names))
        pairs = list(zip(names, things, strict=True))
        style = draw.choice(("{}: {}", "{} - {}", "{}의 것은 {}", "{} {}"))
        first = [style.format(*pair) for pair in pairs]
        again = [style.format(*pair) for pair in draw.sample(pairs, len(pairs))]
        yield "\n".join([*first, "", *again])


def sums() -> list[Row]:
    """Sums, differences and products of one-digit numbers, each asked in three ways."""
    rows = []
    for left in range(10):
        for right in range(10):
            rows += _sum(left, "더하기", "+", right, left + right)
            if right <= left:
                rows += _sum(left, "빼기", "-", right, left - right)
            if left >= 2 and right >= 1:
                rows += _sum(left, "곱하기", "×", right, left * right)
    return rows


def _sum(left: int, word: str, sign: str, right: int, result: int) -> list[Row]:
    particle = "은" if right in (0, 1, 3, 6, 7, 8) else "는"  # 영 일 삼 육 칠 팔 end in a consonant
    questions = (
        f"{left} {word} {right}{particle}?",
        f"{left} {word} {right}{particle} 얼마인가요?",
        f"{left}{sign}{right}{particle}?",
    )
    answer = f"{left} {word} {right}{particle} {result}입니다."
    return [
        {"instruction": text, "context": "", "response": answer, "category": "open_qa"}
        for text in questions
    ]
