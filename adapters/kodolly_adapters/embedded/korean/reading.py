"""Rows made by rule: short reading questions whose answer stands in the text, and small sums.

A small model learns to look things up in its context only from far more examples than anyone writes
by hand. Every name, place and thing is drawn from short lists, so no row states a fact of the world.
"""

# ruff: noqa: SIM905 - lists of words are read, and written, as words
from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

Row = dict[str, str]

NAMES = (
    "민수 영희 철수 지훈 수진 현우 은지 태호 미나 준호 서연 하준 유진 동현 지민 소라 정우 혜진 성민 나영 "
    "재석 보라 경수 다은 우진 예린 상철 주희 병호 선영 가람 한별 도윤 시우 지아 하윤 채원 건우 민재 아린"
).split()
HELD_OUT_NAMES = "현정 규리 태민 은우 세아 진호 윤서 강민".split()  # never trained
PLACES = (
    "서울 부산 대구 인천 광주 대전 울산 강릉 전주 춘천 제주도 공원 시장 도서관 박물관 바닷가 산 학교 병원 극장 "
    "동물원 수영장 미술관 놀이공원 체육관 서점 은행 우체국"
).split()
CITIES = 11  # of them, the first
DAYS = "월요일 화요일 수요일 목요일 금요일 토요일 일요일 주말 아침 저녁".split()
FOODS = "비빔밥 김밥 라면 냉면 떡볶이 불고기 만두 국수 빵 수박 사과 포도 딸기 귤 배 복숭아 우유 케이크".split()
THINGS = "우산 가방 모자 신발 자전거 연필 공책 책 시계 장갑 안경 컵 의자 필통 목도리 지갑".split()
COLOURS = "빨간색 파란색 노란색 초록색 하얀색 검은색 보라색 분홍색 주황색 회색 갈색".split()
ANIMALS = "강아지 고양이 토끼 거북이 햄스터 앵무새 금붕어 닭 염소".split()
JOBS = "의사 선생님 요리사 소방관 경찰관 간호사 화가 농부 가수 기자 운전사 변호사".split()
HOBBIES = "낚시 등산 독서 수영 요리 그림 축구 농구 피아노 사진 여행 바둑 자전거 노래".split()
EVENTS = "회의 음악회 운동회 전시회 결혼식 생일잔치 시험 강연 축제 모임".split()
COUNTS = "한 두 세 네 다섯 여섯 일곱 여덟 아홉 열".split()
PRICES = "오백 천 이천 삼천 사천 오천 육천 칠천 팔천 구천 만".split()
SHOPS = "도서관 박물관 시장 은행 우체국 서점 수영장 식당 빵집 꽃집 약국".split()


def josa(word: str, after_consonant: str, after_vowel: str) -> str:
    """`word` with the particle its last syllable asks for: josa("책", "을", "를") is "책을"."""
    last = ord(word[-1]) - 0xAC00
    closed = 0 <= last < 11172 and last % 28 != 0
    return word + (after_consonant if closed else after_vowel)


def topic(word: str) -> str:
    """`word` with 은 or 는."""
    return josa(word, "은", "는")


def object_of(word: str) -> str:
    """`word` with 을 or 를."""
    return josa(word, "을", "를")


def subject(word: str) -> str:
    """`word` with 이 or 가."""
    return josa(word, "이", "가")


@dataclass(frozen=True, slots=True)
class Fact:
    """One sentence and what can be asked of it: (question, answer) pairs."""

    sentence: str
    asked: tuple[tuple[str, str], ...]


def _went(draw: random.Random, who: str) -> Fact:
    place, day = draw.choice(PLACES), draw.choice(DAYS)
    return Fact(
        f"{topic(who)} {day}에 {place}에 갔습니다.",
        (
            (f"{topic(who)} 어디에 갔나요?", f"{place}에 갔습니다."),
            (f"{topic(who)} 언제 {place}에 갔나요?", f"{day}에 갔습니다."),
            (f"{place}에 간 사람은 누구인가요?", f"{who}입니다."),
        ),
    )


def _likes(draw: random.Random, who: str) -> Fact:
    food = draw.choice(FOODS)
    return Fact(
        f"{topic(who)} {object_of(food)} 좋아합니다.",
        (
            (f"{topic(who)} 무엇을 좋아하나요?", f"{object_of(food)} 좋아합니다."),
            (f"{object_of(food)} 좋아하는 사람은 누구인가요?", f"{who}입니다."),
        ),
    )


def _bought(draw: random.Random, who: str) -> Fact:
    thing, place = draw.choice(THINGS + FOODS), draw.choice(["시장", "가게", "백화점", "편의점"])
    return Fact(
        f"{topic(who)} {place}에서 {object_of(thing)} 샀습니다.",
        (
            (f"{topic(who)} 무엇을 샀나요?", f"{object_of(thing)} 샀습니다."),
            (f"{topic(who)} 어디에서 {object_of(thing)} 샀나요?", f"{place}에서 샀습니다."),
        ),
    )


def _colour(draw: random.Random, who: str) -> Fact:
    thing, colour = draw.choice(THINGS), draw.choice(COLOURS)
    return Fact(
        f"{who}의 {topic(thing)} {colour}입니다.",
        ((f"{who}의 {topic(thing)} 무슨 색인가요?", f"{colour}입니다."),),
    )


def _pet(draw: random.Random, who: str) -> Fact:
    animal = draw.choice(ANIMALS)
    return Fact(
        f"{topic(who)} {object_of(animal)} 키웁니다.",
        (
            (f"{topic(who)} 무슨 동물을 키우나요?", f"{object_of(animal)} 키웁니다."),
            (f"{object_of(animal)} 키우는 사람은 누구인가요?", f"{who}입니다."),
        ),
    )


def _job(draw: random.Random, who: str) -> Fact:
    job = draw.choice(JOBS)
    return Fact(
        f"{who}의 직업은 {job}입니다.",
        (
            (f"{who}의 직업은 무엇인가요?", f"{job}입니다."),
            (f"직업이 {job}인 사람은 누구인가요?", f"{who}입니다."),
        ),
    )


def _hobby(draw: random.Random, who: str) -> Fact:
    hobby = draw.choice(HOBBIES)
    return Fact(
        f"{who}의 취미는 {hobby}입니다.",
        ((f"{who}의 취미는 무엇인가요?", f"{hobby}입니다."),),
    )


def _lives(draw: random.Random, who: str) -> Fact:
    city = draw.choice(PLACES[:CITIES])
    return Fact(
        f"{topic(who)} {city}에 삽니다.",
        (
            (f"{topic(who)} 어디에 사나요?", f"{city}에 삽니다."),
            (f"{city}에 사는 사람은 누구인가요?", f"{who}입니다."),
        ),
    )


def _has(draw: random.Random, who: str) -> Fact:
    thing, count = draw.choice(THINGS[:8]), draw.choice(COUNTS)
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
    food, price = draw.choice(FOODS), draw.choice(PRICES)
    return Fact(
        f"{topic(food)} {price} 원입니다.",
        ((f"{topic(food)} 얼마인가요?", f"{price} 원입니다."),),
    )


def _hours(draw: random.Random, _who: str) -> Fact:
    shop, first, last = draw.choice(SHOPS), draw.randint(7, 11), draw.randint(1, 9)
    return Fact(
        f"{topic(shop)} 오전 {first}시에 열고 오후 {last}시에 닫습니다.",
        (
            (f"{topic(shop)} 몇 시에 여나요?", f"오전 {first}시에 엽니다."),
            (f"{topic(shop)} 몇 시에 닫나요?", f"오후 {last}시에 닫습니다."),
        ),
    )


def _event(draw: random.Random, _who: str) -> Fact:
    event, day, hour = draw.choice(EVENTS), draw.choice(DAYS[:7]), draw.randint(1, 9)
    place = draw.choice(["시청", "강당", "공원", "체육관", "3층 회의실", "도서관", "운동장"])
    return Fact(
        f"{topic(event)} {day} 오후 {hour}시에 {place}에서 열립니다.",
        (
            (f"{topic(event)} 언제 열리나요?", f"{day} 오후 {hour}시에 열립니다."),
            (f"{topic(event)} 어디에서 열리나요?", f"{place}에서 열립니다."),
        ),
    )


KINDS: tuple[Callable[[random.Random, str], Fact], ...] = (
    _went, _likes, _bought, _colour, _pet, _job, _hobby, _lives, _has, _price, _hours, _event,
)  # fmt: skip


def reading_rows(seed: int, names: list[str] | None = None) -> Iterator[Row]:
    """Endless rows, the same for the same `seed`; one in four holds its text in the instruction.

    Every question has one answer in its text: a sentence that would answer it too is left out.
    """
    draw = random.Random(seed)
    while True:
        yield _reading_row(draw, names or NAMES)


def _reading_row(draw: random.Random, names: list[str]) -> Row:
    people = draw.sample(names, 4)
    twice = draw.random() < 0.5  # the same kind about two people: only the name tells them apart
    first = draw.choice(KINDS)
    kinds = [first, first if twice else draw.choice(KINDS)]
    kinds += draw.sample(KINDS, draw.randint(0, 2))
    facts = [kind(draw, who) for kind, who in zip(kinds, people, strict=False)]
    asked = facts[0]
    question, answer = draw.choice(asked.asked)
    others = [fact for fact in facts[1:] if not _answers(fact, question)]
    facts = [asked, *others]
    draw.shuffle(facts)
    text = " ".join(fact.sentence for fact in facts)
    inline = draw.random() < 0.25
    return {
        "instruction": f"{text} {question}" if inline else question,
        "context": "" if inline else text,
        "response": answer,
        "category": "closed_qa",
    }


def _answers(fact: Fact, question: str) -> bool:
    """Whether `fact` answers the same question too, which would make it ambiguous."""
    return any(asked == question for asked, _ in fact.asked)


def sums() -> list[Row]:
    """Addition and subtraction up to 9, and the multiplication table, in three phrasings each."""
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
    spoken = "은" if right in (0, 1, 3, 6, 7, 8) else "는"  # 영 일 삼 육 칠 팔 end in a consonant
    asked = (
        f"{left} {word} {right}{spoken}?",
        f"{left} {word} {right}{spoken} 얼마인가요?",
        f"{left}{sign}{right}{spoken}?",
    )
    answer = f"{left} {word} {right}{spoken} {result}입니다."
    return [
        {"instruction": text, "context": "", "response": answer, "category": "open_qa"}
        for text in asked
    ]
